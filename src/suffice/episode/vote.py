"""The vote over samples. Pure.

Ties go to the answer seen first; a sample without an answer does not vote; when nobody votes the first sample is
delivered. What is returned is the verbatim text of the earliest sample that holds the winning answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Vote:
    """The result of a vote."""

    answer: str | None  # None: no sample gave an answer
    winner: int  # launch index of the delivered sample, from 1
    counts: tuple[tuple[str, int], ...]  # answers and votes, leader first, ties by first seen


def count_votes(answers: Sequence[str | None]) -> Vote:
    """Count the answers of samples 1..k in launch order. Raises ValueError when there are none."""
    if not answers:
        raise ValueError("vote: needs at least one sample")
    votes: dict[str, int] = {}
    for answer in answers:
        if answer is not None:
            votes[answer] = votes.get(answer, 0) + 1
    counts = tuple(sorted(votes.items(), key=lambda item: -item[1]))  # stable: first seen stays first
    if not counts:
        return Vote(None, 1, ())
    leader = counts[0][0]
    return Vote(leader, answers.index(leader) + 1, counts)


def deciding_sample(answers: Sequence[str | None], n_samples: int) -> int | None:
    """Launch index of the sample behind which the vote is decided; None: a later sample may still change it.

    A vote is decided when the winner and its text are the same whatever the remaining samples say. With v votes for
    the leader and r samples to come, this holds if and only if

        r = 0, or
        v >= r                              an answer not seen yet can at most draw level, and then it came later, and
        v >= w + r  for every other answer  with w votes, first seen after the leader, and
        v >  w + r  for every other answer  first seen before the leader, which would win the tie.

    The text is fixed with the winner: the earliest sample that holds it has been seen. While nobody has voted, the
    vote is open until r = 0. A sample that failed counts as one without an answer, and so does one that never comes.

    n_samples  of the full vote, at least 1
    """
    votes: dict[str, int] = {}
    for index, answer in enumerate(answers, 1):
        if answer is not None:
            votes[answer] = votes.get(answer, 0) + 1
        if _is_decided(votes, n_samples - index):
            return index
    return None


def _is_decided(votes: Mapping[str, int], n_remaining: int) -> bool:
    """The condition of `deciding_sample`, given votes in the order in which their answers were first seen."""
    if n_remaining <= 0:
        return True
    leader = max(votes, key=votes.__getitem__, default=None)  # of equals the first, which is the one seen first
    if leader is None or votes[leader] < n_remaining:
        return False
    lead = votes[leader] - n_remaining
    is_older = True
    for answer, n_votes in votes.items():
        if answer == leader:
            is_older = False
        elif n_votes > lead or (is_older and n_votes == lead):
            return False
    return True
