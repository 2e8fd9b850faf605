"""The ladders of every published rule, from safe to aggressive, and each rule at its published setting.

The grid of `suffice replay` stands as it is there; the rules that it leaves out get a ladder here, so that every rule
is judged alike: as published, at a setting picked on other questions, and at the best one in hindsight.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from math import exp
from typing import Any

import numpy as np

from suffice.learn.models import learn_prior
from suffice.policy.base import POLICIES, build_policy
from suffice.policy.parameters import parameters_of
from suffice.policy.sequential import MixtureSprt, Sprt
from suffice.replay.study.policies import GRID, SPACE, Ladder, PolicyRung, build_ladders
from suffice.replay.study.sets import family_of
from suffice.replay.traces.read import Survey
from suffice.types import Kind

BAYES = "bayes"
_SURE = (0.999, 0.995, 0.99, 0.98, 0.97, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)


def _tested(test: type[Sprt | MixtureSprt]) -> list[Mapping[str, Any]]:
    """Settings with which 12, 11, … 1 equal samples, and no other one, suffice."""
    published = test()
    ratios = [published.log_ratio(n, 0) for n in range(12, 0, -1)]
    return [{"alpha": (1 - published.beta) * exp(-0.999 * ratio)} for ratio in ratios]


# Ladder: its settings, safe first. The kinds of runs that a rule is for stand in `SPACE`.
_OTHERS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "vote-entropy": [{"threshold": round(0.05 * n, 2)} for n in range(1, 21)],
    **{
        f"vote-share, {n} votes": [{"threshold": round(1 - 0.05 * step, 2), "min_samples": n} for step in range(11)]
        for n in (8, 5, 3, 2)
    },
    "sprt": _tested(Sprt),
    "msprt": _tested(MixtureSprt),
    **{
        f"cisc, {n} votes": [{"threshold": round(1 - 0.05 * step, 2), "min_samples": n} for step in range(10)]
        for n in (8, 5, 3, 2)
    },
    "cges": [{"threshold": t} for t in (*_SURE, 0.4, 0.3)],
    "momentum": [{"dial": 0.5}],  # two settings would need two different moving means of one signal
    "dynasor": [{"effort": effort} for effort in ("mild", "low", "mid", "high", "crazy")],
    "deer, arithmetic": [{"threshold": t, "mean": "arithmetic"} for t in _SURE],
    "deer, geometric": [{"threshold": t, "mean": "geometric"} for t in _SURE],
    "code-stop": [{"top": t, "start": round(t - 0.05, 3)} for t in _SURE],
    **{
        f"eat, {n} steps": [{"delta": float(f"{d:.3g}"), "warm_up_steps": n} for d in np.geomspace(1e-6, 1.0, 13)]
        for n in (20, 10, 4, 2)
    },
    "cusum": [{"threshold": float(f"{h:.3g}")} for h in np.geomspace(8.0, 0.1, 16)],
    "halt-cot": [{"theta": float(f"{t:.3g}")} for t in np.geomspace(1e-3, 2.0, 16)],
    **{
        f"tasr, streak {n}": [{"streak": n, "margin": round(0.9 - 0.1 * step, 1)} for step in range(15)]
        for n in (3, 2, 1)
    },
    "semantic-distance": [{"patience": n} for n in (4, 3, 2, 1)],
}


def build_all_ladders(
    kind: Kind, *, longest: int, full_tokens: Sequence[float], votes: Sequence[Sequence[int]] = ()
) -> tuple[Ladder, ...]:
    """The grid of `suffice replay`, and a ladder for each rule that is not on it.

    full_tokens  of each run, for the levels of `fixed-budget`
    votes        of each answer of some full runs, from which `bayes` learns its prior; (): without `bayes`
    """
    budgets = np.unique(np.geomspace(max(full_tokens), max(1.0, max(full_tokens) / 100), 40).astype(int))[::-1]
    others = {**_OTHERS, "fixed-budget": [{"max_tokens": int(n)} for n in budgets]}
    known = [
        _ladder(name, family_of(name), settings)
        for name, settings in others.items()
        if kind in SPACE[family_of(name)].kinds
    ]
    if votes:
        shapes = learn_prior(votes)
        known.append(_ladder(BAYES, BAYES, [{"shapes": shapes, "threshold": t} for t in _SURE], hide="shapes"))
    return (*build_ladders(kind, longest=longest), *known)


def _ladder(name: str, policy: str, settings: Sequence[Mapping[str, Any]], hide: str = "") -> Ladder:
    rungs = []
    for setting in settings:
        spec = {"policy": policy, **setting}
        shown = [f"{v:.4g}" if isinstance(v, float) else str(v) for key, v in setting.items() if key != hide]
        rungs.append(PolicyRung(policy=build_policy(spec), spec=spec, label=" ".join([policy, *shown])))
    return Ladder(name=name, origin="published", rungs=tuple(rungs))


def count_votes(data: Survey) -> list[list[int]]:
    """How often each answer was given in one full run of each question that gave any."""
    votes = dict[str, list[int]]()
    for batch in data.batches(share=data.share):
        for question, (start, end) in zip(batch.question_id, itertools.pairwise(batch.offset.tolist()), strict=True):
            counts = Counter(answer for answer in batch.answer[start:end] if answer is not None)
            if counts:
                votes[question] = list(counts.values())
    return list(votes.values())


def published_rungs(kind: Kind) -> dict[str, PolicyRung]:
    """Each rule for this kind of runs at the setting of its paper."""
    on_grid = {family_of(row.name) for row in GRID if kind in row.kinds}
    names = on_grid | {family_of(name) for name in _OTHERS if kind in SPACE[family_of(name)].kinds}
    return {
        name: PolicyRung(policy=build_policy({"policy": name}), spec={"policy": name}, label=name)
        for name in POLICIES
        if name in names and not any(one.required for one in parameters_of(POLICIES[name]))  # their owner sets those
    }
