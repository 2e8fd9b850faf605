"""Recorded runs as one stream of requests: ours, each published rule and the reference, from a cold start.

Every design serves the very same requests in the same order. Ours and the rules are certified by the plan that `serve`
runs (`replay.online.protocol.stream_plan`). Ours learns its levels; a rule is one policy at its published setting,
certified as for a route whose owner configured it (`control.loop.learned.FixedPolicyEvidence`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np
from bench.page.ladders import published_rungs
from bench.page.reference import FEATURES, reference_rows
from bench.page.sets import Case
from bench.page.store import Line

from suffice.arrays import Bools, Ints
from suffice.certification.certifier import Certifier
from suffice.control.evidence.versions import FIXED
from suffice.learn.audits import NO_AUDITS
from suffice.learn.features import DENSE, FeatureSelection
from suffice.replay.online.drift import draw_order
from suffice.replay.online.protocol import OnlineOptions, stream_plan
from suffice.replay.online.stream import RecordedTraffic, learner_of, make_traffic, run_stream
from suffice.replay.study.policies import PolicyRung, halts_of
from suffice.replay.study.runs import Runs, read_runs
from suffice.replay.traces.read import Survey
from suffice.signals.features import FeatureSet

LOOSE: Final = 0.08  # the budget that B-PAC comes with, at a risk of a tenth
STREAMS: Final = {"once": None, "again": 10_000}  # each run once in a random order; N requests, questions drawn again


def risk_at(budget: float) -> float:
    """Delta: that of `suffice serve`, or that which B-PAC comes with."""
    return 0.10 if budget == LOOSE else 0.05


class OpenSet:
    """A set in memory, with the traffic of each design."""

    def __init__(self, case: Case) -> None:
        self.data: Survey = case.survey()
        rungs = published_rungs(self.data.kind)
        needs = [need for rung in rungs.values() for need in rung.policy.needs]
        reference = FeatureSelection(FEATURES[self.data.kind], ())
        needs += [*FeatureSet(DENSE[self.data.kind]).needs, *FeatureSet(reference.names).needs]
        self.runs = read_runs(self.data, tuple(dict.fromkeys(needs)), probe_tokens=None, longest=self.data.longest)
        self.traffic = make_traffic(self.runs)
        self.reference = make_traffic(self.runs, reference)
        self.rules = {name: fixed_traffic(self.runs, self.traffic, rung) for name, rung in rungs.items()}


def fixed_traffic(runs: Runs, traffic: RecordedTraffic, rung: PolicyRung) -> RecordedTraffic:
    """The runs as evidence about one fixed policy, as `control.evidence.versions.fixed_policy_rows` makes it live."""
    halts, audits = halts_of(rung, runs), traffic.runs
    run = runs.run_of_row
    stopped = halts.row < runs.last
    x = (stopped[run] & (np.arange(len(run)) >= halts.row[run])).astype(np.float64)[:, None]
    may_stop, z, d = audits.may_stop.copy(), audits.z.copy(), audits.d.copy()
    at, returned = halts.row[stopped], halts.returned[stopped]
    may_stop[at] = True
    z[at] = runs.full_ok[stopped].astype(np.int8) - runs.ok[returned].astype(np.int8)
    d[at] = ~runs.same[returned]
    audits = replace(audits, x=x, z=z, d=d, may_stop=may_stop)
    return replace(traffic, runs=audits, chosen=FeatureSelection(("step_share",), ()))


def _learn_nothing(*_: Any) -> Any:
    raise AssertionError("a fixed policy is not learned")


def serve_ours(opened: OpenSet, stream: str, budget: float, seed: int) -> Line:
    """As `suffice replay --online` does it; and what the level in force at the end saves, beside the best true one.

    The best true level is the last of the unbroken run from the safe end whose drop on all recorded runs is within the
    budget: what a certificate without any uncertainty would serve.
    """
    asked = OnlineOptions(max_em_drop=budget, confidence=1 - risk_at(budget), resample=STREAMS[stream])
    rng = np.random.default_rng(seed)
    requests = opened.traffic.take(draw_order(opened.traffic, rng, resample=asked.resample).which)
    plan = stream_plan(asked, opened.traffic)
    certifier = Certifier(plan, learner_of(requests.chosen, seed=seed))
    served = run_stream(requests, certifier, rng)
    late = slice(len(requests) // 2, None)
    in_force, best = settled(opened.traffic, certifier, budget)
    return {
        "n": len(requests),
        "saved": served.reduction(slice(None)),
        "saved_late": served.reduction(late),
        "saved_late_free": served.reduction(late, probes=False),
        "drop_late": served.drop(late),
        "audits": int(served.audit.sum()),
        "alarms": sum(change.kind == "alarm" for change in served.changes),
        "in_force": in_force,
        "best_level": best,
    }


def settled(traffic: RecordedTraffic, certifier: Certifier, max_em_drop: float) -> tuple[float, float]:
    """Part of the tokens of all recorded runs that the level in force saves, and the best true one; 0: no version."""
    models, runs = certifier.served, traffic.runs
    if models is None:
        return 0.0, 0.0
    rows = models.rows(runs)
    drop = runs.z[rows].mean(axis=0)
    spent = runs.cost[rows].sum(axis=0)
    spent[0] -= traffic.probes[runs.last].sum()  # level 0 stops nothing and asks for no answer
    saved = 1 - spent / runs.full.sum()
    broken = np.flatnonzero(drop[1:] > max_em_drop)
    best = int(broken[0]) if len(broken) else len(drop) - 1
    return float(saved[certifier.level]), float(saved[best])


def serve_rules(opened: OpenSet, stream: str, budget: float, seed: int) -> Line:
    """Each published rule at its published setting, by name."""
    asked = OnlineOptions(max_em_drop=budget, resample=STREAMS[stream])
    which = draw_order(opened.traffic, np.random.default_rng(seed), resample=asked.resample).which
    found = {}
    for name, traffic in opened.rules.items():
        requests = traffic.take(which)
        plan = replace(stream_plan(asked, traffic), warm_up=0, burst=0, n_levels=FIXED.n_levels)
        certifier = Certifier(plan, _learn_nothing, fit=lambda *_, **__: None)
        certifier.adopt(FIXED, NO_AUDITS)
        served = run_stream(requests, certifier, np.random.default_rng([seed, 1]))
        late = slice(len(which) // 2, None)
        found[name] = {
            "saved": served.reduction(slice(None)),
            "saved_late": served.reduction(late),
            "drop_late": served.drop(late),
            "audits": int(served.audit.sum()),
        }
    return {"n": len(which), "rules": found}


def serve_reference(opened: OpenSet, stream: str, budget: float, seed: int) -> Line:
    rng = np.random.default_rng(seed)
    which = draw_order(opened.reference, rng, resample=STREAMS[stream]).which
    traffic = opened.reference.take(which)
    return late_half(traffic, *reference_rows(traffic, rng, budget))


def late_half(traffic: RecordedTraffic, row: Ints, probed: Bools) -> Line:
    """What a design came to.

    row     where each request ended, shape (N,)
    probed  requests that paid for probes, shape (N,): audits, and those that could be stopped
    """
    runs, late = traffic.runs, slice(len(traffic) // 2, None)
    spent = runs.cost[row] - np.where(probed, 0.0, traffic.probes[row])
    return {
        "n": len(traffic),
        "saved": float(1 - spent.sum() / max(1.0, runs.full.sum())),
        "saved_late": float(1 - spent[late].sum() / max(1.0, runs.full[late].sum())),
        "drop_late": float(runs.z[row[late]].mean()),
    }
