"""The demonstration: a route is observed, certifies its policy on live traffic, saves, and loses its model.

The saving under the certificate compares runs with the full runs before it; audits and observed runs are paired.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, islice
from math import ceil
from pathlib import Path
from typing import Final, Literal, Protocol, TypeAlias, get_args

import numpy as np

from suffice.assurance.bounds import Interval
from suffice.assurance.certify import audits_to_certify
from suffice.scoring.base import build_scorer
from suffice.scoring.scorer import Scorer
from suffice.server import serve_in_loop
from suffice.store.database.views import read_episodes
from suffice.store.routes.deployments import NOTHING_DECIDED, DeploymentState, RouteDeployment, read_decided
from suffice.types import Episode, Mode
from suffice.wiring.files import load_settings
from suffice_demo import rows
from suffice_demo.bootstrap import bootstrap_interval
from suffice_demo.local.server import predicted_tokens
from suffice_demo.local.tasks import TaskQuestion
from suffice_demo.rows import DemoAnswer, Pass, ask_all

ROUTE: Final = "quiz"
MODEL: Final = "quiz-model"  # as requested by clients, before and after the swap
SEED: Final = 20_26
EACH: Final = 5  # questions between two reads of the log
BUDGETS: Final = (0.05, 0.06, 0.07, 0.08, 0.09, 0.10)  # EM, fractions: those that the demonstration chooses from
USUAL_PART: Final = 0.25  # of the budget: what stopping is assumed to lose when the budget is chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoPlan:
    n_observed: int = 30  # requests that are observed first
    certify_s: float = 110.0  # in which the expected number of audits must fit
    patience: float = 1.75  # nine levels in ten are certified within so many times that number (`audits_to_certify`)
    n_settled: int = 40  # requests of the proof after which the model behind the route is taken as known
    n_certified: int = 40  # requests under the certificate
    n_swapped: int = 10  # requests after the swap
    confidence: float = 0.95
    tick: int = 5  # requests between two rounds of the control loop
    n_samples: int = 8
    wave: int = 1
    n_at_once: int = 2  # requests
    period_s: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvableBudget:
    max_em_drop: float  # fraction
    n_audits: int  # expected to prove it, if stopping loses `USUAL_PART` of it
    n_affordable: int  # that fit into the time


def provable_budget(n_affordable: int, *, confidence: float) -> ProvableBudget:
    """Return the smallest of `BUDGETS` that so many audits are expected to prove; the largest if there is none."""
    needed = {one: audits_to_certify(USUAL_PART * one, max_em_drop=one, delta=1 - confidence) for one in BUDGETS}
    budget = next((one for one in BUDGETS if needed[one] <= n_affordable), BUDGETS[-1])
    return ProvableBudget(max_em_drop=budget, n_audits=needed[budget], n_affordable=n_affordable)


def story_settings(
    plan: DemoPlan, mode: Mode, *, max_em_drop: float, upstream: str, driver: str, slots: int, database: Path
) -> str:
    return f"""\
[upstreams.local]
url = "{upstream}"
driver = "{driver}"
slots = {slots}

[routes.{ROUTE}]
upstream = "local"
match = {{ header = "{ROUTE}" }}
kind = "samples"           # ask several times, return the vote
samples = {plan.n_samples}
wave = {plan.wave}                   # one after the other
scorer = "text"
policy = {{ policy = "beta", threshold = 0.85 }}   # stops when the first two agree, or a later lead is as safe
mode = "{mode}"
max_em_drop = {max_em_drop:g}
confidence = {plan.confidence:g}

[control]
tick_requests = {plan.tick}          # default 100
burst_requests = {plan.n_settled}        # default 24 / max_em_drop: from then on another model ends what was proved
period_s = {plan.period_s:g}

