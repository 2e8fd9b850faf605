"""A simulated month: generated requests in the log, and decisions by the real jobs of the control loop."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from suffice.assurance.load_level import Admission
from suffice.control.jobs.base import Job, Worker
from suffice.control.jobs.certify import Certify
from suffice.control.jobs.monitor import Monitor
from suffice.control.jobs.notify import Notify
from suffice.control.jobs.proposals import Advance, Retrain
from suffice.control.jobs.upkeep import Rollup
from suffice.errors import SufficeError
from suffice.policy.folded_version import FoldedVersion, load_version
from suffice.review.decide import IncidentForm
from suffice.rollout.experiment import units_of
from suffice.serving.deploy import deploy_route
from suffice.serving.route import BuiltRoute
from suffice.serving.variants import Variants
from suffice.settings import Settings, parse_settings
from suffice.store.database.decisions import Decisions, read_artefact
from suffice.store.database.views import open_reader
from suffice.store.database.writer import LogWriter
from suffice.store.people.alerts import Notice, plain
from suffice.store.people.deciding import ask_about, decide_incident, open_incident
from suffice.store.routes.deployments import RouteDeployment, read_decided
from suffice.store.rows.events import Event, FeedbackEvent, KillSwitchState
from suffice.telemetry import Metrics
from suffice.types import Episode, Outcome, Request
from suffice.wiring.routes import build_route
from suffice_demo.month_traffic import (
    MATH,
    MONTH,
    PRICES,
    SHARE,
    SUPPORT,
    QuestionKind,
    end_run,
    full_run,
    loop_events,
    make_feedback,
    priced,
)
from suffice_demo.month_trials import AUTHOR, MonthTrials, succeed
from suffice_demo.replayed_runs import replay_run

ROUTE: Final = "math"
DAYS: Final = 30
DAY_S: Final = 86_400
EACH: Final = 60  # requests between two rounds of the control loop
N_REVIEWED: Final = 12  # runs that wait for a person at the end
SELDOM: Final = 4  # rounds per round of the job `monitor`, which is most of the work
WEBHOOK: Final[str] = MONTH["settings"]["alerts"]["webhook_url_env"]
MOST_BYTES: Final = 64 * 1024  # of an alert


def settings_for(database: Path, *, upstream: str = "http://127.0.0.1:9") -> Settings:
    prices = {"input_usd_per_mtok": PRICES.input_usd_per_mtok, "output_usd_per_mtok": PRICES.output_usd_per_mtok}
    house = {"url": upstream, "slots": 8, "prices": prices}
    return parse_settings(
        {**MONTH["settings"], "upstreams": {"house": house}, "store": {"url": f"sqlite:///{database}"}}
    )


@dataclass(slots=True)
class Clock:
    at_s: float  # Unix time

    def __call__(self) -> float:
        return self.at_s


@dataclass(slots=True, kw_only=True)
class Month:
    settings: Settings
    log: LogWriter
    writer: Decisions
    worker: Worker
    watcher: Worker  # with the job `monitor`
    trials: MonthTrials
    clock: Clock
    base: BuiltRoute  # that certifies itself, before any evidence
    route: BuiltRoute = field(init=False)  # as its gateway serves it
    variants: Variants
    rng: random.Random
    loop_rng: random.Random  # of loops, so that their number does not change the draws of other routes
    full_tokens: list[int] = field(default_factory=list)  # of full runs, to estimate the saving of a stop
    doubtful: dict[str, str] = field(default_factory=dict)  # why to review a run whose early answer differs, by its id
    killed: bool = False
    n: int = 0
    n_looks: int = 0

    def __post_init__(self) -> None:
        self.route = self.base

    def ask(self) -> None:
        made = self.route.active.publication
        request, outcome, right = self._full_run(MATH, ROUTE, 1.0 if made is None else made.share)
        asked = self.route.for_request(
            request.question_key, request.model, request.query.query_class if request.query else ""
        )
        served, arms = self.variants.place(asked, lambda: units_of("", request=request.unit))
        request = replace(
            request, policy_version=served.serving.version, certified=served.certified, setup=served.setup, arms=arms
        )
        place = Admission(level=self.route.active.level, certified=True, reason="the load is usual")
        policy = served.placed(place).serving.policy
        replayed = replay_run(Episode(request=request, outcome=outcome), policy, wave=served.settings.wave)
        because, acts = "the risk is below the level's threshold", served.acts and not (request.audit or self.killed)
        ended = end_run(outcome, replayed, self.full_tokens, acts=acts, because=because)
        if ended.would_answer not in (None, ended.answer):
            self.doubtful[ended.episode_id] = "the votes changed their mind"
        self._write(request, ended, right, self.rng)

    def observe(self) -> None:
        request, outcome, right = self._full_run(SUPPORT, "support", SHARE)
        self._write(replace(request, mode="observe"), priced(outcome), right, self.rng)

    def ask_quiz(self, part: float) -> None:
        self.trials.pass_time(part)
        request, outcome, right = self.trials.ask(self.n, at_s=self.clock.at_s)
        self.n += 1
        self._write(request, outcome, right, self.trials.rng)

    def pass_through(self) -> None:
        request, outcome, _ = self._full_run(SUPPORT[:1], "embeddings", 0.0)
        self._append(
            replace(request, mode="off", ungoverned="off", query=None, n_samples=1, unit="", setup=""),
            replace(priced(outcome), steps=(), vote=(), answer=None),
        )

    def loop(self) -> None:
        events = loop_events(self.n, self.loop_rng, at_s=self.clock.at_s)
        self._append(*events)
        self.n += 1
        for event in events:
            if isinstance(event, Outcome) and event.would_answer not in (None, event.answer):
                self.doubtful[event.episode_id] = "it took the first date it found"

    def pull_switch(self, *, on: bool) -> None:
        reason = "a drill: ann tries the switch" if on else "the drill is over"
        self._append(KillSwitchState(on=on, reason=reason, stamp=int(self.clock.at_s * 1e9)))
        self.killed = on
        self._notify()

    def complain(self, summary: str) -> str:
        route = self.settings.routes[ROUTE]
        incident = succeed(open_incident(self.writer, ROUTE, route, summary, AUTHOR, now_s=self.clock.at_s))
        self._notify()
        return incident.incident

    def accept(self, incident: str, reason: str) -> None:
        form = IncidentForm(incident=incident, decision="accept", reason=reason, author=AUTHOR)
        succeed(decide_incident(self.writer, self.settings.routes[ROUTE], ROUTE, form, now_s=self.clock.at_s))

    def request_review(self) -> None:
        rules = {name: route.review for name, route in self.settings.routes.items()}
        for name, reason in list(self.doubtful.items())[-N_REVIEWED:]:
            ask_about(self.writer, name, rules, reason, AUTHOR, now_s=self.clock.at_s)

    def look(self, *jobs: str) -> None:
        if not self.log.drain(20):
            raise SufficeError("demo: the log could not be written")
        if self.n_looks % SELDOM == 0 or jobs:
            self.watcher.round()
        self.n_looks += 1
        self.worker.round()
        for job in self.worker.jobs:
            if job.name in jobs:
                job.forget()
                self.worker.once(job.name)
        held = read_decided(self.writer.path).of(ROUTE)
        made = held.publication
        version = _version(self.writer.path, made.fit) if made is not None and made.fit and held.level else None
        self.route = deploy_route(self.base, held, version)
        self.trials.follow()

    def _full_run(self, kinds: Sequence[QuestionKind], route: str, share: float) -> tuple[Request, Outcome, str]:
        run = full_run(self.n, kinds, self.rng, route=route, share=share, at_s=self.clock.at_s)
        self.n += 1
        return run

    def _notify(self) -> None:
        self.log.drain(20)
        self.worker.once("notify")

    def _write(self, request: Request, outcome: Outcome, right: str, rng: random.Random) -> None:
        self._append(request, outcome, *map(FeedbackEvent, make_feedback(outcome, right, rng)))

    def _append(self, *events: Event) -> None:
        if not all(self.log.append(event) for event in events):
            raise SufficeError("demo: the log is full")


@lru_cache(maxsize=8)
def _version(path: Path, address: str) -> FoldedVersion:
    with open_reader(path) as connection:
        return load_version(json.loads(read_artefact(connection, address) or "null"))


@contextmanager
def month(
    settings: Settings, path: Path, *, begin_s: float, seed: int, secret: str, monotonic_s: Callable[[], float]
) -> Iterator[Month]:
    """Raise StoreError.

    secret  signs versions
    """
    clock, author, ids = Clock(begin_s), "worker demo", iter(range(10**9))
    log = LogWriter(settings.store, now=clock)
    with Decisions(path, now=clock, monotonic_s=monotonic_s) as writer:
        common: dict[str, Any] = {
            "settings": settings,
            "path": writer.path,
            "author": author,
            "now": clock,
            "monotonic_s": monotonic_s,
            "secret": secret,
        }
        certify, monitor, rollup, retrain = (kind(**common) for kind in (Certify, Monitor, Rollup, Retrain))
        advance = Advance(**{**common, "monotonic_s": clock})  # its waiting times follow the month's clock
        sinks = (TakenSink("log"), TakenSink("webhook"))
        notify = Notify(sinks=sinks, **common)

        def worker(*jobs: Job) -> Worker:
            return Worker(
                jobs=jobs,
                decisions=writer,
                author=author,
                now=clock,
                monotonic_s=monotonic_s,
                new_id=lambda: f"jr_{next(ids):011x}",
            )

        try:
            yield Month(
                settings=settings,
                log=log,
                writer=writer,
                worker=worker(certify, retrain, advance, notify, rollup),
                watcher=worker(monitor),
                clock=clock,
                base=build_route(ROUTE, settings.routes[ROUTE], None, settings.upstreams["house"]),
                variants=Variants(salt=f"month {seed}", metrics=Metrics()),
                rng=random.Random(seed),
                loop_rng=random.Random(seed + 1),
                trials=MonthTrials(
                    settings=settings, writer=writer, secret=secret, salt=f"month {seed}", rng=random.Random(seed + 2)
                ),
            )
        finally:
            for job in (certify, monitor, advance, rollup):
                job.close()
            log.close()


def live(
    made: Month, *, n: int, until_s: float, on_step: Callable[[int, RouteDeployment], None] = lambda _n, _held: None
) -> None:
    """Pass the month in `n` steps, each with a request on the certified route and on the route with experiments."""
    step_s, incident = (until_s - made.clock.at_s) / max(1, n), ""
    switch = {n // 2: True, n // 2 + 2: False, n - 14: True, n - 12: False}
    for number in range(n):
        made.clock.at_s += step_s
        if number in switch:
            made.pull_switch(on=switch[number])
        if number == 2 * n // 3:
            incident = made.complain("two users say that the unit is missing where areas are asked for")
        elif number == 3 * n // 4:
            made.accept(incident, "the prompt asks for the unit since today")
        elif number == n - 8:
            made.complain("answers about areas are without their unit again")
        made.ask()
        made.ask_quiz(number / n)
        if number % 3 == 0:
            made.observe()
        if number % 20 == 0:
            made.pass_through()
        if number % 40 == 0:
            made.loop()
        if number % EACH == EACH - 1:
            made.look()
            on_step(number + 1, made.route.active)
    made.look("retrain", "rollup")
    made.request_review()


@dataclass(slots=True)
class TakenSink:
    name: str

    def send(self, notice: Notice, *, at_s: float, link: str | None) -> str | None:  # noqa: ARG002 - the signature of sinks
        return None


@contextmanager
def webhook(say: Callable[[str], None]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(min(MOST_BYTES, int(self.headers.get("content-length") or 0)))
            try:
                say(plain(str(json.loads(body)["text"]), 400))
            except (ValueError, KeyError, TypeError):
                say("something that is no alert")
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - signature of the base class
            """Say nothing of each request."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/alerts"
        finally:
            server.shutdown()
