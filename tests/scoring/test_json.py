from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.scoring.composite import MAX_DEPTH, JsonScorer
from suffice.scoring.number import NumberScorer
from tests.drawn import examples

SCORER = JsonScorer()
ANSWER = JsonScorer(path="$.answer")
VALUES = st.recursive(
    st.booleans() | st.integers(-(10**18), 10**18) | st.text(st.characters(codec="utf-8"), min_size=1, max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ('{"answer": "Paris"}', '"Paris"'),
        ('Sure!\n```json\n{"answer": 1.50}\n```\nAnything else?', "1.5"),
        ('```\n{"answer": 1}\n```\nor rather\n```\n{"answer": 2}\n```', "2"),
        ('```json\n{"answer": 3}', "3"),
        ('I think {"answer": {"b": 1, "a": [true]}} fits.', '{"a":[true],"b":1}'),
        ('{"answer": null}', None),
        ('{"answer": NaN}', None),
        ('{"answer": 1, "answer": 2}', None),
        ('{"other": 1}', None),
        ('["answer"]', None),
        ("no JSON", None),
        ("{answer: 1}", None),
        ('{"answer": "?"}', None),
    ],
)
def test_where_the_value_is_found(text: str, answer: str | None) -> None:
    assert ANSWER.extract(text) == answer


def test_a_path_walks_objects_and_lists() -> None:
    text = json.dumps({"runs": [{"final answer": 1}, {"final answer": {"x-y": 7}}]})
    assert JsonScorer(path='$.runs[-1]["final answer"].x-y').extract(text) == "7"
    assert JsonScorer(path="$.runs[0]['final answer']").extract(text) == "1"
    assert JsonScorer(path="$.runs[2]").extract(text) is None


def test_a_value_can_be_compared_by_another_scorer() -> None:
    scorer = JsonScorer(path="$.answer", compare=NumberScorer())
    assert scorer.extract('{"answer": "about $1,200.00"}') == "1200"
    assert scorer.match(scorer.extract('{"answer": 1200}'), "1.2e3")


@settings(max_examples=examples(100))
@given(VALUES)
def test_the_same_value_in_any_layout_is_the_same_answer(value: Any) -> None:
    layouts = [json.dumps(value), json.dumps(value, indent=3, sort_keys=True), json.dumps(value, ensure_ascii=False)]
    assert len({SCORER.normalise(layout) for layout in layouts}) == 1
    assert SCORER.extract(f"```json\n{layouts[1]}\n```") == SCORER.normalise(layouts[0])


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("1", "1.0", True),
        ("1e2", "100", True),
        ("1", '"1"', False),
        ("[1,2]", "[2,1]", False),
        ("true", "1", False),
        ('"é"', '"e\u0301"', True),
        ('{"a":1,"b":2}', '{"b":2,"a":1}', True),
        ('"Paris"', "Paris", True),
        ("0.1", "0.10000000000000001", False),
    ],
)
def test_equality_is_of_values(one: str, other: str, same: bool) -> None:
    assert SCORER.match(one, other) is same


def test_depth_and_length_are_bounded() -> None:
    assert SCORER.extract("[" * MAX_DEPTH + "1" + "]" * MAX_DEPTH) is None
    assert SCORER.extract("[" * 100_000 + "]" * 100_000) is None
    long = SCORER.extract(json.dumps(list(range(10_000))))
    assert long is not None
    assert len(long) < 50
    assert SCORER.normalise(json.dumps({"n": 1}).replace("1", "1" * 1_000_000)) is not None
