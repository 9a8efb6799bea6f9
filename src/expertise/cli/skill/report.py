"""`expertise skill report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from expertise.cli.options import (
    BasePath,
    Data,
    Device,
    Domain,
    Json,
    Kind,
    Split,
    Threads,
    print_json,
    require_model,
    text_of,
)


def report(
    composed: Annotated[Path, typer.Argument(help="A composed model's folder, as `skill compose` wrote it.")],
    data: Data = None,
    kind: Kind = None,
    domain: Domain = None,
    split: Split = None,
    max_bytes: Annotated[int, typer.Option(min=0, help="Text of each domain, in bytes; 0: all.")] = 65_536,
    base: BasePath = None,
    device: Device = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Draw a composed model's page: who is good at what, how alike the skills are, who is used where.

    Without --data: on held-out text of what its router was learnt from. With --data: on all of what is given.

    Example: expertise skill report mixed --data installed
    """
    from expertise.lm.data.split import require_split
    from expertise.skills.composed_json import read_composed

    require_split(split, given=True)
    read_composed(composed)
    require_model(base)
    text = text_of(data, kind, domain)
    from expertise.report.skills_record import RECORD, write_skills_report
    from expertise.runs.device import limit_threads
    from expertise.runs.progress import say

    limit_threads(threads or 0)
    page = write_skills_report(
        composed,
        say,
        data=text,
        base=base,
        split=split,
        max_bytes=max_bytes,
        device=device or "auto",
    )
    if as_json:
        print_json({"report": str(page), "record": str(page.with_name(RECORD))})
    else:
        print(page)
