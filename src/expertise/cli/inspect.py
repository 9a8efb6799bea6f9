"""The command `expertise inspect`."""

from __future__ import annotations

from expertise.cli.options import Device, Json, Run, Threads, print_json, require_there


def inspect(run: Run, device: Device = None, threads: Threads = None, as_json: Json = False) -> None:
    """Draw a run's page: the specialisation of each expert, and the number of experts per token.

    Works while the run trains, too: it shows the newest checkpoint.

    Example: expertise inspect runs/demo
    """
    require_there(str(run))
    from expertise.report.language_model_record import write_report
    from expertise.runs.device import limit_threads
    from expertise.runs.progress import say

    limit_threads(threads or 0)
    page = write_report(run, say, device=device or "auto")
    if as_json:
        print_json({"report": str(page), "record": str(page.with_name("report.json"))})
    else:
        print(page)
