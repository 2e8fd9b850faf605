"""Runs the live loop under traffic with known truth, and measures what it publishes against the truth.

    Scenario ──▶ arrivals, assigned as in the gateway ──▶ rows of the log ──▶ RouteLoop ──▶ active publication
                                                                                    └──▶ figures of the stream

The rows are those of a gateway that keeps one live run in twenty. A request meets the level of the newest publication
at its arrival; one request arrives per second. The file also runs on the code before assignment per request; its
streams are then called "before".
"""

from __future__ import annotations

import heapq
import time
import zlib
from dataclasses import dataclass, field, fields
from functools import lru_cache
from importlib import import_module
from math import ceil
from typing import Any, Final

import msgspec
import numpy as np
from bench.claims.live_scenarios import COURSES, EPOCH, LOST, SCENARIOS, Arrival, Scenario
from bench.claims.live_truth import Item, Truth, items, request_of, right

from suffice.arrays import Bools, Floats, Ints
from suffice.control.evidence.cold_start import burst_of
from suffice.control.evidence.versions import read_back
from suffice.control.loop.epoch import Resolution, RouteContext
from suffice.control.loop.route_loop import RouteLoop
from suffice.learn.version import N_FOLDS, ServedVersion
from suffice.policy.folded_version import prompt_fold
from suffice.rollout.assign import point_of, question_key
from suffice.settings import Control, Route
from suffice.store.database.log import StoredEvent
from suffice.store.routes.deployments import RouteDeployment
from suffice.store.rows.events import Event, FeedbackEvent, RequestCount
from suffice.types import Alarm, Epoch, Feedback, Pause, Request

SETTINGS: Final = {f"live {name}": name for name in SCENARIOS}
BUDGETS: Final = (0.01, 0.02)
CONFIDENCE: Final = 0.95
AT: Final = 20_000  # requests of the route before the stream: the audit share is that of quiet times
RETRY_WINDOW_S: Final = 600.0
MOST_COUNTED: Final = 60  # requests without rows in one row: a gateway waits a minute, and one comes per second
TICK: Final = 100
SALT: Final = "of the simulation"
IS_BEFORE: Final = all(one.name != "delivery" for one in fields(Request))


def design_of(max_em_drop: float) -> str:
    """The name of the code that runs, at a budget."""
    return f"{'before' if IS_BEFORE else 'loop'} {100 * max_em_drop:g} %"


# --------------------------------------------------------------------------- what differs between the two codes


@dataclass(slots=True)
class Draws:
    """The gateway's own rule: which deliveries share a draw, and which delivery of its request one is."""

    memory: Any = field(init=False)  # Any: each code has a class of its own for it

    def __post_init__(self) -> None:
        """Remember nothing."""
        where, name = ("context", "LotKeys") if IS_BEFORE else ("auth", "DeliveryMemory")
        self.memory = getattr(import_module(f"suffice.gateway.{where}"), name)()

    def fields_of(self, one: Arrival, episode_id: str, *, share: float, now_s: float) -> dict[str, Any]:
        """What the draw of a delivery writes into its request."""
        if IS_BEFORE:
            named = one.conversation or one.key
            unit = self.memory.unit(named=named, body=one.body.encode(), caller=one.caller, now_s=now_s)
            lot = import_module("suffice.rollout.assign").draw_audit(unit, share=share, salt=SALT)
            return {"audit": lot.audit, "propensity": lot.propensity, "unit": lot.unit}
        key = import_module("suffice.gateway.auth").RequestKey(
            route="r",
            caller=one.caller,
            body=one.body.encode(),
            conversation=one.conversation,
            idempotency_key=one.key,
        )
        lot = self.memory.assign(
            key, episode_id=episode_id, share=share, salt=SALT, window_s=RETRY_WINDOW_S, now_s=now_s, wall_s=now_s
        )
        told = {name: getattr(lot, name) for name in ("audit", "propensity", "unit", "delivery")}
        return told | {"conversation": f"{one.caller} {one.conversation}" if one.conversation else ""}


