"""Money on the wire: a stop that costs more than it saves is not made, and every cent is accounted for."""

from __future__ import annotations

from typing import Any

import pytest

from suffice.assurance.money import RunLengths
from suffice.gateway.context import GatewayState
from suffice.types import Outcome, Usage
from suffice_testing import Reply, Samples, ScriptedThought
from tests.gateway.conftest import Serve
from tests.gateway.served import Served, chat
from tests.gateway.test_stop import N_THOUGHT, STEPS, chain, enforcing, held

OUTPUT_DEAR = {"input_usd_per_mtok": 1.0, "cached_input_usd_per_mtok": 0.1, "output_usd_per_mtok": 100.0}
INPUT_DEAR = {"input_usd_per_mtok": 100.0, "output_usd_per_mtok": 1.0}


def seen_before(*lengths: tuple[int, int]) -> Any:
    """The gateway has already seen these full runs on its route: (tokens of the thought, how many runs)."""

    def put(gateway: GatewayState) -> None:
        runs = gateway.statistics["r"].full_runs = RunLengths()
        for thought, n in lengths:
            for _ in range(n):
                runs.add(Usage(prompt_tokens=9, completion_tokens=thought + 2, reasoning_tokens=thought))

    return put


def skipped(g: Served) -> float:
    return g.gateway.metrics.value("suffice_stops_skipped_total", route="r", reason="not_worth_it")


def upstream(prices: dict[str, float] | None, *finish: str, slots: int = 4) -> dict[str, Any]:
    return {"finish": list(finish), "slots": slots} | ({} if prices is None else {"prices": prices})


