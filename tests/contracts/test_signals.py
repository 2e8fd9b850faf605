"""What every fold promises, and what the observer promises about all of them."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.errors import ConfigError
from suffice.signals.base import ALWAYS_FILLED, FIELDS, FOLDS, check_need, fields_of
from suffice.signals.fold import SignalField
from suffice.signals.observe import Observer, observe_columns
from suffice.signals.query import query_signals
from suffice.types import Kind, Query, Signals, Step
from tests.drawn import examples

ROOT = Path(__file__).parents[2]
EVERY_FOLD = pytest.mark.parametrize("name", sorted(FOLDS))
PROPERTY = settings(max_examples=examples(15))

ANSWERS = st.none() | st.sampled_from(["a", "b", "c", ""]) | st.text(st.characters(), max_size=3)
WORDS = st.sampled_from(
    ["wait", "so", "Hmm,", "but", "let me check", "\n", "x", "\ud800", "but y", "42", "\u8bed" * 60]
)
NUMBERS = st.none() | st.floats() | st.floats(0.0, 1.0)


def steps_of(raw: Sequence[Step]) -> list[Step]:
    return [dataclasses.replace(step, index=index) for index, step in enumerate(raw, 1)]


RUNS = st.lists(
    st.builds(
        Step,
        index=st.just(1),
        tokens=st.integers(0, 1_000),
        answer=ANSWERS,
        answer_source=st.just("probe"),
        logprobs=st.lists(st.floats(max_value=0.0) | st.floats(), max_size=4).map(tuple),
        entropy=NUMBERS,
        text=st.lists(WORDS, max_size=30).map(" ".join),
        probe_tokens=st.integers(0, 10),
        ctx_tokens=st.integers(0, 10),
        confidence=NUMBERS,
        mass=NUMBERS,
        margin=NUMBERS,
        closed_entropy=NUMBERS,
        logprob=NUMBERS | st.floats(-9.0, 0.0),
        stated_confidence=NUMBERS,
        reported_done=st.none() | st.booleans(),
        action=st.none() | st.text(st.characters(), max_size=3),
        vector=st.lists(st.floats(), max_size=2).map(tuple),
    ),
    max_size=10,
).map(steps_of)
KINDS = st.sampled_from(get_args(Kind))
QUERIES = st.none() | st.builds(
    query_signals,
    st.none() | st.text(st.characters(), max_size=20),
    metadata=st.just({"task": "sums"}),
    planned_steps=st.none() | st.integers(-1, 20),
)


def value_of(signals: Signals, field: str) -> Any:
    """A field of Signals, or one of another package's fold; Any, because each has its own type."""
    return signals.values[field] if field in signals.values else getattr(signals, field)


def test_no_two_folds_fill_the_same_field_and_all_are_fields_of_signals() -> None:
    filled = fields_of(FOLDS)
    assert len(filled) == len(set(filled)) == sum(len(check_need(name).build().fields) for name in FOLDS)
    assert not set(filled) & {*ALWAYS_FILLED, "values"}


@EVERY_FOLD
def test_a_fold_fills_exactly_the_fields_that_it_names_in_their_order_even_before_the_first_step(name: str) -> None:
    fold = check_need(name).build()
    assert tuple(fold.values()) == tuple(fold.fields)


@EVERY_FOLD
def test_a_fold_reads_its_parameters_from_a_need_and_refuses_what_it_does_not_have(name: str) -> None:
    for key, value in check_need(name).parameters:
        written = f"{name}({key}={value})"
        assert check_need(written).parameters == check_need(name).parameters
        with pytest.raises(ConfigError, match=rf"{name}\.{key}: got 'word'"):
            check_need(f"{name}({key}=word)").build()
        with pytest.raises(ConfigError, match=rf"{name}\.{key}: got -1"):
            check_need(f"{name}({key}=-1)").build()
    with pytest.raises(ConfigError, match=f"needs: {name}: unknown parameter 'nonsense'; (did you mean|known)"):
        check_need(f"{name}(nonsense=1)").build()