[store]
url = "sqlite:///{database}"
"""


def generate_traffic(pool: Sequence[TaskQuestion], *, seed: int = SEED) -> Iterator[TaskQuestion]:
    rng = random.Random(seed)
    for number in count(1):
        question = rng.choice(pool)
        yield replace(question, id=f"{question.id}#{number}")


def name_of(question: TaskQuestion) -> str:
    return question.id.partition("#")[0]


Period: TypeAlias = Literal["observed", "proving", "certified", "swapped"]
PERIODS: Final[tuple[Period, ...]] = get_args(Period)
N_DRAWS: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CourseRun:
    period: Period
    question: str  # in the pool
    episode: Episode
    correct: bool  # of the delivered answer
    first_correct: bool = False  # of the first sample alone
    stop_correct: bool | None = None  # full runs: of the answer at the stop; None: no stop
    wave: int = 1  # samples at once

    @property
    def tokens(self) -> int:
        return rows.total_tokens(self.episode)

    @property
    def stop_tokens(self) -> int:
        """What the run would have cost with its stop: whole waves."""
        step = self.episode.outcome.stop_step
        if step is None or self.episode.outcome.stopped:
            return self.tokens
        n_drawn = ceil(step / self.wave) * self.wave
        return min(self.tokens, sum(one.tokens for one in self.episode.outcome.steps[:n_drawn]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Figures of one period, as fractions. Only runs under the certificate are compared; None for the other periods."""

    period: Period
    n: int
    n_stopped: int
    n_audits: int  # ran in full by design
    em: float  # of delivered answers
    em_first: float  # of each request's first sample
    tokens: float  # mean per request
    em_change: float | None = None  # against the full runs before the certificate
    em_change_interval: Interval | None = None
    saved: float | None = None
    saved_interval: Interval | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditTally:
    n: int
    n_stops: int  # with a stop
    n_lost: int  # right in full, wrong if stopped
    n_gained: int


def run_of(answered: DemoAnswer, episode: Episode, scorer: Scorer, *, swapped: bool, wave: int = 1) -> CourseRun:
    request, outcome, gold = episode.request, episode.outcome, answered.question.gold
    would_stop = not outcome.stopped and outcome.stop_step is not None
    before: Period = "observed" if request.mode == "observe" else "proving"
    return CourseRun(
        period="swapped" if swapped else "certified" if request.certified else before,
        wave=wave,
        question=name_of(answered.question),
        episode=episode,
        correct=rows.correct(answered, scorer),
        first_correct=bool(outcome.steps) and rows.matches(scorer, outcome.steps[0].answer, gold),
        stop_correct=rows.matches(scorer, outcome.would_answer, gold) if would_stop else None,
    )


