"""Grades that a judge model gave, as the log keeps them: read back, and set beside what people said.

Knows rows of the log; refuses to know how a grade was had (`control.people.judging`) and what it is worth
(`assurance.judge`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from suffice.assurance.judge import JUDGE
from suffice.assurance.runs import LabelledEpisode, Match, SequencedLabel, current_label
from suffice.types import Feedback, Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeGrades:
    """What a judge said of one run's two answers; above 0 is right."""

    full: float
    stopped: float

    def as_feedback(self, item: LabelledEpisode, model: str, *, counts: bool) -> Feedback:
        """The row of the log. Without `counts` it says nothing of right and wrong.

        Where both answers are right, a label can say so of the delivered one alone, so the stop counts as lost.
        """
        outcome = item.episode.outcome
        full, stopped = self.full > 0, self.stopped > 0
        gold = outcome.would_answer if counts and stopped and not full else None
        return Feedback(
            feedback_id=f"{JUDGE}:{model}:{outcome.episode_id}",
            episode_id=outcome.episode_id,
            source=JUDGE,
            correct=full if counts and gold is None else None,
            gold=gold,
            reason=f"graded by {model}",
            comment=json.dumps({"model": model, "full": self.full, "stopped": self.stopped}),
        )


def parse_grade(said: Feedback, model: str) -> JudgeGrades | None:
    """What this judge said in that row; None: it is another's, or cannot be read.

    A row that came over HTTP with a key is nobody's: the judge's own are written beside the log.
    """
    if said.source != JUDGE or said.sender:
        return None
    try:
        noted = json.loads(said.comment or "")
        if noted["model"] == model:
            return JudgeGrades(full=float(noted["full"]), stopped=float(noted["stopped"]))
    except (ValueError, KeyError, TypeError):
        return None
    return None


def graded(labels: Iterable[SequencedLabel], model: str) -> JudgeGrades | None:
    """What this judge has said of a run; None: nothing, or nothing that can be read."""
    return next((told for label in labels if (told := parse_grade(label.feedback, model)) is not None), None)


def persons_word(labels: Sequence[SequencedLabel]) -> Feedback | None:
    """The last word of anybody but a judge that says what is right."""
    return current_label([label for label in labels if label.feedback.source != JUDGE])


def pair_grades(
    outcome: Outcome, word: Feedback | None, told: JudgeGrades | None, match: Match
) -> list[tuple[float, bool]]:
    """The judge's grades beside a person's word: of both answers where that names the right one, else of one."""
    if word is None or told is None:
        return []
    if word.gold is None:
        return [(told.full, bool(word.correct))]
    sides = ((told.full, outcome.answer), (told.stopped, outcome.would_answer))
    return [(grade, answer is not None and match(answer, word.gold)) for grade, answer in sides]
