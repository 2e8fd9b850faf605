"""The jobs that look after the log itself: heads go out on a schedule, words go on their day."""

from __future__ import annotations

import asyncio
import http.server
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from suffice.control import worker_process
from suffice.control.jobs import base
from suffice.control.jobs.base import JobReport
from suffice.control.jobs.upkeep import OVER_S, ExportHeads, PublishSalts, Retain
from suffice.errors import ConfigError
from suffice.rollout.assign import DAY_S, day_salt
from suffice.settings import AuditLog, Settings, Store, parse_settings
from suffice.store.audit.chain import read_heads, signing_key
from suffice.store.audit.verify import verify_chain
from suffice.store.database.decisions import Decisions
from suffice.store.database.sqlite import SqliteConnection
from suffice.store.database.views import newest_events, open_reader
from suffice.store.database.writer import LogWriter
from suffice.store.rows.events import DaySalt, Event, FeedbackEvent
from suffice.types import Epoch, Feedback
from suffice.wiring.gateway import build_gateway
from suffice.wiring.startup import open_log
from suffice.wiring.worker import open_decisions, open_worker
from tests.store.made_chain import feedback, named_request, published
from tests.store.test_erasing import CANARY, bytes_of, ended

SECRET = "secret"
KEY = signing_key(SECRET)


@dataclass
class CollectingWriter(base.JobWriter):
    """Takes what a job writes; nobody else wants the lease."""

    renewed: int = 0
    written: list[Event] = field(default_factory=list)

    def write(self, events: Iterable[Event], artefacts: Mapping[str, str] | None = None) -> None:
        self.written += events

    def keep(self, work: Callable[[Any], Any]) -> Any:
        raise AssertionError("these jobs keep no cache")

    def renew(self) -> None:
        self.renewed += 1


@dataclass
class Clock:
    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


@contextmanager
def receiver(status: int = 200) -> Iterator[tuple[str, list[bytes]]]:
    """A server that takes POSTs; its address, with a secret in it, and what came."""
    came: list[bytes] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(status)
            if status == 302:
                self.send_header("location", self.path)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the standard library's name
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = False  # so that closing waits for them
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/hooks/s3cret?key=s3cret", came
        finally:
            server.shutdown()
            thread.join(5)


def append(database: Path, *events: Event, at_s: float = 1.0) -> None:
    log = LogWriter(Store(url=f"sqlite:///{database}"), now=lambda: at_s)
    for event in events:
        assert log.append(event)
    log.close()


def exporter(database: Path, clock: Clock, *, file: Path | None = None, webhook: str | None = None) -> ExportHeads:
    return ExportHeads(
        settings=Settings(audit=AuditLog(file=str(file or ""), every_s=60.0, timeout_s=2.0)),
        path=database,
        secret=SECRET,
        webhook=webhook,
        now=lambda: 1_764_147_600.0,
        monotonic_s=clock,
    )


def texts(reports: Sequence[JobReport]) -> list[str]:
    return [report.summary for report in reports]


# ---- heads -----------------------------------------------------------------------------------------------------------


def test_a_head_goes_out_on_its_schedule_and_only_when_it_has_moved(tmp_path: Path) -> None:
    database, file, clock = tmp_path / "log.db", tmp_path / "heads.jsonl", Clock()
    job = exporter(database, clock, file=file)
    assert job.run(CollectingWriter()) == (), "there is no log yet"
    append(database, published(1))
    assert texts(job.run(CollectingWriter())) == [f"head at place 2 exported to {file}"]
    append(database, published(2))
    clock.now_s = 59.0
    assert job.run(CollectingWriter()) == ()
    clock.now_s = 61.0
    assert texts(job.run(CollectingWriter())) == [f"head at place 3 exported to {file}"]
    clock.now_s = 130.0
    assert job.run(CollectingWriter()) == [], "nothing has happened since"
    kept = read_heads(file, key=KEY)
    assert [(one.head.place, one.signed, one.at) for one in kept] == [
        (2, True, "2025-11-26T09:00:00Z"),
        (3, True, "2025-11-26T09:00:00Z"),
    ]
    with open_reader(database) as connection:
        assert verify_chain(connection, [one.head for one in kept]).ok


