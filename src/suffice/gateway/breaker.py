"""A route whose controller fails again and again is left alone for a while: its requests pass through.

    closed ──5 failures in 60 s──▶ open, 60 s ──▶ one request tries ──▶ closed, or open again

Pure: time comes in. It refuses to know what failed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

N_FAILURES = 5
WINDOW_S = 60.0
OPEN_S = 60.0
# Where only our own code can fail; probes and hand-overs also fail when the upstream does.
SITES = frozenset({"signals", "policy", "segment", "scorer", "govern", "slow"})


@dataclass(slots=True)
class Breaker:
    """Counts the failures of one route's controller. Times are monotonic, in seconds."""

    failed_at_s: deque[float] = field(default_factory=lambda: deque(maxlen=N_FAILURES))
    open_until_s: float | None = None  # None: closed
    tries: bool = False  # one request is on its way to see whether it works again

    def allows(self, now_s: float) -> bool:
        """May the next request be governed?"""
        if self.open_until_s is None:
            return True
        if now_s < self.open_until_s or self.tries:
            return False
        self.tries = True
        return True

    def note(self, *, failed: bool, now_s: float) -> bool:
        """Take the end of a governed request in; True: the breaker opened now."""
        tried, self.tries = self.tries, False
        if not failed:
            if tried:
                self.open_until_s = None
                self.failed_at_s.clear()
            return False
        self.failed_at_s.append(now_s)
        full = len(self.failed_at_s) == N_FAILURES and now_s - self.failed_at_s[0] <= WINDOW_S
        if not (full or tried):
            return False
        was_open = self.open_until_s is not None and not tried
        self.open_until_s = now_s + OPEN_S
        return not was_open
