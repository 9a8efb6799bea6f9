"""Causal language models of transformers with the interface of our own: ids in, logits out."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from expertise.lm.attention import Spans
from expertise.lm.causal import Prompt
from expertise.mixture.mixture import Mixture
from expertise.shapes import Float, Int

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from expertise.lm.data.chat import Chat

_ENDLESS = 2**31
"""Context of a model whose configuration names none."""


@final
class Foreign:
    """A causal language model of transformers as a `CausalLM`.

    Args:
        core: such a model, or the result of `compose` on one.
        tokenizer: its tokenizer.
        chat: its chat template.
        first: the id that its tokenizer puts before every text, if it does so. Such models fail without it,
            so it is put before each row that begins a text, and its logits are dropped.
        reads_documents: True if an end of text must be put before a prompt.
    """

    def __init__(
        self,
        core: nn.Module,
        tokenizer: Tokenizer | None = None,
        chat: Chat | None = None,
        first: int | None = None,
        reads_documents: bool = False,
    ) -> None:
        self.core = core
        self.tokenizer = tokenizer
        self.chat = chat
        self.first = first
        self.reads_documents = reads_documents
        self._text_config: Any = core.config.get_text_config()  # type: ignore[operator, union-attr]

    def around(self, core: nn.Module) -> Foreign:
        """Return the same wrapper around what `compose` made of the core."""
        return Foreign(core, self.tokenizer, self.chat, self.first, self.reads_documents)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.core.parameters()).device

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.core.parameters()).dtype

    @property
    def context(self) -> int:
        """Longest sequence in tokens, without the id that is put before it."""
        longest = getattr(self._text_config, "max_position_embeddings", None) or _ENDLESS
        return int(longest) - (self.first is not None)

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary."""
        return int(self._text_config.vocab_size)

    def mixtures(self) -> dict[int, Mixture]:
        """Return an empty dictionary: no layer is one of our mixtures."""
        return {}

    def new_cache(self, rows: int) -> Any:
        """Return an empty key-value cache, for any number of sequences."""
        transformers: Any = importlib.import_module("transformers")
        return transformers.DynamicCache(config=self.core.config)

    def __call__(
        self,
        tokens: Int[Tensor, "batch time"],
        cache: Any = None,
        documents: Int[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch time vocab"]:
        """Return the logits of the next token at every position; see `CausalLM`.

        Attention masks and positions keep documents in one row apart. Models that remember in other ways
        (convolutions, recurrences) see across documents.
        """
        given: dict[str, Any] = {"use_cache": cache is not None, "past_key_values": cache}
        if documents is not None:
            spans = Spans.of(documents)
            # Added to the scores: a form that every implementation of attention accepts.
            mask = torch.zeros(spans.mask.shape, dtype=self._dtype, device=tokens.device)
            given["attention_mask"] = mask.masked_fill(~spans.mask, torch.finfo(mask.dtype).min)
            given["position_ids"] = spans.positions
        starts = documents is None and (cache is None or cache.get_seq_length() == 0)
        if self.first is None or not starts:
            return self.core(tokens, **given).logits  # type: ignore[no-any-return]
        rows = torch.cat([tokens.new_full((len(tokens), 1), self.first), tokens], dim=1)
        return self.core(rows, **given).logits[:, 1:]  # type: ignore[no-any-return]

    def generate(
        self,
        tokens: Prompt,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: str | int | Sequence[int] | None = None,
        no_repeat: int | None = None,
    ) -> Prompt:
        """Continue text, or tokens; see `LanguageModel.generate`."""
        from expertise.lm.generate import Sampling
        from expertise.lm.prompts import continued

        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, no_repeat=no_repeat)
        found: Prompt = continued(self, tokens, max_new_tokens, sampling, seed, stop)
        return found
