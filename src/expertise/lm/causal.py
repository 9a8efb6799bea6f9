"""The interface of a causal language model for learning, evaluation and generation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from expertise.mixture.mixture import Mixture
from expertise.shapes import Float, Int

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from expertise.lm.data.chat import Chat


Prompt = TypeVar("Prompt", Tensor, str, list[str], list[int], list[list[int]])
"""Type of a prompt for `generate`: one or several texts or lists of token ids; results have the same type."""


@runtime_checkable
class CausalLM(Protocol):
    """A causal language model: our `LanguageModel`, or one of transformers wrapped in `foreign.Foreign`."""

    tokenizer: Tokenizer | None
    """The tokenizer that it was trained with, if known."""
    chat: Chat | None
    """Its chat template, if it has one."""
    reads_documents: bool
    """True if every training document followed an end-of-text token and was attended to by itself; a prompt
    then needs an end of text before it, too."""

    @property
    def core(self) -> nn.Module:
        """The module that holds the weights, under the names that skills use."""

    def around(self, core: nn.Module) -> CausalLM:
        """Return the same wrapper around another module of this kind, such as the result of `compose`."""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""

    @property
    def context(self) -> int:
        """Longest sequence, in tokens."""

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary."""

    def mixtures(self) -> dict[int, Mixture]:
        """Return our mixtures by layer index; empty for models of transformers."""

    def new_cache(self, rows: int) -> Any:
        """Return an empty key-value cache for `rows` sequences."""

    def __call__(
        self,
        tokens: Int[Tensor, "batch time"],
        cache: Any = None,
        documents: Int[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch time vocab"]:
        """Return the logits of the next token at every position.

        Args:
            tokens: ids (int64).
            cache: keys and values of the tokens before, from `new_cache`; extended by these.
            documents: the number of each token's document where a row holds several, each computed as if it
                were alone; None: a row is one text.
        """
