"""From a run's folder to its page: `report.html`, and all its numbers in `report.json`."""

from __future__ import annotations

import json
import lzma
import platform
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expertise import __version__
from expertise.errors import counted
from expertise.report import records
from expertise.report.language_model import render
from expertise.report.page import write_page
from expertise.report.text import vocabulary
from expertise.runs import checkpoint, folder
from expertise.runs.metrics import read_lines

if TYPE_CHECKING:
    from expertise.lm.analysis import LayerAnalysis, Passage
    from expertise.lm.model import LanguageModel

PAGE = "report.html"

ANALYSED_BYTES = 65_536
"""Held-out text of each domain that the page's tables are counted on, in bytes, at least."""
LEAST_COMPRESSED = 4096
"""General-purpose compressors are shown on so many bytes of text, at least."""
PASSAGE_TOKENS = 256
FAVOURITES = 6


def write_report(
    run: Path,
    say: Callable[[str], None],
    *,
    samples: Sequence[Mapping[str, str]] | None = None,
    device: str = "auto",
) -> Path:
    """Draw a run's page from what it has so far.

    Args:
        run: the run's folder; it may still be training.
        say: told what happens.
        samples: texts that the model wrote (`prompt`, `text`); None keeps those of the last page.
        device: where the newest checkpoint is looked at.

    Returns:
        The page's path.

    Raises:
        RunError: there is no run, or no whole checkpoint; or its held-out text is damaged, or is not kept and
            has changed.
        DiskError: the page cannot be written.
    """
    folder.require_run(run)
    last = (run / PAGE).with_suffix(".json")
    if samples is None and last.is_file():
        samples = json.loads(last.read_text("utf-8")).get("samples")
    return write_page(run / PAGE, run_record(run, say, device, samples or ()), render)


def run_record(
    run: Path, say: Callable[[str], None], device: str, samples: Sequence[Mapping[str, str]] = ()
) -> records.LanguageModelRecord:
    """The record of a run's page; arguments and errors as in `write_report`."""
    import torch

    from expertise.lm.evaluate.texts import run_text
    from expertise.lm.recipe import Recipe
    from expertise.lm.task import with_vocabulary

    recipe = folder.read_recipe(run, Recipe)
    lines = read_lines(run / "metrics.jsonl")
    saved = checkpoint.latest(run)
    look = run_text(run, recipe, "validation", say, saved)
    prepared = look.text
    config = with_vocabulary(recipe.model, prepared.vocab_size)
    by_kind = config.num_params_by_kind()
    last = lines[-1] if lines else {"step": 0, "tokens": 0}
    finished = saved is not None and saved.step >= recipe.train.steps
    curves = _curves(lines)
    found = _looked_at(saved, recipe, prepared, device) if saved else {}
    if curves.evaluations:
        bits = curves.evaluations[-1].bits_per_byte
        found["summary"] = records.Summary(**found.get("summary", {}), bits_per_byte=bits)
    return records.LanguageModelRecord(
        title=run.resolve().name,
        state="finished" if finished else "training",
        step=last["step"],
        steps=recipe.train.steps,
        tokens=last["tokens"],
        seed=recipe.train.seed,
        domains=list(prepared.domains_of("validation")),
        curves=curves,
        sizes={
            "parameters_total": config.num_params(),
            "parameters_activated": config.num_active_params(),
            "flops_per_sequence": config.flops_per_sequence(),
            **by_kind,
            "embedding": by_kind["embedding"] + by_kind["head"],
        },
        timing=_timing(read_lines(run / "timing.jsonl")),
        versions={"expertise": __version__, "torch": torch.__version__, "python": platform.python_version()},
        recipe=(run / folder.RECIPE).read_text("utf-8"),
        source_changed=look.changed,
        notes=[*look.notes, *_skipped(lines)],
        samples=[records.from_json(records.Sample, sample) for sample in samples],
        **found,
    )


def _curves(lines: Sequence[Mapping[str, Any]]) -> records.Curves:
    train = []
    for line in lines:
        if line["kind"] == "train":
            balance = {k.removeprefix("balance_"): v for k, v in line.items() if k.startswith("balance_")}
            largest = max(line["largest_bias"]) if line.get("largest_bias") else None
            train.append(
                records.from_json(records.TrainPoint, {**line, "balance": balance, "largest_bias": largest})
            )
    evaluations = [
        records.from_json(records.EvaluationPoint, line) for line in lines if line["kind"] == "evaluation"
    ]
    return records.Curves(train=train, evaluations=evaluations)


