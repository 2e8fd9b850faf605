"""Runs made ready for replay: a policy sees what it would have seen live, and every token stands at its step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from suffice.episode.vote import count_votes, deciding_sample
from suffice.learn.audits import find_first_passages
from suffice.learn.features import DENSE
from suffice.policy.columns import CODES
from suffice.replay.study.policies import build_ladders, halts_of
from suffice.replay.study.runs import (
    Runs,
    concatenate,
    find_first_bits,
    find_first_stops,
    make_runs,
    select_runs,
    stop_at_first,
)
from suffice.replay.traces.columns import Batch
from suffice.signals.features import FeatureSet
from suffice.signals.observe import Observer
from suffice.types import Kind
from tests.drawn import examples
from tests.replay.made import KINDS, batch_of, longest_of, rungs_of, runs_of, written


def other_labels(batch: Batch) -> Batch:
    """The same runs for anybody who looks at steps alone: every label turned round, every end another one."""
    rng = np.random.default_rng(3)
    return replace(
        batch,
        correct=np.where(batch.correct >= 0, 1 - batch.correct, batch.correct).astype(np.int8),
        full_em=~batch.full_em,
        full_code=rng.permutation(batch.full_code),
        full_answer=["another"] * len(batch),
        gold=["another"] * len(batch),
        full_tokens=batch.full_tokens * 7,
    )


def other_ends(batch: Batch, k: int) -> Batch:
    """The same runs up to step k; everything behind it is another run's."""
    step = np.arange(len(batch.tokens)) - np.repeat(batch.offset[:-1], np.diff(batch.offset))
    late = np.flatnonzero(step >= k)
    moved = np.random.default_rng(k).permutation(late)
    place = np.arange(len(batch.tokens))
    place[late] = moved
    return replace(
        batch,
        **{
            name: getattr(batch, name)[place]
            for name in ("tokens", "ctx_tokens", "answer_code", "correct", "confidence", "stop_flag", "entropy")
        },
        answer=[batch.answer[at] for at in place],
    )


@pytest.mark.parametrize("kind", KINDS)
def test_no_label_reaches_a_policy(kind: Kind) -> None:
    batch = batch_of(kind)
    displayed, hidden = runs_of(batch), runs_of(other_labels(batch))
    assert displayed.ok.tolist() != hidden.ok.tolist()
    for rung in rungs_of(build_ladders(kind, longest=longest_of(batch))):
        a, b = halts_of(rung, displayed), halts_of(rung, hidden)
        assert a.row.tolist() == b.row.tolist(), rung.label
        assert a.code.tolist() == b.code.tolist(), rung.label


@pytest.mark.parametrize("kind", KINDS)
def test_no_later_step_moves_a_halt_that_came_before_it(kind: Kind) -> None:
    batch = batch_of(kind, 60)
    seen_stops = 0
    for k in (1, 4):
        first, other = runs_of(batch), runs_of(other_ends(batch, k))
        for rung in rungs_of(build_ladders(kind, longest=longest_of(batch))):
            halts = halts_of(rung, first), halts_of(rung, other)
            a, b = (halt.row - runs.starts[:-1] for halt, runs in zip(halts, (first, other), strict=True))
            early = (a < k) & (halts[0].code > 0)  # behind a step that is the same in both
            assert early.tolist() == ((b < k) & (halts[1].code > 0)).tolist(), (rung.label, k)
            assert a[early].tolist() == b[early].tolist(), (rung.label, k)
            seen_stops += int(early.sum())
    assert seen_stops > 500


@pytest.mark.parametrize("kind", KINDS)
def test_every_rung_halts_where_a_live_loop_would(kind: Kind) -> None:
    """One Observer and one `decide` a step, as in `episode.loop`, against columns."""
    batch = batch_of(kind, 45, p_no_answer=0.15)
    runs = runs_of(batch)
    rungs = rungs_of(build_ladders(kind, longest=longest_of(batch)))
    halts = [halts_of(rung, runs) for rung in rungs]
    needs = tuple(dict.fromkeys(need for rung in rungs for need in rung.policy.needs))
    for i in range(len(batch)):
        observer = Observer(needs, kind, query=runs.queries[i])
        seen = [observer.observe(step) for step in batch.steps(i)]
        for rung, halt in zip(rungs, halts, strict=True):
            row, code = int(runs.last[i]), 0
            for at, signals in enumerate(seen[: runs.n_steps[i] - 1]):  # behind the last step nothing is left to stop
                decision = rung.policy.decide(signals)
                if decision.stop:
                    row, code = int(runs.starts[i]) + at, CODES[decision.stop_reason]
                    break
            assert (int(halt.row[i]), int(halt.code[i])) == (row, code), (rung.label, i)


