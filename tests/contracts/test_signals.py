"""What every fold promises, and what the observer promises about all of them."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.errors import ConfigError
from suffice.signals.base import ALWAYS_FILLED, FOLDS
from suffice.signals.observe import Observer
from suffice.types import Kind, Signals, Step

FIELDS = {field.name for field in dataclasses.fields(Signals)}
RANGES = {
    "confidence": (0.0, 1.0),
    "confidence_min": (0.0, 1.0),
    "loop_share": (0.0, 1.0),
    "p_majority": (0.0, 1.0),
    "entropy": (0.0, math.inf),
}
EVERY_FOLD = pytest.mark.parametrize("name", sorted(FOLDS))
PROPERTY = settings(max_examples=40, derandomize=True, deadline=None)

ANSWERS = st.none() | st.sampled_from(["a", "b", "c", ""]) | st.text(st.characters(), max_size=3)
WORDS = st.sampled_from(["wait", "so", "Hmm,", "but", "let me check", "\n", "x", "\ud800", "but y", "42"])


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
        entropy=st.none() | st.floats(),
        text=st.lists(WORDS, max_size=30).map(" ".join),
        probe_tokens=st.integers(0, 10),
        ctx_tokens=st.integers(0, 10),
    ),
    max_size=12,
).map(steps_of)
KINDS = st.sampled_from(get_args(Kind))


def test_no_two_folds_fill_the_same_field_and_all_are_fields_of_signals() -> None:
    filled = [field for name in FOLDS for field in FOLDS[name]().fields]
    assert len(filled) == len(set(filled))
    assert set(filled) <= FIELDS - set(ALWAYS_FILLED)


@EVERY_FOLD
def test_a_fold_fills_exactly_the_fields_that_it_names_even_before_the_first_step(name: str) -> None:
    fold = FOLDS[name]()
    assert set(fold.values()) == set(fold.fields)


@EVERY_FOLD
@PROPERTY
@given(run=RUNS, kind=KINDS)
def test_only_the_named_fold_runs_and_its_values_are_in_range(name: str, run: list[Step], kind: Kind) -> None:
    observer, mine = Observer([name], kind), FOLDS[name]().fields
    for step in run:
        signals = observer.observe(step)
        for field in FIELDS - set(ALWAYS_FILLED):
            value = getattr(signals, field)
            if field not in mine:
                assert value is None
            elif value is not None:
                low, high = RANGES.get(field, (0, math.inf))
                assert low <= value <= high
                assert math.isfinite(value)


@EVERY_FOLD
@PROPERTY
@given(run=RUNS, kind=KINDS)
def test_the_other_folds_do_not_change_what_one_says(name: str, run: list[Step], kind: Kind) -> None:
    alone, together = Observer([name], kind), Observer([*FOLDS, name], kind)
    for step in run:
        one, all_of_them = alone.observe(step), together.observe(step)
        for field in (*ALWAYS_FILLED, *FOLDS[name]().fields):
            assert getattr(one, field) == getattr(all_of_them, field)


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
        "import json, dataclasses; from suffice.signals.base import FOLDS; from suffice.types import Step\n"
        "from suffice.signals.observe import Observer\n"
        "o = Observer(list(FOLDS), 'samples'); t = 'so we go round and round in the same circle again '\n"
        "s = [o.observe(Step(index=i, tokens=i, answer='xyz'[i % 3], answer_source='sample', text=t * i))\n"
        "     for i in range(1, 8)]\n"
        "print(json.dumps([dataclasses.astuple(x) for x in s]))"
    )
    seen = set()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert len(json.loads(done.stdout)) == 7
        seen.add(done.stdout)
    assert len(seen) == 1


def test_an_unknown_fold_or_kind_names_the_way_out() -> None:
    with pytest.raises(ConfigError, match=r"signal 'stabilty'; did you mean 'stability'\? known: conf"):
        Observer(["stabilty"], "reasoning")
    with pytest.raises(ConfigError, match=r"kind 'reasonning'; allowed: reasoning, samples, rounds"):
        Observer([], "reasonning")  # type: ignore[arg-type]
