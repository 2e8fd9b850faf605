"""Sums by question: every token counted once, in any order, for any number of questions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.learn.audits import find_first_passages
from suffice.replay.study.policies import PolicyRung, build_ladders, halts_of
from suffice.replay.study.runs import Halts, Runs, select_runs
from suffice.replay.study.sums import (
    FIELDS,
    MAX_GROUPS,
    N_FOLDS,
    QuestionSums,
    SumsFold,
    columns_of,
    folds_of,
    question_fold,
)
from suffice.replay.traces.read import own_traces, read_traces
from suffice.types import Kind
from tests.drawn import examples
from tests.replay.made import KINDS, batch_of, halts_at_rows, rungs_of, runs_of, written

CHAIN = [("q", "7", [("5", 10), ("7", 20), ("7", 30), ("7", 40)])]
CODE = np.int8(1)


def counted(runs: Runs, row: int, *, asks: bool) -> dict[str, float]:
    """What one run costs when it ends at a row."""
    code = np.array([CODE if row < runs.last[0] else 0], dtype=np.int8)
    columns = columns_of(runs, halts_at_rows(np.array([row]), code, asks=asks))
    return {name: float(column[0]) for name, column in zip(FIELDS, columns, strict=True)}


def test_a_policy_that_reads_answers_pays_for_every_probe_up_to_its_stop(tmp_path: Path) -> None:
    runs = runs_of(written(tmp_path, "reasoning", CHAIN), probe_tokens=3)
    result = counted(runs, 1, asks=True)
    assert result == {
        "lost": 0,
        "gained": 0,
        "tokens": 30 + 2 * 3,
        "probes": 6,
        "resent": 10 + 30,
        "stopped": 1,
        "hopeless": 0,
    }


def test_a_policy_that_reads_none_asks_once_where_it_stops(tmp_path: Path) -> None:
    runs = runs_of(written(tmp_path, "reasoning", CHAIN), probe_tokens=3)
    first, second = counted(runs, 0, asks=False), counted(runs, 1, asks=False)
    assert (first["tokens"], first["probes"], first["resent"], first["lost"]) == (10 + 3, 3, 10, 1)
    assert (second["tokens"], second["probes"], second["resent"], second["lost"]) == (30 + 3, 3, 30, 0)


def test_a_run_that_is_never_stopped_costs_its_probes_if_any_were_asked(tmp_path: Path) -> None:
    runs = runs_of(written(tmp_path, "reasoning", CHAIN), probe_tokens=3)
    request, silent = counted(runs, 3, asks=True), counted(runs, 3, asks=False)
    assert (request["tokens"], request["probes"], request["resent"], request["stopped"]) == (
        100 + 9,
        9,
        10 + 30 + 60,
        0,
    )
    assert (silent["tokens"], silent["probes"], silent["resent"], silent["stopped"]) == (100, 0, 0, 0)


def test_context_counts_as_spent_and_as_sent_again(tmp_path: Path) -> None:
    runs = runs_of(written(tmp_path, "rounds", CHAIN, ctx_tokens=1_000), probe_tokens=5)
    result = counted(runs, 1, asks=True)
    assert result["tokens"] == 2_030 + 10
    assert result["resent"] == 1_010 + 2_030


def test_lost_and_gained_are_told_apart(tmp_path: Path) -> None:
    rows = [("a", "7", [("5", 1), ("7", 1)]), ("b", "7", [("7", 1), ("5", 1)]), ("c", "7", [("7", 1), ("7", 1)])]
    runs = runs_of(written(tmp_path, "rounds", rows))
    lost, gained, *_ = columns_of(runs, halts_at_rows(runs.starts[:-1], np.full(3, CODE), asks=False))
    assert lost.tolist() == [1, 0, 0]
    assert gained.tolist() == [0, 1, 0]


def every_rung(runs: Runs) -> tuple[list[PolicyRung], list[Halts]]:
    rungs = rungs_of(build_ladders(runs.kind, longest=8))[::11]
    return rungs, [halts_of(rung, runs) for rung in rungs]


def summed(runs: Runs, parts: int) -> QuestionSums:
    rungs, _ = every_rung(runs)
    summing = SumsFold(len(rungs))
    which = np.arange(len(runs)) * parts // len(runs)
    for part in range(parts):
        those = select_runs(runs, which == part)
        summing.add(those, every_rung(those)[1])
    assert summing.n_questions == len(set(runs.question))
    return summing.sums()


@pytest.mark.parametrize("kind", KINDS)
def test_in_batches_is_as_at_once(kind: Kind) -> None:
    runs = runs_of(batch_of(kind, 60))
    once, often = summed(runs, 1), summed(runs, 4)
    assert once.fold.tolist() == often.fold.tolist()
    np.testing.assert_allclose(often.base, once.base)
    np.testing.assert_allclose(often.values, once.values)
    assert once.n.sum() == len(runs)
    assert once.full_tokens.sum() == runs.full_tokens.sum()


def test_more_questions_than_groups_lose_nothing_and_stay_in_their_fold() -> None:
    """Above 5,120 questions they share groups; the totals and each fold's totals stay the same."""
    runs = runs_of(batch_of("rounds", 7_000, n_questions=6_500, n_steps=3))
    summing = SumsFold(1)
    halts = halts_at_rows(runs.starts[:-1], np.full(len(runs), CODE), asks=False)
    for at in range(0, len(runs), 1_000):
        part = np.zeros(len(runs), dtype=bool)
        part[at : at + 1_000] = True
        those = select_runs(runs, part)
        summing.add(those, [halts_at_rows(those.starts[:-1], halts.code[part], asks=False)])
    sums = summing.sums()
    assert len(sums.n) == MAX_GROUPS
    assert summing.n_questions == 6_500
    by_hand = np.stack(columns_of(runs, halts), axis=1)
    fold = folds_of(runs)
    for v in range(N_FOLDS):
        np.testing.assert_allclose(sums.values[sums.fold == v, 0].sum(axis=0), by_hand[fold == v].sum(axis=0))
        assert sums.n[sums.fold == v].sum() == (fold == v).sum()


