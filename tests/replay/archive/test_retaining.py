"""Retention removes what an archive has and nobody still reads; reports and the audit log stay as they were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from suffice.control.jobs import upkeep
from suffice.control.jobs.upkeep import Retain, Rollup
from suffice.settings import Settings, parse_settings
from suffice.store.audit.verify import verify_chain
from suffice.store.database.archiving import DAY_S
from suffice.store.database.decisions import Decisions
from suffice.store.database.views import open_reader, query_number, read_episodes
from suffice.store.routes import rollups
from suffice.types import Epoch
from tests.replay.archive.made import DAY_1_S, append, archive_log, observed, write


def settings_for(**retention: Any) -> Settings:
    return parse_settings(
        {
            "upstreams": {"u": {"url": "http://127.0.0.1:9"}},
            "routes": {"r": {"upstream": "u", "kind": "reasoning"}},
            "retention": retention,
        }
    )


class Backend:
    """A writer of a job that only has to renew."""

    def renew(self) -> None: ...

    def keep(self, work: Any) -> None: ...


def retain(path: Path, *, day: float, **retention: Any) -> list[str]:
    now_s = DAY_1_S + day * DAY_S
    with Decisions(path, now=lambda: now_s, monotonic_s=lambda: 0.0) as writer:
        job = Retain(
            settings=settings_for(**retention),
            path=path,
            writer=writer,
            now=lambda: now_s,
            monotonic_s=lambda: 0.0,
            new_id=lambda: "er_1",
        )
        return [one.summary for one in job.run(Backend())]  # type: ignore[arg-type]


def sum_up(path: Path) -> None:
    """Run the job that sums the log up, as a worker does all the time."""
    from suffice.control.jobs.base import JobWriter

    with Decisions(path, now=lambda: DAY_1_S, monotonic_s=lambda: 0.0) as writer:
        backend = JobWriter(writer, "rollup", lambda: 0.0)
        assert backend.acquire()
        job = Rollup(settings=settings_for(), path=path, now=lambda: DAY_1_S, monotonic_s=lambda: 0.0)
        job.run(backend)


def n_requests(path: Path) -> int:
    with open_reader(path) as log:
        return query_number(log, "SELECT count(*) FROM events WHERE kind IN ('request', 'outcome')") // 2


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ninety runs in three days, summed up; a cold start reads the latest ten."""
    monkeypatch.setattr(upkeep, "LOOK_BACK", 10)
    path = write(tmp_path, observed(90))
    sum_up(path)
    return path


def test_nothing_goes_before_it_is_archived(log: Path) -> None:
    assert retain(log, day=99, requests_days=1.0) == [""]
    assert n_requests(log) == 90


def test_archived_days_go_on_their_day_and_reports_stay(log: Path) -> None:
    archive_log(log, log.parent)
    with open_reader(log) as reader:
        before = rollups.read_rollups(reader, ("route", "day"))
    assert retain(log, day=3.5, requests_days=2.0) == ["30 requests of archived days removed from the log"]
    assert next(one.episode.request.episode_id for one in read_episodes(log)) == "e31"
    assert retain(log, day=4.5, requests_days=2.0) == ["30 requests of archived days removed from the log"]
    assert retain(log, day=4.6, requests_days=2.0) == [""]
    with open_reader(log) as reader:
        assert rollups.read_rollups(reader, ("route", "day")) == before
        assert verify_chain(reader).ok
        assert query_number(reader, "SELECT count(*) FROM events WHERE kind = 'feedback'") == 90


def test_the_latest_requests_and_those_of_a_running_epoch_stay(log: Path) -> None:
    archive_log(log, log.parent)
    assert retain(log, day=99, requests_days=0.0) == ["80 requests of archived days removed from the log"]
    assert [one.episode.request.episode_id for one in read_episodes(log)] == [f"e{at}" for at in range(81, 91)]


def test_an_epoch_keeps_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "LOOK_BACK", 10)
    path = write(tmp_path, observed(90))
    with open_reader(path) as log:
        since = query_number(log, "SELECT seq FROM events WHERE kind = 'request' AND key = 'e46'") - 1
    append(path, Epoch(route="r", number=1, at=0, since_seq=since, reason="cold start", author="test"))
    sum_up(path)
    archive_log(path, tmp_path)
    settings = settings_for(requests_days=0.0)
    enforced = replace_route(settings)
    monkeypatch.setattr("tests.replay.archive.test_retaining.settings_for", lambda **_: enforced)
    assert retain(path, day=99) == ["45 requests of archived days removed from the log"]
    assert next(one.episode.request.episode_id for one in read_episodes(path)) == "e46"


def replace_route(settings: Settings) -> Settings:
    """The same settings with a route that certifies itself."""
    import msgspec

    route = msgspec.structs.replace(settings.routes["r"], mode="enforce")
    assert route.certifies_itself
    return msgspec.structs.replace(settings, routes={"r": route})


def test_texts_of_removed_rows_are_in_no_byte_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "LOOK_BACK", 0)
    items = [
        replace(item, episode=replace(item.episode, outcome=replace(item.episode.outcome, answer=f"canary-9d {at}")))
        for at, item in enumerate(observed(20))
    ]
    path = write(tmp_path, [replace(item, labels=()) for item in items])
    sum_up(path)
    archive_log(path, tmp_path)
    assert b"canary-9d" in path.read_bytes()
    assert retain(path, day=99, requests_days=0.0)[0].startswith("20 requests")
    for file in tmp_path.glob("log.db*"):
        assert b"canary-9d" not in file.read_bytes()
