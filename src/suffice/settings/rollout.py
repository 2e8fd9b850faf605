"""The table `[rollout]`, and `[routes.NAME.rollout]` over it: how far steps go, what may be lost, what must be seen.

Knows numbers and their ranges; refuses to know what is done with them (`rollout.evidence`). Why each default is what
it is, and what it costs, stands in docs/reference/rollout.md, with the simulation that chose it.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any, Final, Literal, TypeAlias, get_args

import msgspec

from suffice.errors import ConfigError

LiveRail: TypeAlias = Literal["latency", "errors", "no_answer", "satisfaction"]
LIVE_RAILS: Final[tuple[LiveRail, ...]] = get_args(LiveRail)


class Rollout(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How another version reaches traffic. A rollout keeps the rules that it began with."""

    automatic: bool = False  # begin one by itself where a refit proposes what is better than what is in force
    # How far each step goes.
    shares: tuple[float, ...] = (0.10, 0.25, 0.50)  # of new units: the canary's, then the ramp's, rising; at most 1/2
    audit_share: float = 0.8  # of requests, asked for while EM is not proved
    # What may be lost: a candidate is let through when it surely loses no more, each of these alone.
    em_margin: float = 0.01  # EM of the whole, a fraction
    class_em_margin: float = 0.03  # EM of one class of questions, a fraction
    latency_margin: float = 0.20  # of the control's mean seconds: 0.2 is a fifth slower
    error_margin: float = 0.02  # of requests, beyond the control's
    no_answer_margin: float = 0.02  # of requests, beyond the control's
    satisfaction_margin: float = 0.05  # of [0, 1], below the control's
    required: tuple[LiveRail, ...] = ("latency", "errors", "no_answer")  # must be proved before all are served
    # How sure.
    confidence: float = 0.95  # of each proof that no more than the margin is lost
    harm_confidence: float = 0.90  # of the evidence of harm of each rail, all classes of EM together
    # How much must be seen.
    least_audits: int = 400
    least_class_audits: int = 200
    rare_share: float = 0.05  # of the traffic: classes below it are judged together, as one
    least_requests: int = 100  # of each arm, added with every step
    least_stage_s: float = 600.0  # seconds that a step lasts at least
    warmup_requests: int = 100  # of the route, from the start of a step: what they show is not counted
    warmup_s: float = 60.0  # … and seconds
    most_requests: int = 20_000  # of the route, in one step: what is not proved by then goes back
    most_idle_requests: int = 5_000  # … as soon as a saving is all that is missing
    latency_cap_s: float = 120.0  # a longer request counts as this, or as 16 means of the control if that is less
    # How bold.
    least_kept: float = 0.05  # of the full runs' tokens: a version that keeps less is refused
    most_cut: float = 0.75  # of the tokens that the version in force keeps: no version cuts more at once
    # How often.
    cool_down_s: float = 3_600.0  # after a rollback; twice as long after each further one
    most_cool_down_s: float = 86_400.0
    most_a_day: int = 4  # rollouts begun in 24 hours


def check_rollout(where: str, table: Rollout) -> None:
    """Refuse numbers that cannot be meant. Raises ConfigError with the place."""
    for name in table.__struct_fields__:
        if name in ("automatic", "required"):
            continue
        value = getattr(table, name)
        low, high, says = _RANGES.get(name, _AT_LEAST_0)
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, bool) or not isinstance(one, (int, float)) or not isfinite(one):
                raise ConfigError(f"{where}.{name}: got {one!r:.60}; a finite number, {says}")
            if not low <= one <= high:
                raise ConfigError(f"{where}.{name}: got {one:g}; {says}")
    if not table.shares or list(table.shares) != sorted(set(table.shares)):
        raise ConfigError(f"{where}.shares: got {list(table.shares)}; at least one, each larger than the one before")
    unknown = [name for name in table.required if name not in LIVE_RAILS]
    if unknown:
        raise ConfigError(f"{where}.required: got {unknown[0]!r:.60}; some of {', '.join(LIVE_RAILS)}")
    if table.most_requests <= table.warmup_requests:
        raise ConfigError(
            f"{where}.most_requests: got {table.most_requests}; more than warmup_requests, {table.warmup_requests}"
        )


def overlaid(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The same configuration with the deployment's rules under those of every route that has some of its own.

    raw  as a file has it, its keys known already
    """
    everywhere, routes = raw.get("rollout") or {}, raw.get("routes") or {}
    if not everywhere:
        return dict(raw)
    merged = {
        name: {**route, "rollout": {**everywhere, **(route.get("rollout") or {})}} for name, route in routes.items()
    }
    return {**raw, "routes": merged}


_OPEN: Final = 1e-9
_AT_LEAST_0: Final = (0.0, 1e12, "at least 0")
_FRACTION: Final = (_OPEN, 1 - _OPEN, "above 0 and below 1")
_SHARE: Final = (0.0, 1.0, "a fraction from 0 to 1")
_COUNT: Final = (1.0, 1e12, "at least 1")
_RANGES: Final[dict[str, tuple[float, float, str]]] = {
    "shares": (_OPEN, 0.5, "above 0 and at most 0.5, so that the control can be as large"),
    "audit_share": _SHARE,
    **dict.fromkeys(("em_margin", "class_em_margin", "error_margin", "no_answer_margin"), _FRACTION),
    "satisfaction_margin": _FRACTION,
    "latency_margin": (_OPEN, 10.0, "above 0 and at most 10"),
    **dict.fromkeys(("confidence", "harm_confidence"), (0.5 + _OPEN, 1 - _OPEN, "above 0.5 and below 1")),
    **dict.fromkeys(("least_audits", "least_class_audits", "least_requests"), _COUNT),
    **dict.fromkeys(("most_requests", "most_idle_requests", "most_a_day"), _COUNT),
    **dict.fromkeys(("rare_share", "least_kept", "most_cut"), _SHARE),
    "latency_cap_s": (_OPEN, 1e9, "more than 0 seconds"),
}
