"""Assesses a rollout by a fold over the log: its evidence, what bars its promotion, and the moves that follow."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import log
from typing import Final

import numpy as np

from suffice.arrays import Bools, Floats, Ints, Small
from suffice.assurance.certify import (
    BETS,
    FleetRequirement,
    Windows,
    certified_level,
    count_outcomes,
    log_bets,
    mixed,
    spent_delta,
)
from suffice.assurance.clusters import audits_per_cluster, log_wealth_by_cluster, missing_clustered_audits, own_clusters
from suffice.assurance.labels import find_first_disagreements
from suffice.assurance.runs import Match
from suffice.certification.certificate import PendingAudits
from suffice.control.compare.counterfactual import ACTIVE_ARM, AuditReplay
from suffice.control.compare.rollout_evidence import EvidenceFold, ReplayedPair
from suffice.control.evidence.audits import Audit, Verdicts, verdicts
from suffice.control.evidence.cold_start import window_size
from suffice.control.evidence.versions import loader, published_on, version_rows
from suffice.edge.math import Matches
from suffice.errors import ConfigError
from suffice.learn.version import ServedVersion, fold_version
from suffice.review.holds import RouteHolds
from suffice.rollout.evidence import RolloutEvidence
from suffice.rollout.experiment import Arm
from suffice.rollout.results import ArmEvidence
from suffice.rollout.stages import RolloutState, Transition, advance, assess_rollout, certify
from suffice.settings import Control, Route, Settings
from suffice.store.database.views import LogReader, label_requests, newest_event, read_events
from suffice.store.routes.deployments import RouteDeployment, read_decided, read_holds
from suffice.store.routes.rollouts import (
    RolloutRun,
    models_of,
    own_version,
    read_rollouts,
    read_serving_version,
    version_at,
)
from suffice.types import LabelRequest

# ---- A learned candidate's own certificate: which of its levels keep the EM budget against the full run

MOST_KEPT: Final = 4_000  # audits that are remembered


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateCertificate:
    level: int  # the highest that passes; 0: none
    n: int  # audits that counted
    n_lost: int  # of them, at `level`, or at the first level if none passes
    n_gained: int
    n_missing: int | None  # audits to the next level, at the rates observed; None: not known, or there is no next level
    max_em_drop: float  # the budget tested
    delta: float
    surely_over: bool = False  # the safest level significantly breaks the budget: further audits will not certify it

    @property
    def sentence(self) -> str:
        if self.surely_over:
            return (
                f"even its safest level surely loses more than {self.max_em_drop:.2%}: of {self.n:,} audits against the"
                f" full run {self.n_lost} are lost and {self.n_gained} gained"
            )
        at = f"level {self.level}" if self.level else "no level"
        return (
            f"{at} passes on {self.n:,} audits against the full run, {self.n_lost} lost and {self.n_gained} gained,"
            f" within {self.max_em_drop:.2%} at {1 - self.delta:.2%}"
        )


@dataclass(slots=True)
class _JudgedAudit:
    audit: Audit
    disagrees: Bools  # (M,)
    z: Small  # (M,): EM drop as it counts now
    is_labelled: bool  # a label names the right answer
    clusters: Ints  # (units,): see `AuditRuns`


@dataclass(slots=True, kw_only=True, eq=False)
class CandidateEvidence:
    """The `number`-th version that the route tries in rollouts, and the audits that count for it."""

    version: ServedVersion
    match: Match
    wave: int
    number: int
    window: int
    _judged: dict[str, _JudgedAudit] = field(default_factory=dict)  # by episode, oldest first
    _counts: Verdicts = field(default_factory=dict)
    _level: int = 0  # that passed in the last test

    def add(self, audits: Sequence[Audit]) -> set[str]:
        """Add new audits; return the episodes whose label can change the result."""
        if audits:
            self._judge(audits, {})
        while len(self._judged) > MOST_KEPT:
            del self._judged[next(iter(self._judged))]
        return {audit.id for audit in audits if audit.id in self._judged and self._judged[audit.id].disagrees.any()}

    def note_labels(self, audits: Mapping[str, Audit], callers: Collection[str]) -> None:
        """Judge again the audits whose label has changed."""
        differing = [audits[name] for name, one in self._judged.items() if one.disagrees.any() and name in audits]
        before, self._counts = self._counts, verdicts(differing, self.match, callers=callers)
        changed = [audit for audit in differing if before.get(audit.id) != self._counts.get(audit.id)]
        if changed:
            self._judge(changed, self._counts)

    def certificate(
        self, *, pending: PendingAudits, windows: Windows, max_em_drop: float, confidence: float, harm_confidence: float
    ) -> CandidateCertificate:
        """Test the levels on a budget net of charges; pending audits count as lost."""
        judged = list(self._judged.values())
        certificate = certify_candidate(
            np.stack([one.z for one in judged]) if judged else np.zeros((0, self.version.n_levels), np.int8),
            np.array([one.audit.at for one in judged], dtype=np.float64),
            np.array([one.audit.share for one in judged]),
            np.array([one.is_labelled for one in judged], dtype=np.bool_),
            np.array([one.clusters for one in judged], dtype=np.int64) if judged else own_clusters(0),
            pending,
            windows,
            window=self.window,
            max_em_drop=max_em_drop,
            delta=spent_delta(1 - confidence, 1 + self.number),
            harm_delta=1 - harm_confidence,
        )
        self._level = certificate.level
        return certificate

    def unjudged(self, audits: Mapping[str, Audit]) -> list[tuple[Audit, int]]:
        """Unlabelled audits, each with the first eligible level at which it disagrees."""
        unjudged = list[tuple[Audit, int]]()
        for name, one in self._judged.items():
            (level,) = find_first_disagreements(one.disagrees[np.newaxis], deployed=self._level).tolist()
            if level and name in audits and not audits[name].labels and audits[name].fate == "full":
                unjudged.append((audits[name], level))
        return unjudged

    def _judge(self, audits: Sequence[Audit], counts: Verdicts) -> None:
        """Judge audits at each level by the labels that count; no label changes a run that broke off."""
        version = self.version
        rows = version_rows(version, audits, match=self.match, wave=self.wave, counts=counts)
        at = version.rows(rows)
        disagrees = rows.d[at] & ~rows.abandoned[:, np.newaxis]
        disagrees[:, 0] = False
        for audit, losses, apart, clusters in zip(audits, rows.losses(at), disagrees, rows.clusters, strict=True):
            self._judged[audit.id] = _JudgedAudit(audit, apart, losses, audit.id in counts, clusters)


def certify_candidate(
    z: Small,
    at: Floats,
    share: Floats,
    is_labelled: Bools,
    clusters: Ints,
    pending: PendingAudits,
    windows: Windows,
    *,
    window: int,
    max_em_drop: float,
    delta: float,
    harm_delta: float,
) -> CandidateCertificate:
    """Test a candidate's levels on audits.

    z           EM drop of each audit at each level as it counts now, in the order of their returns, shape (n, M)
    at, share   number of each request, and the audit share when it was drawn, shape (n,)
    is_labelled whether a label names the right answer, shape (n,): only such audits are evidence of harm
    clusters    keys of each audit's clusters, shape (n, units)
    harm_delta  probability of giving up a candidate that keeps the budget at its safest level
    """
    known = z
    z, at = np.concatenate([z, pending.lost(z.shape[1])]), np.concatenate([at, pending.at])
    share = np.concatenate([share, pending.share])
    clusters = np.concatenate([clusters, own_clusters(len(pending.at))])
    chosen = windows.chosen(at, share, wanted=window, size_of=partial(audits_per_cluster, clusters))
    if chosen is None or not len(known):
        return CandidateCertificate(
            level=0, n=0, n_lost=0, n_gained=0, n_missing=None, max_em_drop=max_em_drop, delta=delta
        )
    inside = chosen.holds(at)
    tested = z[inside], chosen.weights(share[inside]), clusters[inside]
    wealth = log_wealth_by_cluster(*tested, max_em_drop=max_em_drop)
    level = certified_level(wealth, delta=delta)
    over = not level and _surely_over(np.where(is_labelled, known[:, 1], 0), max_em_drop, harm_delta)
    reported, z = max(1, level), known if over else z[inside]
    return CandidateCertificate(
        level=level,
        n=len(z),
        n_lost=int((z[:, reported] > 0).sum()),
        n_gained=int((z[:, reported] < 0).sum()),
        n_missing=missing_clustered_audits(*tested, level + 1, max_em_drop=max_em_drop, delta=delta),
        max_em_drop=max_em_drop,
        delta=delta,
        surely_over=over,
    )


def _surely_over(z: Small, max_em_drop: float, delta: float) -> bool:
    """The reversed test: whether the hypothesis "it loses no more than the budget" is rejected on all audits kept."""
    counts = count_outcomes(z[:, np.newaxis])
    wealth = mixed(log_bets(counts.lost, counts.same, counts.gained, -max_em_drop, bets=BETS))
    return float(wealth[0]) >= log(1 / delta)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    held: RolloutRun
    evidence: RolloutEvidence
    standing: RolloutState
    at: int  # governed requests of the route since it began
    now_s: float  # Unix time
    certificate: CandidateCertificate | None = None  # None: it could not be tested, and the candidate does not act
    wanted: tuple[LabelRequest, ...] = ()  # new label requests

    @property
    def moves(self) -> tuple[Transition, ...]:
        """The transitions that follow: a change of a learned candidate's level, a step, both or neither."""
        state = self.held.state
        rules = self.held.rules
        moves = list[Transition]()
        step = advance(state, self.evidence, rules, at=self.at, now_s=self.now_s)
        level = 0 if self.certificate is None else self.certificate.level
        if state.fit and not state.over and level != state.level and (step is None or step.move != "roll_back"):
            why = "nothing can be tested now" if self.certificate is None else self.certificate.sentence
            moves.append(certify(state, level, reason=why, at=self.at, now_s=self.now_s))
            step = advance(state.after(moves[-1]), self.evidence, rules, at=self.at, now_s=self.now_s)
        return (*moves, step) if step is not None else tuple(moves)


