"""Keeps the promise over time: audits in; the certified level, bursts of full runs and alarms out.

    cold start ──▶ burst of full runs ──▶ fit, certify, deploy ──▶ each period: count, certify, watch
                        ▲                                                     │ alarm, known change
                        └─────────────── new epoch ◀──────────────────────────┘

One state machine for live traffic (`control`), recorded traces (`replay.online`) and simulations; ASSURANCE.md §3.8 in
code. It is told the time and given evidence, and reads nothing by itself. It refuses to know requests, routes and
stores, and when it cannot say more it says level 0, which never stops.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

import numpy as np

from suffice.assurance.certify import certified_level, count, log_wealth
from suffice.assurance.drift import Cusum, DisagreementRatio, ShiryaevRoberts
from suffice.assurance.maturity import SETTLED, Audits, Matured, mature, newest
from suffice.learn.audits import AuditRuns, Bools, Floats, Small, join
from suffice.learn.budgeting import Spender
from suffice.learn.served import MOST_AUDITS, N_LEVELS, Learner, Served, Split, fit_served
from suffice.types import Promise

ChangeKind: TypeAlias = Literal["epoch", "refit", "certified", "alarm"]
KEPT_BEFORE: Final = 300      # requests before an alarm on signals whose audits are kept: all had changed already
RAMP_PART: Final = 0.35       # of the horizon: audits that are enough are no more
MIN_RATE_AUDITS: Final = 100  # of a certification set whose disagreement rate is worth comparing with


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is promised, and the numbers that the control loop runs on; times in the unit of `AuditRuns.at`."""

    max_em_drop: float = 0.02       # fraction
    confidence: float = 0.95        # fraction
    promise: Promise = "certified"  # or "budgeted": an average, see `learn.budgeting`
    label_free: bool = False        # disagreement instead of the drop: needs no label, costs half the saving
    split: Split = "folds"
    warm_up: float = 1_000          # full runs at a cold start
    burst: float = 1_000            # full runs after an alarm
    window: int | None = 800        # matured audits that certify; None: all of the epoch
    span: float = 2_400             # … and whatever is younger: bursts prove more, but a longer span forgets slower
    share: float = 0.05             # of requests that are audited once there is evidence
    ramp_share: float = 0.5         # of requests that are audited after a burst, until evidence is enough
    ramp_law: float = 16.0          # audits that are enough, times the budget; more pay where the loop forgets less
    horizon: float = 20_000         # requests over which audits shall pay for themselves
    refit_every: float = 1_000
    label_timeout: float = 0.0      # an audit counts when it is that old
    n_levels: int = N_LEVELS
    cost_exponent: float = 0.5
    watches_signals: bool = True
    watches_outcomes: bool = True

    @property
    def ramp_audits(self) -> float:
        """Audits that are enough: what is won by more of them, in proportion to 1/budget, is no longer worth them.

        To certify a level that loses a quarter of the budget takes about 9 over the budget, and one that loses half of
        it about 25 (`certify.audits_to_certify`); of a short horizon, audits take about a third, and are over by its
        middle.
        """
        begun = min(self.warm_up, self.burst)
        by_middle = begun + self.ramp_share * max(0.0, self.horizon / 2 - begun)
        return min(self.ramp_law / self.max_em_drop, RAMP_PART * self.horizon, by_middle)

    @property
    def delta(self) -> float:
        """Probability that the promise may fail."""
        return 1 - self.confidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Something that the keeper decided."""

    kind: ChangeKind
    at: float
    level: int          # in force from now on
    reason: str         # a short sentence for the log
    version: int = 0    # number of the fit in force; 0: none


@dataclass(slots=True, eq=False)
class _Judged:
    """The audits of the epoch as one version's levels see them."""

    z: Small        # (N, M)
    d: Bools        # (N, M)
    saved: Floats   # (N, M): tokens


@dataclass(slots=True, eq=False)
class _Epoch:
    """What is known since the last reset."""

    burst_until: float
    runs: AuditRuns | None = None
    served: Served | None = None
    judged: _Judged | None = None
    refit_at: float = 0.0
    n_seen: int = 0         # audits that the detectors have had
    n_matured: int = 0      # audits that they have had as outcomes
    n_certified: int = 0    # audits that were there when a level was first certified
    spender: Spender = field(default_factory=Spender)
    sr: ShiryaevRoberts | None = None
    ratio: DisagreementRatio | None = None
    ratio_level: int = 0


