"""The audits of a certifier's epoch, with the version that they certify."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from suffice.arrays import Bools, Floats, Ints
from suffice.assurance.certify import Windows
from suffice.assurance.drift import Cusum
from suffice.assurance.labels import find_first_disagreements
from suffice.certification.certificate import Certificate, Spender, Swings
from suffice.certification.evidence import Evidence
from suffice.certification.level_watch import LevelWatch
from suffice.learn.audits import NO_AUDITS, AuditRuns, LevelEnds, concatenate_audits, select_groups
from suffice.learn.version import FoldedModels


@dataclass(slots=True, eq=False)
class CertifierEpoch:
    """What a certifier knows since its epoch began."""

    burst_until: float
    refit_at: float
    windows: Windows
    swings: Swings
    n_fitted: int = 0  # audits at the last refit
    began: float = 0.0
    delta_share: float = 1.0  # part of delta that its certificates may use, see `windows.restart_share`
    runs: AuditRuns = NO_AUDITS
    served: FoldedModels | None = None
    ends: LevelEnds = field(default_factory=lambda: LevelEnds(np.zeros((0, 1), np.int64), np.zeros((0, 1), np.int64)))
    level: int = 0  # active until the next look; 0 never stops
    charge: float | Floats = 0.0  # part of the budget that is spent elsewhere; or one for each level, shape (M,)
    certificate: Certificate | None = None  # of the last look; None: no evidence
    spender: Spender = field(default_factory=Spender)
    watch: LevelWatch | None = None  # since a level was first certified
    _cusum: Cusum | None = None  # over the signals of all traffic

    @property
    def rows(self) -> Ints:
        """Where each level ends each audit, shape (N, M)."""
        return self.ends.rows

    @property
    def n_audits(self) -> int:
        return len(self.runs)

    @property
    def log_e(self) -> Floats:
        return np.zeros(1) if self.certificate is None else self.certificate.log_e

    @property
    def has_certified(self) -> bool:
        """Whether a level has ever been certified in this epoch."""
        return self.watch is not None

    def renew_features(self, runs: AuditRuns, served: FoldedModels) -> None:
        """Read other features of the same audits, by the same version."""
        self.runs, self.served = runs, served
        if self.watch is not None:
            self.watch.renew_features(runs)

    def adopt(self, served: FoldedModels) -> None:
        self.served, self.ends = served, served.ends(self.runs)

    def add(self, runs: AuditRuns) -> None:
        if self.served is not None:
            orders, new = self.runs.orders, self.served.ends(runs)
            shift = self.runs.starts[-1], 0 if orders is None else orders.runs.starts[-1]
            self.ends = LevelEnds(
                np.concatenate([self.ends.rows, new.rows + shift[0]]),
                np.concatenate([self.ends.order_rows, new.order_rows + shift[1]]),
            )
        self.runs = concatenate_audits([self.runs, runs])

    def amend(self, which: Ints, runs: AuditRuns) -> None:
        """Judge audits again with later labels; `which` are their numbers in this epoch, `runs` their new rows."""
        known = self.runs
        _, rows = known.rows_of(which)
        known.z[rows], known.label_at[which] = runs.z, runs.label_at
        if known.orders is not None and runs.orders is not None:
            _, orders = select_groups(known.orders.starts, which)
            _, rows = known.orders.runs.rows_of(orders)
            known.orders.runs.z[rows] = runs.orders.runs.z

    def notices_drift(self, signals: Floats) -> bool:
        """Whether the signals of all traffic, a batch of shape (n, F) more, have drifted."""
        if self._cusum is None:
            self._cusum = Cusum(signals.shape[1])
        return self._cusum.add(signals)

    def take_charge(self, served: FoldedModels | None, evidence: Evidence) -> None:
        if served is not None and evidence.charge is not None:
            self.charge = evidence.charge(served)

    def drop_old(self, most: int) -> None:
        """Keep the latest audits, at least `most` and all of the certificate, once there are twice as many."""
        if self.n_audits <= 2 * most:
            return
        n = self.n_audits - most
        if self.certificate is not None and self.certificate.inside.any():
            n = min(n, int(np.flatnonzero(self.certificate.inside)[0]))
        if self.served is not None:
            rows, others = self.ends
            orders = self.runs.orders
            if orders is not None:
                gone = int(orders.starts[n])
                others = others[gone:] - orders.runs.starts[gone]
            self.ends = LevelEnds(rows[n:] - self.runs.starts[n], others)
        self.runs = self.runs.take(np.arange(n, len(self.runs)))
        if self.watch is not None:
            self.watch.drop_oldest(n)
        self.spender.drop_oldest(n)

    # ---- read by the control loop --------------------------------------------------------------

    def ends_of(self, number: int, served: FoldedModels | None) -> Ints | None:
        """The checkpoint, from 0, at which each level ends an audit, shape (M,); None: the audit is gone."""
        if served is None or number >= self.n_audits:
            return None
        return np.asarray(served.rows(self.runs.take(np.array([number])))[0])

    def first_disagreements(self) -> Ints:
        """The safest eligible level at which each audit disagrees, shape (N,); 0: none. Only labels of these matter."""
        if self.served is None:
            return np.zeros(self.n_audits, dtype=np.int64)
        return find_first_disagreements(self.runs.d[self.rows], deployed=self._passing)

    def disagreeing(self) -> Bools:
        """Whether each audit disagrees at an eligible level in some order of its samples, shape (N,)."""
        if self.served is None:
            return np.zeros(self.n_audits, dtype=np.bool_)
        disagrees, orders = self.first_disagreements() > 0, self.runs.orders
        if orders is not None:
            others = find_first_disagreements(orders.runs.d[self.ends.order_rows], deployed=self._passing) > 0
            disagrees |= self.runs.any_other_order(others, np.arange(self.n_audits))
        return disagrees

    @property
    def _passing(self) -> int:
        """The highest level that passes: above the level while a cap holds it."""
        return max(self.level, 0 if self.certificate is None else self.certificate.level)

    @property
    def n_orders(self) -> Ints:
        """Orders of samples that each audit counts in, shape (N,)."""
        orders = self.runs.orders
        return np.ones(self.n_audits, np.int64) if orders is None else 1 + np.diff(orders.starts)

    def counted_audits(self) -> tuple[AuditRuns, Bools] | None:
        """The n returned audits of the last certificate, and where each disagrees, (n, M); None: there is none."""
        if self.certificate is None:
            return None
        inside, runs = np.flatnonzero(self.certificate.inside), self.runs
        return runs.without_orders().take(inside), runs.d[self.rows[inside]]

    def replayed_costs(self, first: int) -> tuple[Floats, Bools, Floats] | None:
        """Tokens at each level and whether it stops, (n, M), and full runs' tokens, (n,), of audits from `first` on."""
        if self.served is None or first >= self.n_audits:
            return None
        runs, rows = self.runs, self.rows[first:]
        return runs.cost[rows], rows < runs.last[first:, np.newaxis], runs.full[first:]

    def stops(self, level: int) -> tuple[Ints, Ints]:
        """The numbers of the last certificate's audits, and the step, from 0, after which it stops each; -1: none."""
        if self.certificate is None:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        runs, inside = self.runs, np.flatnonzero(self.certificate.inside)
        rows = self.rows[inside, level]
        return inside, np.where(rows < runs.last[inside], rows - runs.starts[inside], -1)
