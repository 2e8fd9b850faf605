"""The made-up month: requests, one after the other, and the real jobs of the control loop looking at them.

    questions ──▶ runs, stopped as the version in force says ──▶ log ──▶ certify, monitor, retrain, rollup ──▶ log …

Time passes as the log says; a month takes seconds. What is certified, and what it costs, is whatever comes out.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from suffice.assurance.money import cost_of
from suffice.control.jobs import Job, Worker
from suffice.control.loops import Certify
from suffice.control.matching import matching
from suffice.control.monitor import Monitor
from suffice.control.proposing import Retrain
from suffice.control.rollup import Rollup
from suffice.demo.console import people
from suffice.errors import SufficeError
from suffice.learn.version import Version, load_version
from suffice.policy.base import build_policy
from suffice.replay.run import Replayed, replay
from suffice.settings import Prices, Settings, parse
from suffice.store.decisions import Decisions, read_artefact
from suffice.store.events import Event, FeedbackGiven, RequestEnded, RequestSeen
from suffice.store.in_force import NOTHING, InForce, read_decided
from suffice.store.sqlite import SqliteLog
from suffice.store.views import reading
from suffice.types import Episode, Outcome, Request

ROUTE: Final = "math"
DAYS: Final = 30
DAY_S: Final = 86_400
EACH: Final = 60  # requests between two looks of the control loop
SHARE: Final = 0.15  # of audits
AUTHOR: Final = "worker demo"
PRICES: Final = Prices(input_usd_per_mtok=0.4, output_usd_per_mtok=1.6)
TABLES: Final[dict[str, Any]] = {
    "routes": {
        ROUTE: {
            "upstream": "house", "kind": "samples", "samples": people.N_SAMPLES, "scorer": "number", "mode": "enforce",
            "max_em_drop": 0.04, "confidence": 0.95, "audit_share": SHARE, "match": {"header": ROUTE},
            "max_extra_calls": 48,
        },
        "support": {
            "upstream": "house", "kind": "samples", "samples": people.N_SAMPLES, "scorer": "number", "mode": "observe",
            "match": {"header": "support"}, "max_extra_calls": 48,
        },
        "embeddings": {"upstream": "house", "mode": "off", "match": {"header": "embeddings"}},
    },
    "control": {"tick_requests": 20, "burst_requests": 400, "refit_requests": 600, "window_audits": 800},
}  # fmt: skip


def settings_for(database: Path, *, upstream: str = "http://127.0.0.1:9") -> Settings:
    """The settings that the month is lived under."""
    prices = {"input_usd_per_mtok": PRICES.input_usd_per_mtok, "output_usd_per_mtok": PRICES.output_usd_per_mtok}
    return parse({
        **TABLES, "upstreams": {"house": {"url": upstream, "slots": 8, "prices": prices}},
        "store": {"url": f"sqlite:///{database}"},
    })  # fmt: skip


@dataclass(slots=True)
class Clock:
    """What time it is in the month."""

    at_s: float

    def __call__(self) -> float:
        """Unix time."""
        return self.at_s


@dataclass(slots=True, kw_only=True)
class Month:
    """One month in the making."""

    settings: Settings
    path: Path
    log: SqliteLog
    worker: Worker
    clock: Clock
    rng: random.Random
    full_tokens: list[int] = field(default_factory=list)  # of full runs, for the estimate of what a stop saved
    versions: dict[str, Version] = field(default_factory=dict)
    held: InForce = NOTHING
    n: int = 0

    def ask(self) -> None:
        """One request on the governed route, as the gateway would serve it now."""
        audit = self.held.in_burst or self.rng.random() < SHARE
        level = 0 if self.held.in_burst else self.held.level
        made = self.held.publication
        version = f"{made.version}@{level}" if made is not None and level else ""
        request, outcome, right = people.full_run(
            self.n, people.drawn_from(people.MATH, self.rng), self.rng, route=ROUTE, audit=audit, version=version,
            propensity=1.0 if self.held.in_burst else SHARE if audit else 1 - SHARE, certified=level > 0, setup="demo",
            at_s=self.clock.at_s,
        )  # fmt: skip
        self.n += 1
        replayed = self._replayed(request, outcome, level)
        if audit:
            self.full_tokens.append(outcome.usage.completion_tokens if outcome.usage is not None else 0)
            ended = _noted(outcome, replayed)
        else:
            ended = self._stopped(outcome, replayed)
        self._write(request, _priced(ended), right)

    def watch(self) -> None:
        """One request on the route that only observes: all of them run in full, and some are drawn as audits."""
        audit = self.rng.random() < SHARE
        request, outcome, right = people.full_run(
            self.n, people.drawn_from(people.SUPPORT, self.rng), self.rng, route="support", audit=audit, version="",
            propensity=SHARE if audit else 1 - SHARE, certified=False, setup="demo", at_s=self.clock.at_s,
        )  # fmt: skip
        self.n += 1
        self._write(replace(request, mode="observe"), _priced(outcome), right)

    def pass_on(self) -> None:
        """One request that nobody governs."""
        request, outcome, _ = people.full_run(
            self.n, people.SUPPORT[0], self.rng, route="embeddings", audit=False, version="", propensity=1.0,
            certified=False, setup="", at_s=self.clock.at_s,
        )  # fmt: skip
        self.n += 1
        self._append(RequestSeen(replace(request, mode="off", ungoverned="off", query=None, n_samples=1, unit="")))
        self._append(RequestEnded(replace(_priced(outcome), steps=(), vote=(), answer=None)))

    def look(self, *jobs: str) -> None:
        """The control loop looks at the log, and what it decided holds; then these jobs, as somebody asked for them."""
        if not self.log.drain(20):
            raise SufficeError("demo: the log could not be written")
        self.worker.round()
        for job in self.worker.jobs:
            if job.name in jobs:
                job.forget()  # it may be at rest, and somebody asks
                self.worker.once(job.name)
        self.held = read_decided(self.path).of(ROUTE)

    def _write(self, request: Request, outcome: Outcome, right: str) -> None:
        self._append(RequestSeen(request))
        self._append(RequestEnded(outcome))
        for given in people.said(outcome, right, self.rng):
            self._append(FeedbackGiven(given))

    def _append(self, event: Event) -> None:
        if not self.log.append(event):
            raise SufficeError("demo: the log is full")

    def _replayed(self, request: Request, outcome: Outcome, level: int) -> Replayed | None:
        """Where the version in force stops this run; None: nothing is in force."""
        version = self._version() if level else None
        if version is None:
            return None
        policy = build_policy(version.policy(request.question_key, level))
        return replay(Episode(request=request, outcome=outcome), policy, wave=self.settings.routes[ROUTE].wave)

    def _version(self) -> Version | None:
        made = self.held.publication
        if made is None or not made.fit:
            return None
        if made.fit not in self.versions:
            with reading(self.path) as connection:
                self.versions[made.fit] = load_version(json.loads(read_artefact(connection, made.fit) or "null"))
        return self.versions[made.fit]

    def _stopped(self, outcome: Outcome, replayed: Replayed | None) -> Outcome:
        """The run as it ends where it is stopped, with what that is estimated to have saved."""
        if replayed is None or replayed.stop_step is None or outcome.usage is None:
            return outcome
        mean = sum(self.full_tokens[-500:]) / max(1, len(self.full_tokens[-500:]))
        steps = outcome.steps[: replayed.stop_step]
        usage = replace(outcome.usage, completion_tokens=replayed.tokens)
        saved = max(0, round(mean - replayed.tokens))
        return replace(
            outcome, end_reason="stopped", stopped=True, stop_reason="suffices", stop_step=replayed.stop_step,
            answer=replayed.answer, would_answer=replayed.answer, usage=usage, finish_method="vote",
            steps=(*steps[:-1], replace(steps[-1], action="stop", reason="the risk is below the level's threshold")),
            decision="the risk is below the level's threshold", tokens_saved_estimate=saved,
            estimate_method=f"mean of {min(500, len(self.full_tokens))} full runs of this route",
            vote=_counted([step.answer for step in steps if step.answer]),
            duration_s=round(outcome.duration_s * replayed.tokens / outcome.usage.completion_tokens, 3),
        )  # fmt: skip


def _counted(answers: list[str]) -> tuple[tuple[str, int], ...]:
    return tuple((one, answers.count(one)) for one in dict.fromkeys(answers))


def _noted(outcome: Outcome, replayed: Replayed | None) -> Outcome:
    """A full run with where it would have stopped."""
    if replayed is None or replayed.stop_step is None:
        return outcome
    return replace(outcome, stop_step=replayed.stop_step, would_answer=replayed.answer)


def _priced(outcome: Outcome) -> Outcome:
    assert outcome.usage is not None
    cost = cost_of(
        PRICES, prompt_tokens=outcome.usage.prompt_tokens, completion_tokens=outcome.usage.completion_tokens
    ).total_usd
    saved = (outcome.tokens_saved_estimate or 0) * PRICES.output_usd_per_mtok / 1e6
    return replace(
        outcome, cost_usd=cost, overhead_usd=0.0, saved_usd_estimate=saved if outcome.stopped else None,
        would_cost_usd=cost if outcome.stop_step is not None and not outcome.stopped else None,
    )  # fmt: skip


@contextmanager
def month(
    settings: Settings, path: Path, *, begin_s: float, seed: int, monotonic_s: Callable[[], float]
) -> Iterator[Month]:
    """A month on a new log, while the block lasts. Raises StoreError."""
    clock, rng = Clock(begin_s), random.Random(seed)
    log = SqliteLog.open(settings.store, now=clock)
    with Decisions.open(path, now=clock, monotonic_s=monotonic_s) as writer:
        common: dict[str, Any] = {
            "settings": settings,
            "path": writer.path,
            "matches": matching,
            "monotonic_s": monotonic_s,
        }
        certify, monitor = Certify(author=AUTHOR, **common), Monitor(author=AUTHOR, **common)
        rollup = Rollup(now=clock, **common)
        jobs: tuple[Job, ...] = (certify, monitor, Retrain(author=AUTHOR, **common), rollup)
        ids = iter(range(10**9))
        worker = Worker(
            decisions=writer,
            jobs=jobs,
            author=AUTHOR,
            now=clock,
            monotonic_s=monotonic_s,
            new_id=lambda: f"jr_{next(ids):011x}",
        )
        try:
            yield Month(settings=settings, path=writer.path, log=log, worker=worker, clock=clock, rng=rng)
        finally:
            for job in (certify, monitor, rollup):
                job.close()
            log.close()


def live(made: Month, *, n: int, until_s: float, told: Callable[[int, InForce], None] = lambda _n, _held: None) -> None:
    """Let a month pass: `n` requests on the governed route, a third as many on the one that observes."""
    step_s = (until_s - made.clock.at_s) / max(1, n)
    for number in range(n):
        made.clock.at_s += step_s
        made.ask()
        if number % 3 == 0:
            made.watch()
        if number % 20 == 0:
            made.pass_on()
        if number % EACH == EACH - 1:
            made.look()
            told(number + 1, made.held)
    made.look("retrain", "rollup")
