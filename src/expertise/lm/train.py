"""Training a language model: from a recipe to a run."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from expertise.errors import RecipeError, RunError
from expertise.lm import objective
from expertise.lm.config import ModelConfig
from expertise.lm.data import Prepared, prepare, require_source
from expertise.lm.evaluate import DomainText, domain_texts, evaluate
from expertise.lm.initial import Initial, initial_of, tokenizer_of
from expertise.lm.load import CHAT, CONFIG, GENERATION, TOKENIZER
from expertise.lm.model import LanguageModel
from expertise.lm.recipe import Recipe, may_change
from expertise.runs import checkpoint, folder, loop, metrics
from expertise.runs.device import limit_threads, resolve
from expertise.runs.files import write_atomic
from expertise.runs.loop import Losses

DATA = "data.json"
"""What the run was trained on: digest of the sources, domains, bytes, and the weights that it began with."""


class LanguageModelTask:
    """Next-token prediction, as the training loop sees it.

    Args:
        recipe: what to train.
        prepared: its text.
        initial: weights to start from; None: random ones (or a checkpoint that is restored later).
    """

    unit = "tokens"

    def __init__(self, recipe: Recipe, prepared: Prepared, initial: Initial | None = None) -> None:
        train = recipe.train
        self.recipe = recipe
        self.model_config = with_vocabulary(recipe.model, prepared.vocab_size)
        self.units_per_step = train.batch_size * recipe.model.context
        context = recipe.model.context
        # Also refuses too little text, by the recipe's key.
        self.notes = prepared.batches(context, train.batch_size, train.seed).notes()
        self._micro = prepared.batches(context, train.batch_size // train.accumulation, train.seed)
        self._targets: tuple[int, float | None] = (-1, None)
        self._prepared = prepared
        self._texts: list[DomainText] | None = None
        device = resolve(train.device)
        torch.manual_seed(train.seed)
        # Drawn on the CPU, so that a seed gives the same weights on every device.
        model = LanguageModel(self.model_config)
        if initial is not None:
            initial.load_into(model)
        self.model = model.to(device)
        self.model.tokenizer = prepared.tokenizer

    def losses(self, step: int, micro: int, detail: bool) -> Losses:
        """Losses of one micro-batch; a step's micro-batches are consecutive rows of its batch."""
        batch = self._micro.batch(step * self.recipe.train.accumulation + micro)
        device = self.model.device
        with self._autocast():
            return objective.losses(
                self.model,
                batch.tokens.to(device),
                batch.targets.to(device),
                self.recipe.balance,
                detail,
                None if batch.documents is None else batch.documents.to(device),
                self._num_targets(step),
            )

    def evaluate(self) -> dict[str, Any]:
        """Bits per byte on validation text, and the use of every part there."""
        config = self.recipe.evaluation
        if self._texts is None:
            context = self.recipe.model.context
            self._texts = domain_texts(self._prepared, "validation", config.bytes_per_domain, context)
        return evaluate(self.model, self._texts, config.batch_size, self.recipe.train.bfloat16).to_json()

    def headline(self, evaluation: Mapping[str, Any]) -> str:
        """The mean, each domain, and the parts per token."""
        bits = dict(evaluation["bits_per_byte"])
        text = f"{bits.pop('mean'):.3f} bits per byte ({', '.join(f'{d} {b:.3f}' for d, b in bits.items())})"
        if "parts_per_token" in evaluation:
            text += f", {evaluation['parts_per_token']['mean']:.2f} parts per token"
        return text

    def files(self) -> Mapping[str, str]:
        """Architecture, tokenizer and how to ask, so that a checkpoint stands by itself."""
        chat = self._prepared.chat
        documents = json.dumps({"reads_documents": True}) + "\n"
        return {
            CONFIG: model_json(self.model_config),
            TOKENIZER: self._prepared.tokenizer.to_str(),
            **({CHAT: chat.template} if chat else {}),
            **({GENERATION: documents} if self._prepared.packed else {}),
        }

    def _num_targets(self, step: int) -> float | None:
        """Targets of a step per micro-batch, at least 1; None where every token is one."""
        if not self._prepared.some_ignored:
            return None
        if self._targets[0] != step:
            number = self.recipe.train.accumulation
            batches = (self._micro.batch(step * number + micro) for micro in range(number))
            self._targets = step, max(1, sum(batch.num_targets() for batch in batches)) / number
        return self._targets[1]

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if not self.recipe.train.bfloat16:
            return contextlib.nullcontext()
        return torch.autocast(self.model.device.type, torch.bfloat16)


def with_vocabulary(config: ModelConfig, size: int) -> ModelConfig:
    """The architecture with its embedding's size known.

    Raises:
        RecipeError: the recipe names a size that the tokenizer does not fit into.
    """
    if config.vocab_size and config.vocab_size < size:
        raise RecipeError(
            f"model.vocab_size ({config.vocab_size}) is smaller than the tokenizer's {size}",
            "leave it out to take the tokenizer's",
        )
    return dataclasses.replace(config, vocab_size=config.vocab_size or size)


def model_json(config: ModelConfig) -> str:
    """An architecture as JSON that `load` reads."""
    values = dataclasses.asdict(config)
    return json.dumps({key: value for key, value in values.items() if value is not None}, indent=1) + "\n"