def test_a_worker_that_takes_over_reads_what_was_exported(tmp_path: Path) -> None:
    database, file, clock = tmp_path / "log.db", tmp_path / "heads.jsonl", Clock()
    append(database, published(1))
    assert exporter(database, clock, file=file).run(CollectingWriter())
    second = exporter(database, clock, file=file)
    assert second.run(CollectingWriter()) == []
    second.forget()
    assert second.run(CollectingWriter()) == []
    assert len(file.read_bytes().splitlines()) == 1


def test_a_webhook_gets_the_signed_line_and_one_that_fails_gets_it_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database, clock = tmp_path / "log.db", Clock()
    append(database, published(1))
    with receiver() as (url, came):
        assert texts(exporter(database, clock, webhook=url).run(CollectingWriter())) == [
            "head at place 2 exported to the webhook"
        ]
        assert json.loads(came[0])["place"] == 2
        assert json.loads(came[0])["signature"]
    for status, problem in ((500, "answered 500"), (302, "answered 302")):
        with receiver(status) as (url, came):
            job = exporter(database, clock, webhook=url)
            (report,) = job.run(CollectingWriter())
            assert not report.ok
            assert problem in report.summary
            clock.now_s += 61.0
            assert len(job.run(CollectingWriter())) == 1, "tried again at the next round"
            assert len(came) == 2, "a redirect is not followed"
    (report,) = exporter(database, clock, webhook="http://127.0.0.1:9/hooks/s3cret").run(CollectingWriter())
    assert "could not be reached" in report.summary
    for nonsense in ("ftp://x", "http://", "no address", "http://127.0.0.1:99999/"):
        (report,) = exporter(database, clock, webhook=nonsense).run(CollectingWriter())
        assert "address" in report.summary
    assert "s3cret" not in caplog.text


def test_a_file_that_cannot_be_written_is_said_and_stops_nothing(tmp_path: Path) -> None:
    database, clock = tmp_path / "log.db", Clock()
    append(database, published(1))
    with receiver() as (url, came):
        reports = exporter(database, clock, file=tmp_path / "nowhere" / "heads.jsonl", webhook=url).run(
            CollectingWriter()
        )
        assert [report.ok for report in reports] == [False, True]
        assert len(came) == 1


# ---- retention -------------------------------------------------------------------------------------------------------


@contextmanager
def retaining(database: Path, clock: Clock, now: Clock, **retention: Any) -> Iterator[Retain]:
    settings = parse_settings(
        {
            "upstreams": {"u": {"url": "http://127.0.0.1:9"}},
            "routes": {"math": {"upstream": "u"}},
            "retention": retention,
        }
    )
    names = iter(range(1_000))
    with Decisions(database, now=now, monotonic_s=clock) as writer:
        yield Retain(
            settings=settings,
            path=writer.path,
            writer=writer,
            author="worker",
            now=now,
            monotonic_s=clock,
            new_id=lambda: f"er_{next(names)}",
        )


def labelled(name: str) -> list[Event]:
    words = f"{CANARY}-{name}"
    return [
        named_request(name),
        ended(name, answer=f"{words} 1", would=f"{words} 2"),
        FeedbackEvent(Feedback(feedback_id=f"f-{name}", episode_id=name, gold=f"{words} 1", comment=f"{words} no")),
    ]


def test_words_go_on_their_day_and_are_in_no_byte_of_the_files(tmp_path: Path) -> None:
    database, clock, now = tmp_path / "log.db", Clock(), Clock(100 * DAY_S)
    append(database, *labelled("old"), at_s=5 * DAY_S)
    append(database, *labelled("new"), at_s=80 * DAY_S)
    with retaining(database, clock, now, answers_days=90.0, comments_days=30.0) as job:
        writer = CollectingWriter()
        assert texts(job.run(writer)) == [
            "answers older than 90 days: erased in 2 rows",
            "comments older than 30 days: erased in 1 rows",
        ]
        assert writer.renewed
        assert texts(job.run(writer)) == [], "it rests"
        assert not [name for name, content in bytes_of(tmp_path).items() if f"{CANARY}-old".encode() in content]
        assert f"{CANARY}-new no".encode() in database.read_bytes()
        now.now_s, clock.now_s = 111 * DAY_S, 2 * DAY_S
        assert texts(job.run(writer)) == ["", "comments older than 30 days: erased in 1 rows"]
    with closing(SqliteConnection(database, isolation_level=None)) as connection:
        assert verify_chain(connection).ok
        row = connection.execute("SELECT gold, comment FROM feedback WHERE feedback_id = 'f-new'").fetchone()
    assert row == (f"{CANARY}-new 1", None)


