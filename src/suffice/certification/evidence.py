"""What a certifier is told at a look beside its audits, and what it decides."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

import numpy as np

from suffice.arrays import Floats
from suffice.certification.certificate import NO_PENDING, PendingAudits
from suffice.learn.costs import NO_LIVE_COST, LiveCost
from suffice.learn.version import FoldedModels

ChangeKind: TypeAlias = Literal["epoch", "refit", "certified", "alarm"]
MOST_DURATIONS: Final = 500  # latest durations for the run time-out
SLOW_RUN: Final = 0.99  # quantile of durations that is the run time-out, before its margin
SLOW_MARGIN: Final = 1.25


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evidence:
    """What holds from a look on, until the next one; times in the unit of `AuditRuns.at`."""

    at: float  # the request of the look
    signals: Sequence[Floats] = ()  # batches of early signals of all traffic since the last look, shape (n, F) each
    pending: PendingAudits = NO_PENDING
    run_timeout: float = 0.0  # age at which nearly all audits have returned; a later one counts as lost
    ends_burst: bool = False  # the full runs so far are enough
    charge: Callable[[FoldedModels], float | Floats] | None = None  # of the budget spent elsewhere, by level
    cap: int | None = None  # the highest level that a forecast allows; None: no cap
    in_doubt: bool = False  # a forecast asks for more audits
    died: AbstractSet[float] = frozenset()  # starts of audits that ended with their gateway: they raise no alarm
    singled: AbstractSet[float] = frozenset()  # starts of audits drawn for what their caller lost: no alarm, either
    live_cost: LiveCost = NO_LIVE_COST
    confidence: float | None = None  # from now on; None: as before
    label_timeout: float | None = None  # from now on; None: as before


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    kind: ChangeKind
    at: float
    level: int  # active from now on
    reason: str  # a short sentence for the log
    version: int = 0  # number of the active fit; 0: none


@dataclass(frozen=True, slots=True)
class CertifierDecision:
    level: int  # active until the next look; 0 never stops
    changes: tuple[Change, ...] = ()

    @property
    def alarm(self) -> str | None:
        """Why a new epoch begins; None: none does."""
        return next((change.reason for change in self.changes if change.kind == "alarm"), None)


@dataclass(slots=True)
class RunDurations:
    """The latest durations of audits, by which one is late."""

    _known: deque[float] = field(default_factory=lambda: deque(maxlen=MOST_DURATIONS))

    def add(self, durations: Iterable[float]) -> None:
        self._known.extend(durations)

    @property
    def timeout(self) -> float:
        return SLOW_MARGIN * float(np.quantile(np.array(self._known), SLOW_RUN)) if self._known else 0.0
