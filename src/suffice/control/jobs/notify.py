"""The job `notify` sends each alert of the log to each sink once; a failing sink is retried and delays no other."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import msgspec

from suffice.control.jobs.base import JobReport, JobWriter, LogJob
from suffice.edge.notification import MailServer, post_json, send_mail
from suffice.formatting import format_iso
from suffice.settings import Alerts
from suffice.store.database.views import LogReader, last_place, open_reader
from suffice.store.people import alerts
from suffice.store.people.preferences import (
    active_mutes,
    check_rule,
    describe_check,
    is_muted,
    latest_rules,
    open_rule_alerts,
    window_now,
)
from suffice.store.routes.rollups import HOUR_S, degraded_runs
from suffice.store.rows.events import AlertDelivery, FailOpenCount
from suffice.store.rows.preferences import AlertMute, RuleAlert
from suffice.telemetry import LOG

TIMEOUT_S: Final = 10.0


class Sink(Protocol):
    name: str

    def send(self, notice: alerts.Notice, *, at_s: float, link: str | None) -> str | None:
        """Send a notice; None: it was accepted, else the reason without secrets. at_s: Unix time of the event."""
        ...


@dataclass(slots=True)
class LogSink:
    name: str = "log"

    def send(self, notice: alerts.Notice, *, at_s: float, link: str | None) -> str | None:  # noqa: ARG002 - lines have a time
        LOG.warning("alert: %s%s", notice_headline(notice), f" {link}" if link else "")
        return None


@dataclass(slots=True)
class WebhookSink:
    """A webhook in Slack's format: `text`, and beside it fields for programs."""

    url: str = field(repr=False)
    name: str = "webhook"

    def send(self, notice: alerts.Notice, *, at_s: float, link: str | None) -> str | None:
        text = notice_headline(notice)
        for sign, written in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):  # otherwise Slack makes links of it
            text = text.replace(sign, written)
        body = {
            "text": f"{text}\n{link}" if link else text,
            "mrkdwn": False,
            "kind": notice.kind,
            "route": notice.route,
            "sentence": notice.sentence,
            "over": notice.over,
            "at": format_iso(at_s),
            "link": link,
        }
        return post_json(self.url, msgspec.json.encode(body), timeout_s=TIMEOUT_S)


@dataclass(slots=True, kw_only=True)
class MailSink:
    server: MailServer
    sender: str
    to: tuple[str, ...]
    name: str = "email"

    def send(self, notice: alerts.Notice, *, at_s: float, link: str | None) -> str | None:
        about = f" on {notice.route}" if notice.route else ""
        text = f"{notice_headline(notice)}\n\n{format_iso(at_s)}\n{link or ''}"
        subject = f"Suffice: {'over: ' if notice.over else ''}{notice.kind.replace('_', ' ')}{about}"
        return send_mail(self.server, sender=self.sender, to=self.to, subject=subject, text=text, timeout_s=TIMEOUT_S)


def notice_headline(notice: alerts.Notice) -> str:
    about = f"route {notice.route}: " if notice.route else ""
    return f"{'over: ' if notice.over else ''}{notice.kind.replace('_', ' ')}: {about}{notice.sentence}"


BATCH: Final = 100  # rows read at once for a sink, and notices sent to it in one round
MOST_REMEMBERED: Final = 1_000  # notices of a sink that are remembered, to suppress repeats
FIRST_REST_S: Final = 5.0  # after a sink failed; doubled up to …
LAST_REST_S: Final = 600.0
FAIL_OPEN: Final = 0.05  # share of a route's runs in an hour …
LEAST_RUNS: Final = 50  # … of at least this many
LOOK_S: Final = 30.0  # between two checks


def send_notice(sink: Sink, notice: alerts.Notice, *, at_s: float, link: str | None) -> str | None:
    """Send a notice; return the reason, without secrets, if it was not accepted. Never raises."""
    try:
        return sink.send(notice, at_s=at_s, link=link)
    except Exception as error:  # noqa: BLE001 - a failing sink must stop nothing else
        return f"the sink failed ({type(error).__name__})"


