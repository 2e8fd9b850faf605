"""The audits of a certifier's epoch, with the version that they certify."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from suffice.arrays import Ints
from suffice.assurance.certify import Windows
from suffice.learn.audits import NO_AUDITS, AuditRuns, LevelEnds, concatenate_audits
from suffice.learn.certificate import Spender
from suffice.learn.level_watch import LevelWatch
from suffice.learn.version import FoldedModels


@dataclass(slots=True, eq=False)
class CertifierEpoch:
    """What a certifier knows since its epoch began."""

    burst_until: float
    refit_at: float
    windows: Windows
    began: float = 0.0
    delta_share: float = 1.0  # part of delta that its certificates may use, see `windows.restart_share`
    runs: AuditRuns = NO_AUDITS
    served: FoldedModels | None = None
    ends: LevelEnds = field(default_factory=lambda: LevelEnds(np.zeros((0, 1), np.int64), np.zeros((0, 1), np.int64)))
    spender: Spender = field(default_factory=Spender)
    watch: LevelWatch | None = None  # since a level was first certified

    @property
    def rows(self) -> Ints:
        """Where each level ends each audit, shape (N, M)."""
        return self.ends.rows

    def add(self, runs: AuditRuns) -> None:
        if self.served is not None:
            orders, new = self.runs.orders, self.served.ends(runs)
            shift = self.runs.starts[-1], 0 if orders is None else orders.runs.starts[-1]
            self.ends = LevelEnds(
                np.concatenate([self.ends.rows, new.rows + shift[0]]),
                np.concatenate([self.ends.order_rows, new.order_rows + shift[1]]),
            )
        self.runs = concatenate_audits([self.runs, runs])

    def drop_oldest(self, n: int) -> None:
        if self.served is not None:
            rows, others, orders = *self.ends, self.runs.orders
            if orders is not None:
                gone = int(orders.starts[n])
                others = others[gone:] - orders.runs.starts[gone]
            self.ends = LevelEnds(rows[n:] - self.runs.starts[n], others)
        self.runs = self.runs.take(np.arange(n, len(self.runs)))
        if self.watch is not None:
            self.watch.drop_oldest(n)
        self.spender.drop_oldest(n)
