"""Every kind of event, today's and tomorrow's: what is written is what is read."""

from __future__ import annotations

import dataclasses
import json
import math
import types
from collections.abc import Callable
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.agent.plan import AgentPlan, Regret
from suffice.rollout.evidence import Rules
from suffice.store.rows.events import (
    EARLIER_KEYS,
    EVENTS,
    Event,
    FeedbackEvent,
    decode_as,
    encode,
    key_of,
    kind_of,
    route_of,
    to_row,
)
from suffice.types import Feedback, Outcome, StepRecord
from tests.drawn import examples

PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: st.integers(0, 2**53),
    float: st.floats(allow_nan=False, allow_infinity=False),
    str: st.text(max_size=12),
    type(None): st.none(),
    Any: st.none() | st.booleans() | st.integers(0, 2**53) | st.text(max_size=12),  # in a table of a card or a lineage
    Rules: st.sampled_from([Rules(), Rules(shares=(0.2,), audit_share=0.5, required=("errors",))]),  # checked ones
}


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Every value that a type allows, so that a field added tomorrow is tested too."""
    if hint in PLAIN:
        return PLAIN[hint]
    arguments = get_args(hint)
    if get_origin(hint) is Literal:
        return st.sampled_from(arguments)
    if get_origin(hint) in (Union, types.UnionType):
        return st.one_of([values(argument) for argument in arguments])
    if get_origin(hint) is tuple and arguments[-1] is ...:
        return st.lists(values(arguments[0]), max_size=3).map(tuple)
    if get_origin(hint) is dict:
        return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=3)
    if get_origin(hint) is tuple:
        return st.tuples(*map(values, arguments))
    names = {field.name for field in dataclasses.fields(hint)}
    return st.builds(hint, **{name: values(h) for name, h in get_type_hints(hint).items() if name in names})


def is_table(hint: Any) -> bool:
    """May it be a table whose keys are no fields, so that each of them says something?"""
    return get_origin(hint) is dict or any(get_origin(one) is dict for one in get_args(hint))


def records(event: type[Event]) -> list[Any]:
    """The record of an event, and what may stand beside it."""
    if event is not FeedbackEvent:
        return [event]
    hints = (get_type_hints(event)[field.name] for field in dataclasses.fields(event))
    return [next(one for one in (*get_args(hint), hint) if dataclasses.is_dataclass(one)) for hint in hints]


TABLES = {
    name
    for event in EVENTS.values()
    for record in records(event)
    for name, hint in get_type_hints(record).items()
    if is_table(hint)
}


def with_future_fields(value: Any) -> Any:
    """The same JSON as a later version might have written it: more fields in every record."""
    if isinstance(value, dict):
        known = {k: v if k in TABLES else with_future_fields(v) for k, v in value.items()}
        return {"new": [{"x": None}], **known, "zz": "later"}
    if isinstance(value, list):
        return [with_future_fields(item) for item in value]
    return value


@pytest.mark.parametrize("kind", sorted(EVENTS))
@given(data=st.data())
@settings(max_examples=examples(40))
def test_every_event_survives_the_log_unchanged(kind: str, data: st.DataObject) -> None:
    event: Event = data.draw(values(EVENTS[kind]))
    assert kind_of(event).name == kind
    assert decode_as(EVENTS[kind], encode(event)) == event
    row = to_row(event)
    assert (row.kind, row.key, row.route) == (kind, key_of(event), route_of(event))
    assert decode_as(EVENTS[row.kind], row.body) == event


def in_numpy(value: Any, drawn: Callable[[Any], Any]) -> Any:
    """The same record as numpy computes it: each number, truth value and text by one of the types that hold it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type | Rules):
        names = [field.name for field in dataclasses.fields(value)]
        return dataclasses.replace(value, **{name: in_numpy(getattr(value, name), drawn) for name in names})
    if isinstance(value, tuple):
        return tuple(in_numpy(one, drawn) for one in value)
    if isinstance(value, dict):
        return {key: in_numpy(one, drawn) for key, one in value.items()}
    return drawn(value) if isinstance(value, bool | int | float | str) else value


def boxes(value: Any) -> list[Any]:
    """What numpy makes of a plain value."""
    if isinstance(value, bool):
        return [np.bool_(value), np.array(value)]
    if isinstance(value, int):
        return [np.int64(value), np.array(value), *([np.int32(value), np.uint8(value)] if value < 256 else [])]
    if isinstance(value, str):
        return [value] if "\0" in value else [np.str_(value)]
    single = [np.float32(value)] if abs(value) < 3e38 and float(np.float32(value)) == value else []
    return [np.float64(value), np.array(value), *single]


