"""What the types of `[metrics.NAME]` and `[feedback]` cannot say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isfinite
from typing import Final

from suffice.errors import ConfigError
from suffice.settings.tables import FeedbackRules, Metric

MOST_METRICS: Final = 50
MOST_VALUES: Final = 50
RATING: Final = (1.0, 5.0)  # of a rating that names no other range
SCORE_FIELDS: Final = ("correct", "gold", "answer", "rating", "thumbs", "comment")  # that a score may be
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


def check_feedback(rules: FeedbackRules, metrics: Mapping[str, Metric]) -> None:
    """Refuse what cannot work. Raises ConfigError."""
    if len(metrics) > MOST_METRICS:
        raise ConfigError(f"metrics: got {len(metrics)}; at most {MOST_METRICS}")
    for name, metric in metrics.items():
        _check_metric(f"metrics.{name}", name, metric)
    _check_rules(rules)
    for score, field in rules.langfuse.scores.items():
        kind, _, name = field.partition(".")
        if field not in SCORE_FIELDS and (kind != "metrics" or name not in metrics):
            allowed = ", ".join([*SCORE_FIELDS, *(f"metrics.{known}" for known in sorted(metrics))])
            raise ConfigError(f"feedback.langfuse.scores.{score}: got {field!r}; allowed: {allowed}")


def span_of(metric: Metric) -> tuple[float, float] | None:
    """The smallest and the largest value that a metric can have; None: its values are words."""
    if metric.type == "category":
        return None
    if metric.type == "boolean":
        return 0.0, 1.0
    return metric.range or RATING


def _check_metric(where: str, name: str, metric: Metric) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{where}: a name needs a letter, then up to 63 letters, digits, _ and -")
    if metric.range is not None:
        low, high = metric.range
        if not (isfinite(low) and isfinite(high) and low < high):
            raise ConfigError(f"{where}.range: got {list(metric.range)}; the smallest and the largest value")
        if metric.type == "rating" and not (low.is_integer() and high.is_integer()):
            raise ConfigError(f"{where}.range: got {list(metric.range)}; a rating has whole numbers")
    if metric.type == "number" and metric.range is None:
        raise ConfigError(f"{where}.range: a number needs one: without it nobody can say how far a mean may be off")
    if metric.type in ("boolean", "category") and metric.range is not None:
        raise ConfigError(f"{where}.range: belongs to the types rating and number, got {metric.type}")
    _check_words(where, metric)


def _check_words(where: str, metric: Metric) -> None:
    words = metric.values
    if metric.type != "category":
        if words:
            raise ConfigError(f"{where}.values: belong to the type category, got {metric.type}")
        return
    if not 2 <= len(set(words)) == len(words) <= MOST_VALUES or not all(0 < len(word) <= 100 for word in words):
        raise ConfigError(f"{where}.values: a category needs 2 to {MOST_VALUES} different words of 1 to 100 characters")
    if metric.survey:
        raise ConfigError(f"{where}.survey: a question of a survey is a boolean, rating or number: words have no mean")


def _check_rules(rules: FeedbackRules) -> None:
    if not (isfinite(rules.token_hours) and rules.token_hours >= 0):
        raise ConfigError(f"feedback.token_hours: got {rules.token_hours}; at least 0")
    if not (isfinite(rules.park_days) and rules.park_days > 0):
        raise ConfigError(f"feedback.park_days: got {rules.park_days}; more than 0")
    if not 0 < rules.least_propensity <= 1:
        raise ConfigError(f"feedback.least_propensity: got {rules.least_propensity}; a fraction above 0, up to 1")
