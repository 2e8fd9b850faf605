"""`suffice status` tells a person and a program the same, and says what it does not know."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.records import plain_request, plain_step

from suffice.cli.inspect.status import status
from suffice.settings import Store
from suffice.store.database.writer import LogWriter
from suffice.store.rows.events import FeedbackEvent
from suffice.types import Feedback, Outcome, Overhead, Request, Usage

CONFIG = """
[upstreams.local]
url = "http://127.0.0.1:9"
[routes.math]
upstream = "local"
scorer = "number"
confidence = 0.9
[store]
url = "sqlite:///{database}"
"""


def write(log: LogWriter, name: str, *, route: str = "math", gold: str | None = None, **changes: Any) -> None:
    request: dict[str, Any] = {
        "episode_id": name,
        "route": route,
        "kind": "samples",
        "mode": "enforce",
        "model": "m",
        "stream": False,
        "n_samples": 8,
        "audit": False,
        "propensity": 0.9,
        "policy_version": "beta-7",
        "certified": False,
        "question_key": name,
        "ungoverned": None,
        "received_at_s": 0.0,
    }
    happened: dict[str, Any] = {
        "episode_id": name,
        "end_reason": "done",
        "status": 200,
        "answer": "4",
        "response_id": None,
        "usage": Usage(prompt_tokens=10, completion_tokens=100),
        "overhead": Overhead(probe_tokens=2),
    }
    if changes.get("stopped"):
        happened |= {"tokens_saved_estimate": 48, "saved_usd_estimate": changes.get("cost_usd")}
    log.append(Request(**(request | {k: v for k, v in changes.items() if k in request})))
    log.append(Outcome(**(happened | {k: v for k, v in changes.items() if k not in request})))
    if gold is not None:
        log.append(FeedbackEvent(Feedback(feedback_id=name, episode_id=name, gold=gold)))


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A log with two routes: `math`, enforced and labelled, and requests that matched none."""
    log = LogWriter(Store(url=f"sqlite:///{tmp_path}/suffice.db"), now=lambda: 0.0)
    stop: dict[str, Any] = {
        "end_reason": "stopped",
        "stopped": True,
        "usage": Usage(prompt_tokens=10, completion_tokens=50),
    }
    for i in range(40):
        write(log, f"live{i}", gold="4.0" if i % 4 else "5", **stop)
    for i in range(25):
        write(log, f"audit{i}", gold="4", audit=True, propensity=0.1, received_at_s=20.0 * i)
    write(log, "untouched", ungoverned="tools")
    write(log, "elsewhere", route="", mode="off", ungoverned="no route")
    log.append(
        plain_request(
            "running",
            route="math",
            kind="samples",
            mode="enforce",
            n_samples=8,
            propensity=0.9,
            policy_version="beta-7",
        )
    )
    log.close()
    assert isinstance(log.path, Path)
    return log.path


def call(*arguments: object) -> Result:
    """Everything that is known."""
    return brief("--all", *arguments)


def brief(*arguments: object) -> Result:
    return CliRunner().invoke(status, [str(argument) for argument in arguments])


def test_a_person_reads_every_route_in_plain_text(database: Path) -> None:
    result = call("--db", database)
    assert result.exit_code == 0, result.output
    lines = {line[2:24].strip(): line[25:] for line in result.output.split("route math")[1].splitlines()[1:]}
    assert "route (no route matched)" in result.output
    assert lines["mode"] == "enforce"
    assert lines["policy"] == "beta-7"
    assert lines["certified"].startswith("UNCERTIFIED")
    assert lines["requests"] == "67 (1 without an outcome yet)"
    assert lines["governed"] == "98.5%, untouched: tools 1"
    assert lines["ended"] == "stopped 40, done 26"
    assert lines["labels"] == ("65 requests, scored by exact string equality (no --config, so no route scorers)")
    assert lines["audits missing"] == (
        "124 more, in 41 minutes at the present rate, if none of them disagrees,"
        " for an EM drop of at most 2 points at 95% (0 of 25 disagree so far)"
    )
    assert lines["EM, full runs"].startswith("100.0% [")
    assert lines["EM, live runs"].startswith("0.0% [")
    # 65 runs would have taken 100 each: 40 took 52, with their probe, and the audits 102.
    assert lines["saving"].startswith("28.8% [")
    assert "sum over the enforced runs; interval of all runs against audits; " in lines["saving"]
    assert lines["saving"].endswith("; 30.8% before probes and second calls")
    assert lines["would have saved"] == "not measured"
    assert "\x1b" not in result.output
    assert "│" not in result.output


