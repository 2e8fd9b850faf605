"""An override only makes things safer, and ends when its time is over, whoever looks."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice.review.holds import (
    DAY_S,
    NO_OVERRIDES,
    Override,
    describe_override,
    in_effect,
    lowest,
    override_problem,
    pin_problem,
    unexpired,
)
from suffice.types import Epoch, EvidenceSummary, Publication


def override(number: int = 1, kind: str = "cap", **changes: Any) -> Override:
    known: dict[str, Any] = {
        "route": "r",
        "number": number,
        "kind": kind,
        "reason": "why",
        "author": "ann",
        "set_at_s": 0.0,
        "expires_at_s": 10 * DAY_S,
        "level": 3 if kind in ("cap", "pin") else None,
        "max_em_drop": 0.01 if kind == "budget" else None,
    }
    return Override(**(known | changes))


def publication(**changes: Any) -> Publication:
    known: dict[str, Any] = {
        "route": "r",
        "number": 4,
        "epoch": 2,
        "at": 10,
        "version": "v",
        "fit": "f",
        "level": 5,
        "n_levels": 9,
        "certified": True,
        "share": 0.1,
        "reason": "x",
        "author": "w",
        "setup": "s",
        "evidence": EvidenceSummary(max_em_drop=0.02, confidence=0.95),
    }
    return Publication(**(known | changes))


EPOCH = Epoch(route="r", number=2, at=0, since_seq=0, reason="another model", author="w")

levels = st.none() | st.integers(0, 9)
overrides = st.lists(
    st.builds(
        override,
        number=st.integers(1, 50),
        kind=st.sampled_from(["cap", "observe", "budget", "pin"]),
        level=st.integers(0, 9),
        max_em_drop=st.floats(0.001, 0.5),
        expires_at_s=st.floats(0, 100),
        query_class=st.none(),
    ),
    max_size=8,
    unique_by=lambda one: one.number,
)


@given(held=overrides, now_s=st.floats(0, 120), more=overrides)
def test_one_override_more_never_allows_more_and_a_later_time_never_less(
    held: list[Override], now_s: float, more: list[Override]
) -> None:
    few, many = in_effect(held, now_s), in_effect([*held, *(one for one in more if one.kind != "pin")], now_s)
    assert lowest(few.ceiling, many.ceiling) == many.ceiling
    assert many.budget(0.3) <= few.budget(0.3)
    assert few.observe is None or many.observe is not None
    assert in_effect(held, 101.0) == NO_OVERRIDES, "all have ended by themselves"


def test_of_caps_the_lowest_holds_and_of_pins_the_latest() -> None:
    result = in_effect([override(1, level=4), override(2, level=2), override(3, "pin", level=6)], 1.0)
    assert result.ceiling == 2
    assert result.pin is not None
    assert result.pin.number == 3
    both = in_effect([override(1, "pin", level=6), override(2, "pin", level=5)], 1.0)
    assert (both.ceiling, both.pin.number if both.pin else 0) == (5, 2)
    assert in_effect([override(1, "budget"), override(2, "budget", max_em_drop=0.005)], 1.0).budget(0.02) == 0.005
    assert in_effect([override(1, "budget", max_em_drop=0.5)], 1.0).budget(0.02) == 0.02


def test_a_class_is_held_back_by_itself_and_with_its_route() -> None:
    result = in_effect(
        [override(1, query_class="choice", level=4), override(2, "observe", query_class="what"), override(3, level=6)],
        1.0,
    )
    assert [result.ceiling_of(name) for name in ("choice", "what", "other")] == [4, 0, 6]
    assert result.observe is None


def test_everything_in_full_says_by_whom_and_why_and_until_when() -> None:
    result = in_effect([override(7, "observe", expires_at_s=50.0), override(8, level=2, expires_at_s=90.0)], 1.0)
    assert (result.observe, result.ceiling, result.until_s) == ("override 7 by ann: why", 0, 50.0)
    later = in_effect([override(7, "observe", expires_at_s=50.0), override(8, level=2, expires_at_s=90.0)], 50.0)
    assert (later.observe, later.ceiling, later.until_s) == (None, 2, 90.0)
    assert [one.number for one in unexpired([override(2), override(1, expires_at_s=1.0)], 5.0)] == [2]


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"reason": " "}, "an author and a reason"),
        ({"author": ""}, "an author and a reason"),
        ({"expires_at_s": 0.0}, "more than 0 and at most 30 days"),
        ({"expires_at_s": 30.01 * DAY_S}, "more than 0 and at most 30 days"),
        ({"level": None}, "cap: got level None; at least 0"),
        ({"kind": "budget", "max_em_drop": 1.0}, "a fraction above 0 and below 1"),
        ({"kind": "pin", "query_class": "x"}, "is about a whole route"),
        ({}, None),
        ({"kind": "observe", "query_class": "x", "level": None}, None),
    ],
)
def test_what_is_no_override_is_refused_with_what_is_allowed(changes: dict[str, Any], wrong: str | None) -> None:
    result = override_problem(override(**changes))
    assert (result is None) if wrong is None else (result is not None and wrong in result)


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({}, None),
        ({"epoch": 1}, "is of epoch 1, and epoch 2 began since: another model"),
        ({"certified": False}, "certifies no level"),
        ({"level": 0}, "certifies no level"),
        ({"setup": "other"}, "gathered on other settings"),
        ({"evidence": EvidenceSummary()}, "does not say what it proves"),
        ({"evidence": EvidenceSummary(max_em_drop=0.03, confidence=0.95)}, "proves a drop below 3 points"),
        ({"evidence": EvidenceSummary(max_em_drop=0.02, confidence=0.9)}, "at 90%, and the route promises 2 points"),
    ],
)
def test_a_publication_is_served_only_where_it_fits(changes: dict[str, Any], wrong: str | None) -> None:
    result = pin_problem(publication(**changes), epoch=EPOCH, max_em_drop=0.02, confidence=0.95, setup="s")
    assert (result is None) if wrong is None else (result is not None and wrong in result)
    assert pin_problem(publication(), epoch=None, max_em_drop=0.02, confidence=0.95, setup="s") is not None


def test_words_say_what_is_held() -> None:
    output = [
        describe_override(one)
        for one in (
            override(),
            override(query_class="choice"),
            override(kind="observe"),
            override(kind="budget"),
            override(kind="pin"),
            override(kind="pin", pinned=publication()),
        )
    ]
    assert output == [
        "level 3 at most",
        "level 3 at most for the class 'choice'",
        "everything runs in full",
        "an EM budget of 1 points",
        "level 3",
        "publication 4, level 3",
    ]