@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=8),
    seed=st.integers(0, 10**6),
    levels=st.lists(st.floats(0, 1), min_size=1, max_size=6),
)
@settings(max_examples=examples(40))
def test_a_level_is_passed_where_the_lowest_risk_so_far_first_reaches_it(
    lengths: list[int], seed: int, levels: list[float]
) -> None:
    rng = np.random.default_rng(seed)
    runs = with_lengths(lengths)
    risk = np.round(rng.random(sum(lengths)), 1)
    risk[rng.random(len(risk)) < 0.2] = np.nan
    rising = np.sort(np.array(levels))
    result = find_first_passages(risk, runs.starts, rising)
    for j, level in enumerate(rising):
        for i in range(len(lengths)):
            rows = range(int(runs.starts[i]), int(runs.starts[i + 1]))
            reached = [row for row in rows if risk[row] <= level]  # not a number compares as false
            assert result[j, i] == (reached[0] if reached else rows[-1])
    assert (np.diff(result, axis=0) <= 0).all()  # a higher level never stops later


@given(lengths=st.lists(st.integers(1, 7), min_size=1, max_size=8), seed=st.integers(0, 10**6))
@settings(max_examples=examples(40))
def test_a_bit_is_first_set_where_its_setting_first_stops(lengths: list[int], seed: int) -> None:
    runs, places = with_lengths(lengths), np.array([0, 5, 63])
    stops = np.random.default_rng(seed).random((len(places), sum(lengths))) < 0.3
    bits = sum(row.astype(np.uint64) << np.uint64(place) for row, place in zip(stops, places, strict=True))
    for result, row in zip(find_first_bits(np.asarray(bits, dtype=np.uint64), runs, places), stops, strict=True):
        assert result.tolist() == find_first_stops(row.astype(np.int8), runs).row.tolist()


def with_lengths(lengths: list[int]) -> Runs:
    """Runs of these lengths; nothing but where they begin is looked at."""
    batch = batch_of("rounds", len(lengths), n_steps=max(lengths))
    runs = make_runs(batch, (), probe_tokens=0, planned_steps=None)
    keep = np.concatenate([np.arange(max(lengths)) < n for n in lengths])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return replace(runs, starts=starts, cost=runs.cost[keep])


def test_what_a_step_costs_and_delivers_by_hand(tmp_path: Path) -> None:
    """A chain with two probes asked on the way: what was spent, what a stop would give, and what the end gave."""
    batch = written(
        tmp_path, "reasoning", [("q1", "7", [("5", 10), ("7", 20), ("7", 30)]), ("q2", "9", [(None, 4), ("8", 6)])]
    )
    runs = runs_of(batch, probe_tokens=3)
    assert runs.cost.tolist() == [10, 30, 60, 4, 10]
    assert runs.probes.tolist() == [3, 6, 6, 3, 3]  # behind the last step nobody asks
    assert runs.resent.tolist() == [10, 40, 40, 4, 4]  # each probe sends what came before it again
    assert runs.ok.tolist() == [False, True, True, False, False]
    assert runs.same.tolist() == [False, True, True, False, True]
    assert runs.full_ok.tolist() == [True, False]
    assert runs.full_tokens.tolist() == [60, 10]


def test_context_that_is_read_again_is_part_of_what_a_step_costs(tmp_path: Path) -> None:
    batch = written(tmp_path, "rounds", [("q", "7", [("7", 10), ("7", 10)])], ctx_tokens=100)
    runs = runs_of(batch)
    assert runs.cost.tolist() == [110, 220]
    assert runs.full_tokens.tolist() == [220]
    assert runs.probes.tolist() == [0, 0]


def test_a_vote_delivers_its_leader_and_is_judged_by_the_samples_that_gave_it(tmp_path: Path) -> None:
    batch = written(tmp_path, "samples", [("q", "7", [("5", 1), ("7", 1), (None, 1), ("7", 1), ("5", 1), ("5", 1)])])
    runs = runs_of(batch)
    assert runs.ok.tolist() == [False, False, False, True, False, False]  # a tie goes to the answer seen first


