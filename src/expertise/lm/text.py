"""Text in, text out: a model's continuation as pieces of text, with the parts and skills of each token."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from expertise.errors import RecipeError, RunError, counted
from expertise.lm.alpha import Alpha
from expertise.lm.causal import CausalLM
from expertise.lm.data.encoded import encode_prompt
from expertise.lm.data.messages import Message
from expertise.lm.data.tokenizer import encode, end_of_text
from expertise.lm.decoding import Decoder
from expertise.lm.generate import Sampling, stream
from expertise.mixture.mixture import Mixture, recording
from expertise.runs.files import require_utf8

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class Piece:
    """The text of one token; a character that spans several tokens comes with its last one."""

    text: str
    parts: list[int]
    """How many parts it took in each mixture layer; empty when not known (the very last token)."""
    generated: bool
    """False for the prompt's tokens."""
    skills: dict[str, float] = dataclasses.field(default_factory=dict)
    """Of a composed model: the weight that each skill had for it, the mean over layers; empty as `parts`."""


def continue_text(
    model: CausalLM,
    prompt: str | Sequence[Message],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    no_repeat: int | None = None,
    seed: int | None = None,
    stop: str | int | Sequence[int] | None = None,
    with_prompt: bool = False,
) -> Iterator[Piece]:
    """Continue a text, piece by piece.

    A token's parts and skills are known once it has been read, that is when the token after it is chosen; so
    pieces come one token late.

    Args:
        model: with its tokenizer.
        prompt: any text, not empty; or the messages of a conversation, which the model's chat template
            writes, and the assistant's answer is given up to the marker that ends its turn.
        max_new_tokens: tokens to add at most.
        temperature: divides the logits; 0 takes the most likely token.
        top_k: sample from so many most likely tokens only.
        top_p: sample from the most likely tokens that together pass this probability only.
        no_repeat: never repeat a run of so many tokens.
        seed: of the sampling.
        stop: text of one token, or ids, that end it beside the end of text.
        with_prompt: also give the prompt's own pieces.

    Raises:
        RunError: the model has no tokenizer, or no chat template.
        RecipeError: the prompt is empty, too long or not UTF-8, or `stop` is not one token.
    """
    before, prompt_ids = prompt_tokens(model, prompt)
    tokenizer = model.tokenizer
    assert tokenizer is not None
    stops = {end_of_text(tokenizer), *stop_ids(tokenizer, stop)}
    ending = _Ending(model.chat.end if model.chat and not isinstance(prompt, str) else "")
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, no_repeat=no_repeat)
    decoder = Decoder(tokenizer)
    waiting = [(token, False) for token in [*before, *prompt_ids]]
    hidden = len(before)
    tokens = torch.tensor([[*before, *prompt_ids]], dtype=torch.int64).reshape(1, -1)
    mixtures, alpha = list(model.mixtures().values()), Alpha(model)
    with recording(model.core), alpha.recording():
        for step in stream(model, tokens, max_new_tokens, sampling, seed, tuple(sorted(stops))):
            counts, skills = _counts(mixtures, len(waiting)), _skills(alpha, len(waiting))
            seen = list(zip(waiting, counts, skills, strict=True))[hidden:]
            hidden = 0
            for (token, generated), parts, weights in seen:
                text = decoder.add(token)
                if generated:
                    text = ending.add(text)
                if generated or with_prompt:
                    yield Piece(text, parts, generated, weights)
            if ending.reached:
                return
            chosen = int(step.tokens[0])
            waiting = [] if chosen in stops else [(chosen, True)]
            if chosen in stops and (rest := ending.add(decoder.rest()) + ending.rest()):
                yield Piece(rest, [], True)
    for token, generated in waiting[hidden:]:
        text = decoder.add(token) + decoder.rest()
        if generated:
            text = ending.add(text) + ending.rest()
        if generated or with_prompt:
            yield Piece(text, [], generated)


def stop_ids(tokenizer: Tokenizer | None, stop: str | int | Sequence[int] | None) -> tuple[int, ...]:
    """The ids that end a text, from what was asked for.

    Args:
        tokenizer: the model's.
        stop: text of one token, or ids; None: nothing.

    Raises:
        RunError: text is given, and there is no tokenizer.
        RecipeError: the text is not one token.
    """
    if not isinstance(stop, str):
        return (stop,) if isinstance(stop, int) else tuple(stop or ())
    if tokenizer is None:
        raise RunError("this model has no tokenizer: it stops at token ids, not at text")
    ids = tokenizer.encode(require_utf8(stop, "the text to stop at,"), add_special_tokens=False).ids
    if len(ids) != 1:
        raise RecipeError(f"stop {stop!r} is {counted(len(ids), 'token')}, it must be one")
    return (int(ids[0]),)


def prompt_tokens(model: CausalLM, prompt: str | Sequence[Message]) -> tuple[list[int], list[int]]:
    """What stands before a prompt, and its own token ids.

    As in training: where documents were read one by one, an end of text stood before each.

    Args:
        model: with its tokenizer.
        prompt: text, or the messages of a conversation.

    Raises:
        RunError: the model has no tokenizer, or a conversation is to be written without a chat template.
        RecipeError: the prompt is not UTF-8.
        DataError: the template refuses the messages.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise RunError("this model has no tokenizer: it continues tokens, not text")
    before = [end_of_text(tokenizer)] if model.reads_documents else []
    if isinstance(prompt, str):
        ids = encode(tokenizer, [require_utf8(prompt, "the prompt")])[0].tolist()
        if prompt and not ids:
            raise RecipeError("the tokenizer makes no token of the prompt", "give other words")
        return before, ids
    if model.chat is None:
        raise RunError(
            "this model has no chat template: it was not trained on messages",
            "leave --chat out and give the whole prompt",
        )
    for message in prompt:
        for value in message.values():
            if isinstance(value, str):
                require_utf8(value, "the message")
    return before, encode_prompt(tokenizer, model.chat, prompt)


class _Ending:
    """Lets text through up to a marker; text that may be the marker's beginning waits.

    Args:
        marker: any text, of one token or several; empty: nothing ends it.
    """

    def __init__(self, marker: str) -> None:
        self._marker = marker
        self._held = ""
        self.reached = False

    def add(self, text: str) -> str:
        """What can be shown once this text has come."""
        if not self._marker:
            return text
        held = self._held + text
        at = held.find(self._marker)
        self.reached = self.reached or at >= 0
        if at < 0:
            longest = min(len(held), len(self._marker) - 1)
            at = len(held) - next(n for n in range(longest, -1, -1) if held.endswith(self._marker[:n]))
        self._held = "" if self.reached else held[at:]
        return held[:at]

    def rest(self) -> str:
        """What waited and was no marker."""
        return self._held


def _counts(mixtures: list[Mixture], number: int) -> list[list[int]]:
    """Parts in each layer of the last `number` tokens that were read."""
    layers = [
        m.last_routes.parts_per_token()[-number:].tolist() for m in mixtures if m.last_routes is not None
    ]
    return [list(token) for token in zip(*layers, strict=True)] if layers else [[] for _ in range(number)]


def _skills(alpha: Alpha, number: int) -> list[dict[str, float]]:
    """The skills' weights for the last `number` tokens that were read."""
    found = alpha.last(1, number)
    if found is None:
        return [{} for _ in range(number)]
    return [dict(zip(alpha.names, row, strict=True)) for row in found.tolist()]
