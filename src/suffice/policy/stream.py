"""Policies over what was generated anyway: the text, how sure its tokens are, how near the end of thought is.

None needs a probe, so each can also propose where a probe is worth its tokens: `[routes.NAME.probe] propose`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import log
from operator import eq, ge, le
from typing import Annotated, ClassVar

from suffice.errors import ConfigError
from suffice.policy.parameters import ParameterChecks, ParameterRange
from suffice.policy.rules import SHARE_ABOVE_0, Condition, Conditions
from suffice.scoring.pattern import BadPattern, compile_pattern
from suffice.signals.fold import need
from suffice.signals.folds.wording import encode_pattern, pattern_code


@dataclass(frozen=True, slots=True)
class ThinkBrake(Conditions):
    """Stop when the model, at the end of a sentence, would nearly as soon end its thought as go on.

    ThinkBrake (Song et al. 2026, ACL Findings, arXiv:2510.00546): the log-probability of the best next token exceeds
    that of the end of thought by at most a threshold, which the authors tune; 0.25 is ours. An end of thought that is
    not among the listed tokens is unknown. Here a stop also needs a trial answer: what it delivers must be on record.
    """

    name: ClassVar[str] = "think-brake"
    source: ClassVar[str] = "ThinkBrake, Song et al. 2026, [arXiv:2510.00546](https://arxiv.org/abs/2510.00546)"
    threshold: Annotated[float, ParameterRange(0.0, 100.0)] = 0.25  # nats

    needs: ClassVar[tuple[str, ...]] = ("end-of-thought",)

    def conditions(self) -> Iterator[Condition]:
        yield "end_margin", le, self.threshold, "{value:.3f} nats to the end of thought, at most {bound:g} stop"


@dataclass(frozen=True, slots=True)
class Redundant(Conditions):
    """Stop when the last step said little that is new: most of its words were in the run before.

    The detector of PUMA (arXiv:2605.17672), by words; the authors train an embedder for it. Like theirs it is meant to
    propose an exit that a look at the answer confirms.
    """

    name: ClassVar[str] = "redundant"
    source: ClassVar[str] = "PUMA's detector, by words, [arXiv:2605.17672](https://arxiv.org/abs/2605.17672)"
    threshold: Annotated[float, SHARE_ABOVE_0] = 0.6  # above 0, at most 1

    needs: ClassVar[tuple[str, ...]] = ("loops",)

    def conditions(self) -> Iterator[Condition]:
        yield "known_words", ge, self.threshold, "{value:.3f} of the step's words are known, {bound:g} required"


@dataclass(frozen=True, slots=True)
class ConfidentSample(Conditions):
    """Stop when the model was sure of the tokens of its first sample; a later sample never stops.

    The first stage of ReASC (Kim et al. 2026, arXiv:2601.02970); `any-of` with a rule over votes makes the second. The
    authors take the least certain tenth of the response, over the whole vocabulary; here it is the geometric mean
    probability of the tokens drawn.
    """

    name: ClassVar[str] = "confident-sample"
    source: ClassVar[str] = "first stage of ReASC, [arXiv:2601.02970](https://arxiv.org/abs/2601.02970)"
    threshold: Annotated[float, SHARE_ABOVE_0] = 0.95  # probability, above 0, at most 1

    needs: ClassVar[tuple[str, ...]] = ("wording",)

    def conditions(self) -> Iterator[Condition]:
        yield "step_logprob", ge, log(self.threshold), "mean log-probability {value:.3f}, {bound:.3f} required"
        yield "step", le, 1, "sample {value:.0f}; only the first one is judged alone"


@dataclass(frozen=True, slots=True)
class TextPatternRule(Conditions):
    """Stop when a pattern of yours is in the text of the last step, whatever its case."""

    name: ClassVar[str] = "text-rule"
    source: ClassVar[str] = "asked for in [vLLM #42487](https://github.com/vllm-project/vllm/issues/42487)"
    needs_note: ClassVar[str] = "`pattern`"
    pattern: Annotated[str, ParameterRange(1, 200)]  # as for the scorer `regex`, at most 200 bytes

    def __post_init__(self) -> None:
        ParameterChecks.__post_init__(self)
        try:
            compile_pattern(self.pattern, ignore_case=True)
        except BadPattern as error:
            raise ConfigError(f"policy.text-rule.pattern: got {self.pattern[:80]!r}; {error}") from None

    @property
    def needs(self) -> tuple[str, ...]:
        return (need("pattern", hex=encode_pattern(self.pattern)),)

    def conditions(self) -> Iterator[Condition]:
        code = pattern_code(encode_pattern(self.pattern))
        yield "pattern_code", eq, code, "whether the pattern is in the step's text"
