"""A route whose owner wrote the policy is paused, too, when its EM is surely below the critical one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from suffice.control.jobs.base import Worker
from suffice.settings import Settings, parse_settings
from suffice.store.database.decisions import Decisions
from suffice.store.routes.deployments import read_decided, read_holds
from suffice.store.rows.events import Event
from suffice.types import Resumption
from suffice.wiring.worker import open_worker
from tests.control.made import ROUTE, label, traffic
from tests.control.test_worker import fill


def settings_for(folder: Path, **changes: Any) -> Settings:
    route = {**msgspec.to_builtins(ROUTE), "policy": {"policy": "never"}, "uncertified": True, "critical_em": 0.8}
    return parse_settings(
        {
            "upstreams": {"up": {"url": "http://127.0.0.1:1"}},
            "routes": {"r": {**route, **changes}},
            "store": {"url": f"sqlite:///{folder / 'log.db'}"},
        }
    )


def half_right(first: int = 0, **fields: Any) -> list[Event]:
    return [label(n, correct=n % 2 == 0, **fields) for n in range(first, first + 60)]


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Worker]:
    with open_worker(settings_for(tmp_path)) as opened:
        yield opened


def look_once(here: Worker) -> str:
    reports = here.once("critical")
    assert reports is not None
    return "; ".join(report.summary for report in reports)


def test_an_em_below_the_critical_one_pauses_once_and_opens_an_incident(here: Worker, tmp_path: Path) -> None:
    fill(tmp_path, [*traffic(1), *half_right(), *traffic(59, first=1)])
    assert look_once(here).startswith("enforcement paused (EM is 50.0% over the last 60 labels, surely below")
    assert look_once(here) == "", "one pause is enough"
    (case,) = read_holds(tmp_path / "log.db").of("r").open_cases
    assert case.incident.incident == "r:p1"
    assert case.incident.evidence == ("30 of the last 60 labelled answers were right",)
    assert read_decided(tmp_path / "log.db").of("r").pause is not None


def test_after_a_person_has_looked_it_counts_anew(here: Worker, tmp_path: Path) -> None:
    fill(tmp_path, [*traffic(120), *half_right()])
    assert look_once(here)
    with Decisions(tmp_path / "log.db", now=lambda: 2.0, monotonic_s=lambda: 0.0) as writer:
        writer.write(None, [Resumption(route="r", number=1, reason="seen", author="ann")])
    assert look_once(here) == ""
    fill(tmp_path, half_right(60))
    assert look_once(here).startswith("enforcement paused")
    assert read_decided(tmp_path / "log.db").of("r").n_pauses == 2


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ({"critical_em": None}, half_right()),
        ({"mode": "observe"}, half_right()),
        ({"policy": {}}, half_right()),
        ({}, half_right(request_reason="disagreement")),
        ({}, [label(n, correct=True) for n in range(60)]),
        ({}, [label(n, thumbs="down") for n in range(60)]),
        ({}, []),
    ],
)
def test_nothing_is_paused_where_nothing_says_so(tmp_path: Path, changes: dict[str, Any], labels: list[Event]) -> None:
    fill(tmp_path, [*traffic(60), *labels])
    with open_worker(settings_for(tmp_path, **changes)) as opened:
        assert not look_once(opened)
    assert read_holds(tmp_path / "log.db").of("r").cases == ()


def test_a_label_that_names_the_right_answer_is_compared(here: Worker, tmp_path: Path) -> None:
    fill(tmp_path, [*traffic(60), *(label(n, gold="no such number") for n in range(60))])
    assert "EM is 0.0% over the last 60 labels" in look_once(here)
