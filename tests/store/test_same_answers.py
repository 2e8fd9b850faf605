"""Every reader of the log answers alike on each database: the same events are in all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from suffice.settings import Store
from suffice.store.audit.chain import find_outcome_row, head, read_starts
from suffice.store.audit.verify import verify_chain
from suffice.store.database import erasing, run_search, views
from suffice.store.database.copying import copy_log
from suffice.store.database.decisions import Decisions
from suffice.store.database.postgres import postgres_database
from suffice.store.database.protocol import Database
from suffice.store.database.sqlite import SqliteDatabase
from suffice.store.database.writer import LogWriter
from suffice.store.people import alerts, audit_view, feedback
from suffice.store.routes import deployments, experiments, rollouts, rollups
from suffice.store.rows.events import EVENTS
from suffice.store.rows.sums import RollupKey, RollupSums
from tests.memory import MemoryDatabase
from tests.postgres import empty_log
from tests.store.made_chain import story
from tests.store.test_log import ended, label

Log = views.LogReader


def folded(log: Log) -> Any:
    stretch = rollups.read_stretch(log, 0, 1_000)
    return stretch.n_rows, stretch.last, len(stretch.changes), [type(one).__name__ for one in stretch.changes]


def runs_at(log: Log) -> Any:
    names = [f"e{n}" for n in range(35)]
    return [views.find_runs(log, names, until_seq=seq) for seq in (40, 90, 1_000)]


READERS: Mapping[str, Callable[[Log], Any]] = {
    "episodes": lambda log: [*views.read_episodes(log)],
    "episodes of a route": lambda log: [*views.read_episodes(log, "math", 10, ended_after=5)],
    "recent": lambda log: [*views.read_recent(log, 5)],
    "runs before": lambda log: [tuple(row) for row in run_search.read_runs_before(log, 80, "math", 7, tenants=None)],
    "runs with a text": lambda log: [
        row[0] for row in run_search.read_runs_before(log, 2**40, None, 99, tenants=None, text="e1")
    ],
    "runs named so": lambda log: run_search.find_names(log, "e1", most=5),
    "place at a time": lambda log: [run_search.place_at(log, at_s) for at_s in (0.0, 1.0, 1e3, 1e12)],
    "requests of a route": lambda log: views.n_requests_of(log, ["math", "x"], most=20),
    "newest request": lambda log: views.newest_request(log, "math"),
    "has requests": views.has_requests,
    "extracted": lambda log: views.extracted_answers(log, "math", limit=9),
    "counted": lambda log: [*views.counted_cells(log, "math")],
    "counts": lambda log: views.counts_since(log, "math", 3),
    "place before": lambda log: [views.place_before(log, "math", n) for n in (3, 10_000)],
    "news": lambda log: [views.read_news(log, seq, most=60, owner=2) for seq in (0, 40)],
    "drawn": lambda log: [*views.drawn_runs(log, "math", 0, 10_000)],
    "publications": lambda log: views.read_publications(log, "math"),
    "jobs": views.job_history,
    "label requests": lambda log: [views.read_open_label_requests(log, "math", most=9), views.label_requests(log, "r")],
    "findings": lambda log: [views.upstream_findings(log), views.route_findings(log)],
    "episodes of a response": lambda log: views.episodes_of_response(log, "e1", most=3),
    "decided": deployments.read_decided,
    "holds": deployments.read_holds,
    "phases": deployments.read_phases,
    "last time": deployments.last_at_s,
    "experiments": experiments.read_experiments,
    "rollouts": rollouts.read_rollouts,
    "runs": runs_at,
    "rows to fold": folded,
    "read to": rollups.read_to,
    "tallies": lambda log: rollups.read_tallies(log, ["math"]),
    "classes": rollups.classes_of,
    "unmatched feedback": lambda log: [*feedback.read_unmatched(log)],  # type: ignore[arg-type]
    "all feedback": lambda log: [*feedback.read_all_feedback(log)],  # type: ignore[arg-type]
    "known feedback": lambda log: feedback.find_feedback(log, label(3).feedback),
    "joins": lambda log: [feedback.would_join(log, "e1", None), feedback.would_join(log, None, "e1")],
    "audit log": lambda log: audit_view.read_latest_rows(log, 9, route="math"),
    "audit log since": lambda log: [*audit_view.entries(log, since_s=5.0, kind="feedback")],
    "rows of a page": lambda log: [
        audit_view.entry_of(log, row)
        for chained in (True, False)
        for row in audit_view.rows_before(log, 40, 5, kinds=EVENTS, chained=chained)
    ],
    "alerts": lambda log: [alerts.read_alert_rows(log, 0, 50), alerts.deliveries_to(log, "mail", 3)],
    "chain": verify_chain,
    "head": head,
    "starts": lambda log: [*read_starts(log, "math", 10_000)],
    "outcome": lambda log: find_outcome_row(log, "e1", 10_000),
    "word rows": lambda log: erasing.select_word_rows(log, "e3"),
    "senders": erasing.conversation_senders,
    "of a unit": lambda log: erasing.find_episodes(log, "u"),
    "expired": lambda log: erasing.select_expired_rows(log, 30.0, after_seq=0, until_seq=99, labels=True),
    "erased": lambda log: [erasing.erased_until(log, "all"), erasing.exports_since(log, 0)],
}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Database, ...]]:
    path: Path = tmp_path_factory.mktemp("filled") / "a.db"
    clock = iter(range(10_000))
    log = LogWriter(Store(url=f"sqlite:///{path}"), now=lambda: float(next(clock)))
    for event in story(40):
        log.append(event)
    for number in range(30):
        log.append(ended(f"e{number}"))
        log.append(label(number, sender="late"))
    log.append(label(999))
    log.close()
    with empty_log() as store:
        source, targets = SqliteDatabase(path), (postgres_database(store), MemoryDatabase(str(path)))
        for target in targets:
            copy_log(source, target, now_s=1.0)
        yield source, *targets


@pytest.mark.parametrize("name", READERS)
def test_a_reader_answers_alike(filled: tuple[Database, ...], name: str) -> None:
    answers = list[Any]()
    for database in filled:
        with views.open_reader(database) as log:
            answers.append(READERS[name](log))
    assert answers == [answers[0]] * 3


def test_runs_read_together_are_those_read_one_by_one(filled: tuple[Database, ...]) -> None:
    names = [f"e{n}" for n in range(35)]
    for database in filled:
        with views.open_reader(database) as log:
            for seq in (0, 40, 90, 130, 1_000):
                one_by_one = {name: views.find_run(log, name, until_seq=seq) for name in names}
                together = views.find_runs(log, names, until_seq=seq)
                assert together == {name: run for name, run in one_by_one.items() if run is not None}
            assert sum(len(run.labels) for _, run in together.values()) >= 60


def test_sums_add_up_and_read_alike(filled: tuple[Database, ...]) -> None:
    sums = {
        RollupKey("math", "c", "v", 30): RollupSums(n_requests=3),
        RollupKey("math", "", "w", 50): RollupSums(n_requests=4),
    }
    tenants = {rollups.tenant_key(place, "acme"): one for place, one in sums.items()}
    answers = list[Any]()
    for database in filled:
        with Decisions(database, now=lambda: 1.0, monotonic_s=lambda: 0.0) as writer:
            for since, until in ((0, 5), (5, 9)):
                with writer.transaction() as log:
                    assert rollups.add_rollups(log, sums, {}, tenants=tenants, since=since, seq=until, at_s=1.0)
        with views.open_reader(database) as log:
            groups: tuple[tuple[rollups.Group, ...], ...] = (
                (),
                ("route",),
                ("query_class", "day"),
                ("version",),
                ("hour",),
            )
            answers.append([rollups.read_rollups(log, by, since_hour=24) for by in groups])
            answers[-1].append([tuple(row) for row in rollups.degraded_runs(log, 30)])
            answers[-1] += [rollups.read_rollups(log, ("route", "day"), tenant=name) for name in ("acme", "c")]
    assert answers == [answers[0]] * 3
    assert answers[0][0][()].n_requests == 14
    assert [one.n_requests for one in answers[0][-2].values()] == [6, 8]
    assert answers[0][-1] == {}


def test_words_are_erased_alike_and_the_chain_holds(filled: tuple[Database, ...]) -> None:
    order = erasing.ErasureOrder(
        erasure_id="er", what="a run", parts=("answers", "comments"), author="a", reason="asked"
    )
    checks = list[Any]()
    for database in filled:
        with Decisions(database, now=lambda: 1.0, monotonic_s=lambda: 0.0) as writer:
            with views.open_reader(database) as log:
                rows = erasing.select_word_rows(log, "e3")
            n = erasing.erase_words(writer, order, rows)
        with views.open_reader(database) as log:
            check = verify_chain(log)
            checks.append((n, check.ok, check.n_erased, check.n_rows, [one.event for one in views.read_events(log)]))
    assert checks == [checks[0]] * 3
    assert checks[0][:2] == (checks[0][0], True)
    assert checks[0][0] > 0
