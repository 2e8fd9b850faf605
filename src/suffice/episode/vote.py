"""The vote over samples. Pure.

Ties go to the answer seen first. A sample without an answer does not vote; if no sample votes, the first one is
delivered. The delivered text is that of the earliest sample with the winning answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Vote:
    answer: str | None  # None: no sample gave an answer
    winner: int  # launch index of the delivered sample, from 1
    counts: tuple[tuple[str, int], ...]  # answers and votes, leader first, ties by first seen


def count_votes(answers: Sequence[str | None]) -> Vote:
    """Count the answers of samples 1..k in launch order. Raise ValueError if there are none."""
    if not answers:
        raise ValueError("vote: needs at least one sample")
    # Stable: of equals, the one seen first comes first.
    counts = tuple(Counter(answer for answer in answers if answer is not None).most_common())
    if not counts:
        return Vote(None, 1, ())
    leader = counts[0][0]
    return Vote(leader, answers.index(leader) + 1, counts)


def deciding_sample(answers: Sequence[str | None], n_samples: int) -> int | None:
    """Return the launch index of the sample that decides the vote; None if a later sample may still change it.

    A vote is decided when neither the winner nor its text can change. With v votes for the leader and r samples to
    come, this holds if and only if

        r = 0, or
        v >= r                              a new answer can at most tie, and ties go to the earlier one, and
        v >= w + r  for every other answer  with w votes, first seen after the leader, and
        v >  w + r  for every other answer  first seen before the leader, which would win the tie.

    The winner fixes the text, because its earliest sample has been seen. While no sample has voted, the vote is open
    until r = 0. A failed or missing sample counts as one without an answer.

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
    if n_remaining <= 0:
        return True
    leader = max(votes, key=votes.__getitem__, default=None)  # of equals the one seen first
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
