"""The online demonstration: a route certifies itself live, then another model answers under the same name.

Saving and EM change compare runs under the certificate with the runs before it; only audits are paired.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import count, islice
from pathlib import Path
from typing import Final, Literal, Protocol, TypeAlias, get_args

import numpy as np

from suffice.assurance.bounds import Interval
from suffice.extras import how_to_install
from suffice.scoring.base import Scorer, build_scorer
from suffice.server import serve_in_loop
from suffice.store.database.views import read_episodes
from suffice.store.routes.deployments import NOTHING_DECIDED, DeploymentState, RouteDeployment, read_decided
from suffice.types import Episode
from suffice.wiring.files import load_settings
from suffice_demo import rows
from suffice_demo.bootstrap import bootstrap_interval
from suffice_demo.local import LocalModelError
from suffice_demo.local.tasks import TaskQuestion
from suffice_demo.rows import DemoAnswer, Pass, ask_all
from suffice_demo.run import predicted_tokens

ROUTE: Final = "quiz"
MODEL: Final = "quiz-model"  # as requested by clients, before and after the swap
SEED: Final = 20_26
EACH: Final = 5  # questions between two reads of the log


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoPlan:
    burst: int = 340  # full runs before the first fit: audits are dense until 16/max_em_drop
    most: int = 600  # … and at most before a certificate
    n_certified: int = 200  # requests under the certificate
    n_swapped: int = 50  # requests after the swap
    max_em_drop: float = 0.05  # fraction
    confidence: float = 0.95
    tick: int = 20  # requests between two rounds of the control loop
    n_samples: int = 8
    wave: int = 2
    period_s: float = 1.0


SMALL: Final = DemoPlan(burst=180, most=300, n_certified=60, n_swapped=15, max_em_drop=0.1)


def story_settings(plan: DemoPlan, *, upstream: str, driver: str, slots: int, database: Path) -> str:
    return f"""\
[upstreams.local]
url = "{upstream}"
driver = "{driver}"
slots = {slots}

[routes.{ROUTE}]
upstream = "local"
match = {{ header = "{ROUTE}" }}
kind = "samples"
samples = {plan.n_samples}
wave = {plan.wave}                   # as many as the server works on at once
scorer = "text"
mode = "enforce"           # and no policy: it is learned, and certified before it acts
max_em_drop = {plan.max_em_drop:<8g}     # default 0.02: a shorter proof needs a larger budget
confidence = {plan.confidence:g}

[control]
burst_requests = {plan.burst}       # default 1000
refit_requests = {plan.burst}       # default 1000
tick_requests = {plan.tick}         # default 100
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


Period: TypeAlias = Literal["before", "certified", "swapped"]
PERIODS: Final[tuple[Period, ...]] = get_args(Period)
N_DRAWS: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CourseRun:
    period: Period
    question: str  # in the pool
    episode: Episode
    correct: bool  # of the delivered answer
    first_correct: bool = False  # of the first sample alone
    stop_correct: bool | None = None  # audits: of the answer at the stop; None: no stop

    @property
    def tokens(self) -> int:
        return rows.total_tokens(self.episode)


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


def run_of(answered: DemoAnswer, episode: Episode, scorer: Scorer, *, swapped: bool) -> CourseRun:
    request, outcome, gold = episode.request, episode.outcome, answered.question.gold
    would_stop = request.audit and outcome.stop_step is not None
    return CourseRun(
        period="swapped" if swapped else "certified" if request.certified else "before",
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


def all_figures(runs: Sequence[CourseRun], *, sure: bool = False) -> Mapping[Period, Figures]:
    parts = {period: [run for run in runs if run.period == period] for period in PERIODS}
    return {period: _figures(period, part, parts["before"], sure=sure) for period, part in parts.items() if part}


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


class Screen(Protocol):
    def say(self, sentence: str) -> None: ...

    def look(self, now: Snapshot) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoReport:
    plan: DemoPlan
    runs: Sequence[CourseRun]
    held: RouteDeployment  # at the end
    certified: RouteDeployment | None  # at the swap; None: nothing was certified
    n_predicted: int | None  # tokens generated, as counted by the model servers; None: not reported
    errors: Sequence[str]


@dataclass(slots=True)
class _Client:
    url: str
    plan: DemoPlan
    database: Path
    traffic: Iterator[TaskQuestion]
    screen: Screen
    scorer: Scorer
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
        how = Pass(route=ROUTE, model=MODEL, extra={"suffice": {"samples": self.plan.n_samples}}, n_at_once=1)
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
            Snapshot(held=self.held, runs=tuple(self.runs), n_requests=self.n_requests, n_until=end, ends=ends)
        )

    def _read(self) -> None:
        for result in read_episodes(self.database, ROUTE, since_seq=self._seq):
            self._seq = max(self._seq, result.seq)
            value = self._open.pop(result.episode.request.episode_id, None)
            if value is not None:
                answered, swapped = value
                self.runs.append(run_of(answered, result.episode, self.scorer, swapped=swapped))
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
        results.append(f"epoch {now.n_epochs} begins, all in full for {now.epoch.burst} requests: {now.epoch.reason}")
    if now.publication is not None and now.n_publications != before.n_publications:
        what = f"level {now.level} certified" if now.level else "nothing certified"
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
) -> DemoReport:
    """Run the whole story, with `online.toml` and `online.db` in `folder`. Raise LocalModelError without scikit-learn.

    first_s  seconds before the control loop starts
    """
    if find_spec("sklearn") is None:
        raise LocalModelError(f"demo --online: fits need scikit-learn: {how_to_install('train')}")
    database, file = folder / "online.db", folder / "online.toml"
    file.write_text(
        story_settings(plan, upstream=server.url, driver=server.driver, slots=server.slots, database=database), "utf-8"
    )
    configured = load_settings(file)
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(serve_in_loop(configured, worker_after_s=first_s))
        client = _Client(url, plan, database, generate_traffic(pool), screen, build_scorer("text"))
        counted = [await _count(server, -1)]
        await client.ask(plan.most, until=lambda: client.held.level > 0)
        certified = client.held if client.held.level else None
        if certified is not None:
            await asyncio.sleep(FOLLOWED_S)
            await client.ask(plan.n_certified)
            certified = client.held
            counted.append(await _count(server, 1))
            await asyncio.to_thread(server.swap)
            screen.say(f"the swap: at the same address answers {server.behind}; clients still ask for {MODEL!r}")
            counted.append(await _count(server, -1))
            await client.ask(plan.n_swapped, swapped=True)
            await client.wait(lambda: client.held.in_burst, within_s=max(DECIDED_S, 10 * plan.period_s))
        counted.append(await _count(server, 1))
    return DemoReport(
        plan=plan,
        runs=tuple(client.runs),
        held=client.held,
        certified=certified,
        errors=tuple(client.errors),
        n_predicted=None if None in counted else sum(one for one in counted if one is not None),
    )


async def _count(server: DemoServer, sign: int) -> int | None:
    result = await asyncio.to_thread(predicted_tokens, server.url)
    return None if result is None else sign * result


def n_reconciled(runs: Sequence[CourseRun]) -> int:
    return sum(rows.reconciled(run.episode) for run in runs)
