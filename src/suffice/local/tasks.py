"""The demonstration's questions with their prompts: two kinds of run, exact gold, drawn from a seed.

`samples`    short answers for a very small model, asked again and again. Each prompt shows worked examples. Word
             problems are left out: the 135M model solves none.
`reasoning`  two-step word problems and sums, for a model that can chain steps. The prompt asks the model to check its
             result, as many production prompts do; most of the tokens that a stop can save are those of the check.

All questions of a kind have one scorer, because a route has one. Wordings and examples were chosen by how well the
models answer in full under other seeds; no stopping rule was run for that, and no answer of a model selects a question.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice

from suffice.errors import LocalModelError
from suffice.local.questions import FAMILIES_OF_QUESTIONS, DemoQuestion

Message = Mapping[str, str]

SEED = 20_26
SHORT = "Answer with one word or one number."
THINK = "Think step by step, check the result, then write only the final number."
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "samples": ("capitals", "sentiment", "sums", "letters", "lists"),
    "reasoning": ("stories", "chains"),
}
# Of the traces that this project recorded itself: with a thought, and those that need none.
TRACED: Mapping[str, tuple[str, ...]] = {
    "reasoning": ("stories", "chains", "largest", "series"),
    "samples": ("largest", "series"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskQuestion:
    id: str
    task: str  # the family that it comes from
    messages: tuple[Message, ...]  # system, worked examples, user
    gold: str
    scorer: str
    max_tokens: int
    temperature: float


def _shown(ask: str, answer: str, thought: str | None = None) -> tuple[Message, Message]:
    entries = {"role": "assistant", "content": answer}
    if thought is not None:
        entries["reasoning_content"] = thought
    return {"role": "user", "content": ask}, entries


_REVIEW = "Review: {}\nIs this review positive or negative?"
EXAMPLES: Mapping[str, tuple[Message, ...]] = {
    "capitals": (
        *_shown("What is the capital of Iceland?", "Answer: Reykjavik"),
        *_shown("What is the capital of Brazil?", "Answer: Brasilia"),
        *_shown("What is the capital of Ukraine?", "Answer: Kyiv"),
    ),
    "sentiment": (
        *_shown(_REVIEW.format("The tea was lovely."), "Answer: positive"),
        *_shown(_REVIEW.format("The chair broke at once."), "Answer: negative"),
        *_shown(_REVIEW.format("I was sick for two days after this meal."), "Answer: negative"),
        *_shown(_REVIEW.format("My dog loves the new food."), "Answer: positive"),
    ),
    "sums": (
        *_shown("Write out the sum of 20 and 1.", "20 + 1 = 21"),
        *_shown("Write out the sum of 6 and 12.", "6 + 12 = 18"),
        *_shown("Write out the sum of 10 and 4.", "10 + 4 = 14"),
    ),
    "letters": (
        *_shown('What is the first letter of the word "house"?', "h"),
        *_shown('What is the last letter of the word "moon"?', "n"),
        *_shown('What is the first letter of the word "tree"?', "t"),
        *_shown('What is the last letter of the word "crab"?', "b"),
    ),
    "lists": (
        *_shown("Which of these is a tool: cup, saw or cheese?", "Answer: saw"),
        *_shown("Which number is larger, 12 or 193?", "Answer: 193"),
        *_shown("Which of these is a tool: hammer, rain or bread?", "Answer: hammer"),
        *_shown("Which number is larger, 170 or 31?", "Answer: 170"),
    ),
    "stories": (
        *_shown(
            "Otto is 6 years old and his aunt is 20 years older. How old will she be in 3 years?",
            "29",
            "6 + 20 = 26 years.\n26 + 3 = 29 years.\nSo the answer is 29.\n"
            "Let me check: 6 + 20 = 26 and 26 + 3 = 29. That is right, the answer is 29.\n",
        ),
        *_shown(
            "Lena has 3 bags with 4 nuts each and eats 5 nuts. How many nuts are left?",
            "7",
            "3 * 4 = 12 nuts.\n12 - 5 = 7 nuts.\nSo the answer is 7.\n"
            "Let me check: 3 * 4 = 12 and 12 - 5 = 7. That is right, the answer is 7.\n",
        ),
    ),
    "chains": (
        *_shown(
            "Calculate 14 + 8 - 5 + 20.",
            "37",
            "14 + 8 = 22.\n22 - 5 = 17.\n17 + 20 = 37.\nSo the answer is 37.\n"
            "Let me check: 14 + 8 = 22, 22 - 5 = 17, 17 + 20 = 37. That is right, the answer is 37.\n",
        ),
        *_shown(
            "Calculate 40 - 12 + 25.",
            "53",
            "40 - 12 = 28.\n28 + 25 = 53.\nSo the answer is 53.\n"
            "Let me check: 40 - 12 = 28, 28 + 25 = 53. That is right, the answer is 53.\n",
        ),
    ),
    "largest": (
        *_shown(
            "Which number is the largest: 41, 17, 63 or 28?",
            "63",
            "41 or 17: 41.\n41 or 63: 63.\n63 or 28: 63.\nSo the answer is 63.\n"
            "Let me check: 63 > 41, 63 > 17, 63 > 28. That is right, the answer is 63.\n",
        ),
        *_shown(
            "Which number is the largest: 35, 80, 92, 51 or 14?",
            "92",
            "35 or 80: 80.\n80 or 92: 92.\n92 or 51: 92.\n92 or 14: 92.\nSo the answer is 92.\n"
            "Let me check: 92 > 35, 92 > 80, 92 > 51, 92 > 14. That is right, the answer is 92.\n",
        ),
    ),
    "series": (
        *_shown(
            "Which number comes next: 5, 8, 11, 14?",
            "17",
            "From 5 to 8 it goes up by 3.\n14 and 3 more is 17.\nSo the answer is 17.\n"
            "Let me check: from 14 to 17 it goes up by 3. That is right, the answer is 17.\n",
        ),
        *_shown(
            "Which number comes next: 60, 51, 42, 33?",
            "24",
            "From 60 to 51 it goes down by 9.\n33 and 9 less is 24.\nSo the answer is 24.\n"
            "Let me check: from 33 to 24 it goes down by 9. That is right, the answer is 24.\n",
        ),
        *_shown(
            "Which number comes next: 20, 26, 32, 38?",
            "44",
            "From 20 to 26 it goes up by 6.\n38 and 6 more is 44.\nSo the answer is 44.\n"
            "Let me check: from 38 to 44 it goes up by 6. That is right, the answer is 44.\n",
        ),
    ),
}


def questions(kind: str, n: int, *, seed: int = SEED) -> tuple[TaskQuestion, ...]:
    """The first `n` questions of a kind: its families in turn, the same for the same seed.

    Raises LocalModelError for an unknown kind or when there are fewer than `n`.
    """
    if kind not in FAMILIES:
        raise LocalModelError(f"questions: unknown kind {kind!r}; known: {', '.join(FAMILIES)}")
    streams = {task: FAMILIES_OF_QUESTIONS[task](random.Random(f"{seed}:{task}")) for task in FAMILIES[kind]}
    results = tuple(islice(_in_turn(kind, streams), n))
    if len(results) < n:
        raise LocalModelError(f"questions: {kind} has {len(results)} questions, {n} were asked for")
    return results


def traced(kind: str, n_a_task: int, *, seed: int = SEED + 1) -> tuple[TaskQuestion, ...]:
    """The questions of the recorded traces: `n_a_task` of each task of `TRACED`, one task after the other.

    kind  "reasoning": with a thought, greedy; "samples": the same questions of those tasks that the model can
          answer at once, behind two worked examples, with the thought to be switched off by the request, at
          temperature 0.7
    The same seed gives the same questions. Raises LocalModelError for an unknown kind.
    """
    if kind not in TRACED:
        raise LocalModelError(f"traced: unknown kind {kind!r}; known: {', '.join(TRACED)}")
    drawn = [
        _question("reasoning", task, item)
        for task in TRACED[kind]
        for item in islice(FAMILIES_OF_QUESTIONS[task](random.Random(f"{seed}:{task}")), n_a_task)
    ]
    if kind == "samples":
        return tuple(
            replace(one, messages=(*one.messages[:5], one.messages[-1]), max_tokens=8, temperature=0.7) for one in drawn
        )
    return tuple(drawn)


def _in_turn(kind: str, streams: Mapping[str, Iterator[DemoQuestion]]) -> Iterator[TaskQuestion]:
    left = dict(streams)
    while left:
        for task in list(left):
            item = next(left[task], None)
            if item is None:
                del left[task]
            else:
                yield _question(kind, task, item)


def _question(kind: str, task: str, item: DemoQuestion) -> TaskQuestion:
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
