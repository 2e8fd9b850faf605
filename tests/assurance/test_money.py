"""Money adds up, unknown is never 0, and a stop is made only where it is the cheaper way."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice.assurance.money import Finish, TokenCost, cost_of, cost_of_call, cost_refusal, finishing_cost, usd
from suffice.settings import Prices
from suffice.types import UpstreamCall

PRICE = st.floats(0, 1_000)
N = st.integers(0, 10**7)
DEAR = Prices(input_usd_per_mtok=2.0, cached_input_usd_per_mtok=0.5, output_usd_per_mtok=10.0)
FREE = Prices(input_usd_per_mtok=0.0, output_usd_per_mtok=0.0)


def prices() -> st.SearchStrategy[Prices]:
    return st.builds(
        Prices,
        input_usd_per_mtok=PRICE,
        output_usd_per_mtok=PRICE,
        cached_input_usd_per_mtok=st.one_of(st.none(), PRICE),
    )


def call(prompt: int | None, cached: int, completion: int) -> UpstreamCall:
    return UpstreamCall(
        purpose="main", prompt_tokens=prompt, cached_tokens=cached, completion_tokens=completion, source="provider"
    )


calls = st.builds(call, N, N, N)


def total(costs: Iterable[TokenCost | None]) -> TokenCost:
    return sum((cost for cost in costs if cost is not None), TokenCost())


@given(prices(), st.lists(calls, max_size=6), st.lists(calls, max_size=6))
def test_cost_is_additive_over_calls(p: Prices, one: list[UpstreamCall], other: list[UpstreamCall]) -> None:
    first, second, both = (total(cost_of_call(p, c) for c in part) for part in (one, other, one + other))
    assert both.total_usd == pytest.approx(first.total_usd + second.total_usd, rel=1e-12)


@given(prices(), N, N, N, st.integers(1, 1_000))
def test_more_tokens_never_cost_less(p: Prices, prompt: int, cached: int, completion: int, more: int) -> None:
    base = cost_of(p, prompt_tokens=prompt, cached_tokens=min(cached, prompt), completion_tokens=completion)
    longer = cost_of(
        p, prompt_tokens=prompt + more, cached_tokens=min(cached, prompt), completion_tokens=completion + more
    )
    assert longer.total_usd >= base.total_usd * (1 - 1e-12) >= 0


@given(PRICE, st.floats(0, 1), PRICE, N, st.integers(0, 2 * 10**7))
def test_a_cached_prompt_is_never_dearer_where_it_is_priced_so(
    price: float, share: float, output: float, prompt: int, cached: int
) -> None:
    p = Prices(input_usd_per_mtok=price, cached_input_usd_per_mtok=share * price, output_usd_per_mtok=output)
    with_cache, without = cost_of(p, prompt_tokens=prompt, cached_tokens=cached), cost_of(p, prompt_tokens=prompt)
    assert with_cache.total_usd <= without.total_usd * (1 + 1e-12)
    as_input = Prices(input_usd_per_mtok=price, output_usd_per_mtok=output)
    same = cost_of(as_input, prompt_tokens=prompt, cached_tokens=cached)
    assert same.total_usd == pytest.approx(without.total_usd)


def test_free_is_zero_and_unknown_is_none() -> None:
    free = cost_of_call(FREE, call(10, 0, 10))
    assert free == TokenCost(0.0, 0.0, 0.0)
    assert free.total_usd == 0.0
    assert cost_of_call(DEAR, call(None, 0, 10)) is None


def test_a_call_by_hand() -> None:
    # 1,000 prompt tokens, 400 of them cached: 600 at $2, 400 at $0.50, and 50 generated at $10 a million.
    cost = cost_of_call(DEAR, call(1_000, 400, 50))
    assert cost is not None
    assert cost.input_usd == pytest.approx(0.0012)
    assert cost.cached_input_usd == pytest.approx(0.0002)
    assert cost.output_usd == pytest.approx(0.0005)
    assert cost.total_usd == pytest.approx(0.0019)
    assert cost.prompt_usd == pytest.approx(0.0014)


# finish, remaining tokens, finishing cost and cost of going on in millionths of a dollar, worth it?
TABLE: list[tuple[dict[str, Any], float, float, float, bool]] = [
    # native: 20 answer tokens against 300 + 20.
    ({"method": "native", "prompt_tokens": 5_000, "thought_tokens": 800, "answer_tokens": 20}, 320, 200, 3_200, True),
    # native is never dearer than going on, not even at the very end.
    ({"method": "native", "prompt_tokens": 5_000, "thought_tokens": 800, "answer_tokens": 20}, 20, 200, 200, True),
    # raw, nothing cached: 1,000 read again = 2,000, 20 written = 200; going on 500 = 5,000.
    (
        {"method": "raw", "prompt_tokens": 200, "thought_tokens": 796, "closing_tokens": 4, "answer_tokens": 20},
        500,
        2_200,
        5_000,
        True,
    ),
    # the same with little left: 200 tokens = 2,000 is cheaper than 2,200.
    (
        {"method": "raw", "prompt_tokens": 200, "thought_tokens": 796, "closing_tokens": 4, "answer_tokens": 20},
        200,
        2_200,
        2_000,
        False,
    ),
    # the same with everything cached: 1,000 at 0.5 = 500, and 200.
    (
        {
            "method": "raw",
            "prompt_tokens": 200,
            "thought_tokens": 796,
            "closing_tokens": 4,
            "answer_tokens": 20,
            "cached_share": 1.0,
        },
        200,
        700,
        2_000,
        True,
    ),
    # a long prompt that no cache holds is dear to send again: 20,000 = 40,000.
    (
        {"method": "prefill", "prompt_tokens": 19_000, "thought_tokens": 1_000, "answer_tokens": 20},
        2_000,
        40_200,
        20_000,
        False,
    ),
    # half of it cached: 10,000 at 2 and 10,000 at 0.5 = 25,000.
    (
        {
            "method": "prefill",
            "prompt_tokens": 19_000,
            "thought_tokens": 1_000,
            "answer_tokens": 20,
            "cached_share": 0.5,
        },
        3_000,
        25_200,
        30_000,
        True,
    ),
    # overlap is paid for as output: 100 read = 200, 20 + 90 written = 1,100.
    (
        {"method": "raw", "prompt_tokens": 50, "thought_tokens": 50, "answer_tokens": 20, "overlap_tokens": 90},
        120,
        1_300,
        1_200,
        False,
    ),
    # equal is worth it: "exceeds" is what the contract says.
    ({"method": "raw", "prompt_tokens": 50, "thought_tokens": 50, "answer_tokens": 20}, 40, 400, 400, True),
]


@pytest.mark.parametrize(("finish", "left", "stop_uusd", "go_on_uusd", "worth"), TABLE)
def test_stops_worth_their_price(
    finish: dict[str, Any], left: float, stop_uusd: float, go_on_uusd: float, worth: bool
) -> None:
    assert finishing_cost(DEAR, Finish(**finish)).total_usd * 1e6 == pytest.approx(stop_uusd)
    assert cost_of(DEAR, completion_tokens=left).total_usd * 1e6 == pytest.approx(go_on_uusd)
    why = cost_refusal(DEAR, Finish(**finish), left)
    assert (why is None) is worth
    if why is not None:
        assert why.startswith("not worth it: finishing costs about $")
        assert usd(stop_uusd / 1e6) in why
        assert usd(go_on_uusd / 1e6) in why
    assert cost_refusal(FREE, Finish(**finish), left) is None


@given(prices(), st.floats(0, 1e5), st.floats(0, 1e5), st.floats(0, 1e4), st.floats(0, 1e5))
def test_closing_a_thought_in_place_is_always_worth_it(
    p: Prices, prompt: float, thought: float, answer: float, rest: float
) -> None:
    finish = Finish(method="native", prompt_tokens=prompt, thought_tokens=thought, answer_tokens=answer)
    assert cost_refusal(p, finish, rest + answer) is None


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0.0, "$0"),
        (0.0012, "$0.0012"),
        (0.00123, "$0.0012"),
        (0.05, "$0.050"),
        (0.123, "$0.12"),
        (0.999, "$1.00"),
        (1.23, "$1.23"),
        (12.345, "$12.35"),
        (999.994, "$999.99"),
        (999.999, "$1,000"),
        (1_234.0, "$1,234"),
        (1_234_567.8, "$1,234,568"),
        (-0.0012, "-$0.0012"),
        (3e-7, "$0.00000030"),
        (1e-15, "$0.000000001 or less"),
    ],
)
def test_money_is_written_for_people(amount: float, text: str) -> None:
    assert usd(amount) == text


@given(st.floats(-1e9, 1e9))
def test_money_reads_back_to_two_digits(amount: float) -> None:
    text = usd(amount)
    assert "e" not in text.partition(" ")[0]
    if abs(amount) >= 1e-8:
        assert float(text.replace("$", "").replace(",", "")) == pytest.approx(amount, rel=0.051)
