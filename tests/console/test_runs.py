"""Runs are found by id and by text, sorted, exported whole, and each says in a sentence why it ended where it did."""

from __future__ import annotations

import csv
import io
import random
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from suffice.console.views.decision_path import read_path
from suffice.console.views.episodes import N_BINS, histogram
from suffice.settings import Store
from suffice.store.database.run_search import read_runs_before
from suffice.store.database.writer import LogWriter
from suffice.store.routes.rollups import ReadTo
from suffice.store.rows.events import Event
from suffice.store.rows.sums import RollupSums
from suffice.types import Outcome, Query, Request, StepRecord
from suffice.wiring.people import People
from tests.console.visitor import Visitor, people_of, settings_in, site
from tests.control.made import run
from tests.records import plain_step

N_RUNS = 700


def step(index: int, reason: str, *, stop: bool = False) -> StepRecord:
    return plain_step(
        index, tokens=50, answer="7", probe_tokens=3, action="stop" if stop else "continue", reason=reason
    )


RISKS = (0.4, 0.11, 0.03, 0.012)
STEPS = tuple(
    step(at, f"risk {risk:.4g} {'<= 0.02, P(as good as the full run) 0.9881' if risk <= 0.02 else 'is above 0.02'}")
    for at, risk in enumerate(RISKS, 1)
)


def made(number: int) -> tuple[Request, Outcome]:
    request, outcome = run(number, random.Random(number))
    query = Query(query_class="algebra", metadata=(("customer", f"Müller-{number % 7}"), ("task", "50% off")))
    request = replace(request, route="math", query=query, question_key=f"q{number // 2}", audit=number % 2 == 0)
    outcome = replace(outcome, answer="7", response_id=f"chatcmpl-{number:05}", duration_s=float(number % 13))
    if number % 2:
        outcome = replace(
            outcome,
            stopped=True,
            end_reason="stopped",
            stop_step=4,
            would_answer="7",
            steps=STEPS,
            decision=STEPS[-1].reason,
        )
    return request, outcome


@contextmanager
def console_on(folder: Path, events: Iterable[Event]) -> Iterator[tuple[Visitor, People, Any]]:
    """The console on a log of these events, with its admin logged in."""
    settings = settings_in(folder)
    people = people_of(settings)
    writer = LogWriter(Store(url=settings.store.url), now=lambda: time.time() - 60)
    for event in events:
        assert writer.append(event)
    assert writer.drain(60)
    writer.close()
    secret = people.first() or ""
    with site(settings) as app:
        admin = Visitor(app)
        admin.login(secret)
        yield admin, people, app


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Visitor, People, Any]]:
    events = (event for number in range(N_RUNS) for event in made(number))
    with console_on(tmp_path_factory.mktemp("runs"), events) as opened:
        yield opened


Log = tuple[Visitor, People, Any]


def lines(log: Log, query: str) -> list[dict[str, Any]]:
    return list(log[0].get(f"/api/episodes?{query}").json["lines"])


def test_a_run_is_found_by_its_id_and_by_the_beginning_of_it(log: Log) -> None:
    name = lines(log, "limit=1")[0]["episode_id"]
    episodes = log[0].get(f"/api/episodes?q={name[:-2]}").json
    assert name in [one["episode_id"] for one in episodes["named"]]
    assert log[0].get(f"/api/episodes?q={name[:-2]}%25").json["named"] == []
    assert lines(log, "q=chatcmpl-00042")[0]["episode_id"] == made(42)[0].episode_id


@pytest.mark.parametrize(
    ("text", "n"), [("customer%3DM%C3%BCller-3", 100), ("50%25 off", 500), ("50_ off", 0), ("ALGEBRA", 500)]
)
def test_the_text_of_metadata_is_searched_as_it_is_written(
    log: Log, monkeypatch: pytest.MonkeyPatch, text: str, n: int
) -> None:
    monkeypatch.setattr("suffice.console.context.LOOK_S", 60.0)  # however busy the machine is
    assert len(lines(log, f"q={text}&limit=500")) == n


def test_runs_are_sorted_among_the_latest_that_match(log: Log) -> None:
    seconds = [one["duration_s"] for one in lines(log, "sort=duration")]
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[0] == 12
    assert "sorted among the latest 500 that match" in log[0].get("/console/runs?sort=duration").text


