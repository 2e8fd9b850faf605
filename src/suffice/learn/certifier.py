"""Certifies levels over time, from audits: the certified level, bursts of full runs, alarms and epochs.

One state machine for live traffic (`control`), recorded traces (`replay.online`) and simulations. It gets time and
evidence from its caller and reads nothing by itself. Without enough evidence the level is 0, which never stops.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

import numpy as np

from suffice.assurance.certify import audits_to_certify, certified_level, count_outcomes, weighted_log_wealth
from suffice.assurance.drift import AuditWatch, Cusum, Reference, audit_share_in_doubt
from suffice.assurance.labels import Audits, MatureAudits, counted_as, mature
from suffice.assurance.windows import Window, Windows, longest_use, restart_share
from suffice.learn.audits import AuditRuns, Bools, Floats, Small, concatenate_audits
from suffice.learn.budgeting import Spender
from suffice.learn.version import MOST_AUDITS, N_LEVELS, FoldedModels, Learner, Split, fit_served
from suffice.types import Promise

ChangeKind: TypeAlias = Literal["epoch", "refit", "certified", "alarm"]
KEPT_BEFORE: Final = 300  # requests before an alarm on signals whose audits are kept, since they are after the change
BURST_LAW: Final = 24.0  # full runs at the start of an epoch, times the budget
HORIZON: Final = 20_000  # requests over which the full runs of a live route must pay for themselves
BURST_PART: Final = 0.4  # of the horizon: the most full runs that pay for themselves
MOST_DURATIONS: Final = 500  # latest durations for the run time-out
SLOW_RUN: Final = 0.99  # quantile of durations that is the run time-out, before its margin
SLOW_MARGIN: Final = 1.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The guarantee and the settings of the control loop; times in the unit of `AuditRuns.at`."""

    max_em_drop: float = 0.02  # fraction
    confidence: float = 0.95  # fraction
    promise: Promise = "certified"  # "budgeted": an average, see `learn.budgeting`
    label_free: bool = False  # disagreement instead of the drop: needs no label, costs half the saving
    split: Split = "folds"
    warm_up: float = 1_000  # full runs at a cold start
    burst: float = 1_000  # full runs after an alarm
    window: int = 800  # audits of a certificate
    share: float = 0.05  # of requests that are audited in normal operation
    most_share: float = 0.5  # of requests that are audited in doubt
    free_audits: bool = True  # audit all requests while nothing is certified: they run in full anyway
    refit_every: float = 1_000
    label_timeout: float = 0.0  # after an audit's return; then it counts with or without a label
    n_levels: int = N_LEVELS
    cost_exponent: float = 0.5
    watches_signals: bool = True
    watches_outcomes: bool = True

    @property
    def delta(self) -> float:
        return 1 - self.confidence

    def restart_share(self, n_requests: float) -> float:
        """Part of delta for an epoch that an alarm from audits begins `n_requests` after the last one began."""
        return restart_share(n_requests, longest_use(self.window, self.share))


def full_runs(max_em_drop: float, horizon: float) -> int:
    """Requests that run in full at the start of an epoch, early so that all later ones profit from the evidence."""
    return max(1, min(round(BURST_LAW / max_em_drop), int(BURST_PART * horizon)))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PendingAudits:
    at: Floats  # (K,): start, in the unit of `AuditRuns.at`
    share: Floats  # (K,): P(audit) at the draw

    def lost(self, n_levels: int) -> Small:
        """Z, shape (K, M): lost at every level but 0."""
        z = np.ones((len(self.at), n_levels), dtype=np.int8)
        z[:, :1] = 0
        return z

    def plain(self) -> tuple[tuple[int, float], ...]:
        return tuple((int(at), share) for at, share in zip(self.at.tolist(), self.share.tolist(), strict=True))


def pending_audits(began: Iterable[tuple[int, float]]) -> PendingAudits:
    """Build from (number of the request, share at its draw) pairs."""
    at, share = np.array(list(began), dtype=np.float64).reshape(-1, 2).T
    return PendingAudits(at=at, share=share)


NO_PENDING: Final = pending_audits(())


