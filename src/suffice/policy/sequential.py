"""Sequential tests on votes: is the leader ahead of the runner-up, and is it the most frequent answer?

They test the mode of the answers, not its correctness. `learn.models.learn_prior` fits the shapes of `bayes`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import comb, factorial, inf, log, nan, sqrt
from typing import Annotated, ClassVar, Final, NamedTuple, TypeAlias

import numpy as np

from suffice.arrays import Floats
from suffice.policy.columns import BUDGET, SUFFICES, Columns, Stops, answered, by_counts, known_column, where
from suffice.policy.parameters import Length, ParameterChecks, ParameterRange
from suffice.policy.protocol import go_on, stop_at_budget, suffices
from suffice.types import Decision, Signals

_ERROR: Final = ParameterRange(0.0, 1.0, low_open=True)
_NODES: Final = 256  # of the quadrature over the prior


class _RatioTest(ParameterChecks):
    __slots__ = ()
    needs: ClassVar[tuple[str, ...]] = ("votes",)
    alpha: float
    beta: float

    def log_ratio(self, top_votes: float, second_votes: float) -> float:
        """The log-likelihood ratio of "the leader leads" against "the two are alike"."""
        raise NotImplementedError

    def decide(self, s: Signals) -> Decision:
        if s.answer is None or not s.top_votes or s.second_votes is None:
            return go_on("no votes yet")
        ratio, (leads, alike) = self.log_ratio(s.top_votes, s.second_votes), self._boundaries()
        votes = f"with {s.top_votes} against {s.second_votes} votes"
        if ratio >= leads:
            return suffices(f"log-likelihood ratio {ratio:.5f} >= {leads:.5f}, {votes}", ratio)
        if ratio <= alike:
            return stop_at_budget(f"log-likelihood ratio {ratio:.5f}: the two leaders are alike, {votes}", ratio)
        return go_on(f"log-likelihood ratio {ratio:.5f} < {leads:.5f}, {votes}", ratio)

    def stops(self, columns: Columns) -> Stops:
        top, second = known_column(columns, "top_votes"), known_column(columns, "second_votes")
        ratio = by_counts(answered(columns) & (top > 0) & ~np.isnan(second), (top, second), self.log_ratio)
        leads, alike = self._boundaries()
        return np.select([ratio >= leads, ratio <= alike], [SUFFICES, BUDGET], 0).astype(np.int8)

    def _boundaries(self) -> tuple[float, float]:
        leads = log((1 - self.beta) / self.alpha) if self.beta < 1 else -inf
        alike = log(self.beta / (1 - self.alpha)) if self.alpha < 1 else inf
        return leads, alike


@dataclass(frozen=True, slots=True)
class Sprt(_RatioTest):
    """Stop when a sequential test tells the leader from the runner-up, or finds them alike (`stop_reason` is `budget`).

    ConSol (Lee et al. 2025, arXiv:2503.17587): Wald's test of p = p1 against p = 1/2 on the votes of the two leading
    answers, log-likelihood ratio v1 ln(2 p1) + v2 ln(2 (1 - p1)). At or above ln((1 - beta) / alpha) the leader leads;
    at or below ln(beta / (1 - alpha)) the two are alike and more samples are not worth their price. With the published
    constants the first takes a lead of three votes, the second more than a thousand.
    """

    name: ClassVar[str] = "sprt"
    source: ClassVar[str] = "ConSol, Lee et al. 2025, [arXiv:2503.17587](https://arxiv.org/abs/2503.17587)"
    p1: Annotated[float, ParameterRange(0.5, 0.999, low_open=True)] = 0.5001  # the leader's share if it leads
    alpha: Annotated[float, _ERROR] = 0.05  # chance of deciding for a leader when the two are alike
    beta: Annotated[float, _ERROR] = 0.949976  # chance of the opposite error

    def log_ratio(self, top_votes: float, second_votes: float) -> float:
        return top_votes * log(self.p1 / 0.5) + second_votes * log((1 - self.p1) / 0.5)


@dataclass(frozen=True, slots=True)
class MixtureSprt(_RatioTest):
    """Stop when the test of `sprt` decides under a prior over the leader's share.

    ConSol's mSPRT (Lee et al. 2025, arXiv:2503.17587): if the leader leads, p ~ Beta(prior_top, prior_second) truncated
    to p > 1/2. The mean likelihood ratio over that prior is computed by Gauss-Legendre quadrature.
    """

    name: ClassVar[str] = "msprt"
    source: ClassVar[str] = "ConSol's mSPRT, [arXiv:2503.17587](https://arxiv.org/abs/2503.17587)"
    prior_top: Annotated[float, ParameterRange(0.5, 1e9)] = 1e6  # first parameter of the Beta prior
    prior_second: Annotated[float, ParameterRange(0.5, 1e9)] = 1e6  # second one
    alpha: Annotated[float, _ERROR] = 0.05  # as above
    beta: Annotated[float, _ERROR] = 0.94994  # as above

    def log_ratio(self, top_votes: float, second_votes: float) -> float:
        return log_mean_ratio(int(top_votes), int(second_votes), self.prior_top, self.prior_second)


@lru_cache(maxsize=65_536)
def log_mean_ratio(top_votes: int, second_votes: int, prior_top: float, prior_second: float) -> float:
    """ln of the mean of (2p)^top (2(1 - p))^second over p ~ Beta(prior_top, prior_second) above 1/2.

    Votes at least 0, prior parameters at least 0.5. Accurate to about 1e-9 for some hundred votes.
    """
    log_leader, log_other, weights = _nodes(prior_top, prior_second)
    ratios = top_votes * log_leader + second_votes * log_other
    largest = float(ratios.max())
    return largest + log(float(weights @ np.exp(ratios - largest)))


@lru_cache(maxsize=256)
def _nodes(prior_top: float, prior_second: float) -> tuple[Floats, Floats, Floats]:
    """ln 2p, ln 2(1 - p) and weights with sum 1, at quadrature nodes p within 12 standard deviations of the mean."""
    total = prior_top + prior_second
    mean, spread = prior_top / total, sqrt(prior_top * prior_second / (total * total * (total + 1)))
    low, high = max(0.5, mean - 12 * spread), min(1.0, max(mean, 0.5) + 12 * spread)
    points, weights = np.polynomial.legendre.leggauss(_NODES)
    share = low + (high - low) * (points + 1) / 2
    density = (prior_top - 1) * np.log(2 * share) + (prior_second - 1) * np.log(2 * (1 - share))
    weights = weights * np.exp(density - density.max())
    return np.log(2 * share), np.log(2 * (1 - share)), weights / weights.sum()


Shapes: TypeAlias = tuple[tuple[float, ...], ...]
Prior: TypeAlias = Annotated[Shapes, ParameterRange(0.0, 1.0, low_open=True), Length(1, 64), Length(1, 32)]
_MOST_VOTES: Final = 150  # beyond, floats overflow and the run continues


@dataclass(frozen=True, slots=True)
class BayesVote(ParameterChecks):
    """Stop when the leader is probably the model's most frequent answer, given how answers spread on this traffic.

    Huang, Ma, Zhou (2026), ICML, arXiv:2602.05395: the posterior that the leader is the mode, given the votes of the
    leader, of the runner-up and of all others together ("L-aggregated", L = 3), under a prior over the probabilities of
    a question's answers. The prior is a mixture of `shapes`: the probabilities of the answers, times the weight of the
    shape; all numbers together are scaled to 1.
    """

    name: ClassVar[str] = "bayes"
    source: ClassVar[str] = "Huang, Ma, Zhou 2026, [arXiv:2602.05395](https://arxiv.org/abs/2602.05395)"
    needs_note: ClassVar[str] = "`votes`"
    shapes: Prior  # probabilities of a question's answers, times the weight of the shape
    threshold: Annotated[float, ParameterRange(0.0, 1.0, low_open=True)] = 0.95  # on P(the leader is the mode)
    min_samples: Annotated[int, ParameterRange(1, 1_000_000)] = 2  # samples that gave an answer, at least 1

    needs: ClassVar[tuple[str, ...]] = ("votes",)

    def decide(self, s: Signals) -> Decision:
        if s.answer is None or not s.n_votes or not s.top_votes or s.second_votes is None or s.third_votes is None:
            return go_on("no votes yet")
        if s.n_votes < self.min_samples:
            return go_on(f"{s.n_votes} of at least {self.min_samples} votes are in")
        posterior = p_mode(self.shapes, s.top_votes, s.second_votes, s.third_votes)
        votes = f"with {s.top_votes}, {s.second_votes} and {s.third_votes} votes"
        if posterior >= self.threshold:
            return suffices(f"P(leader is the mode) {posterior:.4f} >= {self.threshold:g}, {votes}", posterior)
        if posterior == posterior:  # noqa: PLR0124 - NaN: these votes cannot occur under the prior
            return go_on(f"P(leader is the mode) {posterior:.4f} < {self.threshold:g}, {votes}", posterior)
        return go_on(f"no question {votes} occurs under the learned prior")

    def stops(self, columns: Columns) -> Stops:
        counts = tuple(known_column(columns, f"{name}_votes") for name in ("top", "second", "third"))
        voted = answered(columns) & (known_column(columns, "n_votes") >= self.min_samples) & (counts[0] > 0)
        voted &= ~np.isnan(counts[1]) & ~np.isnan(counts[2])
        posterior = by_counts(voted, counts, lambda *votes: p_mode(self.shapes, *votes))
        return where(posterior >= self.threshold, SUFFICES)


@lru_cache(maxsize=262_144)
def p_mode(shapes: Shapes, top_votes: int, second_votes: int, third_votes: int) -> float:
    """P(the leading answer is the most frequent one), given three counts and a prior.

    Section 3 and Algorithm 2 of arXiv:2602.05395. For one shape p_1 >= p_2 >= …, with n1, n2 the two largest counts and
    r votes for others: the probability that answer i leads is proportional to

        p_i^n1 · sum over j ≠ i of p_j^n2 · r! · [z^r] prod over k ≠ i, j of sum over t <= n2 of (p_k z)^t / t!

    where a product in which m of the others also have n2 votes counts 1 / C(c + m, c), c = 2 if n1 = n2 and else 1,
    because each of the tied could be the runner-up. The posterior is the share of i = 1; with several shapes,
    numerators and denominators are summed first.

    shapes       probabilities in any order, times the weight of their shape
    third_votes  of all answers behind the two leaders

    Return NaN if such votes cannot occur under any shape, if the counts contradict each other, and above 150 votes.
    """
    n_votes = top_votes + second_votes + third_votes
    if not 0 < n_votes <= _MOST_VOTES or second_votes > top_votes or (third_votes and not second_votes):
        return nan
    prior = _prior(shapes)
    first, any_answer = _weights(prior.probabilities, top_votes, second_votes, third_votes)
    log_weight = prior.log_weight + n_votes * prior.log_largest
    weight = np.exp(log_weight - log_weight.max())
    whole = float(any_answer @ weight)
    return float(first @ weight) / whole if whole > 0 else nan


class _Prior(NamedTuple):
    """The shapes as arrays, each scaled so that its largest probability is 1, which avoids underflow."""

    probabilities: Floats  # descending, over the largest, shape (n shapes, n answers)
    log_largest: Floats  # of the largest probability, shape (n shapes,)
    log_weight: Floats  # of the shape, shape (n shapes,)


@lru_cache(maxsize=64)
def _prior(shapes: Shapes) -> _Prior:
    n_answers = max(len(shape) for shape in shapes)
    given = np.array([sorted(shape, reverse=True) + [0.0] * (n_answers - len(shape)) for shape in shapes])
    weight, largest = given.sum(axis=1), given[:, 0]
    return _Prior(given / largest[:, None], np.log(largest / weight), np.log(weight))


def _weights(probabilities: Floats, top_votes: int, second_votes: int, third_votes: int) -> tuple[Floats, Floats]:
    """For each shape, the weights of "answer 1 leads" and of "some answer leads", up to a common factor."""
    if not second_votes:  # only one answer
        powers = probabilities**top_votes
        return powers[:, 0], powers.sum(axis=1)
    most_ties = third_votes // second_votes
    shape = (len(probabilities), 2, 2, most_ties + 1, third_votes + 1)
    nobody, first_leads = np.zeros(shape), np.zeros(shape)
    nobody[:, 0, 0, 0, 0] = 1.0
    first_leads[:, 1, 0, 0, 0] = probabilities[:, 0] ** top_votes
    tied = 2 if top_votes == second_votes else 1
    shares = np.array([1.0 / comb(tied + ties, tied) for ties in range(most_ties + 1)])
    some = _assign_votes(nobody, probabilities, top_votes, second_votes)
    first = _assign_votes(first_leads, probabilities[:, 1:], top_votes, second_votes)
    return first[:, 1, 1, :, third_votes] @ shares, some[:, 1, 1, :, third_votes] @ shares


def _assign_votes(state: Floats, probabilities: Floats, top_votes: int, second_votes: int) -> Floats:
    """Let each answer in turn lead, come second, or take 0 to `second_votes` of the other votes.

    state  weights, shape (n shapes, leader placed, runner-up placed, ties with it, other votes placed)
    """
    third_votes = state.shape[-1] - 1
    for at in range(probabilities.shape[1]):
        p = probabilities[:, at].reshape(-1, 1, 1, 1)
        after = state.copy()  # the answer got no vote
        for votes in range(1, min(second_votes - 1, third_votes) + 1):
            after[..., votes:] += state[..., :-votes] * (p**votes / factorial(votes))[..., None]
        if second_votes <= third_votes:
            tie = (p**second_votes / factorial(second_votes))[..., None]
            after[..., 1:, second_votes:] += state[..., :-1, :-second_votes] * tie
        after[:, 1] += state[:, 0] * p**top_votes
        after[:, :, 1] += state[:, :, 0] * p**second_votes
        state = after
    return state
