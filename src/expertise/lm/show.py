"""Examples of what training sees: rows of its own batches as text, and which tokens of them are learnt."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any

from expertise.lm.data import IGNORED, PADDING, Batch
from expertise.lm.data.tokenizer import end_of_text
from expertise.lm.decoding import Decoder
from expertise.lm.micro import MicroBatches

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class ShownToken:
    """A token of an example."""

    id: int
    """Its id."""
    text: str
    """The text that it completes; a character that spans several tokens comes with its last one."""
    learnt: bool
    """Whether it is a target: the loss is on it."""


@dataclasses.dataclass(frozen=True)
class Example:
    """One row of a training batch, as text."""

    step: int
    """The step that sees it first, counted from 1."""
    row: int
    """Its row in that step's batch, counted from 1."""
    documents: list[list[ShownToken]]
    """Its tokens, by document where each is attended to by itself; else all are one. Each begins with a token
    that is only read and goes on with the targets, so it may end with one that the model never reads."""
    inputs: list[int]
    """The ids that go in, as they are in the batch."""
    targets: list[int | None]
    """The id that follows each of them; None where it is not learnt."""
    num_padding: int
    """How many places only fill the row."""
    is_full: bool
    """Whether it ends without padding and without an end of text: what may come after it is not seen."""

    @property
    def num_learnt(self) -> int:
        """How many targets are learnt."""
        return sum(target is not None for target in self.targets)

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {**dataclasses.asdict(self), "num_learnt": self.num_learnt}


def examples(batches: MicroBatches, tokenizer: Tokenizer, number: int) -> list[Example]:
    """The first rows that training sees, read from its batches.

    Args:
        batches: the training's own.
        tokenizer: what their ids are of.
        number: how many rows; fewer where an epoch has fewer.
    """
    rows = itertools.islice(batches.rows(), number)
    return [_example(step, row, batch, tokenizer) for step, row, batch in rows]


def _example(step: int, row: int, batch: Batch, tokenizer: Tokenizer) -> Example:
    inputs: list[int] = batch.tokens[0].tolist()
    targets = [None if target == IGNORED else int(target) for target in batch.targets[0].tolist()]
    owners = [0] * len(inputs) if batch.documents is None else batch.documents[0].tolist()
    documents, at, num_padding = [], 0, 0
    for owner, places in itertools.groupby(owners):
        end = at + len(list(places))
        if owner == PADDING and not any(target is not None for target in targets[at:end]):
            num_padding += end - at
        else:
            documents.append(_tokens(inputs[at:end], targets[at:end], tokenizer))
        at = end
    last = documents[-1][-1].id if documents else None
    return Example(
        step=step + 1,
        row=row + 1,
        documents=documents,
        inputs=inputs,
        targets=targets,
        num_padding=num_padding,
        is_full=not num_padding and last != end_of_text(tokenizer),
    )


def _tokens(inputs: list[int], targets: list[int | None], tokenizer: Tokenizer) -> list[ShownToken]:
    """The tokens of one document in their order; a target is shown as it is, whatever goes in after it."""
    shown = [(inputs[0], False)]
    for target, after in itertools.zip_longest(targets, inputs[1:]):
        if target is not None:
            shown.append((target, True))
        if after is not None and after != target:
            shown.append((after, False))
    decoder = Decoder(tokenizer)
    tokens = [ShownToken(token, decoder.add(token), learnt) for token, learnt in shown]
    return [*tokens[:-1], dataclasses.replace(tokens[-1], text=tokens[-1].text + decoder.rest())]
