"""The rules that fit into one sentence: never, a fixed budget, a stable answer, a confident answer.

Each is a frozen record whose `decide` is pure: guard clauses first, the line that stops last. They
know Signals and refuse to know text, time, routes and whether they are obeyed. What is unknown
(None, not a number) continues.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from suffice.policy.parameters import Checked, Range
from suffice.types import Decision, Signals

_TOKENS = Range(0, 1_000_000_000)
_STEPS = Range(0, 1_000_000)


def go_on(reason: str, score: float | None = None) -> Decision:
    """The decision to continue, with its sentence."""
    return Decision(action="continue", reason=reason, score=score)


def suffices(reason: str, score: float) -> Decision:
    """The decision to stop because the answer suffices, with its sentence."""
    return Decision(action="stop", reason=reason, stop_reason="suffices", score=score)


@dataclass(frozen=True, slots=True)
class Never(Checked):
    """Run everything in full. What a route does until something better is certified."""

    name: ClassVar[str] = "never"

    @property
    def needs(self) -> tuple[str, ...]:
        """No fold at all."""
        return ()

    def decide(self, s: Signals) -> Decision:
        """Continue."""
        return go_on(f"step {s.step}; this policy never stops")


@dataclass(frozen=True, slots=True)
class FixedBudget(Checked):
    """Stop once a number of tokens is spent, whatever the answer: the baseline that rules must beat.

    The stop is called "budget" and never claims that the answer suffices (budget forcing: Muennighoff
    et al. 2025, arXiv:2501.19393).
    """

    name: ClassVar[str] = "fixed-budget"
    max_tokens: Annotated[int, Range(1, 1_000_000_000)]  # generated in the run, probes left out

    @property
    def needs(self) -> tuple[str, ...]:
        """No fold: tokens are always counted."""
        return ()

    def decide(self, s: Signals) -> Decision:
        """Stop at the first step that has reached the budget."""
        used, score = s.tokens_used, float(s.tokens_used)
        if used < self.max_tokens:
            return go_on(f"{used} of {self.max_tokens} tokens used", score)
        return Decision(
            action="stop",
            reason=f"budget of {self.max_tokens} tokens reached with {used}",
            stop_reason="budget",
            score=score,
        )


@dataclass(frozen=True, slots=True)
class StableAnswer(Checked):
    """Stop once the trial answer has been the same for some steps in a row.

    Answer convergence (arXiv:2506.02536); with `no_hedges` also the condition of Dynasor-CoT
    (arXiv:2412.20993) that the last step shows no doubt. Unsafe alone on hard questions, where wrong
    guesses are stable too.
    """

    name: ClassVar[str] = "stable-answer"
    streak: Annotated[int, Range(1, 1_000_000)] = 3  # steps in a row with the same answer
    min_tokens: Annotated[int, _TOKENS] = 0          # never stop before as many are generated
    min_steps: Annotated[int, _STEPS] = 0            # never stop before this step
    no_hedges: bool = False                          # the last step must be free of "wait", "hmm" …

    @property
    def needs(self) -> tuple[str, ...]:
        """`stability`, and `hedges` if they are to be looked at."""
        return ("stability", "hedges") if self.no_hedges else ("stability",)

    def decide(self, s: Signals) -> Decision:
        """Stop at the first step where the streak is long enough and nothing speaks against it."""
        if s.answer_streak is None:
            return go_on("the answer streak is unknown")
        score = float(s.answer_streak)
        if s.step < self.min_steps:
            return go_on(f"step {s.step}, no stop before step {self.min_steps}", score)
        if s.tokens_used < self.min_tokens:
            return go_on(f"{s.tokens_used} tokens used, no stop before {self.min_tokens}", score)
        if s.answer_streak < self.streak:
            return go_on(f"same answer for {s.answer_streak} of {self.streak} steps", score)
        if self.no_hedges and s.hedges is None:
            return go_on("hedging in the last step is unknown", score)
        if self.no_hedges and s.hedges:
            return go_on(f"same answer for {s.answer_streak} steps, but {s.hedges} hedges in the last", score)
        return suffices(f"same answer for {s.answer_streak} steps, {self.streak} were asked for", score)


@dataclass(frozen=True, slots=True)
class ConfidenceThreshold(Checked):
    """Stop once the model is confident in its trial answer.

    DEER's rule (Yang et al. 2025, arXiv:2504.15895) on the geometric mean probability of the answer's
    tokens. With a patience above 1 the same answer must also have stood for that many steps.
    """

    name: ClassVar[str] = "confidence-threshold"
    threshold: Annotated[float, Range(0.0, 1.0, low_open=True)] = 0.95  # on Signals.confidence
    patience: Annotated[int, Range(1, 1_000_000)] = 1                   # steps in a row that must agree

    @property
    def needs(self) -> tuple[str, ...]:
        """`confidence`, and `stability` if steps must agree."""
        return ("confidence", "stability") if self.patience > 1 else ("confidence",)

    def decide(self, s: Signals) -> Decision:
        """Stop at the first step whose confidence reaches the threshold."""
        if s.confidence is None or s.answer is None:
            return go_on("no trial answer with a known confidence")
        if self.patience > 1:
            if s.answer_streak is None:
                return go_on("the answer streak is unknown", s.confidence)
            if s.answer_streak < self.patience:
                return go_on(f"same answer for {s.answer_streak} of {self.patience} steps", s.confidence)
        # Asked this way round, a confidence that is not a number continues.
        if s.confidence >= self.threshold:
            return suffices(f"confidence {s.confidence:.3f} reached {self.threshold:g}", s.confidence)
        return go_on(f"confidence {s.confidence:.3f} is below {self.threshold:g}", s.confidence)
