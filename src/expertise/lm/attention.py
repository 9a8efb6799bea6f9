"""Rotary positions, grouped-query attention, documents side by side, and the cache of keys and values."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expertise.lm.config import ModelConfig
from expertise.shapes import Bool, Float, Int


@dataclasses.dataclass(frozen=True)
class Spans:
    """Several documents in one window: each attends only to itself, and its positions start at 0."""

    positions: Int[Tensor, "batch time"]
    """Position of each token in its document."""
    mask: Bool[Tensor, "batch 1 time time"]
    """Attention mask from query (third dimension) to key (last): block-diagonal and causal."""

    @classmethod
    def of(cls, documents: Int[Tensor, "batch time"]) -> Spans:
        """Compute positions and mask from document numbers; a run of equal numbers is one document."""
        time = torch.arange(documents.shape[1], device=documents.device)
        new = documents.diff(dim=1, prepend=documents[:, :1] - 1) != 0
        first = torch.where(new, time, 0).cummax(1).values
        same = first[:, :, None] == first[:, None, :]
        return cls(time - first, (same & (time[:, None] >= time))[:, None])


class Rotary(nn.Module):
    """Rotary positions (arXiv 2104.09864), half-split: element i turns with element i + head_dim / 2.

    Args:
        head_dim: width of a head, even.
        context: number of positions.
        theta: base of the frequencies.
    """

    cosine: Tensor
    sine: Tensor

    def __init__(self, head_dim: int, context: int, theta: float) -> None:
        super().__init__()
        frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        angles = torch.outer(torch.arange(context, dtype=torch.float64), frequencies)
        # Derived from the configuration, so not part of a checkpoint.
        self.register_buffer("cosine", angles.cos().float(), persistent=False)
        self.register_buffer("sine", angles.sin().float(), persistent=False)

    def forward(
        self, heads: Float[Tensor, "batch heads time head_dim"], at: int | Int[Tensor, "batch time"]
    ) -> Float[Tensor, "batch heads time head_dim"]:
        """Rotate queries or keys, given their positions or the position `at` of the first."""
        if isinstance(at, int):
            cosine, sine = (table[at : at + heads.shape[-2]] for table in (self.cosine, self.sine))
        else:
            cosine, sine = self.cosine[at][:, None], self.sine[at][:, None]
        cosine, sine = cosine.to(heads.dtype), sine.to(heads.dtype)
        first, second = heads.chunk(2, dim=-1)
        return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


class KeyValueCache:
    """Cache of the keys and values of all past tokens, for every layer.

    Args:
        config: the model's.
        batch: number of sequences.
        like: a tensor with the device and dtype for the cache.
    """

    def __init__(self, config: ModelConfig, batch: int, like: Tensor) -> None:
        shape = (config.num_layers, 2, batch, config.kv_heads, config.context, config.head_dim)
        self._store = like.new_zeros(shape)
        self.length = 0

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append a layer's new keys and values `[B, H, T, head_dim]` and return all of them so far.

        `advance` updates `length` once all layers have appended theirs.
        """
        end = self.length + keys.shape[-2]
        self._store[layer, 0, :, :, self.length : end] = keys
        self._store[layer, 1, :, :, self.length : end] = values
        return self._store[layer, 0, :, :, :end], self._store[layer, 1, :, :, :end]

    def advance(self, tokens: int) -> None:
        """Add `tokens` to `length` after all layers have appended that many."""
        self.length += tokens


class Attention(nn.Module):
    """Causal self-attention with grouped-query heads.

    Args:
        config: the model's.
        layer: this layer's index, for the cache.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads, self.kv_heads, self.head_dim = config.num_heads, config.kv_heads, config.head_dim
        width = (self.num_heads + 2 * self.kv_heads) * self.head_dim
        self.qkv = nn.Linear(config.dim, width, bias=config.qkv_bias)
        self.output = nn.Linear(self.num_heads * self.head_dim, config.dim, bias=False)
        norm = nn.RMSNorm if config.qk_norm else None
        self.query_norm = norm(self.head_dim, config.norm_epsilon) if norm else nn.Identity()
        self.key_norm = norm(self.head_dim, config.norm_epsilon) if norm else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "batch time dim"],
        rotary: Rotary,
        cache: KeyValueCache | None = None,
        spans: Spans | None = None,
    ) -> Float[Tensor, "batch time dim"]:
        """Attend from each position to itself and those before it in its document, cached ones too."""
        batch, time, _ = x.shape
        heads = self.qkv(x).view(batch, time, -1, self.head_dim).transpose(1, 2)
        queries = heads[:, : self.num_heads]
        keys = heads[:, self.num_heads : self.num_heads + self.kv_heads]
        values = heads[:, self.num_heads + self.kv_heads :]
        start = cache.length if cache else 0
        if isinstance(self.query_norm, nn.RMSNorm):
            # In the norms' own dtype: mixed dtypes under autocast cause a warning and are slow.
            dtype = self.query_norm.weight.dtype
            queries, keys = self.query_norm(queries.to(dtype)), self.key_norm(keys.to(dtype))
        at = start if spans is None else spans.positions
        queries, keys = rotary(queries, at), rotary(keys, at)
        if cache is not None:
            keys, values = cache.extend(self.layer, keys, values)
        groups = self.num_heads // self.kv_heads
        if groups > 1:
            keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)
        mask = None if spans is None else spans.mask
        if start and time > 1:
            # Query i has position start + i; torch's is_causal would align it with key i.
            mask = torch.ones(time, start + time, dtype=torch.bool, device=x.device).tril(start)
        causal = mask is None and start == 0
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=causal)
        return self.output(mixed.transpose(1, 2).reshape(batch, time, -1))  # type: ignore[no-any-return]
