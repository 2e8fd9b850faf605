"""Closed days become Parquet once, without texts, and everything offline reads them as it reads the log."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import polars
import pytest
from polars.testing import assert_frame_equal

from suffice.errors import ConfigError, TraceError
from suffice.learn.dataset import build_dataset
from suffice.replay.archive.days import DayWriter, PendingDay, expand_archives, read_archived_runs, verify_day
from suffice.replay.archive.layout import Archive, part_name, route_in
from suffice.replay.study.sets import replay_set
from suffice.replay.study.study import ReplayOptions
from suffice.replay.traces.read import read_traces, survey
from suffice.store.audit.verify import verify_chain
from suffice.store.database.archiving import DAY_S, range_of_day, remove_runs
from suffice.store.database.decisions import Decisions
from suffice.store.database.views import EpisodeWithLabels, open_reader, read_episodes
from suffice.store.rows.events import FeedbackEvent
from suffice.types import Feedback
from tests.learn.made import GOLD, episodes, match
from tests.postgres import empty_log
from tests.replay.archive.made import (
    CANARY,
    DAY_1_S,
    archive_log,
    archive_store,
    matching,
    observed,
    open_archive,
    write,
    write_to,
)
from tests.replay.archive.made import append as append_to


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of 240 observed runs in three days, and its archive."""
    folder = tmp_path_factory.mktemp("archived")
    archive_log(write(folder, observed(240)), folder)
    return folder


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ---- writing


def test_each_request_stands_in_exactly_one_day_and_manifests_hold_to_the_log(folder: Path) -> None:
    archive = open_archive(folder)
    manifests = list(archive.manifests())
    assert [one.day for one in manifests] == ["2026-01-01", "2026-01-02", "2026-01-03"]
    assert [one.since_seq for one in manifests] == [0, manifests[0].until_seq, manifests[1].until_seq]
    assert [verify_day(archive, one) for one in manifests] == [80, 80, 80]
    ids = [run.episode.request.episode_id for run in read_archived_runs(archive, "r")]
    assert ids == [f"e{number}" for number in range(1, 241)]
    places = [one.chain.place for one in manifests if one.chain]
    assert places == sorted(places)
    assert places[0] > 1


def test_writing_again_writes_nothing_and_all_over_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    before = bytes_of(folder / "archive")
    assert archive_log(folder / "log.db", folder) == ([], [])
    assert bytes_of(folder / "archive") == before
    archive_log(folder / "log.db", tmp_path)
    assert {name.removeprefix(str(tmp_path)): one for name, one in bytes_of(tmp_path / "archive").items()} == {
        name.removeprefix(str(folder)): one for name, one in before.items()
    }


def test_a_day_that_crashed_before_its_manifest_is_written_whole_by_the_next_call(tmp_path: Path) -> None:
    path = write(tmp_path, observed(30))
    archive_log(path, tmp_path)
    whole = bytes_of(tmp_path / "archive")
    again = tmp_path / "again"
    again.mkdir()
    other = write(again, observed(30))
    torn = again / "archive" / part_name("r", "2026-01-01", 0)
    torn.parent.mkdir(parents=True)
    torn.write_bytes(b"PAR1 half a file")
    assert list(open_archive(again).manifests()) == []
    archive_log(other, again)
    parts = [one for name, one in bytes_of(again / "archive").items() if name.endswith(".parquet")]
    assert parts == [one for name, one in whole.items() if name.endswith(".parquet")]


def test_a_day_waits_for_its_end_and_for_every_outcome(tmp_path: Path) -> None:
    items = observed(30)
    path = write(tmp_path, items)
    assert archive_log(path, tmp_path, day=1)[1] == ["2026-01-02 will be closed at 2026-01-03 00:00 UTC"]
    append_to(path, replace(items[0].episode.request, episode_id="hangs", received_at_s=DAY_1_S + 2 * DAY_S))
    manifests, waits = archive_log(path, tmp_path)
    assert [one.day for one in manifests] == ["2026-01-02"]
    assert waits == ["2026-01-03: 1 requests have no outcome yet"]
    append_to(path, replace(items[0].episode.outcome, episode_id="hangs"))
    assert [one.n_requests for one in archive_log(path, tmp_path)[0]] == [11]