def test_a_vote_ends_at_the_sample_that_decides_it_and_is_measured_against_all(tmp_path: Path) -> None:
    """Three of five agree; the other vote is open until its end, for a tie would go to the answer seen first."""
    batch = written(
        tmp_path,
        "samples",
        [
            ("q1", "7", [("7", 10), ("5", 20), ("7", 30), ("7", 40), ("7", 50)]),
            ("q2", "7", [("5", 1), ("7", 1), ("7", 1), ("5", 1)]),
        ],
        probe_tokens=4,
    )
    runs = runs_of(batch, needs=FeatureSet(DENSE["samples"]).needs)
    assert runs.n_steps.tolist() == [4, 4]
    assert runs.cost.tolist() == [10, 30, 60, 100, 1, 2, 3, 4]
    assert runs.probes.tolist() == [4, 8, 12, 12, 4, 8, 12, 12]
    assert runs.full_tokens.tolist() == [150, 4]
    assert runs.columns.values["step_share"][:4].tolist() == [0.2, 0.4, 0.6, 0.8], "the plan is the whole vote"
    assert [bool(runs.ok[at]) for at in runs.last] == runs.full_ok.tolist() == [True, False]
    assert runs.same[runs.last].all()


SAMPLED = st.lists(st.sampled_from(["a", "a", "b", "c", None]), min_size=1, max_size=12)


@given(votes=st.lists(SAMPLED, min_size=1, max_size=5))
@settings(max_examples=examples(40))
def test_the_end_of_a_vote_delivers_what_all_samples_would(
    votes: list[list[str | None]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = [(f"q{at}", "a", [(answer, 1) for answer in answers]) for at, answers in enumerate(votes)]
    runs = runs_of(written(tmp_path_factory.mktemp("votes"), "samples", rows))
    assert runs.n_steps.tolist() == [deciding_sample(answers, len(answers)) for answers in votes]
    assert (
        runs.ok[runs.last].tolist()
        == runs.full_ok.tolist()
        == [count_votes(answers).answer == "a" for answers in votes]
    )


@pytest.mark.parametrize("recorded", [4, None])
def test_probes_cost_what_was_recorded_else_fifteen_on_chains_alone(recorded: int | None, tmp_path: Path) -> None:
    chain = [("q", "7", [("7", 10)] * 4)]
    of_chain = runs_of(written(tmp_path, "reasoning", chain, probe_tokens=recorded))
    assert of_chain.probes[-1] == 3 * (15 if recorded is None else recorded)
    undecided = [("q", "7", [("5", 10), ("7", 10), ("7", 10), ("5", 10)])]
    of_vote = runs_of(written(tmp_path, "samples", undecided, probe_tokens=recorded))
    assert of_vote.probes[-1] == 3 * (recorded or 0)


def test_a_stop_behind_the_last_step_is_the_full_run() -> None:
    runs = runs_of(batch_of("rounds"))
    codes = np.zeros(len(runs.cost), dtype=np.int8)
    codes[runs.last] = 1
    halt = find_first_stops(codes, runs)
    assert halt.row.tolist() == runs.last.tolist()
    assert not halt.code.any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_oracles_are_the_first_step_that_holds_the_answer(kind: Kind) -> None:
    runs = runs_of(batch_of(kind))
    for reached in (runs.ok, runs.same):
        halt = stop_at_first(runs, reached)
        for i in range(len(runs)):
            rows = range(int(runs.starts[i]), int(runs.starts[i + 1]))
            assert halt.row[i] == next((row for row in rows if reached[row]), rows[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_parts_put_together_are_the_whole_and_taking_is_leaving_out(kind: Kind) -> None:
    batch = batch_of(kind)
    whole = runs_of(batch)
    keep = np.arange(len(whole)) % 3 == 0
    parts = [select_runs(whole, keep), select_runs(whole, ~keep)]
    joined = concatenate(parts)
    order = np.concatenate([np.flatnonzero(keep), np.flatnonzero(~keep)])
    assert joined.question == tuple(whole.question[i] for i in order)
    rows = np.concatenate([np.arange(whole.starts[i], whole.starts[i + 1]) for i in order])
    for name in ("cost", "probes", "resent", "ok", "same"):
        assert same(getattr(joined, name), getattr(whole, name)[rows]), name
    for name, column in whole.columns.values.items():
        assert same(joined.columns.values[name], column[rows]), name
    with pytest.raises(ValueError, match="at least one batch"):
        concatenate([])


def same(a: NDArray[np.generic], b: NDArray[np.generic]) -> bool:
    return bool(np.array_equal(a.astype(np.float64), b.astype(np.float64), equal_nan=True))