def test_a_program_reads_one_object_a_line(database: Path) -> None:
    result = call("--db", database, "--json")
    assert result.exit_code == 0, result.output
    unmatched, math = [json.loads(line) for line in result.output.splitlines()]
    assert (unmatched["route"], math["route"]) == ("", "math")
    assert math["certified"] is False
    assert (math["n_requests"], math["n_without_outcome"], math["n_audits"]) == (66, 1, 25)
    assert math["measured"]["saving"]["value"] == pytest.approx(1 - (40 * 52 + 25 * 102) / 6_500)
    assert math["measured"]["would_save"] is None
    assert math["evidence"]["n_needed"] == 149
    assert math["evidence"]["n_missing"] == 124
    assert math["evidence"]["wait_s"] == pytest.approx(2_480)
    assert unmatched["governed_share"] == 0.0
    assert json.loads(call("--db", database, "--json", "--route", "math").output) == math


def test_a_configuration_brings_the_routes_scorer_and_confidence(database: Path, tmp_path: Path) -> None:
    config = tmp_path / "suffice.toml"
    config.write_text(CONFIG.format(database=database))
    result = call("--config", config, "--route", "math", "--json")
    assert result.exit_code == 0, result.output
    math = json.loads(result.stdout)
    assert (math["scorer"], math["confidence"]) == ("number", 0.9)
    assert math["measured"]["em_live"]["value"] == pytest.approx(0.75), "4.0 is 4 to a scorer of numbers"


@pytest.mark.slow
def test_labels_are_joined_by_algebra_where_the_route_asks_for_it(tmp_path: Path) -> None:
    file = tmp_path / "suffice.toml"
    file.write_text(CONFIG.format(database=tmp_path / "suffice.db").replace('"number"', '"math"'))
    log = LogWriter(Store(url=f"sqlite:///{tmp_path}/suffice.db"), now=lambda: 0.0)
    for i, gold in enumerate(["2(x+1)", "2x+2", "x+2"]):
        write(log, f"live{i}", answer="2x+2", gold=gold)
    log.close()
    lines = call("--config", file, "--route", "math", "--json").stdout.splitlines()
    (one,) = map(json.loads, lines)
    assert one["scorer"] == "math"
    assert one["measured"]["em_live"]["value"] == pytest.approx(2 / 3), "2(x+1) is 2x+2 to a judge, x+2 is not"


def test_money_stands_beside_tokens_where_there_were_prices(tmp_path: Path) -> None:
    log = LogWriter(Store(url=f"sqlite:///{tmp_path}/suffice.db"), now=lambda: 0.0)
    for i in range(60):
        write(log, f"live{i}", end_reason="stopped", stopped=True, cost_usd=0.5, overhead_usd=0.1)
    for i in range(30):
        write(log, f"audit{i}", audit=True, propensity=0.1, cost_usd=1.25, overhead_usd=0.25)
    write(log, "untouched", ungoverned="tools", cost_usd=12.0)
    write(log, "unknown")
    write(log, "unpriced", route="other")
    log.close()
    math, other = call("--db", log.path, "--route", "math"), call("--db", log.path, "--route", "other")
    lines = {line[2:24].strip(): line[25:] for line in math.output.splitlines()[1:]}
    assert lines["cost, full run"].startswith("$1.00 [$1.00, $1.00] at 95%, n=30")
    assert lines["cost, stopped run"].startswith("$0.50 [")
    assert lines["cost reduction"].startswith("25.0% [")
    # 90 runs at a dollar, less 60 at 50 cents and 30 at 1.25.
    assert lines["saved so far"].startswith("$22.50 [")
    assert lines["cost, all"] == (
        "$79.50 for 91 requests, $12.00 of it untouched, $13.50 for probes, thoughts read again and tokens"
        " thrown away; unknown for 1 request"
    )
    assert "cost                   unknown: no prices are set ([upstreams.NAME.prices])" in other.output
    assert "$" not in other.output
    report = json.loads(call("--db", log.path, "--route", "math", "--json").output)
    assert report["money"]["governed_usd"] == pytest.approx(67.5)
    assert report["measured"]["saved_usd"]["value"] == pytest.approx(22.5)
    assert report["measured"]["saved_usd"]["n"] == 30