@EVERY_FOLD
@PROPERTY
@given(run=RUNS, kind=KINDS, query=QUERIES)
def test_only_the_named_fold_runs_and_its_values_are_in_range(
    name: str, run: list[Step], kind: Kind, query: Query | None
) -> None:
    observer, mine = Observer([name], kind, query=query), check_need(name).build().fields
    for step in run:
        signals = observer.observe(step)
        for field in {"query", *FIELDS, *mine}:
            value = value_of(signals, field)
            if field not in mine:
                assert value is None
            elif field == "query":
                assert value == query
            elif value is not None:
                declared = FIELDS.get(field, SignalField("of another package"))
                assert declared.low <= value <= declared.high
                assert math.isfinite(value)


@EVERY_FOLD
@PROPERTY
@given(run=RUNS, kind=KINDS, query=QUERIES)
def test_the_other_folds_do_not_change_what_one_says(
    name: str, run: list[Step], kind: Kind, query: Query | None
) -> None:
    alone, together = Observer([name], kind, query=query), Observer([*FOLDS, name], kind, query=query)
    for step in run:
        one, all_of_them = alone.observe(step), together.observe(step)
        for field in (*ALWAYS_FILLED, *check_need(name).build().fields):
            assert value_of(one, field) == value_of(all_of_them, field)


@EVERY_FOLD
@PROPERTY
@given(runs=st.lists(st.tuples(QUERIES, RUNS), max_size=4), kind=KINDS)
def test_columns_hold_what_the_observer_says_row_by_row(
    name: str, runs: list[tuple[Query | None, list[Step]]], kind: Kind
) -> None:
    columns, row = observe_columns([name], kind, runs), 0
    assert set(columns.values) == {"step", "tokens_used", *check_need(name).build().fields} - {"query"}
    assert columns.starts.tolist() == [sum(len(run) for _, run in runs[:n]) for n in range(len(runs) + 1)]
    for query, run in runs:
        observer = Observer([name], kind, query=query)
        for step in run:
            signals = observer.observe(step)
            code = columns.answer[row]
            assert signals.answer == (None if math.isnan(code) else columns.answers[int(code)])
            for field, column in columns.values.items():
                value = value_of(signals, field)
                assert math.isnan(column[row]) if value is None else column[row] == value
            row += 1
    assert {len(column) for column in (columns.answer, *columns.values.values())} == {row}


@PROPERTY
@given(run=RUNS, kind=KINDS, cut=st.integers(0, 12))
def test_the_same_steps_give_the_same_signals_also_from_a_copy(run: list[Step], kind: Kind, cut: int) -> None:
    live, replay = Observer(list(FOLDS), kind), Observer(list(FOLDS), kind)
    for step in run[:cut]:
        assert live.observe(step) == replay.observe(step)
    fork = copy.deepcopy(live)
    rest = [live.observe(step) for step in run[cut:]]
    assert rest == [replay.observe(step) for step in run[cut:]] == [fork.observe(step) for step in run[cut:]]


@PROPERTY
@given(run=RUNS, kind=KINDS)
def test_tokens_add_up_without_probes_and_context(run: list[Step], kind: Kind) -> None:
    observer, used = Observer([], kind), 0
    for step in run:
        signals = observer.observe(step)
        used += step.tokens
        assert (signals.step, signals.tokens_used) == (step.index, used)


def test_signals_do_not_depend_on_the_processes_hash_seed() -> None:
    program = (
        "import json; from suffice.signals.base import FOLDS; from suffice.types import Step\n"
        "from suffice.signals.observe import Observer\n"
        "o = Observer(list(FOLDS), 'samples'); t = 'so we go round and round in the same circle again '\n"
        "s = [o.observe(Step(index=i, tokens=i, answer='xyz'[i % 3], answer_source='sample', text=t * i))\n"
        "     for i in range(1, 8)]\n"
        "print(json.dumps([[x.answer, x.values] for x in s]))"
    )
    seen = set()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT / "src")},
            capture_output=True,
            text=True,
            check=True,
        )
        assert len(json.loads(done.stdout)) == 7
        seen.add(done.stdout)
    assert len(seen) == 1


def test_an_unknown_fold_or_kind_names_the_way_out() -> None:
    with pytest.raises(ConfigError, match=r"signal 'stabilty'; did you mean 'stability'\? known: closing"):
        Observer(["stabilty"], "reasoning")
    with pytest.raises(ConfigError, match=r"kind 'reasonning'; allowed: reasoning, samples, rounds"):
        Observer([], "reasonning")  # type: ignore[arg-type]
