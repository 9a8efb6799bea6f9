"""The paper's claims that hold here, and what the comparisons do not show, from the rows alone.

A claim holds where every difference that it rests on lies more than `ERRORS` standard errors on the claimed
side.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence

from expertise.errors import counted
from expertise.runs.results import Results, Row
from reproduce.common.page import (
    ERRORS,
    Figure,
    figures,
    is_above,
    is_below,
    mean_of,
    metric_of,
    number_of,
    paired,
    settings_of,
    text_of,
)

OURS, SAFE = "PSEC", "safety skill"
SHIFT, MULTI, DYNAMICS, META = "policy_shift", "multi_objective", "dynamics_shift", "meta_world"
CONTINUAL, LIBRARY = "meta_world_continual", "one_library"
"""Tables."""
MAIN = "S→W/10"
"""The cell of the policy shift that was fixed before the runs; it has the paper's network."""
SMALL = ", 0.15 M"
"""Behind the name of that cell where it has the small network, as all other cells do."""
RIVALS = ("NSEC", "ASEC", "Scratch")
WHOLE = "PSEC (MLP)"
GAINS = (
    ("own and others", "own skill", "other skills beside its own"),
    ("other skills", "own skill", "other skills in place of its own"),
    ("own and others, top-p", "own and others", "top-p over all of them"),
    ("other skills", "Base", "other skills over the bare base"),
)
"""Of one library: a row, the row it is measured against, and what the difference is of."""
ALIKE = ("NSEC (LoRA)", "ASEC (LoRA)", "fixed weights")
"""Rows over the very skills that PSEC composes."""
_SEEDS, _MAIN_SEEDS = 3, 5
"""Below so many nothing is said to hold or not; in the cell that was fixed beforehand."""
_TASKS = 5
"""Of Meta-World that the mean is over, at least."""


def verdicts(results: Results) -> str:
    """One line per claim, as a Markdown list."""
    lines = [*_shift(results), *_cells(results), *_safe(results), *_dynamics(results)]
    lines += [*_meta(results), _kept(results), *_library(results)]
    return "\n".join(f"- {line}" for line in lines) + "\n"


def _shift(results: Results) -> Iterable[str]:
    rows = results.select(SHIFT, "return", MAIN)
    found = {other: paired(rows, OURS, other) for other in RIVALS}
    yield _line(
        f"Policy shift, {MAIN}: {OURS} above {', '.join(RIVALS)} by more than {ERRORS} standard errors of "
        "the paired difference, in 5 seeds or more",
        found.values(),
        is_above,
        [f"{other} {text_of(difference, 0)}" for other, difference in found.items() if difference],
        seeds=_MAIN_SEEDS,
    )


def _cells(results: Results) -> Iterable[str]:
    """No claim: how the small network's cells come out by trajectories; the paper's gaps close with more."""
    cells: dict[int, list[list[Row]]] = {}
    for setting in settings_of(results, SHIFT):
        if setting != MAIN:
            cells.setdefault(number_of(setting), []).append(results.select(SHIFT, "return", setting))
    for count, found in sorted(cells.items()):
        words = []
        for other in (*RIVALS, WHOLE):
            more = [difference for rows in found if (difference := paired(rows, OURS, other))]
            if more:
                over = statistics.fmean(difference.mean for difference in more)
                above = sum(difference.mean > 0 for difference in more)
                words.append(f"{other} {over:+.0f}, above in {above} of {len(more)}")
        if words:
            yield (
                f"Policy shift, small network, {counted(count, 'trajectory', 'trajectories')}: "
                f"{OURS}'s return less that of others, mean over cells: {'; '.join(words)}."
            )


def _safe(results: Results) -> Iterable[str]:
    for task in settings_of(results, MULTI):
        reward = results.select(MULTI, "normalized_reward", task)
        cost = figures(results.select(MULTI, "normalized_cost", task)).get(OURS)
        more = paired(reward, OURS, SAFE)
        yield _line(
            f"Safe control, {task}: cost of {OURS} below its limit, reward above the safety skill's",
            (cost, more),
            lambda figure, cost=cost: (  # type: ignore[misc]
                is_below(figure, 1.0) if figure is cost else is_above(figure)
            ),
            [
                *([f"cost / limit {cost.text(2, 'error')}"] if cost else []),
                *([f"reward {text_of(more, 3)}"] if more else []),
            ],
        )
    if not settings_of(results, MULTI):
        yield "Safe control: not measured."


def _dynamics(results: Results) -> Iterable[str]:
    metric = metric_of(results, DYNAMICS, ("normalized_reward", "return"))
    for setting in settings_of(results, DYNAMICS):
        rows = results.select(DYNAMICS, metric, setting)
        found = {other: paired(rows, OURS, other) for other in ("Scratch", "Joint")}
        yield _line(
            f"Dynamics shift, {setting}: {OURS} above Scratch and Joint",
            found.values(),
            is_above,
            [f"{other} {text_of(difference, 3)}" for other, difference in found.items() if difference],
        )
    if not settings_of(results, DYNAMICS):
        yield "Dynamics shift: not measured."