def _skipped(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    skipped = [line for line in lines if line["kind"] == "skipped"]
    if not skipped:
        return []
    first, last, what = skipped[0]["step"], skipped[-1]["step"], skipped[-1]["reason"]
    number = counted(len(skipped), "step was", "steps were")
    return [f"{number} skipped, from {first} to {last}: the last because {what} was not finite"]


def _timing(lines: Sequence[Mapping[str, Any]]) -> records.Timing:
    training = [line for line in lines if "tokens_per_second" in line]
    seconds = sum(line["seconds"] for line in training)
    tokens = sum(line["seconds"] * line["tokens_per_second"] for line in training)
    waited = sum(line.get("evaluation_seconds", 0.0) for line in lines)
    return records.Timing(seconds=seconds + waited, tokens_per_second=tokens / seconds if seconds else None)


def _looked_at(saved: checkpoint.Checkpoint, recipe: Any, prepared: Any, device: str) -> dict[str, Any]:
    """Fields of the record: the newest checkpoint on validation text; `summary` holds fields, too."""
    from expertise.lm.analysis import analyse_layers, passage
    from expertise.lm.evaluate import domain_texts
    from expertise.lm.load import load_checkpoint

    model = load_checkpoint(saved, device)
    max_bytes = max(ANALYSED_BYTES, recipe.evaluation.bytes_per_domain)
    texts = domain_texts(prepared, "validation", max_bytes, model.config.context)
    layers = analyse_layers(model, texts, recipe.evaluation.batch_size, recipe.train.bfloat16)
    # Compressors are compared with the curve of evaluations, so they get exactly the bytes of that curve.
    measured = domain_texts(prepared, "validation", recipe.evaluation.bytes_per_domain, model.config.context)
    words = vocabulary(model.tokenizer, model.config.vocab_size)
    domains = [text.domain for text in texts]
    return {
        "summary": _usage(layers, domains),
        "compressors": _compressors(prepared.tokenizer, measured),
        "layers": [_layer(model, index, found, domains, words) for index, found in layers.items()],
        "passages": [_passage(passage(model, text, PASSAGE_TOKENS), words) for text in texts],
    }


def _usage(layers: Mapping[int, LayerAnalysis], domains: Sequence[str]) -> dict[str, Any]:
    """Fields of the summary that count experts; empty where there are none."""
    usages = [layer.usage for layer in layers.values()]
    if not any(usage.histogram.sum() for usage in usages):
        return {}
    histogram = sum(usage.histogram.sum(0) for usage in usages).double()  # type: ignore[union-attr]
    numbers = histogram.new_tensor(range(len(histogram)))
    share = histogram / histogram.sum()
    mean = float((share * numbers).sum())
    by_domain = [usage.parts_per_token_by_domain() for usage in usages]
    # A top-k run has one number of parts only: there is no cap to be at.
    varies = int((histogram > 0).sum()) > 1
    largest = max(usage.max_parts for usage in usages)
    return {
        "parts_per_token": records.PartsPerToken(
            mean=mean,
            std=float((share * (numbers - mean) ** 2).sum().sqrt()),
            layers=[usage.parts_per_token() for usage in usages],
            domains={d: _mean([row[i] for row in by_domain]) for i, d in enumerate(domains)},
            domains_by_layer={d: [row[i] for row in by_domain] for i, d in enumerate(domains)},
            histogram=[usage.histogram.sum(0)[1:].tolist() for usage in usages],
        ),
        "share_at_max_parts": float(share[largest]) if varies else None,
        "max_parts": largest if varies else None,
        "tokens_counted": usages[0].num_tokens,
    }


def _layer(
    model: LanguageModel, index: int, found: LayerAnalysis, domains: Sequence[str], words: Sequence[str]
) -> records.Layer:
    config = model.config.layer(index)
    assert config is not None
    share, prior, load = found.domain_share(), found.domain_prior(), found.usage.load()
    lift = share / prior.clamp(min=1e-12)
    return records.Layer(
        layer=index,
        num_parts=config.parts.num_parts,
        always_hidden=config.always.hidden,
        part_hidden=getattr(config.parts, "hidden", getattr(config.parts, "rank", 0)),
        load=load.tolist(),
        domain_share=share.tolist(),
        domain_prior=prior.tolist(),
        mutual_information=found.mutual_information(),
        parts=[
            records.Expert(
                id=part,
                load=float(load[part]),
                domain=domains[int(lift[part].argmax())],
                lift=float(lift[part].max()),
                tokens=[words[token] for token in found.favourite_tokens(part, FAVOURITES)],
            )
            for part in range(config.parts.num_parts)
        ],
    )


def _passage(found: Passage, words: Sequence[str]) -> records.Passage:
    tables = [(r.part_ids, r.gates, r.parts_per_token().tolist()) for r in found.routes.values()]
    tokens = []
    for position, token in enumerate(found.token_ids):
        parts, gates = [], []
        for part_ids, values, counts in tables:
            number = counts[position]
            ids = list(range(number)) if part_ids is None else part_ids[position, :number].tolist()
            parts.append(ids)
            gates.append([round(float(gate), 4) for gate in values[position, :number]])
        tokens.append(records.Token(text=words[token], parts=parts, gates=gates))
    return records.Passage(domain=found.domain, tokens=tokens)


def _mean(values: list[float | None]) -> float | None:
    """The mean; None where one of them is not known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _compressors(tokenizer: Any, texts: list[Any]) -> dict[str, dict[str, float | None]]:
    """Bits per byte of general-purpose compressors on the very bytes that the model is measured on.

    A domain of less than `LEAST_COMPRESSED` bytes has none: headers and a dictionary that has hardly begun
    would say more of the program than of the text. Then there is no mean either, because it would not be
    over the text that the model's is over.
    """
    programs: dict[str, Callable[[bytes], bytes]] = {
        "zlib": lambda raw: zlib.compress(raw, 9),
        "lzma": lambda raw: lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME),
    }
    known = {}
    for text in texts:
        counted = text.windows.targets[text.windows.targets >= 0]
        if len(counted):  # else the model's mean leaves it out, too
            known[text.domain] = tokenizer.decode(counted.tolist(), skip_special_tokens=True).encode()
    result: dict[str, dict[str, float | None]] = {}
    for name, compress in programs.items():
        bits: dict[str, float | None] = {
            domain: 8 * len(compress(raw)) / len(raw) if len(raw) >= LEAST_COMPRESSED else None
            for domain, raw in known.items()
        }
        result[name] = {**bits, "mean": _mean(list(bits.values()))}
    return result