@dataclass(slots=True)
class _Flight:
    notice: alerts.Notice
    delivery: AlertDelivery  # its row, once it is sent
    thread: threading.Thread | None = None
    problem: str | None = None

    def start(self, sink: Sink, link: str | None) -> None:
        def work() -> None:
            self.problem = send_notice(sink, self.notice, at_s=self.delivery.about_s, link=link)

        self.thread = threading.Thread(target=work, name=f"notify-{sink.name}", daemon=True)
        self.thread.start()

    def is_done(self, patience_s: float) -> bool:
        assert self.thread is not None
        self.thread.join(patience_s)
        return not self.thread.is_alive()


@dataclass(slots=True)
class _SinkPlace:
    seq: int
    sent_at_s: dict[str, float]  # Unix time of each notice sent
    flight: _Flight | None = None
    fails: int = 0


@dataclass(kw_only=True)
class Notify(LogJob):
    name = "notify"
    sinks: Sequence[Sink]
    patience_s: float = 1.0
    _places: dict[str, _SinkPlace] = field(init=False, default_factory=dict)
    _alerts: alerts.AlertLog | None = field(init=False, default=None)
    _mutes: tuple[AlertMute, ...] = field(init=False, default=())

    def forget(self) -> None:
        super().forget()
        self._places.clear()

    def run(self, writer: JobWriter) -> Sequence[JobReport]:
        if not self.path.exists():
            return ()
        self._watch(writer)
        if not self.sinks:
            return ()
        with open_reader(self.path) as log:
            self._mutes = active_mutes(log, self.now())
            return [report for sink in self.sinks for report in self._serve(sink, writer, log)]

    def _serve(self, sink: Sink, writer: JobWriter, log: LogReader) -> Sequence[JobReport]:
        place = self._places.get(sink.name)
        if place is None:
            place = self._places[sink.name] = self._restore_place(sink.name, writer, log)
        n_sent = 0
        waits_s = 0.0  # a request sent before this round is not awaited again
        while n_sent < BATCH:
            if place.flight is None:
                if not self.is_due(sink.name):
                    break
                place.flight = self._next(sink.name, place, log) or self._next_resolution(sink.name, place, log)
                if place.flight is None:
                    break
                place.flight.start(sink, link_of(self.settings.alerts, place.flight.notice))
                waits_s = self.patience_s
            if not place.flight.is_done(waits_s):
                break
            flight, place.flight = place.flight, None
            if flight.problem is not None:
                return [self._failed(sink.name, place, flight.problem)]
            self._sent(place, flight, writer)
            n_sent += 1
        return [JobReport(summary=f"{sink.name}: sent {n_sent}", read_to_seq=place.seq)] if n_sent else ()

    def _restore_place(self, name: str, writer: JobWriter, log: LogReader) -> _SinkPlace:
        sent = alerts.deliveries_to(log, name, MOST_REMEMBERED)[::-1]
        if sent:
            places = {one.same: (one.about_s, one.over) for one in sent if one.same}
            return _SinkPlace(sent[-1].read_to_seq, {same: at_s for same, (at_s, over) in places.items() if not over})
        newest = last_place(log)
        writer.write([AlertDelivery(sink=name, read_to_seq=newest, of="", same="", about_s=self.now())])
        return _SinkPlace(newest, {})

    def _next(self, name: str, place: _SinkPlace, log: LogReader) -> _Flight | None:
        while rows := alerts.read_alert_rows(log, place.seq, BATCH):
            for stored in rows:
                notice = alerts.alerts_of(stored.event)
                if notice is not None and self._is_wanted(notice):
                    before_s = place.sent_at_s.get(notice.same)
                    if before_s is None or stored.at_s - before_s >= self.settings.alerts.repeat_s:
                        return _flight(name, notice, stored.seq, stored.at_s)
                place.seq = stored.seq
        return None

    def _next_resolution(self, name: str, place: _SinkPlace, log: LogReader) -> _Flight | None:
        if not self.settings.alerts.tell_over:
            return None
        self._alerts = alerts.read_alert_log(
            log, self._alerts or alerts.AlertLog(repeat_s=self.settings.alerts.repeat_s)
        )
        due = alerts.due_resolution(self._alerts, name, self.now())
        if due is None:
            return None
        one, over = due
        notice = replace(one.notice, sentence=over.because, over=True)
        return _flight(name, notice, place.seq, over.at_s, over=one.seq)

    def _sent(self, place: _SinkPlace, flight: _Flight, writer: JobWriter) -> None:
        delivery = flight.delivery
        writer.write([delivery])
        place.seq, place.fails = delivery.read_to_seq, 0
        if delivery.over:
            place.sent_at_s.pop(delivery.same, None)  # if it returns, it is sent at once
            return
        place.sent_at_s[delivery.same] = delivery.about_s
        if len(place.sent_at_s) > MOST_REMEMBERED:
            del place.sent_at_s[min(place.sent_at_s, key=place.sent_at_s.__getitem__)]

    def _failed(self, name: str, place: _SinkPlace, problem: str) -> JobReport:
        rest_s = min(FIRST_REST_S * 2.0 ** min(place.fails, 10), LAST_REST_S)
        place.fails += 1
        self.rest(rest_s, name)
        sentence = f"{name}: not sent: {problem}; next attempt in {rest_s:g} s"
        LOG.error("notify: %s", sentence)
        return JobReport(summary=sentence, ok=False, read_to_seq=place.seq)

    def _is_wanted(self, notice: alerts.Notice) -> bool:
        return notice.kind in self.settings.alerts.kinds and not is_muted(self._mutes, notice.kind, notice.route)

    def _watch(self, writer: JobWriter) -> None:
        """Raise the alerts that no other job does: of runs that failed open, and of people's rules."""
        if not self.is_due():
            return
        self.rest(LOOK_S)
        with open_reader(self.path) as log:
            events = [*(self._fail_opens(log) if self.sinks else ()), *self._broken_rules(log)]
        if events:
            writer.write(events)

    def _fail_opens(self, log: LogReader) -> list[FailOpenCount]:
        hour = int(self.now() // HOUR_S)
        return [
            FailOpenCount(route=route, hour=hour, n_runs=n_runs, n_degraded=n_degraded)
            for route, n_runs, n_degraded in degraded_runs(log, hour)
            if n_runs >= LEAST_RUNS and n_degraded >= FAIL_OPEN * n_runs
        ]

    def _broken_rules(self, log: LogReader) -> list[RuleAlert]:
        """Rows for rules that are broken on a route now and were not, or the other way round."""
        rules = latest_rules(log)
        known = open_rule_alerts(log) if rules else {}
        rows = list[RuleAlert]()
        for rule in rules:
            for route in (rule.route,) if rule.route else tuple(self.settings.routes):
                check = check_rule(rule, window_now(log, rule, route, self.now()))
                broken, before = check.broken and rule.enabled, known.get((rule.rule, route))
                if broken == (before is not None and before.broken):
                    continue
                rows.append(
                    RuleAlert(
                        rule=rule.rule,
                        revision=rule.revision,
                        route=route,
                        number=1 if before is None else before.number + 1,
                        broken=broken,
                        value=check.value,
                        n_requests=check.n_requests,
                        sentence=describe_check(rule, check) if rule.enabled else "the rule is switched off",
                    )
                )
        return rows


def link_of(alert_settings: Alerts, notice: alerts.Notice) -> str | None:
    """The console's page about a notice; None: the settings hold no address of the console."""
    address = alert_settings.link
    return None if address is None else f"{address.rstrip('/')}/console{notice.path}"


def _flight(sink: str, notice: alerts.Notice, seq: int, at_s: float, *, over: int = 0) -> _Flight:
    of, same = notice.kind, notice.same
    return _Flight(notice, AlertDelivery(sink=sink, read_to_seq=seq, of=of, same=same, about_s=at_s, over=over))
