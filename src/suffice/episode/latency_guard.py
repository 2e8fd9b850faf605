"""A time budget for our own part of a step: signals and policy that are too slow are asked no more.

They run in the event loop, where nothing can interrupt them: what can be bounded is how often they are
asked. It refuses to know what they decide.
"""

from __future__ import annotations

from collections.abc import Callable

from suffice.episode.loop import Decides
from suffice.types import Decision, Signals, Step

STEP_BUDGET_S = 0.05  # of signals and policy together; a usual step takes well under a millisecond
SLOW_STEPS = 3  # so many over the budget in a row end it
HANG_S = 0.5  # a single step that takes so long ends it at once


class Pace:
    """Times each step of one request; `too_slow` is told once, and from then on everything continues.

    monotonic_s  the clock, in seconds
    """

    def __init__(self, too_slow: Callable[[], None], monotonic_s: Callable[[], float]) -> None:
        self._too_slow, self._now_s = too_slow, monotonic_s
        self._observed_s = 0.0
        self._n_slow = 0
        self.is_off = False

    def observing(self, observe: Callable[[Step], Signals]) -> Callable[[Step], Signals]:
        """The same signals, timed; nothing is known once they are off."""

        def timed(step: Step) -> Signals:
            if self.is_off:
                return Signals(step=step.index, tokens_used=0)
            start_s = self._now_s()
            signals = observe(step)
            self._observed_s = self._now_s() - start_s
            return signals

        return timed

    def deciding(self, policy: Decides) -> Decides:
        """The same policy, timed; it continues once it is off."""
        return _Timed(self, policy)

    def decide(self, policy: Decides, signals: Signals) -> Decision:
        """One decision, with its step's time judged."""
        if self.is_off:
            return Decision(action="continue", reason="signals and policy were too slow: not asked any more")
        start_s = self._now_s()
        decision = policy.decide(signals)
        self._judge(self._observed_s + self._now_s() - start_s)
        return decision

    def _judge(self, took_s: float) -> None:
        self._n_slow = self._n_slow + 1 if took_s > STEP_BUDGET_S else 0
        if took_s > HANG_S or self._n_slow >= SLOW_STEPS:
            self.is_off = True
            self._too_slow()


class _Timed:
    def __init__(self, pace: Pace, policy: Decides) -> None:
        self._pace, self._policy = pace, policy

    def decide(self, s: Signals) -> Decision:
        """What the policy decides."""
        return self._pace.decide(self._policy, s)
