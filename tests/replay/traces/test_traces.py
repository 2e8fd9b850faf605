"""Recorded runs: what is read is what was written, a policy sees no label, and what is wrong is named."""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from suffice.episode.vote import count_votes
from suffice.errors import ConfigError, TraceError
from suffice.replay.traces.columns import KIND_OF_SETTING, Batch, vote_winners
from suffice.replay.traces.read import read_traces, set_name
from suffice.replay.traces.rows import RUN_COLUMNS, STEP_COLUMNS, RunLog, RunRow, StepRow
from suffice.signals.query import query_signals
from suffice.types import Kind
from suffice_testing.trace_files import run_rows, write_traces_jsonl, write_traces_parquet
from suffice_testing.traces import Synthetic
from tests.drawn import examples

KINDS: tuple[Kind, ...] = ("samples", "reasoning", "rounds")
SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz")
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
A_NUMBER = st.none() | st.floats(-1e9, 1e9, allow_nan=False)
A_COUNT = st.none() | st.integers(0, 10**6)
A_FLAG = st.none() | st.booleans()

any_step = st.builds(
    StepRow,
    tokens=st.integers(0, 10**6),
    answer=st.none() | ANY_TEXT.filter(lambda text: text != "?"),
    ctx_tokens=st.integers(0, 10**6),
    correct=A_FLAG,
    confidence=A_NUMBER,
    mass=A_NUMBER,
    logprob=A_NUMBER,
    entropy=A_NUMBER,
    stop_flag=A_FLAG,
    action=st.none() | ANY_TEXT.filter(bool),
    probe_tokens=A_COUNT,
    logprobs=st.lists(st.floats(-50, 0), max_size=3).map(tuple),
    margin=A_NUMBER,
    closed_entropy=A_NUMBER,
    stated_confidence=A_NUMBER,
    end_margin=A_NUMBER,
    hedges=A_COUNT,
    text=st.none() | ANY_TEXT.filter(bool),
)


@st.composite
def any_runs(draw: st.DrawFn) -> list[RunRow]:
    """Runs of one kind that follow the form, with all that it allows to be unknown."""
    setting = draw(st.sampled_from(["samples", "reasoning", "self_revision"]))
    rows = []
    for i in range(draw(st.integers(1, 5))):
        steps = draw(st.lists(any_step, min_size=1, max_size=5))
        answers = [step.answer for step in steps]
        rows.append(
            RunRow(
                dataset=draw(ANY_TEXT),
                setting=setting,
                task=draw(ANY_TEXT),
                model=draw(ANY_TEXT),
                run=f"{i}",
                question_id=draw(ANY_TEXT),
                question=draw(st.none() | ANY_TEXT),
                gold=draw(st.none() | ANY_TEXT),
                token_source=draw(st.none() | ANY_TEXT),
                meta=draw(st.none() | ANY_TEXT),
                aggregation="majority_vote" if setting == "samples" else "last",
                n_steps=len(steps),
                full_answer=count_votes(answers).answer if setting == "samples" else answers[-1],
                full_em=draw(st.booleans()),
                full_tokens=sum(step.tokens + (step.ctx_tokens or 0) for step in steps),
                steps=steps,
            )
        )
    return rows


def record(path: Path, rows: list[RunRow]) -> None:
    """Write the runs as a recorder does."""
    path.unlink(missing_ok=True)
    with RunLog(path) as log:
        for row in rows:
            log.append(row)


def same(one: Batch, other: Batch) -> bool:
    """Do two batches hold the same, wherever they were read from?"""
    for field in fields(Batch):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if field.name in ("set", "file", "answers", "answer_code", "full_code"):
            continue
        if isinstance(a, np.ndarray):
            if not np.array_equal(a, b, equal_nan=a.dtype == np.float64):
                return False
        elif a != b:
            return False
    return True


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=examples(60))
@given(rows=any_runs())
def test_whatever_the_form_allows_survives_every_format(tmp_path: Path, rows: list[RunRow]) -> None:
    source = tmp_path / "recorded.jsonl"
    record(source, rows)
    (batch,) = read_traces([source])
    assert not batch.differs.any()
    assert list(run_rows(batch)) == rows
    write_traces_parquet(tmp_path / "again.parquet", [batch])
    write_traces_jsonl(tmp_path / "again.jsonl.gz", [batch])
    for name in ("again.parquet", "again.jsonl.gz"):
        (again,) = read_traces([tmp_path / name])
        assert list(run_rows(again)) == rows


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_synthetic_runs_are_read_as_they_were_made(tmp_path: Path, kind: Kind, suffix: str) -> None:
    made = list(Synthetic(kind=kind, n_runs=250, seed=3, n_questions=40).batches(batch_rows=100))
    path = tmp_path / f"made.dev{suffix}"
    (write_traces_parquet if suffix == ".parquet" else write_traces_jsonl)(path, made)
    read = list(read_traces([path], batch_rows=100))
    assert [len(batch) for batch in read] == [100, 100, 50]
    assert [int(batch.row[0]) for batch in read] == [1, 101, 201]
    assert all(same(one, other) for one, other in zip(made, read, strict=True))
    assert {batch.set for batch in read} == {"made"}
    assert not any(batch.differs.any() for batch in read)


