"""Analysis of experts: the tokens and domains that each part takes, and the routes of a passage."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from expertise.lm.data import IGNORED
from expertise.lm.evaluate.perplexity import DomainText, passes
from expertise.lm.model import LanguageModel
from expertise.mixture.measures import Usage, mutual_information
from expertise.mixture.mixture import recording
from expertise.mixture.routes import Routes
from expertise.shapes import Float, Int


@dataclasses.dataclass(frozen=True)
class LayerAnalysis:
    """Counts of one mixture layer over all held-out text."""

    usage: Usage
    token_counts: Int[Tensor, "parts vocab"]
    """Number of times that each part took each input token."""

    def domain_share(self) -> Float[Tensor, "parts domains"]:
        """Return the share of each domain in the tokens that a part takes."""
        return _shares(self.usage.by_domain)

    def domain_prior(self) -> Float[Tensor, " domains"]:
        """Return the share of each domain in all (token, part) pairs."""
        return _shares(self.usage.by_domain.sum(0))

    def mutual_information(self) -> float:
        """Return the mutual information of part and domain, in bits."""
        return mutual_information(self.usage.by_domain)

    def favourite_tokens(self, part: int, number: int, least: int = 3) -> list[int]:
        """Return token ids that a part takes far more often than the whole layer does.

        Ranked by `count * log(share in the part / share in the layer)`, the token's term of the divergence
        between the two: frequent and over-represented ones come first. Rarer ones than `least` are left out.
        """
        counts = self.token_counts[part].double()
        lift = _shares(counts) / _shares(self.token_counts.sum(0)).clamp(min=1e-12)
        score = torch.where(counts >= least, counts * lift.clamp(min=1e-12).log(), 0.0)
        best = torch.sort(score, descending=True, stable=True)
        return [
            int(i) for value, i in zip(best.values[:number], best.indices[:number], strict=True) if value > 0
        ]


@dataclasses.dataclass(frozen=True)
class Passage:
    """Consecutive tokens of one domain's held-out text."""

    domain: str
    token_ids: list[int]
    routes: dict[int, Routes]
    """Mixture layer → routes of exactly these tokens."""


def analyse_layers(
    model: LanguageModel, texts: list[DomainText], batch_size: int, bfloat16: bool = False
) -> dict[int, LayerAnalysis]:
    """Count domains and tokens of every mixture layer and part over held-out text.

    Args:
        model: the model.
        texts: held-out windows.
        batch_size: windows at once.
        bfloat16: compute products in bfloat16.

    Returns:
        Layer → analysis; empty for a dense model.
    """
    layers: dict[int, LayerAnalysis] = {}
    vocab = model.config.vocab_size
    for index, text in enumerate(texts):
        for batch in passes(model, text, batch_size, bfloat16):
            counted = batch.targets.flatten() != IGNORED
            domains = torch.where(counted, index, -1)
            for layer, record in batch.routes.items():
                if layer not in layers:
                    usage = Usage(record.num_parts, len(texts), record.num_slots)
                    table = torch.zeros(record.num_parts, vocab, dtype=torch.int64)
                    layers[layer] = LayerAnalysis(usage, table)
                layers[layer].usage.add(record, domains)
                _count_tokens(layers[layer].token_counts, record, batch.tokens.flatten(), counted)
    return layers


def passage(model: LanguageModel, text: DomainText, num_tokens: int) -> Passage:
    """Route the first tokens of a domain's held-out text; return them with their routes in every layer."""
    start = opening(text, min(num_tokens, model.config.context))
    documents = None if start.documents is None else start.documents.to(model.device)
    with torch.inference_mode(), recording(model):
        model(start.tokens.to(model.device), documents=documents)
    routes = {
        layer: mixture.last_routes.detached()
        for layer, mixture in model.mixtures().items()
        if mixture.last_routes is not None
    }
    return Passage(text.domain, start.tokens[0].tolist(), routes)


@dataclasses.dataclass(frozen=True)
class Opening:
    """The first tokens of a domain's held-out text, as one row."""

    tokens: Int[Tensor, "1 time"]
    """Ids of the tokens."""
    documents: Int[Tensor, "1 time"] | None
    """The number of each token's document; None: attention crosses documents."""


def opening(text: DomainText, num_tokens: int) -> Opening:
    """Return at most `num_tokens` first tokens; of the first window if each document attends to itself."""
    windows = text.windows
    if windows.documents is None or not len(windows.documents):
        return Opening(windows.ids[None, :num_tokens], None)
    kept = windows.documents[0, :num_tokens]
    documents = kept[kept >= 0][None]
    return Opening(windows.tokens[:1, : documents.shape[1]], documents)


def _count_tokens(table: Tensor, routes: Routes, tokens: Tensor, counted: Tensor) -> None:
    used = routes.used() & counted[:, None]
    token, slot = used.nonzero(as_tuple=True)
    part = slot if routes.part_ids is None else routes.part_ids[token, slot]
    flat = part * table.shape[1] + tokens[token]
    table += torch.bincount(flat, minlength=table.numel()).view_as(table).cpu()


def _shares(counts: Tensor) -> Tensor:
    counts = counts.double()
    return counts / counts.sum(-1, keepdim=True).clamp(min=1)