def test_a_clock_that_was_set_back_puts_requests_into_the_next_day(tmp_path: Path) -> None:
    path = write(tmp_path, observed(20), n_days=2)
    archive_log(path, tmp_path, day=2)
    late = [
        replace(
            item,
            episode=replace(
                item.episode,
                request=replace(item.episode.request, episode_id=f"x{at}"),
                outcome=replace(item.episode.outcome, episode_id=f"x{at}"),
            ),
        )
        for at, item in enumerate(observed(5))
    ]
    write(tmp_path, late, first_day=0, n_days=1)
    manifests, _ = archive_log(path, tmp_path)
    assert [(one.day, one.n_requests) for one in manifests] == [("2026-01-03", 5)]


def test_an_archive_of_another_log_is_not_overwritten(folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path, observed(12))
    archive = open_archive(folder)
    before = bytes_of(folder / "archive")
    writer = DayWriter(archive=archive, routes={}, matches=matching)
    with open_reader(path) as log, pytest.raises(ConfigError, match="has 2026-01-01 already, from another log"):
        writer.write(log, PendingDay("2026-01-01", range_of_day(log, 0, DAY_1_S + DAY_S)), again=True)
    assert bytes_of(folder / "archive") == before


def test_labels_that_come_later_are_in_a_day_that_is_written_again(tmp_path: Path) -> None:
    bare = [replace(item, labels=()) for item in observed(12)]
    path = write(tmp_path, bare)
    archive_log(path, tmp_path)
    assert not any(run.labels for run in read_archived_runs(open_archive(tmp_path), "r"))
    label = Feedback(feedback_id="late", episode_id="e1", correct=False, source="user")
    append_to(path, FeedbackEvent(label))
    archive_log(path, tmp_path, again=True)
    (first, *_) = read_archived_runs(open_archive(tmp_path), "r")
    assert [one.feedback.correct for one in first.labels] == [False]


def test_no_text_of_a_person_or_a_model_is_in_any_byte(tmp_path: Path) -> None:
    def speak(item: EpisodeWithLabels) -> EpisodeWithLabels:
        request, outcome = item.episode.request, item.episode.outcome
        assert request.query is not None
        query = replace(request.query, metadata=(("team", f"{CANARY}-m"),))
        steps = tuple(replace(step, answer=f"{CANARY}-{step.answer}") for step in outcome.steps)
        outcome = replace(outcome, steps=steps, answer=f"{CANARY}-{outcome.answer}", would_answer=f"{CANARY}-w")
        label = replace(item.labels[0].feedback, gold=f"{CANARY}-{GOLD}", comment=f"{CANARY}-c", reason=f"{CANARY}-r")
        episode = replace(item.episode, request=replace(request, query=query), outcome=outcome)
        return replace(item, episode=episode, labels=(replace(item.labels[0], feedback=label),))

    path = write(tmp_path, [speak(item) for item in observed(30)])
    assert CANARY.encode() in path.read_bytes()
    archive_log(path, tmp_path)
    for file in (tmp_path / "archive").rglob("*.parquet"):
        table = polars.read_parquet(file)
        assert CANARY not in json.dumps(table.drop("received_at").to_dicts())
        assert CANARY.encode() not in file.read_bytes()


@pytest.mark.parametrize("route", ["r", "", "a b", "a/b=c", "ü-π", "..", "%2F"])
def test_any_name_of_a_route_is_one_folder(route: str) -> None:
    name = part_name(route, "2026-01-01", 0)
    assert name.count("/") == 2
    assert route_in(name) == route


# ---- reading


def test_replay_of_the_archive_says_what_the_runs_truly_lose(folder: Path) -> None:
    (data,) = survey(expand_archives([folder / "archive"], cache=folder / "cache"))
    assert (data.set, data.kind, data.n_runs) == ("r", "reasoning", 240)
    policy = {"policy": "stable-answer", "streak": 2}
    report = replay_set(
        data, ReplayOptions(scores=(), families=("stable-answer",), policies={"own": policy}, n_draws=20)
    )
    (line,) = [one for one in report.lines if one.policy == "own"]
    lost = gained = 0
    for item in observed(240):
        answers = [step.answer for step in item.episode.outcome.steps]
        stop = next((at for at in range(1, len(answers)) if answers[at] == answers[at - 1]), None)
        early = item.episode.outcome.answer if stop is None else answers[stop]
        lost += item.episode.outcome.answer == GOLD != early
        gained += early == GOLD != item.episode.outcome.answer
    assert (line.lost, line.gained) == (lost / 240, gained / 240)
    assert lost > 20


