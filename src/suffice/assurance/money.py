"""What tokens cost in US dollars, and whether a stop is worth its price.

Pure arithmetic over calls and prices. Knows that a prompt served from a cache may be cheaper, and
that a thought which is handed over has to be read again; refuses to know where prices come from,
who asks, and whether the answer is right. A price that nobody gave makes the cost unknown (None),
never 0; a price of 0 makes it 0.0.

It lies in this room because the gateway, the episode, the estimates and the command all need it,
and this is the lowest room that may know both the records and the settings.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import floor, log10

from suffice.settings import FinishMethod, Prices
from suffice.types import UpstreamCall

MTOK = 1_000_000  # prices are for a million tokens


@dataclass(frozen=True, slots=True)
class TokenCost:
    """Money by the kind of token that it was spent on. In US dollars, never negative."""

    input_usd: float = 0.0  # prompts that no cache served
    cached_input_usd: float = 0.0
    output_usd: float = 0.0

    @property
    def total_usd(self) -> float:
        """All of it."""
        return self.input_usd + self.cached_input_usd + self.output_usd

    @property
    def prompt_usd(self) -> float:
        """Reading alone, cached or not."""
        return self.input_usd + self.cached_input_usd

    def __add__(self, other: TokenCost) -> TokenCost:
        return TokenCost(
            self.input_usd + other.input_usd,
            self.cached_input_usd + other.cached_input_usd,
            self.output_usd + other.output_usd,
        )


def cost_of(
    prices: Prices, *, prompt_tokens: float = 0, cached_tokens: float = 0, completion_tokens: float = 0
) -> TokenCost:
    """What these tokens cost. `cached_tokens` are part of `prompt_tokens`; more than all is read as all."""
    cached = min(cached_tokens, prompt_tokens)
    cached_price = prices.cached_input_usd_per_mtok
    if cached_price is None:
        cached_price = prices.input_usd_per_mtok
    return TokenCost(
        (prompt_tokens - cached) * prices.input_usd_per_mtok / MTOK,
        cached * cached_price / MTOK,
        completion_tokens * prices.output_usd_per_mtok / MTOK,
    )


def cost_of_call(prices: Prices, call: UpstreamCall) -> TokenCost | None:
    """What one call cost; None: its prompt was never counted, so nobody knows."""
    if call.prompt_tokens is None:
        return None
    return cost_of(
        prices,
        prompt_tokens=call.prompt_tokens,
        cached_tokens=call.cached_tokens,
        completion_tokens=call.completion_tokens,
    )


def total(costs: Iterable[TokenCost | None]) -> TokenCost | None:
    """The sum; None as soon as one part is unknown. Of nothing it is 0."""
    found = TokenCost()
    for cost in costs:
        if cost is None:
            return None
        found += cost
    return found


# --------------------------------------------------------------------------- is a stop worth it?


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """What closing a thought now is expected to take. Tokens; fractions are expectations."""

    method: FinishMethod
    prompt_tokens: float  # of the client's prompt
    thought_tokens: float  # so far: sent again, unless the engine closes the thought in place
    answer_tokens: float  # still to be generated
    overlap_tokens: float = 0  # that the original still generates until it is cancelled
    closing_tokens: float = 0  # closing text and tag
    cached_share: float = 0  # part of what is sent again that a prefix cache serves, [0, 1]


def finishing_cost(prices: Prices, finish: Finish) -> TokenCost:
    """What the stop itself is expected to cost.

    native         the answer; nothing is sent again
    raw, prefill   prompt, thought and closing are read again, the answer is written, and what the
                   original wrote in the meantime is thrown away
    """
    if finish.method == "native":
        return cost_of(prices, completion_tokens=finish.answer_tokens)
    sent = finish.prompt_tokens + finish.thought_tokens + finish.closing_tokens
    return cost_of(
        prices,
        prompt_tokens=sent,
        cached_tokens=finish.cached_share * sent,
        completion_tokens=finish.answer_tokens + finish.overlap_tokens,
    )


def closing_cost(prices: Prices, finish: Finish) -> TokenCost:
    """The part of `finishing_cost` that a full run would not have: all but the answer."""
    return finishing_cost(prices, replace(finish, answer_tokens=0))


def remaining_cost(prices: Prices, remaining_tokens: float) -> TokenCost:
    """What the run is expected to cost from here to its own end; its prompt has been paid for."""
    return cost_of(prices, completion_tokens=remaining_tokens)


def not_worth_it(prices: Prices, finish: Finish, remaining_tokens: float) -> str | None:
    """Why the stop should not be made, as a sentence; None: it is worth it.

    remaining_tokens  expected of the run if it is not stopped, its answer included
    """
    stop, go_on = finishing_cost(prices, finish).total_usd, remaining_cost(prices, remaining_tokens).total_usd
    if stop <= go_on:
        return None
    return f"not worth it: finishing costs about {usd(stop)}, going on about {usd(go_on)}"


# --------------------------------------------------------------------------- for people


def usd(amount_usd: float) -> str:
    """Write money for a person: two digits that say something below a dollar, cents, then whole dollars.

    >>> [usd(x) for x in (0, 0.00123, 0.5, 1.234, 1234.4, -0.0005)]
    ['$0', '$0.0012', '$0.50', '$1.23', '$1,234', '-$0.00050']
    """
    sign, size = ("-" if amount_usd < 0 else ""), abs(amount_usd)
    if size == 0:
        return "$0"
    if size < 1e-9:
        return f"{sign}$0.000000001 or less"
    if size >= 999.995:
        return f"{sign}${size:,.0f}"
    decimals = 2 if size >= 0.1 else 1 - floor(log10(size))
    return f"{sign}${size:.{decimals}f}"
