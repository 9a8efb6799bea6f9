"""The training objective: the language-model loss and the auxiliary losses on the routes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from expertise.errors import RecipeError
from expertise.lm.causal import CausalLM
from expertise.lm.data import IGNORED
from expertise.lm.micro import StepCounts
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
    """Compute the mean negative log-likelihood of the targets, in nats per token; -100 is ignored.

    It is computed in float32 (in float64 for a model in float64); 0 if no target counts.

    Args:
        model: the model.
        tokens: input ids.
        targets: the next token of each, -100 where it is ignored.
        documents: the number of each token's document; None: a row is one text.
        num_targets: divide the sum by this instead of the number of targets that count, so that the means of
            micro-batches that hold more and fewer of them average to the mean of the whole batch.
    """
    logits = balance.exact(model(tokens, documents=documents).flatten(0, 1))
    divisor = (targets != IGNORED).sum().clamp(min=1) if num_targets is None else num_targets
    return F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="sum") / divisor


def route_losses(
    layers: list[Routes],
    config: BalanceConfig,
    num_sequences: int,
    counted: Bool[Tensor, " tokens"] | None = None,
    counts: StepCounts | None = None,
) -> tuple[Float[Tensor, ""] | None, dict[str, Float[Tensor, ""]]]:
    """Compute the auxiliary losses on the routes of all mixture layers.

    Entropy and z-loss are means over tokens; the balance losses with `per = "sequence"` are means over
    sequences. Divided by a step's counts, their mean over its micro-batches is that of the whole step, so
    cutting a step changes them to rounding only. With `per = "batch"` the balance losses take their
    statistics over the tokens given here, one micro-batch, which counts by its tokens within the step.

    Args:
        layers: routes of each mixture layer; empty for a dense model. Routes without logits (hash routing)
            are skipped: they learn nothing.
        config: the coefficients.
        num_sequences: sequences in the micro-batch.
        counted: mask of the tokens that are no padding; None: all. Sequences of padding alone do not count.
        counts: divisors of the sums over tokens and sequences; None: the counts of this micro-batch.

    Returns:
        The weighted sum over losses and layers (None when every coefficient is 0), and each unweighted loss
        averaged over the layers, for the metrics.

    Raises:
        RecipeError: a coefficient is not 0 and no layer's routes carry logits.
    """
    layers = _with_probabilities(layers, config)
    if not layers:
        return None, {}
    tokens = torch.ones_like(layers[0].affinities[:, 0], dtype=torch.bool) if counted is None else counted
    sequences = tokens.view(num_sequences, -1).any(1)
    num_tokens = tokens.sum().clamp(min=1) if counts is None else counts.tokens
    num_counted = sequences.sum().clamp(min=1) if counts is None else counts.sequences

    def over_tokens(losses: Tensor) -> Tensor:
        return torch.where(tokens, losses, 0.0).sum() / num_tokens

    def over_runs(losses: Tensor) -> Tensor:
        return losses.sum() / num_counted if config.per == "sequence" else losses[0] * share

    share = tokens.sum() / num_tokens
    runs = num_sequences if config.per == "sequence" else 1
    means = {
        "expert": [over_runs(balance.expert_balance_by_sequence(r, runs, counted)) for r in layers],
        "entropy": [over_tokens(balance.token_entropy(r)) for r in layers],
    }
    if config.device:
        groups = [equal_groups(r.num_parts, config.device_groups) for r in layers]
        means["device"] = [
            over_runs(balance.device_balance_by_sequence(r, of_layer, runs, counted))
            for r, of_layer in zip(layers, groups, strict=True)
        ]
    if config.z:
        means["z"] = [over_tokens(balance.token_z(r)) for r in layers]
    values = {name: torch.stack(each) for name, each in means.items()}
    coefficients = config.coefficients()
    used = [coefficients[name] * losses.sum() for name, losses in values.items() if coefficients[name]]
    total = torch.stack(used).sum() if used else None
    return total, {name: losses.mean() for name, losses in values.items()}


def _with_probabilities(layers: list[Routes], config: BalanceConfig) -> list[Routes]:
    learned = [routes for routes in layers if routes.logits is not None]
    asked = [name for name, value in config.coefficients().items() if value]
    if layers and not learned and asked:
        raise RecipeError(f"balance.{asked[0]} needs a router that learns probabilities")
    return learned


def equal_groups(num_parts: int, num_groups: int) -> list[list[int]]:
    """Divide consecutive parts into groups as equal as possible, one per device."""
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
    counts: StepCounts | None = None,
) -> Losses:
    """Compute all losses of one micro-batch.

    Args:
        model: the model.
        tokens: input ids.
        targets: the next token of each.
        config: coefficients of the losses on the routes.
        detail: also measure the loads of all parts and each layer's largest bias, if there is one.
        observe: called with the routes of every mixture layer, without padding.
        documents: the number of each token's document, negative for padding, which no statistic counts.
        counts: divisors of the losses of a step's micro-batches; None: this is the whole step, or
            every token of it counts and is a target.

    Returns:
        `reported["loss"]` is the language-model loss alone; the others stand under `balance_*`.
    """
    num_targets = None if counts is None else counts.targets
    with recording(model) as mixtures:
        loss = next_token_loss(model, tokens, targets, documents, num_targets)
    layers = [mixture.last_routes for mixture in mixtures if mixture.last_routes is not None]
    for mixture in mixtures:
        mixture.last_routes = None
    counted = None if documents is None else (documents >= 0).flatten()
    extra, reported = route_losses(layers, config, tokens.shape[0], counted, counts)
    if counted is not None:
        layers = [routes.select(counted) for routes in layers]
    if observe is not None:
        observe(layers)
    tables: dict[str, Tensor] = {}
    weights: dict[str, Tensor] = {}
    if detail and layers:
        with torch.no_grad():
            taken = [routes.parts_per_token().sum().double() for routes in layers]
            num_tokens = taken[0].new_tensor(layers[0].num_tokens)
            tables["parts_per_token"] = torch.stack(taken) / num_tokens.clamp(min=1)
            weights["parts_per_token"] = num_tokens
            for index, routes in enumerate(layers):
                # Layers may differ in their number of parts: one table each. A load is relative to what
                # this micro-batch's tokens take, so it weighs that much in the step.
                tables[f"load_{index}"] = measures.load(routes)
                weights[f"load_{index}"] = taken[index]
            biases = [getattr(mixture.router, "bias", None) for mixture in mixtures]
            if any(bias is not None for bias in biases):
                tables["largest_bias"] = torch.stack([b.abs().max() for b in biases if b is not None])
    return Losses(
        total=loss if extra is None else loss + extra,
        reported={"loss": loss, **{f"balance_{name}": value for name, value in reported.items()}},
        tables=tables,
        weights=weights,
    )
