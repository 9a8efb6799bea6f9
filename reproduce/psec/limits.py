"""What the comparisons do not show: what an independent reading found, with the figures of the rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from expertise.report.results import Figure, figures, paired
from expertise.runs.results import Results, Row
from reproduce.psec.verdicts import (
    CONTINUAL,
    DYNAMICS,
    ERRORS,
    META,
    MULTI,
    OURS,
    SAFE,
    SHIFT,
    counted,
    is_above,
    is_below,
    mean_of,
    settings_of,
    text_of,
)

ALIKE = ("NSEC (LoRA)", "ASEC (LoRA)", "fixed weights")
"""Rows over the very skills that PSEC composes."""


def limits(results: Results) -> str:
    """What the comparisons do not show, as a Markdown list."""
    lines = [*_one_skill(results), *_scales(results), *_steps(results), *_safe(results), *_told(results)]
    return "\n".join(f"- {line}" for line in lines) + "\n" if lines else "- Nothing was measured yet.\n"


def _one_skill(results: Results) -> Iterable[str]:
    """With one skill there is nothing to compose: rows over that skill say what the way to weigh it does."""
    shift = [setting for setting in settings_of(results, SHIFT) if "+" not in setting]
    meta = [setting for setting in settings_of(results, META) if not setting.endswith("/0")]
    cells = {
        "policy shift": (0, [results.select(SHIFT, "return", setting) for setting in shift]),
        "Meta-World": (3, [results.select(META, "success", setting) for setting in meta]),
    }
    words = []
    for name, (digits, settings) in cells.items():
        for other in ALIKE:
            found = [difference for rows in settings if (difference := paired(rows, OURS, other))]
            if found:
                above, below = sum(map(is_above, found)), sum(map(_is_below_zero, found))
                words.append(
                    f"{name}, {other} {text_of(mean_of(found), digits)}, above in {above} and below in "
                    f"{below} "
                    f"of {counted(len(found), 'cell')}"
                )
    if words:
        yield (
            "Cells with one skill (all of dynamics and of Meta-World's, and of policy shift those without "
            "a plus) "
            "show low-rank fine-tuning, not composition. The same skill weighed in other ways is level with "
            f"{OURS}: {OURS}'s mean over cells less theirs, and in how many cells it lies above or below "
            "by more "
            f"than {ERRORS} standard errors: {'; '.join(words)}."
        )


def _scales(results: Results) -> Iterable[str]:
    few = [setting for setting in settings_of(results, META) if setting.endswith("/3")]
    rows = [results.select(META, "success", setting) for setting in few]
    found = [difference for each in rows if (difference := paired(each, OURS, "Scratch"))]
    if found:
        yield (
            "Meta-World's rows from scratch see observations on the scale of their own 3 demonstrations, "
            f"{OURS}'s on that of the 200 of its base. An independent reading found that the difference of "
            f"{mean_of(found).mean:+.2f} shrinks once both have one scale: a part of it is the scale's, "
            "and not "
            "the skills'."
        )


def _steps(results: Results) -> Iterable[str]:
    sizes = results.environment.get("settings", {}).get("dynamics", {}).get("sizes", {})
    if settings_of(results, DYNAMICS) and sizes:
        both = sizes["base_steps"] + sizes["skill_steps"]
        yield (
            f"Dynamics shift: Scratch has {sizes['scratch_steps']:,} steps, {OURS}'s base and skill together "
            f"{both:,}. An independent reading found that Scratch with 16,000 comes level under gravity."
        )
    found = {
        setting: difference
        for setting in settings_of(results, DYNAMICS)
        if (difference := paired(results.select(DYNAMICS, "return", setting), "IQL", OURS))
    }
    if any(difference.mean > 0 for difference in found.values()):
        words = "; ".join(f"{setting} {text_of(difference, 0)}" for setting, difference in found.items())
        yield (
            "Dynamics shift: IQL, without diffusion and without skills, learnt from the few trajectories "
            "alone, "
            f"is above {OURS} in {sum(d.mean > 0 for d in found.values())} of "
            f"{counted(len(found), 'case')}, in "
            f"{sum(map(is_above, found.values()))} by more than {ERRORS} standard errors ({words})."
        )


def _safe(results: Results) -> Iterable[str]:
    """Safe control as it is claimed, by rows other than PSEC."""
    for task in settings_of(results, MULTI):
        reward = results.select(MULTI, "normalized_reward", task)
        cost = figures(results.select(MULTI, "normalized_cost", task))
        others = [name for name in figures(reward) if name not in (OURS, SAFE)]
        too = [name for name in others if _holds(reward, cost.get(name), name)]
        if too and _holds(reward, cost.get(OURS), OURS):
            yield (
                f"Safe control, {task}: {', '.join(too)} are safe and faster than the safety skill, too: "
                "what "
                f"holds of {OURS} does not set composition apart."
            )


def _told(results: Results) -> Iterable[str]:
    if settings_of(results, CONTINUAL):
        yield (
            "Meta-World, one task after the other: nothing is forgotten because the task is told. On what "
            "the "
            "base knows every skill has weight 0, on a later task its own skill alone counts, so that the "
            "earlier "
            "policy acts as it did. A policy that has to find out which task it is in was not measured."
        )


def _holds(reward: Sequence[Row], cost: Figure | None, name: str) -> bool:
    more = paired(reward, name, SAFE)
    return cost is not None and more is not None and is_below(cost, 1.0) and is_above(more)


def _is_below_zero(difference: Figure) -> bool:
    return is_below(difference, 0.0)