class RolloutAssessor:
    """Assesses one rollout again and again, by both versions on each audit.

    A learned candidate is replayed at the level that its certificate allowed when the request arrived; else there is no
    pair. `requested` are the episodes whose label was requested.
    """

    def __init__(
        self, log: LogReader, held: RolloutRun, of_route: AuditReplay, control: Control, *, secret: str
    ) -> None:
        """Raises ConfigError for a version that cannot be read, and StoreError."""
        self.held, self.of_route = held, of_route
        self.gathering = EvidenceFold(held=held, match=of_route.match, probes=of_route.route.probe is not None)
        self.requested = set(label_requests(log, held.state.route))
        self._arms: tuple[Arm, ...] = ()  # both versions, if they are policies
        self._evidence: CandidateEvidence | None = None  # if the candidate is learned
        self._known: dict[str, ServedVersion | None] = {}
        candidate = version_at(log, held.state.candidate, secret=secret)
        if held.state.fit:
            self._evidence = CandidateEvidence(
                version=fold_version(models_of(candidate)),
                match=of_route.match,
                wave=of_route.route.wave,
                number=held.number,
                window=window_size(control, of_route.route.max_em_drop),
            )
            return
        other = version_at(log, held.state.active, secret=secret)
        bodies = (json.dumps(one.plain()["body"], sort_keys=True) for one in (candidate, other))
        self._arms = tuple(Arm(name="", weight=1.0, policy=body) for body in bodies)

    def see(self, log: LogReader, held: RolloutRun, decided: RouteDeployment, *, now_s: float) -> Assessment:
        """Read new rows and assess the rollout. Raises StoreError."""
        for stored in read_events(log, since_seq=self.gathering.seq):
            self.gathering.feed(stored)
        name, route = held.state.route, self.of_route.route
        if self._evidence is not None:
            self.of_route = replace(self.of_route, published=published_on(log, name), load=loader(log, self._known))
        evidence = self.gathering.evidence(self._replay, self.of_route.judged, self._watch)
        holds = read_holds(log).of(name)
        fleet = newest_event(log, FleetRequirement)
        delta = 1.0 if fleet is None else 1 / fleet.wealth
        certificate = self._certify(decided, holds.in_effect(now_s).budget(route.max_em_drop), delta)
        withheld = withheld_by(held, decided, holds, now_s=now_s)
        latest = latest_on(log, held, route, decided)
        assessment = assess_evidence(
            held, evidence, certificate, withheld=withheld, latest=latest, at=self.gathering.n, now_s=now_s
        )
        return replace(assessment, wanted=tuple(self._label_requests()))

    def _replay(self, audits: Sequence[Audit], levels: Sequence[int]) -> list[ReplayedPair | None]:
        """Replay new audits under both versions; None: there is no pair."""
        if self._evidence is None:
            candidate, active = (self.of_route.arm(arm, audits) for arm in self._arms)
        else:
            by_id: dict[str, ArmEvidence] = {}
            for level in sorted(set(levels) - {0}):
                at_level = [audit for audit, one in zip(audits, levels, strict=True) if one == level]
                replayed = self.of_route.at_level(self._evidence.version, level, at_level)
                by_id |= {audit.id: evidence for audit, evidence in zip(at_level, replayed, strict=True)}
            candidate, active = [by_id.get(audit.id) for audit in audits], self.of_route.arm(ACTIVE_ARM, audits)
        return [
            None if one is None or other is None else {"candidate": one, "in force": other}
            for one, other in zip(candidate, active, strict=True)
        ]

    def _watch(self, audits: Sequence[Audit]) -> set[str]:
        return set() if self._evidence is None else self._evidence.add(audits)

    def _certify(self, decided: RouteDeployment, budget: float, delta: float) -> CandidateCertificate | None:
        """Test the candidate on the active version's budget; None: it has no certificate, or cannot be tested now.

        delta  the most that the fleet's promise leaves
        """
        made = decided.publication
        epoch = decided.epoch
        evidence = self._evidence
        gathering = self.gathering
        if evidence is None or made is None or epoch is None:
            return None
        if not made.certified or made.fit != self.held.state.active:
            return None
        evidence.note_labels(gathering.watched, gathering.callers)
        if made.evidence.max_em_drop is None:
            return None
        # The epoch's confidence: a publication's holds the loop's part of delta, which does not apply to this one.
        return evidence.certificate(
            pending=gathering.pending,
            windows=gathering.windows,
            max_em_drop=min(budget, made.evidence.max_em_drop),
            confidence=max(epoch.confidence, self.of_route.route.confidence, 1 - delta),
            harm_confidence=self.held.rules.harm_confidence,
        )

    def _label_requests(self) -> list[LabelRequest]:
        """Request unlabelled audits on which the versions differ, or that the candidate's certificate needs."""
        requests = dict[str, LabelRequest]()
        for audit, pair in self.gathering.unjudged():
            answer, other = pair["candidate"].answer, pair["in force"].answer
            answer = answer if answer != audit.outcome.answer else other
            why = "the candidate would have given a different answer from the active version"
            requests[audit.id] = audit.label_request(level=1, would_answer=answer, why=why)
        if self._evidence is not None:
            for audit, level in self._evidence.unjudged(self.gathering.watched):
                if audit.id not in requests and audit.id not in self.requested:
                    (evidence,) = self.of_route.at_level(self._evidence.version, level, [audit])
                    why = f"level {level} of the candidate would have given a different answer from the full run"
                    requests[audit.id] = audit.label_request(level=level, would_answer=evidence.answer, why=why)
        return [request for name, request in requests.items() if name not in self.requested]


