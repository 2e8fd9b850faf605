"""The online demonstration itself: ask, label, watch the log, put another model under the same name, ask on.

Everything goes through the real gateway over HTTP, with the control loop in its own process beside it, as
`suffice serve` runs it. What is shown is read from the log, as `suffice status` reads it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Protocol

from suffice.demo import rows
from suffice.demo.ask import DemoAnswer, Pass, ask_all
from suffice.demo.online import course
from suffice.demo.online.course import CourseRun
from suffice.demo.online.plan import EACH, MODEL, ROUTE, DemoPlan, generate_traffic, story_settings
from suffice.demo.run import predicted_tokens
from suffice.errors import LocalModelError
from suffice.extras import how_to_install
from suffice.local.tasks import TaskQuestion
from suffice.scoring.base import Scorer, build_scorer
from suffice.server import serve_in_loop
from suffice.store.database.views import read_episodes
from suffice.store.routes.in_force import NOTHING_DECIDED, DeploymentState, InForce, read_decided
from suffice.wiring import load_settings

FOLLOWED_S = 1.5  # within which the gateway, which looks once a second, does as the log says
DECIDED_S = 30.0  # that the worker, which has other jobs on a machine with other work, may take to decide at the most
WRITTEN_S = 5.0  # within which the log has the outcome of a request that was answered


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoWorld:
    url: str
    driver: str
    slots: int
    swap: Callable[[], None]
    behind: str = "another model"  # what answers behind the swap, in plain words


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    held: InForce
    runs: Sequence[CourseRun]
    n_asked: int
    n_until: int  # requests at which this part of the story ends
    ends: bool  # is this the last look of the part?


class Screen(Protocol):
    def say(self, sentence: str) -> None: ...

    def look(self, now: Snapshot) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoReport:
    plan: DemoPlan
    runs: Sequence[CourseRun]
    held: InForce  # at the end
    certified: InForce | None  # when the swap was made; None: nothing was certified
    n_predicted: int | None  # generated tokens as the model servers count them; None: they do not say
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
    n_asked: int = 0
    _open: dict[str, tuple[DemoAnswer, bool]] = field(default_factory=dict)  # answered, and not yet in the log
    _seq: int = 0
    _decided: DeploymentState = NOTHING_DECIDED

    @property
    def held(self) -> InForce:
        return self._decided.of(ROUTE)

    async def ask(self, most: int, *, swapped: bool = False, until: Callable[[], bool] = lambda: False) -> None:
        """Ask so many requests, or until something is so."""
        end = self.n_asked + most
        how = Pass(route=ROUTE, model=MODEL, extra={"suffice": {"samples": self.plan.n_samples}}, n_at_once=1)
        while self.n_asked < end and not until():
            questions = list(islice(self.traffic, min(EACH, end - self.n_asked)))
            for answered in await ask_all(self.url, questions, how, lambda _: None):
                self.n_asked += 1
                if answered.error is None:
                    self._open[answered.episode_id] = (answered, swapped)
                else:
                    self.errors.append(answered.error)
            await asyncio.to_thread(self._read)
            self._show(end, ends=False)
        await self._settle()
        self._show(end, ends=True)

    async def _settle(self) -> None:
        for _ in range(int(WRITTEN_S / 0.1)):
            if not self._open:
                return
            await asyncio.sleep(0.1)
            await asyncio.to_thread(self._read)

    def _show(self, end: int, *, ends: bool) -> None:
        self.screen.look(Snapshot(held=self.held, runs=tuple(self.runs), n_asked=self.n_asked, n_until=end, ends=ends))

    def _read(self) -> None:
        for found in read_episodes(self.database, ROUTE, since_seq=self._seq):
            self._seq = max(self._seq, found.seq)
            told = self._open.pop(found.episode.request.episode_id, None)
            if told is not None:
                answered, swapped = told
                self.runs.append(course.run_of(answered, found.episode, self.scorer, swapped=swapped))
        before, self._decided = self.held, read_decided(self.database, self._decided)
        for sentence in news(before, self.held):
            self.screen.say(sentence)

    async def heard(self, what: Callable[[], bool], *, within_s: float) -> None:
        for _ in range(int(within_s / 0.2)):
            if what():
                return
            await asyncio.sleep(0.2)
            await asyncio.to_thread(self._read)


def news(before: InForce, now: InForce) -> list[str]:
    found = []
    if now.alarm is not None and now.alarm != before.alarm:
        found.append(f"alarm, {now.alarm.cause}: {now.alarm.reason}")
    if now.epoch is not None and now.n_epochs != before.n_epochs:
        found.append(f"epoch {now.n_epochs} begins, all in full for {now.epoch.burst} requests: {now.epoch.reason}")
    if now.publication is not None and now.n_publications != before.n_publications:
        what = f"level {now.level} certified" if now.level else "nothing certified"
        found.append(f"{what}: {now.publication.reason}")
    if now.pause is not None and now.pause != before.pause:
        found.append(f"enforcement paused: {now.pause.reason}")
    return found


async def run_story(
    plan: DemoPlan,
    world: DemoWorld,
    folder: Path,
    pool: Sequence[TaskQuestion],
    screen: Screen,
    *,
    first_s: float = 1.0,
) -> DemoReport:
    """Run the whole story. Raises LocalModelError without scikit-learn, and what the gateway raises.

    folder   an empty one: the settings and the log go there, `online.toml` and `online.db`
    first_s  seconds before the control loop starts
    """
    if find_spec("sklearn") is None:
        raise LocalModelError(f"demo --online: fits need scikit-learn: {how_to_install('train')}")
    database, file = folder / "online.db", folder / "online.toml"
    file.write_text(
        story_settings(plan, upstream=world.url, driver=world.driver, slots=world.slots, database=database), "utf-8"
    )
    configured = load_settings(file)
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(serve_in_loop(configured, worker_after_s=first_s))
        client = _Client(url, plan, database, generate_traffic(pool), screen, build_scorer("text"))
        counted = [await _count(world, -1)]
        await client.ask(plan.most, until=lambda: client.held.level > 0)
        certified = client.held if client.held.level else None
        if certified is not None:
            await asyncio.sleep(FOLLOWED_S)
            await client.ask(plan.n_certified)
            certified = client.held
            counted.append(await _count(world, 1))
            await asyncio.to_thread(world.swap)
            screen.say(f"the swap: at the same address answers {world.behind}; clients still ask for {MODEL!r}")
            counted.append(await _count(world, -1))
            await client.ask(plan.n_swapped, swapped=True)
            await client.heard(lambda: client.held.in_burst, within_s=max(DECIDED_S, 10 * plan.period_s))
        counted.append(await _count(world, 1))
    return DemoReport(
        plan=plan,
        runs=tuple(client.runs),
        held=client.held,
        certified=certified,
        errors=tuple(client.errors),
        n_predicted=None if None in counted else sum(one for one in counted if one is not None),
    )


async def _count(world: DemoWorld, sign: int) -> int | None:
    found = await asyncio.to_thread(predicted_tokens, world.url)
    return None if found is None else sign * found


def n_reconciled(runs: Sequence[CourseRun]) -> int:
    return sum(rows.reconciled(run.episode) for run in runs)
