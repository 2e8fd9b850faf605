"""What the policy compared at each step of a run, read from its reasons, and how the run ended in a sentence."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import inf, log10
from typing import Final

from suffice.console.context import ViewRecord
from suffice.types import Outcome, Request, StepRecord

_NUMBER: Final = r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?"
_COMPARED: Final = re.compile(
    rf"(?P<what>[^\d;][^;]{{0,60}}?) (?P<value>{_NUMBER}) "
    rf"(?P<sign><=|>=|<|>|is above|is below|reached) (?P<limit>{_NUMBER})(?![\d.])"
)
_BELOW: Final = ("<=", ">", "is above")  # stops at or below the limit
_LEAST: Final = 1e-6  # of a logarithmic axis


class ComparedStep(ViewRecord, frozen=True):
    step: int
    value: float
    limit: float
    x: float  # of the chart, 0 to 1,000
    y: float  # likewise, 0 to 200 from the top
    y_limit: float


class DecisionPath(ViewRecord, frozen=True):
    what: str  # is compared, such as "risk"
    stops: str  # "at or below" or "at or above" the limit
    points: tuple[ComparedStep, ...]

    def at(self, step: int) -> ComparedStep | None:
        return next((one for one in self.points if one.step == step), None)


class AnswerTwin(ViewRecord, frozen=True):
    """Another run of the same question on the same route."""

    episode_id: str
    audit: bool
    stopped: bool
    answer: str | None
    same: bool  # the answer of this run


def read_path(steps: Sequence[StepRecord]) -> DecisionPath | None:
    """Read the numbers out of the reasons; None: fewer than two steps have any of the same name."""
    compared = [(step.index, match) for step in steps if (match := _COMPARED.match(step.reason))]
    if len(compared) < 2 or len({match["what"] for _, match in compared}) > 1:
        return None
    first = compared[0][1]
    values = [(index, float(match["value"]), float(match["limit"])) for index, match in compared]
    scale = _HeightScale([number for _, *pair in values for number in pair])
    last = max(index for index, *_ in values)
    return DecisionPath(
        what=first["what"],
        stops="at or below" if first["sign"] in _BELOW else "at or above",
        points=tuple(
            ComparedStep(
                step=index,
                value=value,
                limit=limit,
                x=round(1_000 * (index - 0.5) / last, 1),
                y=scale(value),
                y_limit=scale(limit),
            )
            for index, value, limit in values
        ),
    )


class _HeightScale:
    """From a value to its height: logarithmic where that shows more."""

    def __init__(self, numbers: Sequence[float]) -> None:
        low, high = min(numbers), max(numbers)
        self._log = low >= 0 and high > 20 * max(low, _LEAST)
        self._low, self._high = self._of(low), self._of(high)

    def _of(self, number: float) -> float:
        return log10(max(number, _LEAST)) if self._log else number

    def __call__(self, number: float) -> float:
        span = self._high - self._low or inf
        return round(190 - 180 * (self._of(number) - self._low) / span, 1)


def summarize_end(
    request: Request, outcome: Outcome | None, path: DecisionPath | None, twins: Sequence[AnswerTwin]
) -> str:
    """Why a run ended where it did, in a sentence."""
    if outcome is None:
        return "No outcome yet: it is still running, or its process died."
    if request.ungoverned:
        return f"Passed through untouched: {request.ungoverned}."
    step, point = outcome.stop_step, None
    if path is not None and step is not None:
        point = path.at(step)
    why = outcome.decision or outcome.stop_reason or "the policy's rule held"
    if point is not None and path is not None:
        why = f"{path.what} {point.value:.3g}, allowed {point.limit:.3g}"
    if outcome.stopped:
        return f"Stopped at step {step}: {why}; {_of_twins(twins)}."
    kind = "An audit, drawn to run in full" if request.audit else "Ran in full"
    if step is None:
        return f"{kind}: no step met the policy's rule; it ended after {len(outcome.steps)} steps."
    same = "the same answer" if outcome.would_answer == outcome.answer else "another answer"
    return f"{kind}. The policy would have stopped it at step {step}: {why}; the full run went on to {same}."


def _of_twins(twins: Sequence[AnswerTwin]) -> str:
    full = [one for one in twins if not one.stopped]
    if not full:
        return "no full run of this question is near it in the log, so the answer of the full run is not known"
    which = next((one for one in full if one.audit), full[0])
    answered = "the same answer" if which.same else "another answer"
    return f"{'the audit twin' if which.audit else 'a full run of the same question'} went on to {answered}"
