"""Attacks by files that commands read: traces, tables of feedback, people, secrets. Refused whole, with their place."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from suffice.cli.main import main
from suffice.errors import TraceError
from suffice.replay.traces.read import read_traces
from suffice.replay.traces.rows import RunLog
from tests.cli.test_feedback_files import CONFIG, kept, write

CPU_S = 5.0  # of one file, however busy the machine is


@pytest.fixture(autouse=True)
def _cheap() -> Iterator[None]:
    began_s = time.process_time()
    yield
    assert time.process_time() - began_s < CPU_S


# ---- recorded runs

STEP = {"tokens": 5, "answer": "4", "correct": True, "confidence": 0.5}
RUN: dict[str, Any] = {
    "dataset": "d",
    "setting": "reasoning",
    "task": "t",
    "model": "m",
    "run": "first",
    "question_id": "q",
    "aggregation": "last",
    "full_answer": "4",
    "full_em": True,
    "full_tokens": 10,
    "steps": [STEP, STEP],
}
GOOD = json.dumps(RUN).encode() + b"\n"


def with_run(**changes: Any) -> bytes:
    return json.dumps(RUN | {"run": "second"} | changes).encode()


TRACES: dict[str, bytes] = {
    "half a line": GOOD[:100],
    "two runs on one line": GOOD.strip() + GOOD,
    "a comma between lines": b"," + GOOD,
    "a list of runs": b"[" + GOOD.strip() + b"]",
    "another encoding": GOOD.decode().encode("utf-16"),
    "a null byte": b"\0" + GOOD,
    "a page of null bytes": b"\0" * 4_096 + b"\n",
    "bytes that are no text": GOOD.replace(b'"q"', b'"\xff"'),
    "lists without end": b'{"dataset": ' + b"[" * 100_000,
    "lists that end": b'{"dataset": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a number of 5,000 digits": GOOD.replace(b"10", b"9" * 5_000),
    "a number beyond all": GOOD.replace(b"0.5", b"1e999"),
    "not a number": GOOD.replace(b"0.5", b"NaN"),
    "minus infinity": GOOD.replace(b"0.5", b"-Infinity"),
    "a fraction of a token": GOOD.replace(b'"tokens": 5', b'"tokens": 5.5', 1),
    "tokens that are true": GOOD.replace(b'"tokens": 5', b'"tokens": true', 1),
    "tokens in words": GOOD.replace(b'"tokens": 5', b'"tokens": "5"', 1),
    "tokens below nothing": GOOD.replace(b'"tokens": 5', b'"tokens": -5', 1),
    "tokens beyond counting": GOOD.replace(b'"tokens": 5', b'"tokens": 1000000000001', 1),
    "right in words": with_run(full_em="true"),
    "right as a number": with_run(full_em=1),
    "steps that are an object": with_run(steps={"0": STEP}),
    "a step that is a list": with_run(steps=[[5, "4"], [5, "4"]]),
    "a step that is nothing": with_run(steps=[None]),
    "log-probabilities in words": with_run(steps=[STEP | {"logprobs": ["-1"]}, STEP]),
    "a setting that there is not": with_run(setting="reasonning"),
    "a setting that clears the screen": with_run(setting="\x1b[2J"),
    "a sum that is too small": with_run(full_tokens=9),
    "more steps than there are": with_run(n_steps=3),
    "less steps than there are": with_run(n_steps=1),
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("case", TRACES)
def test_a_line_that_is_no_run_is_refused_with_its_number(tmp_path: Path, case: str, *, packed: bool) -> None:
    content = GOOD + b"\n" + TRACES[case]  # a blank line counts
    file = tmp_path / ("runs.jsonl.gz" if packed else "runs.jsonl")
    file.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(TraceError) as refused:
        list(read_traces([file]))
    assert (refused.value.file, refused.value.row) == (str(file), 3)
    assert "repeats the run" not in str(refused.value)
    assert len(str(refused.value)) < 1_000


PACKED: dict[str, bytes] = {
    "no gzip": GOOD,
    "a head and nothing else": gzip.compress(GOOD)[:10],
    "a cut": gzip.compress(GOOD * 50)[:-12],
    "a wrong check sum": gzip.compress(GOOD)[:-8] + b"\0" * 8,
    "rubbish behind it": gzip.compress(GOOD) + b"rubbish",
    "a changed byte": gzip.compress(GOOD)[:40] + b"\xff\xff" + gzip.compress(GOOD)[42:],
}


@pytest.mark.parametrize("case", PACKED)
def test_a_packed_file_that_is_damaged_is_refused(tmp_path: Path, case: str) -> None:
    file = tmp_path / "runs.jsonl.gz"
    file.write_bytes(PACKED[case])
    with pytest.raises(TraceError, match=r"runs\.jsonl\.gz"):
        list(read_traces([file]))


# A recorder cuts the first off, as after a kill; the others are read, and judged with the whole file.
APPENDED = (
    "half a line",
    "a setting that there is not",
    "a setting that clears the screen",
    "a sum that is too small",
    "more steps than there are",
    "less steps than there are",
)


@pytest.mark.parametrize("case", [case for case in TRACES if case not in APPENDED])
def test_a_recorder_overwrites_no_line_that_it_cannot_read(tmp_path: Path, case: str) -> None:
    file = tmp_path / "runs.jsonl"
    content = GOOD + TRACES[case].rstrip(b"\n") + b"\n"
    file.write_bytes(content)
    with pytest.raises(TraceError, match="row 2"):
        RunLog(file)
    assert file.read_bytes() == content


# ---- tables of feedback

ROW = {"feedback_id": "second", "episode_id": "ep_2", "source": "user", "correct": True}
FIRST = json.dumps(ROW | {"feedback_id": "first"}).encode() + b"\n"


def lines(**changes: Any) -> bytes:
    return FIRST + json.dumps(ROW | changes).encode() + b"\n"


HEADER = b"feedback_id,episode_id,source,correct\nfirst,ep_1,user,true\n"
TABLES: dict[str, tuple[str, bytes, str]] = {  # the file, its content and what the answer must name
    "no row of text": ("f.csv", HEADER + b"\xff\xfe,e,user,true\n", "is not UTF-8"),
    "a null character": ("f.csv", HEADER + b"a\0b,e,user,true\n", "row 2, feedback_id"),
    "a cell without end": ("f.csv", HEADER + b'"' + b"x" * 300_000, "row 2: is not valid CSV"),
    "a cell too much": ("f.csv", HEADER + b"a,e,user,true,no\n", "row 2: has 5 cells"),
    "a column twice": ("f.csv", b"correct," + HEADER, "appears twice in the header"),
    "no header": ("f.csv", b"\n\n", "is empty"),
    "nothing": ("f.csv", b"", "is empty"),
    "an object as an id": ("f.jsonl", lines(feedback_id={"a": 1}), "row 2, feedback_id"),
    "a list as an episode": ("f.jsonl", lines(episode_id=["ep_1", "ep_2"]), "row 2, episode_id"),
    "an object as an answer": ("f.jsonl", lines(answer={"a": 1}), "row 2, answer"),
    "a list as a reference": ("f.jsonl", lines(gold=["4", "5"]), "row 2, gold"),
    "an object as a source": ("f.jsonl", lines(source={"user": 1}), "row 2, source"),
    "metrics that are a number": ("f.jsonl", lines(metrics=5), "row 2, metrics"),
    "metrics that are a list": ("f.jsonl", lines(metrics=["clear"]), "row 2, metrics"),
    "a metric that is none": ("f.jsonl", lines(metrics={"clear": "very"}), "row 2, metrics.clear"),
    "a metric that is not declared": ("f.jsonl", lines(metrics={"mood": 1}), "row 2, metrics.mood"),
    "a verdict twice": ("f.jsonl", FIRST + FIRST.replace(b"}", b', "correct": false}'), "row 2: is not valid JSON"),
    "an id twice": ("f.jsonl", FIRST + b'{"episode_id": "a", "episode_id": "b"}\n', "a key appears twice"),
    "a verdict that is no number": ("f.jsonl", FIRST + FIRST.replace(b"true", b"NaN"), "row 2, correct"),
    "a verdict of two": ("f.jsonl", lines(correct=2), "row 2, correct"),
    "a rating beyond all": ("f.jsonl", FIRST + FIRST.replace(b"true", b'true, "rating": 1e999'), "row 2, rating"),
    "a rating of a half": ("f.jsonl", lines(rating=4.5), "row 2, rating"),
    "a rating of 5,000 digits": ("f.jsonl", FIRST + b'{"rating": ' + b"9" * 5_000 + b"}\n", "row 2: is not valid"),
    "a probability of nothing": ("f.jsonl", lines(propensity=0), "row 2, propensity"),
    "a probability above one": ("f.jsonl", lines(propensity=1.5), "row 2, propensity"),
    "an id of a megabyte": ("f.jsonl", lines(feedback_id="x" * 2**20), "row 2, feedback_id"),
    "an answer of a megabyte": ("f.jsonl", lines(answer="x" * 2**20), "row 2, answer"),
    "a list in place of a row": ("f.jsonl", FIRST + b"[]\n", "row 2: must be a JSON object"),
    "lists without end": ("f.jsonl", FIRST + b"[" * 100_000 + b"\n", "row 2: is not valid JSON"),
    "half a line": ("f.jsonl", FIRST + FIRST[:20], "row 2: is not valid JSON"),
    "a file that is no Parquet": ("f.parquet", b"PAR1" + b"\0" * 100 + b"PAR1", "cannot be read as Parquet"),
    "half a Parquet file": ("f.parquet", b"PAR1", "cannot be read as Parquet"),
    "a file of no kind": ("f.xlsx", b"PK", "has an unknown suffix"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SUFFICE_SALT", raising=False)
    (tmp_path / "suffice.toml").write_text(CONFIG.replace("{folder}", str(tmp_path)), encoding="utf-8")
    write(tmp_path)
    (tmp_path / "log.salt").write_text("of these tests", encoding="utf-8")
    return tmp_path


def call(*words: str) -> Result:
    return CliRunner().invoke(main, [*words, "--config", "suffice.toml"])


def refused(*words: str) -> str:
    """Run a command that must end in one sentence, which no file can make into anything else."""
    done = call(*words)
    assert done.exit_code == 2, done.output
    assert isinstance(done.exception, SystemExit)
    assert "Traceback" not in done.output
    assert len(done.output) < 1_000
    assert all(char.isprintable() or char == "\n" for char in done.output)
    return done.output


@pytest.mark.parametrize("case", TABLES)
def test_a_table_with_one_wrong_row_is_refused_whole(folder: Path, case: str) -> None:
    name, content, says = TABLES[case]
    (folder / name).write_bytes(content)
    assert says in refused("feedback", "import", name)
    assert kept(folder) == []


def test_the_same_table_without_its_mistake_is_read(folder: Path) -> None:
    (folder / "f.jsonl").write_bytes(lines(metrics={"clear": 4}, answer=4))
    assert call("feedback", "import", "f.jsonl").exit_code == 0
    assert [one.feedback_id for one in kept(folder)] == ["first", "second"]


def score(**changes: Any) -> Any:
    return {"name": "helpful", "id": "1", "value": 1, "traceId": "ep_1"} | changes


SCORES: dict[str, tuple[Any, str]] = {
    "nothing": (None, "row 1: score: must be an object"),
    "a list of lists": ([[1]], "row 1: score: must be an object"),
    "no name": (score(name=""), "row 1, name"),
    "a name in another type": (score(name=["helpful"]), "row 1, name"),
    "a name that clears the screen": (score(name="\x1b[2J"), "row 1, name"),
    "an id in another type": (score(id=5), "row 1, id"),
    "an id without end": (score(id="x" * 10_000), "row 1, feedback_id"),
    "a source that there is not": (score(source="ADMIN"), "row 1, source"),
    "an object as a source": (score(source={"a": 1}), "row 1, source"),
    "an object as a verdict": (score(value={"a": 1}), "row 1, value"),
    "a verdict that is no number": (score(value=float("nan")), "row 1, value"),
    "a rating that is no number": (score(name="rating", value="nan"), "row 1, rating"),
    "a rating beyond all": (score(name="rating", value=float("inf")), "row 1, rating"),
    "a rating of 5,000 digits": (score(name="rating", value="9" * 5_000), "row 1, rating"),
    "an answer that is missing": (score(name="answer", value=None, dataType="TEXT"), "row 1, value"),
    "an answer that is an object": (score(name="answer", value={"a": 1}, dataType="TEXT"), "row 1, value"),
    "an answer that is a list": (score(name="answer", stringValue=["4"], dataType="CORRECTION"), "row 1, value"),
    "no run": (score(traceId=None), "row 1, traceId"),
    "a run in another type": (score(traceId={"id": "ep_1"}), "row 1, traceId"),
    "metadata without end": (score(traceId=None, metadata="[" * 9_000), "row 1, traceId"),
}


def task(**changes: Any) -> list[Any]:
    chosen = {"from_name": "verdict", "value": {"choices": ["A is right"]}}
    annotation = {"id": 1, "result": [chosen]} | changes
    return [{"annotations": [annotation], "data": {"suffice_episode": "ep_1", "answer_a": "4", "answer_b": "5"}}]


ANNOTATIONS: dict[str, tuple[Any, str]] = {
    "nothing": (None, "must be a list of tasks"),
    "a task of no object": ([5], "must be a list of tasks"),
    "tasks without annotations": ([{"data": {}}], "no task has any"),
    "an annotation of no object": ([{"annotations": ["x", None]}], "row 1, annotation.id"),
    "annotations that are a number": ([{"annotations": 5}], "annotations: "),
    "no id": (task(id=None), "row 1, annotation.id"),
    "a verdict that there is not": (
        task(result=[{"from_name": "verdict", "value": {"choices": [{}]}}]),
        "row 1, verdict",
    ),
    "a time without end": (task(updated_at="x" * 100_000), "row 1, feedback_id"),
    "a person without end": (task(completed_by="x" * 100_000), "row 1, user"),
    "no run": ([{"annotations": [{"id": 1}]}], "row 1, task.data.suffice_episode"),
}


EXPORTS = {"langfuse": SCORES, "label-studio": ANNOTATIONS}


@pytest.mark.parametrize(("form", "case"), [(form, case) for form in EXPORTS for case in EXPORTS[form]])
def test_a_score_or_an_annotation_that_says_nothing_is_refused(folder: Path, form: str, case: str) -> None:
    given, says = EXPORTS[form][case]
    (folder / "f.json").write_text(json.dumps(given), encoding="utf-8")
    assert says in refused("feedback", "import", "f.json", "--form", form)
    assert kept(folder) == []


# ---- the files beside the log

SECRETS: dict[str, bytes] = {
    "empty": b"",
    "white space": b" \n\t\n",
    "null bytes, as after a crash": b"\0" * 32,
    "bytes that are no text": b"\xff\xfe\xff",
    "two lines": b"one\ntwo\n",
    "an escape": b"secret\x1b[2J",
    "without end": b"x" * 5_000,
}


@pytest.mark.parametrize("case", SECRETS)
def test_a_damaged_secret_signs_nothing(folder: Path, case: str) -> None:
    (folder / "log.salt").write_bytes(SECRETS[case])
    (folder / "f.jsonl").write_bytes(FIRST)
    assert "log.salt" in refused("feedback", "import", "f.jsonl")
    assert "log.salt" in refused("audit", "verify")
    assert kept(folder) == []
    assert (folder / "log.salt").read_bytes() == SECRETS[case]


def test_a_folder_in_the_place_of_the_secret_signs_nothing(folder: Path) -> None:
    (folder / "log.salt").unlink()
    (folder / "log.salt").mkdir()
    (folder / "f.jsonl").write_bytes(FIRST)
    assert "log.salt" in refused("feedback", "import", "f.jsonl")


KEY = "ab" * 32


def roster(**changes: Any) -> bytes:
    return json.dumps({"key": KEY, "people": []} | changes).encode()


ROSTERS: dict[str, bytes] = {
    "empty": b"",
    "null bytes": b"\0" * 64,
    "nothing": b"null",
    "a list": b"[]",
    "lists without end": b"[" * 100_000,
    "half of it": roster()[:-2],
    "bytes that are no text": b"\xff\xfe",
    "no key": b'{"people": []}',
    "a short key": roster(key="ab"),
    "a key of white space": roster(key=" " * 64),
    "a key that is mostly white space": roster(key="ab" + " " * 62),
    "a key that is no number": roster(key="z" * 64),
    "a key of half a byte": roster(key="a" * 65),
    "a key in another type": roster(key=5),
    "a role that there is not": roster(people=[{"name": "x", "role": "god"}]),
    "a person without a role": roster(people=[{"name": "x"}]),
    "people by name": roster(people={"x": "admin"}),
    "a tenant that is a number": roster(people=[{"name": "x", "role": "admin", "tenants": 5}]),
    "ended sessions that are a list": roster(ended=[1]),
}


@pytest.mark.parametrize("case", ROSTERS)
def test_a_damaged_file_of_people_lets_nobody_in_and_is_left_as_it_is(folder: Path, case: str) -> None:
    file = folder / "log.people"
    file.write_bytes(ROSTERS[case])
    for words in (("admin", "list"), ("admin", "add", "eve", "--role", "admin"), ("admin", "reset-secret", "admin")):
        assert "log.people" in refused(*words)
    assert file.read_bytes() == ROSTERS[case]
