"""Figures of PSEC's paper (arXiv 2502.05932, Tables 1 and 2), by our names of settings and rows.

Its data are other ones (DSRL's and its own walkers), so its figures stand beside ours and are no target.
"""

from __future__ import annotations

from collections.abc import Mapping

SAFE: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "BallRun": {"BC": (0.67, 11.38), "ASEC": (0.35, 4.35), "NSEC": (0.58, 7.46), "PSEC": (0.15, 0.95)},
    "CarRun": {"BC": (0.96, 1.88), "ASEC": (0.93, 0.39), "NSEC": (0.93, 0.66), "PSEC": (0.83, 0.00)},
    "DroneRun": {"BC": (0.55, 5.21), "ASEC": (0.57, 2.29), "NSEC": (0.62, 7.30), "PSEC": (0.47, 0.87)},
    "AntRun": {"BC": (0.73, 11.73), "ASEC": (0.74, 4.97), "NSEC": (0.79, 6.81), "PSEC": (0.59, 0.33)},
    "BallCircle": {"BC": (0.72, 10.02), "ASEC": (0.54, 1.58), "NSEC": (0.58, 2.08), "PSEC": (0.34, 0.22)},
    "CarCircle": {"BC": (0.65, 11.16), "ASEC": (0.41, 2.86), "NSEC": (0.40, 2.62), "PSEC": (0.36, 0.20)},
    "DroneCircle": {"BC": (0.82, 13.78), "ASEC": (0.65, 3.60), "NSEC": (0.71, 4.93), "PSEC": (0.33, 0.07)},
    "AntCircle": {"BC": (0.65, 19.45), "ASEC": (0.46, 5.55), "NSEC": (0.36, 2.08), "PSEC": (0.20, 0.00)},
}
"""Task of Bullet → row → normalised reward and cost (Table 1)."""

SHIFT: Mapping[str, Mapping[str, float]] = {
    "S→W/10": {"Scratch": 58.9, "ASEC": 65.7, "NSEC": 320.9, "PSEC (MLP)": 424.1, "PSEC": 688.0},
    "S→R/10": {"Scratch": 25.5, "ASEC": 24.3, "NSEC": 38.5, "PSEC (MLP)": 143.3, "PSEC": 221.0},
    "S+W→R/10": {"Scratch": 25.5, "ASEC": 30.8, "NSEC": 39.4, "PSEC (MLP)": 194.5, "PSEC": 247.0},
    "S→W/30": {"Scratch": 405.0, "ASEC": 447.0, "NSEC": 745.0, "PSEC": 860.0},
    "fixed weights": {"ASEC": 48.0, "NSEC": 190.0, "PSEC": 540.0},
    "rank 4": {"PSEC": 510.0},
    "rank 8": {"PSEC": 680.0},
    "rank 16": {"PSEC": 478.0},
    "rank 32": {"PSEC": 475.0},
    "rank 64": {"PSEC": 537.0},
}
"""Shift and number of trajectories → row → return (Table 2; 30 trajectories, and for S→W/10 constant weights
and ranks, by eye from its figures)."""

META: Mapping[str, float] = {
    "push-wall": 0.86,
    "push-back": 0.85,
    "shelf-place": 0.85,
    "stick-pull": 0.74,
    "hand-insert": 0.89,
}
"""Task of Meta-World → success of PSEC (appendix); from other data, with another base."""


def paper_value(setting: str, row: str, metric: str) -> float | None:
    """The paper's figure for a row; None: it has none.

    Args:
        setting: a task, with or without `bullet/`, or a shift such as `S→W/10`.
        row: a method.
        metric: `return`, `success`, `normalized_reward` or `normalized_cost`.
    """
    if metric == "success":
        return META.get(setting.partition("/")[0]) if row == "PSEC" else None
    if metric == "return":
        return SHIFT.get(setting, {}).get(row)
    pair = SAFE.get(setting.removeprefix("bullet/"), {}).get(row)
    if pair is None or metric not in ("normalized_reward", "normalized_cost"):
        return None
    return pair[metric == "normalized_cost"]
