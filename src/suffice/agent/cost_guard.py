"""Watches what stopping saves, as certificates watch what it loses: where it no longer pays, it goes out of use.

Three e-detectors for each class and setting (Shin, Ramdas, Rinaldo 2023, arXiv:2203.03532), each a sum
M <- (M + 1) x bet:

    paying     while active: against "saves at least half of what it was activated for"
    saving     always: against "saves anything at all"; raises an alert
    recovered  while inactive: against "saves less than that half"; brings it back

While its hypothesis holds, the mean number of runs to a false alarm of a detector is at least its threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

CostChange = Literal["stops_paying", "costs_more", "pays_again"]

BETS: Final = np.array((0.15, 0.35, 0.7))  # parts of the largest bet that cannot lose everything
THRESHOLD: Final = 20_000.0  # runs to a false alarm
RECOVERY: Final = 20.0  # runs to a false return, at exactly half of the promised saving
REST: Final = 25  # runs before a second return is considered; four times as many before each later one
_MOST: Final = 1e12  # keeps sums finite


@dataclass(frozen=True, slots=True, kw_only=True)
class CostEvent:
    change: CostChange
    query_class: int
    setting: int
    promised: float  # saving for which it was activated, a fraction of the full run


class CostGuard:
    """promised, inactive, is_dear: shape (classes, settings); promised is nan where nothing was activated."""

    def __init__(self, n_classes: int, n_settings: int) -> None:
        self.promised = np.full((n_classes, n_settings), np.nan)
        self.inactive = np.zeros((n_classes, n_settings), dtype=bool)
        self.is_dear = np.zeros((n_classes, n_settings), dtype=bool)  # an alert was raised
        self._n_returns = np.zeros((n_classes, n_settings), dtype=np.int64)
        self._rest = np.zeros((n_classes, n_settings))  # runs until a return is considered
        self._sums = np.zeros((3, n_classes, n_settings, len(BETS)))

    def activate(self, c: int, setting: int, saving: float) -> None:
        """Note the saving for which stopping is in use; the largest one counts until it is broken."""
        self.promised[c, setting] = np.fmax(self.promised[c, setting], saving)

    def add_run(self, c: int, setting: int, cost: float) -> list[CostEvent]:
        """Add the cost of a run, a fraction of the full run; return what it proves."""
        promised = float(self.promised[c, setting])
        if np.isnan(promised):
            return []
        saving, half = float(np.clip(1 - cost, -1, 1)), max(0.0, promised / 2)
        changes: list[CostChange] = []
        paying, saves, recovered = self._sums[:, c, setting]
        if _bet(saves, -saving, 1.0) >= THRESHOLD and not self.is_dear[c, setting]:
            changes.append("costs_more")
            self.is_dear[c, setting] = True
        if not self.inactive[c, setting] and _bet(paying, half - saving, 1 - half) >= THRESHOLD:
            changes.append("stops_paying")
            self.inactive[c, setting] = True
        elif self._rest[c, setting] > 0:
            self._rest[c, setting] -= 1
        elif self.inactive[c, setting] and _bet(recovered, saving - half, 1 + half) >= RECOVERY:
            changes.append("pays_again")
            self.inactive[c, setting], self.promised[c, setting] = False, np.nan
            self.is_dear[c, setting], saves[:] = False, 0
        if changes and changes[-1] != "costs_more":
            paying[:] = recovered[:] = 0
            self._note_change(c, setting, changes[-1])
        return [CostEvent(change=change, query_class=c, setting=setting, promised=promised) for change in changes]

    def _note_change(self, c: int, setting: int, change: CostChange) -> None:
        """What audits find cheap may be dear when served, so each return is harder than the last."""
        if change == "pays_again":
            self._n_returns[c, setting] += 1
        elif self._n_returns[c, setting]:
            self._rest[c, setting] = REST * 4.0 ** (self._n_returns[c, setting] - 1)


def _bet(sums: np.ndarray, gain: float, largest_loss: float) -> float:
    """Bet on a positive mean of `gain`, which is never below -largest_loss; return the detector's mean sum."""
    sums[:] = np.minimum((sums + 1) * (1 + BETS / largest_loss * gain), _MOST)
    return float(sums.mean())
