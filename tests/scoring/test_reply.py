"""Calls and JSON are compared by value under every scorer, and texts as before."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.scoring.base import SCORERS, build_scorer
from suffice.scoring.reply import written_reply
from suffice.scoring.scorer import Scorer
from suffice.types import ReplyForm
from tests.drawn import examples

PLAIN = sorted(set(SCORERS) - {"regex", "tool-call"})
VALUES = st.recursive(
    st.booleans() | st.integers(-(10**9), 10**9) | st.text(st.characters(codec="utf-8"), max_size=6) | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=2), inner, max_size=3),
    max_leaves=8,
)
CALLS = st.lists(
    st.tuples(st.sampled_from(["add", "search"]), st.dictionaries(st.text("ab", max_size=2), VALUES, max_size=3)),
    min_size=1,
    max_size=3,
)


def message_calls(calls: list[tuple[str, Any]], layout: int = 0) -> list[dict[str, Any]]:
    """Calls as in a message, in one of several layouts."""
    shuffled = [(name, dict(random.Random(layout).sample(list(a.items()), len(a)))) for name, a in calls]
    indent = [None, 0, 3][layout % 3]
    written = [(name, json.dumps(a, indent=indent, ensure_ascii=layout % 2 == 0)) for name, a in shuffled]
    return [{"id": f"{layout}-{n}", "function": {"name": f, "arguments": a}} for n, (f, a) in enumerate(written)]


def answer_of(scorer: Scorer, text: str = "", calls: Any = (), form: ReplyForm = "text") -> str | None:
    written = written_reply(text, calls, form)
    return None if written is None else scorer.extract(written)


@pytest.mark.parametrize("name", PLAIN)
@settings(max_examples=examples(20))
@given(calls=CALLS, layout=st.integers(0, 5))
def test_the_same_calls_in_any_layout_are_the_same_answer(name: str, calls: Any, layout: int) -> None:
    scorer = build_scorer(name)
    one, other = (answer_of(scorer, calls=message_calls(calls, n)) for n in (0, layout))
    assert one is not None
    assert one == other == scorer.normalise(one)
    assert scorer.match(one, one)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize(
    ("arguments", "same"),
    [
        ('{"a": 1.0, "b": "x y"}', True),
        ('{"b":"x y","a":1}', True),
        ('{"a":1,"b":"X y"}', False),
        ('{"a":1,"b":"x\\ny"}', False),
        ('{"a":"1","b":"x y"}', False),
        ('{"a":1}', False),
        ('{"a":1,"b":"x y"', None),
        ('{"a":1,"a":1,"b":"x y"}', None),
    ],
)
def test_arguments_are_compared_by_value(name: str, arguments: str, same: bool | None) -> None:
    scorer = build_scorer(name)
    known = answer_of(scorer, calls=[{"function": {"name": "f", "arguments": '{"a":1,"b":"x y"}'}}])
    answer = answer_of(scorer, calls=[{"function": {"name": "f", "arguments": arguments}}])
    assert known is not None
    assert (None if answer is None else scorer.match(answer, known)) is same


@settings(max_examples=examples(50))
@given(calls=CALLS, seed=st.integers(0, 100))
def test_the_order_of_calls_counts_unless_the_route_says_otherwise(calls: Any, seed: int) -> None:
    shuffled = random.Random(seed).sample(calls, len(calls))
    loose = build_scorer({"scorer": "tool-call", "ordered": False})
    assert answer_of(loose, calls=message_calls(calls)) == answer_of(loose, calls=message_calls(shuffled))
    strict = build_scorer("text")
    same = answer_of(strict, calls=message_calls(calls)) == answer_of(strict, calls=message_calls(shuffled))
    assert same == (json.dumps(calls, sort_keys=True) == json.dumps(shuffled, sort_keys=True))


@pytest.mark.parametrize(
    ("name", "text", "answer"),
    [
        ("text", '{"b": 1.50, "a": "Paris, France"}', 'json: {"a":"Paris, France","b":1.5}'),
        ("number", "[1, 2.0]", "json: [1,2]"),
        ("number", "42.0", "42"),
        ("choice", "B", "B"),
        ("text", '"Paris"', "paris"),
        ("text", '{"a": 1', None),
        ("json", '{"b": 1, "a": 2}', '{"a":2,"b":1}'),
        ("whole", '{"b": 1}', '{"b":1}'),
    ],
)
def test_a_reply_under_a_schema_is_compared_as_json_where_it_is_an_object_or_array(
    name: str, text: str, answer: str | None
) -> None:
    assert answer_of(build_scorer(name), text, form="json") == answer


def test_a_scorer_that_reads_json_keeps_its_path() -> None:
    scorer = build_scorer({"scorer": "json", "path": "$.answer"})
    assert answer_of(scorer, '{"why": "so", "answer": 4.0}', form="json") == "4"


def test_calls_of_every_kind_are_read() -> None:
    scorer = build_scorer("text")
    custom = [{"type": "custom", "custom": {"name": "run", "input": "ls -l"}}]
    assert answer_of(scorer, calls=custom) == 'tool_calls: [{"arguments":"ls -l","name":"run"}]'
    assert answer_of(scorer, calls=[{"function": {"name": "now", "arguments": ""}}]) is not None
    assert answer_of(scorer, calls=[{"function": {"name": "", "arguments": "{}"}}]) is None
    assert answer_of(scorer, calls=[{"function": {"name": "f", "arguments": "{"}}]) is None


def test_long_calls_are_kept_as_digests_and_still_differ() -> None:
    scorer = build_scorer("number")
    one, other = (
        answer_of(scorer, calls=[{"function": {"name": "f", "arguments": json.dumps({"a": "x" * n})}}])
        for n in (5_000, 5_001)
    )
    assert one is not None
    assert other is not None
    assert len(one) < 100
    assert scorer.normalise(one) == one
    assert scorer.match(one, one)
    assert not scorer.match(one, other)


@pytest.mark.parametrize("name", PLAIN)
def test_a_text_is_read_as_before(name: str) -> None:
    for text in ("The answer is 42.", "(B)", "yes", "2024-01-02", '{"a": 1}', "- a\n- b"):
        assert build_scorer(name).extract(text) == SCORERS[name]().extract(text)
