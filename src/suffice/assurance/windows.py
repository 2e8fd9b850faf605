"""Windows: stretches of requests with a fixed start, whose audits a certificate counts.

In a window every request was audited with probability rho >= c, its *share*; an audit has weight c/rho, so that each
request counts alike (theorem in docs/reference/assurance.md). A share below c closes the window; one of twice c or more
opens another. The choice of window depends on the draws and never on outcomes, so its claim has all of delta.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import floor, inf
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

WINDOW_LAW: Final = 16.0  # audits of a window, times the budget
STRETCH: Final = 1.5  # by which a window may be longer before it forgets
STARTS: Final = 8  # starts on the grid, in the time that a window takes to gather its audits
RISE: Final = 2.0  # growth of the share that opens another window
LEAST_DELTA_SHARE: Final = 1e-6  # of delta, for an epoch that begins immediately after another
LEAST_REQUESTS: Final = 10  # of a closed window: while a share changes, requests of both shares are in flight
MOST_WINDOWS: Final = 32  # the latest that are kept
SAME_SHARE: Final = 1e-9  # tolerance for rounding


def window_audits(max_em_drop: float) -> int:
    """Audits of a window: 16 over the budget, at which a level that loses half of it is almost surely certified."""
    return round(WINDOW_LAW / max_em_drop)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Requests start <= t < end, each audited with probability `share` or more."""

    start: float
    share: float  # c, in (0, 1]
    end: float = inf  # infinite: the window is open

    def holds(self, at: Floats) -> Bools:
        return (at >= self.start) & (at < self.end)

    def n_audits(self, at: Floats, share: Floats) -> float:
        return float(self.weights(share[self.holds(at)]).sum())

    def weights(self, share: Floats) -> Floats:
        """c/rho, at most 1, of audits drawn at these shares, shape (n,)."""
        return np.minimum(1.0, self.share / share)


@dataclass(slots=True)
class Windows:
    known: list[Window] = field(default_factory=list)

    def plain(self) -> tuple[tuple[float, float, float | None], ...]:
        return tuple((one.start, one.share, None if one.end == inf else one.end) for one in self.known)

    def note(self, at: float, share: float) -> None:
        """From request `at` on, requests are audited with at least this probability, until the next call.

        A share of 0 closes all windows. Raise ValueError for a share outside [0, 1].
        """
        if not 0 <= share <= 1:
            raise ValueError(f"share: got {share}; at least 0 and at most 1")
        highest = max((one.share for one in self.known if one.end == inf), default=inf)
        if highest <= share + SAME_SHARE < RISE * highest:
            return  # the common case: no change
        self.known = [
            replace(one, end=at) if one.end == inf and one.share > share + SAME_SHARE else one for one in self.known
        ]
        self.known = [one for one in self.known if one.end - one.start >= LEAST_REQUESTS]
        if share and not any(one.end == inf and RISE * one.share > share + SAME_SHARE for one in self.known):
            self.known.append(Window(start=at, share=share))
        self.known = self.known[-MOST_WINDOWS:]

    def lower(self, at: float, share: float) -> None:
        """As `note`, but ignores a rise."""
        if all(share < one.share for one in self.known if one.end == inf):
            self.note(at, share)

    def chosen(self, at: Floats, share: Floats, *, wanted: int) -> Window | None:
        """The newest window with `wanted` weighted audits, else the one with the most; None without windows.

        One with more than STRETCH times `wanted` is cut to a later start on an even grid, so that a long-running route
        forgets.
        """
        best, most = None, -1.0
        for base in reversed(self.known):
            total = base.n_audits(at, share)
            if total >= wanted:
                if total <= STRETCH * wanted:
                    return base
                inside = base.holds(at)
                return _moved_up(base, at[inside], base.weights(share[inside]), wanted)
            if total > most:
                best, most = base, total
        return best


def _moved_up(base: Window, began: Floats, weight: Floats, wanted: int) -> Window:
    order = np.argsort(-began, kind="stable")
    latest = began[order][int(np.searchsorted(np.cumsum(weight[order]), STRETCH * wanted - SAME_SHARE))]
    step = wanted / (STARTS * base.share)
    return replace(base, start=float(base.start + step * floor((latest - base.start) / step)))


def restart_share(n_requests: float, *, window: int, share: float) -> float:
    """The part of delta for an epoch that begins because of an alarm from audits, `n_requests` after the last one.

    Such alarms depend on the draws: if every epoch used all of delta, windows cut short by alarms could serve more than
    delta of the requests above the budget. So an epoch that begins r requests after the last one gets min(1, r / L) of
    delta. L is the longest use of a window: the requests until the next one has its audits at the usual share. Over any
    number of epochs, the expected number of requests served above the budget is then at most delta times all requests.
    """
    longest = window / share if share else inf
    return max(LEAST_DELTA_SHARE, min(1.0, n_requests / longest))


def read_windows(written: Sequence[tuple[float, float, float | None]]) -> Windows:
    return Windows([Window(start=start, share=share, end=inf if end is None else end) for start, share, end in written])
