"""Compiles mixtures whole and compares them with themselves uncompiled; a script, not a test.

It runs in a process of its own because the shape-checking hook of the tests wraps `Routes.__init__`, which
Dynamo cannot read through. Reads one JSON object from standard input, case → its settings, and prints one:
case → largest difference of outputs and gradients, or why it failed.
"""

import json
import sys
from typing import Any

import torch
from torch import Tensor

from expertise.mixture import PARTS, ROUTERS, Context, Hash, Mixture, SwiGLU

DIM = 8
VOCAB = 11


def _build(case: dict[str, Any]) -> Mixture:
    torch.manual_seed(0)
    parts = PARTS[case["parts"]["name"]].Config(**case["parts"]).build(DIM)
    for tensor in parts.state_dict().values():
        tensor.normal_(std=0.5)
    router = ROUTERS[case["router"]["name"]].Config(**case["router"]).build(DIM, parts.num_parts, VOCAB)
    for tensor in router.state_dict().values():
        if tensor.is_floating_point():
            tensor.normal_()
    return Mixture(router, parts, SwiGLU(DIM, 8), dispatch=case["dispatch"])


def _run(module: torch.nn.Module, mixture: Mixture, seed: int, autocast: bool) -> list[Tensor]:
    x = torch.randn(9, DIM, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = module(x, _context(mixture, seed))
    learnt = [parameter for parameter in mixture.parameters() if parameter.requires_grad]
    return [y, *torch.autograd.grad(y.sum(), [x, *learnt], materialize_grads=True)]


def _context(mixture: Mixture, seed: int) -> Tensor | None:
    generator = torch.Generator().manual_seed(seed)
    if isinstance(mixture.router, Hash):
        return torch.randint(VOCAB, (9,), generator=generator)
    if isinstance(mixture.router, Context):
        return torch.randn(9, mixture.router.context_dim, generator=generator)
    return None


def difference(case: dict[str, Any]) -> float:
    """Largest difference between the compiled and the plain mixture, over inputs that route differently."""
    mixture = _build(case)
    torch._dynamo.reset()
    compiled = torch.compile(mixture, fullgraph=True, backend=case["backend"])
    largest = 0.0
    for seed in (1, 2):
        both = (_run(module, mixture, seed, case["autocast"]) for module in (compiled, mixture))
        for ours, theirs in zip(*both, strict=True):
            largest = max(largest, (ours - theirs).detach().abs().max().item())
    return largest


def main(cases: dict[str, dict[str, Any]]) -> dict[str, float | str]:
    """Every case's difference, or the beginning of its error."""
    found: dict[str, float | str] = {}
    for name, case in cases.items():
        try:
            found[name] = difference(case)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {str(error).strip()[:500]}"
    return found


if __name__ == "__main__":
    print(json.dumps(main(json.load(sys.stdin))))
