"""A made-up result with everything in it that a report can show. No number in it was measured."""

from __future__ import annotations

from typing import Any

from suffice.assurance.bounds import Interval
from suffice.replay.study.sets import Choice, Family, PlotPoint, PolicyResult, SetPart, SetReport


def a_line(policy: str, family: Family = "given", choice: Choice = "fixed", **changes: Any) -> PolicyResult:
    """One policy that saves half of the tokens and loses half a point."""
    values: dict[str, Any] = {
        "set": "made_up",
        "policy": policy,
        "family": family,
        "choice": choice,
        "spec": {"policy": policy},
        "n_episodes": 4816,
        "n_questions": 112,
        "full_em": 0.773,
        "em": 0.768,
        "em_drop": 0.005,
        "lost": 0.012,
        "gained": 0.007,
        "full_tokens": 52_000_000,
        "tokens": 26_000_000,
        "token_reduction": 0.5,
        "token_reduction_without_probes": 0.5,
        "em_drop_interval": Interval(-0.004, 0.013),
        "token_reduction_interval": Interval(0.46, 0.55),
        "stopped": 0.9,
        "hopeless": 0.1,
    }
    drop = changes.get("em_drop")
    if drop is not None:
        values |= {"em": 0.773 - drop, "lost": max(0.0, drop) + 0.007}
        values["em_drop_interval"] = Interval(drop - 0.009, drop + 0.008)
    saved = changes.get("token_reduction")
    if saved is not None:
        values |= {"token_reduction_without_probes": saved, "tokens": round(52_000_000 * (1 - saved))}
        values["token_reduction_interval"] = Interval(saved - 0.04, saved + 0.05)
    return PolicyResult(**(values | changes))


NOTHING: dict[str, Any] = {
    "em_drop": 0.0,
    "token_reduction": 0.0,
    "spec": None,
    "lost": 0.0,
    "gained": 0.0,
    "stopped": 0.0,
    "hopeless": 0.0,
    "em_drop_interval": None,
    "token_reduction_interval": None,
}
LINES = (
    a_line("never", "full", **NOTHING),
    a_line(
        "stop-model ∧ votes, 112 thresholds",
        "ours",
        "frozen",
        em_drop=0.006,
        token_reduction=0.842,
        miss_share=0.11,
        spec=None,
        token_reduction_without_probes=0.861,
    ),
    a_line("value-model", "ours", "frozen", em_drop=0.009, token_reduction=0.831, miss_share=0.14, spec=None),
    a_line("beta", "published", "frozen", em_drop=0.0121, token_reduction=0.79, miss_share=0.36),
    a_line("stable-answer", "published", "frozen", em_drop=0.004, token_reduction=0.66, miss_share=0.31),
    a_line("beta threshold=0.95 min_samples=3", "published", "hindsight", em_drop=0.0098, token_reduction=0.87),
    a_line("confidence-threshold threshold=0.99", "given", em_drop=-0.003, token_reduction=0.31),
    a_line("oracle_agree", "oracle", em_drop=0.0, token_reduction=0.85, spec=None),
    a_line("oracle_correct", "oracle", em_drop=-0.09, token_reduction=0.89, spec=None),
)
CURVES: dict[str, list[PlotPoint]] = {
    "published": [
        PlotPoint(
            policy=f"beta {k}",
            em_drop=0.06 * (k / 60) ** 2 - 0.004 * (k % 7) / 7 * (k % 2),
            token_reduction=0.93 * (k / 60) ** 0.35 - 0.06 * (k % 5) / 5,
        )
        for k in range(1, 61)
    ],
    "ours": [
        PlotPoint(policy=f"p {k}", em_drop=0.05 * (k / 40) ** 3 - 0.002, token_reduction=0.92 * (k / 40) ** 0.2)
        for k in range(1, 41)
    ],
    "given": [PlotPoint(policy="confidence", em_drop=0.3, token_reduction=0.9)],
}
CLASSES = ("Biology", "Chemistry, organic and inorganic", "Physics", "<b>markup</b> & $x_1^2$")


def class_part(line: PolicyResult, i: int) -> SetPart:
    """What a policy does in the i-th class: it loses more and saves less in each further one."""
    return SetPart(
        name=CLASSES[i],
        n_episodes=1204 - 300 * i,
        n_questions=28 - 6 * i,
        full_em=0.8 - 0.1 * i,
        em_drop=line.em_drop + 0.004 * (i - 1),
        lost=0.012 + 0.002 * i,
        gained=0.007,
        token_reduction=max(0.0, line.token_reduction - 0.1 * i),
    )


def step_part(k: int) -> SetPart:
    """What is stopped at step k."""
    return SetPart(
        name=str(k),
        n_episodes=4816 // 2**k + 3,
        n_questions=max(1, 112 - 6 * k),
        full_em=0.9 - 0.04 * k,
        em_drop=0.002 * k,
        lost=0.004 * k,
        gained=0.002 * k,
        token_reduction=1 - k / 16,
    )


def a_report(name: str = "made_up", **changes: Any) -> SetReport:
    """A set with every family, a frontier, classes, halt steps and notes."""
    values: dict[str, Any] = {
        "set": name,
        "kind": "samples",
        "max_em_drop": 0.01,
        "probe_tokens": 0,
        "lines": LINES,
        "frontier": {label: tuple(dots) for label, dots in CURVES.items()},
        "by_class": {line.policy: tuple(class_part(line, i) for i in range(len(CLASSES))) for line in LINES[1:4]},
        "by_step": {line.policy: tuple(step_part(k) for k in range(2, 17, 2)) for line in LINES[1:3]},
        "notes": ("40 of the 72 runs have an Exact Match under 0.3 and were left out.",),
    }
    return SetReport(**(values | changes))