@pytest.mark.parametrize("kind", sorted(EVENTS))
@given(data=st.data())
@settings(max_examples=examples(20))
def test_what_numpy_computes_is_written_as_plain_values(kind: str, data: st.DataObject) -> None:
    event: Event = data.draw(values(EVENTS[kind]))
    boxed = in_numpy(event, lambda value: data.draw(st.sampled_from(boxes(value))))
    row = to_row(boxed)
    read = decode_as(EVENTS[kind], row.body)
    assert repr(read) == repr(event)  # equal, and of the same types
    assert row == to_row(event)
    assert [type(one) for one in dataclasses.astuple(row)] == [type(one) for one in dataclasses.astuple(to_row(event))]


def test_a_number_that_is_not_finite_is_unknown_or_refused() -> None:
    regret = Regret(mean=0.0, low=0.0, high=0.0, n_audits=2)
    plan = AgentPlan(route="r", number=1, epoch=1, at=0, classes=(), token_price=0.1, reason="", author="", idle=regret)
    for bad in list[Any]([np.float64("nan"), np.float32("inf"), math.nan]):
        with pytest.raises(ValueError, match="token_price"):
            to_row(dataclasses.replace(plan, token_price=bad))
        assert '"confidence":null' in to_row(ended(steps=(step(confidence=bad),))).body
    with pytest.raises(ValueError, match=r"agent_planned.*got object; allowed: plain values"):
        to_row(dataclasses.replace(plan, token_price=object()))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", sorted(EVENTS))
@given(data=st.data())
@settings(max_examples=examples(20))
def test_fields_of_a_later_version_are_skipped(kind: str, data: st.DataObject) -> None:
    event: Event = data.draw(values(EVENTS[kind]))
    later = json.dumps(with_future_fields(json.loads(encode(event))))
    assert decode_as(EVENTS[kind], later) == event


@pytest.mark.parametrize("kind", sorted(EVENTS))
@given(data=st.data())
@settings(max_examples=examples(20))
def test_fields_that_an_earlier_version_lacked_get_their_defaults(kind: str, data: st.DataObject) -> None:
    event: Event = data.draw(values(EVENTS[kind]))
    name = kind_of(event).field or "feedback"
    record: Any = event.feedback if isinstance(event, FeedbackEvent) else event
    optional = {
        f.name
        for f in dataclasses.fields(record)
        if f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING
    }
    body = json.loads(encode(event))
    earlier = {name: {key: value for key, value in body[name].items() if key not in optional}}
    required = {key: getattr(record, key) for key in earlier[name]}
    read = type(record)(**required)
    assert decode_as(EVENTS[kind], json.dumps(earlier)) == (FeedbackEvent(read) if kind == "feedback" else read)


@pytest.mark.parametrize("kind", sorted(EARLIER_KEYS))
@given(data=st.data())
@settings(max_examples=examples(20))
def test_a_payload_is_read_under_its_key_of_before_and_written_so_that_0_2_reads_it(
    kind: str, data: st.DataObject
) -> None:
    event: Event = data.draw(values(EVENTS[kind]))
    earlier, field = EARLIER_KEYS[kind]
    body = json.loads(encode(event))
    assert body == {field: body[field], earlier: body[field]}
    for name in (earlier, field):
        assert decode_as(EVENTS[kind], json.dumps({name: body[name]})) == event
    with pytest.raises(ValueError, match=f"missing required field `{field}`"):
        decode_as(EVENTS[kind], "{}")


def ended(**changes: Any) -> Outcome:
    outcome = Outcome(episode_id="e", end_reason="done", status=200, answer="a", response_id=None, usage=None)
    return dataclasses.replace(outcome, **changes)


def step(**changes: Any) -> StepRecord:
    record = StepRecord(
        index=1,
        tokens=1,
        answer="a",
        answer_source="text",
        confidence=None,
        entropy=None,
        probe_tokens=0,
        action="continue",
        reason="",
    )
    return dataclasses.replace(record, **changes)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_carry_becomes_unknown_and_the_rest_is_kept(bad: float) -> None:
    event = ended(steps=(step(confidence=bad, logprobs=(-0.1, bad)), step(index=2, logprobs=(-0.5,))))
    back = decode_as(EVENTS["outcome"], to_row(event).body)
    assert back == ended(steps=(step(confidence=None, logprobs=()), step(index=2, logprobs=(-0.5,))))


def test_half_a_surrogate_pair_is_written_as_its_escape_and_keys_stay_different() -> None:
    assert decode_as(EVENTS["outcome"], to_row(ended(answer="x\ud83d")).body) == ended(answer="x\\ud83d")
    rows = [to_row(FeedbackEvent(Feedback(feedback_id=name))) for name in ("f\ud83d", "f\ud83e")]
    assert rows[0].key != rows[1].key


def test_what_cannot_be_read_back_is_refused() -> None:
    with pytest.raises(ValueError):
        to_row(ended(duration_s=math.nan))
    with pytest.raises(ValueError):
        to_row(ended(end_reason="bored"))
    with pytest.raises(ValueError):
        to_row(ended(answer=object()))
    with pytest.raises(ValueError, match="at most 16777216"):
        to_row(ended(answer="x" * (16 * 2**20)))
