"""A model that does sums: thinks aloud, has the answer long before it ends, and is sometimes wrong. To try things on.

It counts, too, and says of all else that it cannot do it, both behind a thought: so whoever examines its server
(`suffice doctor`) sees what a model server can do.

It depends on the request alone. It refuses to know servers: `python -m suffice.testing` serves it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from suffice.testing.chain import At, ScriptedThought
from suffice.testing.reply import FakeRequest, Reply

_SUM = re.compile(r"(\d{1,6})\s*([-+*])\s*(\d{1,6})")
_COUNT = re.compile(r"from (\d{1,3}) to (\d{1,3})\b")
_CHECKS = (
    "To be sure I work it out once more in another way and get {answer}.",
    "Does the size fit? The last digit and the order of magnitude agree with {answer}.",
    "Taking the numbers apart and putting them together again gives {answer} as well.",
)


@dataclass(frozen=True, slots=True)
class SumsModel:
    """Answers the last `a + b`, `a - b` or `a * b` of a prompt.

    >>> from suffice.testing import FakeUpstream
    >>> with FakeUpstream.in_thread(SumsModel()) as fake:
    ...     fake.url.startswith("http://127.0.0.1:")
    True

    n_checks   lines in which it looks at its answer again
    wrong_nth  so many times in a row it is right, then once not: the n-th answer to the same prompt
    delay_s    before each token
    """

    n_checks: int = 18
    wrong_nth: int = 6
    delay_s: float = 0.0

    def __call__(self, seen: FakeRequest) -> Reply:
        """The whole run for this prompt."""
        found = _SUM.findall(seen.text)
        if not found:
            return self._no_sum(seen)
        left, sign, right = found[-1]
        answer = _worked_out(int(left), sign, int(right))
        if seen.nth_same % (self.wrong_nth + 1) == self.wrong_nth:
            answer += 10
        told = f" {answer}"  # as a model goes on behind words
        return ScriptedThought(
            [
                At(
                    f"The question asks for {left} {sign} {right}, so let me begin with a rough guess of the size.\n",
                    f" {answer - 8}",
                    p=0.4,
                ),
                At(f"Worked out step by step, {left} {sign} {right} comes to {answer}.\n", told),
                *(
                    At(_CHECKS[n % len(_CHECKS)].format(answer=answer) + "\n", told, p=min(0.99, 0.7 + n / 40))
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


def _worked_out(left: int, sign: str, right: int) -> int:
    return left + right if sign == "+" else left - right if sign == "-" else left * right
