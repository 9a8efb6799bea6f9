"""The command `expertise policy evaluate`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expertise.cli.options import Device, Json, print_json
from expertise.cli.policy.options import Candidates, Pick, named_runs, require_policies, seeds_of
from expertise.cli.policy.table import plain, print_table, rows_of
from expertise.errors import RecipeError

if TYPE_CHECKING:
    from expertise.policy.seeds import Evaluations

FILMS = (".mp4", ".gif")


def evaluate(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]RUN",
            help="Policies: runs, checkpoints, or folders that `save` wrote; a name is shown instead.",
        ),
    ],
    environment: Annotated[
        str,
        typer.Option(
            "--environment",
            help="Where it acts: bullet/BallRun, dmc/walker-walk, …, an id that Gymnasium knows "
            "(Pendulum-v1), or module:function, which makes a gymnasium.Env.",
        ),
    ],
    episodes: Annotated[int, typer.Option(min=1, help="Episodes under each seed.")] = 20,
    seeds: Annotated[str, typer.Option(help="As 0,1,2; every policy meets the same episodes.")] = "0",
    parallel: Annotated[int, typer.Option(min=1, help="Episodes side by side.")] = 20,
    cost_limit: Annotated[
        float, typer.Option(min=0, help="Cost of an episode that counts as 1; below it is safe.")
    ] = 10.0,
    candidates: Candidates = None,
    pick: Pick = None,
    stop_at_success: Annotated[
        bool, typer.Option("--stop-at-success", help="End an episode once its task is done.")
    ] = False,
    video: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Film of one policy's first episode: .mp4 or .gif.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Every episode, and the first one step by step.")
    ] = None,
    page: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Draw them side by side on a page, policy.html.")
    ] = None,
    safety: Annotated[
        str | None,
        typer.Option(
            metavar="SKILL", help="With --page: the skill for safety; the page says when it counts."
        ),
    ] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Run policies in a simulator: return, cost and success over many episodes, and weights of skills.

    Example: expertise policy evaluate BC=runs/base PSEC=runs/psec --environment bullet/BallRun --seeds 0,1,2
    --cost-limit 5 --page runs/page
    """
    named, numbers = named_runs(runs), seeds_of(seeds)
    require_policies(*named.values())
    from expertise.policy.evaluate import EvaluationConfig
    from expertise.policy.load import load
    from expertise.policy.seeds import alike, evaluate_seeds
    from expertise.report.page import write_page
    from expertise.report.policy import PAGE, render
    from expertise.report.policy_record import FILM_EVERY, composed_of, policy_record
    from expertise.runs.files import require_writable, write_atomic
    from expertise.runs.metrics import finite
    from expertise.runs.progress import say

    _require_film(video, len(named))
    # Before the first episode, not after the last one.
    for path in (video, out, page and page / PAGE):
        if path is not None:
            require_writable(path)
    config = EvaluationConfig(
        environment=environment,
        episodes=episodes,
        parallel=parallel,
        num_candidates=candidates,
        pick=pick,
        cost_limit=cost_limit,
        stop_at_success=stop_at_success,
        film_every=1 if video is not None else FILM_EVERY if page is not None else 0,
    )
    # All policies are read before the first one acts, so that a wrong path is reported at once.
    policies = {name: load(run, device or "cpu") for name, run in named.items()}
    weighed = {name for policy in policies.values() for name in policy.names}
    if safety is not None and safety not in weighed:
        known = ", ".join(sorted(weighed)) or "none"
        raise RecipeError(f"--safety {safety}: no policy here weighs such a skill", f"weighed are: {known}")
    found: dict[str, Evaluations] = {}
    for name, policy in policies.items():
        if len(named) > 1:
            say(name)
        found[name] = evaluate_seeds(policy, config, numbers, say)
    found = alike(found)
    if video is not None:
        _write_film(next(iter(found.values())), video, say)
    about = {"candidates": candidates, "pick": pick}
    if out is not None:
        write_atomic(out, json.dumps(finite({**about, **plain(found, named, whole=True)}), indent=1) + "\n")
    report = None
    if page is not None:
        ours, skills = composed_of(policies)
        record = policy_record(found, ours=ours, safety=safety or "", skills=skills)
        report = write_page(page / PAGE, record, render)
    if as_json:
        pages = {} if report is None else {"report": str(report)}
        print_json({**about, **plain(found, named, whole=False), **pages})
        return
    print_table(rows_of(found))
    if report is not None:
        print(report)


def _require_film(video: Path | None, num_policies: int) -> None:
    from expertise.policy.extras import needed

    if video is None:
        return
    if num_policies > 1:
        raise RecipeError("--video films one policy", "give one run, or leave it out")
    if video.suffix not in FILMS:
        raise RecipeError(f"--video {video}: a film ends in {' or '.join(FILMS)}")
    needed("imageio", "a film")


def _write_film(found: Evaluations, path: Path, say: Callable[[str], None]) -> None:
    """Write a film of the first episode, if it has pictures; a lack of them has been reported before."""
    from expertise.policy.evaluation import write_film

    frames = found.first.traces[0].frames
    if frames:
        write_film(frames, path)
        say(f"film: {path}")
