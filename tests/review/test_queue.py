"""A review queue is a fold: nobody holds what another holds, nothing that was said is lost, saying it twice is once."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.assurance.labels import RANKS, TRUSTED
from suffice.review.items import (
    ADJUDICATOR,
    ReviewLease,
    Shows,
    Verdict,
    VerdictForm,
    allowed_verdicts,
)
from suffice.review.queue import (
    ItemState,
    Queue,
    Record,
    State,
    Submission,
    accept_verdict,
    give_back,
    lease_item,
    next_for,
)
from tests.drawn import examples
from tests.review.made import after, item, queue, says


def leased(place: ItemState, reviewer: str, now_s: float = 0.0) -> tuple[ItemState, ReviewLease]:
    lease = lease_item(place, reviewer, now_s=now_s)
    assert lease is not None
    return place.after(lease), lease


def test_the_most_urgent_item_comes_first_and_asking_twice_is_asking_once() -> None:
    known = queue(
        item("ep_low", priority=1.0),
        item("ep_late", priority=5.0, deadline_s=900.0),
        item("ep_soon", priority=5.0, deadline_s=500.0),
    )
    result = next_for(known, "ann", now_s=0.0)
    assert result is not None
    lease, is_new = result
    assert (lease.item, is_new) == ("ep_soon", True)
    known = known.after([lease])
    assert next_for(known, "ann", now_s=1.0) == (lease, False)
    other = next_for(known, "bob", now_s=1.0)
    assert other is not None
    assert other[0].item == "ep_late"
    assert next_for(known, "ann", now_s=1.0, route="another") is None


def test_two_reviewers_cannot_hold_one_slot_and_an_expired_lease_returns_the_item() -> None:
    place, lease = leased(ItemState(item=item()), "ann")
    assert lease_item(place, "bob", now_s=99.0) is None
    assert place.state(99.0) == "leased"
    assert place.state(100.0) == "open", "the time is over, and no worker was needed"
    later, second = leased(place, "bob", 100.0)
    assert (second.slot, second.turn) == (lease.slot, 2)
    assert later.holder(1, 150.0) == second
    assert later.after(lease).lease_of(1) == second, "an older row changes nothing"


def test_what_comes_after_the_lease_counts_where_the_slot_is_still_free() -> None:
    place, _ = leased(ItemState(item=item()), "ann")
    result = says(place, "ann", "full", at_s=160.0)
    assert result.verdict is not None
    assert (result.verdict.late, result.verdict.slot) == (True, 1)
    assert result.message.startswith("your lease expired 60 s ago, and nobody else took the item: your verdict counts")
    assert result.label is not None


def test_what_comes_after_somebody_else_took_the_item_is_told_plainly_and_kept() -> None:
    place, _ = leased(ItemState(item=item()), "ann")
    place, _ = leased(place, "bob", 120.0)
    result = says(place, "ann", "early", at_s=130.0)
    assert result.verdict is not None
    assert (result.verdict.late, result.verdict.slot, result.label) == (True, None, None)
    assert "the item was leased to bob: your verdict is kept beside the others" in result.message
    place = after(place, result)
    settled = says(place, "bob", "full", at_s=140.0)
    assert settled.label is not None
    assert after(place, settled).verdict_of("ann") is not None, "nothing that was said is lost"


def test_sending_a_form_twice_is_one_verdict_and_saying_something_else_is_a_revision() -> None:
    place = ItemState(item=item())
    first = says(place, "ann", "full", reason="carry")
    place = after(place, first)
    again = says(place, "ann", "full", at_s=2.0, reason=" carry ")
    assert (again.verdict, again.label, again.message) == (
        None,
        None,
        "you already gave this verdict; nothing changed",
    )
    changed = says(place, "ann", "early", at_s=3.0)
    assert changed.verdict is not None
    assert changed.label is not None
    assert (changed.verdict.revision, changed.verdict.before, changed.label.correct) == (2, "full", False)
    assert changed.label.feedback_id != (first.label.feedback_id if first.label else "")
    place = after(place, changed)
    assert first.verdict is not None
    assert place.after(first.verdict) == place, "an old row that is read again changes nothing"


@pytest.mark.parametrize(
    ("shows", "word", "correct", "gold"),
    [
        ("both", "both", True, "41"),
        ("both", "full", True, "42"),
        ("both", "early", False, "41"),
        ("both", "neither", False, None),
        ("full", "right", True, "42"),
        ("full", "wrong", False, None),
        ("early", "right", True, "41"),
        ("early", "wrong", False, None),
    ],
)
def test_a_settled_item_is_a_label_that_the_highest_trust_reads(
    shows: Shows, word: str, correct: bool, gold: str | None
) -> None:
    label = says(ItemState(item=item(shows=shows)), "ann", word, reason="because").label
    assert label is not None
    assert (label.correct, label.gold, label.episode_id, label.request_reason) == (
        correct,
        gold,
        "ep_1",
        "disagreement",
    )
    assert RANKS[label.source] > TRUSTED
    assert (label.comment, label.reason) == ("reviewed by ann", "because")
    fixed = says(ItemState(item=item(shows=shows)), "ann", word, corrected=" 43 ").label
    assert fixed is not None
    assert (fixed.gold, fixed.answer) == ("43", "43")


def test_two_who_agree_settle_it_and_do_not_see_a_label_before() -> None:
    place = ItemState(item=item(n_reviewers=2))
    first = says(place, "ann", "full")
    assert first.label is None
    assert first.message.endswith("1 more reviewer has to judge it")
    place = after(place, first)
    assert not place.may_take("ann", 2.0), "nobody judges an item twice"
    second = says(place, "bob", "full", at_s=2.0)
    assert second.label is not None
    assert second.label.comment == "reviewed by ann, bob"
    assert after(place, second).state(3.0) == "settled"


@pytest.mark.parametrize(
    ("first", "second"), [("full", "early"), ("full", "unsure"), ("unsure", "unsure"), ("both", "neither")]
)
def test_a_contradiction_is_decided_by_a_third_who_was_not_one_of_them(first: str, second: str) -> None:
    place = after(ItemState(item=item(n_reviewers=2)), says(ItemState(item=item(n_reviewers=2)), "ann", first))
    result = says(place, "bob", second, at_s=2.0)
    assert result.label is None
    assert result.message.endswith("a third reviewer has to decide")
    place = after(place, result)
    assert place.state(3.0) == "third"
    assert lease_item(place, "ann", now_s=3.0) is None
    place, lease = leased(place, "cas", 3.0)
    assert lease.slot == ADJUDICATOR
    decided = says(place, "cas", "early", at_s=4.0)
    assert decided.label is not None
    assert (decided.label.correct, decided.label.comment) == (False, "adjudicated by cas")
    assert after(place, decided).resolution is not None


def test_a_third_who_cannot_say_either_leaves_the_item_without_a_label() -> None:
    place = after(ItemState(item=item()), says(ItemState(item=item()), "ann", "unsure"))
    result = says(place, "cas", "unsure", at_s=2.0)
    assert (result.label, after(place, result).state(3.0)) == (None, "undecided")
    assert result.message.endswith("the adjudicator could not decide, so there is no label")


def test_two_right_answers_that_differ_are_two_opinions() -> None:
    base = ItemState(item=item(n_reviewers=2))
    place = after(base, says(base, "ann", "neither", corrected="43"))
    assert says(place, "bob", "neither", corrected="44", at_s=2.0).message.endswith("a third reviewer has to decide")
    assert says(place, "bob", "neither", corrected="43", at_s=2.0).label is not None


def test_an_item_that_was_given_back_is_free_at_once() -> None:
    place, lease = leased(ItemState(item=item()), "ann")
    returned = give_back(place, "ann", "no time", now_s=5.0)
    assert returned is not None
    assert (returned.slot, returned.turn, returned.reason) == (lease.slot, lease.turn, "no time")
    assert give_back(place, "bob", "", now_s=5.0) is None
    assert place.after(returned).state(6.0) == "open"


def test_nobody_is_asked_about_what_is_over() -> None:
    place = ItemState(item=item(open_until_s=50.0))
    assert (place.state(49.0), place.state(50.0)) == ("open", "lapsed")
    assert lease_item(place, "ann", now_s=50.0) is None
    late = says(place, "ann", "full", at_s=60.0)
    assert late.verdict is not None, "what somebody says all the same is kept"


@pytest.mark.parametrize(
    ("form", "wrong"),
    [
        (VerdictForm(item="ep_1", reviewer=" ", word="both"), "the reviewer's name"),
        (VerdictForm(item="ep_1", reviewer="ann", word=""), "allowed: both, full, early, neither, unsure"),
        (VerdictForm(item="ep_1", reviewer="ann", word="unsure", reason="x" * 4_001), "at most 4,000 characters"),
        (VerdictForm(item="ep_1", reviewer="ann", word="full", corrected="x" * 4_001), "at most 4,000 characters"),
    ],
)
def test_what_says_nothing_is_refused_with_what_is_allowed(form: VerdictForm, wrong: str) -> None:
    result = accept_verdict(ItemState(item=item()), form, now_s=1.0)
    assert isinstance(result, str)
    assert wrong in result


@pytest.mark.parametrize("shows", get_args(Shows))
def test_every_word_has_one_meaning(shows: Shows) -> None:
    place = ItemState(item=item(shows=shows))
    for word in allowed_verdicts(shows):
        verdict = says(place, "ann", word).verdict
        assert verdict is not None
        assert verdict.category == word
    other = "right" if shows == "both" else "both"
    refused = accept_verdict(place, VerdictForm(item="ep_1", reviewer="ann", word=other), now_s=1.0)
    assert str(refused).startswith(f"{other}: not a verdict")


def test_counts_and_caps_are_read_off_the_queue() -> None:
    known = queue(
        item("a"), item("b", why="control"), item("c", why="person"), item("d", day=19_999), item("e", route="other")
    )
    assert known.items_on(20_000) == {"r": (1, 1), "other": (1, 0)}
    counts = known.counts(now_s=1.0, route="r")
    assert set(counts) == set(get_args(State))
    assert counts["open"] == 4


steps = st.lists(
    st.tuples(
        st.sampled_from(["ann", "bob", "cas", "dee"]),
        st.sampled_from(["take", "say", "back"]),
        st.sampled_from(["both", "full", "early", "neither", "unsure"]),
        st.integers(1, 120),
    ),
    max_size=14,
)


@given(steps=steps, n_reviewers=st.integers(1, 3))
@settings(max_examples=examples(80))
def test_whatever_people_do_slots_have_one_owner_and_all_words_stay(
    steps: list[tuple[str, str, str, int]], n_reviewers: int
) -> None:
    rows: list[Record] = [item(n_reviewers=n_reviewers)]
    now_s, words = 0.0, dict[str, str]()
    for reviewer, what, word, wait_s in steps:
        now_s += wait_s
        place = Queue().after(rows).places["ep_1"]
        if what == "take":
            lease = lease_item(place, reviewer, now_s=now_s)
            rows += [] if lease is None else [lease]
        elif what == "back":
            returned = give_back(place, reviewer, "", now_s=now_s)
            rows += [] if returned is None else [returned]
        else:
            result = says(place, reviewer, word, at_s=now_s)
            rows += [one for one in (result.lease, result.verdict) if one is not None]
            words[reviewer] = word
        place = Queue().after(rows).places["ep_1"]
        filled = [one.slot for one in place.verdicts if one.slot is not None]
        assert len(filled) == len(set(filled))
        assert {one.reviewer: one.category for one in place.verdicts} == words
        third = place.filled(ADJUDICATOR)
        assert third is None or third.reviewer not in {one.reviewer for one in place.independent}
    assert Queue().after(rows) == Queue().after([*rows, *rows[1:]]), "rows that are read twice change nothing"


def test_of_two_verdicts_for_one_slot_the_first_fills_it() -> None:
    place = ItemState(item=item())
    ann, bob = says(place, "ann", "full"), says(place, "bob", "early")
    assert isinstance(ann, Submission)
    assert isinstance(ann.verdict, Verdict)
    assert bob.verdict is not None
    both = place.after(ann.verdict).after(bob.verdict)
    assert [(one.reviewer, one.slot) for one in both.verdicts] == [("ann", 1), ("bob", None)]
