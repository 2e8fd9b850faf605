"""Certifies levels over time, from audits: the certified level, bursts of full runs, alarms and epochs.

One state machine for live traffic (`control`), recorded traces (`replay.online`) and simulations. It gets time and
evidence from its caller and reads nothing by itself. Without enough evidence the level is 0, which never stops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass, field, replace
from math import floor, inf
from typing import Final

import numpy as np

from suffice.arrays import Bools, Floats, Ints, Small
from suffice.assurance.certify import (
    Window,
    Windows,
    certified_level,
    count_outcomes,
    e_value_of,
    missing_audits,
    weighted_log_wealth,
)
from suffice.assurance.drift import Cusum, share_in_doubt
from suffice.assurance.labels import find_first_disagreements
from suffice.assurance.thoughts import idle_share
from suffice.learn.audits import NO_AUDITS, AuditRuns, LevelEnds, mean_over_orders, select_groups
from suffice.learn.certificate import Certificate, Swings, best_claim, hold_level
from suffice.learn.certifier_epoch import CertifierEpoch
from suffice.learn.evidence import CertifierDecision, Change, ChangeKind, Evidence
from suffice.learn.level_watch import LevelWatch, mature_audits
from suffice.learn.plan import Plan
from suffice.learn.version import MOST_AUDITS, FoldedModels, Learner, fit_served
from suffice.types import BudgetAccount, EvidenceSummary, Publication

KEPT_BEFORE: Final = 300  # requests before an alarm on signals whose audits are kept, since they are after the change
SIGNALS_DRIFTED: Final = "signals of all traffic drifted"
IDLE: Final = "a level passes, and none saves anything once probes and hand-overs are paid"


@dataclass(slots=True, eq=False)
class Certifier:
    """The certificates of one stream of requests.

    first    number of the first request; None: the caller records the share of each request
    earlier  windows of requests by audit share, which go on; None: one begins at request 0
    began    the request at which the epoch begins, `again` if it is not the first
    charge   part of the budget that is spent elsewhere; or one for each level, shape (M,)
    idle     a level passes, and none saves anything
    latest   the evidence of the last look
    """

    plan: Plan
    learner: Learner
    fit: Callable[..., FoldedModels | None] = fit_served  # None: the version stays
    first: float | None = 0.0
    earlier: InitVar[Windows | None] = None
    began: InitVar[float] = 0.0
    again: InitVar[bool] = False
    level: int = field(init=False, default=0)  # active; 0 never stops
    version: int = field(init=False, default=0)  # fits so far
    n_epochs: int = field(init=False, default=0)
    latest: Evidence = field(init=False)
    charge: float | Floats = field(init=False, default=0.0)
    idle: bool = field(init=False, default=False)
    certificate: Certificate | None = field(init=False, default=None)  # of the last look; None: no evidence
    _epoch: CertifierEpoch = field(init=False)
    _swings: Swings = field(init=False)
    _cusum: Cusum | None = field(init=False, default=None)

    def __post_init__(self, earlier: Windows | None, began: float, again: bool) -> None:
        start, self.latest = self.plan.warm_up, Evidence(at=began)
        windows = earlier or Windows([Window(start=0.0, share=1.0)])
        self._epoch = CertifierEpoch(burst_until=start, refit_at=start, windows=windows)
        self._swings = Swings(began if again else -inf)
        if not windows.known:
            windows.note(began + 1, self.share)

    # ---- read by requests ----------------------------------------------------------------------

    @property
    def served(self) -> FoldedModels | None:
        return self._epoch.served

    @property
    def now(self) -> float:
        return self.latest.at

    @property
    def burst_until(self) -> float:
        return self._epoch.burst_until

    @property
    def in_burst(self) -> bool:
        return self.now < self.burst_until

    @property
    def share(self) -> float:
        """Share of the next requests to audit, independent of their content."""
        usual = self.window_share
        return share_in_doubt(usual, self.plan.most_share) if self.in_doubt else usual

    @property
    def window_share(self) -> float:
        """The share without doubt, which depends on outcomes: its audits are weighted, and begin no window."""
        if self.costs_more:  # an audit is not free: it is probed
            return min(self.plan.share, idle_share(self.latest.live_cost.audit_overhead))
        if self.in_burst or (self.plan.free_audits and not self.level):
            return 1.0
        return self.plan.share

    @property
    def costs_more(self) -> bool:
        """Whether nothing acts because it saves nothing, net."""
        return self.idle or bool(self.latest.live_cost.objection)

    @property
    def in_doubt(self) -> bool:
        return self.doubts(forecast=self.latest.in_doubt)

    def doubts(self, *, forecast: bool) -> bool:
        """Whether more audits are asked for, by a forecast or by the watch over the active level."""
        watch = self._epoch.watch
        return self.level > 0 and not self.costs_more and (forecast or (watch is not None and watch.in_doubt))

    # ---- read by the control loop --------------------------------------------------------------

    @property
    def n_audits(self) -> int:
        return len(self._epoch.runs)

    @property
    def n_levels(self) -> int:
        """Levels of the version, level 0 included; of the plan while there is no version."""
        return self.plan.n_levels if self.served is None else self.served.n_levels

    @property
    def windows(self) -> Windows:
        return self._epoch.windows

    @property
    def log_e(self) -> Floats:
        return np.zeros(1) if self.certificate is None else self.certificate.log_e

    @property
    def floor(self) -> int:
        """The highest certified level; in certified mode it is the one that passes."""
        return self.level if self.plan.promise == "certified" else self._epoch.spender.floor

    @property
    def spending(self) -> BudgetAccount | None:
        return None if self.plan.promise == "certified" else self._epoch.spender.account

    def budget_at(self, level: int) -> float:
        """The budget that a level is tested against, net of charges."""
        charge = np.broadcast_to(np.asarray(self.charge), (self.n_levels,))
        return float(self.plan.max_em_drop - charge[level])

    def ends(self, number: int, served: FoldedModels | None) -> Ints | None:
        """The checkpoint, from 0, at which each level ends an audit, shape (M,); None: the audit is gone."""
        if served is None or number >= self.n_audits:
            return None
        return np.asarray(served.rows(self._epoch.runs.take(np.array([number])))[0])

    def first_disagreements(self) -> Ints:
        """The safest eligible level at which each audit disagrees, shape (N,); 0: none. Only labels of these matter."""
        if self.served is None:
            return np.zeros(self.n_audits, dtype=np.int64)
        passing = 0 if self.certificate is None else self.certificate.level  # above the level while a cap holds it
        return find_first_disagreements(self._epoch.runs.d[self._epoch.rows], deployed=max(self.level, passing))

    def disagreeing(self) -> Bools:
        """Whether each audit disagrees at an eligible level in some order of its samples, shape (N,)."""
        if self.served is None:
            return np.zeros(self.n_audits, dtype=np.bool_)
        runs, passing = self._epoch.runs, 0 if self.certificate is None else self.certificate.level
        disagrees = self.first_disagreements() > 0
        if runs.orders is not None:
            differs = runs.orders.runs.d[self._epoch.ends.order_rows]
            others = find_first_disagreements(differs, deployed=max(self.level, passing)) > 0
            disagrees |= runs.any_other_order(others, np.arange(self.n_audits))
        return disagrees

    @property
    def n_orders(self) -> Ints:
        """Orders of samples that each audit counts in, shape (N,)."""
        orders = self._epoch.runs.orders
        return np.ones(self.n_audits, np.int64) if orders is None else 1 + np.diff(orders.starts)

    def counted_audits(self) -> tuple[AuditRuns, Bools] | None:
        """The n returned audits of the last certificate, and where each disagrees, (n, M); None: there is none."""
        if self.certificate is None:
            return None
        inside, runs = np.flatnonzero(self.certificate.inside), self._epoch.runs
        return runs.without_orders().take(inside), runs.d[self._epoch.rows[inside]]

    def outcomes(self) -> tuple[Bools, Small] | None:
        """Which audits of this epoch are old enough to count, by age alone, and the loss of each at each level."""
        epoch = self._epoch
        if epoch.served is None:
            return None
        losses = epoch.runs.losses(epoch.rows, now=self.now, label_free=self.plan.label_free)
        return mature_audits(epoch.runs, self.latest, self.plan), losses

    def replayed_costs(self, first: int) -> tuple[Floats, Bools, Floats] | None:
        """Tokens at each level and whether it stops, (n, M), and full runs' tokens, (n,), of audits from `first` on."""
        if self.served is None or first >= self.n_audits:
            return None
        runs, rows = self._epoch.runs, self._epoch.rows[first:]
        return runs.cost[rows], rows < runs.last[first:, np.newaxis], runs.full[first:]

    def stops(self, level: int) -> tuple[Ints, Ints]:
        """The numbers of the last certificate's audits, and the step, from 0, after which it stops each; -1: none."""
        if self.certificate is None:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        runs, inside = self._epoch.runs, np.flatnonzero(self.certificate.inside)
        rows = self._epoch.rows[inside, level]
        return inside, np.where(rows < runs.last[inside], rows - runs.starts[inside], -1)

    def saving(self, shares: Floats) -> float | None:
        """The share of all requests' tokens that is expected to be saved, net; None: unknown.

        shares  P(a request is served at each level), for each of the last certificate's audits, shape (n, M)
        """
        if self.certificate is None:
            return None
        runs, inside, cost = self._epoch.runs, np.flatnonzero(self.certificate.inside), self.latest.live_cost
        saved = float((shares * cost.saved(runs, self._epoch.rows, inside)).sum())
        return cost.of_all(saved, float(runs.full[inside].sum()), self.share)

    def evidence(self, *, most: int | None = None) -> EvidenceSummary:
        """The evidence for the level that passes, or for `most` where no higher one is allowed; without a saving."""
        plan, runs, certificate = self.plan, self._epoch.runs, self.certificate
        if certificate is None:
            return EvidenceSummary(n_audits=self.n_audits, max_em_drop=plan.max_em_drop, confidence=plan.confidence)
        level = self.level if most is None else min(self.level, most)
        at, window = certificate.z[:, level], certificate.window
        stops = self._epoch.rows[certificate.inside, level]
        n_missing = None
        if level == self.level != self.latest.cap and level + 1 < certificate.z.shape[1]:
            budget = self.budget_at(level + 1)
            n_missing = missing_audits(certificate.counted, level + 1, max_em_drop=budget, delta=plan.delta)
        return EvidenceSummary(
            n_audits=len(at),
            n_gained=int((at < 0).sum()),
            n_lost=int((at > 0).sum()),
            n_pending=certificate.n_pending,
            n_disagreeing=int(runs.d[stops].sum()),
            e_value=e_value_of(float(self.log_e[level])) if level else None,
            n_missing=n_missing,
            max_em_drop=self.budget_at(max(1, level)),
            confidence=plan.confidence,
            window_start=None if window is None else window.start,
            window_end=None if window is None else float(min(window.end, floor(certificate.until) + 1)),
            window_share=None if window is None else window.share,
        )

    def reason(
        self,
        changes: Sequence[Change],
        before: Publication | None,
        *,
        level: int,
        most: int | None,
        fit: str,
    ) -> str:
        """Explain why a level is published; `most` is the highest level that ratings allow, None: no limit."""
        reasons = [change.reason for change in changes] + [IDLE] * self.idle
        if most is not None and most < self.level:
            reasons.append(f"ratings allow level {most} at most")
        if reasons:
            return "; ".join(reasons)
        if before is not None and before.level == level:
            more = self.share > before.share
            return "audits look worse than before: more are drawn" if more else "audits look as they did before"
        if level:
            return f"level {level} passes on {self.n_audits} audits"
        return (
            f"no level passes on {self.n_audits} audits" if fit else f"{self.n_audits} audits are too few to learn from"
        )

    # ---- events --------------------------------------------------------------------------------

    def add_audits(self, runs: AuditRuns) -> None:
        if len(runs):
            self._epoch.add(runs)

    def amend(self, which: Ints, runs: AuditRuns) -> None:
        """Judge audits again with later labels; `which` are their numbers in this epoch, `runs` their new rows."""
        known = self._epoch.runs
        _, rows = known.rows_of(which)
        known.z[rows], known.label_at[which] = runs.z, runs.label_at
        if known.orders is not None and runs.orders is not None:
            _, orders = select_groups(known.orders.starts, which)
            _, rows = known.orders.runs.rows_of(orders)
            known.orders.runs.z[rows] = runs.orders.runs.z

    def adopt(self, served: FoldedModels, runs: AuditRuns) -> None:
        """Serve and certify another version; `runs` are the audits of this epoch with its features."""
        self._epoch.served, self._epoch.runs, self._epoch.ends = served, runs, served.ends(runs)
        self.version += 1

    def reset(self, reason: str, *, keep: int = 0, by_audits: bool = False) -> tuple[Change, ...]:
        """Begin a new epoch at level 0 with a burst of full runs; keep the audits of the last `keep` requests."""
        part = self.plan.restart_share(self.now - self._epoch.began) if by_audits else 1.0
        runs = self._epoch.runs
        kept = runs.take(np.flatnonzero(runs.at >= self.now - keep)) if keep else NO_AUDITS
        until = self.now + self.plan.burst
        first = Window(start=self.now, share=1.0 if self.plan.burst else self.plan.share)
        self._epoch = CertifierEpoch(
            burst_until=until, refit_at=until, windows=Windows([first]), began=self.now, delta_share=part, runs=kept
        )
        self._cusum, self.certificate, self.level, self.n_epochs = None, None, 0, self.n_epochs + 1
        self._swings = Swings(self.now)
        return (self._change("alarm", reason), self._change("epoch", f"full runs until {until:g}"))

    def look(self, evidence: Evidence) -> CertifierDecision:
        """Weigh the audits so far, and decide the level until the next look."""
        self.latest = evidence
        changes = self._check_signals(evidence.signals)
        epoch = self._epoch
        if evidence.ends_burst:
            epoch.burst_until = epoch.refit_at = self.now
        if evidence.confidence is not None:
            self.plan = replace(self.plan, confidence=evidence.confidence)
        if evidence.label_timeout is not None:
            self.plan = replace(self.plan, label_timeout=evidence.label_timeout)
        if not self.in_burst and len(epoch.runs):
            changes += self._weigh()
        return CertifierDecision(self.level, tuple(changes))

    def _check_signals(self, batches: Sequence[Floats]) -> list[Change]:
        changes = list[Change]()
        for batch in batches if self.plan.watches_signals else ():
            if self._cusum is None:
                self._cusum = Cusum(batch.shape[1])
            if self._cusum.add(batch):
                changes += self.reset(SIGNALS_DRIFTED, keep=KEPT_BEFORE)
        return changes

    def _weigh(self) -> Sequence[Change]:
        epoch, plan, changes = self._epoch, self.plan, list[Change]()
        self._take_charge(epoch.served)
        if epoch.watch is not None:
            alarm = epoch.watch.find_alarm(epoch.runs, epoch.rows, self.level, self.latest, plan)
            if alarm is not None:
                return self.reset(alarm, by_audits=True)
        if plan.promise == "budgeted":  # before a refit: these audits ran under the levels of the previous version
            epoch.spender.book(
                epoch.runs,
                epoch.rows,
                level=self.level,
                max_em_drop=plan.max_em_drop,
                now=self.now,
                timeout=plan.label_age(self.latest.run_timeout),
                label_free=plan.label_free,
            )
        if self.now >= epoch.refit_at:
            epoch.refit_at = self.now + plan.refit_every
            changes += self._refit()
        if epoch.served is not None:
            changes += self._certify()
        if self.first is not None:  # later requests are audited at the new share
            self.windows.note(self.now + self.first, self.window_share)
        return changes

    # ---- inside --------------------------------------------------------------------------------

    def _take_charge(self, served: FoldedModels | None) -> None:
        if served is not None and self.latest.charge is not None:
            self.charge = self.latest.charge(served)

    def _change(self, kind: ChangeKind, reason: str) -> Change:
        return Change(kind=kind, at=self.now, level=self.level, reason=reason, version=self.version)

    def _refit(self) -> list[Change]:
        epoch, plan = self._epoch, self.plan
        self._drop_old_audits()  # also while a rollout's version serves, maybe for months
        served = self.fit(
            epoch.runs,
            self.learner,
            now=self.now,
            max_em_drop=plan.max_em_drop,
            label_free=plan.label_free,
            split=plan.split,
            n_levels=plan.n_levels,
            cost_exponent=plan.cost_exponent,
        )
        if served is None:
            return []
        ends = served.ends(epoch.runs)
        if epoch.served is not None and not self._improves(ends):
            return []
        if epoch.served is None:
            self._take_charge(served)
        epoch.served, epoch.ends = served, ends
        self.version += 1
        score = ", by the value of stopping" if served.target == "value" else ""
        return [self._change("refit", f"fitted on {self.n_audits:,} audits{score}")]

    def _drop_old_audits(self) -> None:
        certificate, most = self.certificate, max(MOST_AUDITS, 2 * self.plan.window)
        if self.n_audits <= 2 * most:
            return
        n_dropped = self.n_audits - most
        if certificate is not None and certificate.inside.any():
            n_dropped = min(n_dropped, int(np.flatnonzero(certificate.inside)[0]))
        self._epoch.drop_oldest(n_dropped)

    def _certificate(self, ends: LevelEnds) -> Certificate:
        """The better of two claims: about all requests so far, or about those old enough to have returned.

        The test holds at all times at once, so both are valid. Their one window is chosen by draws and times alone.
        `ends` are where the levels of a version end the audits.
        """
        runs, wanted, age = self._epoch.runs, self.plan.window, self.latest.run_timeout
        if not self.plan.label_free:
            age = self.plan.label_age(age)
        at = np.concatenate([runs.at, self.latest.pending.at])
        share = np.concatenate([runs.share, self.latest.pending.share])
        old, window = np.zeros(len(at), dtype=bool), None
        for least_age in (age, self.latest.run_timeout):  # with slow labels, too few audits may reach that age
            if window is None or window.n_audits(at[old], share[old]) < wanted:
                old = at <= self.now - least_age
                window = self._epoch.windows.chosen(at[old], share[old], wanted=wanted)
        claims = [self._certified_until(ends, until, window) for until in sorted({self.now - age, self.now})]
        best, last = best_claim(claims), self.certificate
        if last is None or best.level >= self._swings.level or self.plan.promise != "certified":
            return best
        # A later audit does not take back what was true of the requests up to the last pass.
        return hold_level(self._swings.level, self._certified_until(ends, last.until, best.window), claims) or best

    def _certified_until(self, ends: LevelEnds, until: float, window: Window | None) -> Certificate:
        """Certify from the audits of a window that began by `until`; those that have not returned count as lost."""
        plan, runs, pending = self.plan, self._epoch.runs, self.latest.pending
        inside, late = np.zeros(len(runs), dtype=bool), np.zeros(len(pending.at), dtype=bool)
        weight = np.zeros(0)
        if window is not None:
            inside, late = (runs.at <= until) & window.holds(runs.at), (pending.at <= until) & window.holds(pending.at)
            if plan.split == "half":
                inside &= runs.fold % 2 == 1
            weight = window.weights(np.concatenate([runs.share[inside], pending.share[late]]))
        which = np.flatnonzero(inside)
        z = runs.losses(ends.rows[which], which, now=self.now, label_free=plan.label_free)
        mean = mean_over_orders(
            runs, ends, which, weight[: len(which)], now=self.now, label_free=plan.label_free, delta=plan.delta
        )
        counted = z.astype(np.float64) if mean is None else mean
        lost = pending.lost(z.shape[1])[late]
        counted, z = np.concatenate([counted, lost]), np.concatenate([z, lost])
        wealth = weighted_log_wealth(counted, weight, max_em_drop=plan.max_em_drop - self.charge)
        return Certificate(
            level=certified_level(wealth, delta=plan.delta * self._epoch.delta_share),
            log_e=wealth,
            z=z,
            counted=counted,
            in_all_orders=mean is not None,
            weight=weight,
            inside=inside,
            window=window,
            until=until,
        )

    def _improves(self, ends: LevelEnds) -> bool:
        """Whether another version's certified level saves more, and does not lower the level again so soon."""
        ours = self._epoch.ends
        now, then = self._certificate(ours), self._certificate(ends)
        if self._swings.delays(then.allowed, self.now):
            return False
        saves = self._saved(ends.rows, then.inside, then.allowed) / max(1, then.inside.sum())
        return bool(saves > self._saved(ours.rows, now.inside, now.allowed) / max(1, now.inside.sum()))

    def _saved(self, rows: Ints, inside: Bools, level: int) -> float:
        """Tokens that a level saves on some audits, if they were live: net, and none at level 0."""
        rows, cost = rows[:, : level + 1], self.latest.live_cost
        return float(cost.saved(self._epoch.runs, rows, np.flatnonzero(inside))[:, level].sum())

    def _certify(self) -> list[Change]:
        epoch, before = self._epoch, self.level
        self.certificate = self._certificate(epoch.ends)
        level, inside = self.certificate.allowed, self.certificate.inside
        if self.plan.promise == "budgeted":
            counts = count_outcomes(self.certificate.z)
            self.level = epoch.spender.place(counts, certified=level, max_em_drop=self.plan.max_em_drop)
        else:
            self.level = self._swings.moderate(level, self.now)
        if self.latest.cap is not None:
            self.level = min(self.level, self.latest.cap)
        passing = self.level
        rows, cost = epoch.rows[:, : passing + 1], self.latest.live_cost
        self.level = cost.paying_level(epoch.runs, rows, np.flatnonzero(inside), self.plan.share)
        self.idle = self.level < passing and not self.level
        if self.level and epoch.watch is None and inside.any():
            certifying = epoch.runs.without_orders().take(np.flatnonzero(inside))
            epoch.watch = LevelWatch(certifying, since=self.now, n_seen=self.n_audits)
        if epoch.watch is not None and epoch.served is not None:
            epoch.watch.rebase(epoch.served, self.level, self.latest, self.plan)
        if self.level == before:
            return []
        n = len(self.certificate.z)
        return [self._change("certified", f"level {self.level} of {len(self.log_e) - 1} on {n} audits")]