def assess_evidence(
    held: RolloutRun,
    gathered: RolloutEvidence,
    certificate: CandidateCertificate | None,
    *,
    withheld: str,
    latest: int | None,
    at: int,
    now_s: float,
) -> Assessment:
    """Assess a rollout on its evidence, at its governed request `at`.

    certificate  of a learned candidate; None: it has none, or cannot be tested now
    withheld     why nothing may be promoted now, whatever the evidence; "": nothing bars it
    latest       number of the route's latest publication, as the rollout counts them
    """
    unproved, void, idle = _of_candidate(held, gathered, certificate)
    evidence = replace(gathered, withheld=withheld or unproved, latest=latest, void=void, idle=idle)
    standing = assess_rollout(held.state, evidence, held.rules, at=at, now_s=now_s)
    return Assessment(held=held, evidence=evidence, standing=standing, at=at, now_s=now_s, certificate=certificate)


def standing_of(
    log: LogReader, held: RolloutRun, settings: Settings, matches: Matches, *, secret: str, now_s: float
) -> Assessment:
    """Assess a rollout from the log. Raises ConfigError for a version that cannot be read, and StoreError."""
    route = settings.routes[held.state.route]
    with matches(route) as match:
        assessor = RolloutAssessor(log, held, AuditReplay(route=route, match=match), settings.control, secret=secret)
        return assessor.see(log, held, read_decided(log).of(held.state.route), now_s=now_s)


