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
from expertise.lm.data import Batches, Prepared, prepare, require_source
from expertise.lm.evaluate import DomainText, domain_texts, evaluate
from expertise.lm.load import CONFIG, TOKENIZER
from expertise.lm.model import LanguageModel
from expertise.lm.recipe import Recipe, may_change
from expertise.mixture.loss_free import LossFreeBalance
from expertise.mixture.routers.hash import Hash
from expertise.runs import checkpoint, folder, loop, metrics
from expertise.runs.device import limit_threads, resolve, shortfalls
from expertise.runs.files import write_atomic
from expertise.runs.loop import Losses

DATA = "data.json"
"""What the run was trained on: digest of the sources, domains, bytes."""


class LanguageModelTask:
    """Next-token prediction, as the training loop sees it.

    Args:
        recipe: what to train.
        prepared: its text.
    """

    unit = "tokens"

    def __init__(self, recipe: Recipe, prepared: Prepared) -> None:
        train = recipe.train
        self.recipe = recipe
        self.model_config = with_vocabulary(recipe.model, prepared.vocab_size)
        self.units_per_step = train.batch_size * recipe.model.context
        stream, context = prepared.stream("train"), recipe.model.context
        Batches(stream, context, train.batch_size, train.seed)  # refuses too little text, by the recipe's key
        self._micro = Batches(stream, context, train.batch_size // train.accumulation, train.seed)
        self._prepared = prepared
        self._texts: list[DomainText] | None = None
        device = resolve(train.device)
        torch.manual_seed(train.seed)
        # Drawn on the CPU, so that a seed gives the same weights on every device.
        self.model = LanguageModel(self.model_config).to(device)
        self.model.tokenizer = prepared.tokenizer
        self._deal_token_ids()
        self._balance = LossFreeBalance(self.model.mixtures().values())

    def losses(self, step: int, micro: int, detail: bool) -> Losses:
        """Losses of one micro-batch; a step's micro-batches are consecutive rows of its batch."""
        if micro == 0:
            self._balance.begin()
        batch = self._micro.batch(step * self.recipe.train.accumulation + micro)
        device = self.model.device
        with self._autocast():
            return objective.losses(
                self.model,
                batch.tokens.to(device),
                batch.targets.to(device),
                self.recipe.applied_balance,
                detail,
                self._balance.count,
            )

    def after_step(self) -> None:
        """Move the biases of loss-free balancing by the loads of the whole step, all micro-batches."""
        self._balance.apply()

    def evaluate(self, between: Callable[[], None] | None = None) -> dict[str, Any]:
        """Bits per byte on validation text, and the use of every part there."""
        config = self.recipe.evaluation
        if self._texts is None:
            context = self.recipe.model.context
            self._texts = domain_texts(self._prepared, "validation", config.bytes_per_domain, context)
        bfloat16 = self.recipe.train.bfloat16
        return evaluate(self.model, self._texts, config.batch_size, bfloat16, between).to_json()

    def headline(self, evaluation: Mapping[str, Any]) -> str:
        """The mean, each domain, and the parts per token."""
        bits = dict(evaluation["bits_per_byte"])
        text = f"{bits.pop('mean'):.3f} bits per byte ({', '.join(f'{d} {b:.3f}' for d, b in bits.items())})"
        if "parts_per_token" in evaluation:
            text += f", {evaluation['parts_per_token']['mean']:.2f} parts per token"
        return text

    def files(self) -> Mapping[str, str]:
        """Architecture and tokenizer, so that a checkpoint stands by itself."""
        return {
            CONFIG: model_json(self.model_config),
            TOKENIZER: self._prepared.tokenizer.to_str(),
        }

    def _deal_token_ids(self) -> None:
        """Give token ids to the parts of balanced hash routers, by their frequency in the training text."""
        config = self.model_config.router
        if not (isinstance(config, Hash.Config) and config.balanced):
            return
        frequencies = self._prepared.stream("train").frequencies(self.model_config.vocab_size)
        for mixture in self.model.mixtures().values():
            assert isinstance(mixture.router, Hash)
            mixture.router.balance(torch.from_numpy(frequencies))

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
    folder.refuse_if_held(run)
    task, prepared = _ready(recipe, run, say)
    with folder.held(run):
        folder.adopt_recipe(run, recipe, may_change)
        _adopt_data(run, prepared)
        if not (run / TOKENIZER).is_file():
            write_atomic(run / TOKENIZER, prepared.tokenizer.to_str())
        loop.train(run, task, recipe.train, recipe.optimizer)


def check(recipe: Recipe, run: Path, say: Callable[[str], None]) -> None:
    """Do all that `train` does before it writes to the run: validate recipe, folder, text and sizes."""
    _ready(recipe, run, say)
    say("the recipe is valid")


def _ready(recipe: Recipe, run: Path, say: Callable[[str], None]) -> tuple[LanguageModelTask, Prepared]:
    folder.require_free_or_run(run)
    if folder.is_run(run):
        folder.refuse_changes(run, recipe, may_change)
    if recipe.train.tensorboard:
        metrics.require_tensorboard()
    require_source(recipe.data)
    resolve(recipe.train.device)
    limit_threads(recipe.train.threads)
    prepared = prepare(recipe.data, recipe.tokenizer, say)
    for note in (*prepared.notes, *shortfalls(resolve(recipe.train.device))):
        say(note)
    _refuse_other_data(run, prepared)
    task = LanguageModelTask(recipe, prepared)
    say(describe(task.model_config, prepared))
    return task, prepared


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
    """Whether a run has all the steps of its recipe, and was evaluated after the last."""
    if not folder.is_run(run):
        return False
    saved = checkpoint.latest(run)
    return saved is not None and saved.step >= recipe.train.steps and loop.is_evaluated(run, saved.step)


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


def _adopt_data(run: Path, prepared: Prepared) -> None:
    """Note what the run is trained on; refuse to go on with other text or another tokenizer."""
    path = run / DATA
    _refuse_other_data(run, prepared)
    if path.is_file():
        return
    facts = {"digest": prepared.digest, "domains": list(prepared.domains), "bytes": prepared.bytes}
    write_atomic(path, json.dumps(facts, indent=1) + "\n")
