"""Export policies to programs without PyTorch: describe them once, write the description in several forms.

`describe` (networks, alpha, sampler, critics as plain steps over named arrays) → `arrays` (safetensors and
JSON) or `onnx` (one graph).
"""

from expertise.policy.export.describe import Described, describe
from expertise.policy.export.write import FORMATS, export_policy

__all__ = ["FORMATS", "Described", "describe", "export_policy"]
