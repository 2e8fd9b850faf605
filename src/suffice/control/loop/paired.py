"""Pairs of calls as evidence for a route whose upstream cannot be cut: its effort or its token budget.

For what a pair proves, see `assurance.paired`. An audit that its client left and a failed second call count against the
arm. There is no burst, because a pair costs a second call. Signals of all traffic are not checked for drift, because
the arm itself changes them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from math import inf
from typing import Final

import numpy as np

from suffice.assurance.certify import Window, e_value_of
from suffice.assurance.drift import AuditWatch, Reference
from suffice.assurance.labels import JUDGE, resolve_labels
from suffice.assurance.paired import WINDOW, PairedAudit, PairedCertificate, certify_arm
from suffice.assurance.runs import ABANDONED_ENDS, Match
from suffice.control.evidence.audits import Audit, trusted_label
from suffice.control.loop.epoch import Draft, EpochEnd, EpochState, EvidenceSource
from suffice.control.loop.live_agent import AuditCosts, LiveAgent
from suffice.rollout.assign import audit_share
from suffice.store.routes.deployments import RouteDeployment
from suffice.types import Episode, EvidenceSummary, Feedback, LabelRequest, Outcome, PairSummary, Request

FULL: Final = "full"  # how outcomes name a second full run
MOST_KEPT: Final = WINDOW + WINDOW // 4  # audits: those of the window, second full runs, and some that are pending
RETURN_DIVISOR: Final = 10.0  # divides delta for an arm that lost its certificate


def is_pair(request: Request, outcome: Outcome, arms: Sequence[str]) -> bool:
    """Whether this audit had a second call with one of these arms or in full, or its client left before that."""
    if request.ungoverned is not None or not request.audit or request.delivery > 1:
        return False
    return outcome.pair_arm in (FULL, *arms) or outcome.end_reason in ABANDONED_ENDS


def pair_audits(
    audits: Sequence[Audit],
    match: Match,
    *,
    timeout: float,
    callers: Collection[str] = (),
    window: Window | None = None,
) -> list[PairedAudit]:
    """Return the audits as pairs, weighted by `window`; a label is late after `timeout` requests of the route."""
    differing = {audit.id: audit for audit in audits if _differs(audit.outcome)}
    labels = [
        trusted_label(name, label, z, callers)
        for name, audit in differing.items()
        for label in audit.labels
        if (z := pair_loss(audit.outcome, label.feedback, match)) is not None
    ]
    losses = {name: z for name, z in resolve_labels(labels, differing=differing).items() if isinstance(z, int)}
    weights = np.ones(len(audits)) if window is None else window.weights(np.array([one.share for one in audits]))
    return [
        _pair(audit, losses.get(audit.id), due=audit.at + timeout, weight=weight)
        for audit, weight in zip(audits, weights.tolist(), strict=True)
    ]


def pair_loss(outcome: Outcome, given: Feedback, match: Match) -> int | None:
    """The arm's loss by a label; None: unknown. A judge's label does not count, because no pair measures the judge."""
    if given.source == JUDGE:
        return None
    if given.gold is not None:
        answers = outcome.answer, outcome.pair_answer
        full_right, arm_right = (answer is not None and match(answer, given.gold) for answer in answers)
        return int(full_right) - int(arm_right)
    # A label of the full run alone: if it is right, the other answer is wrong; otherwise that may be wrong as well.
    return None if given.correct is None else int(given.correct)


def _differs(outcome: Outcome) -> bool:
    return outcome.pair_arm is not None and outcome.answer != outcome.pair_answer


def _pair(audit: Audit, z: int | None, *, due: float, weight: float) -> PairedAudit:
    outcome = audit.outcome
    if outcome.pair_arm is None:  # the client left before the second call, which counts as lost for the arm
        return PairedAudit(disagrees=True, z=1, due=due, weight=weight)
    disagrees = _differs(outcome)
    return PairedAudit(
        disagrees=disagrees,
        z=z if disagrees else 0,
        due=due,
        is_repeat=outcome.pair_arm == FULL,
        weight=weight,
        full_tokens=outcome.usage.completion_tokens if outcome.usage is not None else 0,
        arm_tokens=outcome.pair_tokens or 0,
    )


def latest_arm(audits: Sequence[Audit], arms: Sequence[str]) -> str:
    """The arm of the latest pair: of an effort and a budget, it is the one that the upstream accepts."""
    latest_first = (audit.outcome.pair_arm for audit in reversed(audits))
    return next((arm for arm in latest_first if arm not in (None, FULL)), None) or arms[0]


class PairedEvidence(EvidenceSource):
    def __init__(self, state: EpochState) -> None:
        super().__init__(state)
        self._watch: AuditWatch | None = None  # ends the epoch while the arm is active
        self._watched_to = 0  # position of the last pair in the watch
        self._log_e = -inf  # of the arm, at the last look
        self._fell = False  # the arm has lost its certificate in this epoch
        state.certifier.plan = replace(state.certifier.plan, window=WINDOW)  # by which a later epoch earns its delta
        route = state.context.route
        if route.agent == "auto":
            self.agent = LiveAgent(route, max_em_drop=state.epoch.max_em_drop, n_levels=2)
        self._read_to = self._judged_to = 0  # positions of the last pair and outcome that the agent has

    @property
    def log_wealth(self) -> float:
        return self._log_e

    @property
    def delta_part(self) -> float:
        return super().delta_part / self._divisor

    def is_evidence(self, request: Request, outcome: Outcome) -> bool:
        return is_pair(request, outcome, self.state.context.route.arms)

    def note_end(self, episode: Episode) -> None:
        request = episode.request
        if self.agent is not None:
            level = int(request.certified and request.policy_version in self.state.context.route.arms)
            self.agent.add_run(request, episode.outcome, level)

    # ---- a look ----------------------------------------------------------------------------------

    def look(self, held: RouteDeployment) -> EpochEnd | Draft | None:
        state = self.state
        if len(state.audits) > MOST_KEPT:
            state.audits = state.audits[-MOST_KEPT:]
            state.index_audits()
        pairs, now = self.pairs(state.audits), float(state.n)
        state.certifier.now, state.certifier.pending = now, state.unreturned.with_earlier(state.epoch.pending)
        alarm = self._alarm(pairs, now)
        if alarm is not None:
            return EpochEnd("disagreement" if "disagree" in alarm else "outcomes", alarm)
        certificate = certify_arm(self._windowed(), max_em_drop=state.epoch.max_em_drop, delta=self._arm_delta, now=now)
        self._log_e = certificate.log_e
        self._fell |= self.level == 1 and not certificate.is_certified
        self.level = int(certificate.is_certified)
        if self.level and self._watch is None:  # the audits that certified the arm are no news about it
            reference = Reference(n_disagreeing=certificate.n_disagree, n_lost=certificate.n_lost, n=certificate.n)
            self._watch = AuditWatch(max_em_drop=state.epoch.max_em_drop, reference=reference)
            self._watched_to = state.audits[-1].seq
        draft = self._draft(held, certificate)
        if self.agent is not None:
            self._feed_agent(self.agent, pairs, now)
            self.agent.look(state.n, lambda _: self.level)
        return draft

    def _feed_agent(self, agent: LiveAgent, pairs: Sequence[PairedAudit], now: float) -> None:
        waits = False
        for audit, pair in zip(self.state.audits, pairs, strict=True):
            if pair.is_repeat or not pair.full_tokens or not pair.arm_tokens:
                continue
            tokens = np.array([pair.full_tokens, pair.arm_tokens], dtype=np.float64)
            costs = AuditCosts(audit=audit, full_tokens=tokens[0], tokens=tokens, stops=np.array([False, True]))
            if audit.seq > self._read_to:
                self._read_to = audit.seq
                agent.add_audit(costs)
            waits |= pair.z is None and pair.due > now
            if audit.seq > self._judged_to and not waits:
                self._judged_to = audit.seq
                agent.add_losses(costs, np.array([0.0, 1.0 if pair.z is None else pair.z]))

    def _alarm(self, pairs: Sequence[PairedAudit], now: float) -> str | None:
        if self._watch is None:
            return None
        for audit, pair in zip(self.state.audits, pairs, strict=True):
            if audit.seq <= self._watched_to or pair.is_repeat:
                continue
            if pair.due > now:
                return None  # later ones are not due, either
            self._watched_to = audit.seq
            alarm = self._watch.add(1 if pair.z is None else pair.z, pair.disagrees)
            if alarm is not None:
                return alarm
        return None

    def pairs(self, audits: Sequence[Audit], window: Window | None = None) -> list[PairedAudit]:
        match, callers = self.state.context.cached_match, self.state.traffic.callers
        return pair_audits(audits, match, timeout=self._timeout, callers=callers, window=window)

    def _windowed(self) -> list[PairedAudit]:
        """The pairs of the certificate's window; audits that should have returned by now count as lost."""
        state, pending, timeout = self.state, self.state.certifier.pending, self._timeout
        at = np.array([audit.at for audit in state.audits], dtype=np.float64)
        share = np.array([audit.share for audit in state.audits])
        window = state.certifier.windows.chosen(
            np.concatenate([at, pending.at]), np.concatenate([share, pending.share]), wanted=WINDOW
        )
        if window is None:
            return []
        inside = [audit for audit, here in zip(state.audits, window.holds(at), strict=True) if here]
        late = window.holds(pending.at)
        weights = window.weights(pending.share[late]).tolist()
        lost = [
            PairedAudit(disagrees=True, z=1, due=began + timeout, weight=weight)
            for began, weight in zip(pending.at[late].tolist(), weights, strict=True)
        ]
        return self.pairs(inside, window) + lost

    @property
    def _timeout(self) -> float:
        state = self.state
        return max(state.delay.timeout_requests(since=state.epoch.at), state.certifier.run_timeout)

    @property
    def _arm_delta(self) -> float:
        return self.state.delta / self._divisor

    @property
    def _divisor(self) -> float:
        """An arm that lost its certificate needs a stronger proof to return, so that it does not alternate."""
        return RETURN_DIVISOR if self._fell and not self.level else 1.0

    def _draft(self, held: RouteDeployment, certificate: PairedCertificate) -> Draft | None:
        state, before, route = self.state, held.publication, self.state.context.route
        if (before.level if before is not None else 0) == self.level:
            return None
        arm, budget = latest_arm(state.audits, route.arms), state.epoch.max_em_drop
        evidence = EvidenceSummary(
            n_audits=certificate.n,
            n_gained=certificate.n_gained,
            n_lost=certificate.n_lost,
            e_value=e_value_of(certificate.log_e),
            share=certificate.saved_share,
            n_missing=certificate.n_missing(max_em_drop=budget, delta=self._arm_delta),
            max_em_drop=budget,
            confidence=state.epoch.confidence,
        )
        pairs = PairSummary(
            n=certificate.n,
            n_disagree=certificate.n_disagree,
            n_repeats=certificate.n_repeats,
            n_repeats_disagree=certificate.n_repeats_disagree,
        )
        reason = certificate.sentence(arm)
        made = state.publication(
            held,
            version=arm if self.level else "",
            fit="",
            level=self.level,
            n_levels=2,
            certified=self.level > 0,
            share=audit_share(state.n, route.audit_share),
            reason=reason if self.level else f"{arm} is no longer proved: {reason}",
            evidence=evidence,
            arm=arm,
            pairs=pairs,
        )
        return Draft(made)

    def label_requests(self, requested: set[str]) -> list[LabelRequest]:
        """Request labels only where the two answers differ."""
        requests = list[LabelRequest]()
        for audit in self.state.audits:
            outcome = audit.outcome
            if audit.labels or audit.id in requested or outcome.pair_arm == FULL or not _differs(outcome):
                continue
            requested.add(audit.id)
            why = f"with {outcome.pair_arm} the answer was different"
            requests.append(self.state.label_request(audit, level=1, would_answer=outcome.pair_answer, why=why))
        return requests
