"""The command `expertise plan`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from expertise.cli.options import Json, Set, print_json

if TYPE_CHECKING:
    from expertise.lm.plan import Plan


def plan(
    recipes: Annotated[list[str], typer.Argument(help="Names of recipes or paths of .toml files.")],
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Count parameters, FLOPs and checkpoint bytes of recipes, side by side; nothing is built or read.

    FLOPs are those of a forward and a backward pass. Where a router decides how many experts a token takes,
    what is activated is counted at the recipe's assumed_parts.

    Example: expertise plan deepseekmoe-16b llama2-7b-shape
    """
    from expertise.cli.train import read_recipe
    from expertise.lm.plan import plan as count

    plans = [count(*read_recipe(name, set_ or [])) for name in recipes]
    if as_json:
        print_json(plans[0].to_json() if len(plans) == 1 else [plan.to_json() for plan in plans])
        return
    for line in _table(plans):
        print(line)


def _table(plans: list[Plan]) -> list[str]:
    rows = [["", *(plan.name for plan in plans)]]
    rows.append(["parameters", *(_short(plan.parameters_total) for plan in plans)])
    rows.append(["  activated", *(_short(plan.parameters_activated) for plan in plans)])
    for kind in plans[0].parameters_by_kind:
        if any(plan.parameters_by_kind[kind] for plan in plans):
            rows.append([f"  {kind}", *(_of_kind(plan, kind) for plan in plans)])
    rows.append(["mixture layers", *(f"{p.layers['mixture']} of {sum(p.layers.values())}" for p in plans)])
    rows.append(["routed per token", *(_parts(plan) for plan in plans)])
    rows.append(["context", *(f"{plan.context:,}" for plan in plans)])
    rows.append(["vocabulary", *(f"{plan.vocab_size:,}" for plan in plans)])
    rows.append(["FLOPs per sequence", *(_short(plan.flops_per_sequence, "G") for plan in plans)])
    rows.append(["FLOPs per token", *(_short(plan.flops_per_token, "G") for plan in plans)])
    rows.append(["training tokens", *(_short(plan.tokens) for plan in plans)])
    rows.append(["checkpoint", *(_bytes(plan.checkpoint_bytes["total"]) for plan in plans)])
    for what in ("weights", "optimizer"):
        rows.append([f"  {what}", *(_bytes(plan.checkpoint_bytes[what]) for plan in plans)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]


def _of_kind(plan: Plan, kind: str) -> str:
    total, used = plan.parameters_by_kind[kind], plan.parameters_activated_by_kind[kind]
    if not total:
        return "-"
    return _short(total) if used == total else f"{_short(used)} of {_short(total)}"


def _parts(plan: Plan) -> str:
    if not plan.layers["mixture"]:
        return "-"
    return f"{plan.parts_per_token:g}" + (" (assumed_parts)" if plan.assumed_parts is not None else "")


def _bytes(number: int) -> str:
    return _short(number, "G") + ("B" if number >= 1000 else " B")


def _short(number: int | float, thousand_millions: str = "B") -> str:
    """Format a number with four digits and a letter, as 16.38 B; FLOPs and bytes count in G instead."""
    letters = ("", "k", "M", thousand_millions, "T")
    power = 0
    # A number that rounds up to 1000 belongs to the next letter.
    while power + 1 < len(letters) and float(f"{number:.4g}") >= 1000:
        number, power = number / 1000, power + 1
    return f"{number:.4g} {letters[power]}".rstrip()