def test_a_fit_from_the_archive_equals_the_fit_from_the_log(folder: Path) -> None:
    from_log = build_dataset(read_episodes(folder / "log.db", "r"), match=match)
    archived = build_dataset(read_archived_runs(open_archive(folder), "r"), match=match)
    for name in ("x", "starts", "same", "may_stop", "cost", "full", "full_right", "p_full", "fold", "seq", "stop"):
        np.testing.assert_array_equal(getattr(archived, name), getattr(from_log, name), err_msg=name)
    known = archived.right >= 0  # a wrong full run's better answer needs the reference, which the archive lacks
    np.testing.assert_array_equal(archived.right[known], from_log.right[known])


def test_audits_of_an_enforced_route_are_replayed_and_live_runs_are_not(tmp_path: Path) -> None:
    items = episodes(150, seed=2)
    archive_log(write(tmp_path, items), tmp_path)
    n_audits = sum(item.episode.request.audit for item in items)
    files = expand_archives([tmp_path / "archive"], cache=tmp_path)
    assert sum(len(batch) for batch in read_traces(files)) == n_audits
    assert 0 < n_audits < 40


def test_without_labels_every_stop_that_differs_counts_as_lost(tmp_path: Path) -> None:
    archive_log(write(tmp_path, [replace(item, labels=()) for item in observed(60)]), tmp_path)
    for batch in read_traces(expand_archives([tmp_path / "archive"], cache=tmp_path)):
        assert batch.full_em.all()
        assert (batch.correct == -1).all()


def test_duckdb_and_polars_read_it(folder: Path) -> None:
    files = str(folder / "archive" / "*" / "*" / "*.parquet")
    query = f"SELECT route, day, count(*), avg(full_em::int) FROM read_parquet('{files}') GROUP BY ALL ORDER BY day"
    result = duckdb.sql(query)
    assert result is not None
    rows = result.fetchall()
    right = [item.episode.outcome.answer == GOLD for item in observed(240)]
    assert [(route, str(day), n) for route, day, n, _ in rows] == [("r", f"2026-01-0{at}", 80) for at in (1, 2, 3)]
    assert [em for *_, em in rows] == pytest.approx([np.mean(right[at : at + 80]) for at in (0, 80, 160)])
    scanned = polars.scan_parquet(files, hive_partitioning=True)
    spent = scanned.group_by("route").agg(polars.col("completion_tokens").sum()).collect()
    truly = sum(item.episode.outcome.usage.completion_tokens for item in observed(240) if item.episode.outcome.usage)
    assert spent.rows() == [("r", truly)]


def test_an_object_store_is_read_through_a_checked_cache(folder: Path, tmp_path: Path) -> None:
    from obstore.store import MemoryStore

    store = MemoryStore()
    for path in (folder / "archive").rglob("*"):
        if path.is_file():
            store.put(path.relative_to(folder / "archive").as_posix(), path.read_bytes())
    remote = Archive("memory://", tmp_path / "cache", store, None)
    manifests = list(remote.manifests())
    assert manifests == list(open_archive(folder).manifests())
    part = manifests[0].parts[0]
    first = remote.fetch(part)
    assert first.read_bytes() == (folder / "archive" / part.name).read_bytes()
    store.delete([part.name])
    assert remote.fetch(part) == first
    first.chmod(0o600)
    first.write_bytes(b"x" * part.n_bytes)
    with pytest.raises(TraceError, match="is not the file of which its manifest has the hash"):
        remote.fetch(part)


@pytest.mark.slow(keep=1)
def test_a_log_in_postgresql_gives_the_rows_of_one_in_sqlite_and_forgets_them_as_well(
    folder: Path, tmp_path: Path
) -> None:
    with empty_log() as store:
        location = write_to(store, observed(240))
        archive_store(store, tmp_path)
        (first, *_), (other, *_) = open_archive(tmp_path).manifests(), open_archive(folder).manifests()
        columns = polars.read_parquet(tmp_path / "archive" / first.parts[0].name).drop("seq", "outcome_seq", "labels")
        assert_frame_equal(columns, polars.read_parquet(folder / "archive" / other.parts[0].name)[columns.columns])
        with Decisions(location, now=lambda: DAY_1_S, monotonic_s=lambda: 0.0) as writer:
            assert sum(remove_runs(writer, first.until_seq)) == 80
            assert next(one.episode.request.episode_id for one in read_episodes(location)) == "e81"
        with open_reader(location) as log:
            assert verify_chain(log).ok
