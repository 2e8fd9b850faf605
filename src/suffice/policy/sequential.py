"""Sequential tests on the vote: is the leader ahead of the runner-up, or are the two alike?

They know the two largest counts and refuse to know the others. They test the mode of the answers, not
their truth.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import inf, log, sqrt
from typing import Annotated, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from suffice.policy.columns import BUDGET, SUFFICES, Columns, Stops, answered, by_counts, known_column
from suffice.policy.decisions import go_on, stop_at_budget, suffices
from suffice.policy.parameters import ParameterChecks, ParameterRange, Reference
from suffice.types import Decision, Signals

_ERROR: Final = ParameterRange(0.0, 1.0, low_open=True)
_NODES: Final = 256  # of the quadrature over the prior


@dataclass(frozen=True, slots=True)
class Sprt(ParameterChecks):
    """Stop sampling once a sequential probability ratio test tells the leader from the runner-up.

    ConSol (Lee et al. 2025, arXiv:2503.17587): Wald's test of p = p1 against p = 1/2 on the votes of the
    two leading answers, log-likelihood ratio v1 ln(2 p1) + v2 ln(2 (1 - p1)). At or above ln((1 - beta) / alpha)
    the leader leads; at or below ln(beta / (1 - alpha)) the two are alike, and more samples are not worth
    their price: that stop is called "budget". With the published constants the first means a lead of three votes,
    and the second needs more than a thousand.
    """

    name: ClassVar[str] = "sprt"
    reference: ClassVar[Reference] = Reference(
        stops_when=(
            "a sequential test tells the leader from the runner-up; or finds them alike (`stop_reason` "
            "is then `budget`)"
        ),
        source="ConSol, Lee et al. 2025, [arXiv:2503.17587](https://arxiv.org/abs/2503.17587)",
        parameters={
            "p1": "the leader's share if it leads",
            "alpha": "chance of calling alike answers different",
            "beta": "chance of the reverse",
        },
    )
    p1: Annotated[float, ParameterRange(0.5, 0.999, low_open=True)] = 0.5001  # the leader's share if it leads
    alpha: Annotated[float, _ERROR] = 0.05  # P(leads is said | alike)
    beta: Annotated[float, _ERROR] = 0.949976  # P(alike is said | leads); 1 - alpha - 0.000024

    @property
    def needs(self) -> tuple[str, ...]:
        return ("votes",)

    def decide(self, s: Signals) -> Decision:
        if s.answer is None or not s.top_votes or s.second_votes is None:
            return go_on("nobody has voted yet")
        ratio = s.top_votes * log(self.p1 / 0.5) + s.second_votes * log((1 - self.p1) / 0.5)
        return _verdict(ratio, self.alpha, self.beta, s.top_votes, s.second_votes)

    def stops(self, columns: Columns) -> Stops:
        top, second = known_column(columns, "top_votes"), known_column(columns, "second_votes")
        ratio = top * log(self.p1 / 0.5) + second * log((1 - self.p1) / 0.5)
        return _codes(np.where(answered(columns) & (top > 0), ratio, np.nan), self.alpha, self.beta)


@dataclass(frozen=True, slots=True)
class MixtureSprt(ParameterChecks):
    """The same test with a prior over the leader's share instead of one value.

    ConSol's mSPRT (Lee et al. 2025, arXiv:2503.17587): under "leads", p ~ Beta(prior_top, prior_second) cut to
    above 1/2. The mean likelihood ratio over that prior is taken by Gauss-Legendre quadrature.
    """

    name: ClassVar[str] = "msprt"
    reference: ClassVar[Reference] = Reference(
        stops_when="the same test with a prior over the leader's share",
        source="ConSol's mSPRT, [arXiv:2503.17587](https://arxiv.org/abs/2503.17587)",
        parameters={
            "prior_top": "first parameter of the Beta prior",
            "prior_second": "second one",
            "alpha": "as above",
            "beta": "as above",
        },
    )
    prior_top: Annotated[float, ParameterRange(0.5, 1e9)] = 1e6
    prior_second: Annotated[float, ParameterRange(0.5, 1e9)] = 1e6
    alpha: Annotated[float, _ERROR] = 0.05  # P(leads is said | alike)
    beta: Annotated[float, _ERROR] = 0.94994  # P(alike is said | leads); 1 - alpha - 0.00006

    @property
    def needs(self) -> tuple[str, ...]:
        return ("votes",)

    def decide(self, s: Signals) -> Decision:
        if s.answer is None or not s.top_votes or s.second_votes is None:
            return go_on("nobody has voted yet")
        ratio = log_mean_ratio(s.top_votes, s.second_votes, self.prior_top, self.prior_second)
        return _verdict(ratio, self.alpha, self.beta, s.top_votes, s.second_votes)

    def stops(self, columns: Columns) -> Stops:
        top, second = known_column(columns, "top_votes"), known_column(columns, "second_votes")
        voted = answered(columns) & (top > 0) & ~np.isnan(second)
        prior = self.prior_top, self.prior_second
        ratio = by_counts(voted, (top, second), lambda first, other: log_mean_ratio(first, other, *prior))
        return _codes(ratio, self.alpha, self.beta)


@lru_cache(maxsize=65_536)
def log_mean_ratio(top_votes: int, second_votes: int, prior_top: float, prior_second: float) -> float:
    """ln of the mean of (2p)^top (2(1 - p))^second over p ~ Beta(prior_top, prior_second) above 1/2.

    Votes at least 0, prior parameters at least 0.5. Exact to about 1e-9 for some hundred votes.
    """
    log_leader, log_other, weights = _nodes(prior_top, prior_second)
    ratios = top_votes * log_leader + second_votes * log_other
    largest = float(ratios.max())
    return largest + log(float(weights @ np.exp(ratios - largest)))


@lru_cache(maxsize=256)
def _nodes(
    prior_top: float, prior_second: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Ln 2p, ln 2(1 - p) and weights, which sum to 1, at the quadrature's nodes p.

    The nodes cover (1/2, 1), or as much of it as holds the prior: twelve standard deviations around its mean.
    """
    total = prior_top + prior_second
    mean, spread = prior_top / total, sqrt(prior_top * prior_second / (total * total * (total + 1)))
    low, high = max(0.5, mean - 12 * spread), min(1.0, max(mean, 0.5) + 12 * spread)
    points, weights = _legendre()
    share = low + (high - low) * (points + 1) / 2
    density = (prior_top - 1) * np.log(2 * share) + (prior_second - 1) * np.log(2 * (1 - share))
    weights = weights * np.exp(density - density.max())
    return np.log(2 * share), np.log(2 * (1 - share)), weights / weights.sum()


