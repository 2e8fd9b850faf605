"""A log with three days of runs whose truth is known, and its archive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from suffice.assurance.runs import Match
from suffice.replay.archive.days import DayWriter, closed_days
from suffice.replay.archive.layout import Archive, Manifest
from suffice.settings import Route, Store
from suffice.store.database.archiving import DAY_S
from suffice.store.database.location import LogLocation, log_location
from suffice.store.database.views import EpisodeWithLabels, open_reader
from suffice.store.database.writer import LogWriter
from suffice.store.rows.events import DayArchive, Event, FeedbackEvent
from tests.learn.made import Simulation, episodes, match

DAY_1_S = 20_454.0 * DAY_S  # 2026-01-01
CANARY = "canary-5c21"
OBSERVED = Simulation(mode="observe", audit_share=0.0)


@contextmanager
def matching(_: Route) -> Iterator[Match]:
    yield match


def write(folder: Path, items: Sequence[EpisodeWithLabels], *, first_day: int = 0, n_days: int = 3) -> Path:
    """Append runs to the log in a folder, evenly over some days; return its file."""
    write_to(store_in(folder), items, first_day=first_day, n_days=n_days)
    return folder / "log.db"


def store_in(folder: Path) -> Store:
    return Store(url=f"sqlite:///{folder / 'log.db'}")


def write_to(store: Store, items: Sequence[EpisodeWithLabels], *, first_day: int = 0, n_days: int = 3) -> LogLocation:
    at = [DAY_1_S]
    log = LogWriter(store, now=lambda: at[0])
    for number, item in enumerate(items):
        at[0] = DAY_1_S + (first_day + number * n_days / len(items)) * DAY_S
        request = replace(item.episode.request, received_at_s=at[0])
        labels = [FeedbackEvent(replace(one.feedback, episode_id=request.episode_id)) for one in item.labels]
        if number and int(number * n_days / len(items)) > int((number - 1) * n_days / len(items)):
            assert log.drain(20)  # rows get the time at which they are written
        events: list[Event] = [request, item.episode.outcome, *labels]
        assert all(map(log.append, events))
    assert log.drain(20)
    log.close()
    return log_location(store)


def append(path: Path, *events: Event) -> None:
    append_to(store_in(path.parent), *events)


def append_to(store: Store, *events: Event) -> None:
    log = LogWriter(store, now=lambda: DAY_1_S)
    assert all(map(log.append, events))
    assert log.drain(20)
    log.close()


def archive_log(path: Path, folder: Path, *, day: int = 9, again: bool = False) -> tuple[list[Manifest], list[str]]:
    """Archive what is closed on a day; return the manifests, and what is waited for."""
    return archive_store(store_in(path.parent), folder, day=day, again=again)


def archive_store(store: Store, folder: Path, *, day: int = 9, again: bool = False) -> tuple[list[Manifest], list[str]]:
    archive, manifests, waits = open_archive(folder, create=True), list[Manifest](), list[str]()
    writer = DayWriter(archive=archive, routes=dict.fromkeys(("r", "math"), Route(upstream="u")), matches=matching)
    with open_reader(log_location(store)) as log:
        days = closed_days(log, archive.address, now_s=DAY_1_S + day * DAY_S, after_s=0.0, again=again)
        for pending in days:
            if isinstance(pending, str):
                waits.append(pending)
            else:
                manifests.append(writer.write(log, pending, again=again))
    for one in manifests:
        append_to(store, event_of(one, archive))
    return manifests, waits


def event_of(manifest: Manifest, archive: Archive) -> DayArchive:
    return DayArchive(
        day=manifest.day,
        archive=archive.address,
        since_seq=manifest.since_seq,
        until_seq=manifest.until_seq,
        n_requests=manifest.n_requests,
        digest=manifest.digest,
        author="test",
    )


def open_archive(folder: Path, *, create: bool = False) -> Archive:
    return Archive.open(folder / "archive", cache=folder / "cache", create=create)


def observed(n: int, seed: int = 4) -> list[EpisodeWithLabels]:
    return episodes(n, seed=seed, simulation=OBSERVED)


def on_route(name: str, items: Sequence[EpisodeWithLabels]) -> list[EpisodeWithLabels]:
    def move(item: EpisodeWithLabels) -> EpisodeWithLabels:
        return replace(item, episode=replace(item.episode, request=replace(item.episode.request, route=name)))

    return [move(item) for item in items]