# --------------------------------------------------------------------------- what bars a promotion


def withheld_by(held: RolloutRun, decided: RouteDeployment, holds: RouteHolds, *, now_s: float) -> str:
    """Why the rollout may not be promoted now, such as a new epoch; "": nothing bars it."""
    epoch, made = decided.epoch, decided.publication
    if epoch is not None and epoch.since_seq > held.seq:
        return f"epoch {epoch.number} began during the rollout: {epoch.reason}"
    if held.state.fit and made is not None and (made.ceiling is not None or made.class_ceilings):
        return "people's ratings hold the route's level down"
    return barred(decided, holds, now_s=now_s)


def barred(decided: RouteDeployment, holds: RouteHolds, *, now_s: float) -> str:
    """The pause, open incident, override or open alarm that bars promotion on a route; "": none."""
    alarm = decided.alarm
    if decided.pause is not None:
        return f"enforcement is paused: {decided.pause.reason}"
    if holds.open_cases:
        incident = holds.open_cases[-1].incident
        return f"incident {incident.incident} waits for a person: {incident.summary}"
    if holds.in_effect(now_s).until_s is not None:
        return "a person holds this route, or a class of its questions, for a while"
    return f"an alarm is open: {alarm.reason}" if alarm is not None and decided.in_burst else ""


