"""What every scorer promises, whatever it is handed. A scorer added to the table is tested here."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.errors import ConfigError
from suffice.scoring.base import SCORERS, build_scorer

# Fragments that steer random text into the scorers' own corners.
FRAGMENTS = st.sampled_from([
    "answer is ", "Answer: ", "**Answer:** ", "####", r"\boxed{", r"\text{", r"\frac{1}{3}", "{", "}", "(b)",
    "B", "b.", "I ", "A", "the ", "a ", "Paris", "\n", ". ", "1,234", "-", "−", "0.50", "1/2", "/", ",",
    "50%", " percent", "1e5", "e", "× 10^3", "$", "=", "+", "٣", "½", "²", "ﷺ", "é", "\u0301", "\u0345", "ß",
    "İ", "\u200d", "\ud800", "\udfff", "\x00", "\u2028", "?", "NaN", "inf", "None", "Ｂ", "（", "`", "_", "*",
])  # fmt: skip
ANY_TEXT = st.one_of(
    st.text(st.characters(), max_size=30),  # surrogates included
    st.lists(st.one_of(FRAGMENTS, st.text(st.characters(), max_size=3)), max_size=12).map("".join),
)
EVERY_SCORER = pytest.mark.parametrize("name", sorted(SCORERS))
PROPERTY = settings(max_examples=100, derandomize=True, deadline=None)


@EVERY_SCORER
def test_the_name_in_the_table_is_the_scorers_own(name: str) -> None:
    assert build_scorer(name).name == name


@EVERY_SCORER
@PROPERTY
@given(text=ANY_TEXT)
def test_extract_gives_a_normal_form_that_every_log_can_hold(name: str, text: str) -> None:
    scorer = build_scorer(name)
    answer = scorer.extract(text)
    if answer is not None:
        assert answer.strip() == answer != ""
        assert scorer.normalise(answer) == answer
        assert "\x00" not in answer
        assert answer.encode("utf-8").decode("utf-8") == answer


@EVERY_SCORER
@PROPERTY
@given(text=ANY_TEXT)
def test_normalising_twice_changes_nothing(name: str, text: str) -> None:
    scorer = build_scorer(name)
    once = scorer.normalise(text)
    assert once is None or scorer.normalise(once) == once


@EVERY_SCORER
@PROPERTY
@given(left=ANY_TEXT, right=ANY_TEXT)
def test_match_is_equality_of_normal_forms(name: str, left: str, right: str) -> None:
    scorer = build_scorer(name)
    assert scorer.match(left, right) == scorer.match(right, left)
    normal = scorer.normalise(left)
    assert scorer.match(left, left) == (normal is not None)
    if normal is not None:
        assert scorer.match(normal, left)
        assert scorer.match(left, right) == (normal == scorer.normalise(right))


@EVERY_SCORER
@PROPERTY
@given(gold=ANY_TEXT)
def test_no_answer_never_matches(name: str, gold: str) -> None:
    assert not build_scorer(name).match(None, gold)


@EVERY_SCORER
@pytest.mark.parametrize("nothing", ["", " \n\t", "?", "\u200b"])
def test_nothing_is_no_answer(name: str, nothing: str) -> None:
    assert build_scorer(name).extract(nothing) is None
    assert not build_scorer(name).match(nothing, nothing)


# One pathological text for each repetition in the patterns, repeated to about n characters.
HOSTILE = {
    "a": "a", "spaces": " ", "digits": "7", "groups": ",234", "fractions": "1/", "sums": "1 + 1 = ",
    "boxes": r"\boxed{", "braces": "{", "closing": "}", "announcements": "answer: ", "asked": "answer is ",
    "hashes": "#", "stars": "*", "minus": "-", "percents": "5 % ", "powers": "5 * 10 ^ ", "latex": r"\frac{1",
    "marks": "\u0300\u0316", "halves": "\ud800", "sentences": ". a", "lines": "\n", "options": "(",
    "dots": ".",
}  # fmt: skip


@EVERY_SCORER
@pytest.mark.parametrize("unit", sorted(HOSTILE))
def test_a_hostile_text_costs_linear_time(name: str, unit: str) -> None:
    # Quadratic time on two hundred thousand characters takes minutes; linear time is well under a second.
    text = "1 answer" + HOSTILE[unit] * (200_000 // len(HOSTILE[unit]))
    scorer, begin = build_scorer(name), time.perf_counter()
    scorer.extract(text)
    scorer.normalise(text)
    assert time.perf_counter() - begin < 5.0


@EVERY_SCORER
def test_ten_million_characters_are_survived(name: str) -> None:
    text = "The answer is 7 or (B). " + "so " * 3_400_000
    answer = build_scorer(name).extract(text)
    assert answer is None or len(answer) <= 2_000


def test_an_unknown_scorer_names_the_way_out() -> None:
    with pytest.raises(ConfigError, match=r"unknown name 'nubmer'; did you mean 'number'\? known: choice"):
        build_scorer("nubmer")
