from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.scoring.number import QuantityScorer
from tests.drawn import examples

SCORER = QuantityScorer()


@pytest.mark.parametrize(
    ("text", "quantity"),
    [
        ("The answer is 1.5 km.", "1500 m"),
        ("1,500 metres", "1500 m"),
        ("1500m", "1500 m"),
        ("about 3 Kilograms", "3000 g"),
        ("5 min", "5 min"),
        ("5 m in all", "5 m"),
        ("5 mm", "0.005 m"),
        ("90 km/h", "90000 m/h"),
        ("25 metres per second", "25 m/s"),
        ("9.8 m/s^2", "9.8 m/s^2"),
        ("9.8 m/s²", "9.8 m/s^2"),
        ("3 cm^2", "0.0003 m^2"),
        (r"2 \text{ cm}^{3}", "0.000002 m^3"),
        ("4 kg m^-3", None),
        ("4 N·m", None),
        ("4 s^{-1}", "4 s^-1"),
        ("1/3 km", "1000/3 m"),
        (r"\boxed{12\text{ cm}}", "0.12 m"),
        (r"$12\,\mathrm{cm}$", "0.12 m"),
        ("-40 °C", "-40 °C"),
        ("$18.50", "18.5 $"),
        ("18.50 dollars", "18.5 $"),
        ("5 GB", "5000000000 B"),
        ("50%", "50%"),
        ("42 apples", "42"),
        ("5 in the box", "5"),
        ("42", "42"),
        ("no number", None),
    ],
)
def test_which_quantity_is_meant(text: str, quantity: str | None) -> None:
    assert SCORER.extract(text) == quantity


@pytest.mark.parametrize(
    ("one", "other"), [("5 km", "5 m"), ("5 m", "5"), ("60 min", "1 h"), ("$5", "€5"), ("5 m^2", "5 m")]
)
def test_different_quantities_stay_different(one: str, other: str) -> None:
    assert not SCORER.match(one, other)


@settings(max_examples=examples(100))
@given(
    value=st.decimals(allow_nan=False, allow_infinity=False, places=6, min_value=-(10**6), max_value=10**6),
    unit=st.sampled_from([("km", 3), ("m", 0), ("cm", -2), ("mm", -3), ("kilometres", 3), ("micrometer", -6)]),
)
def test_prefixes_are_exact(value: Decimal, unit: tuple[str, int]) -> None:
    normal = SCORER.normalise(f"{value:f} {unit[0]}")
    assert normal is not None
    assert Decimal(normal.removesuffix(" m")) == value.scaleb(unit[1])