@dataclass(frozen=True, slots=True, kw_only=True)
class CertifierDecision:
    kind: ChangeKind
    at: float
    level: int  # active from now on
    reason: str  # a short sentence for the log
    version: int = 0  # number of the active fit; 0: none


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Certificate:
    level: int  # last of the unbroken run of levels that pass
    log_e: Floats  # (M,): log wealth of each level
    z: Small  # (n, M): of each audit, including pending ones
    weight: Floats  # (n,): c/rho
    inside: Bools  # (N,): which audits of the epoch these are; pending ones follow them in `z`
    window: Window | None  # None: no audit yet
    until: float  # the claim covers requests of the window that began before

    @property
    def n_pending(self) -> int:
        return len(self.z) - int(self.inside.sum())


@dataclass(slots=True, eq=False)
class _JudgedAudits:
    z: Small  # (N, M)
    d: Bools  # (N, M)
    saved: Floats  # (N, M): tokens

    def plus(self, new: _JudgedAudits) -> _JudgedAudits:
        join = np.concatenate
        return _JudgedAudits(join([self.z, new.z]), join([self.d, new.d]), join([self.saved, new.saved]))

    def drop_oldest(self, n: int) -> _JudgedAudits:
        return _JudgedAudits(self.z[n:], self.d[n:], self.saved[n:])


@dataclass(slots=True, eq=False)
class _Epoch:
    burst_until: float
    windows: Windows
    began: float = 0.0
    delta_share: float = 1.0  # part of delta that its certificates may use, see `windows.restart_share`
    runs: AuditRuns | None = None
    served: FoldedModels | None = None
    judged: _JudgedAudits | None = None
    refit_at: float = 0.0
    n_seen: int = 0  # audits that the detectors have processed
    watched_from: float = 0.0  # the detectors get only audits that began later
    unsettled: list[int] = field(default_factory=list)  # processed audits whose outcome is not in the watch yet
    spender: Spender = field(default_factory=Spender)
    watch: AuditWatch | None = None  # since a level was first certified
    certifying: AuditRuns | None = None  # the audits that certified it: the frozen reference
    watched: tuple[FoldedModels | None, int] = (None, 0)  # version and level of the watch's reference


