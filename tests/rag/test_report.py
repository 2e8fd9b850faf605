from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import msgspec
import numpy as np
import pytest
from bench.rag.questions import N_FIT
from bench.rag.report import (
    DONE,
    FULL,
    IN_DONE,
    OURS,
    Outcomes,
    bill,
    compare,
    end_where_done,
    judge_loops,
    main,
    position,
    read_recording,
)

from suffice.replay.traces.rows import RunRow, encode_row
from tests.rag.made_up import made_up_run


def recording(n: int, seed: int = 0) -> tuple[list[RunRow], list[RunRow]]:
    rng = random.Random(seed)
    fit = [made_up_run(position, rng) for position in range(1, n + 1)]
    return fit, [made_up_run(N_FIT + position, rng) for position in range(1, n + 1)]


def test_a_prefix_cache_changes_only_what_was_read_before() -> None:
    row = made_up_run(1, random.Random(0))
    read = sum(json.loads(row.meta or "{}")["prompt_read"])
    assert bill(row, 1.0) == row
    assert bill(row, 0.0).full_tokens == row.full_tokens - read
    assert bill(row, 0.1).full_tokens == pytest.approx(row.full_tokens - 0.9 * read, abs=len(row.steps))
    assert [step.tokens for step in bill(row, 0.0).steps] == [step.tokens for step in row.steps]


def test_the_models_own_end_pays_for_no_query_behind_it() -> None:
    row = next(r for r in recording(50)[0] if r.steps[2].stop_flag and not r.steps[1].stop_flag)
    ended = end_where_done(row)
    assert (ended.full_em, ended.full_answer, len(ended.steps)) == (row.steps[2].correct, row.steps[2].answer, 3)
    whole = sum(step.tokens + (step.ctx_tokens or 0) for step in row.steps[:3])
    assert whole - ended.full_tokens == row.steps[2].tokens - json.loads(row.meta or "{}")["done_tokens"][2] > 0


def test_a_run_that_the_model_never_calls_done_costs_five_rounds() -> None:
    steps = [msgspec.structs.replace(step, stop_flag=False) for step in made_up_run(1, random.Random(0)).steps]
    row = msgspec.structs.replace(made_up_run(1, random.Random(0)), steps=steps)
    assert end_where_done(row) == row


@pytest.mark.slow
def test_stopping_saves_where_answers_settle_and_reads_no_label_of_what_it_is_judged_on() -> None:
    fit, judged = recording(150)
    result = judge_loops(fit, judged, 0.01, seed=0)
    drop, saved = compare(result[OURS], result[FULL], seed=0)
    assert saved.value > 0.25
    assert drop.value <= 0.02
    assert result[DONE].tokens.sum() < result[FULL].tokens.sum()
    wrong = [
        msgspec.structs.replace(
            row, full_em=False, steps=[msgspec.structs.replace(step, correct=False) for step in row.steps]
        )
        for row in judged
    ]
    unlabelled = judge_loops(fit, wrong, 0.01, seed=0)
    assert {OURS, f"{OURS}, {IN_DONE}"} < result.keys() - {FULL, DONE}
    for name in result.keys() - {"oracle: first right answer"}:
        assert np.array_equal(result[name].tokens, unlabelled[name].tokens), name
    assert unlabelled[OURS].right.sum() == 0


def test_an_interval_covers_a_known_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.rag.report.N_DRAWS", 500)
    rng = np.random.default_rng(1)
    fit, _ = recording(60)
    ends = np.array([(row.full_em, row.full_tokens, len(row.steps)) for row in map(end_where_done, fit)], dtype=float).T
    base = Outcomes(right=ends[0], tokens=ends[1], rounds=ends[2])
    inside = 0
    for seed in range(40):
        pick = rng.integers(0, len(base.right), len(base.right))
        one = Outcomes(right=base.right[pick], tokens=base.tokens[pick], rounds=base.rounds[pick])
        half = Outcomes(right=one.right, tokens=one.tokens * (0.4 + 0.2 * rng.random(len(pick))), rounds=one.rounds)
        _, saved = compare(half, one, seed)
        inside += saved.low <= 0.5 <= saved.high
    assert inside >= 33  # of 40 at 95 %; fewer has a probability below 0.1 %


def test_a_short_recording_reports_how_much_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fit, judged = recording(3)
    path = tmp_path / "runs.jsonl"
    path.write_bytes(b"".join(map(encode_row, [*judged, *fit])) + b'{"dataset":')
    packed = tmp_path / "runs.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read_recording([path]) == read_recording([packed])
    assert [position(row) for row in read_recording([path])["2wiki"]] == [1, 2, 3, 501, 502, 503]
    monkeypatch.delenv("SUFFICE_RAG", raising=False)
    monkeypatch.setattr("sys.argv", ["report", str(path)])
    assert main() == 0
    printed = capsys.readouterr().out
    assert "6 questions recorded" in printed
    assert "Too few to fit and judge" in printed
    assert "the model says that it is done: EM" in printed
