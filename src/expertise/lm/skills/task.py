"""Training of a skill or of a router in a composed model, as the training loop sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from expertise.lm.causal import CausalLM
from expertise.lm.data import ContextKeys, Prepared
from expertise.lm.evaluate import DomainText, Evaluation, domain_texts, evaluate, in_words
from expertise.lm.micro import MicroBatches
from expertise.lm.objective import next_token_loss
from expertise.lm.reading import window_of
from expertise.lm.show import Example, examples
from expertise.lm.skills.config import ComposeConfig, LearnConfig
from expertise.runs.device import products
from expertise.runs.loop import Losses


class Learning(nn.Module):
    """The trainable parameters of a model as a module of their own; a checkpoint holds just these.

    Args:
        model: the model that has them (`requires_grad`); `train` and `eval` set its mode, too.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        # Not registered as a child: frozen parameters do not belong in a checkpoint.
        self._model = (model,)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self.register_parameter(name.replace(".", "/"), parameter)

    def train(self, mode: bool = True) -> Learning:
        """Set the mode of this module and of the model."""
        self._model[0].train(mode)
        super().train(mode)
        return self


class CompositionTask:
    """Next-token prediction with a composed model in which a skill or a router is trained.

    Args:
        model: around a composed model.
        config: training and evaluation.
        prepared: the encoded text.
    """

    unit = "tokens"

    def __init__(self, model: CausalLM, config: LearnConfig | ComposeConfig, prepared: Prepared) -> None:
        self.composed, self.config, self.prepared = model, config, prepared
        self.window = window_of(model, config.context)
        self.units_per_step = config.train.batch_size * self.window
        higher = "context" if self.window < model.context else ""
        self._batches = MicroBatches(prepared, self.window, config.train, ContextKeys("context", higher))
        self.notes = [*prepared.notes, *self._batches.notes]
        self.model = Learning(model.core)
        self._texts: list[DomainText] | None = None

    def losses(self, step: int, micro: int, detail: bool) -> Losses:
        """Compute the loss of one micro-batch."""
        batch, device = self._batches.batch(step, micro), self.composed.device
        counts, bfloat16 = self._batches.counts(step), self.config.train.bfloat16
        with products(device, bfloat16):
            loss = next_token_loss(
                self.composed,
                batch.tokens.to(device),
                batch.targets.to(device),
                None if batch.documents is None else batch.documents.to(device),
                None if counts is None else counts.targets,
            )
        return Losses(total=loss, reported={"loss": loss}, tables={})

    def epochs(self, steps: int) -> float:
        """Return the number of epochs that `steps` steps make."""
        return self._batches.epochs(steps)

    def after_step(self) -> None:
        """Do nothing after a step."""

    def examples(self, number: int) -> list[Example]:
        """Return the first rows of the training data."""
        return examples(self._batches, self.prepared.tokenizer, number)

    def texts(self) -> list[DomainText]:
        """Return the held-out text for evaluations."""
        if self._texts is None:
            num_bytes = self.config.evaluation.bytes_per_domain
            self._texts = domain_texts(self.prepared, "validation", num_bytes, self.window)
        return self._texts

    def evaluation(self, between: Callable[[], None] | None = None) -> Evaluation:
        """Compute bits per byte and mean skill weights on validation text."""
        batch_size, bfloat16 = self.config.evaluation.batch_size, self.config.train.bfloat16
        return evaluate(self.composed, self.texts(), batch_size, bfloat16, between)

    def evaluate(self, between: Callable[[], None]) -> dict[str, Any]:
        """Evaluate and return plain numbers."""
        return self.evaluation(between).to_json()

    def headline(self, evaluation: Mapping[str, Any]) -> str:
        """Return one line with the mean bits per byte and those of each domain."""
        return in_words(evaluation["bits_per_byte"])

    def files(self) -> Mapping[str, str]:
        """Return no files: such a checkpoint is loaded by this training only."""
        return {}
