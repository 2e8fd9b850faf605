"""Certificates of agents' turns: what is promised holds for each run of a user's message, not for each turn.

A run of turns is one request with one draw (`docs/reference/assurance.md`, turns of an agent). Runs come in
conversations whose later ones lose more, and what a stop loses shows only at the last turn. The naive design saves
audit tokens: it ends an audit one turn after each trial answer and takes the next trial answer for the full run's.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from bench.claims import live
from bench.claims.live import Figures
from bench.claims.live_scenarios import SCENARIOS

from suffice.types import Outcome

BUDGET = 0.02
QUICK = replace(SCENARIOS["agent"], n=2_600)


def audit_by_the_next_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    feed = live.Log.feed

    def cut(log: live.Log, event: object, t: float) -> None:
        if isinstance(event, Outcome) and not event.stopped:
            event = replace(event, steps=event.steps[:2], answer=event.steps[1].answer)
        feed(log, event, t)  # type: ignore[arg-type]  # as it came

    monkeypatch.setattr(live.Log, "feed", cut)


def of(seeds: range, n: int) -> list[Figures]:
    return [live.run_stream("agent", BUDGET, seed, scenario=replace(QUICK, n=n)) for seed in seeds]


def test_a_stream_keeps_the_promise_and_stops_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    (ours,) = of(range(1), QUICK.n)
    result = ours.all()
    assert (result["over"], result["over_share"]) == (0, 0)
    assert any(met.level for met in ours.stream.met), "a certificate that never comes promises nothing"
    audit_by_the_next_turn(monkeypatch)
    (naive,) = of(range(1), QUICK.n)
    assert naive.all()["over"] == 1


@pytest.mark.slow
def test_of_many_streams_at_most_delta_break_it_and_nearly_all_naive_ones_do(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = [one.all() for one in of(range(10, 20), 6_000)]
    print([one["over"] for one in ours], [one["saved_late"] for one in ours])
    assert sum(int(one["over"] or 0) for one in ours) <= 2, "three or more have a chance of 1.2 % at delta = 5 %"
    audit_by_the_next_turn(monkeypatch)
    assert sum(int(one.all()["over"] or 0) for one in of(range(10, 15), 4_000)) >= 4
