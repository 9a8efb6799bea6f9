"""Forward and backward of one mixture layer: ours, a loop over experts, and the physical limit.

The loop is how eager implementations of mixtures (Mixtral's in transformers, the released DeepSeekMoE)
compute: for each expert find its tokens, run it, add back. The limit is one dense product of the same number
of operations. The three are timed in alternation within one process; quote the ratios, not the seconds.

    python benchmarks/mixture_layer.py [--dim 256] [--parts 64] [--k 8] [--hidden 64] [--tokens 2048]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from alternation import keep
from torch import Tensor
from torch.nn import functional as F

from expertise.mixture import Mixture, SwiGLUExperts, TopK

RESULTS = Path(__file__).parents[1] / "docs/results/mixture_layer.json"


def loop_over_experts(x: Tensor, mixture: Mixture) -> Tensor:
    """The usual eager way."""
    router, parts = mixture.router, mixture.parts
    assert isinstance(router, TopK)
    assert isinstance(parts, SwiGLUExperts)
    probabilities = F.linear(x, router.weight).softmax(-1)
    gates, chosen = probabilities.topk(router.k, dim=-1)
    y = torch.zeros_like(x)
    for expert in range(parts.num_parts):
        token, slot = torch.where(chosen == expert)
        gate, up = F.linear(x[token], parts.gate_up[expert]).chunk(2, -1)
        rows = F.linear(F.silu(gate) * up, parts.down[expert]) * gates[token, slot, None]
        y.index_add_(0, token, rows)
    return y


def measure(arguments: argparse.Namespace) -> list[dict[str, object]]:
    """Rows of results: seconds of each way and ratios, as tidy records."""
    torch.manual_seed(0)
    parts = SwiGLUExperts(arguments.parts, arguments.dim, arguments.hidden)
    mixture = Mixture(TopK(arguments.dim, arguments.parts, arguments.k), parts)
    x = torch.randn(arguments.tokens, arguments.dim, requires_grad=True)
    # Forward plus backward of three matrices per expert: 3 * 2 * 3 operations per weight and row.
    operations = 18 * arguments.tokens * arguments.k * arguments.dim * arguments.hidden
    side = 1024
    a, b = torch.randn(side, side), torch.randn(side, side)

    def step(way: Callable[[], Tensor]) -> Callable[[], None]:
        def once() -> None:
            mixture.zero_grad(set_to_none=True)
            way().square().sum().backward()  # type: ignore[no-untyped-call]

        return once

    ways: dict[str, Callable[[], object]] = {
        "ours": step(lambda: mixture(x)),
        "loop over experts": step(lambda: loop_over_experts(x, mixture)),
        "dense product": lambda: a @ b,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(arguments.repeats + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if repeat:
                times[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values) for name, values in times.items()}
    limit = operations / (2 * side**3) * median["dense product"]
    setting = "tokens={tokens} dim={dim} parts={parts} k={k} hidden={hidden}".format(**vars(arguments))
    values = [
        ("ours", "seconds", "s", median["ours"]),
        ("loop over experts", "seconds", "s", median["loop over experts"]),
        ("ours", "speed_ratio", "times the loop", median["loop over experts"] / median["ours"]),
        ("ours", "share_of_limit", "1", limit / median["ours"]),
        ("loop over experts", "share_of_limit", "1", limit / median["loop over experts"]),
    ]
    return [
        {
            "table": "mixture_layer",
            "setting": setting,
            "row": r,
            "metric": m,
            "unit": u,
            "seed": 0,
            "value": v,
        }
        for r, m, u, v in values
    ]


def main() -> None:
    """Measure, print, and write the results file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in {"tokens": 2048, "dim": 256, "parts": 64, "k": 8, "hidden": 64, "repeats": 15}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    rows = measure(parser.parse_args())
    for row in rows:
        print(f"{row['row']:<20}{row['metric']:<18}{row['value']:>10.4f} {row['unit']}")
    keep(RESULTS, "mixture_layer", rows)


if __name__ == "__main__":
    main()
