"""Results of policies as a table and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expertise.policy.seeds import Evaluations

_ERROR = "_error"
_TITLES = {"normalized_reward": "reward, 0 to 1", "normalized_cost": "cost / limit"}
_DIGITS = {"return": 1, "cost": 1}


def plain(found: Mapping[str, Evaluations], runs: Mapping[str, str], *, whole: bool) -> dict[str, Any]:
    """Results for JSON: of one policy directly, of several by their names.

    Args:
        found: name → episodes.
        runs: name → path.
        whole: include single episodes and their steps.
    """
    each = {name: {"policy": runs[name], **one.to_json(whole=whole)} for name, one in found.items()}
    return next(iter(each.values())) if len(each) == 1 else {"policies": each}


def rows_of(found: Mapping[str, Evaluations]) -> dict[str, Mapping[str, float]]:
    """Rows for `print_table`: one per policy; for a single policy, one per seed."""
    if len(found) > 1:
        return {name: one.summary() for name, one in found.items()}
    (one,) = found.values()
    rows: dict[str, Mapping[str, float]] = {
        f"seed {seed}": evaluation.summary() for seed, evaluation in one.by_seed.items()
    }
    return {**rows, "all": one.summary()} if len(rows) > 1 else rows


def print_table(rows: Mapping[str, Mapping[str, float]]) -> None:
    """Print a row per policy or seed and a column per metric, each mean with its standard error.

    Args:
        rows: title → summary, as `Evaluation.summary` gives it; a row may lack what others have.
    """
    metrics = list(dict.fromkeys(name for row in rows.values() for name in row if not name.endswith(_ERROR)))
    first = max(map(len, rows)) + 2
    columns = [(name, _TITLES.get(name, name.replace("_", " "))) for name in metrics]
    cells = {name: [_cell(row, name) for row in rows.values()] for name, _ in columns}
    widths = {name: max(len(title), *map(len, cells[name])) + 3 for name, title in columns}
    print(" " * first + "".join(f"{title:>{widths[name]}}" for name, title in columns))
    for number, row in enumerate(rows):
        print(f"{row:<{first}}" + "".join(f"{cells[name][number]:>{widths[name]}}" for name, _ in columns))


def _cell(row: Mapping[str, float], name: str) -> str:
    if name not in row:
        return ""
    digits = _DIGITS.get(name, 2)
    error = row.get(name + _ERROR)
    return f"{row[name]:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")
