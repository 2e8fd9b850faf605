"""One stream from cold start to end under one design, with the true drop of what is deployed in every period."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from bench.claims.truth import Truth

from suffice.arrays import Bools, Floats, Ints, Small
from suffice.replay.online.stream import PERIOD, Design, RecordedTraffic, run_stream

CALM: Final = 1_000  # requests for which the true drop must keep the budget before a drift counts as recovered from
Figures = dict[str, float | None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Course:
    """What happened to N requests in order."""

    audit: Bools  # (N,): ran in full for the record
    level: Ints  # (N,): in force when the request came
    z: Small  # (N,): EM drop
    tokens: Floats  # (N,)
    full: Floats  # (N,): tokens of the full run
    true_drop: Floats  # (periods,): of what was deployed in each period
    alarms: tuple[float, ...] = ()


def serve(
    traffic: RecordedTraffic,
    design: Design,
    truth: Truth,
    ways: Floats,
    rng: np.random.Generator,
    *,
    period: int = PERIOD,
) -> Course:
    """Serve all requests.

    ways  how far the world is from its old to its new state at each request, 0 … 1, shape (N,)
    rng   draws the audit lots
    """
    true_drop, deployed = list[float](), (design.served, design.level)

    def look(seen: Design) -> None:
        nonlocal deployed
        true_drop.append(truth.drop(*deployed, float(ways[int(seen.now) - 1])))
        deployed = seen.served, seen.level

    stream = run_stream(traffic, design, rng, period=period, watch=look)
    return Course(
        audit=stream.audit,
        level=stream.level,
        z=stream.z,
        tokens=stream.tokens,
        full=stream.full,
        true_drop=np.array(true_drop),
        alarms=tuple(change.at for change in stream.changes if change.kind == "alarm"),
    )


def figures(course: Course, *, max_em_drop: float, drift_at: int) -> Figures:
    """The columns of the tables for one stream; drops and savings are fractions, times are requests after the drift."""
    n = len(course.z)
    period = n // len(course.true_drop)
    after = course.true_drop[drift_at // period :]
    late = [at - drift_at for at in course.alarms if at > drift_at]
    pre, post = float(course.z[:drift_at].mean()) if drift_at else 0.0, float(course.z[drift_at:].mean())
    return {
        "saved_all": _saved(course, slice(0, n)),
        "saved_steady": _saved(course, slice(n // 4, n // 2)),
        "saved_last": _saved(course, slice(3 * n // 4, n)),
        "drop_pre": pre,
        "drop_post": post,
        "over_pre": float(pre > max_em_drop),
        "over_post": float(post > max_em_drop),
        "true_pre": float(course.true_drop[max(0, drift_at // period - 1)]),
        "true_end": float(course.true_drop[-1]),
        "recover": _recovered(after, period, max_em_drop),
        "for_good": float(np.flatnonzero(after > max_em_drop).max(initial=-1) + 1) * period,
        "surplus": float(np.maximum(after - max_em_drop, 0).sum() * period),
        "alarm_delay": late[0] if late else None,
        "alarms_pre": float(sum(at <= drift_at for at in course.alarms)),
        "alarms_post": float(len(late)),
        "audits": float(course.audit.sum()),
    }


def _saved(course: Course, part: slice) -> float:
    return float(1 - course.tokens[part].sum() / course.full[part].sum())


def _recovered(true_drop: Floats, period: int, max_em_drop: float) -> float:
    """Requests until the true drop keeps the budget for `CALM` requests; all of them where it never does."""
    calm = max(1, CALM // period)
    kept = true_drop <= max_em_drop
    for at in range(len(kept) - calm + 1):
        if kept[at : at + calm].all():
            return float(at * period)
    return float(len(kept) * period)


def summary(values: Sequence[float]) -> tuple[float, float]:
    """Median and 90th percentile."""
    return float(np.median(values)), float(np.quantile(values, 0.9))
