from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.scoring.number import NumberScorer
from tests.drawn import examples

SCORER = NumberScorer()
PROPERTY = settings(max_examples=examples(100))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("first 3, then 5", "5"),
        ("The answer is 42 apples out of 50.", "42"),
        ("The answer is 3 + 4 = 7.", "7"),
        ("the answer is $10 + $8 = $18.", "18"),
        ("answer: 6 * 7 = 42 = 42.0 and not 43", "42"),
        ("Answer: 5. I hope this answer is helpful to 9 people", "5"),
        ("Answer: 5\nNo, wait. Answer: 6\nunlike 8", "6"),
        ("**Answer:**\n\n12", "12"),
        ("He has 3. #### 72", "72"),
        (r"7 so \boxed{x = 12}, not 13", "12"),
        (r"\boxed{1} then \boxed{2} then \boxed{3", "2"),
        (r"\boxed{none}. The answer is 4, not 5", "4"),
        ("answer: " + "so " * 40 + "5 is in it, or 6", "6"),  # too far away to be what was announced
        ("v1.2.3", None),
        ("H2O and x_1", None),
        ("no number", None),
        ("NaN", None),
        ("12/25/2024", "2024"),
        ("pages 10–12", "12"),
        ("5-3", "3"),
        ("1/0", None),
    ],
)
def test_where_the_number_is_found(text: str, answer: str | None) -> None:
    assert SCORER.extract(text) == answer


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("1,234.50", "1234.5"),
        ("+7.0", "7"),
        ("007", "7"),
        ("-0.0", "0"),
        (".5", "0.5"),
        ("3.", "3"),
        ("−5", "-5"),
        ("-$5.00", "-5"),
        ("$-5", "-5"),
        ("€1,000", "1000"),
        ("42 km", "42"),
        ("1e5", "100000"),
        ("1.25E-3", "0.00125"),
        ("2 × 10^3", "2000"),
        (r"2.5 \times 10^{-1}", "0.25"),
        ("1/2", "0.5"),
        ("-6/4", "-1.5"),
        ("2/6", "1/3"),
        ("0/7", "0"),
        (r"-\frac{1}{3}", "-1/3"),
        (r"\dfrac{-3}{4}", "-0.75"),
        ("8/4", "2"),
        ("1{,}234", "1234"),
        ("٣٤", "34"),
        ("50%", "50%"),
        (r"50.0 \%", "50%"),
        ("50 percent", "50%"),
        ("1/2%", "0.5%"),
    ],
)
def test_the_normal_form(written: str, normal: str) -> None:
    assert SCORER.normalise(written) == normal


@pytest.mark.parametrize(("one", "other"), [("50%", "50"), ("50%", "0.5"), ("1/3", "0.333"), ("-5", "5")])
def test_different_values_stay_different(one: str, other: str) -> None:
    assert not SCORER.match(one, other)


@PROPERTY
@given(
    value=st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-(10**9), max_value=10**9),
)
def test_every_way_of_writing_a_decimal_is_the_same_answer(value: Decimal) -> None:
    written = [f"{value:f}", f"{value:,f}", f"{value:f}000", f"The answer is ${value:f}, I think"]
    assert {SCORER.extract(one) for one in written} == {SCORER.normalise(f"{value.normalize():f}")}
    normal = SCORER.normalise(f"{value:f}")
    assert normal is not None
    assert Decimal(normal) == value


@PROPERTY
@given(
    above=st.integers(-(10**6), 10**6),
    below=st.integers(1, 10**6),
    times=st.integers(1, 1_000),
)
def test_a_fraction_keeps_its_value_exactly(above: int, below: int, times: int) -> None:
    normal = SCORER.normalise(f"{above}/{below}")
    assert normal is not None
    assert Fraction(normal) == Fraction(above, below)
    assert SCORER.match(f"{above * times}/{below * times}", f"{above}/{below}")


def test_long_fractions_are_compared_as_written() -> None:
    assert SCORER.normalise("02/3333333333333333333333") == "2/3333333333333333333333"
    assert SCORER.normalise("0/3333333333333333333333") == "0"


def test_a_million_digits_are_compared_without_being_converted() -> None:
    assert SCORER.normalise("0" * 1_000_000 + "7") == "7"
    assert SCORER.normalise("1." + "0" * 1_000_000) is not None
    assert SCORER.normalise("9" * 1_000_000) is None
    assert SCORER.normalise("9" * 1_000) == "9" * 1_000


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("2 1/2", "2.5"),
        (r"2\frac{1}{2}", "2.5"),
        (r"-3\frac13", "-10/3"),
        (r"\frac12", "0.5"),
        ("½", "0.5"),
        ("2½ cups", "2.5"),
        ("12 3/2", "1.5"),  # no mixed number is written so
        ("The answer is 1 1/2 hours", "1.5"),
    ],
)
def test_mixed_numbers_and_small_fractions(written: str, normal: str) -> None:
    assert SCORER.normalise(written) == normal


@pytest.mark.parametrize(("percent", "normal"), [("keep", "12.5%"), ("drop", "12.5"), ("share", "0.125")])
def test_the_owner_says_what_a_percent_sign_means(percent: Literal["keep", "drop", "share"], normal: str) -> None:
    scorer = NumberScorer(percent=percent)
    assert scorer.extract("The answer is 12.5%.") == normal
    assert scorer.extract("25/2 percent") == normal
