"""Which of the paper's claims hold here: each from the rows alone, with the figures it rests on.

A claim holds where every difference that it rests on lies more than `ERRORS` standard errors on the claimed
side.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Sequence

from expertise.report.results import Figure, figures, paired
from expertise.runs.results import Results, Row

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
ERRORS = 2
"""So many standard errors above 0 counts as above, and below a limit as below."""
_SEEDS, _MAIN_SEEDS = 3, 5
"""Below so many nothing is said to hold or not; in the cell that was fixed beforehand."""
_TASKS = 5
"""Of Meta-World that the mean is over, at least."""


def verdicts(results: Results) -> str:
    """One line per claim, as a Markdown list."""
    lines = [*_shift(results), *_cells(results), *_safe(results), *_dynamics(results)]
    lines += [*_meta(results), _kept(results), *_library(results)]
    return "\n".join(f"- {line}" for line in lines) + "\n"


def settings_of(results: Results, table: str) -> list[str]:
    """The settings of a table, in the order in which they came."""
    return list(dict.fromkeys(row.setting for row in results.rows if row.table == table))


def number_of(setting: str) -> int:
    """What a setting counts, be it trajectories, demonstrations or steps; 0 where nothing."""
    found = re.search(r"\d+", setting.rpartition("/")[2])
    return int(found[0]) if found else 0


def counted(number: int, one: str, many: str = "") -> str:
    """A number of things in words; `many` where an s behind `one` is not the plural."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def metric_of(results: Results, table: str, wanted: Sequence[str]) -> str:
    """The first of some metrics that a table has; the first of all where it has none."""
    there = {row.metric for row in results.rows if row.table == table}
    return next((metric for metric in wanted if metric in there), wanted[0])


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


def mean_of(found: Sequence[Figure]) -> Figure:
    """The mean of several figures, seed by seed; of the seeds that all of them have."""
    seeds = set.intersection(*(set(figure.values) for figure in found)) if found else set()
    return Figure(
        values={seed: statistics.fmean(figure.values[seed] for figure in found) for seed in sorted(seeds)}
    )


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


def is_above(difference: Figure) -> bool:
    """Whether it lies above 0 by more than `ERRORS` standard errors."""
    error = difference.error
    return error is not None and difference.mean > ERRORS * error


def is_below(figure: Figure, limit: float) -> bool:
    """Whether it lies below a limit by more than `ERRORS` standard errors."""
    error = figure.error
    return error is not None and figure.mean + ERRORS * error < limit


def text_of(difference: Figure, digits: int) -> str:
    """A difference with its standard error and its number of seeds."""
    around = "" if difference.error is None else f" ± {difference.error:.{digits}f}"
    return f"{difference.mean:+.{digits}f}{around}, {counted(len(difference.values), 'seed')}"
