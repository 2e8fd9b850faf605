"""Fake models made of data, whose replies depend only on the request, never on chance or a clock."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import log
from typing import TypeAlias

from suffice_testing.prompt import cut, visible_length
from suffice_testing.reply import AnswerTokens, FakeRequest, Reply, Script

Answerer: TypeAlias = Callable[[FakeRequest], Reply | Script]


@dataclass(frozen=True, slots=True)
class At:
    text: str
    answer: str
    p: float = 0.6  # probability of each answer token, in (0, 1]


@dataclass(frozen=True, slots=True)
class ScriptedThought:
    r"""A thought in steps, with the answer at each of them.

    >>> thought = ScriptedThought([("2 and 2\n", "3"), ("make 4\n", "4")], "4")
    >>> thought.answer_after("2 and 2").tokens, thought.answer_after("2 and 2\nmake 4").tokens
    (('3',), ('4',))

    """

    steps: Sequence[At | tuple[str, str] | tuple[str, str, float]]  # a step counts once all its words are generated
    final_answer: str  # the answer when the model ends the thought by itself
    final_p: float = 0.9  # probability of each token of it
    reply: Reply = field(default_factory=Reply)  # everything else: field, delays, usage, faults

    def __call__(self, seen: FakeRequest) -> Reply:  # noqa: ARG002  every request gets the same reply
        tokens = [token for step in self._steps for token in cut(step.text)]
        answer = _spoken(self.final_answer, self.final_p)
        return replace(
            self.reply,
            reasoning=tuple(tokens),
            answer=answer.tokens,
            answer_logprobs=answer.logprobs,
            answer_after=self.answer_after,
        )

    @property
    def _steps(self) -> list[At]:
        return [step if isinstance(step, At) else At(*step) for step in self.steps]

    def answer_after(self, thought: str) -> AnswerTokens:
        """Return the answer if the thought is closed here: that of its last complete step, else of the first."""
        length, needed, best = visible_length(thought), 0, None
        for step in self._steps:
            needed += visible_length(step.text)
            if best is None or needed <= length:
                best = step
        return _spoken(best.answer, best.p) if best else _spoken(self.final_answer, self.final_p)


def _spoken(answer: str, p: float) -> AnswerTokens:
    tokens = cut(answer)
    return AnswerTokens(tokens, (log(p),) * len(tokens))


@dataclass(frozen=True, slots=True)
class Samples:
    """Answers the n-th request with the same prompt by the n-th answer, in a cycle."""

    answers: Sequence[str]
    reply: Reply = field(default_factory=Reply)

    def __call__(self, seen: FakeRequest) -> Reply:
        return replace(self.reply, answer=cut(self.answers[seen.nth_same % len(self.answers)]))


@dataclass(frozen=True, slots=True)
class Questions:
    """Delegates to the first model whose key is in the prompt, or else to `otherwise`."""

    by_text: Mapping[str, Answerer]
    otherwise: Answerer

    def __call__(self, seen: FakeRequest) -> Reply | Script:
        text = seen.text
        return next((a for key, a in self.by_text.items() if key in text), self.otherwise)(seen)


_SUM = re.compile(r"(\d{1,6})\s*([-+*])\s*(\d{1,6})")
_OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
_COUNT = re.compile(r"from (\d{1,3}) to (\d{1,3})\b")
_CHECKS = (
    "To be sure I work it out once more in another way and get {answer}.",
    "Does the size fit? The last digit and the order of magnitude agree with {answer}.",
    "Taking the numbers apart and putting them together again gives {answer} as well.",
)


@dataclass(frozen=True, slots=True)
class SumsModel:
    """Computes the last sum, difference or product of a prompt, long before its thought ends; it is sometimes wrong."""

    n_checks: int = 18  # lines in which it checks its answer again
    wrong_nth: int = 6  # for the same prompt: right so many times in a row, then wrong once
    delay_s: float = 0.0  # before each token

    def __call__(self, seen: FakeRequest) -> Reply:
        terms = _SUM.findall(seen.text)
        if not terms:
            return self._no_sum(seen)
        left, sign, right = terms[-1]
        answer = _OPERATORS[sign](int(left), int(right))
        if seen.nth_same % (self.wrong_nth + 1) == self.wrong_nth:
            answer += 10
        trial_answer = f" {answer}"  # as a model continues after words
        return ScriptedThought(
            [
                At(
                    f"The question asks for {left} {sign} {right}, so let me begin with a rough guess of the size.\n",
                    f" {answer - 8}",
                    p=0.4,
                ),
                At(f"Worked out step by step, {left} {sign} {right} comes to {answer}.\n", trial_answer),
                *(
                    At(_CHECKS[n % len(_CHECKS)].format(answer=answer) + "\n", trial_answer, p=min(0.99, 0.7 + n / 40))
                    for n in range(self.n_checks)
                ),
            ],
            str(answer),
            0.99,
            Reply(delay_s=self.delay_s),
        )(seen)

    def _no_sum(self, seen: FakeRequest) -> Reply:
        count, answer = _COUNT.search(seen.text), "I only do sums, such as 17 * 24."
        if count is not None:
            answer = "In order: " + ", ".join(str(n) for n in range(int(count[1]), int(count[2]) + 1)) + "."
        thought = [At("Nothing is to be added or multiplied, so let me look again.\n", answer)] * self.n_checks
        return ScriptedThought(thought, answer, reply=Reply(delay_s=self.delay_s))(seen)
