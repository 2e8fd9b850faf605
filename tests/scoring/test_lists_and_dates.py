from __future__ import annotations

import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.scoring.choice import YesNoScorer
from suffice.scoring.composite import ListScorer
from suffice.scoring.date import DateScorer
from suffice.scoring.number import NumberScorer
from suffice.scoring.text import WholeScorer
from tests.drawn import examples


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is red, green and blue.", '["blue","green","red"]'),
        ("The answer is red and blue.", '["blue","red"]'),
        ("Answer: red; green, dark", '["dark","green","red"]'),
        (r"\boxed{\{3, 1, 2\}}", '["1","2","3"]'),
        ('["b", "a"]', '["a","b"]'),
        ("They are:\n- Paris\n- Rome", '["paris","rome"]'),
        ("They are:\n1. Paris\n2. Rome\n", '["paris","rome"]'),
        ("Answer: 1,234, 5", '["1234","5"]'),
        ("Answer: red, red", '["red","red"]'),
        ("Answer: one", '["one"]'),
        ("巴黎、罗马", '["巴黎","罗马"]'),
        ("", None),
        ("[]", None),
    ],
)
def test_where_the_items_are_found(text: str, answer: str | None) -> None:
    assert ListScorer().extract(text) == answer


def test_order_counts_only_where_it_is_asked_for() -> None:
    assert ListScorer().match("a, b", "b, a")
    assert not ListScorer(ordered=True).match("a, b", "b, a")
    assert ListScorer(ordered=True, compare=NumberScorer()).match("1, 1/2", "[1.0, 0.5]")
    assert not ListScorer().match("red, red", "red")


@settings(max_examples=examples(100))
@given(st.lists(st.text("xyzé 7", min_size=1, max_size=6).filter(str.strip), min_size=1, max_size=8))
def test_any_order_of_the_items_is_the_same_list(items: list[str]) -> None:
    scorer = ListScorer()
    assert scorer.normalise("; ".join(items)) == scorer.normalise("\n".join(items[::-1]))


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("2024-03-05T10:00:00Z", "2024-03-05"),
        ("It was on March 5th, 2024, a Tuesday.", "2024-03-05"),
        ("5 March 2024", "2024-03-05"),
        ("the 5th of Mar. 2024", "2024-03-05"),
        ("5. März 2024", "2024-03-05"),
        ("le 1er août 1914", "1914-08-01"),
        ("5 de marzo de 2024", "2024-03-05"),
        ("2024年3月5日", "2024-03-05"),
        ("2024년 3월 5일", "2024-03-05"),
        ("05.03.2024", "2024-03-05"),
        ("25/12/2024", "2024-12-25"),
        ("12/25/2024", "2024-12-25"),
        ("3/4/2024", "3/4/2024"),
        ("5/5/2024", "2024-05-05"),
        ("March 2024", "2024-03"),
        ("born in 1999", "1999"),
        ("March 5, 2024 (in 2024)", "2024-03-05"),
        ("1999. The answer is May 2001. Not 2002-01-01.", "2001-05"),
        ("2024-02-30", None),
        ("version 1.2.2024.3", None),
        ("no date, 12345", None),
    ],
)
def test_which_date_is_meant(text: str, date: str | None) -> None:
    assert DateScorer().extract(text) == date


def test_the_owner_says_what_comes_first() -> None:
    assert DateScorer(order="dmy").extract("3/4/2024") == "2024-04-03"
    assert DateScorer(order="mdy").extract("3/4/2024") == "2024-03-04"
    assert not DateScorer().match("3/4/2024", "2024-03-04")


@settings(max_examples=examples(100))
@given(st.dates(min_value=datetime.date(1000, 1, 1), max_value=datetime.date(2999, 12, 31)))
def test_every_way_of_writing_a_day_is_the_same_answer(day: datetime.date) -> None:
    in_digits = [f"{day:%d.%m.%Y}", f"{day.year}/{day.month}/{day.day}", day.isoformat()]
    written = [f"{day:%d %B %Y}", f"{day:%B} {day.day}, {day.year}", *in_digits]
    assert {DateScorer().normalise(one) for one in written} == {day.isoformat()}


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Yes.", "yes"),
        ("**No**, because", "no"),
        ("No problem, let me see", None),
        ("Let us see.\nThe answer is: yes, they are.", "yes"),
        (r"\boxed{\text{No}}", "no"),
        ("True", "yes"),
        ("We think so.\nFALSE", "no"),
        ("Ja, das stimmt.", "yes"),
        ("是的，因为", "yes"),
        ("いいえ。", "no"),
        ("हाँ", "yes"),
        ("Yesterday", None),
        ("Nothing", None),
        ("maybe", None),
    ],
)
def test_what_was_said(text: str, answer: str | None) -> None:
    assert YesNoScorer().extract(text) == answer


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("x = 1\r\ny", "x = 1  \ny\n", True),
        ("Café", "Cafe\u0301", True),
        ("Paris", "paris", False),
        ("a.", "a", False),
        ("x\n  y", "x\ny", False),
    ],
)
def test_of_a_whole_text_every_character_counts(one: str, other: str, same: bool) -> None:
    assert WholeScorer().match(one, other) is same
