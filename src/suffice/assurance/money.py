"""What runs cost in tokens and US dollars, and whether a stop is worth its price.

A price that nobody gave makes the cost unknown (None), never 0; a price of 0 makes it 0.0.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from math import floor, log10

from suffice.settings import FinishMethod, Prices
from suffice.types import Outcome, Request, UpstreamCall, Usage

MTOK = 1_000_000  # prices are for a million tokens


@dataclass(frozen=True, slots=True)
class TokenCost:
    """Money by the kind of token that it was spent on. In US dollars, never negative."""

    input_usd: float = 0.0  # prompts that no cache served
    cached_input_usd: float = 0.0
    output_usd: float = 0.0

    @property
    def total_usd(self) -> float:
        return self.input_usd + self.cached_input_usd + self.output_usd

    @property
    def prompt_usd(self) -> float:
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
    """The sum, of nothing 0; None as soon as one part is unknown."""
    summed = TokenCost()
    for cost in costs:
        if cost is None:
            return None
        summed += cost
    return summed


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
    """What the stop itself is expected to cost; a native one only the answer.

    By raw or prefill, prompt, thought and closing are read again, and what the original wrote meanwhile is thrown away.
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
    """Why the stop should not be made, as a sentence, beside going on for so many tokens; None: it is worth it."""
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


# --------------------------------------------------------------------------- lengths of runs
#
# A run that has thought for t tokens is one of those that think longer than t: the plain mean less t is too low for it.
# So recent full runs are kept, and the question is answered from those that thought longer. A vote ends once it is
# decided, also in a full run; what savings are measured against stays the vote over all samples, estimated here.

WINDOW_RUNS = 1_024  # recent full runs that are kept: old ones go, so that a change shows
MIN_RUNS = 20  # full runs seen before anything is expected from them
MIN_LONGER = 5  # runs that thought longer; from fewer nothing is expected


@dataclass(frozen=True, slots=True, kw_only=True)
class RemainingTokens:
    """What a run that is still thinking is expected to generate from here. Tokens."""

    thought_tokens: float  # until it closes its thought by itself
    answer_tokens: float  # after that
    n: int  # full runs behind it: those that thought longer

    @property
    def tokens(self) -> float:
        return self.thought_tokens + self.answer_tokens


@dataclass(slots=True)
class RunLengths:
    """Recent full runs of one route, and what they say about a run that has not ended."""

    n: int = 0  # ever added
    mean_prompt_tokens: float = 0.0  # running mean over all
    _recent: deque[tuple[int, int]] = field(default_factory=deque)  # (thought, answer), oldest first
    _ordered: list[tuple[int, int]] = field(default_factory=list)  # the same by length of thought
    _sums: list[tuple[int, int]] = field(default_factory=list)  # of `_ordered` to its end; []: a run was added since

    def add(self, usage: Usage) -> None:
        run = usage.reasoning_tokens, max(0, usage.completion_tokens - usage.reasoning_tokens)
        self.n += 1
        self.mean_prompt_tokens += (usage.prompt_tokens - self.mean_prompt_tokens) / self.n
        self._recent.append(run)
        insort(self._ordered, run)
        if len(self._recent) > WINDOW_RUNS:
            self._ordered.remove(self._recent.popleft())
        self._sums = []

    def remaining(self, thought_tokens: int) -> RemainingTokens | None:
        """E[what is left | the thought is longer than `thought_tokens`]; None: too few runs say so."""
        if self.n < MIN_RUNS:
            return None
        first = bisect_right(self._ordered, thought_tokens, key=lambda run: run[0])
        n = len(self._ordered) - first
        if n < MIN_LONGER:
            return None
        if not self._sums:
            longest_first = accumulate(
                reversed(self._ordered), lambda one, other: (one[0] + other[0], one[1] + other[1])
            )
            self._sums = list(longest_first)[::-1]
        thought, answer = self._sums[first]
        return RemainingTokens(thought_tokens=thought / n - thought_tokens, answer_tokens=answer / n, n=n)


@dataclass(slots=True)
class HandOvers:
    """What handing a thought over took on one route; older calls fade, with the weight of `memory` calls in all."""

    memory: int = 200
    _prompts: float = 0.0  # tokens sent again
    _cached: float = 0.0  # part of them that a cache served
    _n: float = 0.0  # hand-overs
    _overlap: float = 0.0  # tokens that the originals wrote behind the step of the stop

    @property
    def cached_share(self) -> float:
        """Part of a prompt sent again that the cache serves, [0, 1]; 1 before a first stop has measured it."""
        return self._cached / self._prompts if self._prompts else 1.0

    @property
    def overlap_tokens(self) -> float:
        """Mean tokens that an original still writes; 0 before anybody has measured one."""
        return self._overlap / self._n if self._n else 0.0

    def add_resent(self, prompt_tokens: int, cached_tokens: int) -> None:
        """Take in one call that sent a thought again: a probe or a continuation."""
        keep = 1 - 1 / self.memory
        self._prompts = keep * self._prompts + prompt_tokens
        self._cached = keep * self._cached + min(cached_tokens, prompt_tokens)

    def add_overlap(self, tokens: int) -> None:
        """Take in one stop: what the original wrote behind its step before it was cancelled."""
        keep = 1 - 1 / self.memory
        self._n = keep * self._n + 1
        self._overlap = keep * self._overlap + tokens


def full_vote_tokens(drawn: Sequence[int], n_samples: int) -> float:
    """Tokens of a vote over all its samples: the mean of those drawn to their end, times `n_samples`."""
    return n_samples * sum(drawn) / len(drawn)


def undrawn_tokens(request: Request, outcome: Outcome) -> float:
    """Estimated tokens of the samples that a full vote did not draw because it was decided; 0 for all other runs."""
    if outcome.usage is None or not _is_cut_short(request, outcome):
        return 0.0
    drawn = [step.tokens for step in outcome.steps]
    return max(0.0, full_vote_tokens(drawn, request.n_samples) - outcome.usage.completion_tokens)


def undrawn_factor(request: Request, outcome: Outcome) -> float:
    """How many times the prompts, or the money, of a decided vote the vote over all samples takes; 1 for other runs.

    A cancelled sample counts as a whole one, so that money which was not spent is never overstated.
    """
    if not _is_cut_short(request, outcome):
        return 1.0
    n_launched = sum(call.purpose == "sample" for call in outcome.calls)
    return request.n_samples / max(n_launched, len(outcome.steps))


def _is_cut_short(request: Request, outcome: Outcome) -> bool:
    """Did a full vote end before its last sample because it was decided? Not by a failure, or at temperature 0."""
    n_remaining = request.n_samples - len(outcome.steps)
    if request.kind != "samples" or outcome.stopped or n_remaining <= 0 or not outcome.vote or not outcome.steps:
        return False  # without its steps, a run is kept for its labels alone
    votes = [n for _, n in outcome.vote[:2]]
    return votes[0] - sum(votes[1:]) >= n_remaining
