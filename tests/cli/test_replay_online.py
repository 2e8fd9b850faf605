"""`suffice replay --online` as a person and a program use it: a table, one object a set, a figure, and sentences."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.cli.replayed import lines, made

from suffice.cli.main import main
from suffice.replay.traces.read import own_traces

TYPES: dict[str, type] = {
    "set": str,
    "max_em_drop": float,
    "confidence": float,
    "seeds": int,
    "token_reduction": float,
    "token_reduction_second_half": float,
    "em_drop_second_half": float,
    "violations": float,
}
OWN = own_traces("samples")
pytestmark = pytest.mark.usefixtures("elsewhere")  # the figure goes into the current folder


def online(*options: object) -> Result:
    return CliRunner().invoke(main, ["replay", "--online", *map(str, options)])


@pytest.mark.slow
def test_a_person_reads_a_row_a_set_with_what_it_means_and_gets_a_figure(tmp_path: Path) -> None:
    result = online(OWN, "--max-em-drop", 0.05, "--confidence", 0.9, "--seeds", 2)
    assert result.exit_code == 0, result.output
    assert "at most 5 points of EM, 90 % sure, 2 seeds" in result.stdout
    assert "own_samples: too small to certify: 100 runs of 100 questions" in " ".join(result.stdout.split())
    assert max(map(len, result.stdout.splitlines())) <= 110
    folder = tmp_path / "replay-report"
    assert (folder / "own_samples.online.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (folder / "own_samples.online.svg").read_bytes()
    assert "course: replay-report/own_samples.online.png" in result.stdout


@pytest.mark.slow
def test_a_program_reads_one_object_a_set_and_nothing_else(tmp_path: Path) -> None:
    results = lines(online(OWN, made(tmp_path, kind="rounds", n_runs=30), "--seeds", 2, "--json"))
    assert [one["set"] for one in results] == ["own_samples", "votes"]
    for one in results:
        assert {key: type(one[key]) for key in TYPES} == TYPES
        assert one["seeds"] == 2
        assert one["too_small"] is True
        assert "recovery_requests" not in one
    assert not (tmp_path / "replay-report").exists()


@pytest.mark.slow
def test_a_figure_beside_the_objects_where_a_folder_is_named(tmp_path: Path) -> None:
    result = online(OWN, "--seeds", 1, "--json", "--out", tmp_path / "course")
    assert len(lines(result)) == 1
    assert (tmp_path / "course" / "own_samples.online.png").exists()


def test_no_report_writes_none(tmp_path: Path) -> None:
    assert online(OWN, "--seeds", 1, "--no-report").exit_code == 0
    assert list(tmp_path.iterdir()) == []


def test_the_same_seed_prints_the_same_bytes(tmp_path: Path) -> None:
    file = made(tmp_path, n_runs=60)
    request = (file, "--seeds", 1, "--max-em-drop", 0.3, "--json")
    first = online(*request)
    assert first.stdout_bytes == online(*request).stdout_bytes
    assert first.stdout_bytes != online(*request, "--seed", 1).stdout_bytes


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("spec", ["relabel=1@0.5", "class=series:0.9@0.5"])
def test_a_drift_says_when_the_budget_was_kept_again(spec: str) -> None:
    (one,) = lines(online(OWN, "--seeds", 1, "--json", "--drift", spec))
    assert one["drift"] == spec
    assert one["drift_at"] == 50
    assert one["recovery_requests"] == 0, "nothing was ever stopped"
    assert one["recovered"] == 1.0
    result = online(OWN, "--seeds", 1, "--no-report", "--drift", spec)
    assert f"drift {spec} at request 50: alarm in 0 of 1 seeds; 1 returned" in " ".join(result.stdout.split())


def test_a_drift_to_another_file_takes_its_requests(tmp_path: Path) -> None:
    later = made(tmp_path, "later.parquet", n_runs=80)
    (one,) = lines(online(OWN, "--seeds", 1, "--json", "--drift", f"set={later}@0.5"))
    assert one["n_rows"] == 180
    assert one["n_requests"] == 160, "as many as fit with the drift in the middle"


def test_what_was_asked_for_is_marked() -> None:
    result = online(OWN, "--seeds", 1, "--no-report", "--resample", 150)
    assert "resampled: requests were drawn with replacement from 100 runs" in " ".join(result.stdout.split())
    result = online(OWN, "--seeds", 1, "--no-report", "--disjoint")
    assert "disjoint: fitted and certified on one half of the questions" in " ".join(result.stdout.split())


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("n", [1, 3])
def test_a_file_of_hardly_any_runs_is_replayed_and_drawn_too(tmp_path: Path, n: int) -> None:
    few = tmp_path / "few.jsonl"
    few.write_bytes(b"".join(gzip.decompress(OWN.read_bytes()).splitlines(keepends=True)[:n]))
    for more in ((), ("--disjoint", "--no-report"), ("--drift", "relabel=0.5@0.5", "--no-report")):
        result = online(few, "--seeds", 1, *more)
        assert result.exit_code == 0, result.output
        assert "too small to certify" in result.stdout
    assert (tmp_path / "replay-report" / "few.online.png").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((OWN, "--max-em-drop", 0), "--max-em-drop: got 0; with --online above 0 and below 1"),
        ((OWN, "--confidence", 1), "--confidence"),
        ((OWN, "--seeds", 0), "--seeds"),
        ((OWN, "--drift", "weather=bad@0.5"), "allowed: em=EM@AT, model=BEFORE>AFTER@AT, class=NAME:SHARE@AT"),
        ((OWN, "--drift", "em=0.99@0.5"), "leaves no requests before it"),
        ((OWN, "--drift", "class=hard:0.5@0.5"), "no request is of class 'hard'; known: largest, series"),
        ((OWN, "--drift", "set=nowhere.jsonl@0.5"), "nowhere.jsonl: cannot be read"),
        ((OWN, "--drift", f"set={own_traces('reasoning')}@0.5"), "contains reasoning, own_samples contains samples"),
        ((OWN, "--drift", "em=0.5@0.5", "--disjoint"), "--disjoint and --drift: choose one"),
        ((OWN, "--resample", 500, "--disjoint"), "--resample and --disjoint: choose one"),
        ((OWN, "--resample", 5), "--resample"),
        ((OWN, "--where", "task=poetry"), "no run matches 'task=poetry'; there are tasks largest, series"),
        (("nowhere.jsonl",), "nowhere.jsonl: cannot be read"),
        ((OWN, "--fit", OWN, "--margin", 2), "--fit, --margin: not with --online"),
        ((OWN, "--policies", "beta"), "--policies: not with --online"),
    ],
)
def test_what_cannot_be_done_is_a_sentence_and_exit_2(options: tuple[object, ...], sentence: str) -> None:
    result = online(*options)
    assert result.exit_code == 2, result.output
    assert sentence in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_its_options_are_refused_where_they_would_be_ignored() -> None:
    result = CliRunner().invoke(main, ["replay", str(OWN), "--drift", "em=0.5@0.5", "--warm-up", "9"])
    assert result.exit_code == 2
    assert "--drift, --warm-up: only with --online" in result.stderr