@dataclass(slots=True, eq=False)
class Certifier:
    plan: Plan
    learner: Learner
    fit: Callable[..., FoldedModels | None] = fit_served
    first: float | None = 0.0  # number of the first request; None: the caller records the share of each request
    level: int = field(init=False, default=0)  # active; 0 never stops
    version: int = field(init=False, default=0)  # fits so far
    now: float = field(init=False, default=0.0)
    n_epochs: int = field(init=False, default=0)
    pending: PendingAudits = field(init=False, default=NO_PENDING)
    charge: float | Floats = field(init=False, default=0.0)  # part of the budget that is spent elsewhere; or (M,)
    certificate: Certificate | None = field(init=False, default=None)  # of the last tick; None: no evidence
    _epoch: _Epoch = field(init=False)
    _durations: deque[float] = field(init=False, default_factory=lambda: deque(maxlen=MOST_DURATIONS))
    _cusum: Cusum | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        start = self.plan.warm_up
        self._epoch = _Epoch(burst_until=start, refit_at=start, windows=Windows([Window(start=0.0, share=1.0)]))

    # ---- read by requests ----------------------------------------------------------------------

    @property
    def served(self) -> FoldedModels | None:
        return self._epoch.served

    @property
    def in_burst(self) -> bool:
        return self.now < self._epoch.burst_until

    @property
    def n_audits(self) -> int:
        return 0 if self._epoch.runs is None else len(self._epoch.runs)

    @property
    def share(self) -> float:
        """Share of the next requests to audit, independent of their content."""
        if self.in_burst or (self.plan.free_audits and not self.level):
            return 1.0
        watch = self._epoch.watch
        if watch is None or not self.level:
            return self.plan.share
        return audit_share_in_doubt(watch, self.plan.share, self.plan.most_share)

    @property
    def reference(self) -> Reference | None:
        """Counts at the active level among the audits that certified the first level; None: none was certified."""
        epoch = self._epoch
        if epoch.certifying is None or epoch.served is None or not self.level:
            return None
        judged = _judge(epoch.served, epoch.certifying)
        z = counted(judged.z, judged.d, epoch.certifying, self.now, self.plan)
        return Reference(
            n_disagreeing=int(judged.d[:, self.level].sum()), n_lost=int((z[:, self.level] == 1).sum()), n=len(z)
        )

    @property
    def windows(self) -> Windows:
        return self._epoch.windows

    @property
    def log_e(self) -> Floats:
        return np.zeros(1) if self.certificate is None else self.certificate.log_e

    @property
    def run_timeout(self) -> float:
        """Age at which nearly all audits have returned; a later one counts as lost."""
        if not self._durations:
            return 0.0
        return SLOW_MARGIN * float(np.quantile(np.array(self._durations), SLOW_RUN))

    # ---- events --------------------------------------------------------------------------------

    def add_audits(self, runs: AuditRuns) -> None:
        if not len(runs):
            return
        epoch = self._epoch
        epoch.runs = runs if epoch.runs is None else concatenate_audits([epoch.runs, runs])
        if epoch.served is not None:
            new = _judge(epoch.served, runs)
            epoch.judged = new if epoch.judged is None else epoch.judged.plus(new)

    @property
    def label_age(self) -> float:
        """Age at which an audit has returned and its label is there or late."""
        return self.run_timeout + self.plan.label_timeout

    def add_durations(self, durations: Iterable[float]) -> None:
        """In the unit of `AuditRuns.at`."""
        self._durations.extend(durations)

    def add_signals(self, signals: Floats) -> tuple[CertifierDecision, ...]:
        """Check one batch of early signals of all traffic, shape (n, F), for drift."""
        if not self.plan.watches_signals:
            return ()
        if self._cusum is None:
            self._cusum = Cusum(signals.shape[1])
        return self.reset("signals of all traffic drifted", keep=KEPT_BEFORE) if self._cusum.add(signals) else ()

    def reset(self, reason: str, *, keep: int = 0, by_audits: bool = False) -> tuple[CertifierDecision, ...]:
        """Begin a new epoch at level 0 with a burst of full runs; keep the audits of the last `keep` requests."""
        part = self.plan.restart_share(self.now - self._epoch.began) if by_audits else 1.0
        runs = self._epoch.runs
        kept = None if runs is None or not keep else runs.take(np.flatnonzero(runs.at >= self.now - keep))
        until = self.now + self.plan.burst
        first = Window(start=self.now, share=1.0 if self.plan.burst else self.plan.share)
        self._epoch = _Epoch(
            burst_until=until, refit_at=until, windows=Windows([first]), began=self.now, delta_share=part, runs=kept
        )
        self._cusum, self.certificate, self.level, self.n_epochs = None, None, 0, self.n_epochs + 1
        return (self._change("alarm", reason), self._change("epoch", f"full runs until {until:g}"))

    def tick(self, now: float) -> tuple[CertifierDecision, ...]:
        self.now = now
        epoch, changes = self._epoch, list[CertifierDecision]()
        if self.in_burst or epoch.runs is None:
            return ()
        alarm = self._watch()
        if alarm:
            return self.reset(alarm, by_audits=True)
        if self.plan.promise == "budgeted":
            self._book(epoch.runs)  # before a refit: these audits ran under the levels of the previous version
        if now >= epoch.refit_at:
            epoch.refit_at = now + self.plan.refit_every
            changes += self._refit()
        if epoch.judged is not None:
            changes += self._certify(epoch.judged)
        if self.first is not None:  # later requests are audited at the new share
            self.windows.note(self.now + self.first, self.share)
        return tuple(changes)

    # ---- inside --------------------------------------------------------------------------------

    def _book(self, runs: AuditRuns) -> None:
        epoch, plan = self._epoch, self.plan
        epoch.spender.book(
            runs,
            None if epoch.judged is None else epoch.judged.d,
            epoch.served,
            level=self.level,
            max_em_drop=plan.max_em_drop,
            now=self.now,
            timeout=self.label_age,
            label_free=plan.label_free,
        )

    def _change(self, kind: ChangeKind, reason: str) -> CertifierDecision:
        return CertifierDecision(kind=kind, at=self.now, level=self.level, reason=reason, version=self.version)

    def _refit(self) -> list[CertifierDecision]:
        epoch, plan = self._epoch, self.plan
        self._drop_old_audits()
        served = self.fit(
            self._runs,
            self.learner,
            now=self.now,
            label_free=plan.label_free,
            split=plan.split,
            n_levels=plan.n_levels,
            cost_exponent=plan.cost_exponent,
        )
        if served is None:
            return []
        judged = _judge(served, self._runs)
        if epoch.judged is not None and self._saving(judged) <= self._saving(epoch.judged):
            return []
        epoch.served, epoch.judged = served, judged
        self.version += 1
        return [self._change("refit", f"fitted on {len(self._runs):,} audits")]

    def _drop_old_audits(self) -> None:
        epoch, certificate, runs = self._epoch, self.certificate, self._runs
        most = max(MOST_AUDITS, 2 * self.plan.window)
        if len(runs) <= 2 * most:
            return
        n_dropped = len(runs) - most
        if certificate is not None and certificate.inside.any():
            n_dropped = min(n_dropped, int(np.flatnonzero(certificate.inside)[0]))
        epoch.runs = runs.take(np.arange(n_dropped, len(runs)))
        if epoch.judged is not None:
            epoch.judged = epoch.judged.drop_oldest(n_dropped)
        epoch.n_seen = max(0, epoch.n_seen - n_dropped)
        epoch.unsettled = [place - n_dropped for place in epoch.unsettled if place >= n_dropped]
        epoch.spender.drop_oldest(n_dropped)

    def _certificate(self, judged: _JudgedAudits) -> Certificate:
        """The better of two claims: about all requests so far, or about those old enough to have returned.

        The test holds at all times at once, so both are valid. Their one window is chosen by draws and times alone.
        """
        age = self.run_timeout if self.plan.label_free else self.label_age
        at = np.concatenate([self._runs.at, self.pending.at])
        share = np.concatenate([self._runs.share, self.pending.share])
        old, window = np.zeros(len(at), dtype=bool), None
        for least_age in (age, self.run_timeout):  # with slow labels, too few audits may reach that age
            if window is None or window.n_audits(at[old], share[old]) < self.plan.window:
                old = at <= self.now - least_age
                window = self._epoch.windows.chosen(at[old], share[old], wanted=self.plan.window)
        claims = [self._certified_until(judged, self.now - age, window)]
        if age:
            claims.append(self._certified_until(judged, self.now, window))
        return max(claims, key=lambda one: (one.level, float(one.log_e[one.level])))

    def _certified_until(self, judged: _JudgedAudits, until: float, window: Window | None) -> Certificate:
        """Certify from the audits of a window that began by `until`; those that have not returned count as lost."""
        plan, runs, pending = self.plan, self._runs, self.pending
        if window is None:
            inside, late = np.zeros(len(runs), dtype=bool), np.zeros(len(pending.at), dtype=bool)
            weight = np.zeros(0)
        else:
            inside, late = (runs.at <= until) & window.holds(runs.at), (pending.at <= until) & window.holds(pending.at)
            if plan.split == "half":
                inside &= runs.fold % 2 == 1
            weight = window.weights(np.concatenate([runs.share[inside], pending.share[late]]))
        z = counted(judged.z[inside], judged.d[inside], runs.take(np.flatnonzero(inside)), self.now, plan)
        z = np.concatenate([z, pending.lost(z.shape[1])[late]])
        wealth = weighted_log_wealth(z, weight, max_em_drop=plan.max_em_drop - self.charge)
        return Certificate(
            level=certified_level(wealth, delta=plan.delta * self._epoch.delta_share),
            log_e=wealth,
            z=z,
            weight=weight,
            inside=inside,
            window=window,
            until=until,
        )

    def _saving(self, judged: _JudgedAudits) -> float:
        certificate = self._certificate(judged)
        return float(judged.saved[certificate.inside, certificate.level].sum())

    def _certify(self, judged: _JudgedAudits) -> list[CertifierDecision]:
        before = self.level
        self.certificate = self._certificate(judged)
        self.level, inside = self.certificate.level, self.certificate.inside
        epoch = self._epoch
        if self.plan.promise == "budgeted":
            counts = count_outcomes(self.certificate.z)
            self.level = epoch.spender.place(counts, certified=self.level, max_em_drop=self.plan.max_em_drop)
        if self.level and epoch.watch is None and inside.any():
            # The certifying audits are no new evidence, and the audits in flight would be a sample of slow ones.
            epoch.n_seen, epoch.watched_from = len(judged.z), self.now
            epoch.certifying = self._runs.take(np.flatnonzero(inside))
        self._rebase()
        if self.level == before:
            return []
        n = len(self.certificate.z)
        return [self._change("certified", f"level {self.level} of {len(self.log_e) - 1} on {n} audits")]

    def _rebase(self) -> None:
        epoch = self._epoch
        reference = None if (epoch.served, self.level) == epoch.watched else self.reference
        if reference is None:
            return
        epoch.watched = epoch.served, self.level
        if epoch.watch is None:
            epoch.watch = AuditWatch(max_em_drop=self.plan.max_em_drop, reference=reference)
        else:
            epoch.watch.rebase(reference)

    @property
    def _runs(self) -> AuditRuns:
        assert self._epoch.runs is not None
        return self._epoch.runs

    def _watch(self) -> str | None:
        epoch, plan, level = self._epoch, self.plan, self.level
        judged, runs, watch = epoch.judged, epoch.runs, epoch.watch
        if not plan.watches_outcomes or judged is None or runs is None or watch is None or not level:
            return None
        new = (epoch.n_seen + np.flatnonzero(runs.at[epoch.n_seen :] > epoch.watched_from)).tolist()
        for place in new:
            if alarm := watch.add(None, bool(judged.d[place, level])):
                return alarm
        epoch.unsettled += new
        epoch.n_seen = len(runs)
        # An unlabelled disagreement is a loss only after its time-out; otherwise late labels would raise an alarm by
        # disagreement alone, which has its own detector.
        at = [0, level]
        news = matured(judged.z[:, at], judged.d[:, at], runs, self.now, plan, run_timeout=self.run_timeout)
        for place in [place for place in epoch.unsettled if news.enters[place]]:
            if alarm := watch.add(int(news.z[place, 1]), None):
                return alarm
        epoch.unsettled = [place for place in epoch.unsettled if not news.enters[place]]
        return None


