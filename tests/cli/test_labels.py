"""`suffice review`, `incident` and `override` as a person types them, and as a program reads them."""

from __future__ import annotations

import json
import os
import pty
import random
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.control.made import run as made_run
from tests.review.made import item
from tests.review.test_override import publication

from suffice.cli.main import main
from suffice.report.snapshot import read_held
from suffice.review.holds import incident_of_pause
from suffice.rollout.assign import question_key
from suffice.store.database.decisions import Decisions
from suffice.store.database.views import open_reader
from suffice.store.people.deciding import read_reviews
from suffice.store.routes.deployments import read_holds
from suffice.store.rows.events import Event, QuestionText
from suffice.types import Epoch, Pause
from suffice.wiring.files import load_settings
from suffice.wiring.keys import deployment_salt
from suffice.wiring.routes import build_route

CONFIG = """
[upstreams.local]
url = "http://127.0.0.1:9"
[routes.r]
upstream = "local"
kind = "samples"
samples = 8
mode = "enforce"
scorer = "number"
[routes.r.review]
questions = "questions.jsonl"
[routes.own]
upstream = "local"
policy = {{ policy = "never" }}
[store]
url = "sqlite:///{folder}/log.db"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "suffice.toml").write_text(CONFIG.format(folder=tmp_path), encoding="utf-8")
    (tmp_path / "questions.jsonl").write_text('{"question": "what is 6 * 7?"}\n', encoding="utf-8")
    write(tmp_path)
    return tmp_path


def write(folder: Path, *events: Event) -> None:
    with Decisions(folder / "log.db", now=lambda: 1.0, monotonic_s=lambda: 0.0) as writer:
        assert writer.write(None, events) == [True] * len(events)


def run(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, "--config", str(folder / "suffice.toml")], catch_exceptions=False)


def lines(result: Result) -> list[Any]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def key_of(folder: Path) -> str:
    salt = deployment_salt(load_settings(folder / "suffice.toml"))
    return question_key("what is 6 * 7?", salt=salt)


def report_of(folder: Path) -> list[Event]:
    settings = load_settings(folder / "suffice.toml")
    setup = build_route("r", settings.routes["r"], upstream=settings.upstreams["local"]).setup
    pause = Pause(route="r", number=1, cause="critical_em", reason="EM is 40.0% over the last 60 labels", author="w")
    return [
        Epoch(route="r", number=1, at=0, since_seq=0, reason="cold start", author="w"),
        publication(number=1, epoch=1, level=2, setup=setup),
        publication(number=2, epoch=1, level=6, setup=setup),
        pause,
        incident_of_pause(pause, opened_at_s=9.0, evidence=("24 of 60 were right",)),
    ]


def test_what_waits_is_listed_taken_answered_and_counted(folder: Path) -> None:
    first = item(question_key=key_of(folder), deadline_s=2e9)
    write(folder, first, item("ep_2", priority=1.0))
    (one, second) = lines(run(folder, "review", "list", "--json"))
    assert (one["episode_id"], one["state"], second["episode_id"]) == ("ep_1", "open", "ep_2")
    displayed = run(folder, "review", "list").stdout
    assert "ep_1  r  disagreement  open, due 2033-05-18 03:33 UTC\n  it disagrees" in displayed
    (taken,) = lines(run(folder, "review", "next", "--reviewer", "ann", "--json"))
    assert (taken["question"], taken["lease"]["reviewer"]) == ("what is 6 * 7?", "ann")
    text = run(folder, "review", "next", "--reviewer", "ann").stdout
    for part in ("it disagrees", "what is 6 * 7?", "full answer   42", "early answer  41"):
        assert part in text
    reported = run(folder, "review", "submit", "ep_1", "full", "--reviewer", "ann", "--reason", "carry")
    assert "ep_1: taken; the label is written" in reported.stdout
    again = run(folder, "review", "submit", "ep_1", "full", "--reviewer", "ann", "--reason", "carry")
    assert again.stdout == "ep_1: you already gave this verdict; nothing changed\n"
    (plain,) = lines(run(folder, "review", "submit", "ep_1", "both", "--reviewer", "ann", "--json"))
    assert (plain["label"]["correct"], plain["verdict"]["before"]) == (True, "full")
    (stats, own) = lines(run(folder, "review", "stats", "--json"))
    assert (stats["items"]["settled"], stats["items"]["open"], own["route"]) == (1, 1, "own")
    people = run(folder, "review", "stats", "--route", "r").stdout
    assert "agreement  unknown: no item has two verdicts" in people
    assert "EM         unknown: none of 0 drawings is through" in people


def test_where_the_question_cannot_be_had_it_says_so(folder: Path) -> None:
    write(
        folder,
        item(question_key="gone"),
        item("ep_2", priority=1.0, route="own"),
        QuestionText(episode_id="ep_3", route="own", text="kept words", expires_at_s=9e9),
        item("ep_3", priority=0.5, route="own"),
    )
    for name, where in (("ann", "it is not in"), ("bob", "the log holds no text; name routes.own.review.questions")):
        route = "r" if name == "ann" else "own"
        text = run(folder, "review", "next", "--reviewer", name, "--route", route).stdout
        assert f"question  cannot be had: {where}" in " ".join(text.split("  ")) or where in text
    kept = run(folder, "review", "next", "--reviewer", "cas", "--route", "own").stdout
    assert "kept in the log:\n  kept words" in kept
    assert "nothing waits for dee" in run(folder, "review", "next", "--reviewer", "dee").stdout


def test_contradictions_go_to_a_third(folder: Path) -> None:
    write(folder, item(n_reviewers=2))
    for name, word in (("ann", "full"), ("bob", "early")):
        assert run(folder, "review", "submit", "ep_1", word, "--reviewer", name).exit_code == 0
    assert "nothing waits for ann" in run(folder, "review", "adjudicate", "--reviewer", "ann").stdout
    text = run(folder, "review", "adjudicate", "--reviewer", "cas").stdout
    assert "ann said full\nbob said early" in text
    done = run(folder, "review", "submit", "ep_1", "early", "--reviewer", "cas").stdout
    assert "the label is written" in done
    displayed = run(folder, "review", "stats", "--route", "r").stdout
    assert "kappa" in displayed


@pytest.mark.parametrize(
    ("arguments", "code", "wrong"),
    [
        (("review", "submit", "ep_9", "full"), 1, "unknown item 'ep_9'"),
        (("review", "submit", "ep_1", "right"), 1, "allowed: both, full, early, neither, unsure"),
        (("review", "list", "--route", "nobody"), 2, "unknown route 'nobody'; known: own, r"),
        (("incident", "show", "r:p9"), 2, "unknown incident 'r:p9'; open ones: r:p1"),
        (("incident", "decide", "r:p1", "roll_back", "--reason", "x"), 1, "name the publication"),
        (("incident", "decide", "r:p1", "tighten", "--reason", "x"), 1, "either the highest level"),
        (("incident", "open", "r", "--reason", " "), 1, "a sentence that says what is wrong"),
        (("override", "set", "own", "cap", "--level", "1", "--days", "1", "--reason", "x"), 1, "use observe"),
        (("override", "set", "r", "cap", "--level", "1", "--days", "40", "--reason", "x"), 1, "at most 30 days"),
        (("override", "set", "r", "pin", "--publication", "7", "--days", "1", "--reason", "x"), 1, "publication 7"),
        (("override", "end", "r", "3", "--reason", "x"), 1, "no override 3 holds on route r"),
    ],
)
def test_what_cannot_be_done_is_told_with_what_can(
    folder: Path, arguments: tuple[str, ...], code: int, wrong: str
) -> None:
    write(folder, item(), *report_of(folder))
    results = run(folder, *arguments)
    assert (results.exit_code, wrong in results.stderr) == (code, True), results.stderr


def test_an_incident_is_shown_with_its_evidence_and_decided_once(folder: Path) -> None:
    write(folder, *report_of(folder))
    assert "r:p1" in run(folder, "incident", "list").stdout
    displayed = run(folder, "incident", "show", "r:p1").stdout
    for part in (
        "EM is 40.0% over the last 60 labels",
        "evidence 24 of 60 were right",
        "now      paused: EM is 40.0%",
        "publication 2, level 6: is the latest",
        "publication 1, level 2: can be rolled back to",
    ):
        assert part in displayed
    done = run(
        folder,
        "incident",
        "decide",
        "r:p1",
        "roll_back",
        "--publication",
        "1",
        "--days",
        "3",
        "--reason",
        "bad",
        "--author",
        "ann",
    )
    assert done.exit_code == 0, done.output
    assert "Now: publication 1, level 2" in done.stdout
    assert "no incident waits" in run(folder, "incident", "list").stdout
    (one,) = lines(run(folder, "incident", "list", "--all", "--json"))
    assert (one["decision"]["decision"], one["decision"]["author"], one["is_open"]) == ("roll_back", "ann", False)
    again = run(folder, "incident", "decide", "r:p1", "resume", "--reason", "x")
    assert (again.exit_code, "r:p1 is decided already: roll_back by ann" in again.stderr) == (1, True)
    (pin,) = lines(run(folder, "override", "list", "--json"))
    assert (pin["kind"], pin["pinned"]["number"], pin["incident"]) == ("pin", 1, "r:p1")


def test_an_override_is_set_listed_and_ended(folder: Path) -> None:
    write(folder, *report_of(folder))
    done = run(folder, "override", "set", "r", "cap", "--level", "3", "--days", "2", "--reason", "quarter end")
    assert "Route r, override 1: level 3 at most, until " in done.stdout
    held = run(folder, "override", "list", "r").stdout
    assert "route r: override 1: level 3 at most\n  holds; until" in held
    assert "nothing is held" in run(folder, "override", "list", "own").stdout
    assert "has ended" in run(folder, "override", "end", "r", "1", "--reason", "over", "--author", "bob").stdout
    assert "nothing is held" in run(folder, "override", "list").stdout
    assert "ended by bob: over" in run(folder, "override", "list", "--all").stdout


def test_an_incident_by_hand_pauses_where_asked(folder: Path) -> None:
    text = run(folder, "incident", "open", "r", "--pause", "--reason", "units", "--evidence", "ticket 812").stdout
    assert text == "Incident r:m1 is open; everything runs in full until it is decided.\n"
    (one,) = lines(run(folder, "incident", "show", "r:m1", "--json"))
    assert (one["evidence"][0], one["pause"], one["roll_back_to"]) == ("ticket 812", 1, [])
    assert run(folder, "incident", "decide", "r:m1", "resume", "--reason", "fixed").exit_code == 0


def test_a_person_asks_about_a_run(folder: Path) -> None:
    runs = [made_run(n, random.Random(n), ungoverned="off" if n else None) for n in range(2)]
    write(folder, *(event for request, outcome in runs for event in (request, outcome)))
    requested = run(folder, "review", "ask", "ep_00000", "--reason", "ticket 812", "--author", "bob")
    assert requested.stdout == "Run ep_00000 is in the review queue.\n"
    assert "why       asked for by bob: ticket 812" in run(folder, "review", "next", "--reviewer", "ann").stdout
    for name, wrong in (("ep_00000", "already"), ("ep_00001", "not governed"), ("ep_9", "unknown run 'ep_9'")):
        results = run(folder, "review", "ask", name, "--reason", "x")
        assert (results.exit_code, wrong in results.stderr) == (1, True)
    assert "an author and a reason" in run(folder, "review", "ask", "ep_00000", "--reason", " ").stderr


def test_status_says_what_is_held_and_what_waits(folder: Path) -> None:
    request, outcome = made_run(0, random.Random(0))
    write(
        folder,
        *report_of(folder),
        request,
        outcome,
        item(n_reviewers=2),
        item("ep_2"),
        item("ep_3", route="own"),
    )
    for name, word in (("ann", "full"), ("bob", "early")):
        run(folder, "review", "submit", "ep_1", word, "--reviewer", name)
    run(folder, "override", "set", "r", "cap", "--level", "3", "--days", "2", "--reason", "quarter end")
    text = run(folder, "status", "--all").stdout
    assert "INCIDENT               WAITS FOR A DECISION: r:p1: EM is 40.0% over the last 60 labels" in text
    assert "held by a person       level 3 at most until " in text
    assert "to review              2 runs, 1 of them contradicted: suffice review next" in text
    (plain,) = lines(run(folder, "status", "--json"))
    assert (plain["held"]["n_to_review"], len(plain["held"]["overrides"])) == (2, 1)
    with open_reader(folder / "log.db") as connection:
        assert read_held(connection, {"own": read_holds(connection).of("own")}, now_s=1e12)["own"].n_to_review == 1


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize(
    ("arguments", "again"),
    [
        (("review", "submit", "ep_1", "full", "--reviewer", "ann"), "Submit it again: suffice review submit ep_1 full"),
        (("incident", "decide", "r:p1", "roll_back", "--publication", "1", "--reason", "x"), "Everything is as it was"),
        (("override", "set", "r", "observe", "--days", "1", "--reason", "x"), "Set it again once"),
    ],
)
def test_a_locked_log_is_told_plainly_and_nothing_is_lost(folder: Path, arguments: tuple[str, ...], again: str) -> None:
    write(folder, item(), *report_of(folder))
    with closing(sqlite3.connect(folder / "log.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        before = other.execute("SELECT count(*) FROM events").fetchone()
        results = run(folder, *arguments)
        other.execute("ROLLBACK")
        assert other.execute("SELECT count(*) FROM events").fetchone() == before
    assert results.exit_code == 2
    assert "try again" in results.stderr
    assert again in results.stderr
    assert run(folder, *arguments).exit_code == 0


@pytest.mark.slow
def test_one_key_answers_at_a_terminal(folder: Path) -> None:
    write(folder, item(), item("ep_2", shows="full", priority=1.0))
    parent, terminal = pty.openpty()
    program, report_of = "from suffice.cli.main import main; main()", str(folder / "suffice.toml")
    process = subprocess.Popen(
        [sys.executable, "-c", program, "review", "next", "--reviewer", "ann", "--config", report_of],
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    os.close(terminal)
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    seen, until_s = b"", time.monotonic() + 60
    try:
        while process.poll() is None and time.monotonic() < until_s:
            time.sleep(0.1)
            seen += process.stdout.read() or b""
            if seen.count(b"[q] quit") > seen.count(b": taken"):
                # A key that comes before the terminal listens is lost, as for a person: press it again.
                os.write(parent, b"f" if b"full: taken" not in seen else b"y")
        seen += process.stdout.read() or b""
        assert process.wait(20) == 0, seen
    finally:
        process.kill()
        os.close(parent)
        process.stdout.close()
    assert b"nothing else waits for ann" in seen
    places = read_reviews(folder / "log.db").queue.places
    assert [places[name].verdicts[0].category for name in ("ep_1", "ep_2")] == ["full", "right"]
