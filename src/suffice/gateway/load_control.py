"""Load control: chooses each route's level by its load, and sheds load while a fallback makes everything run in full.

load (measured) ──▶ stance   ──▶ a level within what is certified ──▶ the route of a new request
                    fallback ──▶ admitted in full, at a safer level, or turned away
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, exp
from typing import Final

from suffice.assurance import load_level
from suffice.assurance.load_level import Admission
from suffice.serving.route import BuiltRoute
from suffice.settings import Route, Upstream
from suffice.store.rows.events import OperatingMove
from suffice.telemetry import LOG, Metrics
from suffice.types import Outcome, Request
from suffice.upstream.client import UpstreamClient

LOOK_S: Final = 0.5
QUEUE_S: Final = 2.0  # time constant of the smoothing; so are the next two
RATE_S: Final = 10.0
RATIO_S: Final = 300.0
LATENCY_S: Final = 60.0  # older runs do not count
LATENCY_RUNS: Final = 512
LEAST_AGE_S: Final = 1.0  # shortest time for a rate
MOVE_ROW_S: Final = 60.0  # between two rows on moves of one route
ALERT_RUNS: Final = 50  # governed runs before an alert on the load ratio
ALERT_UNTIL: Final = 0.9  # of the capacity: an alert ends below it


@dataclass(slots=True)
class Rate:
    memory_s: float
    _sum: float = 0.0
    _at_s: float = 0.0
    _began_s: float | None = None

    def add(self, amount: float, now_s: float) -> None:
        if self._began_s is None:
            self._began_s = self._at_s = now_s
        self._sum = self._kept(now_s) + amount
        self._at_s = max(self._at_s, now_s)

    def per_s(self, now_s: float) -> float:
        if self._began_s is None:
            return 0.0
        age_s = max(LEAST_AGE_S, now_s - self._began_s)
        return self._kept(now_s) / (self.memory_s * (1 - exp(-age_s / self.memory_s)))

    def _kept(self, now_s: float) -> float:
        return self._sum * exp(-max(0.0, now_s - self._at_s) / self.memory_s)


@dataclass(slots=True)
class Smooth:
    memory_s: float
    value: float = 0.0
    _at_s: float | None = None

    def add(self, value: float, now_s: float) -> float:
        keep = 0.0 if self._at_s is None else exp(-max(0.0, now_s - self._at_s) / self.memory_s)
        self.value = keep * self.value + (1 - keep) * value
        self._at_s = now_s if self._at_s is None else max(self._at_s, now_s)
        return self.value


@dataclass(slots=True)
class RouteLoad:
    arrivals: Rate = field(default_factory=lambda: Rate(RATE_S))  # governed requests, including those turned away
    tokens: Rate = field(default_factory=lambda: Rate(RATE_S))  # all generated tokens
    usd: Rate = field(default_factory=lambda: Rate(RATE_S))
    spent: Rate = field(default_factory=lambda: Rate(RATIO_S))  # tokens of governed runs
    in_full: Rate = field(default_factory=lambda: Rate(RATIO_S))  # of the same runs without stops
    lengths: Rate = field(default_factory=lambda: Rate(RATIO_S))  # as `in_full`, including runs during a fallback
    runs: Rate = field(default_factory=lambda: Rate(RATIO_S))  # number of those runs
    n_runs: int = 0
    priced: bool = False  # a cost was known at least once
    _ended: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=LATENCY_RUNS))  # (end, duration)

    def note(self, request: Request, outcome: Outcome, *, now_s: float, falls_back: bool) -> None:
        spent = sum(call.completion_tokens for call in outcome.calls)
        self.tokens.add(spent, now_s)
        if outcome.cost_usd is not None:
            self.priced = True
            self.usd.add(outcome.cost_usd, now_s)
        if request.ungoverned is not None or outcome.end_reason not in ("done", "stopped", "truncated"):
            return
        if not request.audit and request.delivery == 1:
            self._ended.append((now_s, outcome.duration_s))
        self.n_runs += 1
        full = self._full_tokens(outcome, spent, now_s)
        self.runs.add(1, now_s)
        self.lengths.add(full, now_s)
        if not falls_back:
            self.spent.add(spent, now_s)
            self.in_full.add(full, now_s)

    def _full_tokens(self, outcome: Outcome, spent: int, now_s: float) -> float:
        if outcome.tokens_saved_estimate is not None:
            return spent + outcome.tokens_saved_estimate
        own = spent - outcome.overhead.probe_tokens - outcome.overhead.discarded_tokens
        if not outcome.stopped:
            return own
        return max(own, self.mean_full(now_s))  # too few full runs for an estimate of this one

    def mean_full(self, now_s: float) -> float:
        n = self.runs.per_s(now_s)
        return self.lengths.per_s(now_s) / n if n > 0 else 0.0

    def ratio(self, now_s: float) -> float | None:
        """Return tokens/s if all ran in full over tokens/s now, or None before any token."""
        spent = self.spent.per_s(now_s)
        return self.in_full.per_s(now_s) / spent if spent > 0 else None

    def latency_s(self, now_s: float, *, idle: bool) -> float | None:
        """Return the 95th percentile (nearest rank) of the last minute; without ended runs, 0 if `idle`, else None."""
        while self._ended and now_s - self._ended[0][0] > LATENCY_S:
            self._ended.popleft()
        durations = sorted(duration for _, duration in self._ended)
        if not durations:
            return 0.0 if idle else None
        return durations[ceil(0.95 * len(durations)) - 1]

    def measured(self, now_s: float, *, queue: float | None) -> load_level.LoadSample:
        return load_level.LoadSample(
            queue=queue,
            latency_s=self.latency_s(now_s, idle=queue is not None and queue < 0.01),
            tokens_per_s=self.tokens.per_s(now_s),
            usd_per_hour=3_600 * self.usd.per_s(now_s) if self.priced else None,
        )


N_FAILURES = 5
WINDOW_S = 60.0
OPEN_S = 60.0
# Sites of our own code. Probes and stop transitions also fail with the upstream, so they do not count.
SITES = frozenset({"signals", "policy", "segment", "scorer", "govern", "slow"})


@dataclass(slots=True)
class Breaker:
    """A circuit breaker for a route whose controller fails repeatedly. Times are monotonic, in seconds.

    closed ──5 failures in 60 s──▶ open, 60 s ──▶ one request tries ──▶ closed, or open again
    """

    failed_at_s: deque[float] = field(default_factory=lambda: deque(maxlen=N_FAILURES))
    open_until_s: float | None = None  # None: closed
    tries: bool = False  # one trial request is running

    def allows(self, now_s: float) -> bool:
        if self.open_until_s is None:
            return True
        if now_s < self.open_until_s or self.tries:
            return False
        self.tries = True
        return True

    def note(self, *, failed: bool, now_s: float) -> bool:
        """Return True if the breaker opened now."""
        tried, self.tries = self.tries, False
        if not failed:
            if tried:
                self.open_until_s = None
                self.failed_at_s.clear()
            return False
        self.failed_at_s.append(now_s)
        full = len(self.failed_at_s) == N_FAILURES and now_s - self.failed_at_s[0] <= WINDOW_S
        if not (full or tried):
            return False
        was_open = self.open_until_s is not None and not tried
        self.open_until_s = now_s + OPEN_S
        return not was_open


@dataclass(slots=True)
class RouteOperation:
    name: str
    settings: Route
    load: RouteLoad = field(default_factory=RouteLoad)
    operation: load_level.Operation = field(default_factory=load_level.Operation)
    certified: int = 0  # the most aggressive level allowed; 0 never stops
    route: BuiltRoute | None = None  # as it serves now, by which a level of the load becomes that of clients
    fallback: load_level.Fallback | None = None  # None: no fallback
    alerted: bool = False
    _moved: OperatingMove | None = None  # that has no row yet
    _moved_s: float = 0.0
    _written_s: float | None = None  # when the latest row was taken
    _before_tokens_per_s: float = 0.0  # of governed runs, when the fallback began
    _before_ratio: float = 1.0

    @property
    def level(self) -> int:
        targets = self.settings.pressure
        if targets is None:
            return self.certified
        return load_level.level_of(self.operation.stance, targets, certified=self.certified)

    def fall_back(self, now_s: float, loads: tuple[float, ...] = ()) -> None:
        """Begin a fallback. Call it before resetting `certified`, because it records the level used until now."""
        if self.fallback is not None:
            return
        self._before_tokens_per_s = self.load.spent.per_s(now_s)
        self._before_ratio = self.load.ratio(now_s) or 1.0
        self.fallback = load_level.Fallback(
            level=self.level,
            on_fallback=self.settings.on_fallback,
            capacity=self.settings.fallback_capacity,
            loads=loads,
        )

    def resume(self) -> None:
        self.fallback = None

    def ratio(self, now_s: float) -> float | None:
        """Return tokens/s if all ran in full over tokens/s now; during a fallback, demand over tokens/s before it."""
        if self.fallback is None:
            return self.load.ratio(now_s)
        demand_tokens_per_s = self.load.arrivals.per_s(now_s) * self.load.mean_full(now_s)
        if not self._before_tokens_per_s or not demand_tokens_per_s:
            return self._before_ratio
        return demand_tokens_per_s / self._before_tokens_per_s

    def admission(self, now_s: float, *, queue: float | None = 0.0, point: float = 0.0) -> Admission:
        if self.fallback is None:
            return Admission(level=self.level, certified=True, reason=self.operation.reason)
        return load_level.admission(self.fallback, ratio=self.ratio(now_s) or 1.0, queue=queue, point=point)

    @property
    def served(self) -> int:
        """The level that clients get, without those of their classes: a pin or an override goes before the load."""
        route = self.route
        if route is None:
            return self.level
        if route.is_held:
            return 0
        wanted = self.level if route.pin is None else min(self.certified, route.pin)
        ceiling = route.holding.ceiling
        return wanted if ceiling is None else min(wanted, ceiling)

    def move(self, queue: float | None, metrics: Metrics, now_s: float) -> None:
        targets = self.settings.pressure
        before = self.operation
        was = self._state
        if targets is None:
            return
        measured = self.load.measured(now_s, queue=queue)
        self.operation = load_level.update_pressure(before, targets, measured, now_s=now_s)
        if self.operation.n_moves > before.n_moves:
            stance, reason = self.operation.stance, self.operation.reason
            metrics.inc("suffice_operating_moves_total", self.name, stance)
            message = "routes.%s: operates as in %s, at level %d of %d: %s"
            LOG.info(message, self.name, stance, self.served, self.certified, reason)
            self._note_move(was, now_s)

    @property
    def _state(self) -> str:
        return f"level {self.served} of {self.certified}, {self.operation.stance}"

    def _note_move(self, before: str, now_s: float) -> None:
        waiting, self._moved_s = self._moved, now_s
        if waiting is None and before.partition(",")[0] == self._state.partition(",")[0]:
            return  # another stance, the same level
        self._moved = OperatingMove(
            move_id="",
            route=self.name,
            before=before if waiting is None else waiting.before,
            after=self._state,
            level=self.served,
            certified=self.certified,
            stance=self.operation.stance,
            n_moves=1 if waiting is None else waiting.n_moves + 1,
            age_s=0.0,
            reason=self.operation.reason,
        )

    def take_move(self, now_s: float, *, at_once: bool) -> OperatingMove | None:
        """The move to write now; `at_once` even if the latest row was taken less than MOVE_ROW_S ago."""
        moved = self._moved
        is_early = self._written_s is not None and now_s - self._written_s < MOVE_ROW_S
        if moved is None or (is_early and not at_once):
            return None
        self._moved, self._written_s = None, now_s
        return replace(moved, age_s=max(0.0, now_s - self._moved_s))

    def alert(self, now_s: float) -> None:
        capacity = self.settings.fallback_capacity
        ratio = None if capacity is None else self.ratio(now_s)
        if capacity is None or ratio is None or self.load.n_runs < ALERT_RUNS:
            return
        if ratio > capacity and not self.alerted:
            demand = f"if all ran in full, it would take {ratio:.2f} times the tokens/s"
            LOG.warning("routes.%s: %s, and fallback_capacity is %g", self.name, demand, capacity)
            self.alerted = True
        elif ratio < ALERT_UNTIL * capacity and self.alerted:
            LOG.warning("routes.%s: full runs would fit fallback_capacity again", self.name)
            self.alerted = False

    def export(self, metrics: Metrics, now_s: float) -> None:
        load = self.load
        metrics.set("suffice_operating_level", self.admission(now_s).level or 0, self.name)
        metrics.set("suffice_generated_tokens_per_second", load.tokens.per_s(now_s), self.name)
        latency_s, ratio = load.latency_s(now_s, idle=False), self.ratio(now_s)
        if latency_s is not None:
            metrics.set("suffice_latency_p95_seconds", latency_s, self.name)
        if load.priced:
            metrics.set("suffice_spend_usd_per_second", load.usd.per_s(now_s), self.name)
        if ratio is not None:
            metrics.set("suffice_fallback_load_ratio", ratio, self.name)


class LoadControl:
    def __init__(self) -> None:
        self._routes: dict[str, RouteOperation] = {}
        self._queues: dict[str, Smooth] = {}

    def of(self, name: str, settings: Route) -> RouteOperation:
        if name not in self._routes:
            self._routes[name] = RouteOperation(name, settings)
        return self._routes[name]

    def follow(self, routes: Mapping[str, Route]) -> None:
        """Take over changed settings of routes; what was measured stays."""
        for name, operation in self._routes.items():
            operation.settings = routes.get(name, operation.settings)

    def queue(self, upstream: str) -> float | None:
        queue = self._queues.get(upstream)
        return None if queue is None else queue.value

    def admit(self, route: BuiltRoute, *, now_s: float, draw: Callable[[], float] | None = None) -> Admission:
        """Count a new governed request and return its admission. Without `draw` it is never turned away."""
        operation = self.of(route.name, route.settings)
        operation.load.arrivals.add(1, now_s)
        if operation.fallback is None or draw is None:
            return operation.admission(now_s)
        return operation.admission(now_s, queue=self.queue(route.settings.upstream), point=draw())

    def note(self, request: Request, outcome: Outcome, *, now_s: float) -> None:
        operation = self._routes.get(request.route)
        if operation is not None:
            operation.load.note(request, outcome, now_s=now_s, falls_back=operation.fallback is not None)

    def update(
        self, upstreams: Mapping[str, UpstreamClient], routes: Sequence[BuiltRoute], metrics: Metrics, *, now_s: float
    ) -> None:
        for name, client in upstreams.items():
            self._queues.setdefault(name, Smooth(QUEUE_S)).add(client.n_open / client.slots, now_s)
        for route in routes:
            operation = self.of(route.name, route.settings)
            operation.route = route
            operation.move(self.queue(operation.settings.upstream), metrics, now_s)
            operation.alert(now_s)

    def take_moves(self, *, now_s: float, all_of_them: bool = False) -> Iterator[OperatingMove]:
        for operation in self._routes.values():
            if moved := operation.take_move(now_s, at_once=all_of_them):
                yield moved

    def export(self, metrics: Metrics, *, now_s: float) -> None:
        for name, queue in self._queues.items():
            metrics.set("suffice_upstream_queue_ratio", queue.value, name)
        for operation in self._routes.values():
            operation.export(metrics, now_s)


def warnings(where: str, route: Route, upstream: Upstream | None) -> Iterator[str]:
    pressure = route.pressure
    if pressure is None or upstream is None:
        return
    if pressure.operating_point == 1 and pressure.slack_point in (None, 1):
        yield (
            f"{where}.pressure: moves nothing: the route saves the most already; write an operating_point below 1 to"
            " keep a reserve for spikes, or a slack_point below 1 to stop less while there is slack"
        )
    if pressure.queue is not None and upstream.slots == 1:
        yield f"{where}.pressure.queue: upstreams.{route.upstream} has slots = 1; write how many it serves at once"
    if pressure.usd_per_hour is not None and upstream.prices is None:
        yield f"{where}.pressure.usd_per_hour: upstreams.{route.upstream} has no prices, so nothing is measured"


class UnreadAudits:
    """Audits that run on for the record after their client has left, by caller; "": callers without a key."""

    def __init__(self) -> None:
        self._n_open = Counter[str]()

    @property
    def n_open(self) -> int:
        return self._n_open.total()

    def enter(self, caller: str, *, most: int) -> bool:
        """Count one more, unless there are `most` of them, or a quarter of that of one key."""
        is_crowd = bool(caller) and self._n_open[caller] >= max(1, most // 4)
        if is_crowd or self.n_open >= most:
            return False
        self._n_open[caller] += 1
        return True

    def leave(self, caller: str) -> None:
        self._n_open -= Counter((caller,))  # keeps no caller with none
