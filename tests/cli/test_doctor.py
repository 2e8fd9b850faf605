"""`suffice doctor` as a person and a program use it: what it prints, what it keeps, how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.doctor.server import model
from tests.records import plain_request

from suffice.cli.main import main
from suffice.doctor.experiments import EXPERIMENTS
from suffice.settings import Store
from suffice.store.database.views import route_findings, upstream_findings
from suffice.store.database.writer import LogWriter
from suffice.types import Outcome
from suffice.upstream.drivers import honoured
from suffice_testing import FakeUpstream, Reply, ServerBehaviour
from suffice_testing.reply import FakeRequest as Asked
from suffice_testing.reply import Fault


def doctor(*options: object) -> Result:
    return CliRunner().invoke(main, ["doctor", *map(str, options)])


def config(folder: Path, url: str = "http://127.0.0.1:9", more: str = "") -> Path:
    file = folder / "suffice.toml"
    file.write_text(
        f'[upstreams.up]\nurl = "{url}"\nslots = 4\n[routes.math]\nupstream = "up"\nscorer = "number"\n{more}'
        f'[store]\nurl = "sqlite:///{folder}/log.db"\n'
    )
    return file


def write_run(log: LogWriter, name: str, answer: str | None, **changes: Any) -> None:
    request = {"route": "math", "policy_version": "p", "question_key": name} | changes
    log.append(plain_request(name, **request))
    log.append(Outcome(episode_id=name, end_reason="done", status=200, answer=answer, response_id=None, usage=None))


def test_an_upstream_by_name_is_examined_and_its_findings_are_kept(tmp_path: Path) -> None:
    with FakeUpstream.in_thread(
        model(), ServerBehaviour(prefix_cache=True, slots=2, models=("first", "second"))
    ) as fake:
        result = doctor("--upstream", "up", "--config", config(tmp_path, fake.url))
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert "model first" in lines[0]
    for name in EXPERIMENTS:
        assert any(line.split()[:1] == [name] for line in lines), name
    assert "closed by native, then raw, then prefill" in result.stdout
    assert "[upstreams.up]" in result.stdout
    assert "not verified against a live server" in result.stdout
    kept = upstream_findings(tmp_path / "log.db")["up"]
    assert kept.model == "first"
    assert honoured(kept, "prefix_cache")
    assert kept.n_slots == 2


def test_a_program_gets_one_object_and_an_address_without_settings_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with FakeUpstream.in_thread(model(), ServerBehaviour(dialect="openai")) as fake:
        result = doctor("--upstream", fake.url, "--model", "fake", "--json")
    report = json.loads(result.stdout)
    assert [one["experiment"] for one in report["findings"]] == list(EXPERIMENTS)
    assert report["recommendation"]["finish"] == []
    assert report["recommendation"]["may_probe"] is False
    assert report["not_verified"]
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_answers_no_chat_ends_with_1() -> None:
    with FakeUpstream.in_thread(Reply(faults=(Fault(status=500),))) as fake:
        result = doctor("--upstream", fake.url, "--model", "fake")
    assert result.exit_code == 1
    assert "answered 500" in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "name either --upstream or --route"),
        (("--upstream", "http://127.0.0.1:9", "--route", "math"), "name either"),
        (("--upstream", "nowhere"), "need http://host[:port] or a name from the settings"),
        (("--upstream", "http://127.0.0.1:9"), "no answer from"),
        (("--route", "math"), "needs a settings file"),
    ],
)
def test_what_cannot_be_asked_ends_with_2_and_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = doctor(*options)
    assert result.exit_code == 2
    assert result.stderr.startswith("suffice doctor: ")
    assert message in result.stderr or "no connection to" in result.stderr


def test_a_route_is_read_from_its_log(tmp_path: Path) -> None:
    log = LogWriter(Store(url=f"sqlite:///{tmp_path}/log.db"), now=lambda: 0.0)
    for i in range(20):
        write_run(log, f"read{i}", "4", question_key=f"q{i // 2}")  # ten agreeing pairs
    for i in range(20):
        write_run(log, f"lost{i}", None, question_key=f"n{i // 2}")  # no answer never agrees
    write_run(log, "tools", None, ungoverned="tools")
    log.close()
    file = config(tmp_path, more='mode = "enforce"\nuncertified = true\n')
    report = json.loads(doctor("--route", "math", "--config", file, "--json").stdout)
    assert report["logged"] == {"n_runs": 40, "n_extractable": 20, "n_repeats": 20, "n_agreeing": 10, "n_failed": 0}
    assert report["ungoverned"] == {"tools": 1}
    assert report["governed_share"] == pytest.approx(40 / 41)
    assert "20 of the last 40" in report["refused"]
    assert report["audits"]["n_needed"] == 149
    text = doctor("--route", "math", "--config", file).stdout
    assert "REFUSED: scorer 'number'" in text
    assert "50.0% (20 of 40) of full runs" in text
    assert "= 149 audits" in text
    checked = CliRunner().invoke(main, ["config", "check", str(file)]).stdout
    assert "routes.math: behaves as observe: scorer 'number'" in checked
    displayed = CliRunner().invoke(main, ["status", "--all", "--config", str(file)]).stdout
    assert "behaves as observe     scorer 'number' could read the answer of 20 of the last 40" in displayed


def test_questions_are_run_in_full_and_some_twice(tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    lines = [{"question": f"How much is {n} + 0?", "max_tokens": 50} for n in range(10)]
    questions.write_text("\n".join(map(json.dumps, lines)) + "\n\n")

    def says(seen: Asked) -> Reply:
        """Every third question gets no number; the second answer to question 1 is another one."""
        n = int(seen.text.split()[3])
        answer = "I cannot say" if n % 3 == 0 else str(n + 100 * (n == 1 and seen.nth_same > 0))
        return Reply(reasoning=("so ", "7 ", "then "), answer=(answer,))

    with FakeUpstream.in_thread(says, ServerBehaviour(slots=4)) as fake:
        file = config(tmp_path, fake.url)
        result = doctor("--route", "math", "--config", file, "--questions", questions, "--repeats", 3, "--json")
        assert fake.max_in_flight <= 4
    report = json.loads(result.stdout)
    # 0, 1 and 2 are run twice: of 13 runs, 0 (twice), 3, 6 and 9 cannot be read; only 2 agrees with itself.
    assert report["live"] == {"n_runs": 13, "n_extractable": 8, "n_repeats": 3, "n_agreeing": 1, "n_failed": 0}
    kept = route_findings(tmp_path / "log.db")["math"][1]
    assert (kept.scorer, kept.n_runs, kept.n_extractable) == ("number", 13, 8)


@pytest.mark.parametrize("line", ["{oops", '{"answer": 3}', '{"question": 4}', ""])
def test_a_bad_line_of_questions_is_named(tmp_path: Path, line: str) -> None:
    questions = tmp_path / "q.jsonl"
    questions.write_text(line + "\n")
    result = doctor("--route", "math", "--config", config(tmp_path), "--questions", questions)
    assert result.exit_code == 2
    assert "q.jsonl" in result.stderr
