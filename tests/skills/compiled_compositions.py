"""Compiles composed models and compares them with themselves uncompiled; a script, not a test.

In a process of its own because the shape-checking hook of the tests cannot be read by Dynamo, and because
`torch.compile` warns of things that are deprecated in torch itself. Prints one JSON object: case → largest
difference of outputs and of the router's gradients over several calls, or why it failed.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from builders import llama, logits_of, net, own_model, qwen_mixture, some_skills, tokens
from torch import Tensor

from expertise.mixture import Context, TopK, TopP
from expertise.skills import compose

CASES: dict[str, tuple[Any, Any]] = {
    "fixed": (lambda: qwen_mixture(num_hidden_layers=1), lambda: {"weights": [0.7, -0.3]}),
    "context": (lambda: llama(num_hidden_layers=1), lambda: {"router": Context(5, 2, (7,))}),
    "token": (own_model, lambda: {"router": TopK(32, 2, 1), "reads": "token"}),
    "layer": (net, lambda: {"router": TopP.Config(p=0.6), "reads": "layer"}),
}


def calls(kind: str) -> list[dict[str, Any]]:
    """One after the other, so that what was compiled for one must not be taken for another."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    own = [{"context": draw(3, 5)}, {"context": draw(3, 5)}] if kind == "context" else [{}, {}]
    given = [{"weights": draw(2)}, {"weights": draw(3, 2)}, {"weights": draw(3, 2)}, {"weights": [0.0, 0.0]}]
    return [*own, *given, own[0]]


def difference(kind: str) -> float:
    """Over all calls of a case."""
    torch.manual_seed(0)
    make, options = CASES[kind]
    base = make()
    model: Any = compose(base, some_skills(base, "all", "all"), **options())
    x = torch.randn(3, 6) if make is net else tokens()
    compiled = torch.compile(model, backend="aot_eager")
    pairs = [(logits_of(compiled, x, **given), logits_of(model, x, **given)) for given in calls(kind)]
    if kind == "fixed":
        model.composition.set_weights({"a": -1.0})
        pairs.append((logits_of(compiled, x), logits_of(model, x)))
    learns = [p for p in model.parameters() if p.requires_grad]
    if learns:
        outputs = [module(x, **calls(kind)[0]) for module in (compiled, model)]
        losses = [getattr(out, "logits", out).square().sum() for out in outputs]
        pairs += zip(*(torch.autograd.grad(loss, learns) for loss in losses), strict=True)
    return max((ours - theirs).abs().max().item() for ours, theirs in pairs)


def main() -> dict[str, float | str]:
    """Every case."""
    found: dict[str, float | str] = {}
    for kind in CASES:
        try:
            found[kind] = difference(kind)
        except Exception as error:
            found[kind] = f"{type(error).__name__}: {str(error).strip()[:500]}"
    return found


if __name__ == "__main__":
    print(json.dumps(main()))