@dataclass(slots=True, eq=False)
class Keeper:
    """The state machine of one route."""

    plan: Plan
    learner: Learner
    fit: Callable[..., Served | None] = fit_served
    level: int = 0                  # in force; 0 never stops
    version: int = 0                # fits so far
    now: float = 0.0
    n_epochs: int = 0
    log_e: Floats = field(default_factory=lambda: np.zeros(1))  # of each level, at the last look
    _epoch: _Epoch = field(init=False)
    _cusum: Cusum | None = None

    def __post_init__(self) -> None:
        """Begin cold: nothing is known, everything runs in full."""
        self._epoch = _Epoch(burst_until=self.plan.warm_up, refit_at=self.plan.warm_up)

    # ---- what requests read --------------------------------------------------------------------

    @property
    def served(self) -> Served | None:
        """The models and levels in force; None: there are none yet."""
        return self._epoch.served

    @property
    def in_burst(self) -> bool:
        """Does every request run in full now?"""
        return self.now < self._epoch.burst_until

    @property
    def n_audits(self) -> int:
        """Audits of this epoch."""
        return 0 if self._epoch.runs is None else len(self._epoch.runs)

    @property
    def share(self) -> float:
        """Share of the next requests to audit: known before they come, whatever is in them."""
        if self.in_burst:
            return 1.0
        thin = self.n_audits < self.plan.ramp_audits
        return max(self.plan.share, self.plan.ramp_share) if thin else self.plan.share

    # ---- what happens --------------------------------------------------------------------------

    def take(self, runs: AuditRuns) -> None:
        """Take new audits in."""
        if not len(runs):
            return
        epoch = self._epoch
        epoch.runs = runs if epoch.runs is None else join([epoch.runs, runs])
        if epoch.served is not None:
            new = _judge(epoch.served, runs)
            old = epoch.judged
            epoch.judged = new if old is None else _Judged(
                np.concatenate([old.z, new.z]), np.concatenate([old.d, new.d]), np.concatenate([old.saved, new.saved])
            )  # fmt: skip

    def notice(self, signals: Floats) -> tuple[Change, ...]:
        """Look at what all traffic showed: the early signals of the requests of one batch, shape (n, F)."""
        if not self.plan.watches_signals:
            return ()
        if self._cusum is None:
            self._cusum = Cusum(signals.shape[1])
        return self.reset("signals of all traffic drifted", keep=KEPT_BEFORE) if self._cusum.add(signals) else ()

    def reset(self, reason: str, *, keep: int = 0) -> tuple[Change, ...]:
        """Begin a new epoch: level 0, a burst of full runs, of old audits those of the last `keep` requests."""
        runs = self._epoch.runs
        kept = None if runs is None or not keep else runs.take(np.flatnonzero(runs.at >= self.now - keep))
        until = self.now + self.plan.burst
        self._epoch = _Epoch(burst_until=until, refit_at=until, runs=kept)
        self._cusum, self.level, self.n_epochs = None, 0, self.n_epochs + 1
        return (self._change("alarm", reason), self._change("epoch", f"full runs until {until:g}"))

    def tick(self, now: float) -> tuple[Change, ...]:
        """Look at the evidence: refit if it is time, certify, watch. Returns what changed."""
        self.now = now
        epoch, changes = self._epoch, list[Change]()
        if self.in_burst or epoch.runs is None:
            return ()
        alarm = self._watch()
        if alarm:
            return self.reset(alarm)
        self._book()  # before a fit: these audits met levels of the version until now
        if now >= epoch.refit_at:
            epoch.refit_at = now + self.plan.refit_every
            changes += self._refit()
        if epoch.judged is not None:
            changes += self._certify(epoch.judged)
        return tuple(changes)

    # ---- inside --------------------------------------------------------------------------------

    def _book(self) -> None:
        """In budgeted mode, account for the audits since the last look."""
        epoch, plan = self._epoch, self.plan
        if plan.promise == "budgeted" and epoch.runs is not None:
            d = None if epoch.judged is None else epoch.judged.d
            epoch.spender.book(
                epoch.runs, d, epoch.served, level=self.level, max_em_drop=plan.max_em_drop, now=self.now,
                timeout=plan.label_timeout, label_free=plan.label_free,
            )  # fmt: skip

    def _change(self, kind: ChangeKind, reason: str) -> Change:
        return Change(kind=kind, at=self.now, level=self.level, reason=reason, version=self.version)

    def _refit(self) -> list[Change]:
        """Fit anew; the new version serves if its certified level saves at least as much on the window."""
        epoch, plan = self._epoch, self.plan
        assert epoch.runs is not None
        if len(epoch.runs) > 2 * MOST_AUDITS:
            self._forget(MOST_AUDITS)
        served = self.fit(
            epoch.runs, self.learner, now=self.now, label_free=plan.label_free, split=plan.split,
            n_levels=plan.n_levels, cost_exponent=plan.cost_exponent,
        )  # fmt: skip
        if served is None:
            return []
        judged = _judge(served, epoch.runs)
        if epoch.judged is not None and self._saving(judged) < self._saving(epoch.judged):
            return []
        epoch.served, epoch.judged, epoch.ratio = served, judged, None
        self.version += 1
        return [self._change("refit", f"fitted on {len(epoch.runs):,} audits")]

    def _forget(self, n_kept: int) -> None:
        """Let go of audits that neither a fit nor a window will read again."""
        epoch = self._epoch
        assert epoch.runs is not None
        n_gone = len(epoch.runs) - n_kept
        epoch.runs = epoch.runs.take(np.arange(n_gone, len(epoch.runs)))
        if epoch.judged is not None:
            old = epoch.judged
            epoch.judged = _Judged(old.z[n_gone:], old.d[n_gone:], old.saved[n_gone:])
        epoch.n_seen, epoch.n_matured = max(0, epoch.n_seen - n_gone), max(0, epoch.n_matured - n_gone)
        epoch.spender.let_go(n_gone)

    def _window(self, judged: _Judged) -> tuple[Small, Bools]:
        """Outcomes of the audits that certify now, shape (n, M), and which they are, shape (N,)."""
        runs, plan = self._epoch.runs, self.plan
        assert runs is not None
        counted = matured(judged.z, judged.d, runs, self.now, plan)
        enters = counted.enters if plan.split == "folds" else counted.enters & (runs.fold % 2 == 1)
        inside = certifying(enters, runs, self.now, plan)
        return counted.z[inside], inside

    def _certified(self, judged: _Judged) -> tuple[int, Floats, Bools]:
        z, inside = self._window(judged)
        wealth = log_wealth(count(z), max_em_drop=self.plan.max_em_drop)
        return certified_level(wealth, delta=self.plan.delta), wealth, inside

    def _saving(self, judged: _Judged) -> float:
        """Tokens that the certified level saves on its window."""
        level, _, inside = self._certified(judged)
        return float(judged.saved[inside, level].sum())

    def _certify(self, judged: _Judged) -> list[Change]:
        before = self.level
        self.level, self.log_e, inside = self._certified(judged)
        epoch = self._epoch
        if self.plan.promise == "budgeted":
            counts = count(self._window(judged)[0])
            self.level = epoch.spender.place(counts, certified=self.level, max_em_drop=self.plan.max_em_drop)
        if self.level and epoch.sr is None:
            epoch.n_certified = len(judged.z)
        if epoch.ratio is None or epoch.ratio_level != self.level:
            epoch.ratio, epoch.ratio_level = None, self.level
            if self.level and int(inside.sum()) >= MIN_RATE_AUDITS:
                epoch.ratio = DisagreementRatio(float(judged.d[inside, self.level].mean()))
        if self.level == before:
            return []
        return [self._change("certified", f"level {self.level} of {len(self.log_e) - 1} on {int(inside.sum())} audits")]

    def _watch(self) -> str | None:
        """Feed the detectors what is new at the level in force; the alarm's reason, or None."""
        epoch, plan, level = self._epoch, self.plan, self.level
        judged, runs = epoch.judged, epoch.runs
        if not plan.watches_outcomes or judged is None or runs is None or not level:
            return None
        # A detector hears what is known: a loss that a label may still deny is none before its time is over, or a route
        # whose labels are late would be alarmed by disagreement alone. That has a detector of its own.
        at = [0, level]
        counted = matured(judged.z[:, at], judged.d[:, at], runs, self.now, plan, settled=0)
        if epoch.sr is None:  # what the level was certified on is no news about it
            epoch.n_seen = epoch.n_matured = epoch.n_certified
            epoch.sr = ShiryaevRoberts(plan.max_em_drop)
        ripe = np.flatnonzero(counted.enters)
        for value in counted.z[ripe[ripe >= epoch.n_matured], 1].tolist():
            if epoch.sr.add(value):
                return "audits lose more than the budget"
        epoch.n_matured = max(epoch.n_matured, int(ripe[-1]) + 1 if len(ripe) else 0)
        for disagrees in judged.d[epoch.n_seen :, level].tolist():
            if epoch.ratio is not None and epoch.ratio.add(disagrees):
                return "audits disagree more often than when the level was certified"
        epoch.n_seen = len(runs)
        return None


def matured(z: Small, d: Bools, runs: AuditRuns, now: float, plan: Plan, *, settled: int = SETTLED) -> Matured:
    """Which audits count already, and as what at each level: the rule of `assurance.maturity`.

    z, d     at M levels, level 0 first, shape (N, M)
    settled  as `mature` has it; 0: by age alone
    """
    audits = Audits(z=z, disagrees=d, labelled=runs.label_at <= now, age=now - runs.at, abandoned=runs.abandoned)
    return mature(audits, timeout=plan.label_timeout, label_free=plan.label_free, settled=settled)


def certifying(enters: Bools, runs: AuditRuns, now: float, plan: Plan) -> Bools:
    """Of the audits that count those that the certificate looks back on, shape (N,)."""
    if plan.window is None:
        return enters
    age = now - runs.at
    return newest(enters, age, size=plan.window) | (enters & (age < plan.span))


def _judge(served: Served, runs: AuditRuns) -> _Judged:
    rows = served.rows(runs)
    return _Judged(z=runs.z[rows], d=runs.d[rows], saved=runs.full[:, None] - runs.cost[rows])

