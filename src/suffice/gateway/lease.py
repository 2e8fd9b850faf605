"""Leases of certificates: what is certified acts only while its watcher completes looks at the route.

A gateway reads the looks from the log's table `watches`. A lease begins anew whenever it sees another one, by its own
clock, because the clocks of hosts may differ. It ends after `control.lease_s`, or after `control.lease_requests` of the
route; from then on the route runs in full, until the next look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, Final

from suffice.serving.route import BuiltRoute
from suffice.settings import Control
from suffice.store.database.watches import WATCHER, Watch, failing
from suffice.store.rows.watching import WatchLapse
from suffice.telemetry import LOG, Metrics, random_hex

CHECK_S: Final = 0.5  # between two checks of the leases, where no request comes
LEAST_S: Final = 5.0  # that a lease lasts, however many requests come: a worker looks at least that often
TOLERANCE_S: Final = 300.0  # by which the clocks of two hosts may differ


@dataclass(slots=True)
class Lease:
    """One route's; times are monotonic."""

    seen_s: float  # when the latest look was seen here, or this gateway began
    watch: Watch | None = None  # that look; None: none was seen
    n_requests: int = 0  # served as certified since then
    lapsed: str = ""  # why; "": it runs
    reported: str = ""  # as the log and the metrics know it


@dataclass(slots=True, kw_only=True)
class Leases:
    """Of the routes of one gateway."""

    monotonic_s: Callable[[], float]
    is_unread: Callable[[], bool] = lambda: False  # the log cannot be read, and `store.last_good_s` says for how long
    rules: Control = field(default_factory=Control)
    n_gateways: int = 1  # that share the requests of a lease
    failing: tuple[Watch, ...] = ()  # jobs, looks and parts of looks that fail
    last_seq: int = 0  # place of the log's last row
    gateway: str = field(default_factory=random_hex)  # names the rows of this process
    _of: dict[str, Lease] = field(init=False, default_factory=dict)
    _checked_s: float = field(init=False, default=0.0)
    _jobs: dict[str, tuple[int, float]] = field(init=False, default_factory=dict)  # beat of each, and when it was seen
    _n_rows: int = field(init=False, default=0)

    @property
    def most_requests(self) -> int:
        return max(1, self.rules.lease_requests // max(1, self.n_gateways))

    def apply(self, route: BuiltRoute) -> BuiltRoute:
        """Count a request of a certified route; return the route for it, which runs in full if its lease is over."""
        if not (route.certified and route.settings.certifies_itself):
            return route
        why = self._count(route.name)
        return route if not why else replace(route, unwatched=why)

    def of(self, route: str) -> Lease:
        lease = self._of.get(route)
        if lease is None:
            lease = self._of[route] = Lease(self.monotonic_s())
        return lease

    def lapsed(self, route: str) -> str:
        """Return why the lease of a route is over; "": it is not."""
        lease = self._of.get(route)
        if lease is None:
            return ""
        self._end_old(lease)
        return lease.lapsed

    def _count(self, route: str) -> str:
        lease = self.of(route)
        if not lease.lapsed and not self.is_unread():
            lease.n_requests += 1
            age_s = self.monotonic_s() - lease.seen_s
            if age_s >= self.rules.lease_s or (age_s >= LEAST_S and lease.n_requests > self.most_requests):
                lease.n_requests -= 1  # this one runs in full
                _end(lease, age_s)
        return lease.lapsed

    def check(self) -> None:
        """End the leases that are over. While the log cannot be read, their time stands still."""
        now_s = self.monotonic_s()
        passed_s, self._checked_s = now_s - (self._checked_s or now_s), now_s
        is_unread = self.is_unread()
        for lease in self._of.values():
            if is_unread:
                lease.seen_s += passed_s
            else:
                self._end_old(lease)

    def _end_old(self, lease: Lease) -> None:
        age_s = self.monotonic_s() - lease.seen_s
        if not lease.lapsed and age_s >= self.rules.lease_s and not self.is_unread():
            _end(lease, age_s)

    def know(self, unwatched: Mapping[str, str]) -> None:
        """Take over what the log said of routes before this gateway began, so that it is taken back when it is over."""
        for name, why in unwatched.items():
            if name not in self._of:
                self.of(name).reported = why

    def follow(self, watches: Mapping[tuple[str, str], Watch], *, last_seq: int, wall_s: float) -> None:
        """Begin the leases anew whose routes were looked at."""
        self.last_seq, self.failing = last_seq, tuple(failing(watches))
        for (job, route), watch in watches.items():
            if not route and watch.beat != self._jobs.get(job, (0, 0.0))[0]:
                self._jobs[job] = watch.beat, self.monotonic_s()
            if job != WATCHER or not watch.beat:
                continue
            lease = self.of(route)
            if lease.watch is not None and lease.watch.beat == watch.beat:
                lease.watch = watch
                continue
            is_first, lease.watch = lease.watch is None, watch
            age_s = wall_s - watch.looked_at_s
            if is_first and age_s > self.rules.lease_s + TOLERANCE_S:
                lease.lapsed = f"the last look at the route was completed {_duration(age_s)} before this gateway began"
            else:
                lease.seen_s = self.monotonic_s()
                lease.n_requests = 0
                lease.lapsed = ""

    def has_run(self, job: str) -> bool:
        """Return whether a run of a job was completed within the time of a lease, as far as this gateway has seen."""
        _, seen_s = self._jobs.get(job, (0, -inf))
        return self.monotonic_s() - seen_s < self.rules.lease_s

    def changed(self, routes: Sequence[BuiltRoute]) -> Iterator[tuple[BuiltRoute, Lease]]:
        """Return, once each, the certified routes whose lease has ended or begun anew."""
        for route in routes:
            lease = self._of.get(route.name)
            if lease is not None and route.certified and bool(lease.lapsed) != bool(lease.reported):
                lease.reported = lease.lapsed
                LOG.warning("routes.%s: %s", route.name, lease.lapsed or "is looked at again, and acts")
                yield route, lease

    def row_of(self, route: str, lease: Lease) -> WatchLapse:
        self._n_rows += 1
        return WatchLapse(
            route=route,
            gateway=self.gateway,
            number=self._n_rows,
            lapsed=bool(lease.lapsed),
            reason=lease.lapsed or "it was looked at again",
            n_requests=lease.n_requests,
        )

    def details(self, routes: Sequence[BuiltRoute]) -> dict[str, Any]:
        """Return what fails and what nobody watches, for `/readyz`; it is no reason not to serve."""
        names = [one.name for one in routes if one.certified and self.lapsed(one.name)]
        failing = [f"{one.what}: {one.problem}" for one in self.failing]
        return {name: value for name, value in (("unwatched", names), ("failing", failing)) if value}

    def export(self, route: BuiltRoute, metrics: Metrics) -> None:
        if not route.settings.certifies_itself:
            return
        lease = self.of(route.name)
        metrics.set("suffice_watch_age_seconds", self.monotonic_s() - lease.seen_s, route.name)
        metrics.set("suffice_watch_lapsed", float(bool(lease.lapsed) and route.certified), route.name)
        if lease.watch is not None:
            metrics.set("suffice_watch_lag_rows", max(0, self.last_seq - lease.watch.seq), route.name)


def _end(lease: Lease, age_s: float) -> None:
    since = "" if lease.watch is not None else " since this gateway began"
    lease.lapsed = f"no look at the route was completed{since} for {_duration(age_s)} and {lease.n_requests:,} requests"


def _duration(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds < 600 else f"{seconds / 60:,.0f} minutes"