def claimed(loop: RouteLoop) -> tuple[float, float]:
    """First and last request of the window about which the certificate in force speaks, numbered by the route.

    The code before says nothing of it: all requests of the epoch so far.
    """
    found = loop.certifier.epoch.certificate
    if found is None or found.window is None:
        assert loop.held.epoch is not None
        return loop.held.epoch.at, loop.n
    return found.window.start, min(found.until, found.window.end, loop.n)


# --------------------------------------------------------------------------- the stream


@dataclass(frozen=True, slots=True)
class Met:
    """What a request met: a version at a level, and lower levels of some classes."""

    address: str = ""
    level: int = 0
    classes: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Look:
    """What was in force behind a look, and where the window began that vouches for it."""

    t: int  # requests of the stream so far
    met: Met
    first: int  # requests of the stream before the window …
    last: int  # … and up to its end; later ones are not spoken of


@dataclass(slots=True)
class Log:
    """The loop, what it was fed, and what it decided."""

    route: Route
    control: Control
    loop: RouteLoop = field(init=False)
    artefacts: dict[str, str] = field(default_factory=dict)
    decided: list[Event] = field(default_factory=list)
    seq: int = 0

    def __post_init__(self) -> None:
        """Begin an epoch."""
        epoch = Epoch(
            route="r",
            number=1,
            at=AT,
            since_seq=0,
            reason="cold start",
            author="w",
            burst=burst_of(self.route, self.control),
            max_em_drop=self.route.max_em_drop,
            confidence=CONFIDENCE,
        )
        context = RouteContext(
            name="r", route=self.route, control=self.control, match=right, load=self.load, author="w"
        )
        self.loop = RouteLoop(context, RouteDeployment(epoch=epoch, n_epochs=1))

    def load(self, address: str) -> ServedVersion:
        """The version under an address."""
        return read_back(address, self.artefacts.get(address))

    def feed(self, event: Event, t: float) -> None:
        """Write a row, and let the loop read it."""
        self.seq += 1
        self._take(self.loop.feed(StoredEvent(seq=self.seq, at_s=float(t), event=event)))

    def settle(self) -> None:
        """Let the loop decide what does not depend on the place in the log."""
        self._take(self.loop.settle())

    def _take(self, resolution: Resolution | None) -> None:
        if resolution is not None:
            self.decided += resolution.events
            self.artefacts.update(resolution.artefacts)