@given(st.text(max_size=20))
@settings(max_examples=examples(100))
def test_a_question_has_one_fold_everywhere(question: str) -> None:
    assert question_fold(question) == question_fold(question)
    assert 0 <= question_fold(question) < N_FOLDS


def test_folds_are_about_equal_and_known_forever() -> None:
    shares = np.bincount([question_fold(f"q-{i}") for i in range(5_000)], minlength=N_FOLDS) / 5_000
    assert np.abs(shares - 0.2).max() < 0.03
    assert [question_fold(q) for q in ("", "a", "q-1", "Wie viele?", "\ud800")] == [1, 3, 3, 0, 4]


@pytest.mark.parametrize("kind", KINDS)
def test_a_drop_is_at_most_the_disagreement_at_every_level_and_a_stop_at_the_end_is_none(kind: Kind) -> None:
    """ASSURANCE F1: Z is at most D, and where the answer is the same, so is its being right."""
    runs = runs_of(batch_of(kind, 200))
    risk = np.random.default_rng(5).random(len(runs.cost))
    levels = np.array([-1.0, 0.02, 0.1, 0.3, 0.6, 1.0])
    rows = find_first_passages(risk, runs.starts, levels)
    for level, row in enumerate(rows):
        stopped = row < runs.last
        lost, gained, *_ = columns_of(runs, halts_at_rows(row, stopped.astype(np.int8)))
        differs = stopped & ~runs.same[row]
        assert ((lost - gained) <= differs).all()
        assert not (lost + gained)[~differs].any()
        if level == 0:
            assert not stopped.any()
            assert not (lost + gained).any()


def test_the_same_questions_with_some_policies() -> None:
    runs = runs_of(batch_of("samples"))
    sums = summed(runs, 1)
    some = sums.columns([2, 0])
    assert some.values[:, 0].tolist() == sums.values[:, 2].tolist()
    assert some.base is sums.base
    assert (sums.drop == sums.of("lost") - sums.of("gained")).all()


def test_a_stopped_chain_still_writes_the_answer_that_its_recording_counted(tmp_path: Path) -> None:
    chain = [("q", "a", [("a", 10), ("a", 10), ("a", 10)])]
    plain = runs_of(written(tmp_path, "reasoning", chain), probe_tokens=0)
    noted = replace(plain, finish=np.array([4.0]))
    stopped = halts_at_rows(np.array([0]), np.array([CODE]))
    whole = halts_at_rows(noted.last, np.zeros(1, dtype=np.int8))
    assert columns_of(plain, stopped)[2].tolist() == [10.0]
    assert columns_of(noted, stopped)[2].tolist() == [14.0]
    assert columns_of(noted, whole)[2].tolist() == [30.0]
    (batch,) = read_traces([own_traces("reasoning")], batch_rows=1_000)
    assert (runs_of(batch).finish > 0).mean() > 0.9
