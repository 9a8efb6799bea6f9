"""What training descends: the language-model loss and, apart from it, the losses on the routes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from expertise.errors import RecipeError
from expertise.lm.causal import CausalLM
from expertise.lm.model import LanguageModel
from expertise.lm.recipe import BalanceConfig
from expertise.mixture import balance, measures
from expertise.mixture.mixture import recording
from expertise.mixture.routes import Routes
from expertise.runs.loop import Losses
from expertise.shapes import Bool, Float, Int


def next_token_loss(
    model: CausalLM,
    tokens: Int[Tensor, "batch time"],
    targets: Int[Tensor, "batch time"],
    documents: Int[Tensor, "batch time"] | None = None,
    num_targets: float | None = None,
) -> Float[Tensor, ""]:
    """Mean negative log-likelihood of the targets, in nats per token; targets of -100 do not count.

    Args:
        model: the model.
        tokens: what goes in.
        targets: the token that follows each, -100 where it does not count.
        documents: the number of each token's document; None: a row is one text.
        num_targets: divide the sum by this instead of the number of targets that count, so that the means of
            micro-batches that hold more and fewer of them average to the mean of the whole batch.
    """
    logits = model(tokens, documents=documents).flatten(0, 1).float()
    if num_targets is None:
        return F.cross_entropy(logits, targets.flatten())
    return F.cross_entropy(logits, targets.flatten(), reduction="sum") / num_targets


def route_losses(
    layers: list[Routes],
    config: BalanceConfig,
    num_sequences: int,
    counted: Bool[Tensor, " tokens"] | None = None,
) -> tuple[Float[Tensor, ""] | None, dict[str, Float[Tensor, ""]]]:
    """The losses on the routes of all mixture layers.

    With `per = "batch"` the balance losses take their statistics over the tokens given here, one
    micro-batch; per sequence, entropy and z-loss are means of independent terms, so cutting a step into
    micro-batches changes them to rounding only.

    Args:
        layers: routes of each mixture layer; none for a dense model. Those without logits (hash routing) are
            left out: they learn nothing.
        config: the coefficients.
        num_sequences: sequences in the micro-batch.
        counted: tokens that are no padding; None: all.

    Returns:
        The weighted sum over losses and layers (None when every coefficient is 0), and each unweighted loss
        averaged over the layers, for the metrics.

    Raises:
        RecipeError: a coefficient is not 0 and no layer's routes carry logits.
    """
    layers = _with_probabilities(layers, config)
    if not layers:
        return None, {}
    expert = [_expert(routes, config, num_sequences, counted) for routes in layers]
    if counted is not None:
        layers = [routes.select(counted) for routes in layers]
    values = {
        "expert": torch.stack(expert),
        "entropy": torch.stack([balance.entropy(routes) for routes in layers]),
    }
    coefficients = config.coefficients()
    if config.device:
        losses = [balance.device_balance(r, equal_groups(r.num_parts, config.device_groups)) for r in layers]
        values["device"] = torch.stack(losses)
    if config.z:
        values["z"] = torch.stack([balance.z_loss(r) for r in layers])
    used = [coefficients[name] * losses.sum() for name, losses in values.items() if coefficients[name]]
    total = torch.stack(used).sum() if used else None
    return total, {name: losses.mean() for name, losses in values.items()}


def _expert(
    routes: Routes, config: BalanceConfig, num_sequences: int, counted: Tensor | None
) -> Float[Tensor, ""]:
    if counted is None:
        return balance.expert_balance(routes, num_sequences if config.per == "sequence" else 1)
    if config.per == "batch":
        return balance.expert_balance(routes.select(counted))
    # Sequences with padding are of different lengths: one after the other.
    rows = torch.arange(len(counted), device=counted.device) // (len(counted) // num_sequences)
    each = [routes.select(counted & (rows == row)) for row in range(num_sequences)]
    return torch.stack([balance.expert_balance(one) for one in each]).mean()


def _with_probabilities(layers: list[Routes], config: BalanceConfig) -> list[Routes]:
    learned = [routes for routes in layers if routes.logits is not None]
    asked = [name for name, value in config.coefficients().items() if value]
    if layers and not learned and asked:
        raise RecipeError(f"balance.{asked[0]} needs a router that learns probabilities")
    return learned


def equal_groups(num_parts: int, num_groups: int) -> list[list[int]]:
    """Consecutive parts in groups as equal as they can be, one per device."""
    if num_groups > num_parts:
        raise RecipeError(f"balance.device_groups ({num_groups}) is more than a layer's parts ({num_parts})")
    return [[int(part) for part in group] for group in torch.arange(num_parts).tensor_split(num_groups)]


def losses(
    model: LanguageModel,
    tokens: Int[Tensor, "batch time"],
    targets: Int[Tensor, "batch time"],
    config: BalanceConfig,
    detail: bool = False,
    observe: Callable[[list[Routes]], None] | None = None,
    documents: Int[Tensor, "batch time"] | None = None,
    num_targets: float | None = None,
) -> Losses:
    """All losses of one micro-batch.

    Args:
        model: the model.
        tokens: what goes in.
        targets: the token that follows each.
        config: coefficients of the losses on the routes.
        detail: also measure the loads of every part, and the largest bias of each layer where there is one.
        observe: told the routes of every mixture layer, without padding.
        documents: the number of each token's document, negative for padding, which no statistic counts.
        num_targets: what the language-model loss is divided by, as in `next_token_loss`.

    Returns:
        `reported["loss"]` is the language-model loss alone; the others stand under `balance_*`.
    """
    with recording(model) as mixtures:
        loss = next_token_loss(model, tokens, targets, documents, num_targets)
    layers = [mixture.last_routes for mixture in mixtures if mixture.last_routes is not None]
    for mixture in mixtures:
        mixture.last_routes = None
    counted = None if documents is None else (documents >= 0).flatten()
    extra, reported = route_losses(layers, config, tokens.shape[0], counted)
    if counted is not None:
        layers = [routes.select(counted) for routes in layers]
    if observe is not None:
        observe(layers)
    tables: dict[str, Tensor] = {}
    if detail and layers:
        with torch.no_grad():
            counts = [routes.parts_per_token().double().mean() for routes in layers]
            tables["parts_per_token"] = torch.stack(counts)
            # Layers may differ in their number of parts: one table each.
            tables |= {f"load_{i}": measures.load(routes) for i, routes in enumerate(layers)}
            biases = [getattr(mixture.router, "bias", None) for mixture in mixtures]
            if any(bias is not None for bias in biases):
                tables["largest_bias"] = torch.stack([b.abs().max() for b in biases if b is not None])
    return Losses(
        total=loss if extra is None else loss + extra,
        reported={"loss": loss, **{f"balance_{name}": value for name, value in reported.items()}},
        tables=tables,
    )
