from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.signals.folds.answers import Confidence
from suffice.types import Step
from tests.drawn import examples


def values(
    logprobs: tuple[float, ...], *, answer: str | None = "a", entropy: float | None = None
) -> dict[str, float | None]:
    confidence = Confidence()
    confidence.update(Step(index=1, tokens=1, answer=answer, answer_source="probe", logprobs=logprobs, entropy=entropy))
    return confidence.values()


@settings(max_examples=examples(100))
@given(probabilities=st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=20))
def test_confidence_is_the_geometric_mean_and_the_minimum(probabilities: list[float]) -> None:
    got = values(tuple(math.log(p) for p in probabilities))
    assert got["confidence"] == pytest.approx(math.prod(probabilities) ** (1 / len(probabilities)))
    assert got["confidence_min"] == pytest.approx(min(probabilities))


def test_an_impossible_token_leaves_no_confidence_at_all() -> None:
    assert values((-math.inf, 0.0))["confidence"] == 0.0
    assert values((-9999.0, 0.0))["confidence_min"] == 0.0


@pytest.mark.parametrize("logprobs", [(), (math.nan,), (-0.1, math.nan), (math.inf,), (0.5, -0.1)])
def test_what_cannot_be_a_probability_is_unknown(logprobs: tuple[float, ...]) -> None:
    assert values(logprobs) == dict.fromkeys(Confidence.fields)


def test_a_probability_of_one_may_be_rounded_upwards() -> None:
    assert values((1e-6, 0.0))["confidence"] == 1.0
    assert values((1e-6,))["confidence_min"] == 1.0


@pytest.mark.parametrize(("entropy", "kept"), [(0.7, 0.7), (0.0, 0.0), (-0.1, None), (math.nan, None)])
def test_entropy_passes_through_if_it_can_be_one(entropy: float, kept: float | None) -> None:
    assert values((), entropy=entropy)["entropy"] == kept


def test_without_an_answer_there_is_nothing_to_be_confident_in() -> None:
    assert set(values((-0.1,), answer=None, entropy=0.5).values()) == {None}


def test_an_earlier_step_does_not_shine_through() -> None:
    confidence = Confidence()
    confidence.update(Step(index=1, tokens=1, answer="a", answer_source="text", logprobs=(0.0,), entropy=0.1))
    confidence.update(Step(index=2, tokens=1, answer="a", answer_source="text"))
    assert set(confidence.values().values()) == {None}