@dataclass(slots=True, kw_only=True)
class Stream:
    """One stream while it runs; arrays are of shape (n,), by arrival."""

    scenario: Scenario
    log: Log
    rng: np.random.Generator
    pool: tuple[Item, ...]
    truth: Truth
    draws: Draws = field(default_factory=Draws)
    item: Ints = field(init=False)  # place in the pool
    fold: Ints = field(init=False)
    audit: Ints = field(init=False)  # 1: run in full by lot
    repeat: Ints = field(init=False)  # 1: a further delivery, which runs in full
    met: list[Met] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    _due: list[tuple[float, int, Event]] = field(default_factory=list)  # ends and labels to come
    _n_due: int = 0
    _unkept: list[float] = field(default_factory=list)  # audit shares of requests without rows that are not counted yet
    _running: list[tuple[int, float]] = field(default_factory=list)  # end and share of requests without rows
    _n_counts: int = 0
    _prompts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Nothing has come."""
        self.item, self.fold, self.audit, self.repeat = (np.zeros(self.scenario.n, np.int64) for _ in range(4))

    def run(self) -> None:
        """Let every request of the scenario come."""
        arrivals = self.scenario.arrivals(self.rng)
        for t in range(1, self.scenario.n + 1):
            self._end(t)
            self._arrive(t, next(arrivals))
            if t % TICK == 0:
                self._count(t)
                self.log.settle()
                self._look(t)

    def _arrive(self, t: int, one: Arrival) -> None:
        held = self.log.loop.held
        made, level = held.publication, held.level
        met = Met(made.fit, level, made.classes) if made is not None and level else Met()
        share = made.share if made is not None and level else 1.0
        place, question = self._item_of(one, t), question_key(one.question, salt=SALT)
        drawn = self.draws.fields_of(one, f"ep_{t:06}", share=share, now_s=float(t))
        audit, repeats, at, keep_rate = drawn["audit"], drawn.get("delivery", 1) > 1, t - 1, self.scenario.keep_rate
        self.item[at], self.fold[at] = place, prompt_fold(question, N_FOLDS)
        self.audit[at], self.repeat[at] = audit, repeats
        self.met.append(met)
        if not audit and point_of(drawn["unit"], salt=SALT, purpose=b"row-lot") >= keep_rate:
            # As in the gateway it is counted, and so numbered, when it has ended, and audits that began later may
            # have smaller numbers.
            heapq.heappush(self._running, (self._ends(t, one, self._stop_of(at, met)), share))
            return
        request = request_of(
            t,
            self.pool[place],
            question_key=question,
            policy_version=met.address,
            certified=bool(met.level),
            keep_rate=keep_rate,
            kept_by="" if audit or keep_rate == 1 else "lot",
            **drawn,
        )
        self.log.feed(request, t)
        self._run(t, request, one, met, in_full=audit or repeats)

    def _item_of(self, one: Arrival, t: int) -> int:
        if one.prompt in self._prompts:
            return self._prompts[one.prompt]
        scenario = self.scenario
        cumulated, first = _cumulated(scenario, one.stratum, scenario.how_far(t))
        place = first + int(np.searchsorted(cumulated, self.rng.random(), side="right"))
        if one.prompt:
            self._prompts[one.prompt] = place
        return place

    def _run(self, t: int, request: Request, one: Arrival, met: Met, *, in_full: bool) -> None:
        """Say when the run ends, and when its label comes."""
        scenario, at = self.scenario, t - 1
        item, stop = self.pool[self.item[at]], None if in_full else self._stop_of(at, met)
        ends = self._ends(t, one, stop)
        model = f"m{(t - 1) // EPOCH if scenario.n_models > 1 else 0}"
        self._later(ends, item.outcome(request.episode_id, model=model, stop=stop))
        if request.audit and item.differs:
            mean, p = scenario.delays.lost if self.item[at] % len(COURSES) == LOST else scenario.delays.other
            delay, comes = self.rng.exponential(mean), self.rng.random() < p
            if comes:
                said = Feedback(feedback_id=f"f{t}", episode_id=request.episode_id, gold="R", source="reviewer")
                self._later(ends + delay, FeedbackEvent(said))

    def _stop_of(self, at: int, met: Met) -> int | None:
        """The step at which a request that is no audit stops; None: it runs to its end."""
        if not met.level:
            return None
        item = self.pool[self.item[at]]
        step = int(self.truth.tables(met.address)[1][self.fold[at], self.item[at], level_of(met, item)])
        return step if step + 1 < len(item.steps) else None

    def _ends(self, t: int, one: Arrival, stop: int | None) -> int:
        low, high = self.scenario.strata[one.stratum].run_time
        return t + (int(self.rng.integers(low, high + 1)) if stop is None else 0)

    def _later(self, due: float, event: Event) -> None:
        self._n_due += 1
        heapq.heappush(self._due, (due, self._n_due, event))

    def _end(self, t: int) -> None:
        while self._due and self._due[0][0] < t:
            due, _, event = heapq.heappop(self._due)
            self.log.feed(event, due)
        while self._running and self._running[0][0] < t:
            self._unkept.append(heapq.heappop(self._running)[1])
            if len(self._unkept) >= MOST_COUNTED:
                self._count(t)

    def _count(self, t: int) -> None:
        """Say how many requests have come that have no rows."""
        n = len(self._unkept)
        if not n:
            return
        self._n_counts += 1
        lowest: dict[str, Any] = {} if IS_BEFORE else {"audit_share": min(self._unkept)}
        name = f"k{self._n_counts}"
        counted = RequestCount(count_id=name, route="r", n_requests=n, n_governed=n, cells=(), **lowest)
        self._unkept = []
        self.log.feed(counted, t)

    def _look(self, t: int) -> None:
        held = self.log.loop.held
        made = held.publication
        if made is None or not held.level:
            return
        start, end = claimed(self.log.loop)
        first, last = max(0, ceil(start - AT - 1)), min(t, int(end - AT))
        self.looks.append(Look(t, Met(made.fit, held.level, made.classes), max(0, first), max(0, last)))


@lru_cache(1_024)
def _cumulated(scenario: Scenario, stratum: int, way: float) -> tuple[Floats, int]:
    """Cumulated P(item) of a stratum, and the place of its first item in the pool."""
    one = scenario.strata[stratum]
    law = np.cumsum(one.law(way).ravel())
    return law / law[-1], classes_of(scenario).index(one.query_class) * len(law)


def classes_of(scenario: Scenario) -> tuple[str, ...]:
    """Classes of queries, sorted."""
    return tuple(sorted({stratum.query_class for stratum in scenario.strata}))


# --------------------------------------------------------------------------- figures


@dataclass(slots=True)
class Figures:
    """A stream that has ended, beside its truth."""

    stream: Stream
    budget: float
    _drops: dict[tuple[Met, float], float] = field(default_factory=dict)
    _z: dict[Met, Floats] = field(default_factory=dict)

    def all(self) -> dict[str, float | int | None]:
        """Every figure of the stream, by name."""
        stream, scenario = self.stream, self.stream.scenario
        drops = np.array([self.drop(met, self._way(t)) for t, met in enumerate(stream.met, 1)])
        over, live = drops >= self.budget, (stream.audit == 0) & (stream.repeat == 0)
        excess = 100 * np.where(live, np.maximum(0.0, drops - self.budget), 0.0)
        tokens, full = self._tokens(live)
        half, at = scenario.n // 2, scenario.change_at
        alarms = [one.at - AT for one in stream.log.decided if isinstance(one, Alarm) and _is_news(one)]
        n_pauses = sum(isinstance(one, Pause) for one in stream.log.decided)
        after = [alarm for alarm in alarms if at is not None and alarm >= at]
        means = [self.mean(look.met, look.first, look.last) for look in stream.looks]
        so_far = [self.mean(look.met, look.first, look.t) for look in stream.looks]
        return {
            "n": scenario.n,
            "change_at": at,
            "max_em_drop": self.budget,
            "over": int(max(means, default=-1.0) >= self.budget),
            "worst_mean": max(means, default=None),
            "over_so_far": int(max(so_far, default=-1.0) >= self.budget),
            "over_share": float(over.mean()),
            "picked_over": int(over[stream.rng.integers(scenario.n)]),
            "over_after": None if at is None else int(over[at - 1 :].sum()),
            "worst_drop": float(drops.max()),
            "excess": float(excess.sum()),
            "lost_live": 100 * float(drops[live].mean()) if live.any() else 0.0,
            "saved": 1 - float(tokens.sum() / full.sum()),
            "saved_late": 1 - float(tokens[half:].sum() / full[half:].sum()),
            "acting": float(np.mean([met.level > 0 for met in stream.met])),
            "alarms": len(alarms),
            "pauses": n_pauses,
            "audits": int(stream.audit.sum()),
            "alarm_delay": after[0] - at if after and at is not None else None,
            "quiet": scenario.n if at is None else at - 1,
            "false": len(alarms) - len(after) + n_pauses,
            "noticed": self._noticed(over, after),
        }

    def drop(self, met: Met, way: float) -> float:
        """The true drop of a level where the change has come so far: over the law, or over the stream itself."""
        if not met.level:
            return 0.0
        if self.stream.scenario.is_fixed:
            way = 0.0
        if (met, way) not in self._drops:
            self._drops[met, way] = self._drop(met, way)
        return self._drops[met, way]

    def _drop(self, met: Met, way: float) -> float:
        stream, scenario = self.stream, self.stream.scenario
        if scenario.is_fixed:
            return float(self.z(met)[stream.repeat == 0].mean())
        if way not in (0.0, 1.0):  # either the shares of strata move or what they lose, so the drop moves on a line
            return (1 - way) * self.drop(met, 0.0) + way * self.drop(met, 1.0)
        law = scenario.law(way, counts_repeats=IS_BEFORE)
        z = self._at_level(stream.truth.tables(met.address)[0], met).mean(axis=0).reshape(-1, law[0].size)
        classes = classes_of(scenario)
        return sum(
            float(z[classes.index(stratum.query_class)] @ one.ravel())
            for stratum, one in zip(scenario.strata, law, strict=True)
        )

    def z(self, met: Met) -> Floats:
        """The drop of every request of the stream at a level, shape (n,)."""
        if met not in self._z:
            table = self._at_level(self.stream.truth.tables(met.address)[0], met)
            self._z[met] = table[self.stream.fold, self.stream.item]
        return self._z[met]

    def mean(self, met: Met, first: int, last: int) -> float:
        """What requests first + 1 to `last` of the stream would have lost on average at a level; 0 without any.

        Further deliveries that run in full whatever the level are no requests of their own.
        """
        lost = self.z(met)[first:last][self.stream.repeat[first:last] == 0]
        return float(lost.mean()) if len(lost) else 0.0

    def _at_level(self, table: Floats | Ints, met: Met) -> Floats:
        """Values at the level of each item, shape (folds, items)."""
        levels = np.array([level_of(met, item) for item in self.stream.pool])
        return np.asarray(table[:, np.arange(len(levels)), levels], dtype=np.float64)

    def _way(self, t: int) -> float:
        return self.stream.scenario.how_far(t)

    def _tokens(self, live: Bools) -> tuple[Floats, Floats]:
        """Tokens of each delivery as it went, and in full, shape (n,) each."""
        stream = self.stream
        full = np.array([item.usage.completion_tokens for item in stream.pool], dtype=np.float64)[stream.item]
        tokens, names = full.copy(), {met: number for number, met in enumerate(dict.fromkeys(stream.met))}
        which = np.array([names[met] for met in stream.met])
        for met, number in names.items():
            mine = np.flatnonzero((which == number) & live)
            if met.level and len(mine):
                table = self._at_level(stream.truth.tables(met.address)[2], met)
                tokens[mine] = table[stream.fold[mine], stream.item[mine]]
        return tokens, full

    def _noticed(self, over: Bools, alarms: list[int]) -> int | None:
        """Requests from the change to the first alarm, or to the first safe level behind the first unsafe one."""
        at = self.stream.scenario.change_at
        if at is None or not over[at - 1 :].any():
            return None
        first = at - 1 + int(np.argmax(over[at - 1 :]))
        safe = np.flatnonzero(~over[first:])
        found = [*([first + int(safe[0]) + 1 - at] if len(safe) else []), *([alarms[0] - at] if alarms else [])]
        return min(found, default=self.stream.scenario.n - at)


def _is_news(event: Alarm) -> bool:
    """An alarm of a detector; a model that names itself anew is no guess."""
    return event.cause != "change"


def level_of(met: Met, item: Item) -> int:
    """The level that an item's class meets."""
    return min(met.level, dict(met.classes).get(item.query.query_class, met.level))


