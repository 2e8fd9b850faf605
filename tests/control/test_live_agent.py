"""The agent reads each audit once, and says truly what it earned over the best that it could always have done."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pytest

from suffice.agent.plan import AGENT
from suffice.agent.plan import FULL as FULL_DRAW
from suffice.arrays import Floats
from suffice.certification.certifier import Certifier
from suffice.control.evidence.audits import Audit
from suffice.control.loop.live_agent import AuditCosts, LiveAgent
from suffice.settings import Route, parse_settings
from suffice.store.routes.deployments import RouteDeployment
from suffice.types import ArmDraw, Episode, Epoch, Overhead, Usage
from tests.control.made import run

FULL, STOPPED, ANSWER = 100.0, 40.0, 10  # tokens: of a full run, of a stop with the full run's answer, of that answer


@dataclass
class OneLevel:
    """A version with one level, which stops every run; others below it save a little less."""

    n: int
    version: int = 1
    n_levels: int = 2

    @property
    def epoch(self) -> OneLevel:
        return self

    def outcomes(self) -> Any:
        return np.ones(self.n, dtype=bool), np.zeros((self.n, self.n_levels), dtype=np.int8)

    def replayed_costs(self, first: int) -> Any:
        n = self.n - first
        tokens = [FULL, *(STOPPED + 5 * below for below in reversed(range(self.n_levels - 1)))]
        return np.tile(tokens, (n, 1)), np.tile(np.arange(self.n_levels) > 0, (n, 1)), np.full(n, FULL)


def route() -> Route:
    table = {"upstream": "up", "probe": {}}
    return parse_settings({"upstreams": {"up": {"url": "http://127.0.0.1:1"}}, "routes": {"r": table}}).routes["r"]


def audit(number: int, finish_tokens: int) -> Audit:
    """An audit that measured a finish of so many tokens after its first step."""
    request, outcome = run(number, random.Random(number))
    probes = sum(step.probe_tokens for step in outcome.steps) + finish_tokens
    outcome = replace(
        outcome,
        usage=Usage(prompt_tokens=5, completion_tokens=int(FULL), reasoning_tokens=int(FULL) - ANSWER),
        overhead=Overhead(probe_tokens=probes),
        finish_step=1,
        finish_answer="4",
    )
    return Audit(seq=number, at=number, ended_at_s=0.0, episode=Episode(request=request, outcome=outcome))


def saving(audits: list[Audit], *, refits: int) -> float:
    agent = LiveAgent(route(), max_em_drop=0.1, n_levels=2)
    certifier = OneLevel(len(audits))
    for certifier.version in range(1, 2 + refits):
        agent.read(cast(Certifier, certifier), audits)
        agent.look(len(audits), lambda _: 1)
    epoch = Epoch(route="r", number=1, at=0, since_seq=0, reason="", author="")
    made = agent.plan(RouteDeployment(epoch=epoch, n_epochs=1), at=len(audits), author="")
    assert made is not None
    return made.classes[0].saving


@pytest.mark.parametrize("refits", [0, 1, 5])
def test_what_a_finish_costs_counts_from_the_first_version_on(refits: int) -> None:
    audits = [audit(number, ANSWER + 30) for number in range(1, 301)]
    assert saving(audits, refits=refits) == pytest.approx(1 - (STOPPED + 30) / FULL, abs=0.02)


def served(number: int, spent: int) -> Episode:
    """A live run that took so many tokens, stopped after a step at which audits say that it costs `STOPPED`."""
    request, outcome = run(number, random.Random(number), audit=False)
    steps = (replace(outcome.steps[0], index=1, tokens=int(STOPPED) - ANSWER, probe_tokens=0, late_tokens=None),)
    usage = Usage(prompt_tokens=5, completion_tokens=spent, reasoning_tokens=spent - ANSWER)
    ended = replace(outcome, steps=steps, usage=usage, stopped=True, end_reason="stopped", stop_step=1)
    return Episode(request=request, outcome=ended)


@pytest.mark.parametrize("slow", [10, 40])
def test_what_live_stops_cost_more_than_audits_say_is_expected_of_all_levels_and_breaks_no_promise(slow: int) -> None:
    """Audits cannot show how slowly a second call opens."""
    agent, audits = LiveAgent(route(), max_em_drop=0.1, n_levels=3), [audit(n, ANSWER) for n in range(1, 301)]
    epoch, plan = Epoch(route="r", number=1, at=0, since_seq=0, reason="", author=""), None
    for at in range(300, 1_300, 50):
        agent.read(cast(Certifier, OneLevel(len(audits), n_levels=3)), audits)
        agent.look(at, lambda _: 2)
        plan = agent.plan(RouteDeployment(epoch=epoch, n_epochs=1), at=at, author="")
        assert plan is not None
        assert [draw.ceiling for draw in plan.classes[0].draws] == [None], plan.reason
        for number in range(at, at + 50):
            one = served(number, int(STOPPED) + slow)
            agent.add_run(one.request, one.outcome, 2, at=number)
        audits += [audit(at + n, ANSWER) for n in range(2)]
    assert plan is not None
    assert plan.classes[0].saving == pytest.approx(1 - (STOPPED + slow) / FULL, abs=0.02)


# --------------------------------------------------------------------------- its own line


def paired_audits(n: int, seed: int, in_full: float) -> list[tuple[AuditCosts, Floats]]:
    """Audits of a route with two efforts, whose agent draws full runs for a share of the requests."""
    rng, made = np.random.default_rng(seed), []
    for number in range(1, n + 1):
        level = int(rng.integers(1, 3))
        known, odds = np.arange(3) == level, {"": 1 - in_full, FULL_DRAW: in_full}
        drawn = FULL_DRAW if rng.random() < in_full else ""
        other = next(name for name in odds if name != drawn)
        draw = ArmDraw(
            experiment=AGENT, run=1, arm=drawn, propensity=odds[drawn], others=((other, odds[other]),), unit="u"
        )
        request, outcome = run(number, random.Random(number))
        episode = Episode(request=replace(request, arms=(draw,)), outcome=outcome)
        tokens = np.where(known, [0.0, 800.0, 400.0] * rng.lognormal(-0.02, 0.2, 3), np.nan)
        tokens[0] = 1_000.0
        z = np.where(known, (rng.random() < 0.01) * 1.0, np.nan)
        z[0] = 0.0
        audit = Audit(seq=number, at=number, ended_at_s=0.0, episode=episode)
        made.append((AuditCosts(audit=audit, full_tokens=1_000.0, tokens=tokens, stops=known), z))
    return made


def test_its_line_over_the_best_fixed_agrees_with_the_truth_where_it_draws_full_runs() -> None:
    """An effort that is drawn for 70 % of the requests gains 70 % of what it would gain if it always served."""
    table = {"upstream": "up", "effort": ["medium", "low"], "token_price": 0.1, "mode": "enforce"}
    settings = parse_settings({"upstreams": {"up": {"url": "http://127.0.0.1:1"}}, "routes": {"r": table}})
    gain, in_full, covered, means = 0.1 * 0.6 - 0.01, 0.3, 0, list[float]()
    for seed in range(40):
        agent = LiveAgent(settings.routes["r"], max_em_drop=0.05, n_levels=3)
        audits = paired_audits(600, seed, in_full)
        for costs, z in audits[:200]:
            agent.add_audit(costs)
            agent.add_losses(costs, z)
        agent.look(200, lambda _: 2)
        assert agent.over_best_fixed() is None, "nothing was served by a plan"
        for costs, z in audits[200:]:
            agent.add_audit(costs)
            agent.add_losses(costs, z)
        line = agent.over_best_fixed()
        assert line is not None
        assert line.n_audits == 400
        covered += line.low <= in_full * gain <= line.high
        means.append(line.mean)
    assert covered >= 38
    assert np.mean(means) == pytest.approx(in_full * gain, abs=0.1 * gain)
