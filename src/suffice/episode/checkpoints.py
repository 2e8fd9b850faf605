"""Checkpoints of a thought, and which of them become steps, by signals that cost nothing; others cost no probe.

A checkpoint that is not proposed is joined with the next one, in audits as in live runs. So policies, levels and
evidence see the same steps, each with a trial answer, and need not know that there is a proposer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from suffice.policy.protocol import Policy
from suffice.signals.observe import Observer
from suffice.types import Step
from suffice.upstream.wire import TokenLogprob

LISTED_TOKENS = 20  # alternatives to request for each token, the most that vLLM and OpenAI list
_TAIL_CHARS = 16
_SENTENCE_END = re.compile(r"[.!?\u3002\uff01\uff1f]['\")\]}*]*\s*\Z|\n\s*\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    index: int  # 1 is the first
    tokens: int  # generated since the checkpoint before
    tokens_used: int  # generated up to here
    text: str  # the thought since the checkpoint before
    prefix: str  # the whole thought up to here
    end_margin: float | None = None  # nats, see `Step.end_margin`


def missing_step(point: Checkpoint) -> Step:
    return replace(visible_step(point, None, None), missing=True)


def visible_step(point: Checkpoint, answer: str | None, before: str | None) -> Step:
    """Return a step whose answer is read from the step's own text, or else is the one `before`."""
    answer = before if answer is None else answer
    source: Literal["text"] | None = None if answer is None else "text"
    return Step(
        index=point.index,
        tokens=point.tokens,
        answer=answer,
        answer_source=source,
        text=point.text,
        end_margin=point.end_margin,
    )


class Proposer:
    """Proposes a checkpoint where `policy` would stop if a probe answered, and each that comes `every` after the last.

    every  0: only where the policy says so
    """

    def __init__(self, policy: Policy, *, every: int) -> None:
        self._policy, self._every = policy, every
        self._observer = Observer(policy.needs, "reasoning")
        self._n_passed = 0

    def wants(self, step: Step) -> bool:
        """Return whether a probe is worth its tokens after the next step, which has no answer yet."""
        signals = self._observer.observe(step)
        self._n_passed += 1
        if not self._policy.decide(signals.replace(answer="")).stop and self._n_passed != self._every:
            return False
        self._n_passed = 0
        return True


@dataclass(slots=True, kw_only=True)
class CheckpointGate:
    """Adds the margin to the end of thought to checkpoints, and joins those that are not proposed.

    The margin at the end of a checkpoint is that of the next token, so with log-probabilities it waits for one.
    """

    close_tag: str
    proposer: Proposer | None = None
    skipped: Counter[str] = field(default_factory=Counter)  # probes that were not sent, by reason
    _margin: float | None = None  # at the last end of a sentence since the last checkpoint
    _tail: str = ""
    _reads_margins: bool = False
    _waiting: Checkpoint | None = None
    _joined: Checkpoint | None = None  # checkpoints that were not proposed, as one
    _index: int = 0

    def read(self, tokens: Sequence[TokenLogprob]) -> Checkpoint | None:
        """Read the tokens of a chunk before its text; return the step that waited for them, if any."""
        step: Checkpoint | None = None
        for token in tokens:
            if _SENTENCE_END.search(self._tail):
                self._margin = margin_to_end(token.top, self.close_tag)
            self._tail = (self._tail + token.token)[-_TAIL_CHARS:]
            self._reads_margins = True
            step = step or self._release()  # what the further tokens of the chunk show belongs to the next one
        return step

    def offer(self, point: Checkpoint) -> Checkpoint | None:
        """Take a checkpoint; return the step that is complete, if any."""
        before, self._waiting = self._release(), point
        return before if self._reads_margins else self._release()

    def _release(self) -> Checkpoint | None:
        point, self._waiting = self._waiting, None
        if point is None:
            return None
        point, self._margin = replace(point, end_margin=self._margin), None
        is_proposed = self.proposer is None or self.proposer.wants(missing_step(point))
        if (held := self._joined) is not None:
            point = replace(point, tokens=held.tokens + point.tokens, text=held.text + point.text)
        self._joined = None if is_proposed else point
        if not is_proposed:
            self.skipped["not_proposed"] += 1
            return None
        self._index += 1
        return replace(point, index=self._index)


def margin_to_end(top: Sequence[tuple[str, float]], close_tag: str) -> float | None:
    """The log-probability of the best listed token minus that of `close_tag`, in nats; None if it is not listed.

    Where the tag takes several tokens, the first of them stands for it: `</` begins little else in a thought.
    """
    ends = [value for text, value in top if len(text.strip()) > 1 and close_tag.startswith(text.strip())]
    return max(0.0, max(value for _, value in top) - max(ends)) if ends else None
