"""What the demonstration reads off an answer."""

from __future__ import annotations

import dataclasses

from suffice_demo import rows
from suffice_demo.local.tasks import TaskQuestion
from suffice_demo.rows import DemoAnswer, question_seed

QUESTIONS = tuple(
    TaskQuestion(
        id=f"q{i}",
        task="t",
        messages=({"role": "user", "content": f"question {i:02d} please"},),
        gold="4",
        scorer="number",
        max_tokens=50,
        temperature=0.5,
    )
    for i in range(8)
)


def test_a_seed_belongs_to_its_question() -> None:
    """The same in every pass, another for every question."""
    seeds = {question_seed(q.id) for q in QUESTIONS}
    assert len(seeds) == len(QUESTIONS)
    assert question_seed("q1") == question_seed("q1")


def test_a_wrong_answer_is_wrong_and_no_answer_too() -> None:
    """Scored by the scorer, with the gold as it is written."""
    from suffice.scoring.base import build_scorer

    base = DemoAnswer(
        question=dataclasses.replace(QUESTIONS[0], gold="4.0"),
        episode_id="e",
        text="so 4",
        completion_tokens=1,
        stopped=False,
    )
    scorer = build_scorer("number")
    assert rows.correct(base, scorer)
    assert not rows.correct(dataclasses.replace(base, text="so 5"), scorer)
    assert not rows.correct(dataclasses.replace(base, text="no idea"), scorer)
