from __future__ import annotations

import hashlib
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.rollout.assign import DAY_S, LAST_DAY, assign_audit, audit_share, day_salt, question_key
from tests.drawn import examples

PROPERTY = settings(max_examples=examples(100))
ANY_TEXT = st.text(st.characters(), max_size=30)
N_UNITS = 20_000


def audits(share: float, salt: str) -> list[bool]:
    return [assign_audit(f"conversation-{number}", share=share, salt=salt, at_s=0.0).audit for number in range(N_UNITS)]


@pytest.mark.no_cover
@pytest.mark.parametrize("share", [0.01, 0.05, 0.10, 0.5, 0.9])
def test_the_share_of_audits_is_the_share_that_was_asked_for(share: float) -> None:
    n_audits = sum(audits(share, "salt"))
    assert abs(n_audits - N_UNITS * share) < 4 * math.sqrt(N_UNITS * share * (1 - share))


def test_nobody_and_everybody_are_exact() -> None:
    assert not any(audits(0.0, "salt"))
    assert all(audits(1.0, "salt"))


@PROPERTY
@given(unit=ANY_TEXT, salt=ANY_TEXT, share=st.floats(0.0, 1.0))
def test_a_lot_is_sticky_and_knows_its_own_odds(unit: str, salt: str, share: float) -> None:
    assignment = assign_audit(unit, share=share, salt=salt, at_s=0.0)
    assert assignment == assign_audit(unit, share=share, salt=salt, at_s=0.0)
    assert assignment.propensity == (share if assignment.audit else 1.0 - share)
    assert 0.0 < assignment.propensity <= 1.0


@PROPERTY
@given(unit=ANY_TEXT, low=st.floats(0.0, 1.0), high=st.floats(0.0, 1.0))
def test_whoever_is_drawn_at_a_small_share_is_drawn_at_a_larger_one(unit: str, low: float, high: float) -> None:
    less, more = (assign_audit(unit, share=share, salt="s", at_s=0.0).audit for share in sorted((low, high)))
    assert more >= less


def test_the_lot_of_today_is_the_lot_of_next_year() -> None:
    # Another number here means that every running deployment draws its lots anew, and no verifier as it does.
    assert day_salt(20_789, salt="salt") == "e78355c647f65754b755d8b7cc6abdbb1bb3b8499e71b97dcca2ed7f33443a86"
    assignments = [assign_audit(f"conversation-{n}", share=0.1, salt="salt", at_s=20_789.5 * DAY_S) for n in range(40)]
    assert [n for n, assignment in enumerate(assignments) if assignment.audit] == [24, 28]
    assert question_key("What is 2 + 2?", salt="salt") == "10fc6e50d7f39777"


def test_other_salts_are_independent_lotteries() -> None:
    one, other = audits(0.5, "one"), audits(0.5, "other")
    agree = sum(mine == yours for mine, yours in zip(one, other, strict=True))
    assert abs(agree - N_UNITS / 2) < 4 * math.sqrt(N_UNITS / 4)


def test_days_are_independent_lotteries_and_a_day_is_one() -> None:
    def drawn(at_s: float) -> list[bool]:
        return [assign_audit(f"conversation-{n}", share=0.5, salt="s", at_s=at_s).audit for n in range(N_UNITS)]

    today = drawn(20_789.0 * DAY_S)
    assert drawn(20_790.0 * DAY_S - 0.001) == today
    agree = sum(mine == yours for mine, yours in zip(today, drawn(20_790.0 * DAY_S), strict=True))
    assert abs(agree - N_UNITS / 2) < 4 * math.sqrt(N_UNITS / 4)


def test_the_salt_of_a_day_gives_those_before_it() -> None:
    later = bytes.fromhex(day_salt(20_792, salt="s"))
    for day in (20_791, 20_790, 20_789):
        later = hashlib.sha256(later).digest()
        assert day_salt(day, salt="s") == later.hex()
        assert day_salt(day, salt="t") != later.hex()
    assert len(day_salt(LAST_DAY + 1, salt="s")) == 64


def test_more_is_audited_at_first_unless_the_owner_says_otherwise() -> None:
    assert [audit_share(n, None) for n in (0, 19_999, 20_000, 10**9)] == [0.10, 0.10, 0.05, 0.05]
    assert [audit_share(n, 0.2) for n in (0, 10**9)] == [0.2, 0.2]
    assert audit_share(0, 0.0) == 0.0


@PROPERTY
@given(text=ANY_TEXT, other=ANY_TEXT, salt=ANY_TEXT)
def test_a_question_key_groups_repeats_and_needs_the_salt(text: str, other: str, salt: str) -> None:
    key = question_key(text, salt=salt)
    assert len(key) == 16
    assert int(key, 16) >= 0
    assert key == question_key(text, salt=salt)
    assert (key == question_key(other, salt=salt)) == (text == other)
    assert key != question_key(text, salt=salt + "x")
