from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.drawn import examples
from tests.signals.steps import seen, step

PROPERTY = settings(max_examples=examples(60))
TEXTS = st.lists(st.sampled_from(["red", "green", "BLUE", "blue", "7"]), min_size=1, max_size=12).map(" ".join)


def distance(before: str, now: str) -> float | None:
    result = seen("drafts", [step(1, None, text=before), step(2, None, text=now)])[1][0]
    assert result is None or isinstance(result, float)
    return result


@PROPERTY
@given(before=TEXTS, now=TEXTS)
def test_the_distance_is_the_weighted_overlap_of_the_words(before: str, now: str) -> None:
    a, b = Counter(before.lower().split()), Counter(now.lower().split())
    result = distance(before, now)
    assert result == pytest.approx(1 - (a & b).total() / (a | b).total())
    assert result == distance(now, before)
    assert distance(before, before.upper()) == 0.0


def test_a_text_without_spaces_is_compared_by_its_characters() -> None:
    sentence = "春眠不觉晓处处闻啼鸟夜来风雨声花落知多少也"
    assert distance(sentence, sentence[:-2] + "几何") == pytest.approx(4 / 23)


def test_answers_are_compared_where_a_step_has_no_text() -> None:
    steps = [step(1, "four cats"), step(2, "four dogs"), step(3, "four dogs", text="so"), step(4, None), step(5, None)]
    rows = seen("drafts", steps)
    assert [row[0] for row in rows] == [None, pytest.approx(2 / 3), 0.0, None, None]
    assert [row[1] for row in rows] == [0, 0, 1, 0, 0]


def test_patience_counts_the_steps_in_a_row_that_hardly_moved() -> None:
    texts = ["a b c d e f g h i j", "a b c d e f g h i j", "a b c d e f g h i k", "x", "x"]
    steps = [step(i, None, text=text) for i, text in enumerate(texts, 1)]
    assert [row[1] for row in seen("drafts", steps)] == [0, 1, 0, 0, 1]
    assert [row[1] for row in seen("drafts(threshold=0.2)", steps)] == [0, 1, 2, 0, 1]


@PROPERTY
@given(angle=st.floats(0.0, math.pi), length=st.floats(0.1, 100.0))
def test_vectors_go_before_words_and_their_distance_is_one_minus_the_cosine(angle: float, length: float) -> None:
    turned = (length * math.cos(angle), length * math.sin(angle))
    steps = [step(1, text="x", vector=(2.0, 0.0)), step(2, text="x", vector=turned)]
    assert seen("drafts", steps)[1][0] == pytest.approx(min(1.0, 1.0 - math.cos(angle)), abs=1e-9)


@pytest.mark.parametrize("vector", [(), (0.0, 0.0), (1.0,), (1.0, math.nan), (math.inf, 1.0), (1e308, 1e308)])
def test_vectors_that_cannot_be_compared_leave_the_words(vector: tuple[float, ...]) -> None:
    steps = [step(1, text="x", vector=(1.0, 1.0)), step(2, text="y", vector=vector)]
    assert seen("drafts", steps)[1][0] == 1.0
