"""`expertise evaluate`."""

from __future__ import annotations

from typing import Annotated

import typer

from expertise.cli.options import (
    BasePath,
    Data,
    Device,
    Domain,
    Json,
    Kind,
    Model,
    Split,
    Threads,
    print_json,
    require_model,
    text_of,
)


def evaluate(
    model: Model,
    split: Split = None,
    max_bytes: Annotated[int, typer.Option(min=0, help="Text of each domain, in bytes; 0: all.")] = 0,
    mask_top: Annotated[
        float, typer.Option(help="Mask this share of the experts, each token's most probable ones.")
    ] = 0.0,
    renew_softmax: Annotated[
        bool, typer.Option("--renew-softmax", help="With --mask-top: probabilities anew over the rest.")
    ] = False,
    drop_always: Annotated[
        bool, typer.Option("--drop-always", help="Drop the shared experts, take one more routed one.")
    ] = False,
    extra_parts: Annotated[
        int | None, typer.Option(help="So many more routed experts; default 1 with --drop-always, else 0.")
    ] = None,
    k: Annotated[int | None, typer.Option("--k", help="Another k than was trained.")] = None,
    p: Annotated[float | None, typer.Option("--p", help="Another p than was trained.")] = None,
    data: Data = None,
    kind: Kind = None,
    domain: Domain = None,
    base: BasePath = None,
    device: Device = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Bits per byte of each domain on held-out text, and how many parts a token took there.

    Without --data: on the held-out part of the text that a run, or a composed model's router, was trained on,
    as its folder keeps it. With --data: on all of what is given.

    Example: expertise evaluate runs/demo --split test --json

    What the model would do otherwise: expertise evaluate runs/demo --drop-always
    """
    from expertise.lm.data.split import require_split

    require_model(model)
    require_model(base)
    require_split(split, given=True)
    text = text_of(data, kind, domain)
    from expertise.lm.evaluate import Switches
    from expertise.lm.evaluate.run import evaluate_model
    from expertise.runs.progress import number, say

    switches = Switches(
        mask_top=mask_top,
        renew_softmax=renew_softmax,
        drop_always=drop_always,
        extra_parts=extra_parts,
        k=k,
        p=p,
    )
    result = evaluate_model(
        model, split, max_bytes, device or "auto", threads or 0, say, switches, data=text, base=base
    )
    if as_json:
        print_json(result)
        return
    if result["switches"]:
        print("with " + ", ".join(f"{name} = {value}" for name, value in result["switches"].items()))
    num_bytes, num_documents = sum(result["bytes"].values()), sum(result["documents"].values())
    print(f"on {result['text']}: {num_bytes:,} bytes, {num_documents:,} document{'s' * (num_documents != 1)}")
    print(f"{'domain':<16}{'bits per byte':>14}{'parts per token':>18}")
    parts = result["parts_per_token"]
    for domain, bits in result["bits_per_byte"].items():
        # A dense model has no layers to tell apart: it takes no parts anywhere.
        whole = domain == "mean" or not parts["layers"]
        shown = parts["mean"] if whole else parts["domains"].get(domain)
        print(f"{domain:<16}{number(bits, 4):>14}{number(shown, 3):>18}")
    for domain, weights in result.get("skills", {}).items():
        print(f"{domain:<16}" + "  ".join(f"{name} {number(weight, 3)}" for name, weight in weights.items()))
