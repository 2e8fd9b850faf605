"""Folds on the answers: `votes`, `vote-trend` and `stability`.

Ties go to the answer seen first, and no answer does not vote. The certificate here is for "this is the mode", never
for "this is correct". A step without an answer breaks the streak, but neither counts as a change nor hides one:
A, none, B is one change, A, none, A is none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import ClassVar

from suffice.signals.fold import Fields, SignalField, parse_parameter
from suffice.types import Step


class Votes:
    """Count one vote for each step's answer."""

    name = "votes"
    looks_at = "the answers of all steps so far; no answer does not vote, ties go to the answer seen first"
    source = (
        "Beta posterior: Adaptive-Consistency, Aggarwal et al. 2023, "
        "[arXiv:2305.11860](https://arxiv.org/abs/2305.11860); three counts: "
        "[arXiv:2602.05395](https://arxiv.org/abs/2602.05395)"
    )
    fields: ClassVar[Fields] = {
        "n_votes": SignalField("steps that gave an answer", whole=True),
        "top_votes": SignalField("votes of the leading answer", whole=True),
        "second_votes": SignalField("votes of the runner-up", whole=True),
        "third_votes": SignalField("votes of all answers behind these two", whole=True),
        "p_majority": SignalField(
            "P(the leader beats the runner-up in the limit): p > 1/2 for p ~ Beta(v1 + 1, v2 + 1)",
            unknown="nobody voted",
            high=1.0,
        ),
        "agreement": SignalField("votes of the leader over steps so far", unknown="before the first step", high=1.0),
        "vote_entropy": SignalField("entropy of the shares of the answers, in nats", unknown="nobody voted"),
    }

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}  # in the order in which answers were first seen
        self._first_step: dict[str, int] = {}  # index of the step that gave the answer first
        self._n_steps = 0
        self._n_votes = 0
        self._top_votes = 0
        self._second_votes = 0
        self._leader: str | None = None
        self._weighted = 0.0  # sum over the answers of votes · ln(votes)

    def update(self, step: Step) -> None:
        self._n_steps += 1
        answer = step.answer
        if answer is None:
            return
        self._n_votes += 1
        votes = self._counts.get(answer, 0) + 1
        self._counts[answer] = votes
        if votes == 1:
            self._first_step[answer] = step.index
        else:
            self._weighted += votes * math.log(votes) - (votes - 1) * math.log(votes - 1)
        leader = self._leader
        if leader is None or answer == leader:
            self._leader, self._top_votes = answer, votes
        elif votes > self._top_votes or (votes == self._top_votes and self._is_older(answer, leader)):
            self._second_votes = self._top_votes
            self._leader, self._top_votes = answer, votes
        elif votes > self._second_votes:
            self._second_votes = votes

    def _is_older(self, answer: str, leader: str) -> bool:
        return self._first_step[answer] < self._first_step[leader]

    @property
    def leader(self) -> str | None:
        """The answer that the vote would return now; None: nobody voted."""
        return self._leader

    @property
    def leader_step(self) -> int | None:
        """Index of the first step that gave the leading answer: its text is what is delivered."""
        return None if self._leader is None else self._first_step[self._leader]

    def tally(self) -> tuple[tuple[str, int], ...]:
        """Answers and their votes, leader first, ties in the order seen."""
        return tuple(sorted(self._counts.items(), key=lambda counted: -counted[1]))

    def values(self) -> dict[str, int | float | None]:
        """The fields of Signals that this fold fills.

        `p_majority` and `vote_entropy` are None while nobody has voted, `agreement` before the first step.
        """
        n, top, second = self._n_votes, self._top_votes, self._second_votes
        return {
            "n_votes": n,
            "top_votes": top,
            "second_votes": second,
            "third_votes": n - top - second,
            "p_majority": p_majority(top, second) if top else None,
            "agreement": top / self._n_steps if self._n_steps else None,
            "vote_entropy": self._entropy() if n else None,
        }

    def _entropy(self) -> float:
        """Nats, of the shares of the answers: ln n - (sum of votes · ln votes) / n."""
        if self._top_votes == self._n_votes:
            return 0.0
        return max(0.0, math.log(self._n_votes) - self._weighted / self._n_votes)


