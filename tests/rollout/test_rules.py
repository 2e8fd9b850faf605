"""Rules that cannot be meant are refused with their place; evidence takes numbers that are some."""

from __future__ import annotations

import math
import re
from dataclasses import fields
from typing import Any

import pytest

from suffice.errors import ConfigError
from suffice.rollout.evidence import Evidence, Run
from suffice.rollout.rules import Rules
from tests.house.tree import ROOT


@pytest.mark.parametrize("name", [one.name for one in fields(Rules) if one.name not in ("shares", "required")])
@pytest.mark.parametrize("value", [math.nan, math.inf, -1, "1", True, None])
def test_a_number_that_is_none_is_refused_with_its_place(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^rollout\.{name}: got "):
        Rules(**{name: value})


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"shares": ()}, "at least one"), ({"shares": (0.5, 0.1)}, "each larger"),
        ({"shares": (0.1, 0.1)}, "each larger"),
        ({"shares": (0.1, 0.6)}, "at most 0.5"), ({"shares": (0.0,)}, "above 0"), ({"shares": (math.nan,)}, "a finite"),
        ({"required": ("mood",)}, "'mood'; some of latency"), ({"em_margin": 0}, "above 0 and below 1"),
        ({"confidence": 0.5}, "above 0.5"), ({"most_a_day": 0}, "at least 1"), ({"audit_share": 1.5}, "from 0 to 1"),
        ({"most_requests": 50}, "more than warmup_requests"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Rules(**wrong)


def test_every_rule_stands_on_its_page_with_its_default() -> None:
    text = (ROOT / "docs" / "reference" / "rollout.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in text.partition("\n## Rules\n")[2].splitlines() if line.startswith("| `")]
    said = {name: row[1] for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    assert set(said) == {one.name for one in fields(Rules)}
    for name, value in ((one.name, getattr(Rules(), one.name)) for one in fields(Rules)):
        for part in value if isinstance(value, tuple) else (value,):
            assert str(part) in said[name] or f"{part:,g}" in said[name] or f"{part:,.0f}" in said[name], name


def test_evidence_refuses_numbers_that_are_none() -> None:
    for wrong in (math.nan, math.inf, -0.1, 1.1):
        with pytest.raises(ValueError, match="satisfaction"):
            Evidence().with_rating("control", wrong)
    for wrong in (math.nan, math.inf):
        with pytest.raises(ValueError, match="seconds"):
            Evidence().with_run("control", Run(seconds=wrong), Rules())
        with pytest.raises(ValueError, match="tokens"):
            Evidence().with_audit("a", 0, full=wrong)
    assert Evidence().with_run("control", Run(seconds=-5.0), Rules()).latency.control == 0.0, "a clock set back"
    assert Evidence().with_run("control", Run(), Rules()).latency.n_control == 0, "not measured is not zero"