def run_stream(name: str, max_em_drop: float, seed: int, *, scenario: Scenario | None = None) -> Figures:
    """Run a stream of a scenario through the loop."""
    scenario = SCENARIOS[name] if scenario is None else scenario
    route = Route(
        upstream="up",
        kind="rounds" if scenario.by_turns else "samples",
        samples=1 if scenario.by_turns else len(COURSES[0]),
        wave=1,
        scorer="number",
        mode="enforce",
        max_em_drop=max_em_drop,
        confidence=CONFIDENCE,
    )
    control = Control(tick_requests=TICK)  # refits and windows are those that serve
    if scenario.burst is not None:
        control = msgspec.structs.replace(control, burst_requests=scenario.burst)
    log = Log(route, control)
    pool = items(classes_of(scenario), by_turns=scenario.by_turns)
    rng = np.random.default_rng([zlib.crc32(name.encode()), seed])
    stream = Stream(scenario=scenario, log=log, rng=rng, pool=pool, truth=Truth(pool, log.load))
    stream.run()
    return Figures(stream, max_em_drop)


def run_cell(setting: str, design: str, seed: int) -> dict[str, Any]:
    """Run one cell; its figures with the CPU seconds that they took."""
    begin = time.process_time()
    found = run_stream(SETTINGS[setting], float(design.split()[1]) / 100, seed).all()
    return {
        "setting": setting,
        "design": design,
        "seed": seed,
        **found,
        "cpu_s": round(time.process_time() - begin, 3),
    }
