"""Certifies levels over time, from audits: the certified level, bursts of full runs, alarms and epochs.

One state machine for live traffic (`control`), recorded traces (`replay.online`) and simulations. It gets time and
evidence from its caller and reads nothing by itself. Without enough evidence the level is 0, which never stops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass, field, replace
from math import inf
from typing import Final

import numpy as np

from suffice.arrays import Bools, Small
from suffice.assurance.certify import RAMP, Window, Windows, count_outcomes
from suffice.assurance.drift import share_in_doubt
from suffice.assurance.exposure import ON_ALL, Exposure
from suffice.assurance.thoughts import idle_share
from suffice.certification.certificate import Swings
from suffice.certification.certifier_epoch import CertifierEpoch
from suffice.certification.claims import certify_audits, improves
from suffice.certification.evidence import CertifierDecision, Change, ChangeKind, Evidence
from suffice.certification.level_watch import LevelWatch, mature_audits
from suffice.certification.plan import FIT_PART, Plan
from suffice.learn.audits import NO_AUDITS, AuditRuns
from suffice.learn.version import MOST_AUDITS, FoldedModels, Learner, fit_served

KEPT_BEFORE: Final = 300  # requests before an alarm on signals whose audits are kept, since they are after the change
SIGNALS_DRIFTED: Final = "signals of all traffic drifted"


@dataclass(slots=True, eq=False)
class Certifier:
    """The certificates of one stream of requests.

    starting a version that is certified from the first audit on, until a fitted one saves more; None: there is none
    first    number of the first request; None: the caller records the share of each request
    earlier  windows of requests by audit share, which go on; None: one begins at request 0
    began    the request at which the epoch begins, `again` if it is not the first
    idle     a level passes, and none saves anything
    latest   the evidence of the last look
    """

    plan: Plan
    learner: Learner
    fit: Callable[..., FoldedModels | None] = fit_served  # None: the version stays
    starting: FoldedModels | None = None
    first: float | None = 0.0
    earlier: InitVar[Windows | None] = None
    began: InitVar[float] = 0.0
    again: InitVar[bool] = False
    version: int = field(init=False, default=0)  # fits so far
    n_epochs: int = field(init=False, default=0)
    latest: Evidence = field(init=False)
    idle: bool = field(init=False, default=False)
    epoch: CertifierEpoch = field(init=False)

    def __post_init__(self, earlier: Windows | None, began: float, again: bool) -> None:
        ramps = self.plan.ramps
        start, self.latest = began if ramps else self.plan.warm_up, Evidence(at=began)
        windows = earlier or Windows([Window(start=0.0, share=RAMP if ramps else 1.0)])
        if ramps and not windows.known:
            windows.known.append(Window(start=began + 1, share=RAMP))
        swings = Swings(began if again else -inf)
        self.epoch = CertifierEpoch(burst_until=start, refit_at=start, windows=windows, swings=swings)
        if self.starting is not None:
            self.epoch.adopt(self.starting)
        if not windows.known:
            windows.note(began + 1, self.share)

    @property
    def level(self) -> int:
        """Active until the next look; 0 never stops."""
        return self.epoch.level

    @property
    def served(self) -> FoldedModels | None:
        return self.epoch.served

    @property
    def now(self) -> float:
        return self.latest.at

    @property
    def in_burst(self) -> bool:
        return self.now < self.epoch.burst_until

    @property
    def share(self) -> float:
        """Share of the next requests to audit, independent of their content."""
        usual = self.window_share
        return share_in_doubt(usual, self.plan.most_share) if self.doubts(forecast=self.latest.in_doubt) else usual

    @property
    def window_share(self) -> float:
        """The share without doubt, which depends on outcomes: its audits are weighted, and begin no window."""
        if self.costs_more:  # an audit is not free: it is probed
            return min(self.plan.share, idle_share(self.latest.live_cost.audit_overhead))
        if self.in_burst or (not self.level and (self.plan.free_audits or self.plan.is_learning(self.epoch.n_audits))):
            return 1.0
        return self.exposure.audit_share(self.plan.share)

    @property
    def exposure(self) -> Exposure:
        """The share of the requests on which the active level acts."""
        certificate = self.epoch.certificate
        return certificate.exposure if certificate is not None and self.level else ON_ALL

    @property
    def costs_more(self) -> bool:
        """Whether nothing acts because it saves nothing, net."""
        return self.idle or bool(self.latest.live_cost.objection)

    def doubts(self, *, forecast: bool) -> bool:
        """Whether more audits are asked for, by a forecast or by the watch over the active level."""
        watch = self.epoch.watch
        return self.level > 0 and not self.costs_more and (forecast or (watch is not None and watch.in_doubt))

    @property
    def n_levels(self) -> int:
        """Levels of the version, level 0 included; of the plan while there is no version."""
        return self.plan.n_levels if self.served is None else self.served.n_levels

    def outcomes(self) -> tuple[Bools, Small] | None:
        """Which audits of this epoch are old enough to count, by age alone, and the loss of each at each level."""
        epoch = self.epoch
        if epoch.served is None:
            return None
        losses = epoch.runs.losses(epoch.rows, now=self.now, label_free=self.plan.label_free)
        return mature_audits(epoch.runs, self.latest, self.plan), losses

    def add_audits(self, runs: AuditRuns) -> None:
        if len(runs):
            self.epoch.add(runs)

    def adopt(self, served: FoldedModels, runs: AuditRuns) -> None:
        """Serve and certify another version; `runs` are the audits of this epoch with its features."""
        self.epoch.runs = runs
        self.epoch.adopt(served)
        self.version += 1

    def reset(self, reason: str, *, keep: int = 0, by_audits: bool = False) -> tuple[Change, ...]:
        """Begin a new epoch at level 0 with a burst of full runs; keep the audits of the last `keep` requests."""
        part = self.plan.restart_share(self.now - self.epoch.began) if by_audits else 1.0
        runs = self.epoch.runs
        kept = runs.take(np.flatnonzero(runs.at >= self.now - keep)) if keep else NO_AUDITS
        plan = self.plan
        until = self.now + (0 if plan.ramps else plan.burst)
        first = Window(start=self.now, share=RAMP if plan.ramps else 1.0 if plan.burst else plan.share)
        self.epoch = CertifierEpoch(
            burst_until=until,
            refit_at=until,
            windows=Windows([first]),
            swings=Swings(self.now),
            began=self.now,
            delta_share=part,
            runs=kept,
        )
        if self.starting is not None:
            self.epoch.adopt(self.starting)
        self.n_epochs += 1
        then = "full runs until a level is proved" if plan.ramps else f"full runs until {until:g}"
        return (self._change("alarm", reason), self._change("epoch", then))

    def look(self, evidence: Evidence) -> CertifierDecision:
        """Weigh the audits so far, and decide the level until the next look."""
        self.latest = evidence
        changes = list[Change]()
        for batch in evidence.signals if self.plan.watches_signals else ():
            if self.epoch.notices_drift(batch):
                changes += self.reset(SIGNALS_DRIFTED, keep=KEPT_BEFORE)
        epoch = self.epoch
        if evidence.ends_burst:
            epoch.burst_until = epoch.refit_at = self.now
        if evidence.confidence is not None:
            self.plan = replace(self.plan, confidence=evidence.confidence)
        if evidence.label_timeout is not None:
            self.plan = replace(self.plan, label_timeout=evidence.label_timeout)
        if not self.in_burst and len(epoch.runs):
            changes += self._weigh()
        return CertifierDecision(self.level, tuple(changes))

    def _weigh(self) -> Sequence[Change]:
        epoch = self.epoch
        plan = self.plan
        changes = list[Change]()
        epoch.take_charge(epoch.served, self.latest)
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
        learned = epoch.n_audits - epoch.n_fitted >= FIT_PART * plan.burst
        if learned if plan.is_learning(epoch.n_audits) else self.now >= epoch.refit_at:
            epoch.refit_at, epoch.n_fitted = self.now + plan.refit_every, epoch.n_audits
            changes += self._refit()
        if epoch.served is not None:
            changes += self._certify()
        if self.first is not None:  # later requests are audited at the new share
            epoch.windows.note(self.now + self.first, self.window_share)
        return changes

    def _change(self, kind: ChangeKind, reason: str) -> Change:
        return Change(kind=kind, at=self.now, level=self.level, reason=reason, version=self.version)

    def _refit(self) -> list[Change]:
        epoch, plan = self.epoch, self.plan
        epoch.drop_old(max(MOST_AUDITS, 2 * plan.window))  # also while a rollout's version serves, maybe for months
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
        if epoch.served is not None and not improves(epoch, ends, self.latest, plan):
            return []
        if epoch.served is None:
            epoch.take_charge(served, self.latest)
        epoch.served, epoch.ends = served, ends
        self.version += 1
        score = ", by the value of stopping" if served.target == "value" else ""
        return [self._change("refit", f"fitted on {epoch.n_audits:,} audits{score}")]

    def _certify(self) -> list[Change]:
        epoch, before = self.epoch, (self.level, self.exposure)
        certificate = epoch.certificate = certify_audits(epoch, epoch.ends, self.latest, self.plan)
        level, inside = certificate.allowed, certificate.inside
        if self.plan.promise == "budgeted":
            counts = count_outcomes(certificate.z)
            epoch.level = epoch.spender.place(counts, certified=level, max_em_drop=self.plan.max_em_drop)
        elif self.plan.is_learning(self.epoch.n_audits):
            epoch.level = epoch.swings.level = level
        else:
            epoch.level = epoch.swings.moderate(level, self.now)
        if self.latest.cap is not None:
            epoch.level = min(epoch.level, self.latest.cap)
        passing = epoch.level
        rows, cost = epoch.rows[:, : passing + 1], self.latest.live_cost
        share = certificate.exposure.audit_share(self.plan.share)
        epoch.level = cost.paying_level(epoch.runs, rows, np.flatnonzero(inside), share)
        self.idle = epoch.level < passing and not epoch.level
        if epoch.level and epoch.watch is None and inside.any():
            certifying = epoch.runs.without_orders().take(np.flatnonzero(inside))
            epoch.watch = LevelWatch(certifying, since=self.now, n_seen=epoch.n_audits)
        if epoch.watch is not None and epoch.served is not None:
            epoch.watch.rebase(epoch.served, epoch.level, self.exposure, self.latest, self.plan)
        if (epoch.level, self.exposure) == before:
            return []
        n = len(certificate.z)
        part = f", on {100 * self.exposure.share:g} % of the requests" if self.exposure.share < 1 else ""
        return [self._change("certified", f"level {epoch.level} of {len(epoch.log_e) - 1} on {n} audits{part}")]