def thought(*answers: str | type[Exception] | None) -> dict[str, Any]:
    """A run with a probe behind each step: what was read of its answer, or an exception where it got none."""
    return {
        "kind": "reasoning",
        "mode": "observe",
        "steps": tuple(
            plain_step(
                i,
                tokens=20,
                answer=None if isinstance(answer, type) else answer,
                answer_source=None if isinstance(answer, type) else "probe",
                missing=isinstance(answer, type),
                probe_tokens=4,
            )
            for i, answer in enumerate(answers, 1)
        ),
    }


@pytest.mark.parametrize(
    ("answers", "read", "is_notified"),
    [
        (["4", "4", "5", "4", None], "4 of 5", False),
        (["4", None, "5", "4", None], "3 of 5", True),
        ([None, None, OSError], "0 of 2", True),
        (["4", OSError, OSError], "1 of 1", False),
    ],
)
def test_trial_answers_that_nobody_can_read_are_said_with_what_to_do(
    tmp_path: Path, answers: list[str | type[Exception] | None], read: str, is_notified: bool
) -> None:
    log = LogWriter(Store(url=f"sqlite:///{tmp_path}/suffice.db"), now=lambda: 0.0)
    write(log, "first", **thought(*answers[:2]))
    write(log, "second", **thought(*answers[2:]))
    write(log, "untouched", ungoverned="tools")
    log.close()
    (line,) = [line for line in call("--db", log.path).output.splitlines() if "trial answers read" in line]
    assert line[25:].split(",")[0] == read
    assert ("fewer than 80%" in line) == ("answer_prefix" in line) == is_notified
    report = json.loads(call("--db", log.path, "--json").output)
    assert f"{report['n_trials_read']} of {report['n_trials']}" == read


def test_where_no_probe_was_answered_no_trial_answers_are_counted(database: Path) -> None:
    log = LogWriter(Store(url=f"sqlite:///{database}"), now=lambda: 0.0)
    write(log, "failed", **thought(OSError, OSError))
    log.close()
    assert "trial answers" not in call("--db", log.path).output


def test_a_terminal_gets_a_table(database: Path) -> None:
    ours, theirs = pty.openpty()
    code = "from suffice.cli.inspect.status import status; status()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "--all", "--db", str(database), "--route", "math"],
        stdout=theirs,
        env=os.environ | {"COLUMNS": "120", "TERM": "xterm"},
    ) as displayed:
        os.close(theirs)
        output = b""
        try:
            while chunk := os.read(ours, 65_536):
                output += chunk
        except OSError:  # Linux reports the closed far end of a terminal as an error
            pass
    os.close(ours)
    assert displayed.returncode == 0
    text = output.decode()
    assert "│" in text
    assert "UNCERTIFIED" in text
    assert "route math" in text


