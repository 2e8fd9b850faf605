"""How much evidence a first certificate takes, and how far a route is from it.

Pure: counts and times in, numbers out. It refuses to certify anything: what it gives is the least
that any test needs, so that an owner knows whether to wait hours or months.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from suffice.assurance.bounds import binomial_at_most

RECENT_AUDITS = 100  # the rate at which audits come is read off so many of the latest
MAX_AUDITS = 2**40  # beyond any log: a promise that needs more is refused


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEvidence:
    """What the audits of a route say so far, and what is missing for a first certificate."""

    n_audits: int  # that ended and say whether the stop would have answered the same
    n_disagreements: int  # among them: the stop would have answered otherwise
    n_needed: int | None  # in all, if no further audit disagrees; None: no number is enough
    audits_per_s: float | None  # at which they came lately; None: fewer than two came

    @property
    def n_missing(self) -> int | None:
        """Audits still to come; 0: there are enough; None: no number is enough."""
        return None if self.n_needed is None else max(0, self.n_needed - self.n_audits)

    @property
    def wait_s(self) -> float | None:
        """Seconds until they are there at the present rate; None: nobody can say."""
        if self.n_missing == 0:
            return 0.0
        if self.n_missing is None or not self.audits_per_s:
            return None
        return self.n_missing / self.audits_per_s


@lru_cache(maxsize=4_096)
def audits_needed(max_em_drop: float, confidence: float, disagreements: int = 0) -> int:
    """The least number of audits whose upper bound on the disagreement rate is within `max_em_drop`.

    The EM drop is at most the rate at which a stop would have answered otherwise, so this many audits
    with `disagreements` among them support "the drop is at most `max_em_drop`". One-sided exact
    binomial bound, Clopper and Pearson (1934), Biometrika 26(4), looked at once: with none,
    log(1 - confidence) / log(1 - max_em_drop). A test that may be watched all the time needs more.

    max_em_drop    fraction, in (0, 1)
    confidence     one-sided, in (0, 1)
    disagreements  at least 0
    Raises ValueError outside of these, and where more than 2^40 audits would be needed.
    """
    if not 0 < max_em_drop < 1 or not 0 < confidence < 1 or disagreements < 0:
        raise ValueError(
            f"need 0 < max_em_drop < 1, 0 < confidence < 1, disagreements >= 0;"
            f" got {max_em_drop=} {confidence=} {disagreements=}"
        )

    def enough(n: int) -> bool:
        return n > disagreements and binomial_at_most(disagreements, n, max_em_drop) <= 1 - confidence

    high = disagreements + 1
    while not enough(high):
        high *= 2
        if high > MAX_AUDITS:
            raise ValueError(f"{max_em_drop=} at {confidence=} would need more than {MAX_AUDITS} audits")
    low = disagreements  # never enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def evidence(
    *,
    max_em_drop: float,
    confidence: float,
    n_audits: int,
    n_disagreements: int,
    audits_at_s: Sequence[float] = (),
) -> AuditEvidence:
    """What is there and what is missing, from counts alone; never raises for a route's own settings.

    audits_at_s  when the audits came, Unix time, in any order
    """
    try:
        needed = audits_needed(max_em_drop, confidence, n_disagreements)
    except ValueError:
        needed = None  # a drop of exactly 0, or certainty, is proved by no number
    return AuditEvidence(
        n_audits=n_audits,
        n_disagreements=n_disagreements,
        n_needed=needed,
        audits_per_s=rate_of(audits_at_s),
    )


def rate_of(at_s: Sequence[float]) -> float | None:
    """Events a second among the latest; None when there are too few of them to say."""
    recent = sorted(at_s)[-RECENT_AUDITS:]
    if len(recent) < 2 or recent[-1] <= recent[0]:
        return None
    return (len(recent) - 1) / (recent[-1] - recent[0])