def test_a_page_says_how_far_a_search_went(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("suffice.console.context.LOOK_S", -1.0)
    page = log[0].get("/console/runs?q=customer%3DM%C3%BCller-3").text
    assert "this looked back to" in page or "older ones were not looked at yet" in page


def test_an_export_has_every_run_that_matches_and_is_sent_in_parts(log: Log) -> None:
    admin = log[0]
    got = admin.post("/console/episodes.csv?end=stopped", {"csrf": admin.token()})
    rows = list(csv.DictReader(io.StringIO(got.body.decode("utf-8-sig"))))
    assert got.status == 200
    assert len(rows) == N_RUNS / 2
    assert len({row["episode"] for row in rows}) == N_RUNS / 2
    assert "content-length" not in got.headers
    entry = admin.get("/api/changes?kind=exported").json["lines"][0]
    assert (entry["author"], "350 rows" in entry["after"]) == ("admin", True)


def test_views_are_saved_for_each_person(log: Log) -> None:
    admin, people, app = log
    rita = Visitor(app)
    rita.login(people.add("rita", "reviewer"))
    form = {"csrf": admin.token(), "name": "lost ones", "query": "route=math&end=differs&evil=1"}
    assert admin.post("/console/views/save", form).status == 303
    assert [(one["name"], one["query"]) for one in admin.get("/api/episodes").json["saved"]] == [
        ("lost ones", "route=math&end=differs")
    ]
    assert rita.get("/api/episodes").json["saved"] == []
    admin.post("/console/views/save", {**form, "query": ""})
    assert admin.get("/api/episodes").json["saved"] == []


def test_a_stopped_run_says_why_and_what_its_audit_twin_answered(log: Log) -> None:
    page = log[0].get(f"/console/runs/{made(41)[0].episode_id}").text
    assert "Stopped at step 4: risk 0.012, allowed 0.02; the audit twin went on to the same answer." in page
    run = log[0].get(f"/api/episodes/{made(41)[0].episode_id}").json
    assert [(one["value"], one["limit"]) for one in run["path"]["points"]] == [(risk, 0.02) for risk in RISKS]
    assert [one["episode_id"] for one in run["twins"]] == [made(40)[0].episode_id]


@pytest.mark.parametrize(
    ("reason", "value", "limit", "stops"),
    [
        ("risk 0.031 is above 0.02", 0.031, 0.02, "at or below"),
        ("confidence 0.912 is below 0.950 at step 3", 0.912, 0.95, "at or above"),
        ("P(lead holds) 0.9512 >= 0.95, 4 of 5 votes", 0.9512, 0.95, "at or above"),
        ("vote entropy 0.500 > 0.3 of 5 votes", 0.5, 0.3, "at or below"),
        ("risk 1e-05 <= 0.02, P(as good as the full run) 0.9", 1e-05, 0.02, "at or below"),
    ],
)
def test_what_a_policy_compared_is_read_from_its_reason(reason: str, value: float, limit: float, stops: str) -> None:
    path = read_path([step(1, reason), step(2, reason)])
    assert path is not None
    assert (path.points[0].value, path.points[0].limit, path.stops) == (value, limit, stops)
    assert all(0 <= one.x <= 1_000 and 0 <= one.y <= 200 for one in path.points)


def test_a_reason_without_numbers_draws_nothing() -> None:
    assert read_path([step(1, "no votes yet"), step(2, "step 3; this policy never stops")]) is None


def test_a_histogram_loses_no_value() -> None:
    rng = random.Random(5)
    for most in (1, 3, 40, 977, 1e6):
        values = [rng.uniform(0, most) for _ in range(200)]
        bins = histogram(values)
        assert sum(one.n for one in bins) == 200
        assert len(bins) <= N_BINS + 1


def test_every_audit_with_a_stop_is_compared_as_lost_or_kept(tmp_path: Path) -> None:
    events = list[Event]()
    for number in range(80):
        request, outcome = made(number)
        if request.audit:  # each second one; each tenth would have ended with another answer
            outcome = replace(outcome, stop_step=2, would_answer="7" if number % 10 else "8")
        events += request, outcome
    with console_on(tmp_path, events) as (admin, _, _):
        losses = admin.get("/api/route/losses?route=math&days=all").json
    assert (losses["n_lost"], losses["n_kept"]) == (8, 32)
    assert losses["examples"][0] == made(70)[0].episode_id, "the latest first"
    assert all(one["low"] <= one["difference"] <= one["high"] for one in losses["contrasts"])


@pytest.mark.parametrize(("n_stopped", "n_listed"), [(0, 0), (1, 50)])
def test_a_search_reads_only_days_for_which_the_sums_have_such_runs(
    log: Log, monkeypatch: pytest.MonkeyPatch, n_stopped: int, n_listed: int
) -> None:
    views, looked = "suffice.console.views.episodes", list[int]()

    def read(*arguments: Any, **named: Any) -> Any:
        looked.append(1)
        return read_runs_before(*arguments, **named)

    day = int(time.time() - 60) // 86_400
    monkeypatch.setattr(f"{views}.read_runs_before", read)
    monkeypatch.setattr(f"{views}.read_to", lambda _: ReadTo(seq=2**40, last=2**40, at_s=0.0))
    monkeypatch.setattr(f"{views}.read_rollups", lambda *_, **__: {(day,): RollupSums(n_stopped=n_stopped)})
    assert len(lines(log, "end=stopped")) == n_listed
    assert bool(looked) is bool(n_stopped)
