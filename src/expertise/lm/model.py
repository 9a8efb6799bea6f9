"""The decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expertise.errors import RecipeError
from expertise.lm.attention import Attention, KeyValueCache, Rotary, Spans
from expertise.lm.causal import Prompt
from expertise.lm.config import ModelConfig
from expertise.mixture.mixture import Mixture
from expertise.mixture.parts.swiglu import SwiGLU
from expertise.shapes import Float, Int

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from expertise.lm.data.chat import Chat


class Block(nn.Module):
    """One layer: attention, then a mixture of experts or a dense SwiGLU, each around a residual.

    Args:
        config: the model's.
        index: the layer's index, from 0.
    """

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.dim, config.norm_epsilon)
        self.attention = Attention(config, index)
        self.feed_forward_norm = nn.RMSNorm(config.dim, config.norm_epsilon)
        layer = config.layer(index)
        self.feed_forward: nn.Module
        if layer is None:
            self.feed_forward = SwiGLU(config.dim, config.dense_width(index))
        else:
            router = layer.router.build(config.dim, layer.parts.num_parts, config.vocab_size)
            self.feed_forward = Mixture(router, layer.parts.build(config.dim), layer.always.build(config.dim))

    def forward(
        self,
        x: Float[Tensor, "batch time dim"],
        tokens: Int[Tensor, "batch time"],
        rotary: Rotary,
        cache: KeyValueCache | None = None,
        spans: Spans | None = None,
    ) -> Float[Tensor, "batch time dim"]:
        """The layer applied to the residual stream; `tokens` are the ids, for routers that go by them."""
        x = x + self.attention(self.attention_norm(x), rotary, cache, spans)
        normed = self.feed_forward_norm(x)
        if isinstance(self.feed_forward, Mixture):
            return x + self.feed_forward(normed, tokens)  # type: ignore[no-any-return]
        return x + self.feed_forward(normed)  # type: ignore[no-any-return]


class LanguageModel(nn.Module):
    """A decoder-only language model whose feed-forward layers may be mixtures of experts.

    Args:
        config: the architecture; its `vocab_size` must be set.

    Attributes:
        tokenizer: the tokenizer that it was trained with, where known.
        chat: the chat template that it was trained with, where there was one.
        reads_documents: whether it was trained on documents one by one, each with an end of text before it:
            then a prompt must have one, too.
    """

    entry_points = ("hidden",)
    """Methods that callers use in place of the model's own call (skills must hear of these, too)."""
    weights_read_directly = ("head",)
    """Layers that are never called: only their weight is read."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if not config.vocab_size:
            raise RecipeError("a model needs model.vocab_size (a run takes its tokenizer's)")
        self.config = config
        self.tokenizer: Tokenizer | None = None
        self.chat: Chat | None = None
        self.reads_documents = False
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.num_layers))
        self.norm = nn.RMSNorm(config.dim, config.norm_epsilon)
        self.head = None if config.tied else nn.Linear(config.dim, config.vocab_size, bias=False)
        self.rotary = Rotary(config.head_dim, config.context, config.rope_theta)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights anew, as `config.init` says.

        Norms start at 1, biases at 0.

        Every matrix here has its input as last dimension, so one rule serves them all: std 1 / sqrt(fan-in),
        the products that write into the residual stream smaller by sqrt(2 L). An untied embedding starts with
        std 1: smaller, and what the first layers write drowns the token itself (docs/decisions.md).
        """
        residual = (2 * self.config.num_layers) ** -0.5
        for name, parameter in self.named_parameters():
            if name.endswith(".router.values"):
                continue  # given by the recipe, not drawn
            if parameter.ndim < 2:
                nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)
                continue
            if name.endswith("lora_B"):
                std = 0.0
            elif self.config.init != "width-scaled":
                std = float(self.config.init)
            elif name == "embedding.weight" and not self.config.tied:
                std = 1.0
            else:
                into_residual = name.endswith((".down", ".down.weight", ".output.weight"))
                std = parameter.shape[-1] ** -0.5 * (residual if into_residual else 1.0)
            nn.init.normal_(parameter, std=std)

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self.embedding.weight.device

    @property
    def weights_read_elsewhere(self) -> tuple[str, ...]:
        """Layers whose weight another one uses, too."""
        return ("embedding",) if self.head is None else ()

    @property
    def core(self) -> LanguageModel:
        """The module that holds the weights: this one."""
        return self

    def around(self, core: nn.Module) -> LanguageModel:
        """The view of another module of this kind, which is that module."""
        assert isinstance(core, LanguageModel)
        return core

    @property
    def context(self) -> int:
        """Longest sequence, in tokens."""
        return self.config.context

    @property
    def vocab_size(self) -> int:
        """How many ids it knows."""
        return self.config.vocab_size

    def new_cache(self, rows: int) -> KeyValueCache:
        """An empty key-value cache for so many sequences."""
        return KeyValueCache(self.config, rows, self.embedding.weight)

    @property
    def head_weight(self) -> Float[Tensor, "vocab dim"]:
        """The matrix that turns the last hidden state into logits."""
        return self.embedding.weight if self.head is None else self.head.weight

    def mixtures(self) -> dict[int, Mixture]:
        """Layer index → its mixture; dense layers are left out."""
        found = {index: block.feed_forward for index, block in enumerate(self.blocks)}
        return {index: module for index, module in found.items() if isinstance(module, Mixture)}

    def hidden(
        self,
        tokens: Int[Tensor, "batch time"],
        cache: KeyValueCache | None = None,
        documents: Int[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch time dim"]:
        """Normed hidden states before the head; see `forward`.

        Raises:
            RecipeError: the sequence (with what is cached) is longer than the context, or there are documents
                and a cache.
        """
        if cache is not None and documents is not None:
            raise RecipeError("a cache holds one sequence per row: it cannot be used with documents")
        start = cache.length if cache else 0
        if start + tokens.shape[1] > self.config.context:
            raise RecipeError(
                f"{start + tokens.shape[1]} tokens do not fit the context of {self.config.context}"
            )
        spans = None if documents is None else Spans.of(documents)
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, tokens, self.rotary, cache, spans)
        if cache is not None:
            cache.advance(tokens.shape[1])
        return self.norm(x)  # type: ignore[no-any-return]

    def forward(
        self,
        tokens: Int[Tensor, "batch time"],
        cache: KeyValueCache | None = None,
        documents: Int[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch time vocab"]:
        """Logits of the next token at every position.

        Args:
            tokens: ids (int64).
            cache: keys and values of the tokens before; extended by these.
            documents: the number of each token's document, where a row holds several side by side: each is
                then computed as if it were alone. None: a row is one text.
        """
        return F.linear(self.hidden(tokens, cache, documents), self.head_weight)

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
        """Continue text, or tokens.

        Args:
            tokens: a text or a list of texts, where the model has its tokenizer; a list of token ids or
                several of them; or ids as a tensor `[T]` or `[B, T]`. Those of a list are continued one by
                one, each as if it were alone.
            max_new_tokens: how many tokens to add at most.
            temperature: divides the logits; 0 takes the most likely token (greedy).
            top_k: sample from so many most likely tokens only.
            top_p: sample from the most likely tokens that together pass this probability only.
            seed: of the sampling; None: a new one each time.
            stop: text of one token, or token id or ids, that end it; a row of a tensor is filled up with the
                first of them. A text also ends where the model ends a text.
            no_repeat: never repeat a run of so many tokens (keeps greedy text from going in circles).

        Returns:
            Prompts and what was added, as they were given: text for text, lists for lists, a tensor for a
            tensor. What does not fit the context is forgotten from the front.

        Raises:
            RecipeError: an empty prompt, one longer than the context, or a setting out of range.
            RunError: text, and the model has no tokenizer.
        """
        from expertise.lm.generate import Sampling
        from expertise.lm.prompts import continued

        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, no_repeat=no_repeat)
        found: Prompt = continued(self, tokens, max_new_tokens, sampling, seed, stop)
        return found
