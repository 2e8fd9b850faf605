"""The job `notify`: tells people what the log says is worth it, each sink once, and where notices go.

    log ──▶ alerts_of ──▶ a sink takes it ──▶ an `alert_sent` row: the place up to which that sink knows the log

A sink that fails is tried again, with growing pauses, and holds up no other. What came of it is a sentence without
secrets.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

import msgspec

from suffice.control.jobs.base import JobReport, JobWriter
from suffice.edge.mail import MailServer, send_mail
from suffice.edge.webhook import post_json
from suffice.settings import Alerts
from suffice.store.database.views import LogReader, open_reader
from suffice.store.people.alerts import (
    AlertLog,
    Notice,
    alerts_of,
    deliveries_to,
    owed,
    read_told,
    rows_worth_telling,
)
from suffice.store.routes.rollups import HOUR_S, degraded_runs
from suffice.store.routes.windows import last_place
from suffice.store.rows.records import AlertDelivery, FailOpenCount
from suffice.telemetry import LOG

TIMEOUT_S: Final = 10.0


class Sink(Protocol):
    name: str

    def tell(self, notice: Notice, *, at_s: float, link: str | None) -> str | None:
        """Tell it; None: it was taken, else why not. at_s: Unix time of the event."""
        ...


@dataclass(slots=True)
class LogSink:
    name: str = "log"

    def tell(self, notice: Notice, *, at_s: float, link: str | None) -> str | None:  # noqa: ARG002 - lines have a time
        LOG.warning("alert: %s%s", notice_headline(notice), f" {link}" if link else "")
        return None


@dataclass(slots=True)
class WebhookSink:
    """A webhook that takes what Slack takes: `text`, and beside it the fields for programs."""

    url: str = field(repr=False)
    name: str = "webhook"

    def tell(self, notice: Notice, *, at_s: float, link: str | None) -> str | None:
        text = notice_headline(notice)
        for sign, written in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):  # else Slack makes links of it
            text = text.replace(sign, written)
        body = {
            "text": f"{text}\n{link}" if link else text,
            "mrkdwn": False,
            "kind": notice.kind,
            "route": notice.route,
            "sentence": notice.sentence,
            "over": notice.over,
            "at": format_notice_time(at_s),
            "link": link,
        }
        return post_json(self.url, msgspec.json.encode(body), timeout_s=TIMEOUT_S)


@dataclass(slots=True, kw_only=True)
class MailSink:
    server: MailServer
    sender: str
    to: tuple[str, ...]
    name: str = "email"

    def tell(self, notice: Notice, *, at_s: float, link: str | None) -> str | None:
        about = f" on {notice.route}" if notice.route else ""
        text = f"{notice_headline(notice)}\n\n{format_notice_time(at_s)}\n{link or ''}"
        subject = f"Suffice: {'over: ' if notice.over else ''}{notice.kind.replace('_', ' ')}{about}"
        return send_mail(self.server, sender=self.sender, to=self.to, subject=subject, text=text, timeout_s=TIMEOUT_S)


def notice_headline(notice: Notice) -> str:
    about = f"route {notice.route}: " if notice.route else ""
    return f"{'over: ' if notice.over else ''}{notice.kind.replace('_', ' ')}: {about}{notice.sentence}"


def format_notice_time(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


BATCH: Final = 100  # rows that are read at once for a sink
MOST_TOLD: Final = 1_000  # notices of a sink that are remembered, to tell nothing again too early
FIRST_REST_S: Final = 5.0  # after a sink failed; doubled up to
LAST_REST_S: Final = 600.0
FAIL_OPEN: Final = 0.05  # of the runs of a route in an hour
LEAST_RUNS: Final = 50  # … of at least so many
LOOK_S: Final = 30.0  # between two looks at that


@dataclass(slots=True)
class _Flight:
    notice: Notice
    seq: int
    at_s: float
    over: int = 0  # place of the alert that it says is over
    thread: threading.Thread | None = None
    problem: str | None = None

    def start(self, sink: Sink, link: str | None) -> None:
        def work() -> None:
            try:
                self.problem = sink.tell(self.notice, at_s=self.at_s, link=link)
            except Exception as error:  # noqa: BLE001 - whatever a sink does, the others and the jobs go on
                self.problem = f"the sink broke down ({type(error).__name__})"

        self.thread = threading.Thread(target=work, name=f"notify-{sink.name}", daemon=True)
        self.thread.start()

    def landed(self, patience_s: float) -> bool:
        assert self.thread is not None
        self.thread.join(patience_s)
        return not self.thread.is_alive()


@dataclass(slots=True)
class _Place:
    seq: int
    told: dict[str, float]  # what it was told, and the Unix time of that event
    flight: _Flight | None = None
    fails: int = 0
    rests_until_s: float = float("-inf")  # monotonic


@dataclass(slots=True, kw_only=True)
class Notify:
    settings: Alerts
    path: Path
    sinks: Sequence[Sink]
    now: Callable[[], float]
    monotonic_s: Callable[[], float]
    patience_s: float = 1.0
    name: str = "notify"
    _places: dict[str, _Place] = field(default_factory=dict)
    _looks_at_s: float = float("-inf")
    _alerts: AlertLog | None = None

    def forget(self) -> None:
        self._places.clear()

    def run(self, desk: JobWriter) -> Sequence[JobReport]:
        if not self.sinks or not self.path.is_file():
            return ()
        reports = list[JobReport]()
        with open_reader(self.path) as connection:
            self._look_at_fail_opens(desk, connection)
            for sink in self.sinks:
                reports += self._serve(sink, desk, connection)
        return reports

    def _serve(self, sink: Sink, desk: JobWriter, connection: LogReader) -> Sequence[JobReport]:
        place = self._places.get(sink.name)
        if place is None:
            place = self._places[sink.name] = self._known(sink.name, desk, connection)
        n_told = 0
        waits_s = 0.0  # one that was on its way before this round is not waited for again
        while n_told < BATCH:
            if place.flight is None:
                if self.monotonic_s() < place.rests_until_s:
                    break
                place.flight = self._next(place, connection) or self._next_over(sink.name, place, connection)
                if place.flight is None:
                    break
                place.flight.start(sink, self.link(place.flight.notice))
                waits_s = self.patience_s
            if not place.flight.landed(waits_s):
                break
            flight, place.flight = place.flight, None
            if flight.problem is not None:
                return [self._failed(sink.name, place, flight)]
            self._told(sink.name, place, flight, desk)
            n_told += 1
        return [JobReport(said=f"{sink.name}: told {n_told}", read_to_seq=place.seq)] if n_told else ()

    def _known(self, name: str, desk: JobWriter, connection: LogReader) -> _Place:
        """What the rows say that a sink knows; one that was never told begins here and now."""
        tellings = deliveries_to(connection, name, MOST_TOLD)[::-1]
        if tellings:
            told = {one.same: (one.about_s, one.over) for one in tellings if one.same}
            return _Place(tellings[-1].read_to_seq, {same: at_s for same, (at_s, over) in told.items() if not over})
        newest = last_place(connection)
        begun = AlertDelivery(sink=name, read_to_seq=newest, of="", same="", about_s=self.now())
        desk.write([begun])
        return _Place(newest, {})

    def _next(self, place: _Place, connection: LogReader) -> _Flight | None:
        """The next notice of a sink; rows that tell it nothing are passed by."""
        while rows := rows_worth_telling(connection, place.seq, BATCH):
            for stored in rows:
                notice = alerts_of(stored.event)
                if notice is not None and self._wanted(notice, place, stored.at_s):
                    return _Flight(notice, stored.seq, stored.at_s)
                place.seq = stored.seq
        return None

    def _next_over(self, name: str, place: _Place, connection: LogReader) -> _Flight | None:
        """That something is over which a sink was told of, and has been for a while."""
        if not self.settings.tell_over:
            return None
        self._alerts = read_told(connection, self._alerts or AlertLog(repeat_s=self.settings.repeat_s))
        found = owed(self._alerts, name, self.now())
        if found is None:
            return None
        one, over = found
        return _Flight(replace(one.notice, sentence=over.because, over=True), place.seq, over.at_s, over=one.seq)

    def _wanted(self, notice: Notice, place: _Place, at_s: float) -> bool:
        before_s = place.told.get(notice.same)
        again = before_s is None or at_s - before_s >= self.settings.repeat_s
        return again and notice.kind in self.settings.kinds

    def _told(self, name: str, place: _Place, flight: _Flight, desk: JobWriter) -> None:
        notice = flight.notice
        telling = AlertDelivery(
            sink=name,
            read_to_seq=flight.seq,
            of=notice.kind,
            same=notice.same,
            about_s=flight.at_s,
            over=flight.over,
        )
        desk.write([telling])
        place.seq, place.fails = flight.seq, 0
        if flight.over:
            place.told.pop(notice.same, None)  # it is told at once where it comes back
            return
        place.told[notice.same] = flight.at_s
        if len(place.told) > MOST_TOLD:
            del place.told[min(place.told, key=place.told.__getitem__)]

    def _failed(self, name: str, place: _Place, flight: _Flight) -> JobReport:
        rest_s = min(FIRST_REST_S * 2.0 ** min(place.fails, 10), LAST_REST_S)
        place.fails += 1
        place.rests_until_s = self.monotonic_s() + rest_s
        said = f"{name}: not told: {flight.problem}; tried again in {rest_s:g} s"
        LOG.error("notify: %s", said)
        return JobReport(said=said, ok=False, read_to_seq=place.seq)

    def link(self, notice: Notice) -> str | None:
        """The console's page about a notice; None: nobody said where the console is."""
        return None if self.settings.link is None else f"{self.settings.link.rstrip('/')}/console{notice.path}"

    def _look_at_fail_opens(self, desk: JobWriter, connection: LogReader) -> None:
        if self.monotonic_s() < self._looks_at_s:
            return
        self._looks_at_s = self.monotonic_s() + LOOK_S
        hour = int(self.now() // HOUR_S)
        failures = [
            FailOpenCount(route=route, hour=hour, n_runs=n_runs, n_degraded=n_degraded)
            for route, n_runs, n_degraded in degraded_runs(connection, hour)
            if n_runs >= LEAST_RUNS and n_degraded >= FAIL_OPEN * n_runs
        ]
        if failures:
            desk.write(failures)