def test_a_reference_goes_with_the_answers_that_it_judges_however_young_it_is(tmp_path: Path) -> None:
    database, clock, now = tmp_path / "log.db", Clock(), Clock(100 * DAY_S)
    *run, label = labelled("old")
    append(database, *run, at_s=5 * DAY_S)
    append(database, label, at_s=99 * DAY_S)
    with retaining(database, clock, now, answers_days=90.0) as job:
        assert texts(job.run(CollectingWriter())) == ["answers older than 90 days: erased in 2 rows"]
    with closing(SqliteConnection(database)) as connection:
        assert connection.execute("SELECT gold, comment FROM feedback").fetchone() == (None, f"{CANARY}-old no")


def test_a_worker_that_takes_over_goes_on_where_the_log_says(tmp_path: Path) -> None:
    database, clock, now = tmp_path / "log.db", Clock(), Clock(100 * DAY_S)
    append(database, *labelled("old"), at_s=5 * DAY_S)
    with retaining(database, clock, now, answers_days=90.0) as job:
        assert job.run(CollectingWriter())[0].summary
    with retaining(database, clock, now, answers_days=90.0) as job:
        assert texts(job.run(CollectingWriter())) == [""]
    with closing(SqliteConnection(database)) as connection:
        assert connection.execute("SELECT count(*) FROM events WHERE kind = 'erased'").fetchone() == (1,)


def test_steps_that_a_running_epoch_reads_stay_and_words_do_not(tmp_path: Path) -> None:
    database, clock, now = tmp_path / "log.db", Clock(), Clock(100 * DAY_S)
    append(database, *labelled("before"), at_s=1 * DAY_S)
    with closing(SqliteConnection(database)) as connection:
        since = connection.execute("SELECT max(seq) FROM events").fetchone()[0]
    epoch = Epoch(route="math", number=1, at=0, since_seq=since, reason="cold start", author="w")
    append(database, epoch, *labelled("within"), at_s=2 * DAY_S)
    with retaining(database, clock, now, answers_days=90.0, steps_days=90.0) as job:
        job.run(CollectingWriter())
    with closing(SqliteConnection(database)) as connection:
        steps = dict(connection.execute("SELECT episode_id, count(*) FROM steps GROUP BY 1").fetchall())
        answers = [one for (one,) in connection.execute("SELECT answer FROM outcomes ORDER BY seq")]
    assert steps == {"within": 3}
    assert answers == ["erased:qa", "erased:qa"] or all(one.startswith("erased:q") for one in answers)
    later = Epoch(route="math", number=2, at=0, since_seq=since + 4, reason="drift", author="w")
    append(database, later, at_s=99 * DAY_S)
    with retaining(database, clock, now, steps_days=90.0) as job:
        job.run(CollectingWriter())
    with closing(SqliteConnection(database)) as connection:
        assert connection.execute("SELECT count(*) FROM steps").fetchone() == (0,)


# ---- beside a gateway, and by hand -----------------------------------------------------------------------------------


def settings_for(folder: Path, **tables: Any) -> Settings:
    return parse_settings(
        {
            "upstreams": {"u": {"url": "http://127.0.0.1:9"}},
            "routes": {"math": {"upstream": "u", "policy": {"policy": "never"}}},
            "store": {"url": f"sqlite:///{folder / 'log.db'}"},
            "console": {"enabled": False},
            **tables,
        }
    )


def test_the_jobs_are_among_those_of_every_worker_and_run_by_hand(tmp_path: Path) -> None:
    append(tmp_path / "log.db", feedback(1))
    settings = settings_for(tmp_path, audit={"file": str(tmp_path / "heads.jsonl")})
    with open_worker(settings) as here:
        reports = here.once("audit")
        assert reports is not None
        assert texts(reports) == [f"head at place 2 exported to {tmp_path / 'heads.jsonl'}"]
    with open_worker(settings, learning=False) as here:
        names = {job.name for job in here.jobs}
    assert names >= {"audit", "retain", "salts"}
    assert not names & {"certify", "monitor", "retrain"}


def publisher(database: Path, now: Clock) -> PublishSalts:
    return PublishSalts(settings=Settings(), path=database, secret=SECRET, author="w", now=now, monotonic_s=now)


