"""The command `expertise demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from expertise.cli.options import Device, Json, Out, Set, Threads, print_json, settings

PROMPTS = ("def ", "import ", "class ")
"""Prompts that the demo's model continues; most of its training text is code."""


def demo(
    out: Out = None,
    set_: Set = None,
    device: Device = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Train a mixture of experts on text from this machine and draw what each expert learnt.

    About three minutes on two cores; started again it goes on where it stopped.

    Example: expertise demo
    """
    from expertise.cli.train import read_recipe
    from expertise.lm.recipe import refuse_early
    from expertise.runs import folder
    from expertise.runs.progress import number, say

    _, recipe = read_recipe("demo", settings(set_, device, threads))
    run = out or Path("runs") / "demo"
    if not folder.is_run(run):
        refuse_early(recipe, run)
    from expertise.lm import train as training
    from expertise.report.language_model_record import write_report

    if training.is_finished(run, recipe):
        say(f"{run} is finished; drawing its page again")
        say(f"to start afresh: delete {run}, or give another folder with --out")
    else:
        training.train(recipe, run, say)
    samples = _samples(run, recipe.train.device)
    for sample in samples:
        say(f"\n{sample['prompt']}{sample['text']}\n" + "-" * 40)
    page = write_report(run, say, samples=samples, device=recipe.train.device)
    result = training.result(run)
    if as_json:
        print_json({**result, "samples": samples, "report": str(page)})
        return
    print(f"{number(result['bits_per_byte']['mean'], 3)} bits per byte on text that it never saw")
    print(f"what each expert learnt: {page}")


def _samples(run: Path, device: str) -> list[dict[str, Any]]:
    from expertise.lm import load
    from expertise.lm.text import continue_text

    model = load(run, device)
    samples = []
    for prompt in PROMPTS:
        pieces = continue_text(model, prompt, max_new_tokens=60, temperature=0.7, top_p=0.9, seed=0)
        samples.append({"prompt": prompt, "text": "".join(piece.text for piece in pieces)})
    return samples
