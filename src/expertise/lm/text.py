"""Text in, text out: a model's continuation as pieces of text, with the parts that each token took."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from expertise.errors import RecipeError, RunError
from expertise.lm.data.tokenizer import end_of_text
from expertise.lm.generate import Sampling, stream
from expertise.lm.model import LanguageModel
from expertise.mixture.mixture import Mixture, recording


@dataclasses.dataclass(frozen=True)
class Piece:
    """The text of one token; a character that spans several tokens comes with its last one."""

    text: str
    parts: list[int]
    """How many parts it took in each mixture layer; empty when not known (the very last token)."""
    generated: bool
    """False for the prompt's tokens."""


def continue_text(
    model: LanguageModel,
    prompt: str,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    no_repeat: int | None = None,
    seed: int | None = None,
    stop: str | None = None,
    with_prompt: bool = False,
) -> Iterator[Piece]:
    """Continue a text, piece by piece.

    A token's parts are known once it has been read, that is when the token after it is chosen; so pieces
    come one token late.

    Args:
        model: with its tokenizer.
        prompt: any text, not empty.
        max_new_tokens: tokens to add at most.
        temperature: divides the logits; 0 takes the most likely token.
        top_k: sample from so many most likely tokens only.
        top_p: sample from the most likely tokens that together pass this probability only.
        no_repeat: never repeat a run of so many tokens.
        seed: of the sampling.
        stop: text of one token that ends it, beside the end of text.
        with_prompt: also give the prompt's own pieces.

    Raises:
        RunError: the model has no tokenizer.
        RecipeError: the prompt is empty or too long, or `stop` is not one token.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise RunError("this model has no tokenizer: it continues tokens, not text")
    stops = {end_of_text(tokenizer)}
    if stop is not None:
        ids = tokenizer.encode(stop, add_special_tokens=False).ids
        if len(ids) != 1:
            raise RecipeError(f"--stop {stop!r} is {len(ids)} tokens, it must be one")
        stops.add(ids[0])
    prompt_ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, no_repeat=no_repeat)
    decoder = _Decoder(tokenizer)
    waiting = [(token, False) for token in prompt_ids]
    tokens = torch.tensor([prompt_ids], dtype=torch.int64).reshape(1, -1)
    with recording(model) as mixtures:
        for step in stream(model, tokens, max_new_tokens, sampling, seed, tuple(sorted(stops))):
            counts = _counts(mixtures, len(waiting))
            for (token, generated), parts in zip(waiting, counts, strict=True):
                text = decoder.add(token)
                if generated or with_prompt:
                    yield Piece(text, parts, generated)
            chosen = int(step.tokens[0])
            waiting = [] if chosen in stops else [(chosen, True)]
            if chosen in stops and (rest := decoder.rest()):
                yield Piece(rest, [], True)
    for token, generated in waiting:
        if generated or with_prompt:
            yield Piece(decoder.add(token) + decoder.rest(), [], generated)


class _Decoder:
    """Turns ids into text as they come; bytes that are not yet a character wait."""

    def __init__(self, tokenizer: object) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._before = ""
        self._fresh = 0

    def add(self, token: int) -> str:
        """The text that this token completes."""
        self._ids.append(token)
        text = self._text()
        if text.endswith("\ufffd"):
            return ""
        new = text[len(self._before) :]
        # The tokens just given stay in front of the next ones: some decoders drop a text's first space.
        self._ids = self._ids[self._fresh :]
        self._before, self._fresh = self._text(), len(self._ids)
        return new

    def rest(self) -> str:
        """What is left: bytes that never became a character."""
        return self._text()[len(self._before) :]

    def _text(self) -> str:
        return self._tokenizer.decode(self._ids, skip_special_tokens=False)  # type: ignore[attr-defined, no-any-return]


def _counts(mixtures: list[Mixture], number: int) -> list[list[int]]:
    """Parts in each layer of the last `number` tokens that were read."""
    layers = [
        m.last_routes.parts_per_token()[-number:].tolist() for m in mixtures if m.last_routes is not None
    ]
    return [list(token) for token in zip(*layers, strict=True)] if layers else [[] for _ in range(number)]
