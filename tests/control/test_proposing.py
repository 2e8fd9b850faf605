"""The job `retrain` on real logs: proposals with report cards, when they are due, and in force nowhere."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from suffice.cli.inspect.route_report import proposal_lines
from suffice.cli.inspect.route_status import read_statuses
from suffice.control.evidence.versions import read_back
from suffice.control.jobs.base import JobReport, Worker
from suffice.errors import ConfigError
from suffice.store.database.decisions import read_artefact
from suffice.store.database.views import last_place, newest_event, open_reader
from suffice.store.routes.deployments import read_decided
from suffice.store.rows.events import Event, FeedbackEvent, ProposedVersion
from suffice.types import Alarm, Epoch, Outcome, Request
from suffice.wiring.worker import open_worker
from tests.control.made import CONTROL, ROUTE, traffic
from tests.control.test_worker import fill, settings_for
from tests.control.test_worker import only as report_of

N = 400


def only(here: Worker) -> JobReport:
    """What became of the one route; asked as by a worker that has just begun."""
    return report_of(here, "retrain", anew=True)


def proposed(folder: Path) -> ProposedVersion:
    newest = newest_event(folder / "log.db", ProposedVersion, route="r")
    assert newest is not None
    return newest


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the log of a route that is certified, and has a first proposal."""
    folder = tmp_path_factory.mktemp("certified")
    fill(folder, traffic(N))
    with open_worker(settings_for(folder)) as here:
        assert here.once("certify")
        assert only(here).ok
    return folder


@pytest.fixture
def folder(certified: Path, tmp_path: Path) -> Path:
    shutil.copy(certified / "log.db", tmp_path / "log.db")
    return tmp_path


def test_a_proposal_has_its_version_its_parent_and_its_report_card(folder: Path) -> None:
    newest, held = proposed(folder), read_decided(folder / "log.db").of("r")
    assert held.publication is not None
    assert (newest.reason, newest.parent) == ("schedule", held.publication.fit)
    assert newest.n_runs == N
    assert newest.card is not None
    assert newest.card["version"] == newest.address
    assert newest.lineage["parent"] == newest.parent
    assert newest.saving is not None
    assert newest.saving.low is not None
    with open_reader(folder / "log.db") as connection:
        assert read_back(newest.address, read_artefact(connection, newest.address)).version.address == newest.address


def test_it_is_in_force_nowhere_and_status_names_it(folder: Path) -> None:
    newest, held = proposed(folder), read_decided(folder / "log.db").of("r")
    assert held.publication is not None
    assert held.publication.fit != newest.address
    with open_worker(settings_for(folder)) as here:
        here.once("certify")
    assert read_decided(folder / "log.db").of("r") == held
    (one,) = read_statuses(folder / "log.db", settings_for(folder), "r")
    assert one.proposal is not None
    ((_, line),) = proposal_lines(one.proposal)
    assert line.startswith(newest.address)
    assert line.endswith("active nowhere")


def test_the_next_one_waits_for_its_schedule(folder: Path) -> None:
    first = proposed(folder)
    with open_worker(settings_for(folder)) as here:
        assert only(here).summary == ""
        fill(folder, traffic(CONTROL.refit_requests - 20, first=N))
        assert only(here).summary == ""
        fill(folder, traffic(40, first=N + CONTROL.refit_requests - 20))
        assert only(here).summary.startswith("v-")
        assert only(here).summary == ""
    assert proposed(folder).address != first.address
    assert proposed(folder).n_runs == N + CONTROL.refit_requests + 20


def test_after_an_alarm_it_learns_from_the_new_world_alone(folder: Path) -> None:
    settings = settings_for(folder)
    with open_worker(settings) as here:
        with open_reader(folder / "log.db") as connection:
            since = last_place(connection)
        fill(
            folder,
            [
                Alarm(route="r", epoch=1, at=N, cause="change", reason="another model"),
                Epoch(
                    route="r",
                    number=2,
                    at=N,
                    since_seq=since,
                    reason="another model",
                    author="w",
                    burst=160,
                    max_em_drop=ROUTE.max_em_drop,
                    confidence=ROUTE.confidence,
                ),
                *traffic(150, seed=5, first=N),
            ],
        )
        assert only(here).summary == "", "the burst is not over"
        fill(folder, traffic(20, seed=6, first=N + 150))
        assert only(here).summary.startswith("v-")
    newest = proposed(folder)
    assert (newest.reason, newest.parent, newest.n_runs) == ("drift", None, 170)