@lru_cache(maxsize=1)
def _legendre() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.polynomial.legendre.leggauss(_NODES)


def _verdict(ratio: float, alpha: float, beta: float, top_votes: float, second_votes: float) -> Decision:
    """What the test says of a log-likelihood ratio."""
    leads, alike = _boundaries(alpha, beta)
    votes = f"with {top_votes} against {second_votes} votes"
    if ratio >= leads:
        return suffices(f"log-likelihood ratio {ratio:.5f} >= {leads:.5f}, {votes}", ratio)
    if ratio <= alike:
        return stop_at_budget(f"log-likelihood ratio {ratio:.5f}: the two leaders are alike, {votes}", ratio)
    return go_on(f"log-likelihood ratio {ratio:.5f} < {leads:.5f}, {votes}", ratio)


def _codes(ratio: NDArray[np.float64], alpha: float, beta: float) -> Stops:
    leads, alike = _boundaries(alpha, beta)
    return np.select([ratio >= leads, ratio <= alike], [SUFFICES, BUDGET], 0).astype(np.int8)


def _boundaries(alpha: float, beta: float) -> tuple[float, float]:
    """Wald's two boundaries of the log-likelihood ratio: the leader leads above, the two are alike below."""
    leads = log((1 - beta) / alpha) if beta < 1 else -inf
    alike = log(beta / (1 - alpha)) if alpha < 1 else inf
    return leads, alike