def test_the_set_is_the_file_without_its_suffixes() -> None:
    for name in ("a.b.dev.parquet", "a.b.heldout.parquet", "a.b.dev.jsonl.gz", "folder/a.b.ndjson", "a.b.jsonl"):
        assert set_name(name) == "a.b"


@given(runs=st.lists(st.lists(st.none() | st.sampled_from("ABC"), min_size=1, max_size=9), min_size=1, max_size=6))
def test_the_vote_of_columns_is_the_vote_of_the_gateway(runs: list[list[str | None]]) -> None:
    codes = np.array([-1 if a is None else "CAB".index(a) for run in runs for a in run], dtype=np.int32)
    offset = np.concatenate([[0], np.cumsum([len(run) for run in runs])])
    winners = [None if code < 0 else "CAB"[code] for code in vote_winners(codes, offset)]
    assert winners == [count_votes(run).answer for run in runs]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=examples(40))
@given(rows=any_runs(), data=st.data())
def test_a_policy_sees_neither_labels_nor_the_end(tmp_path: Path, rows: list[RunRow], data: st.DataObject) -> None:
    """Other labels and another end of the run change nothing of what is shown before it."""
    record(tmp_path / "runs.jsonl", rows)
    (batch,) = read_traces([tmp_path / "runs.jsonl"])
    i = data.draw(st.integers(0, len(rows) - 1))
    row = rows[i]
    kept = data.draw(st.integers(1, len(row.steps)))
    for step in row.steps:
        step.correct = data.draw(A_FLAG)
    row.steps = row.steps[:kept]
    row.n_steps = kept
    row.gold, row.full_em = data.draw(st.none() | ANY_TEXT), data.draw(st.booleans())
    row.full_answer = data.draw(st.none() | ANY_TEXT)
    row.full_tokens = sum(step.tokens + (step.ctx_tokens or 0) for step in row.steps)
    record(tmp_path / "runs.jsonl", rows)
    (other,) = read_traces([tmp_path / "runs.jsonl"])
    assert other.steps(i) == batch.steps(i)[:kept]
    if batch.kind != "samples":  # there the number of samples is asked for, and known
        assert other.query(i) == batch.query(i)
    for step, displayed in zip(row.steps, other.steps(i), strict=True):
        assert (displayed.answer, displayed.tokens, displayed.ctx_tokens) == (step.answer, step.tokens, step.ctx_tokens)
        output = displayed.stated_confidence if row.setting == "self_revision" else displayed.confidence
        assert output == step.confidence


def a_row(**changes: Any) -> dict[str, Any]:
    """One good run as plain data, with changes; `steps` is replaced as a whole, None drops a column."""
    step = {"tokens": 5, "ctx_tokens": None, "answer": "4", "correct": True, "confidence": 0.5}
    row = {
        "dataset": "d",
        "setting": "reasoning",
        "task": "t",
        "model": "m",
        "run": "r",
        "question_id": "q",
        "aggregation": "last",
        "n_steps": 2,
        "full_answer": "4",
        "full_em": True,
        "full_tokens": 10,
        "steps": [dict(step), dict(step)],
    }
    row.update(changes)
    return {name: value for name, value in row.items() if value != "drop"}


def steps(**changes: Any) -> list[dict[str, Any]]:
    """A good step and one with changes; "drop" takes a column out of both."""
    good = {"tokens": 5, "ctx_tokens": None, "answer": "4", "correct": True, "confidence": 0.5}
    both = [good, {**good, **changes}]
    return [{name: value for name, value in step.items() if changes.get(name) != "drop"} for step in both]