@pytest.mark.parametrize("method", ["raw", "prefill"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
async def test_a_stop_that_is_not_worth_it_leaves_the_run_to_its_own_end(
    serve: Serve, method: str, stream: bool
) -> None:
    slow, before = chain(delay_s=0.004), seen_before((N_THOUGHT, 30))
    async with serve(slow, upstream=upstream(INPUT_DEAR, method), route=enforcing(), change=before) as g:
        answer = await g.ask(chat(stream=stream, suffice={}))
        assert answer.text == "5 dear"
        assert answer.report["stopped"] is False
        assert answer.report["stop_reason"] is None
        assert answer.report["degraded"] == []
        assert answer.report["saved_usd_estimate"] is None
        outcome = await g.outcome()
        assert (outcome.end_reason, outcome.stopped, outcome.stop_step) == ("done", False, None)
        assert {c.purpose for c in outcome.calls} == {"main", "probe"}
        assert not any(c.cancelled for c in outcome.calls)
        assert skipped(g) >= 1
        blocked = [step for step in outcome.steps if "not worth it" in step.reason]
        assert blocked
        assert all(step.action == "continue" and "finishing costs about $" in step.reason for step in blocked)
        # A probe that still ran when the object was written is in the log alone.
        assert outcome.cost_usd is not None
        assert 0 < answer.report["cost_usd"] <= outcome.cost_usd * (1 + 1e-9)


CASES: dict[str, tuple[dict[str, float] | None, Any]] = {
    "output is dear": (OUTPUT_DEAR, seen_before((N_THOUGHT, 30))),
    "no prices": (None, seen_before((N_THOUGHT, 30))),
    "free": ({"input_usd_per_mtok": 0, "output_usd_per_mtok": 0}, seen_before((N_THOUGHT, 30))),
    "too few full runs": (INPUT_DEAR, seen_before((N_THOUGHT, 19))),
    "no longer run was seen": (INPUT_DEAR, seen_before((5, 30))),
    "a long way to go": ({"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 1.0}, seen_before((5_000, 30))),
}


@pytest.mark.parametrize("case", CASES)
async def test_a_stop_that_is_worth_it_or_unknown_is_made(serve: Serve, case: str) -> None:
    prices, before = CASES[case]
    async with serve(held(), upstream=upstream(prices, "raw"), route=enforcing(), change=before) as g:
        answer = await g.ask(chat(stream=True))
        assert answer.text == "4"
        assert answer.report["stopped"] is True
        assert skipped(g) == 0
        assert (await g.outcome()).stop_step == 4


async def test_later_stops_are_judged_anew(serve: Serve) -> None:
    # After step 4 (13 tokens) nearly all runs of old ended 3 tokens later; after step 5 (17 tokens)
    # only the long ones are left, and stopping is worth it.
    before = seen_before((16, 1_000), (900, 8))
    prices = {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 1.0}
    async with serve(held(), upstream=upstream(prices, "raw"), route=enforcing(), change=before) as g:
        answer = await g.ask(chat(stream=True))
        assert answer.report["stopped"] is True
        assert skipped(g) == 1
        outcome = await g.outcome()
        assert outcome.stop_step == 5
        assert [step.action for step in outcome.steps] == ["continue"] * 4 + ["stop"]
        assert "not worth it" in outcome.steps[3].reason
        assert outcome.would_answer == outcome.answer == "4"


async def test_closing_in_place_is_always_worth_it(serve: Serve) -> None:
    slow, before = chain(delay_s=0.006), seen_before((N_THOUGHT, 30))
    route = enforcing()
    async with serve(slow, upstream=upstream(INPUT_DEAR, "native", "raw"), route=route, change=before) as g:
        answer = await g.ask(chat(stream=True))
        assert answer.report["stopped"] is True
        assert (await g.outcome()).finish_method == "native"
        assert skipped(g) == 0


async def test_audits_and_observe_apply_the_same_test_and_count_nothing(serve: Serve) -> None:
    slow, before = chain(delay_s=0.002), seen_before((N_THOUGHT, 30))
    route = enforcing(audit_share=1.0)
    async with serve(slow, upstream=upstream(INPUT_DEAR, "raw"), route=route, change=before) as g:
        await g.ask(chat(stream=True))
        outcome = await g.outcome()
        assert outcome.stop_step is None, "a live run would not have stopped here"
        assert any("not worth it" in step.reason for step in outcome.steps)
        assert skipped(g) == 0


async def test_full_runs_teach_what_is_left(serve: Serve) -> None:
    async with serve(chain(), upstream=upstream(OUTPUT_DEAR, "raw"), route={"scorer": "number"}) as g:
        for n in range(20):
            await g.ask(chat(f"question {n}", stream=bool(n % 2)))
        await g.episodes(20)
        left = g.gateway.statistics["r"].full_runs.remaining(10)
        assert left is not None
        assert (left.n, left.thought_tokens, left.answer_tokens) == (20, N_THOUGHT - 10, 2)


async def test_a_shadow_stop_says_what_the_run_would_have_cost(serve: Serve) -> None:
    prices = {"input_usd_per_mtok": 1.0, "cached_input_usd_per_mtok": 1.0, "output_usd_per_mtok": 100.0}
    route, before = enforcing(audit_share=1.0), seen_before((N_THOUGHT, 30))
    async with serve(chain(delay_s=0.004), upstream=upstream(prices, "raw"), route=route, change=before) as g:
        await g.ask(chat(stream=True))
        outcome = await g.outcome()
        assert outcome.stop_step == 4
        assert outcome.saved_usd_estimate is None
        assert outcome.usage is not None
        assert outcome.cost_usd is not None
        prompt = outcome.usage.prompt_tokens
        probes = [c for c in outcome.calls if c.purpose == "probe"]
        assert len(probes) == 6
        later = sum(((c.prompt_tokens or 0) * 1.0 + c.completion_tokens * 100.0) / 1e6 for c in probes[4:])
        unwritten = (N_THOUGHT - 13) * 100.0 / 1e6
        closing = (prompt + 13 + 4) * 1.0 / 1e6
        # The prompt is read off a probe at that moment, whose line ends the fake does not count.
        expected = outcome.cost_usd - later - unwritten + closing
        assert outcome.would_cost_usd == pytest.approx(expected, abs=8e-6)


@pytest.mark.parametrize("known", [True, False])
async def test_shadow_samples_would_have_cost_those_up_to_the_stop(serve: Serve, known: bool) -> None:
    route = {"kind": "samples", "samples": 15, "wave": 4, "scorer": "number", "policy": {"policy": "beta"}}
    up: dict[str, Any] = {"prices": OUTPUT_DEAR} if known else {}
    async with serve(Samples(["the answer is 4"]), upstream=up, route=route) as g:
        await g.ask(chat())
        outcome = await g.outcome()
        assert outcome.stop_step is not None
        if not known:
            assert outcome.would_cost_usd is None
            return
        assert outcome.cost_usd is not None
        assert outcome.would_cost_usd == pytest.approx(outcome.cost_usd * outcome.stop_step / 8), "8 of 15 decide it"


async def test_a_restart_forgets_nothing_that_was_learnt(serve: Serve) -> None:
    route = enforcing(policy={"policy": "never"}, audit_share=1.0)
    up = upstream(OUTPUT_DEAR, "raw")
    async with serve(chain(), upstream=up, route=route, fake={"prefix_cache": True}) as g:
        for n in range(20):
            await g.ask(chat(f"question {n}"))
        await g.episodes(20)
        seen = g.gateway.statistics["r"]
        before = seen.full_runs.remaining(10), seen.hand_overs.cached_share
    async with serve(chain(), upstream=up, route=route) as again:
        assert (
            again.gateway.statistics["r"].full_runs.remaining(10),
            again.gateway.statistics["r"].hand_overs.cached_share,
        ) == before
        assert before[0] is not None
        assert 0 < before[1] < 1


async def test_a_budget_that_the_engine_keeps_says_what_it_saved(serve: Serve) -> None:
    route = enforcing(policy={"policy": "fixed-budget", "max_tokens": 9}, probe=None)
    up, before = upstream(OUTPUT_DEAR, "native"), seen_before((500, 30))
    async with serve(chain(delay_s=0.003), upstream=up, route=route, change=before) as g:
        answer = await g.ask(chat())
        assert answer.report["stop_reason"] == "budget"
        assert answer.report["tokens_saved_estimate"] == 502 - g.fake.total_completion_tokens
        assert answer.report["saved_usd_estimate"] > 0
        await assert_reconciled(g, OUTPUT_DEAR, 1)


async def test_a_budget_that_was_not_reached_saved_nothing(serve: Serve) -> None:
    route = enforcing(policy={"policy": "fixed-budget", "max_tokens": 400}, probe=None)
    up, before = upstream(OUTPUT_DEAR, "native"), seen_before((500, 30))
    async with serve(chain(), upstream=up, route=route, change=before) as g:
        answer = await g.ask(chat(suffice={}))
        assert answer.report["stopped"] is False
        assert answer.report["tokens_saved_estimate"] is answer.report["saved_usd_estimate"] is None
        outcome = await g.outcome()
        assert (outcome.tokens_saved_estimate, outcome.estimate_method) == (None, None)


# --------------------------------------------------------------------------- the books


def billed(g: Served, prices: dict[str, float]) -> float:
    """What the upstream would bill by its own counters. In US dollars."""
    read = sum(c.prompt_tokens for c in g.fake.completions)
    cached = sum(c.cached_tokens for c in g.fake.completions)
    dear, cheap = prices["input_usd_per_mtok"], prices.get("cached_input_usd_per_mtok")
    written = g.fake.total_completion_tokens * prices["output_usd_per_mtok"]
    return ((read - cached) * dear + cached * (dear if cheap is None else cheap) + written) / 1e6


async def assert_reconciled(g: Served, prices: dict[str, float], n: int) -> list[Outcome]:
    outcomes = [e.episode.outcome for e in await g.episodes(n)]
    await g.quiet()
    assert all(o.cost_usd is not None for o in outcomes)
    spent = sum(o.cost_usd or 0.0 for o in outcomes)
    assert spent == pytest.approx(billed(g, prices), rel=1e-9)
    counted = [
        g.gateway.metrics.value("suffice_cost_usd_total", route="r", type=kind)
        for kind in ("input", "cached_input", "output")
    ]
    assert sum(counted) == pytest.approx(spent)
    return outcomes


async def test_full_runs_with_probes_and_a_cache_reconcile(serve: Serve) -> None:
    route = enforcing(policy={"policy": "never"})
    up = upstream(OUTPUT_DEAR, "raw")
    async with serve(chain(delay_s=0.002), upstream=up, route=route, fake={"prefix_cache": True}) as g:
        answers = [await g.ask(chat(stream=stream, suffice={})) for stream in (True, False, True)]
        outcomes = await assert_reconciled(g, OUTPUT_DEAR, 3)
        assert sum(c.cached_tokens for o in outcomes for c in o.calls) > 0
        report = sorted(a.report["cost_usd"] for a in answers)
        for less, all_of_it in zip(report, sorted(o.cost_usd or 0 for o in outcomes), strict=True):
            assert 0 < less <= all_of_it * (1 + 1e-9)  # a probe that still ran is in the log alone
        for o in outcomes:
            assert o.cost_usd is not None
            assert o.overhead_usd is not None
            assert 0 < o.overhead_usd < o.cost_usd
            main = next(c for c in o.calls if c.purpose == "main")
            alone = (
                (main.prompt_tokens or 0) - main.cached_tokens + 0.1 * main.cached_tokens + 100 * main.completion_tokens
            ) / 1e6
            assert o.cost_usd - o.overhead_usd == pytest.approx(alone)
        assert g.gateway.statistics["r"].hand_overs.cached_share > 0.3


@pytest.mark.parametrize("slots", [1, 4])
async def test_stopped_runs_reconcile_and_say_what_they_saved(serve: Serve, slots: int) -> None:
    prices = {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 100.0}
    up, before = upstream(prices, "raw", slots=slots), seen_before((500, 30))
    async with serve(held(), upstream=up, route=enforcing(), change=before) as g:
        answer = await g.ask(chat(stream=True))
        outcome = (await assert_reconciled(g, prices, 1))[0]
        assert outcome.stopped
        assert answer.report["cost_usd"] == pytest.approx(outcome.cost_usd)
        assert answer.report["saved_usd_estimate"] == pytest.approx(outcome.saved_usd_estimate)
        # In full, a thought of 500 tokens and an answer of 2; the upstream counts what was generated instead of them.
        assert outcome.tokens_saved_estimate == 502 - g.fake.total_completion_tokens
        assert outcome.overhead.probe_tokens > 0
        main = next(call for call in outcome.calls if call.purpose == "main")
        thought = sum(step.tokens for step in outcome.steps)
        assert outcome.steps[-1].late_tokens == main.completion_tokens - thought > 0, (
            "said while the probe was answered"
        )
        assert outcome.usage is not None
        prompt = outcome.usage.prompt_tokens
        full = (prompt * 1.0 + 502 * 100.0) / 1e6
        assert outcome.saved_usd_estimate == pytest.approx(full - (outcome.cost_usd or 0))


async def test_samples_reconcile_and_say_what_they_saved(serve: Serve) -> None:
    route = {
        "kind": "samples",
        "samples": 15,
        "wave": 1,
        "scorer": "number",
        "mode": "enforce",
        "uncertified": True,
        "audit_share": 0.0,
        "policy": {"policy": "beta"},
    }
    up = {"prices": OUTPUT_DEAR}
    async with serve(Samples(["the answer is 4"]), upstream=up, route=route, fake={"prefix_cache": True}) as g:
        answer = await g.ask(chat(suffice={}))
        outcome = (await assert_reconciled(g, OUTPUT_DEAR, 1))[0]
        assert outcome.stopped
        n = len(outcome.steps)
        assert n < 8, "behind the eighth the vote is decided"
        assert outcome.cost_usd is not None
        assert outcome.overhead_usd == 0.0, "a sample's prompt is read in a full run too"
        assert answer.report["cost_usd"] == pytest.approx(outcome.cost_usd)
        assert answer.report["saved_usd_estimate"] == pytest.approx(outcome.cost_usd / n * (15 - n))


async def test_free_is_zero_and_unknown_is_null(serve: Serve) -> None:
    free = {"prices": {"input_usd_per_mtok": 0, "output_usd_per_mtok": 0}}
    async with serve(chain(), upstream=free, route={"scorer": "number"}) as g:
        assert (await g.ask(chat(suffice={}))).report["cost_usd"] == 0.0
        assert (await g.outcome()).cost_usd == 0.0


async def test_without_prices_money_is_left_out(serve: Serve) -> None:
    async with serve(chain(), route={"scorer": "number"}) as g:
        assert (await g.ask(chat(suffice={}))).report["cost_usd"] is None
        outcome = await g.outcome()
        assert (outcome.cost_usd, outcome.overhead_usd, outcome.saved_usd_estimate) == (None, None, None)


async def test_a_prompt_that_nobody_counted_has_no_price(serve: Serve) -> None:
    async with serve(chain(usage="none"), upstream={"prices": OUTPUT_DEAR}, route={"scorer": "number"}) as g:
        assert (await g.ask(chat(stream=True, suffice={}))).report["cost_usd"] is None
        assert (await g.outcome()).cost_usd is None


async def test_what_passes_through_has_its_price_too(serve: Serve) -> None:
    async with serve(Reply(answer=("4",)), upstream={"prices": OUTPUT_DEAR}, route={"mode": "off"}) as g:
        await g.ask(chat())
        await assert_reconciled(g, OUTPUT_DEAR, 1)


async def test_a_request_that_was_never_sent_has_no_price(serve: Serve) -> None:
    async with serve(ScriptedThought(STEPS, "5"), upstream={"prices": OUTPUT_DEAR}) as g:
        assert (await g.ask(b"{")).status == 400
        assert (await g.outcome()).cost_usd is None, "no upstream was chosen, so no prices stood"
