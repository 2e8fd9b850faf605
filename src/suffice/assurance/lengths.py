"""How long full runs of a route are, and so how much a run that is still thinking has left.

A run that has thought for t tokens is not an average run: it is one of those that think longer than
t. The plain mean less t is too low for it, and is negative exactly for the longest runs. So recent
full runs are kept, and the question is answered from those that thought longer.

A vote ends once it is decided, also in a full run. What savings are measured against stays the vote over
all samples; how long that would have been is estimated here, and nowhere else.

Pure, bounded memory. Knows lengths in tokens; refuses to know routes, prices and answers.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from suffice.types import Outcome, Request, Usage

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
        """Thought and answer together."""
        return self.thought_tokens + self.answer_tokens


@dataclass(slots=True)
class RunLengths:
    """Recent full runs of one route, and what they say about a run that has not ended."""

    n: int = 0  # ever seen
    mean_prompt_tokens: float = 0.0  # running mean over all
    _recent: deque[tuple[int, int]] = field(default_factory=deque)  # (thought, answer), oldest first
    _ordered: list[tuple[int, int]] = field(default_factory=list)  # the same by length of thought
    # Sums of `_ordered` from a place to its end; []: a run was added since.
    _thoughts: list[int] = field(default_factory=list)
    _answers: list[int] = field(default_factory=list)

    def add(self, usage: Usage) -> None:
        """Take one full run in."""
        run = usage.reasoning_tokens, max(0, usage.completion_tokens - usage.reasoning_tokens)
        self.n += 1
        self.mean_prompt_tokens += (usage.prompt_tokens - self.mean_prompt_tokens) / self.n
        self._recent.append(run)
        insort(self._ordered, run)
        if len(self._recent) > WINDOW_RUNS:
            self._ordered.remove(self._recent.popleft())
        self._thoughts, self._answers = [], []

    def remaining(self, thought_tokens: int) -> RemainingTokens | None:
        """E[what is left | the thought is longer than `thought_tokens`]; None: too few runs say so.

        O(log window), but for the first question after a new full run.
        """
        if self.n < MIN_RUNS:
            return None
        first = bisect_right(self._ordered, thought_tokens, key=lambda run: run[0])
        n = len(self._ordered) - first
        if n < MIN_LONGER:
            return None
        if not self._thoughts:
            longest_first = self._ordered[::-1]
            self._thoughts = list(accumulate(thought for thought, _ in longest_first))[::-1]
            self._answers = list(accumulate(answer for _, answer in longest_first))[::-1]
        thought, answer = self._thoughts[first], self._answers[first]
        return RemainingTokens(thought_tokens=thought / n - thought_tokens, answer_tokens=answer / n, n=n)


@dataclass(slots=True)
class HandOvers:
    """What handing a thought over took on one route: how much was cached, how much overlapped.

    Older calls count less and less, with the weight of `memory` calls in all.
    """

    memory: int = 200
    _prompts: float = 0.0  # tokens sent again
    _cached: float = 0.0  # part of them that a cache served
    _n: float = 0.0  # hand-overs
    _overlap: float = 0.0  # tokens that the originals wrote behind the step of the stop

    @property
    def cached_share(self) -> float:
        """Part of a prompt sent again that the cache serves, [0, 1].

        1 before anybody has seen one: a share that is unknown stands in no stop's way, and the first
        stop teaches it.
        """
        return self._cached / self._prompts if self._prompts else 1.0

    @property
    def overlap_tokens(self) -> float:
        """Mean tokens that an original still writes; 0 before anybody has seen one."""
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
    """Tokens of a vote over all its samples, estimated from those that were drawn: their mean, times `n_samples`.

    drawn      tokens of each sample that was seen to its end, at least one sample
    n_samples  of the full vote
    """
    return n_samples * sum(drawn) / len(drawn)


def undrawn_tokens(request: Request, outcome: Outcome) -> float:
    """Tokens of the samples that a full vote did not draw because it was decided, estimated; 0 for all other runs.

    Added to what the run generated, they make what savings are measured against: the vote over all samples.
    """
    if outcome.usage is None or not _is_cut_short(request, outcome):
        return 0.0
    drawn = [step.tokens for step in outcome.steps]
    return max(0.0, full_vote_tokens(drawn, request.n_samples) - outcome.usage.completion_tokens)


def undrawn_factor(request: Request, outcome: Outcome) -> float:
    """How many times the prompts, or the money, of a decided vote the vote over all samples takes; 1 for other runs.

    All samples over those that were launched. A cancelled sample counts as a whole one, so that money which was not
    spent is never overstated.
    """
    if not _is_cut_short(request, outcome):
        return 1.0
    n_launched = sum(call.purpose == "sample" for call in outcome.calls)
    return request.n_samples / max(n_launched, len(outcome.steps))


def _is_cut_short(request: Request, outcome: Outcome) -> bool:
    """Did a full vote end before its last sample because it was decided?

    Not where the upstream failed or asked for fewer calls, or where the temperature is 0: then nothing was saved.
    """
    n_remaining = request.n_samples - len(outcome.steps)
    if request.kind != "samples" or outcome.stopped or n_remaining <= 0 or not outcome.vote:
        return False
    votes = [n for _, n in outcome.vote[:2]]
    return votes[0] - sum(votes[1:]) >= n_remaining
