"""The questions of the traces that this project recorded itself: those of the demonstration and two tasks more."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice

from suffice_demo.local import LocalModelError
from suffice_demo.local.questions import FAMILIES_OF_QUESTIONS, DemoQuestion, distinct
from suffice_demo.local.tasks import SEED, TaskQuestion, task_question

# With a thought, and those that need none.
TRACED: Mapping[str, tuple[str, ...]] = {
    "reasoning": ("stories", "chains", "largest", "series"),
    "samples": ("largest", "series"),
}


@distinct
def largest(rng: random.Random) -> DemoQuestion:
    numbers = [str(number) for number in rng.sample(range(10, 100), rng.choice((4, 5)))]
    ask = f"Which number is the largest: {', '.join(numbers[:-1])} or {numbers[-1]}?"
    return DemoQuestion(id=f"largest-{'-'.join(numbers)}", ask=ask, gold=max(numbers))


@distinct
def series(rng: random.Random) -> DemoQuestion:
    """The next number of a series with a constant step, up or down; never below zero."""
    step = rng.choice((-1, 1)) * rng.randint(2, 12)
    first = rng.randint(1, 40) - min(0, 4 * step)
    numbers = [str(first + step * k) for k in range(4)]
    ask = f"Which number comes next: {', '.join(numbers)}?"
    return DemoQuestion(id=f"series-{'-'.join(numbers)}", ask=ask, gold=str(first + 4 * step))


TASKS = {**FAMILIES_OF_QUESTIONS, "largest": largest, "series": series}


def traced(kind: str, n_a_task: int, *, seed: int = SEED + 1) -> tuple[TaskQuestion, ...]:
    """The questions of the recorded traces: `n_a_task` of each task of `TRACED`, one task after the other.

    kind  "reasoning": with a thought, greedy; "samples": those that the model can answer at once, behind two worked
          examples, at temperature 0.7; the request has to switch the thought off

    Raises LocalModelError for an unknown kind.
    """
    if kind not in TRACED:
        raise LocalModelError(f"traced: unknown kind {kind!r}; known: {', '.join(TRACED)}")
    drawn = [
        task_question("reasoning", task, item)
        for task in TRACED[kind]
        for item in islice(TASKS[task](random.Random(f"{seed}:{task}")), n_a_task)
    ]
    if kind == "samples":
        return tuple(
            replace(one, messages=(*one.messages[:5], one.messages[-1]), max_tokens=8, temperature=0.7) for one in drawn
        )
    return tuple(drawn)
