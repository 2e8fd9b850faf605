"""What the jobs write reaches a gateway that runs: a held class its level, the latest look the metrics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from suffice.assurance.estimate import METHOD, Account, IntervalEstimate
from suffice.assurance.forecast import RouteForecast
from suffice.settings import Settings
from suffice.store.rows.events import Event
from suffice.types import Publication
from suffice.wiring.worker import open_decisions
from tests.control.test_story import ROUTE, Model, N, ask, settings_of, until, work
from tests.gateway.served import Served, chat, served


def write(g: Served, event: Event) -> None:
    """Write a decision as a worker beside the gateway does, and tell the gateway."""
    with open_decisions(settings_of(g)) as writer:
        assert writer.write(None, [event]) == [True]
    g.gateway.deployment.notify()


async def certified(g: Served, settings: Settings) -> Publication:
    """A cold start by the worker beside a gateway, to what it publishes."""
    await work(g, settings)
    await until(lambda: g.gateway.deployment.routes[0].in_burst)
    await ask(g, 0, N)
    await work(g, settings)
    await until(lambda: g.gateway.deployment.routes[0].certified)
    made = g.gateway.deployment.routes[0].active.publication
    assert made is not None
    return made


async def test_a_held_class_is_served_its_own_level_and_nobody_else_is(tmp_path: Path) -> None:
    async with served(tmp_path, Model(), route=ROUTE) as g:
        made = await certified(g, settings_of(g))
        write(g, replace(made, number=made.number + 1, classes=(("what", 0),)))
        await until(lambda: bool(g.gateway.deployment.routes[0].active.classes))

        before = len(g.fake.completions)
        answer = await g.ask(chat("What is three and four?", suffice={}))
        assert answer.report["policy_version"] == f"{made.fit}@0"
        assert answer.report["certified"] is True
        assert len(g.fake.completions) - before >= 4, "level 0 never stops, and no fewer samples decide the vote of six"
        other = await g.ask(chat("Tell me of three and four.", suffice={}))
        assert other.report["policy_version"] == f"{made.fit}@{made.level}"


async def test_the_latest_look_is_in_the_metrics(tmp_path: Path) -> None:
    def looked(at: int, high: float) -> RouteForecast:
        drop = IntervalEstimate(value=0.001, low=-0.01, high=high, n=300, method=METHOD)
        whole = Account(
            route="r",
            query_class=None,
            version=None,
            n_runs=300,
            n_audits=300,
            n_pending=0,
            n_cut=0,
            em_full=None,
            em_stopped=None,
            em_drop=drop,
            tokens_full=None,
            tokens_live=None,
            saving=None,
        )
        return RouteForecast(
            route="r",
            at=at,
            epoch=0,
            since=0,
            confidence=0.95,
            cap_tokens=100.0,
            accounts=(whole,),
            alerts=("em_drop",) if at > 900 else (),
        )

    async with served(tmp_path, Model(), route=ROUTE) as g:
        metrics = g.gateway.metrics
        write(g, looked(900, 0.02))
        await until(lambda: metrics.value("suffice_em_drop_upper_bound", route="r") == 0.02)
        assert metrics.value("suffice_alerts", route="r") == 0
        write(g, looked(1_000, 0.03))
        await until(lambda: metrics.value("suffice_em_drop_upper_bound", route="r") == 0.03)
        assert metrics.value("suffice_alerts", route="r") == 1
