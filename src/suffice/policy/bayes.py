"""The Bayesian stop on three counts, with what traffic has taught about how answers spread.

Knows the leader's votes, the runner-up's and the rest, and shapes of answer distributions; refuses to know
which answer is which. `learn.models` fits the shapes on recorded votes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import comb, factorial, nan
from typing import Annotated, ClassVar, Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from suffice.policy.columns import SUFFICES, Columns, Stops, answered, by_counts, known_column, where
from suffice.policy.decisions import go_on, suffices
from suffice.policy.parameters import Length, ParameterChecks, ParameterRange, Reference
from suffice.types import Decision, Signals

Shapes: TypeAlias = tuple[tuple[float, ...], ...]
Floats: TypeAlias = NDArray[np.float64]
_MOST_VOTES: Final = 150  # beyond, numbers leave the range of a float; a run of so many votes goes on


@dataclass(frozen=True, slots=True)
class BayesVote(ParameterChecks):
    """Stop sampling once the leader is the model's most frequent answer with enough probability.

    Huang, Ma, Zhou (2026), ICML, arXiv:2602.05395: the posterior that the leader is the mode, given the votes
    of the leader, of the runner-up and of all others together ("L-aggregated", L = 3), under a prior over how
    probable the most frequent, the second, … answer of a question is. The prior is a mixture of `shapes`:
    the probabilities of the answers, times the weight of the shape; all numbers together are scaled to 1.
    """

    name: ClassVar[str] = "bayes"
    reference: ClassVar[Reference] = Reference(
        stops_when=(
            "the leader is the model's most frequent answer with enough probability, given three counts "
            "and how answers spread on this traffic"
        ),
        needs="`votes`",
        source="Huang, Ma, Zhou 2026, [arXiv:2602.05395](https://arxiv.org/abs/2602.05395)",
        parameters={
            "shapes": "probabilities of a question's answers, times the weight of the shape",
            "threshold": "on P(the leader is the mode)",
            "min_samples": "samples that gave an answer, at least 1",
        },
    )
    shapes: Annotated[
        Shapes, ParameterRange(0.0, 1.0, low_open=True), Length(1, 64), Length(1, 32)
    ]  # from `learn.models`
    threshold: Annotated[float, ParameterRange(0.0, 1.0, low_open=True)] = 0.95  # on P(the leader is the mode)
    min_samples: Annotated[int, ParameterRange(1, 1_000_000)] = 2  # that gave an answer

    @property
    def needs(self) -> tuple[str, ...]:
        return ("votes",)

    def decide(self, s: Signals) -> Decision:
        if s.answer is None or not s.n_votes or not s.top_votes or s.second_votes is None or s.third_votes is None:
            return go_on("nobody has voted yet")
        if s.n_votes < self.min_samples:
            return go_on(f"{s.n_votes} of at least {self.min_samples} votes are in")
        posterior = p_mode(self.shapes, s.top_votes, s.second_votes, s.third_votes)
        votes = f"with {s.top_votes}, {s.second_votes} and {s.third_votes} votes"
        if posterior >= self.threshold:
            return suffices(f"P(leader is the mode) {posterior:.4f} >= {self.threshold:g}, {votes}", posterior)
        if posterior == posterior:  # noqa: PLR0124 - not a number: these votes cannot occur under the prior
            return go_on(f"P(leader is the mode) {posterior:.4f} < {self.threshold:g}, {votes}", posterior)
        return go_on(f"the learned prior knows no question {votes}")

    def stops(self, columns: Columns) -> Stops:
        counts = tuple(known_column(columns, f"{name}_votes") for name in ("top", "second", "third"))
        voted = answered(columns) & (known_column(columns, "n_votes") >= self.min_samples) & (counts[0] > 0)
        voted &= ~np.isnan(counts[1]) & ~np.isnan(counts[2])
        posterior = by_counts(voted, counts, lambda *votes: p_mode(self.shapes, *votes))
        return where(posterior >= self.threshold, SUFFICES)


@lru_cache(maxsize=262_144)
def p_mode(shapes: Shapes, top_votes: int, second_votes: int, third_votes: int) -> float:
    """P(the leading answer is the most frequent one), given three counts and a prior.

    Section 3 and Algorithm 2 of arXiv:2602.05395. For one shape p_1 >= p_2 >= …, with n1, n2 the two largest
    counts and r votes for others: the probability that answer i leads is proportional to

        p_i^n1 · sum over j ≠ i of p_j^n2 · r! · [z^r] prod over k ≠ i, j of sum over t <= n2 of (p_k z)^t / t!

    where a product in which m of the others also have n2 votes counts 1 / C(c + m, c), c = 2 if n1 = n2 and else
    1, because each of the tied could stand for the runner-up. The posterior is the share of i = 1; with several
    shapes, numerators and denominators are summed first.

    shapes       probabilities in any order, times the weight of their shape
    third_votes  of all answers behind the two leaders
    Returns a number in [0, 1]; not a number where such votes cannot occur under any shape, where the three counts
    contradict each other, and for more than 150 votes.
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
    """The shapes as arrays, each scaled so that its largest probability is 1: then little underflows."""

    probabilities: Floats  # falling, over the largest, shape (n shapes, n answers)
    log_largest: Floats  # of the largest probability, shape (n shapes,)
    log_weight: Floats  # of the shape, shape (n shapes,)


@lru_cache(maxsize=64)
def _prior(shapes: Shapes) -> _Prior:
    n_answers = max(len(shape) for shape in shapes)
    given = np.array([sorted(shape, reverse=True) + [0.0] * (n_answers - len(shape)) for shape in shapes])
    weight, largest = given.sum(axis=1), given[:, 0]
    return _Prior(given / largest[:, None], np.log(largest / weight), np.log(weight))


def _weights(probabilities: Floats, top_votes: int, second_votes: int, third_votes: int) -> tuple[Floats, Floats]:
    """For each shape, the weight of "answer 1 leads" and that of "some answer leads", up to a common factor."""
    if not second_votes:  # one answer only: nothing else is to be placed
        powers = probabilities**top_votes
        return powers[:, 0], powers.sum(axis=1)
    most_ties = third_votes // second_votes
    shape = (len(probabilities), 2, 2, most_ties + 1, third_votes + 1)
    nobody, first_leads = np.zeros(shape), np.zeros(shape)
    nobody[:, 0, 0, 0, 0] = 1.0
    first_leads[:, 1, 0, 0, 0] = probabilities[:, 0] ** top_votes
    tied = 2 if top_votes == second_votes else 1
    shares = np.array([1.0 / comb(tied + ties, tied) for ties in range(most_ties + 1)])
    some = _place(nobody, probabilities, top_votes, second_votes)
    first = _place(first_leads, probabilities[:, 1:], top_votes, second_votes)
    return first[:, 1, 1, :, third_votes] @ shares, some[:, 1, 1, :, third_votes] @ shares


def _place(state: Floats, probabilities: Floats, top_votes: int, second_votes: int) -> Floats:
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
