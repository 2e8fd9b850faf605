"""The demonstration of the agent: two classes of questions become harder, then dearer to stop, then easier.

A fake model server knows the truth of every question, so what is saved and lost is counted, not estimated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
from rich.console import Console

from suffice.server import serve_in_loop
from suffice.store.database.views import open_reader
from suffice.store.people.audit_view import read_latest_rows
from suffice.store.routes.deployments import NOTHING_DECIDED, DeploymentState, RouteDeployment, read_decided
from suffice.wiring.files import load_settings
from suffice_testing import FakeUpstream
from suffice_testing.world import Profile, Question, World

ROUTE: Final = "parts"
CLASSES: Final = ("number", "which")
EASY: Final = Profile(p_first=0.6, line_tokens=20, finish_tokens=12, token_s=0.004)  # a stop must outrun the model
EACH: Final = 100  # requests of a line
AT_ONCE: Final = 16
N_STEPS: Final = 7
PLAIN: Final[dict[str, Any]] = {"highlight": False, "markup": False, "soft_wrap": True}
N_FULL: Final = 200  # first requests, all in full, with which later ones are compared
PAUSE_S: Final = 1.2  # after each line: the control loop reads on, and the gateway follows within a second
MAX_EM_DROP: Final = 0.08
BAR: Final = 20  # characters

SETTINGS: Final = """\
[upstreams.fake]
url = "{url}"
driver = "llama.cpp"
slots = 256
finish = ["raw"]

[routes.{route}]
upstream = "fake"
match = {{ header = "{route}" }}
scorer = "number"
mode = "enforce"           # and no policy: it is learned, and certified before it acts
max_em_drop = {max_em_drop}
audit_share = 0.1
probe = {{ max_tokens = 8, verified_by = "owner" }}
steps = {{ min_tokens = 3, growth = 1.0 }}

[control]
burst_requests = 400       # default 1000: a demonstration is short
refit_requests = 400
tick_requests = 50
period_s = 0.3

[store]
url = "sqlite:///{database}"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    title: str
    n_requests: int
    changes: dict[str, dict[str, float]]  # by class


