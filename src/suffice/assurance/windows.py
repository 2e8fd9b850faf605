"""Windows: stretches of requests with a fixed start; a certificate rests on the audits of one of them.

    active audit shares ──▶ Windows ──▶ Window (start, share, end) ──▶ weights c/rho ──▶ certify.log_wealth

Inside a window every request was audited with probability rho >= c, its *share*. An audit drawn at rho bets with weight
c/rho, so that each request of the window counts alike, whatever share was active when it came (VALIDITY, theorem).
A share that falls below c closes the window: a later audit would stand for requests that the window cannot weigh. A
share that rises to twice c or more opens another window, whose audits count in full.

Which window is used depends on how many audits were drawn in it and never on what they showed, so exactly one window is
consulted at any moment, and its claim has the whole of delta.
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

WINDOW_LAW: Final = 16.0  # audits that a certificate looks back on, times the budget
STRETCH: Final = 1.5  # by which a window may be longer before it forgets: what a burst gathers is one window
STARTS: Final = 8  # of windows, in the time that one takes to gather its audits
RISE: Final = 2.0  # by which a share grows before its audits get a window of their own
LEAST_DELTA_SHARE: Final = 1e-6  # of delta, for an epoch that begins at once behind another
LEAST_REQUESTS: Final = 10  # of a closed window: while a share changes, requests of both shares are on their way
MOST_WINDOWS: Final = 32  # that are remembered: doubt opens and closes one each time
SAME_SHARE: Final = 1e-9  # shares that are equal but for rounding


def window_audits(max_em_drop: float) -> int:
    """Audits of a window: 16 over the budget, at which a level that loses half of it is as good as certified."""
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
        """Audits inside, weighted, by the number of each audited request and the share it was drawn at, shape (n,)."""
        return float(self.weights(share[self.holds(at)]).sum())

    def weights(self, share: Floats) -> Floats:
        """Weight of an audit that was drawn at each of these shares: c/rho, at most 1, shape (n,)."""
        return np.minimum(1.0, self.share / share)


@dataclass(slots=True)
class Windows:
    """All windows of an epoch, in the order of their starts."""

    known: list[Window] = field(default_factory=list)

    def plain(self) -> tuple[tuple[float, float, float | None], ...]:
        """As an epoch of the log writes them, see `read_windows`."""
        return tuple((one.start, one.share, None if one.end == inf else one.end) for one in self.known)

    @property
    def lowest_share(self) -> float:
        """The share below which an open window is closed; infinite: none is open."""
        return min((one.share for one in self.known if one.end == inf), default=inf)

    def note(self, at: float, share: float) -> None:
        """From request `at` on, requests are audited with this probability, or a higher one until the next call.

        Call it for each request, or where the share changes. What it does depends on shares alone. A share of 0 closes
        all windows: nobody can certify what is never audited. Raises ValueError outside [0, 1].
        """
        if not 0 <= share <= 1:
            raise ValueError(f"share: got {share}; at least 0 and at most 1")
        highest = max((one.share for one in self.known if one.end == inf), default=inf)
        if highest <= share + SAME_SHARE < RISE * highest:
            return  # like nearly every request: nothing closes, and nothing opens
        self.known = [
            replace(one, end=at) if one.end == inf and one.share > share + SAME_SHARE else one for one in self.known
        ]
        self.known = [one for one in self.known if one.end - one.start >= LEAST_REQUESTS]
        if share and not any(one.end == inf and RISE * one.share > share + SAME_SHARE for one in self.known):
            self.known.append(Window(start=at, share=share))
        self.known = self.known[-MOST_WINDOWS:]

    def lower(self, at: float, share: float) -> None:
        """From request `at` on, requests may be audited with as low a probability as this; a rise is not noted."""
        if share < self.lowest_share:
            self.note(at, share)

    def chosen(self, at: Floats, share: Floats, *, wanted: int) -> Window | None:
        """The newest window with `wanted` weighted audits, else the one with the most; None: there is none yet.

        An open window that has gathered half more than enough begins later than it was opened, at one of the starts
        that are laid out evenly from there on: so a route that runs for long forgets. Depends on the draws alone.
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
    """The newest of the window's starts behind which there are half more audits than are enough."""
    order = np.argsort(-began, kind="stable")
    latest = began[order][int(np.searchsorted(np.cumsum(weight[order]), STRETCH * wanted - SAME_SHARE))]
    step = wanted / (STARTS * base.share)
    return replace(base, start=float(base.start + step * floor((latest - base.start) / step)))


def longest_use(wanted: int, share: float) -> float:
    """Requests for which one window is consulted at most: until the next has its audits at the usual share."""
    return wanted / share if share else inf


def restart_share(n_requests: float, longest: float) -> float:
    """The part of delta that an epoch may use which begins because audits asked for it.

    An alarm that audits raise depends on the draws, so windows that are cut short by alarms would each claim all of
    delta for a short time, and more than delta of the requests could be served above the budget. Therefore delta is
    earned by traffic: an epoch that begins r requests after the one before gets min(1, r / L) of it, where L is the
    longest time that one window is consulted (`longest_use`). Over any number of epochs the expected number of requests
    that are served above the budget is then at most delta times all requests.
    """
    return max(LEAST_DELTA_SHARE, min(1.0, n_requests / longest))


def read_windows(written: Sequence[tuple[float, float, float | None]]) -> Windows:
    """Windows as an epoch of the log writes them: (start, share, end) each; an end of None is open."""
    return Windows([Window(start=start, share=share, end=inf if end is None else end) for start, share, end in written])
