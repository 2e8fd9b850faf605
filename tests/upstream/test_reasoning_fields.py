"""What is told an engine before the call: in its own fields, and never over what the client said."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from suffice.settings import Driver, Effort, Route, Upstream
from suffice.upstream.drivers import (
    DRIVERS,
    NESTED_THINKING_FIELDS,
    THINKING_FIELDS,
    ReasoningFields,
    choose_reasoning_fields,
    chosen_by_client,
    effort_problem,
    merge_fields,
    thinking_is_off,
)

BUDGETS: dict[Driver, dict[str, Any] | None] = {
    "llama.cpp": {"reasoning_budget_tokens": 2000, "reasoning_budget_message": "\n"},
    "vllm": {"thinking_token_budget": 2000},
    "sglang": {"custom_params": {"thinking_budget": 2000}},
    "openrouter": {"reasoning": {"max_tokens": 2000}},
    "anthropic": {"thinking": {"type": "enabled", "budget_tokens": 2000}},
    "gemini": {"extra_body": {"google": {"thinking_config": {"thinking_budget": 2000}}}},
    "openai": None,
    "deepseek": None,
    "mistral": None,
}
LOW: dict[Driver, dict[str, Any] | None] = {
    "llama.cpp": {"chat_template_kwargs": {"reasoning_effort": "low"}},
    "vllm": {"reasoning_effort": "low"},
    "sglang": {"reasoning_effort": "low"},
    "openai": {"reasoning_effort": "low"},
    "mistral": {"reasoning_effort": "low"},
    "openrouter": {"reasoning": {"effort": "low"}},
    "gemini": {"reasoning_effort": "low"},
    "deepseek": None,
}


def chosen(driver: Driver = "vllm", body: dict[str, Any] | None = None, **route: Any) -> ReasoningFields:
    policy = route.pop("policy_budget_tokens", None)
    methods = route.pop("methods", ("raw",))
    return choose_reasoning_fields(
        Route(upstream="up", **route),
        Upstream(url="http://up", driver=driver),
        body or {},
        methods=methods,
        policy_budget_tokens=policy,
    )


@pytest.mark.parametrize("driver", BUDGETS)
def test_a_budget_stands_in_the_engines_own_field(driver: Driver) -> None:
    route, upstream = Route(upstream="up", budget_tokens=2000), Upstream(url="http://up", driver=driver)
    if BUDGETS[driver] is None:
        assert "budget_tokens" in (effort_problem(route, upstream) or "")
        return
    assert effort_problem(route, upstream) is None
    made = chosen(driver, budget_tokens=2000)
    assert (made.fields, made.budget_tokens, made.site) == (BUDGETS[driver], 2000, "budget")


@pytest.mark.parametrize("driver", LOW)
def test_an_effort_stands_in_the_engines_own_field(driver: Driver) -> None:
    route, upstream = Route(upstream="up", effort="low"), Upstream(url="http://up", driver=driver)
    if LOW[driver] is None:
        assert "effort" in (effort_problem(route, upstream) or "")
        return
    assert effort_problem(route, upstream) is None
    made = chosen(driver, effort="low")
    assert (made.fields, made.effort, made.site) == (LOW[driver], "low", "effort")


@pytest.mark.parametrize("driver", DRIVERS)
def test_every_driver_can_be_told_not_to_think_and_is_understood(driver: Driver) -> None:
    level: Effort = "none"
    fields = DRIVERS[driver].effort(level)
    assert fields
    assert thinking_is_off(fields)
    assert chosen_by_client(fields)
    assert effort_problem(Route(upstream="up", effort=level), Upstream(url="http://up", driver=driver)) is None


@pytest.mark.parametrize(
    "fields",
    [{name: 1} for name in THINKING_FIELDS]
    + [{outer: {name: False}} for outer, names in NESTED_THINKING_FIELDS.items() for name in names],
    ids=str,
)
def test_what_the_client_says_itself_stands(fields: dict[str, Any]) -> None:
    assert chosen("vllm", fields, budget_tokens=2000, effort="low").fields == {}


@pytest.mark.parametrize("fields", [{}, {"chat_template_kwargs": {"language": "fr"}}, {"reasoning_effort": None}])
def test_what_says_nothing_of_thinking_does_not(fields: dict[str, Any]) -> None:
    assert chosen("vllm", fields, budget_tokens=2000).fields == BUDGETS["vllm"]


def test_a_policy_that_is_a_budget_is_left_to_an_engine_whose_native_way_comes_first() -> None:
    native = ("native", "raw")
    assert chosen("vllm", policy_budget_tokens=50).fields == {}
    fields = chosen("vllm", policy_budget_tokens=50, methods=native).fields
    assert fields["thinking_token_budget"] == 50
    # The run can still be ended by its name before its budget is used up.
    assert fields["vllm_xargs"]["suffice_text"] == "\n</think>"
    armed = chosen("llama.cpp", policy_budget_tokens=50, methods=native)
    assert armed.fields == {
        "reasoning_control": True,
        "reasoning_budget_message": "\n",
        "reasoning_budget_tokens": 50,
    }
    assert chosen("llama.cpp", policy_budget_tokens=50, budget_tokens=9, methods=native).budget_tokens == 9


def test_an_engine_is_armed_for_its_control_even_when_the_client_chose_a_budget() -> None:
    made = chosen("llama.cpp", {"reasoning_budget_tokens": 7}, policy_budget_tokens=50, methods=("native",))
    assert made.fields == {"reasoning_control": True, "reasoning_budget_message": "\n"}
    assert (made.budget_tokens, made.site) == (None, "native")


def test_fields_are_joined_with_the_clients_and_change_nothing_of_its_own() -> None:
    body = {"chat_template_kwargs": {"language": "fr"}, "model": "m"}
    before = msgspec.json.encode(body)
    joined = merge_fields(body, {"chat_template_kwargs": {"enable_thinking": False}, "x": 1})
    assert joined == {"chat_template_kwargs": {"language": "fr", "enable_thinking": False}, "model": "m", "x": 1}
    assert msgspec.json.encode(body) == before


OFF = [{"reasoning_effort": "none"}, {"thinking_token_budget": 0}, {"reasoning": {"enabled": False}}]
NOT_OFF = [{}, {"reasoning_effort": "low"}, {"reasoning_budget_tokens": False}, {"thinking": "x"}]


@pytest.mark.parametrize("body", OFF)
def test_other_ways_to_switch_thinking_off(body: dict[str, Any]) -> None:
    assert thinking_is_off(body)


@pytest.mark.parametrize("body", NOT_OFF)
def test_what_does_not_switch_it_off(body: dict[str, Any]) -> None:
    assert not thinking_is_off(body)
