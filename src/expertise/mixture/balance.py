"""Balance losses as functions of `Routes`, without their coefficients.

The load of a part is counted per token: a token that takes n parts gives 1/n to each of them, so every token
counts once, however many parts it takes. For a fixed n = K' this is exactly the papers' count over K' T.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from expertise.errors import RecipeError
from expertise.mixture.routes import Routes
from expertise.shapes import Bool, Float


def relative_load(
    routes: Routes, num_sequences: int = 1, counted: Bool[Tensor, " tokens"] | None = None
) -> Float[Tensor, "sequences parts"]:
    """f_i: the load of each part, relative to the mean (DeepSeekMoE Eq. 13); 1 everywhere is balance.

    `f_i = N' / T * sum over tokens of [token takes i] / (number of parts that the token takes)`, which for a
    fixed number K' of parts is `N' / (K' T) * count_i`. Not differentiable.

    Args:
        routes: of T tokens.
        num_sequences: number of equal runs of consecutive tokens to count separately.
        counted: tokens that are no padding; None: all. A sequence without any has load 0.

    Raises:
        RecipeError: T is not a multiple of num_sequences.
    """
    shares = routes.chosen() / routes.parts_per_token().clamp(min=1)[:, None]
    shares = shares.to(exact(routes.affinities).dtype)
    return routes.num_parts * _mean_by_sequence(shares, num_sequences, counted)


def expert_balance(routes: Routes, num_sequences: int = 1) -> Float[Tensor, ""]:
    """Expert-level balance loss `sum_i f_i P_i` (DeepSeekMoE Eqs. 12-14; L_b of Dynamic MoE).

    P_i is the mean affinity to part i; the gradient flows through it alone. 1 at perfect balance.

    Args:
        routes: of T tokens.
        num_sequences: 1 takes the statistics over all tokens at once. B takes them over each of B sequences
            and averages the B losses (the released code's `seq_aux`). Only the second is the same whether a
            batch is computed at once or in micro-batches; the first sees one micro-batch at a time.
    """
    return expert_balance_by_sequence(routes, num_sequences).mean()


def expert_balance_by_sequence(
    routes: Routes, num_sequences: int = 1, counted: Bool[Tensor, " tokens"] | None = None
) -> Float[Tensor, " sequences"]:
    """The expert-level balance loss of each sequence; 0 for a sequence without a counted token.

    Args:
        routes: of T tokens.
        num_sequences: B, of T / B consecutive tokens each.
        counted: tokens that are no padding; None: all.
    """
    load = relative_load(routes, num_sequences, counted)
    return (load * _mean_by_sequence(exact(routes.affinities), num_sequences, counted)).sum(-1)


def device_balance(
    routes: Routes, groups: Sequence[Sequence[int]], num_sequences: int = 1
) -> Float[Tensor, ""]:
    """Device-level balance loss `sum_d f'_d P'_d` (DeepSeekMoE Eqs. 15-17); 1 at perfect balance.

    f'_d is the MEAN of f over a group's parts, P'_d the SUM of P over them.

    Args:
        routes: of T tokens.
        groups: part ids of each device; together every part once.
        num_sequences: over what the statistics are taken, as in `expert_balance`.

    Raises:
        RecipeError: the groups do not hold every part exactly once.
    """
    return device_balance_by_sequence(routes, groups, num_sequences).mean()


def device_balance_by_sequence(
    routes: Routes,
    groups: Sequence[Sequence[int]],
    num_sequences: int = 1,
    counted: Bool[Tensor, " tokens"] | None = None,
) -> Float[Tensor, " sequences"]:
    """The device-level balance loss of each sequence; 0 for a sequence without a counted token.

    Args:
        routes: of T tokens.
        groups: part ids of each device; together every part once.
        num_sequences: B, of T / B consecutive tokens each.
        counted: tokens that are no padding; None: all.

    Raises:
        RecipeError: the groups do not hold every part exactly once.
    """
    if not all(groups):
        raise RecipeError("a device group must not be empty")
    if sorted(part for group in groups for part in group) != list(range(routes.num_parts)):
        raise RecipeError(f"device groups must hold each of the {routes.num_parts} parts exactly once")
    load = relative_load(routes, num_sequences, counted)
    affinity = _mean_by_sequence(exact(routes.affinities), num_sequences, counted)
    terms = [load[:, list(group)].mean(-1) * affinity[:, list(group)].sum(-1) for group in groups]
    return torch.stack(terms).sum(0)


def entropy(routes: Routes) -> Float[Tensor, ""]:
    """Dynamic loss: mean over tokens of `- sum_i P_i log P_i`, in nats (L_d, Dynamic MoE §2.3).

    Small when affinities are peaked, so that few parts reach p. Between 0 and log E.
    """
    return token_entropy(routes).mean()


def token_entropy(routes: Routes) -> Float[Tensor, " tokens"]:
    """Entropy of each token's affinities, in nats; they must be probabilities."""
    result: Tensor = torch.special.entr(exact(routes.affinities)).sum(-1)
    return result


def z_loss(routes: Routes) -> Float[Tensor, ""]:
    """Router z-loss: mean over tokens of `(log sum_i exp logit_i)^2` (ST-MoE, arXiv 2202.08906, Eq. 5).

    Raises:
        RecipeError: the router keeps no logits.
    """
    return token_z(routes).mean()


def token_z(routes: Routes) -> Float[Tensor, " tokens"]:
    """The z-loss of each token.

    Raises:
        RecipeError: the router keeps no logits.
    """
    if routes.logits is None:
        raise RecipeError("the z-loss needs a router that scores by logits")
    return torch.logsumexp(exact(routes.logits), dim=-1).square()


def exact(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Convert to float32 at least: bfloat16 is too coarse for a loss, and float64 stays as it is."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _mean_by_sequence(
    table: Float[Tensor, "tokens parts"], num_sequences: int, counted: Bool[Tensor, " tokens"] | None
) -> Float[Tensor, "sequences parts"]:
    """The mean over the counted tokens of each sequence; 0 where a sequence has none."""
    tokens = table.shape[0]
    if num_sequences < 1 or tokens % num_sequences:
        raise RecipeError(f"{tokens} tokens cannot be cut into {num_sequences} equal sequences")
    rows = table.view(num_sequences, tokens // num_sequences, table.shape[1])
    if counted is None:
        return rows.mean(1)
    mask = counted.view(num_sequences, -1, 1)
    return torch.where(mask, rows, 0.0).sum(1) / mask.sum(1).clamp(min=1)
