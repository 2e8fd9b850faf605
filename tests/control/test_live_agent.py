"""The agent reads each audit once: a refit shows what is known at other levels, and counts nothing again."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pytest

from suffice.control.evidence.audits import Audit
from suffice.control.loop.live_agent import LiveAgent
from suffice.learn.certifier import Certifier
from suffice.settings import Route, parse_settings
from suffice.store.routes.deployments import RouteDeployment
from suffice.types import Episode, Epoch, Overhead, Usage
from tests.control.made import run

FULL, STOPPED, ANSWER = 100.0, 40.0, 10  # tokens: of a full run, of a stop with the full run's answer, of that answer


@dataclass
class OneLevel:
    """A version with one level, which stops every run."""

    n: int
    version: int = 1
    n_levels: int = 2

    def outcomes(self) -> Any:
        return np.ones(self.n, dtype=bool), np.zeros((self.n, self.n_levels), dtype=np.int8)

    def replayed_costs(self, first: int) -> Any:
        n = self.n - first
        return np.tile([FULL, STOPPED], (n, 1)), np.tile([False, True], (n, 1)), np.full(n, FULL)


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
