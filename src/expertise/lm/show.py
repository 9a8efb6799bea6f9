"""Examples of training data: rows of its own batches as text, with the tokens that are learnt."""

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
    """One token of an example."""

    id: int
    """Id of the token."""
    text: str
    """The text that it completes; a character of several tokens comes with its last one."""
    learnt: bool
    """True if the token is a target of the loss."""


@dataclasses.dataclass(frozen=True)
class Example:
    """One row of a training batch, as text."""

    step: int
    """The first step that sees it, counted from 1."""
    row: int
    """Its row in that step's batch, counted from 1."""
    documents: list[list[ShownToken]]
    """Its tokens by document if documents are attended to one by one, else all in one. Each begins with a
    token that is only an input and goes on with the targets; the model may never read its last one."""
    inputs: list[int]
    """The input ids, as they are in the batch."""
    targets: list[int | None]
    """The next id of each input; None if it is not learnt."""
    num_padding: int
    """Number of padding tokens."""
    is_full: bool
    """True if it ends without padding and without an end of text, that is, if its text may go on."""

    @property
    def num_learnt(self) -> int:
        """Number of targets that are learnt."""
        return sum(target is not None for target in self.targets)

    def to_json(self) -> dict[str, Any]:
        """Return all fields as plain values."""
        return {**dataclasses.asdict(self), "num_learnt": self.num_learnt}


def examples(batches: MicroBatches, tokenizer: Tokenizer, number: int) -> list[Example]:
    """Read the first rows of the training data from its batches.

    Args:
        batches: batches of the training.
        tokenizer: the tokenizer of their ids.
        number: number of rows; fewer if an epoch has fewer.
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
    """Return the tokens of one document in order, each target with its own text."""
    shown = [(inputs[0], False)]
    for target, after in itertools.zip_longest(targets, inputs[1:]):
        if target is not None:
            shown.append((target, True))
        if after is not None and after != target:
            shown.append((after, False))
    decoder = Decoder(tokenizer)
    tokens = [ShownToken(token, decoder.add(token), learnt) for token, learnt in shown]
    return [*tokens[:-1], dataclasses.replace(tokens[-1], text=tokens[-1].text + decoder.rest())]
