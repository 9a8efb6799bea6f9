"""Records of runs that never were, for tests of the page: a realistic one, and every odd case."""

from __future__ import annotations

import inspect
import json
import math
import random
import re
import textwrap
from collections.abc import Callable
from typing import Any

DOMAINS = ("code", "docstrings", "headers", "tests", "web", "data")
_HEADER = """\
#ifndef PARTS_ROUTER_H
#define PARTS_ROUTER_H

/* Chooses the parts of each token. */
typedef struct {
\tfloat *weight;      /* [parts, dim] */
\tint num_parts;
\tdouble p;
} router_t;

#if defined(__cplusplus)
extern "C" {
#endif
int router_choose(const router_t *router, const float *x, int *chosen);
void router_free(router_t *router);
#endif
"""
_WEB = '<div class="tag"><a href="#top">Parts &amp; gates</a>\n<script>alert("never run");</script></div>\n'


def _text(domain: str) -> str:
    prose = inspect.cleandoc(textwrap.__doc__ or "") + "\n\n" + (textwrap.TextWrapper.__doc__ or "")
    return {
        "code": inspect.getsource(json.JSONEncoder.default) + inspect.getsource(textwrap.dedent),
        "docstrings": prose,
        "headers": _HEADER * 2,
        "tests": inspect.getsource(textwrap.indent),
        "web": _WEB * 8,
    }.get(domain, '{"a": [1, 2, 3], "b": null}\n' * 12)


def _tokens(text: str, most: int) -> list[str]:
    return re.findall(r" ?\w{1,6}|\n+ *|\t+| +|[^\w\s]{1,2}", text)[:most]