def test_the_salt_of_a_day_is_published_once_the_day_is_over_and_binds_the_next(tmp_path: Path) -> None:
    database, now, written = tmp_path / "log.db", Clock(9 * DAY_S + OVER_S - 1), list[DaySalt]()
    append(database, feedback(1))

    def look() -> int:
        with Decisions(database, now=now, monotonic_s=now) as decisions:
            writer = base.JobWriter(decisions, "salts", now)
            assert writer.acquire()
            publisher(database, now).run(writer)
        with open_reader(database) as log:
            written[:] = reversed(newest_events(log, DaySalt, -1))
        return len(written)

    assert look() == 1
    assert written[0].day == 7, "a salt that nobody draws by any more: it binds the next ones"
    now.now_s += 60
    assert look() == 2
    now.now_s += DAY_S - 120
    assert look() == 2, "the day is not over for long enough"
    now.now_s += 4 * DAY_S
    assert look() == 3, "one salt gives those of the days before"
    assert [one.day for one in written] == [7, 8, 12]
    assert [one.salt for one in written] == [day_salt(one.day, salt=SECRET) for one in written]
    assert len({one.since_s for one in written}) == 1


def test_draws_of_gateways_that_may_be_older_are_not_made_again(tmp_path: Path) -> None:
    for name, waits_s in (("empty", 60.0), ("used", DAY_S)):
        database, now, writer = tmp_path / f"{name}.db", Clock(9 * DAY_S), CollectingWriter()
        append(database, feedback(1))
        if name == "used":
            append(database, *labelled("one"))
        publisher(database, now).run(writer)
        (salt,) = writer.written
        assert isinstance(salt, DaySalt)
        assert salt.since_s == now.now_s + waits_s


def test_a_webhook_that_is_named_and_not_there_is_said_at_the_start(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, audit={"webhook_env": "SUFFICE_NO_SUCH_HOOK"})
    with pytest.raises(ConfigError, match=r"audit\.webhook_env: the environment has no SUFFICE_NO_SUCH_HOOK"):
        open_worker(settings).__enter__()
    with pytest.raises(ConfigError, match="SUFFICE_NO_SUCH_HOOK"):
        asyncio.run(build_gateway(settings).__aenter__())


async def test_a_worker_runs_beside_a_gateway_that_only_exports_heads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[str] = []

    async def kept(settings: Settings, notify: Callable[[], None], first_s: float, part: str) -> None:
        began.append(part)

    monkeypatch.setattr(worker_process, "_supervise", kept)
    for tables, wanted in (
        ({}, 0),
        ({"audit": {"file": "heads.jsonl"}}, 1),
        ({"retention": {"steps_days": 9.0}}, 1),
        ({"retention": {"steps_days": 9.0}, "control": {"enabled": False}}, 0),
    ):
        began.clear()
        async with worker_process.run_worker_process(settings_for(tmp_path, **tables), lambda: None):
            await asyncio.sleep(0)
        assert began == ["chores"] * wanted, tables


def test_what_the_settings_redact_is_written_by_nothing_that_is_built_from_them(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, retention={"redact": ["answers", "comments", "metadata"]})
    log = open_log(settings)
    for event in labelled("one"):
        log.append(event)
    log.close()
    with open_decisions(settings) as writer:
        writer.write(None, [FeedbackEvent(Feedback(feedback_id="two", comment=f"{CANARY} two"))])
    assert not [name for name, content in bytes_of(tmp_path).items() if CANARY.encode() in content]
    with closing(SqliteConnection(tmp_path / "log.db")) as connection:
        assert connection.execute("SELECT answer = would_answer FROM outcomes").fetchone() == (0,)


@pytest.mark.parametrize(
    ("table", "key", "value", "says"),
    [
        ("audit", "every_s", 0.0, "at least 1 second"),
        ("audit", "timeout_s", float("inf"), "more than 0"),
        ("audit", "webhook_env", "https://hooks.example.com/s3cret", "name of an environment variable"),
        ("retention", "answers_days", -1.0, "at least 0 days"),
        ("retention", "every_s", float("nan"), "at least 1 second"),
        ("retention", "redact", ["names"], "allowed: answers, comments, questions, metadata"),
    ],
)
def test_what_cannot_work_is_refused_with_its_path(tmp_path: Path, table: str, key: str, value: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=rf"{table}\.{key}") as refused:
        settings_for(tmp_path, **{table: {key: value}})
    assert says in str(refused.value)
    assert "s3cret" not in str(refused.value)
