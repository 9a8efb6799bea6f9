"""What learning, evaluating and generating ask of a language model, whoever wrote it."""

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
"""What `generate` continues: a text or token ids, or several; what it gives is of the same kind."""


@runtime_checkable
class CausalLM(Protocol):
    """A causal language model: ours is one as it is, those of transformers stand behind `foreign.Foreign`."""

    tokenizer: Tokenizer | None
    """The tokenizer that it was trained with, where known."""
    chat: Chat | None
    """Its chat template, where it has one."""
    reads_documents: bool
    """Whether it was trained on documents one by one, each with an end of text before it: then a prompt must
    have one, too."""

    @property
    def core(self) -> nn.Module:
        """The module that holds the weights, under the names that skills know."""

    def around(self, core: nn.Module) -> CausalLM:
        """The same view of another module of this kind: of what `compose` made of `core`."""

    @property
    def device(self) -> torch.device:
        """Where the weights live."""

    @property
    def context(self) -> int:
        """Longest sequence, in tokens."""

    @property
    def vocab_size(self) -> int:
        """How many ids it knows."""

    def mixtures(self) -> dict[int, Mixture]:
        """Layer index → its mixture, where these are ours."""

    def new_cache(self, rows: int) -> Any:
        """An empty key-value cache for so many sequences."""

    def __call__(
        self,
        tokens: Int[Tensor, "batch time"],
        cache: Any = None,
        documents: Int[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch time vocab"]:
        """Logits of the next token at every position.

        Args:
            tokens: ids (int64).
            cache: keys and values of the tokens before, from `new_cache`; extended by these.
            documents: the number of each token's document where a row holds several, each computed as if it
                were alone; None: a row is one text.
        """
