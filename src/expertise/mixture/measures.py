"""Statistics of routes: loads, parts per token, specialisation, overlap. All pictures use these numbers."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from expertise.errors import RecipeError
from expertise.mixture.balance import token_entropy
from expertise.mixture.routes import Routes
from expertise.shapes import Float, Int


def load(routes: Routes) -> Float[Tensor, " parts"]:
    """Tokens that take each part, relative to the mean over parts: 1 everywhere is perfect balance.

    Unlike the f of the balance losses a token that takes n parts counts n times: this is the work that a
    part does.
    """
    counts = routes.chosen().sum(0).double()
    return counts / counts.mean().clamp(min=torch.finfo(torch.float64).tiny)


def parts_by_domain(
    routes: Routes, domains: Int[Tensor, " tokens"], num_domains: int
) -> Int[Tensor, "parts domains"]:
    """Count the tokens of each domain that take each part.

    Args:
        routes: of T tokens.
        domains: the domain of each token, 0 to num_domains - 1.
        num_domains: columns of the table.
    """
    chosen = routes.chosen().to(torch.float64)
    membership = torch.nn.functional.one_hot(domains, num_domains).to(torch.float64)
    return (chosen.T @ membership).round().to(torch.int64)


def mutual_information(table: Tensor) -> float:
    """Mutual information of rows and columns of a table of counts, in bits.

    0 when every part serves every domain alike; at most the entropy of the domains, when a part tells its
    token's domain.
    """
    joint = table.double()
    total = joint.sum()
    if total == 0:
        return 0.0
    joint = joint / total
    independent = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    terms = torch.where(joint > 0, joint * torch.log2(joint / independent), 0.0)
    return max(0.0, float(terms.nansum()))


def layer_overlap(first: Routes, second: Routes) -> Float[Tensor, "first_parts second_parts"]:
    """Jaccard overlap of the token sets of two layers' parts: |A and B| / |A or B|, 0 to 1.

    Args:
        first: routes of one layer.
        second: routes of another layer for the same tokens.
    """
    a, b = first.chosen().double(), second.chosen().double()
    both = a.T @ b
    either = a.sum(0)[:, None] + b.sum(0)[None, :] - both
    return torch.where(either > 0, both / either.clamp(min=1), 0.0)


@dataclasses.dataclass
class Usage:
    """Running totals of one layer's routes over many batches.

    Args:
        num_parts: E.
        num_domains: number of domains that tokens may come from.
        max_parts: the most parts that a token can take (M).
    """

    num_parts: int
    num_domains: int
    max_parts: int

    def __post_init__(self) -> None:
        self.by_domain = torch.zeros(self.num_parts, self.num_domains, dtype=torch.int64)
        """Tokens of each domain that took each part."""
        self.histogram = torch.zeros(self.num_domains, self.max_parts + 1, dtype=torch.int64)
        """Tokens of each domain that took 0, 1, …, M parts."""
        self.entropy_sum = 0.0

    def add(self, routes: Routes, domains: Int[Tensor, " tokens"]) -> None:
        """Count one batch; `domains` holds each token's domain, -1 for a token that does not count."""
        keep = domains >= 0
        counts = routes.parts_per_token()[keep].cpu()
        known = domains[keep].cpu()
        if routes.num_slots > self.max_parts and counts.numel() and int(counts.max()) > self.max_parts:
            raise RecipeError(f"a token took {int(counts.max())} parts, max_parts is {self.max_parts}")
        self.by_domain += parts_by_domain(routes.select(keep), known.to(keep.device), self.num_domains).cpu()
        flat = known * (self.max_parts + 1) + counts
        self.histogram += torch.bincount(flat, minlength=self.histogram.numel()).view_as(self.histogram)
        self.entropy_sum += float(token_entropy(routes)[keep].double().sum())

    @property
    def num_tokens(self) -> int:
        """Number of tokens counted so far."""
        return int(self.histogram.sum())

    def load(self) -> Float[Tensor, " parts"]:
        """Tokens per part, relative to the mean over parts."""
        counts = self.by_domain.sum(1).double()
        return counts / counts.mean().clamp(min=torch.finfo(torch.float64).tiny)

    def parts_per_token(self) -> float | None:
        """Mean number of parts that a token took; None if no token was counted."""
        return _mean_of_histogram(self.histogram.sum(0))

    def parts_per_token_by_domain(self) -> list[float | None]:
        """Mean number of parts per token of each domain; None for a domain without tokens."""
        return [_mean_of_histogram(row) for row in self.histogram]

    def mean_entropy(self) -> float | None:
        """Mean entropy of the affinities, in nats; None if no token was counted."""
        return self.entropy_sum / self.num_tokens if self.num_tokens else None


def _mean_of_histogram(histogram: Tensor) -> float | None:
    tokens = int(histogram.sum())
    return float((histogram * torch.arange(len(histogram))).sum()) / tokens if tokens else None
