"""The dashboard and the alert rules name metrics and labels that exist, and Grafana can lay them out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from suffice.telemetry import METRICS

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
RULES, DASHBOARD = DEPLOY / "prometheus" / "alerts.yml", DEPLOY / "grafana" / "suffice.json"
BOARD: dict[str, Any] = json.loads(DASHBOARD.read_text("utf-8"))
PANELS: list[dict[str, Any]] = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
ALERTS: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"]
]
EXPRESSIONS = [*QUERIES, *((rule["alert"], rule["expr"]) for rule in ALERTS)]
KINDS = {"timeseries", "stat", "state-timeline", "table"}
BY_TARGET = {"job", "instance"}  # labels that Prometheus adds
ELSEWHERE = {  # of Prometheus's client and of Prometheus itself
    "up": (),
    "process_cpu_seconds_total": (),
    "process_resident_memory_bytes": (),
    "process_open_fds": (),
    "process_max_fds": (),
}


def series() -> dict[str, tuple[str, ...]]:
    """Labels by the name of a series, as it is in a query."""
    known: dict[str, tuple[str, ...]] = dict(ELSEWHERE)
    for spec in METRICS:
        if spec.kind == "histogram":
            known |= {f"{spec.name}_{part}": (*spec.labels, "le") for part in ("bucket", "count", "sum")}
        else:
            known[spec.name] = spec.labels
    return known


def used(expression: str) -> set[str]:
    return set(re.findall(r"\b(suffice_\w+|process_\w+|up)\b(?=\s*[{\[)=]|\s*$)", expression))


@pytest.mark.parametrize(("title", "expression"), EXPRESSIONS, ids=[f"{t}-{i}" for i, (t, _) in enumerate(EXPRESSIONS)])
def test_an_expression_uses_metrics_and_labels_that_exist(title: str, expression: str) -> None:
    known, names = series(), used(expression)
    assert names, "it asks of Suffice"
    assert set(re.findall(r"suffice_\w+", expression)) <= known.keys(), title
    for name, selector in re.findall(r"\b(suffice_\w+|process_\w+|up)\{([^}]*)\}", expression):
        labels = set(re.findall(r"(\w+)\s*[!=]=?~?\s*\"", selector))
        assert labels <= {*known[name], *BY_TARGET}, f"{title}: {name} has no {labels - {*known[name], *BY_TARGET}}"
    grouped = {label.strip() for by in re.findall(r"(?:by|on) \(([^)]*)\)", expression) for label in by.split(",")}
    assert grouped <= {label for name in names for label in known[name]} | BY_TARGET, title


def test_the_dashboard_shows_every_metric() -> None:
    request = {name for _, expression in QUERIES for name in used(expression)}
    missing = {spec.name for spec in METRICS if not any(name in request for name in (spec.name, f"{spec.name}_bucket"))}
    assert not missing, "give each a panel in deploy/grafana/suffice.json"


def test_panels_have_a_place_of_their_own_and_say_what_they_show() -> None:
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        cells = {(x + place["x"], y + place["y"]) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in PANELS:
        assert panel["type"] in KINDS
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        assert all(source["datasource"]["uid"] == "${datasource}" for source in (panel, *panel["targets"]))


def test_the_dashboard_needs_nothing_but_a_prometheus() -> None:
    assert BOARD["uid"] == "suffice"
    assert "id" not in BOARD, "Grafana gives it one"
    assert {one["name"] for one in BOARD["templating"]["list"]} == {"datasource", "job", "route"}
    assert {one["type"] for one in BOARD["templating"]["list"]} == {"datasource", "query"}
    variables = set(re.findall(r"\$\{?(\w+)", json.dumps(BOARD)))
    assert variables <= {"datasource", "job", "route", "__rate_interval", "__all"}


def test_each_alert_says_how_urgent_it_is_and_what_to_do() -> None:
    assert len({rule["alert"] for rule in ALERTS}) == len(ALERTS)
    for rule in ALERTS:
        assert rule["labels"]["severity"] in ("page", "ticket", "info")
        assert set(rule["annotations"]) == {"summary", "description"}
        quoted = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
        kept = {label.strip() for by in re.findall(r"by \(([^)]*)\)", rule["expr"]) for label in by.split(",")}
        assert quoted <= (kept or BY_TARGET), rule["alert"]


def test_each_alert_is_explained_in_the_documentation() -> None:
    page = (DEPLOY.parent / "docs" / "how-to" / "dashboards-and-traces.md").read_text("utf-8")
    assert set(re.findall(r"^\| `(Suffice\w+)`", page, re.MULTILINE)) == {rule["alert"] for rule in ALERTS}
