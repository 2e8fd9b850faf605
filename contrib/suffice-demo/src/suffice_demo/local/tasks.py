"""The demonstration's questions with prompts and exact gold answers, drawn from a seed.

Wordings and examples were chosen by how well the models answer in full under other seeds, without any stopping rule,
and no model's answer selects a question.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from suffice_demo.local import LocalModelError
from suffice_demo.local.questions import FACTS, FAMILIES_OF_QUESTIONS, DemoQuestion

Message = Mapping[str, str]

SEED = 20_26
SHORT = "Answer with one word or one number."
THINK = "Think step by step, check the result, then write only the final number."
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "samples": ("capitals", "sentiment", "sums", "letters", "lists"),
    "reasoning": ("stories", "chains"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskQuestion:
    id: str
    task: str  # its family
    messages: tuple[Message, ...]  # system, worked examples, user
    gold: str
    scorer: str
    max_tokens: int
    temperature: float


def _examples(task: str) -> tuple[Message, ...]:
    messages = list[Message]()
    for one in FACTS["examples"][task]:
        thought = {"reasoning_content": one["thought"]} if "thought" in one else {}
        messages += [
            {"role": "user", "content": one["ask"]},
            {"role": "assistant", "content": one["answer"], **thought},
        ]
    return tuple(messages)


EXAMPLES: Mapping[str, tuple[Message, ...]] = {task: _examples(task) for task in FACTS["examples"]}


def questions(kind: str, n: int, *, seed: int = SEED) -> tuple[TaskQuestion, ...]:
    """Return the first `n` questions of a kind.

    Raise LocalModelError for an unknown kind or fewer than `n` questions.
    """
    if kind not in FAMILIES:
        raise LocalModelError(f"questions: unknown kind {kind!r}; known: {', '.join(FAMILIES)}")
    streams = {task: FAMILIES_OF_QUESTIONS[task](random.Random(f"{seed}:{task}")) for task in FAMILIES[kind]}
    results = tuple(islice(_in_turn(kind, streams), n))
    if len(results) < n:
        raise LocalModelError(f"questions: {kind} has {len(results)} questions, {n} were asked for")
    return results


def _in_turn(kind: str, streams: Mapping[str, Iterator[DemoQuestion]]) -> Iterator[TaskQuestion]:
    left = dict(streams)
    while left:
        for task in list(left):
            item = next(left[task], None)
            if item is None:
                del left[task]
            else:
                yield task_question(kind, task, item)


def task_question(kind: str, task: str, item: DemoQuestion) -> TaskQuestion:
    system: Message = {"role": "system", "content": SHORT if kind == "samples" else THINK}
    user: Message = {"role": "user", "content": item.ask}
    return TaskQuestion(
        id=item.id,
        task=task,
        messages=(system, *EXAMPLES[task], user),
        gold=item.gold,
        scorer="text" if kind == "samples" else "number",
        max_tokens=16 if kind == "samples" else 180,
        temperature=0.7 if kind == "samples" else 0.0,
    )
