"""Effort and budget before the call: applied where the route acts, recorded, and harmless where they are not taken."""

from __future__ import annotations

from typing import Any

import pytest

from suffice.errors import ConfigError
from suffice_testing import ScriptedThought
from tests.gateway.conftest import Serve
from tests.gateway.served import chat
from tests.gateway.test_stop import chain, enforcing, held, reconciled

VLLM = {"upstream": {"driver": "vllm"}, "fake": {"dialect": "vllm"}}
SGLANG = {"upstream": {"driver": "sglang"}, "fake": {"dialect": "sglang"}}
LLAMA = {"upstream": {"finish": ["raw"]}}
NEVER: dict[str, Any] = {"policy": {"policy": "never"}, "probe": None}
LONG = ScriptedThought([(f"thought number {n} goes on and on\n", str(n)) for n in range(40)], "39")


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
@pytest.mark.parametrize("setup", [LLAMA, VLLM, SGLANG], ids=["llama.cpp", "vllm", "sglang"])
async def test_a_budget_that_binds_is_a_stop_by_budget(serve: Serve, setup: dict[str, Any], stream: bool) -> None:
    async with serve(chain(), route=enforcing(**NEVER, budget_tokens=9), **setup) as g:
        answer = await g.ask(chat(stream=stream))
        assert answer.text == "4"
        assert g.fake.completions[0].thought_ended_by == "budget"
        outcome = await reconciled(g)
        assert (outcome.stopped, outcome.stop_reason, outcome.finish_method) == (True, "budget", "budget")
        assert (outcome.end_reason, outcome.degraded) == ("stopped", ())
        assert answer.report["stop_reason"] == "budget"
        assert len(g.fake.calls) == 1


async def test_a_budget_that_does_not_bind_leaves_a_full_run(serve: Serve) -> None:
    async with serve(chain(), route=enforcing(**NEVER, budget_tokens=500), **VLLM) as g:
        answer = await g.ask(chat(stream=True))
        assert answer.text == "5 dear"
        assert answer.report is None
        outcome = await reconciled(g)
        assert (outcome.stopped, outcome.stop_reason, outcome.finish_method) == (False, None, None)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
async def test_a_server_that_ignores_its_budget_is_noticed_and_the_run_is_whole(serve: Serve, stream: bool) -> None:
    setup = {"upstream": {"driver": "sglang"}, "fake": {"dialect": "sglang", "keeps_budgets": False}}
    async with serve(LONG, route=enforcing(**NEVER, budget_tokens=20), **setup) as g:
        answer = await g.ask(chat(stream=stream))
        assert (answer.text, answer.finish) == ("39", "stop")
        outcome = await reconciled(g)
        assert (outcome.stopped, outcome.degraded, outcome.end_reason) == (False, ("budget",), "done")
        assert g.failed_open("budget") == 1


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
async def test_a_server_that_refuses_the_field_is_asked_without_it_and_not_told_again(
    serve: Serve, stream: bool
) -> None:
    setup = {"upstream": {"driver": "vllm"}, "fake": {"dialect": "vllm", "keeps_budgets": False}}
    async with serve(chain(), route=enforcing(**NEVER, budget_tokens=9), **setup) as g:
        for n_calls in (2, 3):
            answer = await g.ask(chat(f"nonce=q{n_calls}", stream=stream))
            assert (answer.status, answer.text, answer.finish) == (200, "5 dear", "stop")
            assert len(g.fake.completions) == n_calls
        assert [c.status for c in g.fake.completions] == [400, 200, 200]
        for result in await g.episodes(2):
            outcome = result.episode.outcome
            assert (outcome.stopped, outcome.degraded, outcome.end_reason) == (False, ("budget",), "done")
            assert outcome.usage is not None
            assert outcome.usage.prompt_tokens == g.fake.completions[1].prompt_tokens
            assert outcome.overhead.extra_prompt_tokens == 0


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
async def test_a_level_that_the_model_does_not_take_is_reported_and_not_replaced(serve: Serve, stream: bool) -> None:
    models = {"*": {"efforts": ["low", "high"]}}
    async with serve(chain(), route=enforcing(**NEVER, effort="max"), upstream={"models": models}) as g:
        answer = await g.ask(chat(stream=stream, suffice={}))
        (call,) = g.fake.completions
        assert "reasoning_effort" not in str(call.body)
        assert answer.report is not None
        assert answer.report["degraded"] == ["effort"]
        (warning,) = answer.report["warnings"]
        assert "does not take 'max'; it takes low, high" in warning
        assert (await reconciled(g)).degraded == ("effort",)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
