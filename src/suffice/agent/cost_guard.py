"""Watches what an action saves, as certificates watch what it loses: an action that no longer pays goes out of use.

Three e-detectors per class and action (Shin, Ramdas, Rinaldo 2023, arXiv:2203.03532), each a sum M <- (M + 1) x bet:

    paying    while active: against "saves at least half of what it was activated for"
    saving    always: against "saves anything at all"; raises an alert
    recovered while inactive: against "saves less than that half"; brings it back

While its hypothesis holds, the mean number of runs to a false alarm of a detector is at least its threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

Event = Literal["stops_paying", "costs_more", "pays_again"]

BETS: Final = np.array((0.15, 0.35, 0.7))  # parts of the largest bet that cannot lose everything
THRESHOLD: Final = 20_000.0  # runs to a false alarm
RECOVERY: Final = 200.0  # audits to a false return, at exactly half of the promised saving
_NAMES: Final = ("paying", "saving", "recovered")


@dataclass(frozen=True, slots=True, kw_only=True)
class CostEvent:
    kind: Event
    query_class: int
    action: int
    promised: float  # saving that it was activated for, a fraction of the full run


class CostGuard:
    """State of shape (classes, actions): promised saving (nan: never activated), activity, and the three detectors."""

    def __init__(self, n_classes: int, n_actions: int) -> None:
        self.promised = np.full((n_classes, n_actions), np.nan)
        self.inactive = np.zeros((n_classes, n_actions), dtype=bool)
        self._sums = np.zeros((len(_NAMES), n_classes, n_actions, len(BETS)))

    def activate(self, query_class: int, action: int, saving: float) -> None:
        """Note the saving for which an action is put to use; a new promise starts its detectors anew."""
        if np.isnan(self.promised[query_class, action]):
            self.promised[query_class, action] = saving

    def add_run(self, query_class: int, action: int, cost: float) -> list[CostEvent]:
        """Add the cost of a run, a fraction of the full run; return what it proves."""
        here = (query_class, action)
        promised = float(self.promised[here])
        if np.isnan(promised):
            return []
        saving, half = float(np.clip(1 - cost, -1, 1)), max(0.0, promised / 2)
        kinds: list[Event] = []
        was_dear = self._sums[1][here].mean() >= THRESHOLD
        if self._bet(1, here, -saving, 1.0) >= THRESHOLD and not was_dear:
            kinds.append("costs_more")
        if not self.inactive[here] and self._bet(0, here, half - saving, 1 - half) >= THRESHOLD:
            kinds.append("stops_paying")
            self.inactive[here] = True
        elif self.inactive[here] and self._bet(2, here, saving - half, 1 + half) >= RECOVERY:
            kinds.append("pays_again")
            self.inactive[here], self.promised[here] = False, np.nan
        if kinds and kinds[-1] != "costs_more":
            self._sums[[0, 2], query_class, action] = 0
        return [CostEvent(kind=kind, query_class=query_class, action=action, promised=promised) for kind in kinds]

    def _bet(self, detector: int, here: tuple[int, int], gain: float, largest_loss: float) -> float:
        """Bet on a positive mean of `gain`, which is never below -largest_loss; return the detector's mean sum."""
        sums = self._sums[detector][here]
        sums[:] = np.minimum((sums + 1) * (1 + BETS / largest_loss * gain), 1e12)
        return float(sums.mean())

    def plain(self) -> dict[str, Any]:
        return {"promised": self.promised.tolist(), "inactive": self.inactive.tolist(), "sums": self._sums.tolist()}

    def restore(self, plain: dict[str, Any]) -> None:
        self.promised, self.inactive = np.array(plain["promised"], dtype=float), np.array(plain["inactive"])
        self._sums = np.array(plain["sums"])
