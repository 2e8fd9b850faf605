"""Policies over what was generated anyway: the text, how sure its tokens are, how near the end of thought is.

None needs a probe, so each can also propose where a probe is worth its tokens: `[routes.NAME.probe] propose`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp
from typing import Annotated, ClassVar

import numpy as np

from suffice.errors import ConfigError
from suffice.policy.columns import SUFFICES, Columns, Stops, answered, known_column, where
from suffice.policy.parameters import ParameterChecks, ParameterRange, Text
from suffice.policy.protocol import go_on, suffices
from suffice.policy.rules import SHARE_ABOVE_0
from suffice.scoring.pattern import BadPattern, compile_pattern
from suffice.signals.fold import need
from suffice.signals.folds.wording import encode_pattern, pattern_code
from suffice.types import Decision, Signals


@dataclass(frozen=True, slots=True)
class ThinkBrake(ParameterChecks):
    """Stop when the model, at the end of a sentence, would nearly as soon end its thought as go on.

    ThinkBrake (Song et al. 2026, ACL Findings, arXiv:2510.00546): the log-probability of the best next token exceeds
    that of the end of thought by at most a threshold, which the authors tune; 0.25 is ours. An end of thought that is
    not among the listed tokens is unknown. Here a stop also needs a trial answer: what it delivers must be on record.
    """

    name: ClassVar[str] = "think-brake"
    source: ClassVar[str] = "ThinkBrake, Song et al. 2026, [arXiv:2510.00546](https://arxiv.org/abs/2510.00546)"
    threshold: Annotated[float, ParameterRange(0.0, 100.0)] = 0.25  # nats

    needs: ClassVar[tuple[str, ...]] = ("end-of-thought",)

    def decide(self, s: Signals) -> Decision:
        margin = s.end_margin
        # NaN fails this comparison and continues.
        if margin is not None and margin <= self.threshold and s.answer is not None:
            return suffices(f"{margin:.3f} nats from the end of thought, at most {self.threshold:g}", margin)
        return go_on("no answer, or the end of thought is unlikely or not listed", margin)

    def stops(self, columns: Columns) -> Stops:
        return where(answered(columns) & (known_column(columns, "end_margin") <= self.threshold), SUFFICES)


@dataclass(frozen=True, slots=True)
class Redundant(ParameterChecks):
    """Stop when the last step said little that is new: most of its words were in the run before.

    The detector of PUMA (arXiv:2605.17672), by words; the authors train an embedder for it. Like theirs it is meant to
    propose an exit that a look at the answer confirms.
    """

    name: ClassVar[str] = "redundant"
    source: ClassVar[str] = "PUMA's detector, by words, [arXiv:2605.17672](https://arxiv.org/abs/2605.17672)"
    threshold: Annotated[float, SHARE_ABOVE_0] = 0.6  # share of the step's words, above 0, at most 1

    needs: ClassVar[tuple[str, ...]] = ("redundancy",)

    def decide(self, s: Signals) -> Decision:
        known = s.known_words
        if known is not None and known >= self.threshold and s.answer is not None:
            return suffices(f"{known:.3f} of the step's words are known, {self.threshold:g} required", known)
        return go_on(f"no answer, or under {self.threshold:g} of the step's words are known", known)

    def stops(self, columns: Columns) -> Stops:
        return where(answered(columns) & (known_column(columns, "known_words") >= self.threshold), SUFFICES)


@dataclass(frozen=True, slots=True)
class TextRule(ParameterChecks):
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


@dataclass(frozen=True, slots=True)
class ConfidentSample(ParameterChecks):
    """Stop when the model was sure of the tokens of its first sample; a later sample never stops.

    The first stage of ReASC (Kim et al. 2026, arXiv:2601.02970); `any-of` with a rule over votes makes the second. The
    authors take the least certain tenth of the response, over the whole vocabulary; here it is the geometric mean
    probability of the tokens drawn.
    """

    name: ClassVar[str] = "confident-sample"
    source: ClassVar[str] = "first stage of ReASC, [arXiv:2601.02970](https://arxiv.org/abs/2601.02970)"
    threshold: Annotated[float, SHARE_ABOVE_0] = 0.95  # above 0, at most 1

    needs: ClassVar[tuple[str, ...]] = ("wording",)

    def decide(self, s: Signals) -> Decision:
        sure = None if s.step_logprob is None else exp(min(0.0, s.step_logprob))
        if s.step == 1 and sure is not None and sure >= self.threshold and s.answer is not None:
            return suffices(f"the first sample's tokens have {sure:.3f}, {self.threshold:g} required", sure)
        return go_on("not a first sample of which the model was sure", sure)

    def stops(self, columns: Columns) -> Stops:
        sure = np.exp(np.minimum(0.0, known_column(columns, "step_logprob"))) >= self.threshold
        return where(answered(columns) & sure & (columns["step"] == 1), SUFFICES)
