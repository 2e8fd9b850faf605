"""The certify loop of a route whose upstream cannot be cut: its effort or its budget, proved by asking twice.

    requests, outcomes, labels ──▶ ArmLoop.feed ──▶ Resolution: level 1, the arm, once it is proved; else level 0

The fold, its epochs, pauses and the rule that the log must follow from itself are those of `control.loop.certify`;
what is evidence, when it is enough and what ends it are others. There is no burst: a pair costs a second call, and the
owner says with `audit_share` how many are paid for. Signals of all traffic are not watched, for the arm itself moves
them; outcomes of pairs and their disagreement are, and who answers.

Knows records of the log; refuses to know databases, clocks and who asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp
from typing import Final

import numpy as np

from suffice.assurance.detection import AuditWatch, Reference
from suffice.control.evidence.audits import Audit
from suffice.control.evidence.pairing import FULL, AuditPairs, is_pair
from suffice.control.evidence.resolution import Resolution
from suffice.control.loop.certify import RouteLoop
from suffice.learn.effort import WINDOW, CertifiedArms, PairedAudit, certify_arms, pairs_missing
from suffice.rollout.assign import audit_share
from suffice.store.database.log import StoredEvent
from suffice.store.rows.events import Event
from suffice.types import (
    AlarmCause,
    Epoch,
    EvidenceSummary,
    LabelRequest,
    Outcome,
    PairSummary,
    Publication,
    Request,
)

MOST_KEPT: Final = WINDOW + WINDOW // 4  # audits: those of the window, second full runs, and some that wait
COMES_BACK: Final = 10.0  # part of delta that an arm which lost its proof may use
_MOST_LOG: Final = 700.0  # whose exponential is still a number


@dataclass(slots=True)
class _Watch:
    """What would end an epoch while the arm is in force."""

    watch: AuditWatch
    seen: int  # place in the log of the last pair that it has had

    def alarm(self, audits: Sequence[Audit], pairs: Sequence[PairedAudit], now: float) -> tuple[AlarmCause, str] | None:
        """Show it what is new and counts; why the world is another one, or None."""
        for audit, pair in zip(audits, pairs, strict=True):
            if audit.seq <= self.seen or pair.arm == 0:
                continue
            if pair.due > now:
                break  # later ones are not due either
            self.seen = audit.seq
            alarm = self.watch.add(1 if pair.z is None else pair.z, pair.disagrees)
            if alarm is not None:
                return ("disagreement" if "disagree" in alarm else "outcomes"), alarm
        return None


@dataclass(slots=True, kw_only=True, eq=False)
class ArmLoop(RouteLoop):
    """One route with an effort or a budget, from the beginning of its epoch on."""

    pairing: AuditPairs = field(init=False)
    _watch: _Watch | None = None
    _fell: bool = False  # has the arm lost its proof in this epoch?

    def __post_init__(self) -> None:
        """Begin where the epoch began."""
        self.pairing = AuditPairs(match=self.match)
        super(ArmLoop, self).__post_init__()  # named: a class with slots is not the one that a bare `super` remembers

    def _begin(self, epoch: Epoch, kept: Sequence[Audit]) -> None:
        super(ArmLoop, self)._begin(epoch, kept)
        self._watch, self._fell = None, False

    def _is_evidence(self, request: Request, outcome: Outcome) -> bool:
        return is_pair(request, outcome, self.route.arms)

    # ---- a look ----------------------------------------------------------------------------------

    def _look(self, stored: StoredEvent) -> Resolution | None:
        self._lateness.note_look(stored.at_s, self.n)
        if len(self.audits) > MOST_KEPT:
            self.audits = self.audits[-MOST_KEPT:]
            self._index()
        pairs, now = self.pairs(), float(self.n)
        self.keeper.now, self.keeper.pending = now, self._started.pending_with(())
        alarm = self._watch.alarm(self.audits, pairs, now) if self._watch is not None else None
        if alarm is not None:
            return self._new_epoch(*alarm, stored)
        found = certify_arms(
            self._windowed(), n_arms=2, max_em_drop=self.epoch.max_em_drop, delta=self._arm_delta, now=now
        )
        self._fell, self.level = self._fell or found.in_force < self.level, found.in_force
        if self.level and self._watch is None:
            self._watch = self._begun_watch(found)
        return self._publish_arm(found)

    def _windowed(self) -> list[PairedAudit]:
        """The pairs of the certificate's window, and audits that should have returned by now, as lost."""
        pending, timeout = self.keeper.pending, self._timeout
        at = np.array([audit.at for audit in self.audits], dtype=np.float64)
        share = np.array([audit.share for audit in self.audits])
        window = self.keeper.windows.chosen(
            np.concatenate([at, pending.at]), np.concatenate([share, pending.share]), wanted=WINDOW
        )
        if window is None:
            return []
        inside = [audit for audit, here in zip(self.audits, window.holds(at), strict=True) if here]
        late = window.holds(pending.at)
        weights = window.weights(pending.share[late]).tolist()
        lost = [
            PairedAudit(arm=1, disagrees=True, z=1, due=began + timeout, weight=weight)
            for began, weight in zip(pending.at[late].tolist(), weights, strict=True)
        ]
        return self.pairing.pairs(inside, timeout=timeout, callers=self._callers, window=window) + lost

    @property
    def _timeout(self) -> float:
        """Age at which a pair counts: its label should be there by then, and its run should have returned."""
        return max(self._lateness.timeout_requests(since=self.epoch.at), self.keeper.run_timeout)

    @property
    def _arm_delta(self) -> float:
        """Of the proof. An arm that lost it needs a stronger one to come back, or it would come and go at the edge."""
        delta = self._delta
        return delta / COMES_BACK if self._fell and not self.level else delta

    def pairs(self) -> list[PairedAudit]:
        """The audits of this epoch as pairs, oldest first."""
        return self.pairing.pairs(self.audits, timeout=self._timeout, callers=self._callers)

    def _begun_watch(self, found: CertifiedArms) -> _Watch:
        """What the arm was certified on is no news about it."""
        view, last = found.views[0], self.audits[-1].seq
        reference = Reference(n_disagreeing=view.n_disagree, n_lost=view.n_lost, n=view.n)
        return _Watch(AuditWatch(max_em_drop=self.epoch.max_em_drop, reference=reference), last)

    def _publish_arm(self, found: CertifiedArms) -> Resolution | None:
        """Say what is in force, if that is something else than was said before."""
        said, arm = self.held.publication, self._arm()
        if (said.level if said is not None else 0) == self.level:
            return None
        view = found.views[0]
        reason = view.sentence(arm) if self.level else f"{arm} is not proved any more: {view.sentence(arm)}"
        return self._say(
            Publication(
                route=self.name,
                number=self.held.n_publications + 1,
                epoch=self.epoch.number,
                at=self.n,
                version=arm if self.level else "",
                fit="",
                level=self.level,
                n_levels=2,
                certified=self.level > 0,
                share=audit_share(self.n, self.route.audit_share),
                reason=reason,
                author=self.author,
                evidence=self._summary(found),
                setup=self._setup,
                upstream=self._upstreams.plain(),
                arm=arm,
                pairs=PairSummary(
                    n=view.n,
                    n_disagree=round(view.disagreement * view.n) if view.n else 0,
                    n_repeats=found.repeats.n,
                    n_repeats_disagree=found.repeats.n_disagree,
                ),
            ),
            {},
        )

    def _summary(self, found: CertifiedArms) -> EvidenceSummary:
        view = found.views[0]
        return EvidenceSummary(
            n_audits=view.n,
            n_gained=view.n_gained,
            n_lost=view.n_lost,
            e_value=exp(min(_MOST_LOG, found.log_e[0])),
            share=view.saved_share,
            n_missing=pairs_missing(found, max_em_drop=self.epoch.max_em_drop, delta=self._arm_delta),
            max_em_drop=self.epoch.max_em_drop,
            confidence=self.epoch.confidence,
        )

    def _arm(self) -> str:
        """The arm as the latest pair was asked with it: with an effort and a budget it is what the upstream takes."""
        asked = (audit.episode.outcome.pair_arm for audit in reversed(self.audits))
        return next((arm for arm in asked if arm not in (None, FULL)), None) or self.route.arms[0]

    def _wanted(self) -> list[Event]:
        """Labels are worth asking for where the two answers differ, and nowhere else."""
        found, timeout_s = list[Event](), self._lateness.timeout_s
        for audit in self.audits:
            outcome = audit.episode.outcome
            if audit.labels or audit.id in self.asked or outcome.pair_arm in (None, FULL):
                continue
            if outcome.answer == outcome.pair_answer:
                continue
            self.asked.add(audit.id)
            found.append(
                LabelRequest(
                    episode_id=audit.id,
                    route=self.name,
                    level=1,
                    would_answer=outcome.pair_answer,
                    answer=outcome.answer,
                    why=f"asked with {outcome.pair_arm} it was answered otherwise",
                    deadline_s=audit.ended_at_s + timeout_s if timeout_s else None,
                )
            )
        return found