async def test_a_model_that_thinks_at_effort_none_is_reported(serve: Serve, stream: bool) -> None:
    models = {"*": {"efforts": ["none"], "off": {"chat_template_kwargs": {"thoughtful": False}}}}
    async with serve(chain(), route=enforcing(**NEVER, effort="none"), upstream={"models": models}) as g:
        answer = await g.ask(chat(stream=stream, suffice={}))
        assert g.fake.completions[0].body["chat_template_kwargs"] == {"thoughtful": False}
        assert answer.text == "5 dear"
        assert answer.report is not None
        assert answer.report["degraded"] == ["effort"]
        assert "'none' was ignored" in answer.report["warnings"][0]
        assert (await reconciled(g)).finish_method == "effort"


@pytest.mark.parametrize(("saves", "stopped"), [("no", False), ("unknown", True)])
async def test_no_call_is_cancelled_where_the_rest_is_billed_all_the_same(
    serve: Serve, saves: str, stopped: bool
) -> None:
    async with serve(held(), route=enforcing(), upstream={"finish": ["raw"], "cancel_saves": saves}) as g:
        answer = await g.ask(chat(stream=True))
        outcome = await reconciled(g)
        assert (outcome.stopped, answer.text) == (stopped, "4" if stopped else "5 dear")


async def test_a_request_that_is_wrong_itself_gets_the_upstreams_verdict(serve: Serve) -> None:
    setup = {"upstream": {"driver": "vllm"}, "fake": {"dialect": "vllm"}}
    async with serve(chain(), route=enforcing(**NEVER, budget_tokens=9), **setup) as g:
        wrong = await g.ask(chat(separate_reasoning=True))
        assert (wrong.status, wrong.json["error"]["code"]) == (400, "not_my_dialect")
        right = await g.ask(chat())
        assert right.text == "4"  # the field was not to blame, and is still sent


@pytest.mark.parametrize("setup", [LLAMA, VLLM], ids=["llama.cpp", "vllm"])
async def test_an_effort_is_on_record_and_is_no_stop(serve: Serve, setup: dict[str, Any]) -> None:
    async with serve(chain(), route=enforcing(**NEVER, effort="none"), **setup) as g:
        answer = await g.ask(chat(stream=True))
        assert answer.thought == ""
        assert answer.finish == "stop"
        outcome = await reconciled(g)
        assert (outcome.stopped, outcome.finish_method, outcome.end_reason) == (False, "effort", "done")
        assert g.fake.completions[0].body["chat_template_kwargs"]["enable_thinking"] is False


@pytest.mark.parametrize(
    "route",
    [{"mode": "observe"}, {"uncertified": False}, {"audit_share": 1.0}],
    ids=["observe", "uncertified", "audit"],
)
async def test_nothing_is_chosen_where_the_route_may_not_act(serve: Serve, route: dict[str, Any]) -> None:
    async with serve(chain(), route=enforcing(**NEVER, budget_tokens=9, **route), **VLLM) as g:
        assert (await g.ask(chat())).text == "5 dear"
        assert "thinking_token_budget" not in g.fake.completions[0].body


async def test_nothing_is_chosen_where_a_refusal_could_not_be_made_good(serve: Serve) -> None:
    setup = {"upstream": {"driver": "vllm", "retries": 0}, "fake": {"dialect": "vllm", "keeps_budgets": False}}
    async with serve(chain(), route=enforcing(**NEVER, budget_tokens=9, max_extra_calls=0), **setup) as g:
        assert (await g.ask(chat())).text == "5 dear"
        assert len(g.fake.calls) == 1


async def test_the_clients_own_choice_stands(serve: Serve) -> None:
    async with serve(chain(), route=enforcing(**NEVER, budget_tokens=9), **VLLM) as g:
        assert (await g.ask(chat(thinking_token_budget=14))).text.startswith("4")
        assert g.fake.completions[0].body["thinking_token_budget"] == 14
        assert (await g.outcome()).stopped is False


async def test_a_policy_may_stop_before_the_budget_of_the_route(serve: Serve) -> None:
    slow = chain(delay_s=0.006)
    async with serve(slow, route=enforcing(budget_tokens=500), **LLAMA) as g:
        assert (await g.ask(chat(stream=True))).report["stop_reason"] == "suffices"


def test_what_a_driver_has_no_field_for_is_refused_at_the_start() -> None:
    from suffice.settings import parse_settings
    from suffice.wiring.routes import check_routes

    for route in ({"budget_tokens": 5}, {"effort": "low"}):
        raw = {
            "upstreams": {"up": {"url": "http://h", "driver": "deepseek"}},
            "routes": {"r": {"upstream": "up", **route}},
        }
        with pytest.raises(ConfigError, match=next(iter(route))):
            check_routes(parse_settings(raw))