@pytest.mark.parametrize("arguments", [["--json"], []])
def test_a_missing_log_is_one_line_and_code_2(tmp_path: Path, arguments: list[str]) -> None:
    result = call("--db", tmp_path / "nothing.db", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "nothing.db: no such file" in result.stderr


def test_an_unknown_route_is_one_line_with_the_known_ones(database: Path) -> None:
    result = call("--db", database, "--route", "maths")
    assert result.exit_code == 2
    assert "'maths'" in result.stderr
    assert "math" in result.stderr
    assert result.stderr.count("\n") == 1


def test_no_configuration_and_no_log_says_what_to_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = call()
    assert result.exit_code == 2
    assert "--config" in result.stderr
    assert "--db" in result.stderr


def test_an_empty_log_is_no_error(tmp_path: Path) -> None:
    LogWriter(Store(url=f"sqlite:///{tmp_path}/new.db"), now=lambda: 0.0).close()
    result = call("--db", tmp_path / "new.db")
    assert result.exit_code == 0
    assert result.output.split("\n")[0] == f"{tmp_path}/new.db: no requests yet"
    assert result.output.split("\n")[1].startswith("  next: ")


def test_help_does_not_load_the_heavy_parts() -> None:
    code = (
        "import sys; from suffice.cli.inspect.status import status\n"
        "print(sorted({'numpy', 'rich', 'sqlite3', 'msgspec', 'asyncio'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_route_that_ratings_hold_down_says_so_and_asks_for_no_audits() -> None:
    from suffice.cli.inspect.route_report import phase_lines
    from suffice.store.routes.deployments import RouteDeployment, phase_of
    from suffice.types import Epoch, EvidenceSummary, Publication

    made = Publication(
        route="math",
        number=2,
        epoch=1,
        at=900,
        version="v@6",
        fit="v",
        level=6,
        n_levels=40,
        certified=True,
        share=0.1,
        reason="stopped runs are rated worse",
        author="w",
        evidence=EvidenceSummary(n_audits=400),
        ceiling=6,
    )
    held = RouteDeployment(
        epoch=Epoch(route="math", number=1, at=0, since_seq=0, reason="x", author="w"), publication=made
    )
    reported = dict(phase_lines(phase_of(held), per_s=None, acts=True))
    assert reported["next level"] == "none: people's ratings allow no higher one yet"
    assert reported["evidence"].endswith("stopped runs are rated worse")


def test_a_control_loop_that_has_decided_nothing_yet_is_seen_to_run(tmp_path: Path) -> None:
    from tests.console.visitor import settings_in

    from suffice.cli.inspect.route_status import read_statuses
    from suffice.store.database.location import log_location
    from suffice.wiring.worker import open_decisions

    settings = settings_in(tmp_path)
    log = LogWriter(Store(url=settings.store.url), now=lambda: 0.0)
    write(log, "ep_1")
    log.close()

    def runs() -> bool:
        (one,) = read_statuses(log_location(settings.store), settings, None)
        assert one.control is not None
        return one.control.attended

    assert not runs()
    with open_decisions(settings) as worker:
        assert worker.acquire("certify") is not None
        assert runs()


# ---- three lines a route -----------------------------------------------------------------------------


def test_a_route_has_three_lines_that_say_what_it_does_what_that_saves_and_what_to_do(database: Path) -> None:
    result = brief("--db", database, "--route", "math")
    assert result.exit_code == 0, result.output
    now, effect, step = result.output.splitlines()
    assert now == "math  UNCERTIFIED: stops by beta-7, whatever it costs, since 1 Jan 1970"
    assert effect.startswith("  tokens saved 28.8 % (")
    assert ", EM drop 0.00 (" in effect
    assert effect.endswith(" of 2 points")
    assert step.startswith("  next: ")
    report = json.loads(call("--db", database, "--json", "--route", "math").output)
    assert now.startswith(f"math  {report['summary']['now']}")
    assert effect.strip() == report["summary"]["effect"]


def many(folder: Path, n: int) -> Path:
    log = LogWriter(Store(url=f"sqlite:///{folder}/many.db"), now=lambda: 0.0)
    for at in range(n):
        for i in range(30):
            lost = {"stop_step": 1, "would_answer": "5"} if at == 17 and i < 9 else {}
            write(log, f"a{at}-{i}", route=f"r{at:02}", audit=True, propensity=0.5, gold="4", certified=True, **lost)
    log.close()
    assert isinstance(log.path, Path)
    return log.path


def test_beyond_twenty_routes_each_has_one_line_and_the_worst_comes_first(tmp_path: Path) -> None:
    lines = brief("--db", many(tmp_path, 21)).output.splitlines()
    assert len(lines) == 21
    assert lines[0].startswith("r17 ")
    assert "EM drop 30.00 of 2 points" in lines[0]


def test_three_lines_fit_a_narrow_terminal_and_have_no_colour_if_nobody_wants_one(database: Path) -> None:
    displayed = at_terminal(["--db", str(database), "--route", "math"], NO_COLOR="1")
    assert "\x1b" not in displayed
    assert all(len(line.rstrip()) <= 80 for line in displayed.splitlines())
    assert len(displayed.splitlines()) == 3
    assert "\x1b[31m" in at_terminal(["--db", str(database), "--route", "math"])


STATUS = "from suffice.cli.inspect.status import status; status()"


def at_terminal(arguments: list[str], *, code: str = STATUS, **environment: str) -> str:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=theirs,
        env={name: value for name, value in os.environ.items() if name != "NO_COLOR"}
        | {"COLUMNS": "80", "TERM": "xterm"}
        | environment,
    ):
        os.close(theirs)
        output = b""
        try:
            while chunk := os.read(ours, 65_536):
                output += chunk
        except OSError:  # as above
            pass
    os.close(ours)
    return output.decode()


@pytest.mark.parametrize(
    ("events", "is_paused", "acts", "since"),
    [
        ("", False, False, None),
        ("E1", False, False, 1),
        ("E1 F2 F3", False, False, 1),
        ("E1 F2 A3 A4", False, True, 3),
        ("E1 A2 F3 F4", False, False, 3),
        ("A1 E2 F3", False, False, 2),
        ("A1 P2 P3", True, False, 3),
        ("A1 P2 R3", False, True, 3),
        ("A1 P2 R3 A4", False, True, 4),
        ("A1 E2 A3", False, True, 3),
    ],
)
def test_since_when_is_read_from_the_decisions(events: str, is_paused: bool, acts: bool, since: float | None) -> None:
    from suffice.report.snapshot import since_when
    from suffice.store.database.log import StoredEvent
    from suffice.types import Epoch, EvidenceSummary, Pause, Publication, Resumption

    common: dict[str, Any] = {"route": "r", "reason": "x", "author": "w", "number": 1}
    made: dict[str, Any] = {"epoch": 1, "at": 1, "version": "v", "fit": "v", "n_levels": 4, "share": 0.1}

    def event(kind: str) -> Any:
        if kind in "AF":
            acting = kind == "A"
            evidence = EvidenceSummary(n_audits=9)
            return Publication(**common, **made, level=2 if acting else 0, certified=acting, evidence=evidence)
        if kind == "E":
            return Epoch(**common, at=0, since_seq=0)
        return Pause(**common, cause="critical_em") if kind == "P" else Resumption(**common)

    rows = [StoredEvent(seq=int(one[1]), at_s=float(one[1]), event=event(one[0])) for one in events.split()]
    assert since_when(rows[::-1], is_paused=is_paused, acts=acts) == since


def test_watching_shows_again_only_what_changed(
    database: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from suffice.cli.inspect import status_output

    looks = [0]

    def sleep(_: float) -> None:
        looks[0] += 1
        if looks[0] == 2:
            log = LogWriter(Store(url=f"sqlite:///{database}"), now=lambda: 0.0)
            write(log, "new", route="other", mode="observe")
            log.close()
        if looks[0] == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        status_output.watch_statuses(None, database, None, as_json=False, shows_all=False)
    displayed = capsys.readouterr().out.split("--- ")[1:]
    assert len(displayed) == 2
    assert "other  observes" not in displayed[0]
    assert "other  observes" in displayed[1]


def test_a_live_view_at_a_terminal_has_its_width_and_colours_and_is_drawn_in_place(database: Path) -> None:
    code = (
        "import time; from suffice.cli.inspect.status import status\n"
        "def sleep(s): raise KeyboardInterrupt\n"
        "time.sleep = sleep; status()"
    )
    displayed = at_terminal(["--watch", "--db", str(database), "--route", "math"], code=code)
    assert "\x1b[31m" in displayed
    assert "\x1b[2J" in displayed, "the screen is cleared"
    assert all(len(line.rstrip()) <= 100 for line in displayed.splitlines())