def record(  # noqa: C901 - one long list of made-up numbers
    *,
    domains: tuple[str, ...] = DOMAINS,
    num_layers: int = 4,
    num_parts: int = 32,
    evaluations: int = 20,
    steps: int = 500,
    max_parts: int | None = 6,
    top_k: int | None = None,
    num_tokens: int = 300,
    seed: int = 0,
) -> dict[str, Any]:
    """What the lead's code writes to report.json, drawn from a seed.

    Args:
        domains: names of the domains.
        num_layers: mixture layers; 0 for a dense model.
        num_parts: experts per layer.
        evaluations: how many evaluations there were.
        steps: steps of training.
        max_parts: the router's limit, None for none.
        top_k: a fixed number of parts per token in place of top-p.
        num_tokens: of each passage.
        seed: of the drawing.
    """
    rng = random.Random(seed)
    tokens_per_step = 2048
    limit = min(top_k or max_parts or num_parts, num_parts)

    def draw(layer: int, domain: int) -> int:
        if top_k:
            return top_k
        wanted = 1 + rng.gammavariate(
            1.6, 0.55 + 0.12 * domain + 0.1 * (num_layers - layer) / max(num_layers, 1)
        )
        return max(1, min(limit, round(wanted)))

    layers, final = [], []
    for index in range(num_layers):
        load = [rng.lognormvariate(0, 0.38) for _ in range(num_parts)]
        load = [value * num_parts / sum(load) for value in load]
        final.append(load)
        prior = [1 / len(domains)] * len(domains)
        share, parts = [], []
        for part in range(num_parts):
            sharp = [rng.lognormvariate(0, 0.35 + 0.25 * index) for _ in domains]
            row = [value / sum(sharp) for value in sharp]
            share.append(row)
            lifts = [a / b for a, b in zip(row, prior, strict=True)]
            best = lifts.index(max(lifts))
            words = sorted(set(_tokens(_text(domains[best]), 200)))
            parts.append(
                {
                    "id": part,
                    "load": load[part],
                    "domain": domains[best],
                    "lift": lifts[best],
                    "tokens": rng.sample(words, min(6, len(words))),
                }
            )
        layers.append(
            {
                "layer": index + 1,
                "num_parts": num_parts,
                "always_hidden": 128,
                "part_hidden": 64,
                "load": load,
                "domain_share": share,
                "domain_prior": prior,
                "mutual_information": 0.05 + 0.06 * index,
                "parts": parts,
            }
        )

    passages = []
    for d, domain in enumerate(domains):
        tokens = []
        for text in _tokens(_text(domain), num_tokens):
            counts = [draw(layer, d) for layer in range(num_layers)]
            if text.startswith("\n") and not top_k:
                counts = [1] * num_layers
            chosen = [rng.sample(range(num_parts), count) for count in counts]
            gates = [sorted((rng.uniform(0.05, 0.4) for _ in one), reverse=True) for one in chosen]
            tokens.append({"text": text, "parts": chosen, "gates": gates})
        passages.append({"domain": domain, "tokens": tokens})

    by_layer = {
        domain: [
            float(top_k) if top_k else sum(draw(layer, d) for _ in range(200)) / 200
            for layer in range(num_layers)
        ]
        for d, domain in enumerate(domains)
    }
    histogram = []
    for layer in range(num_layers):
        bins = [0] * limit
        for d in range(len(domains)):
            for _ in range(400):
                bins[draw(layer, d) - 1] += 1
        histogram.append(bins)
    layer_means = [sum((i + 1) * n for i, n in enumerate(bins)) / sum(bins) for bins in histogram]
    mean_parts = sum(layer_means) / len(layer_means) if layer_means else 0.0
    squares = [(i + 1 - mean_parts) ** 2 * n for bins in histogram for i, n in enumerate(bins)]
    std = math.sqrt(sum(squares) / max(1, sum(map(sum, histogram))))
    reached = sum(bins[-1] for bins in histogram) / max(1, sum(map(sum, histogram)))

    goal = {domain: 1.75 + 0.17 * d for d, domain in enumerate(domains)}

    def bits_at(done: float) -> dict[str, float]:
        found = {
            k: v + 5.6 * math.exp(-9 * done) + 0.9 * math.exp(-2.2 * done) - 0.1 for k, v in goal.items()
        }
        return {**found, "mean": sum(found.values()) / len(found)}

    curve, points = [], []
    for step in range(1, steps + 1 if evaluations else 1):
        done = step / steps
        loss = 2.9 + 5.0 * math.exp(-9 * done) + 1.1 * math.exp(-2.2 * done) + rng.gauss(0, 0.09)
        rate = 1e-3 * min(1.0, 20 * done) * (1.0 if done < 0.8 else 0.316 if done < 0.9 else 0.1)
        balance = (
            {} if not num_layers else {"expert": 1 + 0.4 * math.exp(-6 * done), "entropy": 2.9 - 0.9 * done}
        )
        curve.append(
            {
                "step": step,
                "tokens": step * tokens_per_step,
                "loss": loss,
                "learning_rate": rate,
                "gradient_norm": 0.6 + 2 * math.exp(-20 * done) + abs(rng.gauss(0, 0.08)),
                "balance": balance,
            }
        )
    for e in range(evaluations):
        done = (e + 1) / evaluations
        extra = 0.0 if top_k else 1.6 * (math.exp(-4 * done) - math.exp(-4))
        layer_now = [value + extra * (1 + 0.1 * i) for i, value in enumerate(layer_means)]
        points.append(
            {
                "step": round(done * steps),
                "tokens": round(done * steps) * tokens_per_step,
                "bits_per_byte": bits_at(done),
                "parts_per_token": {
                    "mean": mean_parts + extra,
                    "layers": layer_now,
                    "domains": {k: sum(v) / max(1, len(v)) + extra for k, v in by_layer.items()},
                },
                "loads": [
                    [value ** (0.2 + 0.8 * done) * rng.lognormvariate(0, 0.3 * (1 - done)) for value in load]
                    for load in final
                ],
            }
        )

    def squeezed(offset: float) -> dict[str, float]:
        found = {k: 2.35 + offset + 0.11 * ((3 * d) % 5) for d, k in enumerate(domains)}
        return {**found, "mean": sum(found.values()) / max(1, len(found))}

    summary: dict[str, Any] = {"bits_per_byte": bits_at(1.0), "tokens_counted": 65536} if evaluations else {}
    if num_layers and evaluations:
        summary |= {
            "parts_per_token": {
                "mean": mean_parts,
                "std": 0.0 if top_k else std,
                "layers": layer_means,
                "domains": {k: sum(v) / len(v) for k, v in by_layer.items()},
                "domains_by_layer": by_layer,
                "histogram": histogram,
            },
            "share_at_max_parts": None if max_parts is None or top_k else reached,
            "max_parts": None if top_k else max_parts,
        }
    return {
        "title": "demo",
        "state": "finished",
        "step": steps,
        "steps": steps,
        "tokens": steps * tokens_per_step,
        "seed": 0,
        "domains": list(domains),
        "summary": summary,
        "curves": {"train": curve, "evaluations": points},
        "compressors": {"zlib": squeezed(0.35), "lzma": squeezed(0.0)},
        "layers": layers,
        "passages": passages,
        "sizes": {
            "parameters_total": 3.2e6,
            "parameters_activated": 1.4e6,
            "flops_per_sequence": 1.1e9,
            "always": 295_000,
            "routed": 1_180_000,
            "embedding": 1_050_000,
            "attention": 655_000,
            "router": 16_000,
        },
        "timing": {"seconds": 131.0, "tokens_per_second": 7800.0},
        "versions": {"expertise": "0.1.0", "torch": "2.13.0", "python": "3.11.7"},
        "recipe": '[model]\ndim = 128\nnum_layers = 5\n\n[model.router]\nname = "top_p"\np = 0.4\n',
        "notes": ["The domains tests and data had under 1 MB of text each."],
        "samples": [
            {"prompt": "def ", "text": "main(self):\n    return self._parts[0]\n"},
            {"prompt": "#include <", "text": "stdio.h>\n\nint main(void) {\n\treturn 0;\n}\n"},
        ],
    }