def _of_candidate(
    held: RolloutRun, evidence: RolloutEvidence, certificate: CandidateCertificate | None
) -> tuple[str, str, str]:
    """Why a candidate may not act, why it never will, and why what may act saves nothing; each "" if not so."""
    state, kept = held.state, evidence.kept
    if not state.fit:
        return "", "", ""
    if certificate is None:
        return "nothing is certified on the route now, so the candidate cannot be certified either", "", ""
    sentence, missing = certificate.sentence, certificate.n_missing
    more = "" if missing is None else f"; the next one needs about {missing:,} more audits like these"
    if not certificate.level:
        if state.level > 0 and state.step > 0:
            return f"{sentence}{more}", f"its certificate is gone: {sentence}", ""
        return f"{sentence}{more}", sentence if certificate.surely_over else "", ""
    if kept.candidate <= kept.active:
        return "", "", ""
    mine, other = kept.candidate / kept.n, kept.active / kept.n
    return "", "", f"it keeps {mine:,.0f} tokens a run, the active version {other:,.0f}; {sentence}{more}"


def latest_on(log: LogReader, held: RolloutRun, route: Route, decided: RouteDeployment) -> int:
    """Number of the route's latest publication, as the rollout counts them. Raises StoreError.

    For a learned version it is that of the certify loop's latest publication, if its models changed. For a fixed policy
    it is one more than the publication that the rollout followed, if the owner has written another policy since.
    """
    state, made = held.state, decided.publication
    if state.fit and route.is_learned:
        return state.follows if made is None or made.fit == state.active else made.number
    try:
        own = own_version(route).address
    except ConfigError:  # the owner has removed the policy from the settings
        return state.follows + 1
    before = [one for one in read_rollouts(log) if one.seq < held.seq]
    return state.follows + (read_serving_version(before, state.route, own) != state.active)
