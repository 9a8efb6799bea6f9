"""What the page of skills shows, measured on a composed language model and held-out text."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from expertise import __version__
from expertise.errors import RecipeError
from expertise.lm.alpha import Alpha
from expertise.lm.analysis import opening
from expertise.lm.causal import CausalLM
from expertise.lm.data import IGNORED, DataConfig
from expertise.lm.data.split import require_split
from expertise.lm.evaluate.perplexity import DomainText, domain_texts, passes
from expertise.lm.evaluate.run import open_with_text
from expertise.lm.recipe import EvaluationConfig
from expertise.lm.skills import comparison
from expertise.mixture.routers.base import Router
from expertise.report.alike import similarity_of
from expertise.report.skills import render
from expertise.report.text import vocabulary
from expertise.runs.files import write_atomic
from expertise.runs.metrics import finite
from expertise.skills import Comparison, Library, compare_skills, composition_of, skills_of
from expertise.skills.card import Card
from expertise.skills.composed import SKILLS
from expertise.skills.composed_json import read_composed
from expertise.skills.skill import Skill

PAGE, RECORD = "skills.html", "skills.json"
PASSAGE_TOKENS = 256
MAX_BYTES = 65_536
"""Held-out text of each domain that a page is made of, unless more is asked for."""
_AGREEMENT_TOKENS = 2048


def skills_record(
    model: CausalLM,
    texts: list[DomainText],
    batch_size: int,
    *,
    title: str = "skills",
    base: str = "",
    cards: Mapping[str, Card | None] | None = None,
) -> dict[str, Any]:
    """Look at a composed model.

    Args:
        model: around a composed model.
        texts: held-out windows of each domain.
        batch_size: windows at once.
        title: the page's name.
        base: what the base is called.
        cards: what is known of each skill beside its weights.

    Returns:
        The record that `report.skills.render` draws.
    """
    composition = composition_of(model.core)
    skills = skills_of(model.core)
    found = compare_skills(skills, inputs=lambda skill: _added_logits(model, texts, skill.name))
    bits = comparison(model, texts, batch_size)
    routers = list(composition.routers().values())
    constant = composition.default_weights().tolist()
    return {
        "title": title,
        "base": base,
        "domains": [text.domain for text in texts],
        "composition": {
            "router": _kind(routers[0]) if routers else None,
            "reads": composition.reads if routers else None,
            "weights": None if routers else dict(zip(composition.names, constant, strict=True)),
        },
        "skills": [_skill(skill, found, (cards or {}).get(skill.name)) for skill in skills],
        "bits_per_byte": {
            "base": bits.base.bits_per_byte,
            "skills": {name: each.bits_per_byte for name, each in bits.skills.items()},
            "uniform": bits.uniform.bits_per_byte,
            "composed": bits.composed.bits_per_byte,
        },
        "similarity": similarity_of(found, [skill.name for skill in skills], "the logits"),
        "proposals": [proposal.reason for proposal in found.proposals],
        "alpha": {text.domain: _alpha(model, text, batch_size) for text in texts} if routers else {},
        "passages": [_passage(model, text) for text in texts] if routers else [],
        "versions": {
            "expertise": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def write_skills_report(
    path: Path,
    say: Callable[[str], None],
    *,
    data: DataConfig | None = None,
    base: Path | str | None = None,
    split: str | None = None,
    max_bytes: int = MAX_BYTES,
    device: str = "auto",
) -> Path:
    """Look at a composed model's folder and write `skills.html`, and its numbers as `skills.json`, into it.

    Args:
        path: a folder that `save_composed` wrote.
        say: told what happens.
        data: on this text; None: on the held-out text of what its router was learnt from.
        base: where its base is now; None: where it was.
        split: "validation" or "test"; of given text also "all". None: all of given text, else validation.
        max_bytes: text of each domain; 0: all.
        device: where to compute.

    Returns:
        The page's path.

    Raises:
        SkillError: there is no composed model, or it is damaged.
        RecipeError: no text is known, or there is no such split.
        DiskError: the page cannot be written.
    """
    require_split(split, given=True)
    composed, library = read_composed(path), Library(path / SKILLS)
    opened = open_with_text(path, split, say, data=data, base=base, device=device)
    found = domain_texts(opened.look.text, opened.look.split, max_bytes, opened.window)
    texts = [text for text in found if text.windows.num_documents]
    if not texts:
        raise RecipeError(f"there is nothing to look at: {max_bytes} bytes are less than a character")
    say(f"looking at {opened.look.words}: {', '.join(text.domain for text in texts)}")
    record = skills_record(
        opened.model,
        texts,
        EvaluationConfig().batch_size,
        title=path.resolve().name,
        base=Path(str(base or composed.base.path)).name,
        cards={name: library.card(name) for name in composed.skills},
    )
    record["notes"] = [f"measured on {opened.look.words}", *opened.look.notes]
    write_atomic(path / RECORD, json.dumps(finite(record), ensure_ascii=False, allow_nan=False) + "\n")
    write_atomic(path / PAGE, render(record))
    return path / PAGE


def _kind(router: Router) -> str:
    """The name that its configuration has in a recipe."""
    return str(type(router).Config.name)  # type: ignore[attr-defined]


def _skill(skill: Skill, found: Comparison, card: Card | None) -> dict[str, Any]:
    ranks = [factors.rank for factors in skill.factors.values()]
    (energy,) = [each for each in found.energies if each.name == skill.name]
    return {
        "name": skill.name,
        "purpose": card.purpose if card else "",
        "rank": max(ranks),
        "parameters": skill.num_params(),
        "weights": len(ranks),
        "data": card.data if card else None,
        "date": card.date if card else None,
        "parents": list(card.parents) if card else [],
        "energy": energy.shares(),
    }


def _added_logits(model: CausalLM, texts: list[DomainText], name: str) -> Tensor:
    """What a skill alone adds to the base's logits, on the beginning of every domain's text."""
    composition = composition_of(model.core)
    found = []
    for text in texts:
        number = max(1, _AGREEMENT_TOKENS // len(texts) // text.windows.tokens.shape[1])
        windows = text.windows
        tokens = windows.tokens[:number].to(model.device)
        documents = None if windows.documents is None else windows.documents[:number].to(model.device)
        with torch.inference_mode():
            with composition.using(weights={name: 1.0}):
                alone = model(tokens, documents=documents)
            with composition.using(weights={}):
                found.append((alone - model(tokens, documents=documents)).flatten(0, 1))
    return torch.cat(found)


def _alpha(model: CausalLM, text: DomainText, batch_size: int) -> dict[str, dict[str, float]]:
    """Mean and standard deviation of each skill's weight over the tokens that count."""
    names = Alpha(model).names
    tables = [torch.empty(0, len(names), dtype=torch.float64)]
    for batch in passes(model, text, batch_size):
        counted = batch.targets.flatten() != IGNORED
        alpha = torch.zeros(len(counted), len(names)) if batch.alpha is None else batch.alpha
        tables.append(alpha[counted].double().cpu())
    alpha = torch.cat(tables)
    if not len(alpha):
        return {}
    mean, std = alpha.mean(0).tolist(), alpha.std(0, correction=0).tolist()
    return {name: {"mean": round(mean[i], 4), "std": round(std[i], 4)} for i, name in enumerate(names)}


def _passage(model: CausalLM, text: DomainText) -> dict[str, Any]:
    """The first tokens of a text with the weight of every skill."""
    start = opening(text, min(PASSAGE_TOKENS, model.context))
    ids = start.tokens[0].tolist()
    with torch.inference_mode(), Alpha(model).recording() as alpha:
        documents = None if start.documents is None else start.documents.to(model.device)
        model(start.tokens.to(model.device), documents=documents)
        found = alpha.last(1, len(ids))
    weights = [[0.0] * len(alpha.names)] * len(ids) if found is None else found.tolist()
    words = vocabulary(model.tokenizer, model.vocab_size)
    return {
        "domain": text.domain,
        "tokens": [
            {"text": words[token], "alpha": [round(value, 3) for value in values]}
            for token, values in zip(ids, weights, strict=True)
        ],
    }