def small(**options: Any) -> dict[str, Any]:
    """A record with short passages."""
    return record(num_tokens=40, **options)


def hostile() -> dict[str, Any]:
    """A small record whose every text tries to get out."""
    attack = "</script><script>alert(1)</script>"
    image = "<img src=x onerror=alert(2)>"
    made = small(
        domains=(attack, image, "n\u00e4me\udce9"), num_layers=2, num_parts=4, evaluations=3, steps=30
    )
    made["title"] = image
    made["recipe"] = f"# {attack}"
    made["notes"] = [attack]
    made["samples"] = [{"prompt": attack, "text": image}]
    made["versions"] = {attack: image}
    odd = [
        attack,
        image,
        "\n",
        "\t\t",
        "  \n\n",
        "\udcc3\udca9",
        "\ufffd",
        "\x00\x1b",
        "",
        "\u202e",
        "&amp;",
        "'\"",
    ]
    for passage in made["passages"]:
        for token, text in zip(passage["tokens"], odd, strict=False):
            token["text"] = text
    for layer in made["layers"]:
        for part in layer["parts"]:
            part["tokens"] = odd
    return made


def empty() -> dict[str, Any]:
    """Nothing is known."""
    return {}


def just_begun() -> dict[str, Any]:
    """A few steps, no evaluation."""
    made = record(evaluations=0)
    made |= {"state": "training", "step": 3, "tokens": 6144, "passages": [], "layers": made["layers"][:0]}
    made["curves"]["train"] = record(evaluations=1)["curves"]["train"][:3]
    return made


def _nulls() -> dict[str, Any]:
    made: dict[str, Any] = dict.fromkeys(record(num_layers=1, evaluations=1))
    return made | {"layers": [{"layer": 3, "num_parts": 8}], "domains": ["code"]}


ODD: dict[str, Callable[[], dict[str, Any]]] = {
    "empty": empty,
    "nulls": _nulls,
    "just begun": just_begun,
    "one evaluation": lambda: small(evaluations=1, steps=20),
    "two evaluations": lambda: small(evaluations=2, steps=50),
    "one domain": lambda: small(domains=("code",), evaluations=4, steps=40),
    "dense": lambda: small(num_layers=0, evaluations=4, steps=40),
    "one layer": lambda: small(num_layers=1, evaluations=4, steps=40),
    "many experts": lambda: small(num_parts=128, num_layers=2, max_parts=None, evaluations=4, steps=40),
    "many layers": lambda: small(num_layers=28, num_parts=64, evaluations=44, steps=44),
    "top k": lambda: small(top_k=4, max_parts=None, evaluations=4, steps=40),
    "long names": lambda: small(
        domains=("a-domain-whose-name-goes-on-" * 4, "an other one with spaces " * 3, "x"),
        evaluations=3,
        steps=40,
    ),
    "many domains": lambda: small(domains=tuple(f"domain {i}" for i in range(20)), evaluations=3, steps=40),
    "hostile": hostile,
}
"""Name of a case → its record."""
