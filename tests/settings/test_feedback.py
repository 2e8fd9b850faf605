"""What is declared of feedback: a metric that could not be checked or averaged is refused at start-up, by its path."""

from __future__ import annotations

from typing import Any

import pytest

from suffice.errors import ConfigError
from suffice.settings import Metric, parse_settings
from suffice.settings.checks import span_of

GOOD: dict[str, dict[str, Any]] = {
    "solved": {"type": "boolean", "level": "conversation"},
    "effort": {"type": "rating", "direction": "lower", "range": [1, 7]},
    "minutes": {"type": "number", "direction": "lower", "range": [0, 60]},
    "tone": {"type": "category", "values": ["warm", "cold"]},
    "nps": {"type": "rating", "level": "user", "range": [0, 10]},
    "clear": {"type": "rating", "survey": "after", "question": "Was it clear?"},
}


def test_every_type_can_be_declared_and_has_a_span() -> None:
    metrics = parse_settings({"metrics": GOOD}).metrics
    spans = {name: span_of(metric) for name, metric in metrics.items()}
    assert spans == {
        "solved": (0, 1),
        "effort": (1, 7),
        "minutes": (0, 60),
        "tone": None,
        "nps": (0, 10),
        "clear": (1, 5),
    }
    assert (metrics["clear"].level, metrics["clear"].direction) == ("request", "higher")


@pytest.mark.parametrize(
    ("name", "table", "where", "says"),
    [
        ("x", {}, "metrics.x", "type"),
        ("x", {"type": "stars"}, "metrics.x.type", "boolean, rating, number, category"),
        ("x", {"type": "number"}, "metrics.x.range", "a number needs one"),
        ("x", {"type": "number", "range": [1, 1]}, "metrics.x.range", "smallest and the largest"),
        ("x", {"type": "number", "range": [0, float("inf")]}, "metrics.x.range", "smallest and the largest"),
        ("x", {"type": "rating", "range": [0.5, 5]}, "metrics.x.range", "whole numbers"),
        ("x", {"type": "boolean", "range": [0, 1]}, "metrics.x.range", "rating and number"),
        ("x", {"type": "category"}, "metrics.x.values", "2 to 50 different words"),
        ("x", {"type": "category", "values": ["a", "a"]}, "metrics.x.values", "different"),
        ("x", {"type": "category", "values": ["a", ""]}, "metrics.x.values", "1 to 100 characters"),
        ("x", {"type": "boolean", "values": ["a", "b"]}, "metrics.x.values", "category"),
        ("x", {"type": "category", "values": ["a", "b"], "survey": "s"}, "metrics.x.survey", "words have no mean"),
        ("1x", {"type": "boolean"}, "metrics", "got '1x'; a letter"),
        ("a.b", {"type": "boolean"}, "metrics", "got 'a.b'; a letter, then up to 63 letters, digits"),
    ],
)
def test_a_metric_that_cannot_work_is_refused_with_its_path(
    name: str, table: dict[str, Any], where: str, says: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_settings({"metrics": {name: table}})
    assert str(refused.value).startswith(where)
    assert says in str(refused.value)


def test_there_are_only_so_many() -> None:
    with pytest.raises(ConfigError, match="got 51; at most 50"):
        parse_settings({"metrics": {f"m{n}": {"type": "boolean"} for n in range(51)}})


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"token_hours": -1}, r"token_hours: got -1\.0; at least 0"),
        ({"park_days": 0}, r"park_days: got 0\.0; more than 0"),
        ({"least_propensity": 0}, r"least_propensity: got 0\.0; a fraction above 0"),
        ({"langfuse": {"scores": {"x": "mood"}}}, r"langfuse\.scores\.x: got 'mood'; allowed: correct, .*\.clear"),
        ({"langfuse": {"scores": {"x": "metrics.mood"}}}, r"langfuse\.scores\.x: got 'metrics\.mood'"),
    ],
)
def test_rules_that_cannot_work_are_refused(table: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=rf"feedback\.{says}"):
        parse_settings({"feedback": table, "metrics": GOOD})


def test_a_score_may_be_a_field_or_a_metric() -> None:
    scores = {"helpful": "thumbs", "clarity": "metrics.clear"}
    assert (
        parse_settings({"feedback": {"langfuse": {"scores": scores}}, "metrics": GOOD}).feedback.langfuse.scores
        == scores
    )


def test_a_metric_is_plain_data() -> None:
    assert Metric(type="boolean") == Metric(type="boolean")
