"""Shape-checked annotations that cost a user nothing.

Annotations are written `Float[Tensor, "tokens dim"]` and never evaluated (every module postpones them), so
jaxtyping is not needed at run time. Under pytest its import hook is installed before this module is read;
then the real names are handed out and every annotated call is checked by beartype.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING or "jaxtyping" in sys.modules:
    from jaxtyping import Bool, Float, Int
else:
    Bool = Float = Int = None

__all__ = ["Bool", "Float", "Int"]