def write_raw(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write what no writer of ours would."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no task": ({"task": "drop"}, "task"),
    "null model": ({"model": None}, "model"),
    "unknown setting": ({"setting": "reasonning"}, "setting"),
    "unknown aggregation": ({"aggregation": "mean"}, "aggregation"),
    "a number as text": ({"run": 7}, "run"),
    "null label": ({"full_em": None}, "full_em"),
    "unequal lengths": ({"n_steps": 3}, "n_steps"),
    "wrong sum": ({"full_tokens": 11}, "full_tokens"),
    "tokens as text": ({"steps": [{**s, "tokens": "5"} for s in steps()]}, "steps.tokens"),
    "negative tokens": ({"steps": steps(tokens=-1)}, "steps.tokens"),
    "null tokens": ({"steps": steps(tokens=None)}, "steps.tokens"),
    "huge tokens": ({"steps": steps(tokens=10**13)}, "steps.tokens"),
    "no tokens": ({"steps": steps(tokens="drop")}, "steps.tokens"),
    "no answers": ({"steps": steps(answer="drop")}, "steps.answer"),
    "negative context": ({"steps": steps(ctx_tokens=-3)}, "steps.ctx_tokens"),
    "steps are text": ({"steps": "4"}, "steps"),
}
OF_THE_SCHEMA = ("no task", "a number as text", "tokens as text", "no tokens", "no answers", "steps are text")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_told_by_file_row_and_column(tmp_path: Path, case: str, suffix: str) -> None:
    changes, column = BAD[case]
    path = tmp_path / f"bad{suffix}"
    # Parquet has one schema, so a wrong type is the column's and no row's.
    rows = [a_row(run="first"), a_row(**changes)]
    if suffix == ".parquet" and case in OF_THE_SCHEMA:
        rows = [a_row(**changes)]
    write_raw(path, rows)
    with pytest.raises(TraceError) as report:
        list(read_traces([path]))
    assert report.value.file == str(path)
    assert report.value.column == column
    assert report.value.row == 2 or (len(rows) == 1 and report.value.row is None)
    assert str(path) in str(report.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_run_without_steps_is_an_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"bad{suffix}"
    write_raw(path, [a_row(), a_row(run="r2", steps=[], n_steps=0, full_tokens=0)])
    with pytest.raises(TraceError, match=r"row 2, .*(steps|n_steps)"):
        list(read_traces([path]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_none_is_an_error_in_both_forms(tmp_path: Path, bad: float) -> None:
    for suffix in (".parquet", ".jsonl"):
        path = tmp_path / f"bad{suffix}"
        write_raw(path, [a_row(run="first"), a_row(steps=steps(confidence=bad))])
        with pytest.raises(TraceError, match="row 2"):
            list(read_traces([path]))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_missing_answers_zero_tokens_and_one_step_are_legal(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"odd{suffix}"
    silent = [{"tokens": 0, "answer": None, "correct": False}, {"tokens": 0, "answer": "?", "correct": False}]
    write_raw(
        path,
        [
            a_row(steps=silent, full_tokens=0, full_answer="?", full_em=False),
            a_row(run="1", steps=steps()[:1], n_steps=1, full_tokens=5),
            a_row(run="2", steps=silent[:1] + steps()[:1], full_tokens=5),
        ],
    )
    (batch,) = read_traces([path])
    assert batch.answer == [None, None, "4", None, "4"]
    assert batch.full_answer == [None, "4", "4"]
    assert not batch.differs.any()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_run_that_stands_twice_is_found_however_far_apart(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"twice{suffix}"
    write_raw(path, [*(a_row(run=f"{i}") for i in range(70)), a_row(run="3")])
    with pytest.raises(TraceError, match=r"row 71.*run '3'"):
        list(read_traces([path], batch_rows=5))
    write_raw(path, [a_row(run=f"{i}") for i in range(70)])
    with pytest.raises(TraceError, match="row 1: repeats the run"):
        list(read_traces([path, path]))


def test_a_vote_that_the_file_counts_otherwise_is_marked(tmp_path: Path) -> None:
    path = tmp_path / "vote.jsonl"
    three = [{"tokens": 1, "answer": answer, "correct": False} for answer in ("A", "B", "B")]
    row = {"setting": "samples", "aggregation": "majority_vote", "steps": three, "n_steps": 3, "full_tokens": 3}
    write_raw(path, [a_row(**row, full_answer=answer, run=answer) for answer in ("B", "A", "C")])
    (batch,) = read_traces([path])
    assert batch.differs.tolist() == [False, True, True]
    assert batch.full_code.tolist() == [1, 0, -2]


def test_settings_in_one_file_come_apart_and_keep_their_rows(tmp_path: Path) -> None:
    path = tmp_path / "mixed.parquet"
    names = ["reasoning", "agent", "reasoning", "self_revision"]
    write_raw(path, [a_row(setting=name, run=f"{i}", full_em=i == 2) for i, name in enumerate(names)])
    result = {(batch.setting[0], batch.kind): batch for batch in read_traces([path])}
    assert {key: batch.row.tolist() for key, batch in result.items()} == {
        ("reasoning", "reasoning"): [1, 3],
        ("agent", "rounds"): [2],
        ("self_revision", "rounds"): [4],
    }
    assert result["reasoning", "reasoning"].full_em.tolist() == [False, True]
    assert result["self_revision", "rounds"].steps(0)[0].stated_confidence == 0.5
    assert result["agent", "rounds"].steps(0)[0].confidence == 0.5


def test_a_query_is_what_a_live_route_would_know(tmp_path: Path) -> None:
    path = tmp_path / "asked.jsonl"
    write_raw(path, [a_row(question="How many are 12 + 30?"), a_row(run="r2")])
    (batch,) = read_traces([path])
    declared = {"dataset": "d", "model": "m", "task": "t"}
    for i, question in enumerate(("How many are 12 + 30?", None)):
        assert batch.query(i) == query_signals(question, metadata=declared, query_class="t")
    assert batch.query(0).n_numbers == 2
    samples = next(Synthetic(kind="samples", n_runs=3, seed=1, n_steps=5).batches())
    assert samples.query(0).planned_steps == 5


@pytest.mark.parametrize("kind", KINDS)
def test_a_parquet_file_need_not_say_how_many_steps_its_runs_have(tmp_path: Path, kind: Kind) -> None:
    path = tmp_path / "made.parquet"
    Synthetic(kind=kind, n_runs=250, seed=3, n_questions=40).write(path)
    pq.write_table(pq.read_table(path).drop_columns(["n_steps"]), tmp_path / "made.dev.parquet", row_group_size=70)
    output, counted = (list(read_traces([one], batch_rows=100)) for one in (path, tmp_path / "made.dev.parquet"))
    runs = [[run for batch in batches for run in run_rows(batch)] for batches in (output, counted)]
    assert runs[0] == runs[1]


def test_where_selects_runs(tmp_path: Path) -> None:
    path = tmp_path / "runs.parquet"
    Synthetic(kind="samples", n_runs=120, seed=1, n_questions=20).write(path)

    def models_and_tasks(where: str) -> set[tuple[str, str]]:
        return {pair for b in read_traces([path], where=where) for pair in zip(b.model, b.task, strict=True)}

    assert models_and_tasks("task=reading,model!=model-1") == {("model-0", "reading"), ("model-2", "reading")}
    assert models_and_tasks(" model = model-1 , model=model-2,task=arith*") == {
        ("model-1", "arithmetic"),
        ("model-2", "arithmetic"),
    }
    whole = {(b.model[i], b.run[i], b.question_id[i]): b.steps(i) for b in read_traces([path]) for i in range(len(b))}
    for batch in read_traces([path], where="model!=model-0", batch_rows=7):
        for i in range(len(batch)):
            assert batch.steps(i) == whole[batch.model[i], batch.run[i], batch.question_id[i]]
    with pytest.raises(TraceError, match=r"no run matches 'model=gpt\*'; there are .*model-0"):
        list(read_traces([path], where="model=gpt*"))
    for bad in ("gold=4", "task", "task>3", ""):
        with pytest.raises(ConfigError, match="where: cannot read"):
            read_traces([path], where=bad)


def test_files_that_are_no_traces_are_named(tmp_path: Path) -> None:
    files = {"x.parquet": b"PAR1 not", "x.jsonl.gz": b"not gzip", "x.jsonl": b"\xff\xfe{", "y.jsonl": b"[]\n"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(TraceError) as report:
            list(read_traces([tmp_path / name]))
        assert report.value.file == str(tmp_path / name)
    cut = gzip.compress(b"".join(json.dumps(a_row(run=f"{i}")).encode() + b"\n" for i in range(300)))
    (tmp_path / "cut.jsonl.gz").write_bytes(cut[:-20])
    with pytest.raises(TraceError, match="cannot be read"):
        list(read_traces([tmp_path / "cut.jsonl.gz"]))
    with pytest.raises(TraceError, match="cannot be read"):
        list(read_traces([tmp_path / "absent.parquet"]))
    with pytest.raises(TraceError, match=r"allowed: \.parquet"):
        read_traces([tmp_path / "x.csv"])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_without_runs_is_an_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"empty{suffix}"
    (write_traces_parquet if suffix == ".parquet" else write_traces_jsonl)(path, [])
    with pytest.raises(TraceError, match="contains no runs"):
        list(read_traces([path]))


def test_half_a_surrogate_pair_is_read_as_a_replacement(tmp_path: Path) -> None:
    path = tmp_path / "odd.jsonl"
    torn = [{**step, "answer": "x\udfffy"} for step in steps()]
    path.write_text(json.dumps(a_row(gold="\ud800", full_answer="x\udfffy", steps=torn)))
    (batch,) = read_traces([path])
    assert batch.gold == ["\ufffd"]
    assert batch.answer == ["x\ufffdy"] * 2


def test_a_file_that_could_not_be_finished_is_not_there(tmp_path: Path) -> None:
    def broken() -> Any:
        yield from Synthetic(kind="samples", n_runs=10, seed=1).batches()
        raise RuntimeError("the source broke")

    for suffix in SUFFIXES:
        path = tmp_path / f"half{suffix}"
        path.write_bytes(b"what was there before")
        with pytest.raises(RuntimeError):
            (write_traces_parquet if suffix == ".parquet" else write_traces_jsonl)(path, broken())
        assert path.read_bytes() == b"what was there before"
    assert len(list(tmp_path.iterdir())) == len(SUFFIXES)


rows_to_kill = [RunRow(**{**a_row(run=f"{i}"), "steps": [StepRow(tokens=5, answer="é4")] * 2}) for i in range(3)]


def test_a_recorder_killed_at_any_byte_resumes_without_a_lost_or_doubled_run(tmp_path: Path) -> None:
    record(tmp_path / "whole.jsonl", rows_to_kill)
    whole = (tmp_path / "whole.jsonl").read_bytes()
    ends = {i + 1 for i, byte in enumerate(whole) if byte == 10} | {0}
    near_ends = {end + shift for end in ends for shift in (-2, -1, 0, 1, 2)}
    for n_bytes in sorted({*range(0, len(whole), 11), *near_ends} & {*range(len(whole) + 1)}):
        path = tmp_path / "killed.jsonl"
        path.write_bytes(whole[:n_bytes])
        with RunLog(path) as log:
            assert log.torn == (n_bytes not in ends and n_bytes + 1 not in ends)
            for row in rows_to_kill:
                if row.id not in log.ids:
                    log.append(row)
        assert path.read_bytes() == whole


def test_a_log_refuses_a_run_twice_a_broken_middle_and_gzip(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    record(path, rows_to_kill)
    with RunLog(path) as log, pytest.raises(TraceError, match="already"):
        log.append(rows_to_kill[1])
    path.write_bytes(b'{"dataset": \n' + path.read_bytes())
    with pytest.raises(TraceError, match="row 1"):
        RunLog(path)
    with pytest.raises(TraceError, match=r"plain \.jsonl"):
        RunLog(tmp_path / "runs.jsonl.gz")


def test_the_reference_lists_the_columns_as_they_are() -> None:
    text = (Path(__file__).parents[3] / "docs" / "reference" / "traces.md").read_text(encoding="utf-8")
    for heading, table in (("Columns of a run", RUN_COLUMNS), ("Columns of a step", STEP_COLUMNS)):
        section = text.split(f"## {heading}\n")[1].split("\n## ")[0]
        lines = [line for line in section.splitlines() if line.startswith("| `")]
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        displayed = {row[0].strip("`"): row[1:4] for row in rows if row[0] != "`steps`"}
        assert displayed == {
            name: [column.type, "yes" if column.required else "no", "no" if column.never_null else "yes"]
            for name, column in table.items()
        }
    assert set(re.findall(r"`([a-z_]+)`", text.split("| setting | kind |")[1].split("\n\n")[0])) >= set(KIND_OF_SETTING)
