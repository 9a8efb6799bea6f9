"""The command `expertise policy demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from expertise.cli.options import Json, print_json
from expertise.cli.policy.table import print_table


def demo(
    folder: Annotated[
        Path, typer.Option("--folder", "--out", help="Folder for its runs, its skills and its page.")
    ] = Path("runs/policy-demo"),
    as_json: Json = False,
) -> None:
    """Train skills for reward and for safety on one policy, and learn the weight of each at every state.

    A ball that should run fast, yet not too fast. Under five minutes on one core, from data that come with
    the package; started again it goes on where it stopped. Needs `make setup-policy`.

    Example: expertise policy demo
    """
    from expertise.policy import demo as steps
    from expertise.policy.seeds import Evaluations
    from expertise.report import policy as report
    from expertise.report.page import write_page
    from expertise.report.policy_record import policy_record
    from expertise.runs.progress import say

    found = steps.demo(folder, say)
    rows = {row: Evaluations(by_seed={0: evaluation}) for row, evaluation in found.items()}
    record = policy_record(
        rows,
        title="Safe control",
        ours=steps.OURS,
        safety=steps.SAFETY,
        skills=steps.skills(folder),
        notes=[steps.NOTE],
    )
    page = write_page(folder / report.PAGE, record, report.render)
    if as_json:
        print_json({**steps.result(folder, found), "report": str(page)})
        return
    print_table({row: evaluation.summary() for row, evaluation in found.items()})
    print("cost / limit below 1 is safe")
    print(f"when the policy leans on which skill: {page}")