class VoteTrend:
    """Exponential moving mean of `p_majority`, begun with the first: is the lead here to stay?

    One half of the controller of arXiv:2605.08083. A step without an answer counts with the lead as it stands.

    alpha  weight of the newest value, above 0 and at most 1
    """

    name = "vote-trend"
    looks_at = "`p_majority` from step to step"
    source = "[arXiv:2605.08083](https://arxiv.org/abs/2605.08083)"
    parameters: ClassVar[Mapping[str, str]] = {"alpha": "weight of the newest value"}
    fields: ClassVar[Fields] = {
        "majority_ema": SignalField(
            "exponential moving mean of `p_majority`, begun with the first",
            unknown="nobody voted",
            high=1.0,
        ),
    }

    def __init__(self, *, alpha: float = 0.3) -> None:
        self._alpha = parse_parameter("vote-trend.alpha", alpha, most=1.0)
        self._votes = Votes()
        self._mean: float | None = None

    def update(self, step: Step) -> None:
        self._votes.update(step)
        lead = self._votes.values()["p_majority"]
        if lead is not None:
            self._mean = lead if self._mean is None else self._mean + self._alpha * (lead - self._mean)

    def values(self) -> dict[str, float | None]:
        return {"majority_ema": self._mean}


@lru_cache(maxsize=65_536)
def p_majority(top_votes: int, second_votes: int) -> float:
    """P(p > 1/2) for p ~ Beta(top_votes + 1, second_votes + 1): does the leader beat the runner-up?

    The posterior of the leader's share among the two under a uniform prior: Aggarwal, Madaan, Yang,
    Mausam (2023), "Let's Sample Step by Step", EMNLP 2023, arXiv:2305.11860. For whole numbers the
    Beta tail is a binomial one: with n = top_votes + second_votes + 1 fair coins it is the chance
    of at most `top_votes` heads, 1 - sum of C(n, i) / 2^n for i = 0 … second_votes.

    top_votes, second_votes  at least 0; any order (swapped, the result is 1 minus itself)
    Returns a value in [0, 1]; the error is a few units in the last place for some thousand votes.
    """
    if top_votes < 0 or second_votes < 0:
        raise ValueError(f"p_majority: votes must be at least 0, got {top_votes=} {second_votes=}")
    if top_votes < second_votes:
        return 1.0 - p_majority(second_votes, top_votes)
    n_coins = top_votes + second_votes + 1
    # The largest term exactly, the smaller ones by their ratios until they no longer count.
    term = math.comb(n_coins, second_votes) / (1 << n_coins)
    tail, heads = [term], second_votes
    while heads > 0 and term > tail[0] * 1e-18:
        term *= heads / (n_coins - heads + 1)
        heads -= 1
        tail.append(term)
    return 1.0 - math.fsum(tail)


class Stability:
    """Count how long the trial answer has stood, how often it changed, and between how many."""

    name = "stability"
    looks_at = "the trial answers; a step without one breaks the streak and is no change"
    source = "answer convergence, [arXiv:2506.02536](https://arxiv.org/abs/2506.02536)"
    fields: ClassVar[Fields] = {
        "answer_streak": SignalField("steps in a row with the same trial answer", whole=True),
        "n_flips": SignalField("how often the trial answer changed", whole=True),
        "n_distinct": SignalField("different trial answers so far", whole=True),
    }

    def __init__(self) -> None:
        self._streak = 0
        self._n_flips = 0
        self._last: str | None = None
        self._seen: set[str] = set()

    def update(self, step: Step) -> None:
        answer = step.answer
        if answer is None:
            self._streak = 0
            return
        self._n_flips += self._last is not None and answer != self._last
        self._streak = self._streak + 1 if answer == self._last else 1
        self._last = answer
        self._seen.add(answer)

    def values(self) -> dict[str, int]:
        return {
            "answer_streak": self._streak,
            "n_flips": self._n_flips,
            "n_distinct": len(self._seen),
        }
