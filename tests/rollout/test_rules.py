"""Rules that cannot be meant are refused with their place; evidence takes numbers that are some."""

from __future__ import annotations

import math
import re
from typing import Any

import msgspec
import pytest

from suffice.assurance.guarantee import KNOWN_AUDITS
from suffice.errors import ConfigError
from suffice.rollout.evidence import RolloutEvidence, Rules, UnitRun, rules_of
from suffice.settings import Settings, parse_settings
from tests.house.tree import ROOT

NUMBERS = [one for one in Rules.__struct_fields__ if one not in ("automatic", "required", "shares")]


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_that_is_none_is_refused_with_its_place(name: str) -> None:
    values: tuple[Any, ...] = (math.nan, math.inf, -1, "1", True, None)
    for value in values:
        with pytest.raises(ConfigError, match=rf"^rollout\.{name}: got "):
            Rules(**{name: value})


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"shares": ()}, "at least one"),
        ({"shares": (0.5, 0.1)}, "each larger"),
        ({"shares": (0.1, 0.1)}, "each larger"),
        ({"shares": (0.1, 0.6)}, "at most 0.5"),
        ({"shares": (0.0,)}, "above 0"),
        ({"shares": (math.nan,)}, "a finite"),
        ({"required": ("mood",)}, "'mood'; some of latency"),
        ({"em_margin": 0}, "above 0 and below 1"),
        ({"confidence": 0.5}, "above 0.5"),
        ({"most_a_day": 0}, "at least 1"),
        ({"audit_share": 1.5}, "from 0 to 1"),
        ({"most_requests": 50}, "more than warmup_requests"),
    ],
)
def test_what_cannot_be_meant_is_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Rules(**wrong)


def settings(everywhere: dict[str, Any], route: dict[str, Any]) -> Settings:
    routes = {"own": {"upstream": "box", "rollout": route}, "plain": {"upstream": "box"}}
    return parse_settings(
        {"upstreams": {"box": {"url": "http://127.0.0.1:9"}}, "routes": routes, "rollout": everywhere}
    )


def test_a_route_has_the_deployments_rules_but_those_that_it_names() -> None:
    made = settings({"em_margin": 0.02, "most_a_day": 2}, {"em_margin": 0.005, "shares": [0.05, 0.5]})
    own, plain = rules_of(made.routes["own"]), rules_of(made.routes["plain"])
    assert (own.em_margin, own.most_a_day, own.shares, own.n_steps) == (0.005, 2, (0.05, 0.5), 3)
    assert (plain.em_margin, plain.most_a_day, plain.shares) == (0.02, 2, Rules().shares)
    assert rules_of(settings({}, {}).routes["plain"]) == Rules()
    assert Rules().least_class_audits == KNOWN_AUDITS, "under them a class is unknown everywhere else"


@pytest.mark.parametrize("where", ["rollout", "routes.own.rollout"])
@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"em_margin": 2.0}, ".em_margin: got 2.0; above 0 and below 1"),
        ({"shares": []}, ".shares: got [];"),
        ({"latency_cap_s": math.nan}, ".latency_cap_s: got nan; a finite number"),
        ({"required": ["mood"]}, "'mood'; allowed: latency, errors"),
        ({"em_margn": 1}, "did you mean 'em_margin'"),
        ({"warmup_requests": 20_000}, ".most_requests: got 20000; more than warmup_requests, 20000"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused_with_its_table(where: str, wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        settings(*((wrong, {}) if where == "rollout" else ({}, wrong)))
    assert str(refused.value).startswith(where)
    assert says in str(refused.value)


def test_two_tables_that_are_fine_alone_may_not_be_together() -> None:
    with pytest.raises(ConfigError, match=r"^routes\.own\.rollout\.most_requests: got 5000; more than .* 6000"):
        settings({"warmup_requests": 6_000}, {"most_requests": 5_000})


def test_every_rule_stands_on_its_page_with_its_default() -> None:
    text = (ROOT / "docs" / "reference" / "settings.md").read_text(encoding="utf-8")
    section = text.partition("\n## `[rollout]`\n")[2].split("\n## ")[0]
    rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| `")]
    output = {name: row[1] for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    assert set(output) == set(Rules.__struct_fields__)
    for name, value in msgspec.structs.asdict(Rules()).items():
        for part in value if isinstance(value, tuple) else (value,):
            assert (
                str(part).lower() in output[name] or f"{part:,g}" in output[name] or f"{part:,.0f}" in output[name]
            ), name


def test_evidence_refuses_numbers_that_are_none() -> None:
    for wrong in (math.nan, math.inf, -0.1, 1.1):
        with pytest.raises(ValueError, match="satisfaction"):
            RolloutEvidence().with_rating("control", wrong)
    for wrong in (math.nan, math.inf):
        with pytest.raises(ValueError, match="seconds"):
            RolloutEvidence().with_run("control", UnitRun(seconds=wrong), Rules())
        with pytest.raises(ValueError, match="tokens"):
            RolloutEvidence().with_audit("a", 0, full=wrong)
    assert RolloutEvidence().with_run("control", UnitRun(seconds=-5.0), Rules()).latency.control.total == 0.0, (
        "a clock set back"
    )
    assert RolloutEvidence().with_run("control", UnitRun(), Rules()).latency.control.n == 0, "not measured is not zero"
