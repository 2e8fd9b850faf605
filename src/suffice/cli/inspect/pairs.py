"""How far the proof of an effort or a budget has come, as `suffice status` says it: pairs, what is missing, the noise.

Heavy imports stand inside the functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from suffice.assurance.runs import Match
    from suffice.control.evidence.audits import Audit
    from suffice.learn.effort import CertifiedArms
    from suffice.settings import Route
    from suffice.store.database.views import EpisodeWithLabels, LogReader
    from suffice.store.routes.in_force import InForce
    from suffice.store.routes.phases import Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class PairStatus:
    """What audits that were asked twice say by now; one that differs and has no label counts as lost."""

    arm: str
    n: int  # pairs with the arm; audits that their client left are among them, as lost
    n_disagree: int
    em_drop: float | None  # mean of Z; None: there is no pair
    em_drop_high: float | None  # the smallest drop that the pairs refute, at every look
    n_missing: int | None  # pairs to the certificate at the rates seen; 0: enough; None: no number would do
    n_repeats: int  # pairs of two full runs
    n_repeats_disagree: int
    max_em_drop: float  # fraction: what is to be proved
    confidence: float


def read_pairs(connection: LogReader, name: str, route: Route, match: Match, held: InForce) -> PairStatus | None:
    """What a route's log says of its arm; None: it has none that is certified by pairs. Raises StoreError."""
    if not route.is_paired:
        return None
    from suffice.control.evidence.pairing import FULL, AuditPairs
    from suffice.control.jobs.base import since
    from suffice.learn.effort import certify_arms, pairs_missing
    from suffice.store.database.views import read_episodes

    behind = since(name, held, connection)
    audits, callers = _audits(read_episodes(connection, name, behind, ended_after=behind), route.arms)
    pairs = AuditPairs(match=match).pairs(audits, timeout=0, callers=callers)
    delta = 1 - route.confidence
    found = certify_arms(pairs, n_arms=2, max_em_drop=route.max_em_drop, delta=delta, now=0)
    asked = (audit.episode.outcome.pair_arm for audit in reversed(audits))
    arm = next((arm for arm in asked if arm not in (None, FULL)), None) or route.arms[0]
    return _status(arm, found, route, n_missing=pairs_missing(found, max_em_drop=route.max_em_drop, delta=delta))


def _audits(items: Iterable[EpisodeWithLabels], arms: Sequence[str]) -> tuple[list[Audit], set[str]]:
    """Audits of a log that were asked twice, and the senders that asked the model."""
    from suffice.control.evidence.audits import Audit, GivenLabel
    from suffice.control.evidence.pairing import is_pair

    found, callers = list[Audit](), set[str]()
    for item in items:
        request, outcome = item.episode.request, item.episode.outcome
        callers.add(request.sender)
        if is_pair(request, outcome, arms):
            labels = tuple(GivenLabel(label.seq, label.feedback) for label in item.labels)
            audit = Audit(seq=item.seq, at=0, ended_at_s=0.0, episode=item.episode, labels=labels)
            found.append(audit)
    return found, callers - {""}


def _status(arm: str, found: CertifiedArms, route: Route, *, n_missing: int | None) -> PairStatus:
    view = found.views[0]
    return PairStatus(
        arm=arm,
        n=view.n,
        n_disagree=view.n_disagree,
        em_drop=view.drop if view.n else None,
        em_drop_high=view.drop_high if view.n else None,
        n_missing=n_missing,
        n_repeats=found.repeats.n,
        n_repeats_disagree=found.repeats.n_disagree,
        max_em_drop=route.max_em_drop,
        confidence=route.confidence,
    )


def pair_lines(one: PairStatus, phase: Phase, *, promise_state: str) -> list[tuple[str, str]]:
    """What a reader sees; what acts is told by the promise."""
    from suffice.cli.inspect.phase import ending_lines

    sure = f"{one.confidence:.0%}"
    return [
        ("phase", _phase(one, phase, sure, promise_state)),
        ("pairs", _seen(one, sure)),
        ("pairs missing", _missing(one)),
        ("two full runs", _noise(one)),
        *_wanted(phase),
        *ending_lines(phase),
    ]


def _phase(one: PairStatus, phase: Phase, sure: str, promise_state: str) -> str:
    if phase.phase == "paused":
        return f"PAUSED until somebody resumes it: {phase.reason}"
    if phase.level:
        ends = "" if promise_state == "certified" else "; not acted on"
        return f"certified, {phase.arm}: a drop below {100 * (phase.max_em_drop or 0):g} points at {sure}{ends}"
    if promise_state == "uncertified":
        return f"UNCERTIFIED: {one.arm} acts, and is not proved"
    return f"all in full: {one.arm} is not proved"


def _seen(one: PairStatus, sure: str) -> str:
    if one.em_drop is None or one.em_drop_high is None:
        return f"none yet: each audit is to be asked a second time, with {one.arm}"
    return (
        f"{one.n:,} audits asked again with {one.arm}: EM drop {100 * one.em_drop:+.2f} points, below"
        f" {100 * one.em_drop_high:.2f} proved at {sure}; {one.n_disagree / one.n:.1%} of the answers differ"
    )


def _missing(one: PairStatus) -> str:
    goal = f"a drop below {100 * one.max_em_drop:g} points"
    if one.n_missing is None:
        return f"no number of such pairs would prove {goal}"
    if not one.n_missing:
        return f"none: these prove {goal}"
    return f"about {one.n_missing:,} more at the rates seen, for {goal}"


def _wanted(phase: Phase) -> list[tuple[str, str]]:
    n = phase.n_labels_wanted
    return [("labels wanted", f"{n:,}: pairs whose two answers differ, which count as lost until then")] if n else []


def _noise(one: PairStatus) -> str:
    if not one.n_repeats:
        return "not compared yet: one pair in ten is a second full run"
    share = one.n_repeats_disagree / one.n_repeats
    return f"{share:.1%} of {one.n_repeats:,} answered otherwise: so much is the model's own noise"
