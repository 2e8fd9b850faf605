"""A killed recording resumes without a lost or a doubled question, and only as it was begun."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.errors import ConfigError, StoreError, TraceError
from suffice.replay.record import open_recording
from suffice.replay.traces.rows import RunRow, StepRow
from suffice_testing import FakeUpstream, Reply, ScriptedThought, ServerBehaviour
from tests.drawn import examples
from tests.replay.record.recording import CHAIN, ids, recipe, recorded, request_of


def row(question: str, text: str = "") -> RunRow:
    how = recipe()
    return RunRow(
        dataset="d",
        setting="reasoning",
        aggregation="last",
        task="t",
        model=how.model,
        run=how.hash,
        question_id=question,
        full_answer="4",
        full_em=True,
        full_tokens=3,
        steps=[StepRow(tokens=3, answer="4", text=text)],
        meta=json.dumps({"recorded_with": how.as_data()}),
    )


@given(n_rows=st.integers(1, 5), cut=st.floats(0, 1), text=st.text(max_size=20))
@settings(max_examples=examples(60))
def test_wherever_a_crash_cuts_the_file_whole_runs_stay_and_the_torn_one_is_recorded_again(
    n_rows: int, cut: float, text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = tmp_path_factory.mktemp("r") / "t.jsonl.gz"
    with open_recording(out, recipe()) as recording:
        for i in range(n_rows):
            recording.append(row(f"q{i}", text))
        whole = recording.path.read_bytes()
    out.unlink()
    kept = whole[: int(cut * len(whole))]
    recording.path.write_bytes(kept)
    n_whole = kept.count(b"\n")
    with open_recording(out, recipe()) as again:
        # A line that lacks nothing but its line end is whole, too.
        assert again.question_ids in ({f"q{i}" for i in range(n_whole)}, {f"q{i}" for i in range(n_whole + 1)})
        for i in range(n_rows):
            if f"q{i}" not in again.question_ids:
                again.append(row(f"q{i}", text))
    assert gzip.decompress(out.read_bytes()) == whole
    assert not recording.path.exists()


def test_the_same_runs_make_the_same_bytes(tmp_path: Path) -> None:
    made = []
    for name in ("a", "b"):
        out = tmp_path / name / "t.jsonl.gz"
        with open_recording(out, recipe()) as recording:
            recording.append(row("q1"))
        made.append(out.read_bytes())
    assert made[0] == made[1]


def test_a_packed_recording_goes_on(tmp_path: Path) -> None:
    for name in ("t.jsonl", "t.jsonl.gz"):
        out = tmp_path / name
        for i in range(3):
            with open_recording(out, recipe()) as recording:
                assert recording.question_ids == {f"q{k}" for k in range(i)}
                recording.append(row(f"q{i}"))
        data = out.read_bytes()
        assert ids((gzip.decompress(data) if name.endswith("gz") else data).splitlines()) == ["q0", "q1", "q2"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.7}, "temperature was None and is now 0.7"),
        ({"model": "other"}, "model was 'm' and is now 'other'"),
        ({"probe": {"max_tokens": 9}}, "probe.max_tokens was 6 and is now 9"),
        ({"steps": {"min_tokens": 3}}, "steps.min_tokens was 2 and is now 3"),
    ],
)
def test_other_settings_are_refused_by_name_and_the_file_stays(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    out = tmp_path / "t.jsonl.gz"
    with open_recording(out, recipe()) as recording:
        recording.append(row("q1"))
    before = gzip.decompress(out.read_bytes())
    known = recipe()
    for name in ("probe", "steps"):
        given = changes.get(name)
        if isinstance(given, dict):
            changes = changes | {name: msgspec.structs.replace(getattr(known, name), **given)}
    other = open_recording(out, recipe(**changes))
    with pytest.raises(ConfigError, match="was recorded with other settings: " + message), other:
        raise AssertionError("it was let in")
    with open_recording(out, recipe()) as recording:
        assert recording.question_ids == {"q1"}
    assert gzip.decompress(out.read_bytes()) == before


def test_a_time_out_is_no_other_setting(tmp_path: Path) -> None:
    longer = recipe(probe=msgspec.structs.replace(recipe().probe, timeout_s=99.0))
    assert longer.hash == recipe().hash


def test_a_file_that_is_no_recording_is_refused_and_stays(tmp_path: Path) -> None:
    out = tmp_path / "notes.jsonl"
    out.write_text('{"a": 1}\n')
    with pytest.raises(TraceError, match="row 1"), open_recording(out, recipe()):
        raise AssertionError("it was let in")
    assert out.read_text() == '{"a": 1}\n'


def test_damaged_gzip_is_refused_and_stays(tmp_path: Path) -> None:
    out = tmp_path / "t.jsonl.gz"
    out.write_bytes(gzip.compress(b"x" * 1000)[:-9])
    with pytest.raises(StoreError, match="is damaged"), open_recording(out, recipe()):
        raise AssertionError("it was let in")
    assert out.stat().st_size
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.skipif(sys.platform == "win32", reason="no advisory locks there")
def test_a_second_recorder_is_kept_out(tmp_path: Path) -> None:
    out = tmp_path / "t.jsonl"
    with open_recording(out, recipe()) as first:
        first.append(row("q1"))
        with pytest.raises(StoreError, match="another recorder"), open_recording(out, recipe()):
            raise AssertionError("it was let in")
        first.append(row("q2"))
    assert ids(out.read_bytes().splitlines()) == ["q1", "q2"]


def test_a_folder_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be used"), open_recording(tmp_path / "file" / "t.jsonl", recipe()):
        raise AssertionError("it was let in")


async def test_what_is_done_is_never_asked_for_again(tmp_path: Path) -> None:
    out = tmp_path / "t.jsonl.gz"
    async with FakeUpstream(CHAIN, ServerBehaviour(slots=8)) as fake:
        await recorded(fake, out, request_of(4), recipe())
        first = len(fake.calls)
        progress = await recorded(fake, out, request_of(4), recipe())
        assert len(fake.calls) == first
        assert (progress.n_before, progress.n_recorded, progress.n_left) == (4, 0, 0)
        await recorded(fake, out, request_of(6), recipe())
    assert sorted(ids(gzip.decompress(out.read_bytes()).splitlines())) == [f"q{i}" for i in range(6)]


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_a_recorder_that_is_ended_in_the_middle_resumes_without_a_lost_or_doubled_question(
    how: signal.Signals, tmp_path: Path
) -> None:
    questions, out = tmp_path / "q.jsonl", tmp_path / "t.jsonl.gz"
    lines = [json.dumps({"id": f"q{i}", "question": f"question {i}?", "gold": "4"}) for i in range(30)]
    questions.write_text("\n".join(lines), "utf-8")
    model = ScriptedThought(CHAIN.steps, "4", reply=Reply(delay_s=0.002))
    with FakeUpstream.in_thread(model, ServerBehaviour(slots=4)) as fake:
        run = [
            sys.executable,
            "-c",
            "from suffice.cli.main import main; main()",
            "record",
            str(questions),
            "--upstream",
            fake.url,
            "--model",
            "m",
            "--kind",
            "reasoning",
            "--scorer",
            "number",
            "--driver",
            "llama.cpp",
            "--out",
            str(out),
            "--json",
        ]
        part = out.with_name("t.jsonl.gz.part")
        with subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as first:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and not (part.exists() and part.read_bytes().count(b"\n") >= 4):
                time.sleep(0.005)
            os.kill(first.pid, how)
            _, errors = first.communicate(timeout=20)
        if how == signal.SIGINT:
            assert first.returncode == 130, errors
            assert "interrupted" in errors
            n_before = len(gzip.decompress(out.read_bytes()).splitlines())
        else:
            n_before = part.read_bytes().count(b"\n")
        assert 4 <= n_before < 30
        second = subprocess.run(run, capture_output=True, text=True, check=False, timeout=120)
    assert second.returncode == 0, second.stderr
    summary = json.loads(second.stdout)
    assert (summary["n_before"], summary["n_recorded"], summary["n_left"]) == (n_before, 30 - n_before, 0)
    result = ids(gzip.decompress(out.read_bytes()).splitlines())
    assert sorted(result) == sorted(f"q{i}" for i in range(30))
