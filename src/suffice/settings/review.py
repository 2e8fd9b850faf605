"""What the types of the review tables cannot say, of a route and of all of them."""

from __future__ import annotations

from math import isfinite
from typing import Final

from suffice.errors import ConfigError
from suffice.settings.tables import Review, ReviewCap

MOST_A_DAY: Final = 10_000  # more is no review but a flood
MOST_REVIEWERS: Final = 9


def check_review(where: str, review: Review) -> None:
    """Raises ConfigError with the path of what cannot be."""
    check_per_day(where, review)
    if not 0 <= review.control_share <= 1:
        raise ConfigError(f"{where}.control_share: got {review.control_share}; a fraction from 0 to 1")
    if not 1 <= review.reviewers <= MOST_REVIEWERS:
        raise ConfigError(f"{where}.reviewers: got {review.reviewers}; 1 to {MOST_REVIEWERS}")
    for field in ("lease_s", "open_days", "text_days"):
        value = getattr(review, field)
        if not (isfinite(value) and value > 0):
            raise ConfigError(f"{where}.{field}: got {value}; more than 0")


def check_per_day(where: str, cap: Review | ReviewCap) -> None:
    """Raises ConfigError for a daily cap that is none."""
    if not 0 <= cap.per_day <= MOST_A_DAY:
        raise ConfigError(f"{where}.per_day: got {cap.per_day}; 0 to {MOST_A_DAY:,}, where 0 asks nobody")