def test_a_route_whose_fit_fails_is_said_and_left_alone(folder: Path) -> None:
    settings = settings_for(folder)
    broken = msgspec.structs.replace(settings.routes["r"], scorer="no-such-scorer")
    fill(folder, traffic(CONTROL.refit_requests, first=N))
    with open_worker(msgspec.structs.replace(settings, routes={"r": broken})) as here:
        report = only(here)
        assert not report.ok
        assert report.summary.startswith("nothing proposed: scorer: unknown name")
        assert here.once("retrain") == []


def test_a_route_that_is_observed_without_probes_has_not_failed(tmp_path: Path) -> None:
    def unprobed(event: Event) -> Event:
        if isinstance(event, Request):
            return replace(event, kind="reasoning", mode="observe", audit=False)
        assert isinstance(event, Outcome | FeedbackEvent)
        if isinstance(event, FeedbackEvent):
            return event
        return replace(event, steps=tuple(replace(step, answer=None) for step in event.steps))

    fill(tmp_path, [unprobed(event) for event in traffic(CONTROL.refit_requests)])
    settings = settings_for(tmp_path)
    observed = msgspec.structs.replace(settings.routes["r"], kind="reasoning", mode="observe", samples=1)
    with open_worker(msgspec.structs.replace(settings, routes={"r": observed})) as here:
        report = only(here)
    assert report.ok
    n_runs = CONTROL.refit_requests
    assert report.summary == f"nothing to propose: no run to learn from; left out: {n_runs} unprobed"


def test_a_proposal_is_a_small_row(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "log.db")) as connection:
        (size,) = connection.execute("SELECT max(length(body)) FROM events WHERE kind = 'version_proposed'").fetchone()
    assert size < 30_000


def on_routes(events: list[Event], names: Sequence[str]) -> list[Event]:
    """The same traffic once on each route."""

    def moved(event: Event, name: str) -> Event:
        if isinstance(event, FeedbackEvent):
            given = replace(event.feedback, episode_id=f"{name}{event.feedback.episode_id}")
            return FeedbackEvent(replace(given, feedback_id=f"{name}{given.feedback_id}"))
        assert isinstance(event, Request | Outcome)
        event = replace(event, episode_id=f"{name}{event.episode_id}")
        return replace(event, route=name) if isinstance(event, Request) else replace(event, response_id=None)

    return [moved(event, name) for event in events for name in names]


def test_fits_in_two_processes_propose_what_one_proposes_and_a_failing_route_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, proposals = ("r", "s", "t"), list[list[ProposedVersion]]()
    template = tmp_path / "template"
    template.mkdir()
    began = [Epoch(route=name, number=1, at=0, since_seq=0, reason="cold start", author="w") for name in names]
    fill(template, [*began, *on_routes(traffic(300), names)])
    for n_processes in (1, 2):
        folder = tmp_path / str(n_processes)
        shutil.copytree(template, folder)
        plain = settings_for(folder)
        control = msgspec.structs.replace(plain.control, refit_processes=n_processes)
        settings = msgspec.structs.replace(plain, control=control, routes=dict.fromkeys(names, plain.routes["r"]))
        with open_worker(settings) as here:
            reports = here.once("retrain")
            assert reports is not None
            assert [one.route for one in reports] == list(names)
            assert all(one.summary.startswith("v-") for one in reports), reports
        with open_reader(folder / "log.db") as log:
            newest = [newest_event(log, ProposedVersion, route=name) for name in names]
        proposals.append([replace(one, author="", read_to_seq=0) for one in newest if one is not None])
    assert proposals[0] == proposals[1]
    assert len(proposals[0]) == len(names)

    def fail(*_: object, **__: object) -> None:
        raise ConfigError("scikit-learn is missing")

    monkeypatch.setattr("suffice.control.jobs.proposals.retrain", fail)
    shutil.copytree(template, tmp_path / "failing")
    plain = settings_for(tmp_path / "failing")
    settings = msgspec.structs.replace(plain, routes=dict.fromkeys(names, plain.routes["r"]))
    with open_worker(settings) as here:
        reports = here.once("retrain")
    assert reports is not None
    assert [(one.ok, one.summary) for one in reports] == [(False, "nothing proposed: scikit-learn is missing")] * 3
