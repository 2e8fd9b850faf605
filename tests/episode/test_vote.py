"""The vote: ties to the answer seen first, nulls do not vote, the earliest sample's text is delivered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice.episode.vote import count
from suffice.signals.votes import Votes
from suffice.types import Step

ANSWERS = st.lists(st.none() | st.sampled_from("abcd"), min_size=1, max_size=20)


@given(ANSWERS)
def test_the_winner_leads_and_was_seen_first_among_equals(answers: list[str | None]) -> None:
    vote = count(answers)
    given_ = [a for a in answers if a is not None]
    assert dict(vote.counts) == {a: given_.count(a) for a in given_}
    if not given_:
        assert (vote.answer, vote.winner, vote.counts) == (None, 1, ())
        return
    best = max(given_.count(a) for a in given_)
    assert vote.answer == next(a for a in given_ if given_.count(a) == best)
    assert answers[vote.winner - 1] == vote.answer
    assert vote.answer not in answers[: vote.winner - 1]
    assert vote.counts[0] == (vote.answer, best)


@given(ANSWERS)
def test_the_vote_is_the_one_that_the_policy_saw(answers: list[str | None]) -> None:
    fold = Votes()
    for n, answer in enumerate(answers, start=1):
        fold.update(Step(index=n, tokens=1, answer=answer, answer_source="sample"))
    vote = count(answers)
    assert (fold.leader, fold.tally()) == (vote.answer, vote.counts)
    assert fold.leader_step == (None if vote.answer is None else vote.winner)


def test_a_vote_of_nobody_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        count([])
