"""How late a label normally is: as the owner says, else as those that came; in seconds, and in requests of the route.

Audits count by age alone (`assurance.label_maturation`), and the loop's time is the number of requests, so the delay is
read off the times at which requests came. Those are the log's own; where its clock stepped back they stand still.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, field
from typing import Final

import numpy as np

MOST_DELAYS: Final = 500  # latest labels that are looked at
SHARE: Final = 0.95  # of them that come within the time-out, before its margin
MARGIN: Final = 1.25


@dataclass(slots=True)
class Lateness:
    """Times of requests, and delays of labels."""

    told_s: float | None = None  # as the owner says; None: it is learnt
    _delays_s: deque[float] = field(default_factory=lambda: deque(maxlen=MOST_DELAYS))
    _at_s: list[float] = field(default_factory=list)  # rising
    _n: list[int] = field(default_factory=list)  # requests of the route at that time

    def note_look(self, at_s: float, n: int) -> None:
        """So many requests had come by then."""
        self._at_s.append(max(at_s, self._at_s[-1]) if self._at_s else at_s)
        self._n.append(n)

    def note_label(self, delay_s: float) -> None:
        """A label came so long behind the end of its run."""
        self._delays_s.append(max(0.0, delay_s))

    @property
    def timeout_s(self) -> float:
        """Seconds within which a label normally comes; 0 before any came."""
        if self.told_s is not None:
            return self.told_s
        return MARGIN * float(np.quantile(np.array(self._delays_s), SHARE)) if self._delays_s else 0.0

    def timeout_requests(self, *, since: int) -> float:
        """How many requests ago an audit must have ended for its label to be late now.

        since  requests when the epoch began: nothing is older
        """
        if not self._n:
            return 0.0
        before = bisect_right(self._at_s, self._at_s[-1] - self.timeout_s)
        return float(self._n[-1] - (self._n[before - 1] if before else since))
