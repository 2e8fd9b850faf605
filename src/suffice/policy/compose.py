"""Policies made of other policies; only the outermost one chooses the returned answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from suffice.errors import ConfigError
from suffice.policy.columns import BUDGET, CONTINUE, HOPELESS, SUFFICES, Columns, Stops, stops_of, where
from suffice.policy.parameters import Length, Nested, ParameterChecks
from suffice.policy.protocol import Returns, go_on, returns_of, stop_at_budget
from suffice.policy.rules import STEPS, TOKENS
from suffice.signals.base import resolve_needs
from suffice.types import Decision, Signals


@dataclass(frozen=True, slots=True)
class RunBounds(ParameterChecks):
    """Stop when its inner policy does, but never too early, and always at a hard limit (`stop_reason` is `budget`).

    A limit below the minimum wins. At the limit, a stop of the inner policy keeps its own reason.
    """

    name: ClassVar[str] = "guarded"
    needs_note: ClassVar[str] = "what its parts need"
    inner: Nested  # the bounded policy
    min_steps: Annotated[int, STEPS] = 0  # no stop before this step
    min_tokens: Annotated[int, TOKENS] = 0  # no stop before this many tokens
    max_steps: Annotated[int, STEPS] = 0  # always stop at this step, 0 for no limit
    max_tokens: Annotated[int, TOKENS] = 0  # always stop at this many tokens, 0 for no limit
    returns: Returns = "last"  # which round's answer is used, see below

    def __post_init__(self) -> None:
        ParameterChecks.__post_init__(self)
        _check_returns(f"policy.{self.name}.inner", self.inner)

    @property
    def needs(self) -> tuple[str, ...]:
        return self.inner.needs

    def decide(self, s: Signals) -> Decision:
        if s.step < self.min_steps or s.tokens_used < self.min_tokens:
            inner = go_on(f"step {s.step}, {s.tokens_used} tokens: too early for any stop")
        else:
            inner = self.inner.decide(s)
        if inner.action == "stop":
            return inner
        if self.max_steps and s.step >= self.max_steps:
            return stop_at_budget(f"step {s.step} reached the limit of {self.max_steps}", float(s.step))
        if self.max_tokens and s.tokens_used >= self.max_tokens:
            used = s.tokens_used
            return stop_at_budget(f"budget of {self.max_tokens} tokens reached with {used}", float(used))
        return inner

    def stops(self, columns: Columns) -> Stops:
        step, tokens_used = columns["step"], columns["tokens_used"]
        codes = stops_of(self.inner, columns)
        codes = np.where((step >= self.min_steps) & (tokens_used >= self.min_tokens), codes, np.int8(CONTINUE))
        over = np.zeros(len(step), np.bool_)
        if self.max_steps:
            over |= step >= self.max_steps
        if self.max_tokens:
            over |= tokens_used >= self.max_tokens
        return np.where(codes == CONTINUE, where(over, BUDGET), codes)


@dataclass(frozen=True, slots=True)
class _Composite(ParameterChecks):
    needs_note: ClassVar[str] = "what its parts need"
    policies: Annotated[tuple[Nested, ...], Length(2, 16)]  # 2 to 16 policies

    def __post_init__(self) -> None:
        ParameterChecks.__post_init__(self)
        for at, policy in enumerate(self.policies):
            _check_returns(f"policy.{self.name}.policies[{at}]", policy)
        try:
            resolve_needs(self.needs)
        except ConfigError as error:
            raise ConfigError(f"policy.{self.name}.policies: {error}") from None

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(need for policy in self.policies for need in policy.needs))


@dataclass(frozen=True, slots=True)
class AllOf(_Composite):
    """Stop when every part does, and none contradicts another; a part that stops by `budget` agrees with everything.

    A part such as `fixed-rounds` therefore sets a minimum. "Suffices" beside "hopeless" is a contradiction: continue.
    """

    name: ClassVar[str] = "all-of"
    source: ClassVar[str] = "two signals, as in TASR, [arXiv:2606.13814](https://arxiv.org/abs/2606.13814)"

    def decide(self, s: Signals) -> Decision:
        claim: Decision | None = None
        for policy in self.policies:
            decision = policy.decide(s)
            if decision.action == "continue":
                return decision
            if claim is None or claim.stop_reason == "budget":
                claim = decision
            elif decision.stop_reason not in ("budget", claim.stop_reason):
                return go_on("one rule says that the answer suffices, another that the run is hopeless")
        assert claim is not None
        return claim

    def stops(self, columns: Columns) -> Stops:
        codes = np.stack([stops_of(policy, columns) for policy in self.policies])
        all_stop = (codes != CONTINUE).all(axis=0)
        done, lost = (codes == SUFFICES).any(axis=0), (codes == HOPELESS).any(axis=0)
        claimed = np.select([done & lost, done, lost], [CONTINUE, SUFFICES, HOPELESS], BUDGET)
        return np.where(all_stop, claimed, CONTINUE).astype(np.int8)


@dataclass(frozen=True, slots=True)
class AnyOf(_Composite):
    """Stop when one part does; the first in the list that stops gives the reason."""

    name: ClassVar[str] = "any-of"
    source: ClassVar[str] = (
        "stopping on two sides, as in Conformal Thinking, [arXiv:2602.03814](https://arxiv.org/abs/2602.03814)"
    )

    def decide(self, s: Signals) -> Decision:
        first: Decision | None = None
        for policy in self.policies:
            decision = policy.decide(s)
            if decision.action == "stop":
                return decision
            first = first or decision
        assert first is not None
        return first

    def stops(self, columns: Columns) -> Stops:
        codes = stops_of(self.policies[0], columns)
        for policy in self.policies[1:]:
            codes = np.where(codes == CONTINUE, stops_of(policy, columns), codes)
        return codes


def _check_returns(where: str, policy: Nested) -> None:
    returns = returns_of(policy)
    if returns != "last":
        raise ConfigError(f"{where}.returns: got {returns!r}; only the outermost policy selects the returned answer")
