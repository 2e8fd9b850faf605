"""The vote: ties to the answer seen first, nulls do not vote, the earliest sample's text is delivered.

It is decided exactly when no completion changes the winner or its text.
"""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.episode.vote import count_votes, deciding_sample
from suffice.signals.folds.answers import Votes
from suffice.types import Step
from tests.drawn import examples

ANSWERS = st.lists(st.none() | st.sampled_from("abcd"), min_size=1, max_size=20)


@given(ANSWERS)
def test_the_winner_leads_and_was_seen_first_among_equals(answers: list[str | None]) -> None:
    vote = count_votes(answers)
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
    vote = count_votes(answers)
    values, counts = fold.values(), [*(n for _, n in vote.counts), 0, 0]
    assert (fold.leader, values["top_votes"], values["second_votes"]) == (vote.answer, counts[0], counts[1])


def test_a_vote_of_nobody_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        count_votes([])


def is_fixed(seen: tuple[str | None, ...], n_samples: int) -> bool:
    """Do all completions, also those in which samples fail or never come, deliver the same? By trying each of them."""
    output = sorted({answer for answer in seen if answer is not None})
    remaining = n_samples - len(seen)
    new = ("new", "newer")[: max(1, min(2, remaining))]  # answers not seen yet are alike: two are enough for any tie
    completions = (
        (*seen, *rest) for n in range(remaining + 1) for rest in itertools.product([*output, *new, None], repeat=n)
    )
    delivered = {(vote.answer, vote.winner) for vote in (count_votes(each) for each in completions if each)}
    return len(delivered) == 1


@pytest.mark.parametrize("n_samples", range(1, 7))
def test_a_vote_is_decided_exactly_when_no_completion_changes_what_is_delivered(n_samples: int) -> None:
    """Every beginning of every vote of up to six samples over three answers and none, every completion of each."""
    for n_seen in range(1, n_samples + 1):
        for seen in itertools.product(["a", "b", "c", None], repeat=n_seen):
            decided = deciding_sample(seen, n_samples)
            assert (decided is not None) == is_fixed(seen, n_samples), (seen, n_samples)


LONG = st.lists(st.none() | st.sampled_from("aaabbc"), min_size=1, max_size=40)


@settings(max_examples=examples(300))
@given(answers=LONG, others=st.lists(st.none() | st.sampled_from("abcd"), max_size=40))
def test_whatever_comes_behind_the_deciding_sample_the_winner_and_its_text_stay(
    answers: list[str | None], others: list[str | None]
) -> None:
    decided = deciding_sample(answers, len(answers))
    assert decided is not None
    short = count_votes(answers[:decided])
    for rest in (answers[decided:], others[: len(answers) - decided], []):
        full = count_votes([*answers[:decided], *rest])
        assert (full.answer, full.winner) == (short.answer, short.winner)


@pytest.mark.parametrize(
    ("answers", "n_samples", "decided"),
    [
        (["a"], 1, 1),
        (["a"], 2, 1),  # the second can at most draw level, and came later
        ([None, "a"], 3, 2),
        ([None, None], 3, None),  # nobody has voted: the last one may
        ([None, None, None], 3, 3),
        (["b", "a", "a"], 4, None),  # `b` would win the tie
        (["a", "b", "a"], 4, 3),  # `b` would lose it
        (["a"] * 4, 8, 4),
        (["a"] * 4, 9, None),
    ],
)
def test_the_deciding_sample(answers: list[str | None], n_samples: int, decided: int | None) -> None:
    assert deciding_sample(answers, n_samples) == decided
