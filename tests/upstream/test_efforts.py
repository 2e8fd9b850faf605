"""What is known of the efforts of hosted models, what is sent, and what is reported in its place."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from suffice.errors import ConfigError
from suffice.settings import Driver, Effort, Route, Upstream, parse_settings
from suffice.types import Finding, Findings
from suffice.upstream.drivers import (
    DRIVERS,
    ReasoningFields,
    cancel_saves,
    choose_reasoning_fields,
    chosen_by_client,
    effort_problem,
    effort_refusal,
    least_effort_fields,
    model_facts,
    packaged_models,
    thinking_is_off,
)

LEVELS: tuple[Effort, ...] = get_args(Effort)
ROWS = [(driver, pattern) for driver, tables in packaged_models().items() for pattern in tables]


def sent(driver: Driver, model: str, **route: Any) -> ReasoningFields:
    upstream = Upstream(url="http://up", driver=driver)
    return choose_reasoning_fields(
        Route(upstream="up", **route), upstream, {"model": model}, methods=(), policy_budget_tokens=None
    )


def test_every_level_of_the_field_is_one() -> None:
    assert LEVELS == ("none", "minimal", "low", "medium", "high", "xhigh", "max")


@pytest.mark.parametrize(("driver", "pattern"), ROWS)
def test_a_row_names_levels_in_their_order_and_every_level_has_fields(driver: Driver, pattern: str) -> None:
    facts = packaged_models()[driver][pattern]
    assert list(facts.efforts) == [level for level in LEVELS if level in facts.efforts]
    model = pattern.replace("*", "-x").replace("?", ".").replace("[78]", "7").replace("[2-5]", "3")
    model = model.replace("[23]", "3").replace("[134]", "3")
    for level in LEVELS:
        made = sent(driver, model, effort=level)
        upstream, route = Upstream(url="http://up", driver=driver), Route(upstream="up", model=model, effort=level)
        if level in facts.efforts:
            assert (made.effort, made.refusal, effort_problem(route, upstream)) == (level, None, None)
            assert chosen_by_client(dict(made.fields)), "a client that sends this itself has chosen"
            assert (level == "none") == thinking_is_off(made.fields)
        else:
            assert made.fields == {}
            assert made.refusal == effort_problem(route, upstream)
            assert model in (made.refusal or "")


def test_no_row_hides_behind_an_earlier_one() -> None:
    shadowed = [
        (driver, later)
        for driver, tables in packaged_models().items()
        for n, later in enumerate(tables)
        for earlier in list(tables)[:n]
        if earlier.endswith("*") and later.startswith(earlier.rstrip("*")) and "[" not in earlier
    ]
    assert shadowed == []


ADAPTIVE = {"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}
GEMINI_3 = {"extra_body": {"google": {"thinking_config": {"thinking_level": "minimal"}}}}
SENT: list[tuple[Driver, str, Effort, dict[str, Any] | None]] = [
    ("anthropic", "claude-opus-4-7", "max", ADAPTIVE),
    ("anthropic", "claude-opus-5-5", "max", ADAPTIVE),
    ("anthropic", "claude-sonnet-5", "none", {"thinking": {"type": "disabled"}}),
    ("anthropic", "claude-fable-5-1", "none", None),
    ("anthropic", "claude-opus-4-5-20251101", "high", {"output_config": {"effort": "high"}}),
    ("anthropic", "claude-opus-4-5-20251101", "max", None),
    ("anthropic", "claude-sonnet-4-5-20250929", "low", None),
    ("gemini", "gemini-3-flash-preview", "minimal", GEMINI_3),
    ("gemini", "gemini-3.1-pro-preview", "none", None),
    ("gemini", "gemini-2.5-flash", "none", {"reasoning_effort": "none"}),
    ("openai", "gpt-5", "minimal", {"reasoning_effort": "minimal"}),
    ("openai", "gpt-5.1", "minimal", None),
    ("openai", "gpt-5.2", "xhigh", {"reasoning_effort": "xhigh"}),
    ("openai", "gpt-5.2", "max", None),
    ("openai", "gpt-5.6-terra", "max", {"reasoning_effort": "max"}),
    ("openai", "a-model-of-somebody", "max", {"reasoning_effort": "max"}),
    ("deepseek", "deepseek-v4-pro", "low", None),
    ("deepseek", "deepseek-v4-pro", "max", {"thinking": {"type": "enabled"}, "reasoning_effort": "max"}),
    ("openrouter", "anthropic/claude-opus-4.7", "max", {"reasoning": {"effort": "max"}}),
    ("openrouter", "openai/gpt-5.1", "xhigh", None),
    ("openrouter", "somebody/model", "xhigh", {"reasoning": {"effort": "xhigh"}}),
]


@pytest.mark.parametrize(("driver", "model", "level", "fields"), SENT)
def test_a_level_goes_into_the_models_own_field_or_is_refused_by_name(
    driver: Driver, model: str, level: Effort, fields: dict[str, Any] | None
) -> None:
    made = sent(driver, model, effort=level)
    assert made.fields == (fields or {})
    assert (made.refusal is None) == (fields is not None)


@pytest.mark.parametrize(("model", "takes"), [("claude-opus-4-6", True), ("claude-opus-4-7", False), ("", True)])
def test_a_budget_is_not_sent_to_a_model_that_answers_it_with_400(model: str, takes: bool) -> None:
    made = sent("anthropic", model, budget_tokens=2_000)
    assert made.fields == ({"thinking": {"type": "enabled", "budget_tokens": 2_000}} if takes else {})
    route = Route(upstream="up", model=model or None, budget_tokens=2_000)
    assert (effort_problem(route, Upstream(url="http://up", driver="anthropic")) is None) == takes


def test_with_a_budget_that_cannot_be_sent_the_effort_is() -> None:
    made = sent("anthropic", "claude-opus-5", budget_tokens=2_000, effort="max")
    assert (made.fields, made.budget_tokens, made.effort) == (ADAPTIVE, None, "max")


def test_the_owners_table_goes_before_what_is_known() -> None:
    table = {"url": "http://up", "models": {"gpt-5.1": {"efforts": ["low"], "fields": {"think": {"how": "{effort}"}}}}}
    upstream = parse_settings({"upstreams": {"up": table}, "routes": {}}).upstreams["up"]
    route = Route(upstream="up", effort="low")
    made = choose_reasoning_fields(route, upstream, {"model": "gpt-5.1"}, methods=(), policy_budget_tokens=None)
    assert made.fields == {"think": {"how": "low"}}
    assert effort_refusal(model_facts(upstream, "gpt-5.1"), "gpt-5.1", "high") is not None
    with pytest.raises(ConfigError, match="efforts"):
        parse_settings({"upstreams": {"up": {"url": "http://up", "models": {"m": {"efforts": ["huge"]}}}}})


@pytest.mark.parametrize(
    ("driver", "model", "fields"),
    [
        ("openai", "gpt-5.1", {"reasoning_effort": "none"}),
        ("openai", "gpt-4o", {}),
        ("openai", "unknown", {"reasoning_effort": "low"}),
        ("anthropic", "claude-fable-5", {"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}),
    ],
)
def test_a_reask_thinks_as_little_as_the_model_can(driver: Driver, model: str, fields: dict[str, Any]) -> None:
    assert least_effort_fields(Upstream(url="http://up", driver=driver), model) == fields


def test_a_refused_level_is_remembered_for_that_level_and_model_alone() -> None:
    low, high = sent("openai", "a", effort="low"), sent("openai", "a", effort="high")
    assert len({low.name, high.name, sent("openai", "b", effort="low").name}) == 3


def find(verdict: Any) -> Findings:
    entry = Finding(experiment="cancel", verdict=verdict, evidence="")
    return Findings(
        examination_id="x",
        upstream="up",
        url_key="",
        model="m",
        at_s=0.0,
        findings=(entry,),
        n_slots=None,
        context_tokens=None,
        finish=(),
    )


def test_whether_cancelling_saves_is_the_owners_word_then_doctors_then_the_drivers() -> None:
    plain, mistral = Upstream(url="http://up"), Upstream(url="http://up", driver="mistral")
    assert [cancel_saves(plain, None), cancel_saves(plain, find("yes"))] == ["unknown", "yes"]
    assert cancel_saves(plain, find("unclear")) == "unknown"
    assert cancel_saves(Upstream(url="http://up", driver="vllm"), find("ignored")) == "no"
    # That a service ends a stream at once does not say what it bills.
    assert cancel_saves(mistral, find("yes")) == "no"
    assert cancel_saves(Upstream(url="http://up", driver="mistral", cancel_saves="yes"), find("no")) == "yes"
    assert {facts.cancel_saves for facts in DRIVERS.values()} <= {"yes", "no", "unknown"}
