"""`suffice record` as a person and a program use it: what it prints, what it writes, how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from suffice.cli.main import main
from suffice.cli.offline.record import live_line
from suffice.replay.record import Progress
from suffice.replay.traces.read import read_traces
from suffice_testing import FakeUpstream, Fault, Questions, Reply, Samples, ScriptedThought, ServerBehaviour

CHAIN = ScriptedThought([("first we guess " * 8 + "\n", "3"), ("then we count " * 10 + "\n", "4")], "4")


def record(*options: object) -> Result:
    return CliRunner().invoke(main, ["record", *map(str, options)])


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    file = tmp_path / "sums.jsonl"
    file.write_text("\n".join(json.dumps({"id": f"q{i}", "question": f"q {i}?", "gold": "4"}) for i in range(6)))
    return file


def test_traces_are_named_after_the_question_file_and_can_be_replayed(questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.jsonl.gz"
    with FakeUpstream.in_thread(CHAIN, ServerBehaviour(slots=4)) as fake:
        result = record(
            questions,
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
            out,
        )
    assert result.exit_code == 0, result.output
    assert f"{out}: 6 of 6 questions, 6 of them now" in result.stdout
    assert "EM 1.000, 3.0 steps" in result.stdout
    (batch,) = read_traces([out])
    assert (set(batch.dataset), set(batch.task), batch.kind, len(batch)) == ({"sums"}, {"sums"}, "reasoning", 6)


def test_a_route_says_kind_scorer_steps_probe_and_upstream(questions: Path, tmp_path: Path) -> None:
    with FakeUpstream.in_thread(Samples(["4", "5", "4"]), ServerBehaviour(slots=4)) as fake:
        config = tmp_path / "suffice.toml"
        config.write_text(
            f'[upstreams.up]\nurl = "{fake.url}"\ndriver = "llama.cpp"\n'
            '[routes.vote]\nupstream = "up"\nkind = "samples"\nsamples = 3\nscorer = "number"\nmodel = "m"\n'
        )
        result = record(questions, "--config", config, "--route", "vote", "--out", tmp_path / "t.jsonl", "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert (summary["n_recorded"], summary["n_left"], summary["run_tokens"]) == (6, 0, 18)
    (batch,) = read_traces([tmp_path / "t.jsonl"])
    assert (batch.kind, set(batch.model)) == ("samples", {"m"})
    assert (batch.offset[1:] - batch.offset[:-1] == 3).all()


def test_questions_that_are_left_are_told_and_end_with_one(questions: Path, tmp_path: Path) -> None:
    model = Questions({"q 3?": lambda _: Reply(faults=(Fault(status=400),))}, otherwise=CHAIN)
    with FakeUpstream.in_thread(model, ServerBehaviour(slots=4)) as fake:
        result = record(
            questions,
            "--upstream",
            fake.url,
            "--model",
            "m",
            "--kind",
            "reasoning",
            "--driver",
            "llama.cpp",
            "--out",
            tmp_path / "t.jsonl",
        )
    assert result.exit_code == 1
    assert "left: q3: the upstream answered 400" in result.stderr
    assert "1 questions are left; the same call goes on with them" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--upstream", "nowhere"), "--upstream: got 'nowhere'; need http://"),
        ((), "--upstream: name a server"),
        (("--upstream", "http://127.0.0.1:9", "--model", "m"), "--kind: got None; allowed: reasoning, samples"),
        (("--upstream", "http://127.0.0.1:9", "--kind", "samples"), "--model: name the model"),
        (("--upstream", "http://127.0.0.1:9", "--driver", "lama"), "--driver: "),
        (("--route", "r"), "--route: needs a settings file"),
    ],
)
def test_what_cannot_be_recorded_exits_with_two_and_leaves_nothing(
    options: tuple[str, ...], message: str, questions: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out" / "t.jsonl"
    result = record(questions, *options, "--out", out)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert not out.exists()


def test_another_ending_than_json_lines_is_refused(questions: Path, tmp_path: Path) -> None:
    result = record(questions, "--upstream", "http://127.0.0.1:9", "--out", tmp_path / "t.parquet")
    assert result.exit_code == 2
    assert ".jsonl or .jsonl.gz" in result.stderr


def test_the_line_of_progress_tells_rate_and_time_left() -> None:
    progress = Progress(n_questions=100, n_before=20, n_recorded=20, n_right=15, run_tokens=1_800, probe_tokens=200)
    assert live_line(progress, 40.0) == "EM 0.75 · 50 tokens/s · 2 min 00 s left"
    progress.failed["q"] = "why"
    assert live_line(progress, 40.0).endswith(" · 1 failed")
    assert not live_line(Progress(n_questions=5, n_before=0), 0.0)