def train(recipe: Recipe, run: Path, say: Callable[[str], None]) -> None:
    """Make a run, or go on with it.

    Nothing is written to the run before its recipe and its text are known to be good.

    Args:
        recipe: what to train.
        run: the run's folder.
        say: told what happens, a line at a time.

    Raises:
        ExpertiseError: any mistake of the user's; see `expertise.errors`.
    """
    task, prepared, initial = _ready(recipe, run, say)
    with folder.held(run):
        folder.adopt_recipe(run, recipe, may_change)
        _adopt_data(run, prepared, initial)
        if not (run / TOKENIZER).is_file():
            write_atomic(run / TOKENIZER, prepared.tokenizer.to_str())
        loop.train(run, task, recipe.train, recipe.optimizer)


def check(recipe: Recipe, run: Path, say: Callable[[str], None]) -> None:
    """Do all that `train` does before it writes to the run: validate recipe, folder, text and sizes."""
    _ready(recipe, run, say)
    say("the recipe is valid")


def _ready(
    recipe: Recipe, run: Path, say: Callable[[str], None]
) -> tuple[LanguageModelTask, Prepared, Initial | None]:
    folder.require_free_or_run(run)
    if folder.is_run(run):
        folder.refuse_changes(run, recipe, may_change)
    if recipe.train.tensorboard:
        metrics.require_tensorboard()
    require_source(recipe.data)
    resolve(recipe.train.device)
    limit_threads(recipe.train.threads)
    initial = initial_of(recipe, run)
    prepared = prepare(recipe.data, tokenizer_of(recipe, run, initial), say)
    for note in prepared.notes:
        say(note)
    _refuse_other_data(run, prepared)
    _refuse_other_weights(run, initial)
    task = LanguageModelTask(recipe, prepared, initial)
    for note in task.notes:
        say(note)
    say(describe(task.model_config, prepared))
    return task, prepared, initial


def describe(config: ModelConfig, prepared: Prepared) -> str:
    """Sizes of model and data in one line."""
    total, active = config.num_params(), config.num_active_params()
    tokens = sum(prepared.tokens_count["train"].values())
    return (
        f"{total / 1e6:.2f} M parameters, {active / 1e6:.2f} M activated per token; "
        f"{tokens / 1e6:.2f} M training tokens from {', '.join(prepared.domains)}"
    )


def data_of(run: Path) -> dict[str, Any]:
    """What a run was trained on, as it was noted when the run was made."""
    path = run / DATA
    if not path.is_file():
        raise RunError(f"{run} has no {DATA}; it was not trained to begin with")
    result: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return result


def refuse_other_text(run: Path, before: str, now: str) -> None:
    """Refuse to use a run with text other than its own.

    Raises:
        RunError: the digests differ; both are shown.
    """
    if before != now:
        raise RunError(
            f"the text has changed: {run} was trained on {before[:16]}…, the sources now give {now[:16]}…",
            "bring the old text back (for installed text: the same Python and packages)",
            "or start afresh with another --out",
        )


def is_finished(run: Path, recipe: Recipe) -> bool:
    """Whether a run has all the steps of its recipe."""
    if not folder.is_run(run):
        return False
    saved = checkpoint.latest(run)
    return saved is not None and saved.step >= recipe.train.steps


def result(run: Path) -> dict[str, Any]:
    """A run's last evaluation: `run`, `step`, `bits_per_byte`, `parts_per_token`."""
    evaluations = [r for r in metrics.read_lines(run / "metrics.jsonl") if r["kind"] == "evaluation"]
    if not evaluations:
        raise RunError(f"{run} has not been evaluated yet")
    last = evaluations[-1]
    parts = last.get("parts_per_token", {"mean": 0.0, "layers": [], "domains": {}})
    return {
        "run": str(run),
        "step": last["step"],
        "bits_per_byte": last["bits_per_byte"],
        "parts_per_token": parts,
    }


def _refuse_other_data(run: Path, prepared: Prepared) -> None:
    if (run / DATA).is_file():
        refuse_other_text(run, data_of(run)["digest"], prepared.digest)
    path = run / TOKENIZER
    if path.is_file() and path.read_text("utf-8") != prepared.tokenizer.to_str():
        raise RunError(
            f"the tokenizer is not the one that {run} was trained with",
            f"bring the old one back (it is {path}), or start afresh with another --out",
        )


def _refuse_other_weights(run: Path, initial: Initial | None) -> None:
    """Refuse to begin a run again, before its first checkpoint, from weights other than it began with."""
    if initial is None or not (run / DATA).is_file():
        return
    before, now = data_of(run).get("init", {}).get("sha256"), initial.facts()["sha256"]
    if before != now:
        raise RunError(
            f"init has changed: {run} began with {str(before)[:16]}…, {initial.path} now has {now[:16]}…",
            "name the checkpoint that it began with, or start afresh with another --out",
        )


def _adopt_data(run: Path, prepared: Prepared, initial: Initial | None) -> None:
    """Note what the run is trained on; refuse to go on with other text or another tokenizer."""
    path = run / DATA
    _refuse_other_data(run, prepared)
    if path.is_file():
        return
    facts = {"digest": prepared.digest, "domains": list(prepared.domains), "bytes": prepared.bytes}
    if initial is not None:
        facts["init"] = initial.facts()
    write_atomic(path, json.dumps(facts, indent=1) + "\n")