ACTS: Final = (
    Act(
        title="two classes of questions; everything runs in full until a level is certified",
        n_requests=1_600,
        changes={},
    ),
    Act(
        title="class 'which' becomes harder: one run in eight turns to another answer at its end",
        n_requests=1_200,
        changes={"which": {"p_turn": 0.12, "p_first": 0.2}},
    ),
    Act(
        title="stopping becomes dear: the answer after a stop takes 200 tokens instead of 12",
        n_requests=1_000,
        changes={name: {"finish_tokens": 200} for name in CLASSES},
    ),
    Act(
        title="easier again",
        n_requests=1_600,
        changes={name: {"finish_tokens": 12, "p_turn": 0.0, "p_first": 0.8} for name in CLASSES},
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    question: Question
    answer: str
    stopped: bool
    full_tokens: int  # without probes
    tokens: int

    @property
    def lost(self) -> int:
        return self.question.lost_by(self.answer)


@dataclass(slots=True)
class _Show:
    console: Console
    url: str
    world: World
    database: Path
    asked: list[Asked] = field(default_factory=list)
    _decided: DeploymentState = NOTHING_DECIDED

    @property
    def held(self) -> RouteDeployment:
        return self._decided.of(ROUTE)

    def saving(self, asked: Sequence[Asked]) -> float:
        """The part of the tokens saved, probes and audits counted, against the full runs at the beginning."""
        full = [one.full_tokens for one in self.asked[:N_FULL] if not one.stopped]
        return 1 - sum(one.tokens for one in asked) / (sum(full) / len(full) * len(asked))

    async def play(self, act: Act, session: aiohttp.ClientSession) -> None:
        self.console.print(f"\n{act.title}", style="bold", **PLAIN)
        for name, changes in act.changes.items():
            self.world.change(name, **changes)
        for _ in range(act.n_requests // EACH):
            gate = asyncio.Semaphore(AT_ONCE)
            batch = await asyncio.gather(*(self._ask(session, gate) for _ in range(EACH)))
            self.asked += batch
            await asyncio.sleep(PAUSE_S)
            self._read()
            self.console.print(self._line(batch), **PLAIN)

    async def _ask(self, session: aiohttp.ClientSession, gate: asyncio.Semaphore) -> Asked:
        question = self.world.ask()
        body = {"model": "m", "messages": [{"role": "user", "content": question.text}], "suffice": {}}
        async with (
            gate,
            session.post(f"{self.url}/v1/chat/completions", json=body, headers={"x-suffice-route": ROUTE}) as reply,
        ):
            read = await reply.json()
        told, text = read["suffice"], read["choices"][0]["message"]["content"]
        return Asked(
            question=question,
            answer=text.split()[-1],
            stopped=bool(told.get("stopped")),
            full_tokens=read["usage"]["completion_tokens"],
            tokens=read["usage"]["completion_tokens"] + told.get("probe_tokens", 0),
        )

    def _read(self) -> None:
        before, self._decided = self.held, read_decided(self.database, self._decided)
        for sentence in _news(before, self.held):
            self.console.print(f"  • {sentence}", **PLAIN)

    def _line(self, batch: Sequence[Asked]) -> str:
        saved = self.saving(batch)
        parts = [f"{len(self.asked):5,}", f"saved {_bar(saved)} {saved:5.0%}"]
        for name in CLASSES:
            mine = [one for one in batch if one.question.query_class == name]
            parts.append(f"{name} stops {sum(one.stopped for one in mine) / max(1, len(mine)):4.0%}")
        lost = sum(one.lost for one in self.asked) / len(self.asked)
        parts.append(f"EM lost {100 * lost:+.1f} of {100 * MAX_EM_DROP:g} points")
        plan = self.held.plan
        if plan is not None:
            parts.append(f"price {100 * plan.token_price:.0f}")
            if plan.idle is not None:
                parts.append(f"earns {-100 * plan.idle.mean:+.1f} points a request")
        return " | ".join(parts)


def _bar(part: float) -> str:
    n = round(BAR * min(1.0, abs(part)))
    return ("█" * n if part >= 0 else "░" * n).ljust(BAR)


def _news(before: RouteDeployment, now: RouteDeployment) -> Iterator[str]:
    if now.alarm is not None and now.alarm != before.alarm:
        yield f"alarm: {now.alarm.reason}"
    if now.epoch is not None and now.n_epochs != before.n_epochs:
        yield f"epoch {now.n_epochs}: {now.epoch.reason}; everything runs in full for {now.epoch.burst} requests"
    if now.publication is not None and now.n_publications != before.n_publications:
        yield f"level {now.level} of {now.publication.n_levels - 1}: {now.publication.reason}"
    if now.plan is not None and now.n_plans != before.n_plans:
        yield f"agent: {now.plan.reason}"


async def show_agent(console: Console, folder: Path) -> int:
    """Run all acts, with `agent.toml` and `agent.db` in `folder`; return 1 if the EM budget was not kept."""
    world = World(seed=11, n_steps=N_STEPS, profiles=dict.fromkeys(CLASSES, EASY))
    database, file = folder / "agent.db", folder / "agent.toml"
    database.unlink(missing_ok=True)
    async with FakeUpstream(world) as fake:
        settings = {"url": fake.url, "route": ROUTE, "max_em_drop": MAX_EM_DROP, "database": database}
        file.write_text(SETTINGS.format_map(settings), "utf-8")
        console.print(file.read_text("utf-8"), **PLAIN)
        async with serve_in_loop(load_settings(file), worker_after_s=0.0) as url, aiohttp.ClientSession() as session:
            console.print(f"the console, while this runs: {url}/console", **PLAIN)
            show = _Show(console, url, world, database)
            for act in ACTS:
                await show.play(act, session)
    return _report(console, show)


def _report(console: Console, show: _Show) -> int:
    asked = show.asked
    lost = sum(one.lost for one in asked) / len(asked)
    saved = show.saving(asked)
    console.print("\nwhat the audit log says about every change", style="bold", **PLAIN)
    with open_reader(show.database) as log:
        for entry in read_latest_rows(log, 200, route=ROUTE):
            if entry.kind in ("agent_planned", "alarm_raised", "epoch_began", "policy_published"):
                console.print(f"{entry.kind}: {entry.after}; {entry.why}", **PLAIN)
    console.print(
        f"\n{len(asked):,} requests: {saved:.0%} of the tokens saved, EM drop {100 * lost:+.2f} points", **PLAIN
    )
    return int(lost > MAX_EM_DROP)