def _meta(results: Results) -> Iterable[str]:
    rows = results.select(META, "success")
    few = [setting for setting in settings_of(results, META) if setting.endswith("/3")]
    found = {s: paired([row for row in rows if row.setting == s], OURS, "Scratch") for s in few}
    there = [figure for figure in found.values() if figure]
    claim = (
        f"Meta-World, 3 demonstrations: {OURS} above Scratch on average over {_TASKS} unseen tasks or more"
    )
    over = mean_of(there)
    if not over.values:
        yield f"{claim}: not measured."
        return
    words = [f"{text_of(over, 3)}, over {len(there)} tasks"]
    enough = len(there) >= _TASKS
    yield _line(claim, [over], lambda figure: enough and is_above(figure), words)


def _kept(results: Results) -> str:
    claim = (
        "Meta-World, one task after the other, the policy being told which task it is in: success on every "
        "earlier task is exactly what it was"
    )
    found: dict[tuple[str, int], set[float]] = {}
    for row in results.select(CONTINUAL, "success"):
        found.setdefault((row.row, row.seed), set()).add(row.value)
    if not found:
        return f"{claim}: not measured."
    changed = sorted(f"{task}, seed {seed}" for (task, seed), values in found.items() if len(values) > 1)
    tasks = len({task for task, _ in found})
    if changed:
        return f"{claim}: **does not hold** ({'; '.join(changed)})."
    seeds = len({seed for _, seed in found})
    return f"{claim}: holds ({tasks} tasks, {counted(seeds, 'seed')})."


def _library(results: Results) -> Iterable[str]:
    """No claim of the paper's: what is gained and what is lost."""
    for setting in settings_of(results, LIBRARY):
        rows = results.select(LIBRARY, "return", setting)
        found = {what: paired(rows, row, other) for row, other, what in GAINS}
        words = [f"{what} {text_of(difference, 0)}" for what, difference in found.items() if difference]
        if words:
            yield f"One library, {setting} trajectories, what changes the return: {'; '.join(words)}."


def _line(
    claim: str,
    found: Iterable[Figure | None],
    holds: Callable[[Figure], bool],
    words: Sequence[str],
    seeds: int = _SEEDS,
) -> str:
    each = list(found)
    if any(figure is None for figure in each):
        return f"{claim}: not measured{f' ({words[0]})' if words else ''}."
    there = [figure for figure in each if figure]
    if any(len(figure.values) < seeds for figure in there):
        verdict = f"open, with fewer than {seeds} seeds"
    else:
        verdict = "holds" if all(holds(figure) for figure in there) else "**does not hold**"
    return f"{claim}: {verdict} ({'; '.join(words)})."


def limits(results: Results) -> str:
    """The limits of the comparisons, as a Markdown list."""
    lines = [*_one_skill(results), *_scales(results), *_steps(results), *_too_safe(results), *_told(results)]
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
                    f"{below} of {counted(len(found), 'cell')}"
                )
    if words:
        yield (
            "Cells with one skill (all of dynamics and of Meta-World's, and of policy shift those without "
            "a plus) show low-rank fine-tuning, not composition. The same skill weighed in other ways is "
            f"level with {OURS}: {OURS}'s mean over cells less theirs, and in how many cells it lies above "
            f"or below by more than {ERRORS} standard errors: {'; '.join(words)}."
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
            "and not the skills'."
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
            f"alone, is above {OURS} in {sum(d.mean > 0 for d in found.values())} of "
            f"{counted(len(found), 'case')}, in {sum(map(is_above, found.values()))} by more than {ERRORS} "
            f"standard errors ({words})."
        )


def _too_safe(results: Results) -> Iterable[str]:
    """Safe control as it is claimed, by rows other than PSEC."""
    for task in settings_of(results, MULTI):
        reward = results.select(MULTI, "normalized_reward", task)
        cost = figures(results.select(MULTI, "normalized_cost", task))
        others = [name for name in figures(reward) if name not in (OURS, SAFE)]
        too = [name for name in others if _holds(reward, cost.get(name), name)]
        if too and _holds(reward, cost.get(OURS), OURS):
            yield (
                f"Safe control, {task}: {', '.join(too)} are safe and faster than the safety skill, too: "
                f"what holds of {OURS} does not set composition apart."
            )


def _told(results: Results) -> Iterable[str]:
    if settings_of(results, CONTINUAL):
        yield (
            "Meta-World, one task after the other: nothing is forgotten because the task is told. On what "
            "the base knows every skill has weight 0, on a later task its own skill alone counts, so that "
            "the earlier policy acts as it did. A policy that has to find out which task it is in was not "
            "measured."
        )


def _holds(reward: Sequence[Row], cost: Figure | None, name: str) -> bool:
    more = paired(reward, name, SAFE)
    return cost is not None and more is not None and is_below(cost, 1.0) and is_above(more)


def _is_below_zero(difference: Figure) -> bool:
    return is_below(difference, 0.0)
