"""The vote over samples: who leads, and which sample's text is delivered. Pure.

Ties go to the answer seen first; a sample without an answer does not vote; when nobody votes the
first sample is delivered. What is returned is the verbatim text of the earliest sample that holds
the winning answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Vote:
    """The result of a vote."""

    answer: str | None                      # None: no sample gave an answer
    winner: int                             # launch index of the delivered sample, from 1
    counts: tuple[tuple[str, int], ...]     # answers and votes, leader first, ties by first seen


def count(answers: Sequence[str | None]) -> Vote:
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
