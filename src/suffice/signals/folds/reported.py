"""Folds on what a caller or a model reports: `said`, `wording`, `plan` and `query`.

Models state high confidence whatever they know (arXiv:2606.13814 found one value in 96.5 % of answers).
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import ClassVar

from suffice.signals.fold import ROUNDING, Fields, SignalField, probability
from suffice.types import Query, Step


class SelfReport:
    """The last step's stated confidence, the model's own flag that it is done, and the kind of step."""

    name = "said"
    looks_at = "what the model or the caller said of the step"
    source = "rarely worth much: [arXiv:2606.13814](https://arxiv.org/abs/2606.13814)"
    fields: ClassVar[Fields] = {
        "stated_confidence": SignalField("what the model said of itself", unknown="not given", high=1.0),
        "said_done": SignalField("the model's own flag that it is done", unknown="not given", high=1.0),
        "action_code": SignalField(
            "hash of the word that the caller gave for this kind of step",
            unknown="not given",
            high=1.0,
        ),
    }

    def __init__(self) -> None:
        self._step: Step | None = None

    def update(self, step: Step) -> None:
        self._step = step

    def values(self) -> dict[str, float | None]:
        step = self._step
        if step is None:
            return dict.fromkeys(self.fields)
        return {
            "stated_confidence": probability(step.stated_confidence),
            "said_done": None if step.said_done is None else float(step.said_done),
            "action_code": None if step.action is None else action_code(step.action),
        }


class WordingConfidence:
    """The mean log-probability of the last step's own tokens, as its source gave it."""

    name = "wording"
    looks_at = "the mean log-probability of the step's own tokens, as it was given"
    source = "AgentStop, [arXiv:2605.15206](https://arxiv.org/abs/2605.15206)"
    fields: ClassVar[Fields] = {
        "step_logprob": SignalField(
            "mean log-probability of the step's own tokens",
            unknown="not given",
            low=float("-inf"),
            high=0.0,
        ),
    }

    def __init__(self) -> None:
        self._logprob: float | None = None

    def update(self, step: Step) -> None:
        logprob = step.logprob
        # A mean of minus infinity is one impossible token, and says nothing about the others.
        known = logprob is not None and float("-inf") < logprob <= ROUNDING
        self._logprob = min(0.0, logprob) if known and logprob is not None else None

    def values(self) -> dict[str, float | None]:
        return {"step_logprob": self._logprob}


@lru_cache(maxsize=1024)
def action_code(action: str) -> float:
    """A number in [0, 1) that stands for a word: equal words, equal numbers, in every process."""
    digest = hashlib.blake2b(action.encode("utf-8", "surrogatepass"), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48


class PlanProgress:
    """The share of the planned steps that is behind us."""

    name = "plan"
    looks_at = "the planned number of steps"
    source = "–"
    fields: ClassVar[Fields] = {
        "step_share": SignalField(
            "steps so far over planned steps: samples asked for, the cap on rounds",
            unknown="no plan",
            high=1.0,
        ),
    }

    def __init__(self) -> None:
        self._planned: int | None = None
        self._index = 0

    def begin(self, query: Query | None) -> None:
        planned = None if query is None else query.planned_steps
        self._planned = planned if planned and planned > 0 else None

    def update(self, step: Step) -> None:
        self._index = step.index

    def values(self) -> dict[str, float | None]:
        if self._planned is None or not self._index:
            return {"step_share": None}
        return {"step_share": min(1.0, self._index / self._planned)}


class AskedQuery:
    """The query as it was given: the same at every step."""

    name = "query"
    looks_at = "what was known before the first token, see below"
    source = "–"
    fields: ClassVar[Fields] = {
        "query": SignalField("the record of the query", unknown="nothing was given"),
    }

    def __init__(self) -> None:
        self._query: Query | None = None

    def begin(self, query: Query | None) -> None:
        self._query = query

    def update(self, step: Step) -> None:
        """Take the next step in: nothing changes."""

    def values(self) -> dict[str, Query | None]:
        return {"query": self._query}