def audited(runs: Iterable[CourseRun]) -> AuditTally:
    requests = [(run, run.episode.request) for run in runs if run.period == "certified"]
    audits = [run for run, request in requests if request.audit and request.propensity < 1]
    stops = [(run.correct, run.stop_correct) for run in audits if run.stop_correct is not None]
    return AuditTally(
        n=len(audits),
        n_stops=len(stops),
        n_lost=sum(full and not stop for full, stop in stops),
        n_gained=sum(bool(stop) and not full for full, stop in stops),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstSaving:
    """What stopping would have done to runs that ran in full, paired."""

    n: int
    n_stops: int
    n_lost: int
    n_gained: int
    saved: float  # fraction of the generated tokens
    interval: Interval | None  # 95 %, questions resampled

    @property
    def em_change(self) -> float:
        return (self.n_gained - self.n_lost) / self.n


def first_saving(runs: Sequence[CourseRun]) -> FirstSaving:
    values = np.array([[float(run.tokens), float(run.stop_tokens)] for run in runs])
    stops = [(run.correct, run.stop_correct) for run in runs if run.stop_correct is not None]

    def saved(sums: np.ndarray) -> float:
        return float(1 - sums[1] / sums[0]) if sums[0] else float("nan")

    groups, rng = [run.question for run in runs], np.random.default_rng(rows.SEED)
    return FirstSaving(
        n=len(runs),
        n_stops=len(stops),
        n_lost=sum(full and not stop for full, stop in stops),
        n_gained=sum(bool(stop) and not full for full, stop in stops),
        saved=saved(values.sum(axis=0)),
        interval=bootstrap_interval(values, groups, saved, 0.95, N_DRAWS, rng),
    )


def all_figures(runs: Sequence[CourseRun], *, sure: bool = False) -> Mapping[Period, Figures]:
    parts = {period: [run for run in runs if run.period == period] for period in PERIODS}
    full = [*parts["observed"], *parts["proving"]]
    return {period: _figures(period, part, full, sure=sure) for period, part in parts.items() if part}


def _figures(period: Period, runs: Sequence[CourseRun], full: Sequence[CourseRun], *, sure: bool) -> Figures:
    compared = period == "certified" and bool(full)
    values = np.array([*(_row(run, 0) for run in full), *(_row(run, 3) for run in runs)])
    groups = [run.question for run in (*full, *runs)]
    sums = values.sum(axis=0)
    saved_interval = em_interval = None
    if compared and sure:
        rng = np.random.default_rng(rows.SEED)
        saved_interval = bootstrap_interval(values, groups, _saved, 0.95, N_DRAWS, rng)
        em_interval = bootstrap_interval(values, groups, _em_change, 0.95, N_DRAWS, rng)
    return Figures(
        period=period,
        n=len(runs),
        n_stopped=sum(run.episode.outcome.stopped for run in runs),
        n_audits=sum(run.episode.request.audit for run in runs),
        em=float(np.mean([run.correct for run in runs])),
        em_first=float(np.mean([run.first_correct for run in runs])),
        tokens=float(np.mean([run.tokens for run in runs])),
        em_change=_em_change(sums) if compared else None,
        em_change_interval=em_interval,
        saved=_saved(sums) if compared else None,
        saved_interval=saved_interval,
    )


def _row(run: CourseRun, at: int) -> list[float]:
    row = [0.0] * 6
    row[at : at + 3] = [1.0, float(run.correct), float(run.tokens)]
    return row


def _em_change(sums: np.ndarray) -> float:
    return float(sums[4] / sums[3] - sums[1] / sums[0]) if sums[0] and sums[3] else float("nan")


def _saved(sums: np.ndarray) -> float:
    if not (sums[0] and sums[3] and sums[2]):
        return float("nan")
    return float(1 - (sums[5] / sums[3]) / (sums[2] / sums[0]))


FOLLOWED_S = 1.5  # time for the gateway, which polls once a second, to follow the log
DECIDED_S = 30.0  # most time for the worker to decide
LAST_LOOK_S = 10.0  # … about the last audits
WRITTEN_S = 5.0  # time until the outcome of an answered request is logged


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoServer:
    url: str
    driver: str
    slots: int
    swap: Callable[[], None]
    behind: str = "another model"  # the model after the swap, in plain words


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    held: RouteDeployment
    runs: Sequence[CourseRun]
    n_requests: int
    n_until: int  # requests at the end of this part
    ends: bool  # this is the last snapshot of the part
    elapsed_s: float  # since the first request


class Screen(Protocol):
    def say(self, sentence: str) -> None: ...

    def look(self, now: Snapshot) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoReport:
    plan: DemoPlan
    budget: ProvableBudget
    runs: Sequence[CourseRun]
    held: RouteDeployment  # at the end
    certified: RouteDeployment | None  # at the swap; None: nothing was certified
    n_predicted: int | None  # tokens generated, as counted by the model servers; None: not reported
    errors: Sequence[str]


@dataclass(slots=True)
class _Client:
    plan: DemoPlan
    database: Path
    traffic: Iterator[TaskQuestion]
    screen: Screen
    scorer: Scorer
    monotonic_s: Callable[[], float]
    begun_s: float
    url: str = ""  # of the gateway that runs now
    runs: list[CourseRun] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    n_requests: int = 0
    _open: dict[str, tuple[DemoAnswer, bool]] = field(default_factory=dict)  # answered but not yet logged
    _seq: int = 0
    _decided: DeploymentState = NOTHING_DECIDED

    @property
    def held(self) -> RouteDeployment:
        return self._decided.of(ROUTE)

    async def ask(self, most: int, *, swapped: bool = False, until: Callable[[], bool] = lambda: False) -> None:
        end = self.n_requests + most
        how = Pass(
            route=ROUTE, model=MODEL, extra={"suffice": {"samples": self.plan.n_samples}}, n_at_once=self.plan.n_at_once
        )
        while self.n_requests < end and not until():
            questions = list(islice(self.traffic, min(EACH, end - self.n_requests)))
            for answered in await ask_all(self.url, questions, how, lambda _: None):
                self.n_requests += 1
                if answered.error is None:
                    self._open[answered.episode_id] = (answered, swapped)
                else:
                    self.errors.append(answered.error)
            await asyncio.to_thread(self._read)
            self._show(end, ends=False)
        await self.wait(lambda: not self._open, within_s=WRITTEN_S)
        self._show(end, ends=True)

    def _show(self, end: int, *, ends: bool) -> None:
        self.screen.look(
            Snapshot(
                held=self.held,
                runs=tuple(self.runs),
                n_requests=self.n_requests,
                n_until=end,
                ends=ends,
                elapsed_s=self.monotonic_s() - self.begun_s,
            )
        )

    def _read(self) -> None:
        for result in read_episodes(self.database, ROUTE, since_seq=self._seq):
            self._seq = max(self._seq, result.seq)
            value = self._open.pop(result.episode.request.episode_id, None)
            if value is not None:
                answered, swapped = value
                self.runs.append(run_of(answered, result.episode, self.scorer, swapped=swapped, wave=self.plan.wave))
        before, self._decided = self.held, read_decided(self.database, self._decided)
        for sentence in news(before, self.held):
            self.screen.say(sentence)

    async def wait(self, until: Callable[[], bool], *, within_s: float) -> None:
        for _ in range(int(within_s / 0.1)):
            if until():
                return
            await asyncio.sleep(0.1)
            await asyncio.to_thread(self._read)


def news(before: RouteDeployment, now: RouteDeployment) -> list[str]:
    results = []
    if now.alarm is not None and now.alarm != before.alarm:
        results.append(f"alarm, {now.alarm.cause}: {now.alarm.reason}")
    if now.epoch is not None and now.n_epochs != before.n_epochs:
        results.append(f"all runs in full from now on: {now.epoch.reason}")
    if now.publication is not None and now.n_publications != before.n_publications:
        what = "certified" if now.level else "nothing certified"
        results.append(f"{what}: {now.publication.reason}")
    if now.pause is not None and now.pause != before.pause:
        results.append(f"enforcement paused: {now.pause.reason}")
    return results


async def run_story(
    plan: DemoPlan,
    server: DemoServer,
    folder: Path,
    pool: Sequence[TaskQuestion],
    screen: Screen,
    *,
    first_s: float = 1.0,
    monotonic_s: Callable[[], float] = time.monotonic,
) -> DemoReport:
    """Run the whole story, with `demo.toml` and `demo.db` in `folder`.

    first_s  seconds before the control loop starts
    """
    database, file = folder / "demo.db", folder / "demo.toml"
    client = _Client(plan, database, generate_traffic(pool), screen, build_scorer("text"), monotonic_s, monotonic_s())

    def configure(mode: Mode, max_em_drop: float) -> None:
        file.write_text(
            story_settings(
                plan,
                mode,
                max_em_drop=max_em_drop,
                upstream=server.url,
                driver=server.driver,
                slots=server.slots,
                database=database,
            ),
            "utf-8",
        )

    counted = [await _count(server, -1)]
    configure("observe", BUDGETS[0])
    async with serve_in_loop(load_settings(file)) as client.url:
        await client.ask(plan.n_observed)
    budget = _choose_budget(plan, client, screen)
    configure("enforce", budget.max_em_drop)
    certified: RouteDeployment | None = None
    async with serve_in_loop(load_settings(file), worker_after_s=first_s) as client.url:
        await client.ask(ceil(plan.patience * budget.n_audits), until=lambda: client.held.level > 0)
        await client.wait(lambda: client.held.level > 0, within_s=LAST_LOOK_S)
        if client.held.level:
            await asyncio.sleep(FOLLOWED_S)
            await client.ask(plan.n_certified)
            certified = client.held
            counted.append(await _count(server, 1))
            await asyncio.to_thread(server.swap)
            screen.say(f"the swap: at the same address answers {server.behind}; clients still ask for {MODEL!r}")
            counted.append(await _count(server, -1))
            await client.ask(plan.n_swapped, swapped=True)
            await client.wait(lambda: client.held.alarm is not None, within_s=max(DECIDED_S, 10 * plan.period_s))
        counted.append(await _count(server, 1))
    return DemoReport(
        plan=plan,
        budget=budget,
        runs=tuple(client.runs),
        held=client.held,
        certified=certified,
        errors=tuple(client.errors),
        n_predicted=None if None in counted else sum(one for one in counted if one is not None),
    )


def _choose_budget(plan: DemoPlan, client: _Client, screen: Screen) -> ProvableBudget:
    """Choose by the speed of this machine alone: no answer plays a part."""
    elapsed_s = client.monotonic_s() - client.begun_s
    if client.runs:
        screen.say(saving_sentence(first_saving(client.runs)))
    n_affordable = int(plan.certify_s * client.n_requests / max(elapsed_s, 1e-3))
    budget = provable_budget(n_affordable, confidence=plan.confidence)
    screen.say(
        f"this machine answers {client.n_requests / max(elapsed_s, 1e-3):.1f} requests a second, so about"
        f" {n_affordable:,} audits fit into {plan.certify_s:.0f} s. The smallest budget that they can be expected to"
        f" prove at {plan.confidence:.0%}: {100 * budget.max_em_drop:g} points of EM ({budget.n_audits} audits, if"
        f" stopping loses a quarter of it). Now enforce: all in full until that is proved"
    )
    return budget


def saving_sentence(one: FirstSaving) -> str:
    span = "" if one.interval is None else f" (95 %: {100 * one.interval.low:.0f} to {100 * one.interval.high:.0f})"
    return (
        f"measured on {one.n} full runs: stopping would have saved {100 * one.saved:.0f} %{span} of the generated"
        f" tokens in {one.n_stops} of them (answers made wrong: {one.n_lost}, made right: {one.n_gained})"
    )


async def _count(server: DemoServer, sign: int) -> int | None:
    result = await asyncio.to_thread(predicted_tokens, server.url)
    return None if result is None else sign * result


def n_reconciled(runs: Sequence[CourseRun]) -> int:
    return sum(rows.reconciled(run.episode) for run in runs)
