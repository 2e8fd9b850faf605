"""Policies over what was generated anyway: the text, how sure its tokens are, how near the end of thought is.

None needs a probe, so each can also propose where a probe is worth its tokens: `[routes.NAME.probe] propose`.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import log
from typing import Annotated, Any, ClassVar

import numpy as np

from suffice.errors import ConfigError
from suffice.policy.columns import CONTINUE, SUFFICES, Columns, Stops, answered, known_column, where
from suffice.policy.parameters import ParameterChecks, ParameterRange, Text
from suffice.policy.protocol import go_on, suffices
from suffice.policy.rules import SHARE_ABOVE_0
from suffice.scoring.pattern import BadPattern, compile_pattern
from suffice.signals.fold import need
from suffice.signals.folds.wording import encode_pattern, pattern_code
from suffice.types import Decision, Signals


class SignalThreshold(ParameterChecks):
    """Base of policies that compare one signal of a step that has an answer with a threshold."""

    __slots__ = ()
    signal: ClassVar[str]
    says: ClassVar[str]  # the signal in words, for the operator

    @abstractmethod
    def passes(self, value: Any) -> Any:
        """Return whether a value, or each value of a column, stops the run; an unknown one (NaN) does not."""

    def decide(self, s: Signals) -> Decision:
        value = getattr(s, self.signal)
        if s.answer is None or value is None:
            return go_on(f"no answer, or unknown: {self.says}")
        if self.passes(value):
            return suffices(f"{self.says}: {value:.3f} is enough", value)
        return go_on(f"{self.says}: {value:.3f} is not enough", value)

    def stops(self, columns: Columns) -> Stops:
        return where(answered(columns) & self.passes(known_column(columns, self.signal)), SUFFICES)


@dataclass(frozen=True, slots=True)
class ThinkBrake(SignalThreshold):
    """Stop when the model, at the end of a sentence, would nearly as soon end its thought as go on.

    ThinkBrake (Song et al. 2026, ACL Findings, arXiv:2510.00546): the log-probability of the best next token exceeds
    that of the end of thought by at most a threshold, which the authors tune; 0.25 is ours. An end of thought that is
    not among the listed tokens is unknown. Here a stop also needs a trial answer: what it delivers must be on record.
    """

    name: ClassVar[str] = "think-brake"
    source: ClassVar[str] = "ThinkBrake, Song et al. 2026, [arXiv:2510.00546](https://arxiv.org/abs/2510.00546)"
    signal: ClassVar[str] = "end_margin"
    says: ClassVar[str] = "nats to the end of thought"
    threshold: Annotated[float, ParameterRange(0.0, 100.0)] = 0.25  # nats

    needs: ClassVar[tuple[str, ...]] = ("end-of-thought",)

    def passes(self, value: Any) -> Any:
        return value <= self.threshold


@dataclass(frozen=True, slots=True)
class Redundant(SignalThreshold):
    """Stop when the last step said little that is new: most of its words were in the run before.

    The detector of PUMA (arXiv:2605.17672), by words; the authors train an embedder for it. Like theirs it is meant to
    propose an exit that a look at the answer confirms.
    """

    name: ClassVar[str] = "redundant"
    source: ClassVar[str] = "PUMA's detector, by words, [arXiv:2605.17672](https://arxiv.org/abs/2605.17672)"
    signal: ClassVar[str] = "known_words"
    says: ClassVar[str] = "share of the step's words that are known"
    threshold: Annotated[float, SHARE_ABOVE_0] = 0.6  # above 0, at most 1

    needs: ClassVar[tuple[str, ...]] = ("loops",)

    def passes(self, value: Any) -> Any:
        return value >= self.threshold


@dataclass(frozen=True, slots=True)
class ConfidentSample(SignalThreshold):
    """Stop when the model was sure of the tokens of its first sample; a later sample never stops.

    The first stage of ReASC (Kim et al. 2026, arXiv:2601.02970); `any-of` with a rule over votes makes the second. The
    authors take the least certain tenth of the response, over the whole vocabulary; here it is the geometric mean
    probability of the tokens drawn.
    """

    name: ClassVar[str] = "confident-sample"
    source: ClassVar[str] = "first stage of ReASC, [arXiv:2601.02970](https://arxiv.org/abs/2601.02970)"
    signal: ClassVar[str] = "step_logprob"
    says: ClassVar[str] = "mean log-probability of the sample's tokens"
    threshold: Annotated[float, SHARE_ABOVE_0] = 0.95  # probability, above 0, at most 1

    needs: ClassVar[tuple[str, ...]] = ("wording",)

    def passes(self, value: Any) -> Any:
        return value >= log(self.threshold)

    def decide(self, s: Signals) -> Decision:
        return SignalThreshold.decide(self, s) if s.step == 1 else go_on("only the first sample is judged alone")

    def stops(self, columns: Columns) -> Stops:
        return np.where(columns["step"] == 1, SignalThreshold.stops(self, columns), np.int8(CONTINUE))


@dataclass(frozen=True, slots=True)
class TextPatternRule(ParameterChecks):
    """Stop when a pattern of yours is in the text of the last step, whatever its case."""

    name: ClassVar[str] = "text-rule"
    source: ClassVar[str] = "asked for in [vLLM #42487](https://github.com/vllm-project/vllm/issues/42487)"
    needs_note: ClassVar[str] = "`pattern`"
    pattern: Annotated[str, Text(200)]  # as for the scorer `regex`, at most 200 bytes

    def __post_init__(self) -> None:
        ParameterChecks.__post_init__(self)
        try:
            compile_pattern(self.pattern, ignore_case=True)
        except BadPattern as error:
            raise ConfigError(f"policy.text-rule.pattern: got {self.pattern[:80]!r}; {error}") from None

    @property
    def needs(self) -> tuple[str, ...]:
        return (need("pattern", hex=encode_pattern(self.pattern)),)

    @property
    def _code(self) -> float:
        return pattern_code(encode_pattern(self.pattern))

    def decide(self, s: Signals) -> Decision:
        if s.pattern_code == self._code and s.answer is not None:
            return suffices("the pattern is in the text of the last step", 1.0)
        return go_on("no answer, or the pattern is not in the text of the last step")

    def stops(self, columns: Columns) -> Stops:
        return where(answered(columns) & (known_column(columns, "pattern_code") == self._code), SUFFICES)
