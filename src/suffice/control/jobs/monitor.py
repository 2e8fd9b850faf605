"""The job `monitor`: what full and stopped runs of each route are worth, where that is heading, and an alert in time.

    log ──▶ each row to each route's watch ──▶ Outlook, and Alert before a limit is crossed

Reads and tells; it changes nothing that is in force. A route that cannot be watched is left out and said, and the
others go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from suffice.control.evidence.versions import ServedVersion, read_back
from suffice.control.jobs.base import (
    LONGEST_REST_S,
    LOOK_BACK,
    ComparisonJob,
    JobReport,
    JobWriter,
    LeaseLost,
    rows_since,
    why_of,
)
from suffice.control.jobs.watching import RouteWatch
from suffice.errors import ConfigError, StoreError
from suffice.settings import Route
from suffice.store.database.decisions import read_artefact
from suffice.store.database.views import LogReader, open_reader
from suffice.store.routes.in_force import InForce, read_decided
from suffice.store.routes.windows import newest_outlook, place_before, requests_since
from suffice.store.rows.events import Event
from suffice.telemetry import LOG


@dataclass(slots=True, kw_only=True)
class Monitor(ComparisonJob):
    name: str = "monitor"
    _watches: dict[str, RouteWatch] = field(default_factory=dict)
    _rests: dict[str, float] = field(default_factory=dict)  # routes that are left alone until then, monotonic

    def forget(self) -> None:
        self._watches.clear()

    def run(self, desk: JobWriter) -> Sequence[JobReport]:
        now_s = self.monotonic_s()
        routes = {
            name: route
            for name, route in self.settings.routes.items()
            if route.mode != "off" and self._rests.get(name, now_s) <= now_s
        }
        if not routes or not self.path.is_file():
            return ()
        failed = dict[str, str]()
        with open_reader(self.path) as connection:
            decided = read_decided(connection)
            for name, route in routes.items():
                held = decided.of(name)
                if name not in self._watches or self._watches[name].epoch != held.n_epochs:
                    try:
                        with desk.timed(name):
                            self._watches[name] = self._built(name, route, held, connection)
                    except StoreError:
                        raise
                    except Exception as error:  # noqa: BLE001 - one route's trouble is not the others'
                        failed[name] = self._left(name, error)
            last = self._read(connection, desk, failed)
        return [self._told(name, desk, last, failed) for name in routes]

    def _told(self, name: str, desk: JobWriter, last: int, failed: dict[str, str]) -> JobReport:
        """Look at one route, where that is due, and write what is seen."""
        watch, said = self._watches.get(name), ""
        if watch is not None and watch.is_due(self.settings.control.tick_requests):
            try:
                with desk.timed(name):
                    said = self._look(watch, desk)
            except (LeaseLost, StoreError):
                raise
            except Exception as error:  # noqa: BLE001 - as above
                failed[name] = self._left(name, error)
        return JobReport(
            said=failed.get(name, said),
            route=name,
            ok=name not in failed,
            read_to_seq=last,
            at=watch.n if watch is not None else 0,
        )

    def _look(self, watch: RouteWatch, desk: JobWriter) -> str:
        before = watch.alerts
        outlook, alerts = watch.look(self.author)
        events: list[Event] = [outlook, *(alert for alert in alerts)]
        desk.write(events)
        for alert in alerts:
            LOG.warning("routes.%s: alert: %s", watch.name, alert.reason)
        ended = sorted(set(before) - set(outlook.alerts))
        for of in ended:
            LOG.warning("routes.%s: the alert on its %s has ended", watch.name, of)
        # Told in history where something changed; a look without news is a row of its own already.
        return "; ".join([*(f"alert: {alert.reason}" for alert in alerts), *(f"alert on {of} ended" for of in ended)])

    def _built(self, name: str, route: Route, held: InForce, connection: LogReader) -> RouteWatch:
        """A watch for the route, from where its epoch began, or from 20,000 requests ago in a longer one."""
        epoch, before = held.epoch, newest_outlook(connection, name)
        same = before is not None and before.epoch == held.n_epochs
        since, n = place_before(connection, name, LOOK_BACK), 0
        if epoch is not None:
            since = max(since, epoch.since_seq)
            n_all, n_left = (requests_since(connection, name, seq) for seq in (epoch.since_seq, since))
            n = epoch.at + n_all - n_left
        return RouteWatch(
            name=name,
            route=route,
            match=self._matched.of(name, route, self.matches),
            load=self._load,
            epoch=held.n_epochs,
            n=n,
            seq=since,
            made=held.publication,
            alerts=before.alerts if before is not None and same else (),
            looked_at=before.at if before is not None and same else -1,
            metrics=self.settings.metrics,
            feedback=self.settings.feedback,
        )

    def _load(self, address: str) -> ServedVersion | None:
        with open_reader(self.path) as connection:
            body = read_artefact(connection, address)
        try:
            return read_back(address, body)
        except ConfigError:
            return None

    def _read(self, connection: LogReader, desk: JobWriter, failed: dict[str, str]) -> int:
        """Feed every watch what it has not read; the place of the last row."""
        last = min((watch.seq for watch in self._watches.values()), default=0)
        for stored in rows_since(connection, last, desk):
            last = stored.seq
            for name, watch in list(self._watches.items()):
                try:
                    with desk.timed(name):
                        watch.feed(stored)
                except Exception as error:  # noqa: BLE001 - as above
                    failed[name] = self._left(name, error)
        return last

    def _left(self, name: str, error: Exception) -> str:
        """Leave a route alone for a while; why, without a word of what somebody was asked."""
        self._watches.pop(name, None)
        self._rests[name] = self.monotonic_s() + LONGEST_REST_S
        why = why_of(error)
        LOG.error("monitor: route %s is not watched: %s", name, why)
        LOG.debug("the same, with its traceback", exc_info=True)
        return f"not watched: {why}"