def counted(z: Small, d: Bools, runs: AuditRuns, now: float, plan: Plan) -> Small:
    """Z of each audit now at M levels, level 0 first, shape (N, M)."""
    return counted_as(_audits(z, d, runs, now), label_free=plan.label_free)


def matured(z: Small, d: Bools, runs: AuditRuns, now: float, plan: Plan, *, run_timeout: float = 0.0) -> MatureAudits:
    timeout = run_timeout + plan.label_timeout
    return mature(_audits(z, d, runs, now), timeout=timeout, label_free=plan.label_free)


def _audits(z: Small, d: Bools, runs: AuditRuns, now: float) -> Audits:
    return Audits(z=z, disagrees=d, labelled=runs.label_at <= now, age=now - runs.at, abandoned=runs.abandoned)


def _judge(served: FoldedModels, runs: AuditRuns) -> _JudgedAudits:
    rows = served.rows(runs)
    return _JudgedAudits(z=runs.z[rows], d=runs.d[rows], saved=runs.full[:, None] - runs.cost[rows])


def missing_audits(z: Small, level: int, *, max_em_drop: float, delta: float) -> int | None:
    """Further audits until a level passes, if outcomes continue as z, shape (n, M); None: no number is enough."""
    n = len(z)
    if level >= z.shape[1] or not n:
        return None
    gained, lost = int((z[:, level] < 0).sum()), int((z[:, level] > 0).sum())
    try:
        needed = audits_to_certify((lost - gained) / n, max_em_drop=max_em_drop, delta=delta, gained=gained / n)
    except ValueError:
        return None
    return max(1, needed - n)
