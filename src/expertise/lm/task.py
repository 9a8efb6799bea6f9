"""Next-token prediction as the training loop sees it: batches, losses, evaluation, files of a checkpoint."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch

from expertise.errors import RecipeError
from expertise.lm import objective
from expertise.lm.config import ModelConfig
from expertise.lm.data import ContextKeys, Prepared
from expertise.lm.evaluate import DomainText, domain_texts, evaluate, in_words
from expertise.lm.initial import Initial
from expertise.lm.load import CHAT, CONFIG, GENERATION, TOKENIZER
from expertise.lm.micro import MicroBatches
from expertise.lm.model import LanguageModel
from expertise.lm.recipe import Recipe
from expertise.lm.show import Example, examples
from expertise.mixture.loss_free import LossFreeBalance
from expertise.mixture.routers.hash import Hash
from expertise.runs.device import products, resolve
from expertise.runs.loop import Losses
from expertise.runs.progress import number


class LanguageModelTask:
    """Next-token prediction, as the training loop sees it.

    Args:
        recipe: the recipe to train.
        prepared: the encoded text.
        initial: weights to start from; None: random ones (or a checkpoint that is restored later).
    """

    unit = "tokens"

    def __init__(self, recipe: Recipe, prepared: Prepared, initial: Initial | None = None) -> None:
        train = recipe.train
        self.recipe = recipe
        self.model_config = with_vocabulary(recipe.model, prepared.vocab_size)
        self.units_per_step = train.batch_size * recipe.model.context
        context = recipe.model.context
        self._batches = MicroBatches(prepared, context, train, _context_keys(recipe))
        self.notes = self._batches.notes
        self._prepared = prepared
        self._texts: list[DomainText] | None = None
        device = resolve(train.device)
        torch.manual_seed(train.seed)
        # Drawn on the CPU, so that a seed gives the same weights on every device.
        self.model = LanguageModel(self.model_config).to(device)
        self.model.tokenizer = prepared.tokenizer
        self._deal_token_ids()
        if initial is not None:
            initial.load_into(self.model)
        self._balance = LossFreeBalance(self.model.mixtures().values())

    def losses(self, step: int, micro: int, detail: bool) -> Losses:
        """Compute the losses of one micro-batch; a step's micro-batches are consecutive rows of its batch."""
        if micro == 0:
            self._balance.begin()
        batch = self._batches.batch(step, micro)
        device = self.model.device
        with products(self.model.device, self.recipe.train.bfloat16):
            return objective.losses(
                self.model,
                batch.tokens.to(device),
                batch.targets.to(device),
                self.recipe.applied_balance,
                detail,
                self._balance.count,
                None if batch.documents is None else batch.documents.to(device),
                self._batches.counts(step),
            )

    def epochs(self, steps: int) -> float:
        """Return the number of epochs that `steps` steps make."""
        return self._batches.epochs(steps)

    def after_step(self) -> None:
        """Update the biases of loss-free balancing from the loads of the whole step, all micro-batches."""
        self._balance.apply()

    def evaluate(self, between: Callable[[], None] | None = None) -> dict[str, Any]:
        """Compute bits per byte on validation text, and the use of every part there."""
        config = self.recipe.evaluation
        if self._texts is None:
            context = self.recipe.model.context
            self._texts = domain_texts(self._prepared, "validation", config.bytes_per_domain, context)
        bfloat16 = self.recipe.train.bfloat16
        return evaluate(self.model, self._texts, config.batch_size, bfloat16, between).to_json()

    def headline(self, evaluation: Mapping[str, Any]) -> str:
        """Return one line with the mean bits per byte, those of each domain, and the parts per token."""
        text = in_words(evaluation["bits_per_byte"])
        if "parts_per_token" in evaluation:
            text += f", {number(evaluation['parts_per_token']['mean'])} parts per token"
        return text

    def files(self) -> Mapping[str, str]:
        """Return architecture, tokenizer and generation settings: a checkpoint can be loaded alone."""
        chat = self._prepared.chat
        documents = json.dumps({"reads_documents": True}) + "\n"
        return {
            CONFIG: model_json(self.model_config),
            TOKENIZER: self._prepared.tokenizer.to_str(),
            **({CHAT: chat.template} if chat else {}),
            **({GENERATION: documents} if self._prepared.packed else {}),
        }

    def examples(self, number: int) -> list[Example]:
        """Return the first rows of the training data."""
        return examples(self._batches, self._prepared.tokenizer, number)

    def _deal_token_ids(self) -> None:
        """Assign token ids to the parts of balanced hash routers, by their frequency in the training text."""
        config = self.model_config.router
        if not (isinstance(config, Hash.Config) and config.balanced):
            return
        frequencies = self._prepared.stream("train").frequencies(self.model_config.vocab_size)
        for mixture in self.model.mixtures().values():
            assert isinstance(mixture.router, Hash)
            mixture.router.balance(torch.from_numpy(frequencies))


def with_vocabulary(config: ModelConfig, size: int) -> ModelConfig:
    """Return the architecture with the size of its vocabulary filled in.

    Raises:
        RecipeError: the recipe names a size that is too small for the tokenizer.
    """
    if config.vocab_size and config.vocab_size < size:
        raise RecipeError(
            f"model.vocab_size ({config.vocab_size}) is smaller than the tokenizer's {size}",
            "leave it out to take the tokenizer's",
        )
    return dataclasses.replace(config, vocab_size=config.vocab_size or size)


def model_json(config: ModelConfig) -> str:
    """Return an architecture as JSON that `load` reads."""
    values = dataclasses.asdict(config)
    return json.dumps({key: value for key, value in values.items() if value is not None}, indent=1) + "\n"


def _context_keys(recipe: Recipe) -> ContextKeys:
    """Return the recipe keys that set the context; none with `init`, whose weights fix the context."""
    return ContextKeys("", "") if recipe.init else ContextKeys()
