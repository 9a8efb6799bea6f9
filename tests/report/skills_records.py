"""Made-up records of composed skills, in every shape that the page may meet."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

SKILLS = ("headers", "prose", "tests", "tables")
DOMAINS = ("headers", "prose", "tests", "tables", "headers+tables")
_WORDS = (
    "#include",
    " <",
    "vector",
    ">",
    "\n",
    "\t",
    "a",
    ",",
    " 1.5",
    ",",
    " 2",
    "\n",
    "class",
    " Skill",
    ";",
    "\n",
)


def _bits(row: int, column: int) -> float:
    """The base needs 2.2, a skill less in its own domain and more in others, the composition least."""
    own = {0: (0,), 1: (1,), 2: (2,), 3: (3,), 4: (0, 3)}[column]
    if row < 0:
        return 2.2 - 0.1 * column
    return 2.2 - 0.1 * column + (-0.31 if row in own else 0.12)


def _alpha(token: int, skill: int) -> float:
    return round(math.sin(token / 7 + skill) * (1.2 - 0.2 * skill), 3)


def record(num_tokens: int = 160) -> dict[str, Any]:
    """A library of four skills, composed by a router."""
    bits = {name: {d: _bits(i, j) for j, d in enumerate(DOMAINS)} for i, name in enumerate(SKILLS)}
    base = {d: _bits(-1, j) for j, d in enumerate(DOMAINS)}
    return {
        "title": "mixed",
        "base": "runs/base",
        "domains": list(DOMAINS),
        "composition": {"router": "context", "reads": "token", "weights": None},
        "skills": [
            {
                "name": name,
                "purpose": f"reads {name}",
                "rank": 8,
                "parameters": 208_896,
                "weights": 16,
                "data": f"skill.{name}.jsonl",
                "date": "2026-11-24T10:00:00+00:00",
                "parents": ["old"] if i == 2 else [],
                "energy": [1 - 0.5 ** (rank / (i + 1)) for rank in range(1, 8)] + [1.0],
            }
            for i, name in enumerate(SKILLS)
        ],
        "bits_per_byte": {
            "base": base,
            "skills": bits,
            "uniform": {d: value - 0.1 for d, value in base.items()},
            "composed": {d: value - (0.3 if d != "tests" else 0.05) for d, value in base.items()},
        },
        "similarity": {
            "Cosine of what they change": [
                [1.0 if i == j else 0.3 - 0.15 * abs(i - j) for j in range(4)] for i in range(4)
            ],
            "Overlap of the outputs that they reach": [
                [1.0 if i == j else 0.1 * (i + j) for j in range(4)] for i in range(4)
            ],
        },
        "proposals": ["headers keeps 99.1 % of its energy at rank 5 of 8, proposed from 99 %"],
        "alpha": {
            d: {s: {"mean": 0.9 - 0.5 * abs(i - j), "std": 0.1 * (i + 1)} for i, s in enumerate(SKILLS)}
            for j, d in enumerate(DOMAINS)
        },
        "passages": [
            {
                "domain": domain,
                "tokens": [
                    {
                        "text": _WORDS[(token + p) % len(_WORDS)],
                        "alpha": [_alpha(token + p, skill) for skill in range(len(SKILLS))],
                    }
                    for token in range(num_tokens)
                ],
            }
            for p, domain in enumerate(DOMAINS)
        ],
        "versions": {"expertise": "0.1.0", "torch": "2.13.0", "python": "3.11.7"},
    }


def fixed() -> dict[str, Any]:
    """Constant weights: nothing varies by token."""
    made = record()
    weights = {"headers": 0.7, "prose": -0.3, "tests": 0.0, "tables": 1.0}
    return made | {
        "composition": {"router": None, "reads": None, "weights": weights},
        "alpha": {},
        "passages": [],
    }


def hostile() -> dict[str, Any]:
    """Names and texts that are markup, or cannot be seen."""
    made = record(12)
    name = "<script>alert(1)</script>&\u202e"
    made["skills"][0] |= {"name": name, "purpose": "<b>bold</b>", "data": "a\udcc3b", "parents": ["<i>", "x"]}
    made["bits_per_byte"] = {"base": {"<i>d</i>": 2.0}, "skills": {name: {"<i>d</i>": 1.0}}}
    made["domains"] = ["<i>d</i>", "headers"]
    made["passages"][0] |= {"domain": "<i>d</i>"}
    made["passages"][0]["tokens"][0] = {"text": "</script><img src=x onerror=alert(1)>", "alpha": [1.0]}
    made["proposals"] = ["<script>alert(2)</script>"]
    return made


def many() -> dict[str, Any]:
    """Thirty skills with long names."""
    made = record(8)
    names = [f"a-rather-long-name-of-a-skill-{i}" for i in range(30)]
    made["skills"] = [made["skills"][i % 4] | {"name": name} for i, name in enumerate(names)]
    made["bits_per_byte"]["skills"] = {name: {"headers": 1.9 + 0.01 * i} for i, name in enumerate(names)}
    made["similarity"] = {"Cosine": [[1.0 if i == j else 0.0 for j in range(30)] for i in range(30)]}
    made["alpha"] = {"headers": {name: {"mean": 0.1, "std": 0.0} for name in names}}
    for passage in made["passages"]:
        for token in passage["tokens"]:
            token["alpha"] = [0.1 * i for i in range(30)]
    return made


def library_only() -> dict[str, Any]:
    """Skills that nothing was measured on."""
    made = record()
    return {key: made[key] for key in ("title", "skills", "similarity", "proposals")}


ODD: dict[str, Callable[[], dict[str, Any]]] = {
    "fixed": fixed,
    "hostile": hostile,
    "many": many,
    "library only": library_only,
    "one skill": lambda: record() | {"skills": record()["skills"][:1], "similarity": {}},
    "empty": dict,
}
