"""Learn and compose skills from paths to paths, as the commands do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from expertise.errors import SkillError
from expertise.lm.causal import CausalLM
from expertise.lm.data import ALL, HELD_OUT, DataConfig, held_out
from expertise.lm.evaluate import domain_texts
from expertise.lm.notes import Notes
from expertise.lm.open import open_model
from expertise.lm.reading import all_for, window_of
from expertise.lm.recipe import EvaluationConfig
from expertise.lm.show import Example
from expertise.lm.skills.compare import SideBySide, comparison
from expertise.lm.skills.config import ComposeConfig, LearnConfig
from expertise.lm.skills.learn import check_skill, learn_router, learn_skill
from expertise.runs.device import limit_threads
from expertise.skills.card import Card
from expertise.skills.composed import save_composed
from expertise.skills.composed_json import is_composed
from expertise.skills.composing import compose
from expertise.skills.folders import require_free
from expertise.skills.library import Library
from expertise.skills.skill import Skill


def learn_into(
    library: Library,
    base: Path | str,
    name: str,
    config: LearnConfig,
    work: Path,
    *,
    beside: Sequence[str] = (),
    weights: Sequence[float] | None = None,
    purpose: str = "",
    force: bool = False,
    say: Callable[[str], None],
) -> Card:
    """Learn a skill and add it to a library.

    Args:
        library: the folder that it is added to.
        base: path of its base.
        name: the skill's name.
        config: data, factors and training.
        work: the training's folder; it is kept.
        beside: skills of the library that are active while it learns.
        weights: weights of those skills; None: 1 each.
        purpose: purpose of the skill, for its card.
        force: take skills of another base beside it, as long as their shapes fit.
        say: called with each line of progress.

    Returns:
        The new skill's card.

    Raises:
        ExpertiseError: any mistake of the user; see `expertise.errors`.
    """
    require_free(library.path, name)
    model, skills = _opened(base, library, beside, config.train.device, force)
    learnt = learn_skill(model, name, config, work, beside=skills, weights=weights, say=say)
    return library.add(
        learnt.skill,
        base=model.core,
        purpose=purpose,
        data=learnt.data,
        data_digest=learnt.data_digest,
        metrics=learnt.metrics,
        parents=list(beside),
        scale_convention=config.skill.scale_convention,
    )


def check_learning(
    library: Library,
    base: Path | str,
    name: str,
    config: LearnConfig,
    work: Path,
    *,
    beside: Sequence[str] = (),
    weights: Sequence[float] | None = None,
    force: bool = False,
    say: Callable[[str], None],
    show: int = 0,
) -> list[Example]:
    """Do everything that `learn_into` does before it trains; only the cache of encoded text is written.

    Args:
        library, base, name, config, work, beside, weights, force, say: as in `learn_into`.
        show: number of examples to return.

    Returns:
        The first rows of the training data.

    Raises:
        ExpertiseError: any mistake of the user; see `expertise.errors`.
    """
    require_free(library.path, name)
    model, skills = _opened(base, library, beside, config.train.device, force)
    return check_skill(model, name, config, work, beside=skills, weights=weights, say=say, show=show)


def compose_into(
    out: Path,
    base: Path | str,
    library: Library,
    names: Sequence[str],
    config: ComposeConfig,
    work: Path,
    *,
    force: bool = False,
    say: Callable[[str], None],
) -> tuple[SideBySide, dict[str, Any]]:
    """Learn a router over skills and write the composed model.

    Args:
        out: the composed model's folder, which must not exist yet.
        base: path of the skills' base.
        library: the library of skills.
        names: names of the skills, in the order of alpha.
        config: data, router and training.
        work: the training's folder; it is kept.
        force: take skills of another base, as long as their shapes fit.
        say: called with each line of progress.

    Returns:
        The composed model compared with its parts on held-out text, and the metrics that are saved with it.

    Raises:
        ExpertiseError: any mistake of the user; see `expertise.errors`.
    """
    _require_new(out)
    model, skills = _opened(base, library, names, config.train.device, force)
    learnt = learn_router(model, skills, config, work, say=say)
    save_composed(
        learnt.model.core,
        out,
        base=base,
        library=library,
        data=learnt.data,
        data_digest=learnt.data_digest,
        metrics=learnt.metrics,
        notes=learnt.notes.to_json(),
        beside=lambda folder: held_out.fill(learnt.prepared, folder / HELD_OUT),
    )
    return learnt.comparison, learnt.metrics


def weigh_into(
    out: Path,
    base: Path | str,
    library: Library,
    names: Sequence[str],
    weights: Sequence[float],
    *,
    data: DataConfig | None = None,
    device: str = "cpu",
    threads: int = 0,
    force: bool = False,
    say: Callable[[str], None],
) -> tuple[SideBySide | None, dict[str, Any]]:
    """Write a composed model with constant weights, without training.

    Args:
        out: the composed model's folder, which must not exist yet.
        base: path of the skills' base.
        library: the library of skills.
        names: names of the skills.
        weights: one per skill.
        data: text for an evaluation, as much of each domain as a training evaluates on; None: no evaluation.
        device: device to compute on.
        threads: CPU threads; 0: one per core.
        force: take skills of another base, as long as their shapes fit.
        say: called with each line of progress.

    Returns:
        The composed model compared with its parts if there is text, and the metrics that are saved with it.

    Raises:
        ExpertiseError: any mistake of the user; see `expertise.errors`.
    """
    _require_new(out)
    limit_threads(threads)
    model, skills = _opened(base, library, names, device, force)
    model = model.around(compose(model.core, skills, weights=list(weights)))
    found, metrics, notes, digest = None, {}, Notes(), ""
    if data is not None:
        # Nothing is trained on this text, so none of it needs to be held out.
        text, look = all_for(model, data, say), EvaluationConfig()
        texts = domain_texts(text, ALL, look.bytes_per_domain, window_of(model))
        found = comparison(model, texts, look.batch_size)
        metrics = {"bits_per_byte": found.to_json()}
        notes, digest = Notes(data=data, reads_documents=text.packed), text.digest
    save_composed(
        model.core,
        out,
        base=base,
        library=library,
        data_digest=digest,
        metrics=metrics,
        notes=notes.to_json(),
    )
    return found, metrics


def _opened(
    base: Path | str, library: Library, names: Sequence[str], device: str, force: bool
) -> tuple[CausalLM, list[Skill]]:
    """Open a base and skills for it."""
    if is_composed(Path(base)):
        raise SkillError(
            f"{base} is a composed model", "name its own base; to learn beside its skills, name them too"
        )
    if len(set(names)) != len(names):
        raise SkillError(f"a skill is named twice: {', '.join(names)}")
    model = open_model(base, device)
    return model, library.load_all(names, model.core, force=force)


def _require_new(out: Path) -> None:
    """Refuse an existing folder before the long work, not after it."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise SkillError(f"{out} is there already", "choose another --out")
