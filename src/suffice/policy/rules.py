"""The simple policies: never, a budget, fixed rounds, a stable or a confident answer.

Unknown signals (None or NaN) continue.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isnan
from operator import ge, le
from typing import Annotated, Any, ClassVar, Final, Literal, TypeAlias

import numpy as np

from suffice.policy.columns import BUDGET, SUFFICES, Columns, Stops, answered, known_column, where
from suffice.policy.parameters import Later, ParameterChecks, ParameterRange
from suffice.policy.protocol import go_on, stop_at_budget, suffices
from suffice.types import Decision, Signals

TOKENS = ParameterRange(0, 1_000_000_000)
STEPS = ParameterRange(0, 1_000_000)
AT_LEAST_ONE = ParameterRange(1, 1_000_000)
SHARE = ParameterRange(0.0, 1.0)
SHARE_ABOVE_0 = ParameterRange(0.0, 1.0, low_open=True)

# A field of Signals; what compares its value, or a column, with the bound (false for NaN); the bound; and a sentence
# for the operator, with {value} and {bound}.
Condition: TypeAlias = tuple[str, Callable[[Any, float], Any], float, str]


class Conditions(ParameterChecks):
    """Base of policies that stop, because the answer suffices, at a step with an answer where all conditions hold.

    An unknown signal holds no condition. The first condition's value is the score.
    """

    __slots__ = ()

    @abstractmethod
    def conditions(self) -> Iterator[Condition]: ...

    def decide(self, s: Signals) -> Decision:
        if s.answer is None:
            return go_on("no answer yet")
        first, score = "", None
        for field, holds, bound, says in self.conditions():
            value = getattr(s, field)
            if value is None:
                return go_on(f"unknown: {field}", score)
            if not holds(value, bound):
                return go_on(says.format(value=value, bound=bound), float(value) if score is None else score)
            if score is None:
                first, score = says.format(value=value, bound=bound), float(value)
        return suffices(first, score or 0.0)

    def stops(self, columns: Columns) -> Stops:
        stop = answered(columns)
        for field, holds, bound, _ in self.conditions():
            stop &= holds(known_column(columns, field), bound)
        return where(stop, SUFFICES)


_GOES_ON: Final = go_on("this policy never stops")


@dataclass(frozen=True, slots=True)
class Never(ParameterChecks):
    """Never stop: every run is complete."""

    name: ClassVar[str] = "never"

    needs: ClassVar[tuple[str, ...]] = ()

    def decide(self, s: Signals) -> Decision:  # noqa: ARG002 - every policy's signature
        return _GOES_ON

    def stops(self, columns: Columns) -> Stops:
        return where(columns["step"] < 0, SUFFICES)


@dataclass(frozen=True, slots=True)
class FixedBudget(ParameterChecks):
    """Stop when the run has spent its tokens, whatever the answer (`stop_reason` is `budget`).

    Budget forcing (Muennighoff et al. 2025, arXiv:2501.19393). The stop never claims that the answer suffices.
    """

    name: ClassVar[str] = "fixed-budget"
    source: ClassVar[str] = (
        "budget forcing, Muennighoff et al. 2025, [arXiv:2501.19393](https://arxiv.org/abs/2501.19393)"
    )
    needs_note: ClassVar[str] = "nothing"
    max_tokens: Annotated[int, ParameterRange(1, 1_000_000_000)]  # tokens generated in the run, 1 to 1,000,000,000

    needs: ClassVar[tuple[str, ...]] = ()

    def decide(self, s: Signals) -> Decision:
        used, score = s.tokens_used, float(s.tokens_used)
        if used < self.max_tokens:
            return go_on(f"{used} of {self.max_tokens} tokens used", score)
        return stop_at_budget(f"budget of {self.max_tokens} tokens reached with {used}", score)

    def stops(self, columns: Columns) -> Stops:
        return where(columns["tokens_used"] >= self.max_tokens, BUDGET)


@dataclass(frozen=True, slots=True)
class FixedRounds(ParameterChecks):
    """Stop when the run has taken its steps, whatever the answer (`stop_reason` is `budget`)."""

    name: ClassVar[str] = "fixed-rounds"
    source: ClassVar[str] = (
        "the usual practice in retrieval loops; a vote over k samples, Wang et al. 2022, "
        "[arXiv:2203.11171](https://arxiv.org/abs/2203.11171)"
    )
    needs_note: ClassVar[str] = "nothing"
    max_steps: Annotated[int, AT_LEAST_ONE]  # steps of the run, 1 to 1,000,000

    needs: ClassVar[tuple[str, ...]] = ()

    def decide(self, s: Signals) -> Decision:
        if s.step < self.max_steps:
            return go_on(f"step {s.step} of {self.max_steps}", float(s.step))
        return stop_at_budget(f"step {s.step} reached the limit of {self.max_steps}", float(s.step))

    def stops(self, columns: Columns) -> Stops:
        return where(columns["step"] >= self.max_steps, BUDGET)


@dataclass(frozen=True, slots=True)
class TurnCap(ParameterChecks):
    """Stop when the run has used its turns, extended while it asks for more (`stop_reason` is `budget`).

    Turn control (Peng, Gao 2025, arXiv:2510.16786): a cap at the 75th percentile of the turns of full runs, and
    extensions on demand. There the agent asks for one; here a run asks until its answer is repeated, or with `demand =
    "flag"` until it says that it is done.
    """

    name: ClassVar[str] = "turn-cap"
    source: ClassVar[str] = "turn control, Peng, Gao 2025, [arXiv:2510.16786](https://arxiv.org/abs/2510.16786)"
    needs_note: ClassVar[str] = "`stability`; with `demand` = flag, the run's own flag that it is done"
    max_steps: Annotated[int, AT_LEAST_ONE]  # the cap, such as the 75th percentile of the turns of full runs
    extension: Annotated[int, STEPS] = 2  # further turns that a run may ask for
    demand: Literal["answer", "flag"] = "answer"  # a run asks until its answer is repeated, or its flag says done

    @property
    def needs(self) -> tuple[str, ...]:
        return ("stability",) if self.demand == "answer" else ("said",)

    @property
    def _settled(self) -> tuple[str, int]:
        """The signal that shows whether a run asks for more, and the least value at which it does not."""
        return ("answer_streak", 2) if self.demand == "answer" else ("reported_done", 1)

    def decide(self, s: Signals) -> Decision:
        field, least = self._settled
        step = s.step
        cap = self.max_steps
        value = getattr(s, field)
        if step < cap or value is None or isnan(value) or (value < least and step < cap + self.extension):
            return go_on(f"step {step}; the cap is {cap}, with an extension of {self.extension} on demand", float(step))
        return stop_at_budget(f"step {step} reached the cap of {cap}", float(step))

    def stops(self, columns: Columns) -> Stops:
        field, least = self._settled
        step, value = columns["step"], known_column(columns, field)
        limit = np.where(value >= least, self.max_steps, self.max_steps + self.extension)
        return where((step >= limit) & ~np.isnan(value), BUDGET)


@dataclass(frozen=True, slots=True)
class StableAnswer(Conditions):
    """Stop when the trial answer was the same for some steps in a row.

    Answer convergence (arXiv:2506.02536); `no_hedges` adds the condition of Dynasor-CoT (arXiv:2412.20993) that the
    last step shows no doubt. Unsafe alone on hard questions, where wrong guesses are stable too.
    """

    name: ClassVar[str] = "stable-answer"
    source: ClassVar[str] = (
        "answer convergence, [arXiv:2506.02536](https://arxiv.org/abs/2506.02536); the look at hedging from "
        "Dynasor-CoT, [arXiv:2412.20993](https://arxiv.org/abs/2412.20993)"
    )
    needs_note: ClassVar[str] = "`stability`; also `hedges` with `no_hedges`, `plan` with `min_share` above 0"
    streak: Annotated[int, AT_LEAST_ONE] = 3  # steps in a row, at least 1
    min_tokens: Annotated[int, TOKENS] = 0  # no stop before this many tokens
    min_steps: Annotated[int, STEPS] = 0  # no stop before this step
    no_hedges: bool = False  # the last step must hold no mark of doubt
    min_share: Annotated[float, SHARE, Later] = 0.0  # no stop before this share of the planned steps; no plan, no stop

    @property
    def needs(self) -> tuple[str, ...]:
        return ("stability", *(("hedges",) if self.no_hedges else ()), *(("plan",) if self.min_share > 0 else ()))

    def conditions(self) -> Iterator[Condition]:
        yield "answer_streak", ge, self.streak, "same answer for {value:.0f} of {bound:.0f} steps"
        if self.min_steps:
            yield "step", ge, self.min_steps, "step {value:.0f}, no stop before step {bound:.0f}"
        if self.min_tokens:
            yield "tokens_used", ge, self.min_tokens, "{value:.0f} tokens used, no stop before {bound:.0f}"
        if self.min_share > 0:
            yield "step_share", ge, self.min_share, "{value:.3f} of the planned steps, {bound:g} required"
        if self.no_hedges:
            yield "hedges", le, 0, "{value:.0f} hedges in the last step"


@dataclass(frozen=True, slots=True)
class ConfidenceThreshold(Conditions):
    """Stop when the model's probability of its trial answer (geometric mean over its tokens) reaches a threshold.

    DEER's rule (Yang et al. 2025, arXiv:2504.15895). With `patience` above 1 the answer must also be unchanged for that
    many steps. With `min_mass`, a forced choice counts only if the model put at least that probability on the allowed
    answers: below it, the confidence is a share of very little.
    """

    name: ClassVar[str] = "confidence-threshold"
    source: ClassVar[str] = "DEER, Yang et al. 2025, [arXiv:2504.15895](https://arxiv.org/abs/2504.15895)"
    needs_note: ClassVar[str] = "`confidence`; also `stability` with `patience` above 1"
    threshold: Annotated[float, SHARE_ABOVE_0] = 0.95  # above 0, at most 1
    patience: Annotated[int, AT_LEAST_ONE] = 1  # steps in a row with the same answer, at least 1
    min_mass: Annotated[float, SHARE, Later] = 0.0  # probability that must lie on the valid answers together

    @property
    def needs(self) -> tuple[str, ...]:
        return ("confidence", "stability") if self.patience > 1 else ("confidence",)

    def conditions(self) -> Iterator[Condition]:
        yield "confidence", ge, self.threshold, "confidence {value:.3f}, {bound:g} required"
        if self.min_mass > 0:
            yield "mass", ge, self.min_mass, "mass on the answers is {value:.3f}, {bound:g} required"
        if self.patience > 1:
            yield "answer_streak", ge, self.patience, "same answer for {value:.0f} of {bound:.0f} steps"


@dataclass(frozen=True, slots=True)
class StatedConfidence(Conditions):
    """Stop when the model says that it is sure of its answer, and the answer has not changed.

    Verbalised confidence (Lin, Hilton, Evans 2022, arXiv:2205.14334). TASR (arXiv:2606.13814) found 96.5 % of such
    ratings at the highest value and warns against using them alone; hence the patience of 2.
    """

    name: ClassVar[str] = "stated-confidence"
    source: ClassVar[str] = (
        "verbalised confidence, Lin et al. 2022, [arXiv:2205.14334](https://arxiv.org/abs/2205.14334); its limits "
        "when used alone: TASR, [arXiv:2606.13814](https://arxiv.org/abs/2606.13814)"
    )
    needs_note: ClassVar[str] = "`said`; also `stability` with `patience` above 1"
    threshold: Annotated[float, SHARE_ABOVE_0] = 0.9  # above 0, at most 1
    patience: Annotated[int, AT_LEAST_ONE] = 2  # steps in a row with the same answer, at least 1

    @property
    def needs(self) -> tuple[str, ...]:
        return ("said", "stability") if self.patience > 1 else ("said",)

    def conditions(self) -> Iterator[Condition]:
        yield "stated_confidence", ge, self.threshold, "stated confidence {value:.3f}, {bound:g} required"
        if self.patience > 1:
            yield "answer_streak", ge, self.patience, "same answer for {value:.0f} of {bound:.0f} steps"
