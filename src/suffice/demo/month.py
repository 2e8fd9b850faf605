"""A made-up month: generated requests in the log, and the real jobs of the control loop deciding on them.

Time passes as the log says, so a month takes seconds. What is certified, and its cost, is whatever the jobs find.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from suffice.control.jobs.advance import Advance
from suffice.control.jobs.base import Job, Worker
from suffice.control.jobs.certify import Certify
from suffice.control.jobs.monitor import Monitor
from suffice.control.jobs.notify import Notify
from suffice.control.jobs.retrain import Retrain
from suffice.control.jobs.rollup import Rollup
from suffice.demo import month_traffic, month_trials
from suffice.demo.month_traffic import Took
from suffice.errors import SufficeError
from suffice.learn.version import FoldedVersion, load_version
from suffice.policy.base import build_policy
from suffice.replay.run import ReplayedRun, replay_run
from suffice.review.decide import IncidentForm as Wants
from suffice.settings import Settings, parse_settings
from suffice.store.database.decisions import Decisions, read_artefact
from suffice.store.database.sqlite import SqliteLog
from suffice.store.database.views import open_reader
from suffice.store.people.deciding import decide_incident, open_incident
from suffice.store.people.reviews import ask_about
from suffice.store.routes.in_force import NOTHING, InForce, read_decided
from suffice.store.rows.events import Event
from suffice.store.rows.records import FeedbackEvent, KillSwitchState
from suffice.types import Episode, Outcome, Request

ROUTE: Final = "math"
DAYS: Final = 30
DAY_S: Final = 86_400
EACH: Final = 60  # requests between two looks of the control loop
SHARE: Final = 0.15  # of audits
SELDOM: Final = 4  # the accounts are looked at once in so many looks: they are most of the work
AUTHOR: Final = "worker demo"
_BECAUSE: Final = "the risk is below the level's threshold"
WEBHOOK: Final = "SUFFICE_DEMO_WEBHOOK"  # environment variable with the address of the demonstration's own
TABLES: Final[dict[str, Any]] = {
    "routes": {
        ROUTE: {
            "upstream": "house",
            "kind": "samples",
            "samples": month_traffic.N_SAMPLES,
            "scorer": "number",
            "mode": "enforce",
            "max_em_drop": 0.04,
            "confidence": 0.95,
            "audit_share": SHARE,
            "match": {"header": ROUTE},
            "max_extra_calls": 48,
        },
        **month_trials.TABLES["routes"],
        "support": {
            "upstream": "house",
            "kind": "samples",
            "samples": month_traffic.N_SAMPLES,
            "scorer": "number",
            "mode": "observe",
            "match": {"header": "support"},
            "max_extra_calls": 48,
        },
        "embeddings": {"upstream": "house", "mode": "off", "match": {"header": "embeddings"}},
        month_traffic.LOOP_ROUTE: {
            "kind": "rounds",
            "scorer": "text",
            "mode": "observe",
            "match": {"header": month_traffic.LOOP_ROUTE},
            "policy": {"policy": "stable-answer", "streak": 2},
            "review": {"keep_text": True, "text_days": 60.0},
        },
    },
    "experiments": month_trials.TABLES["experiments"],
    "alerts": {"webhook_url_env": WEBHOOK},
    "control": {"tick_requests": 20, "burst_requests": 400, "refit_requests": 600, "window_audits": 800},
}


def settings_for(database: Path, *, upstream: str = "http://127.0.0.1:9") -> Settings:
    own = month_traffic.PRICES
    prices = {"input_usd_per_mtok": own.input_usd_per_mtok, "output_usd_per_mtok": own.output_usd_per_mtok}
    return parse_settings(
        {
            **TABLES,
            "upstreams": {"house": {"url": upstream, "slots": 8, "prices": prices}},
            "store": {"url": f"sqlite:///{database}"},
        }
    )


@dataclass(slots=True)
class Clock:
    at_s: float

    def __call__(self) -> float:
        """Unix time."""
        return self.at_s


@dataclass(slots=True, kw_only=True)
class Month:
    settings: Settings
    path: Path
    log: SqliteLog
    writer: Decisions
    worker: Worker
    watcher: Worker  # with the job `monitor`
    tries: month_trials.Tries
    clock: Clock
    rng: random.Random
    aside: random.Random  # of loops: however many there are, the other routes draw the same
    full_tokens: list[int] = field(default_factory=list)  # of full runs, for the estimate of what a stop saved
    versions: dict[str, FoldedVersion] = field(default_factory=dict)
    held: InForce = NOTHING
    doubtful: str = ""  # the latest loop whose early answer was another one
    resting: bool = False  # is the kill switch pulled?
    n: int = 0
    n_looks: int = 0

    def ask(self) -> None:
        audit = self.held.in_burst or self.rng.random() < SHARE
        level = 0 if self.held.in_burst or self.resting else self.held.level
        made = self.held.publication
        version = made.version if made is not None and level else ""
        request, outcome, right = month_traffic.full_run(
            self.n,
            month_traffic.drawn_from(month_traffic.MATH, self.rng),
            self.rng,
            route=ROUTE,
            audit=audit,
            version=version,
            propensity=1.0 if self.held.in_burst else SHARE if audit else 1 - SHARE,
            certified=level > 0,
            setup="demo",
            at_s=self.clock.at_s,
        )
        self.n += 1
        replayed = self._replayed(request, outcome, level)
        if audit:
            self.full_tokens.append(outcome.usage.completion_tokens if outcome.usage is not None else 0)
            ended = month_traffic.noted(outcome, replayed)
        else:
            ended = month_traffic.stopped(outcome, replayed, self.full_tokens, because=_BECAUSE)
        self._write(request, month_traffic.priced(ended), right)

    def watch(self) -> None:
        audit = self.rng.random() < SHARE
        request, outcome, right = month_traffic.full_run(
            self.n,
            month_traffic.drawn_from(month_traffic.SUPPORT, self.rng),
            self.rng,
            route="support",
            audit=audit,
            version="",
            propensity=SHARE if audit else 1 - SHARE,
            certified=False,
            setup="demo",
            at_s=self.clock.at_s,
        )
        self.n += 1
        self._write(replace(request, mode="observe"), month_traffic.priced(outcome), right)

    def ask_quiz(self, part: float) -> None:
        """One request on the route where things are tried; part of the month that is over, [0, 1]."""
        self.tries.pass_time(part)
        request, outcome, right = self.tries.ask(self.n, at_s=self.clock.at_s)
        self.n += 1
        self._write(request, outcome, right, self.tries.rng)

    def pass_on(self) -> None:
        request, outcome, _ = month_traffic.full_run(
            self.n,
            month_traffic.SUPPORT[0],
            self.rng,
            route="embeddings",
            audit=False,
            version="",
            propensity=1.0,
            certified=False,
            setup="",
            at_s=self.clock.at_s,
        )
        self.n += 1
        self._append(replace(request, mode="off", ungoverned="off", query=None, n_samples=1, unit=""))
        self._append(replace(month_traffic.priced(outcome), steps=(), vote=(), answer=None))

    def loop(self) -> None:
        for event in month_traffic.loop_events(self.n, self.aside, at_s=self.clock.at_s):
            self._append(event)
            if isinstance(event, Outcome) and event.would_answer not in (None, event.answer):
                self.doubtful = event.episode_id
        self.n += 1

    def doubt(self) -> None:
        rules = {month_traffic.LOOP_ROUTE: self.settings.routes[month_traffic.LOOP_ROUTE].review}
        ask_about(self.writer, self.doubtful, rules, "it took the first date it found", "ann", now_s=self.clock.at_s)

    def drill(self, *, on: bool) -> None:
        """Somebody pulls the kill switch, or releases it."""
        reason = "a drill: ann tries the switch" if on else "the drill is over"
        self._append(KillSwitchState(on=on, reason=reason, stamp=int(self.clock.at_s * 1e9)))
        self.resting = on
        self._told()

    def complain(self, summary: str) -> str:
        incident = open_incident(self.writer, ROUTE, self.settings.routes[ROUTE], summary, "ann", now_s=self.clock.at_s)
        if isinstance(incident, str):
            raise SufficeError(f"demo: {incident}")
        self._told()
        return incident.incident

    def _told(self) -> None:
        self.log.drain(20)
        self.worker.once("notify")

    def accept(self, incident: str, reason: str) -> None:
        wanted = Wants(incident=incident, decision="accept", reason=reason, author="ann")
        result = decide_incident(self.writer, self.settings.routes[ROUTE], ROUTE, wanted, now_s=self.clock.at_s)
        if isinstance(result, str):
            raise SufficeError(f"demo: {result}")

    def look(self, *jobs: str) -> None:
        if not self.log.drain(20):
            raise SufficeError("demo: the log could not be written")
        if self.n_looks % SELDOM == 0 or jobs:
            self.watcher.round()
        self.n_looks += 1
        self.worker.round()
        for job in self.worker.jobs:
            if job.name in jobs:
                job.forget()  # it may be at rest, and somebody asks
                self.worker.once(job.name)
        self.held = read_decided(self.path).of(ROUTE)
        self.tries.follow()

    def _write(self, request: Request, outcome: Outcome, right: str, rng: random.Random | None = None) -> None:
        self._append(request)
        self._append(outcome)
        for given in month_traffic.make_feedback(outcome, right, rng or self.rng):
            self._append(FeedbackEvent(given))

    def _append(self, event: Event) -> None:
        if not self.log.append(event):
            raise SufficeError("demo: the log is full")

    def _replayed(self, request: Request, outcome: Outcome, level: int) -> ReplayedRun | None:
        """Where the version in force stops this run; None: nothing is in force."""
        version = self._version() if level else None
        if version is None:
            return None
        policy = build_policy(version.policy(request.question_key, level))
        return replay_run(Episode(request=request, outcome=outcome), policy, wave=self.settings.routes[ROUTE].wave)

    def _version(self) -> FoldedVersion | None:
        made = self.held.publication
        if made is None or not made.fit:
            return None
        if made.fit not in self.versions:
            with open_reader(self.path) as connection:
                self.versions[made.fit] = load_version(json.loads(read_artefact(connection, made.fit) or "null"))
        return self.versions[made.fit]


@contextmanager
def month(
    settings: Settings, path: Path, *, begin_s: float, seed: int, secret: str, monotonic_s: Callable[[], float]
) -> Iterator[Month]:
    """A month on a new log, while the block lasts. Raises StoreError.

    secret  of the deployment, which signs versions
    """
    clock, rng = Clock(begin_s), random.Random(seed)
    log = SqliteLog.open(settings.store, now=clock)
    with Decisions.open(path, now=clock, monotonic_s=monotonic_s) as writer:
        common: dict[str, Any] = {
            "settings": settings,
            "path": writer.path,
            "author": AUTHOR,
            "now": clock,
            "monotonic_s": monotonic_s,
            "secret": secret,
        }
        certify, monitor, rollup, retrain = (kind(**common) for kind in (Certify, Monitor, Rollup, Retrain))
        notify = Notify(
            settings=settings.alerts,
            path=writer.path,
            sinks=(Took("log"), Took("webhook")),
            now=clock,
            monotonic_s=monotonic_s,
        )
        # It rests between two looks, in time that passes as the log says.
        advance = Advance(**(common | {"monotonic_s": clock}))
        ids = iter(range(10**9))
        works: dict[str, Any] = {
            "decisions": writer,
            "author": AUTHOR,
            "now": clock,
            "monotonic_s": monotonic_s,
            "new_id": lambda: f"jr_{next(ids):011x}",
        }
        jobs: tuple[Job, ...] = (certify, retrain, advance, notify, rollup)
        try:
            yield Month(
                settings=settings,
                path=writer.path,
                log=log,
                writer=writer,
                worker=Worker(jobs=jobs, **works),
                watcher=Worker(jobs=(monitor,), **works),
                clock=clock,
                rng=rng,
                aside=random.Random(seed + 1),
                tries=month_trials.Tries(
                    settings=settings, writer=writer, secret=secret, salt=f"month {seed}", rng=random.Random(seed + 2)
                ),
            )
        finally:
            for job in (certify, monitor, advance, rollup):
                job.close()
            log.close()


def live(made: Month, *, n: int, until_s: float, told: Callable[[int, InForce], None] = lambda _n, _held: None) -> None:
    step_s = (until_s - made.clock.at_s) / max(1, n)
    people_do, incident = {n // 2: True, n // 2 + 2: False, n - 14: True, n - 12: False}, ""
    for number in range(n):
        made.clock.at_s += step_s
        if number in people_do:
            made.drill(on=people_do[number])
        if number == 2 * n // 3:
            incident = made.complain("two users say that the unit is missing where areas are asked for")
        elif number == 3 * n // 4:
            made.accept(incident, "the prompt asks for the unit since today")
        elif number == n - 8:
            made.complain("answers about areas are without their unit again")
        made.ask()
        made.ask_quiz(number / n)
        if number % 3 == 0:
            made.watch()
        if number % 20 == 0:
            made.pass_on()
        if number % 40 == 0:
            made.loop()
        if number % EACH == EACH - 1:
            made.look()
            told(number + 1, made.held)
    made.look("retrain", "rollup")
    made.doubt()
