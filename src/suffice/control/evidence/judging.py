"""Labels of a judge model, which count only once its error is measured against people's labels.

A grade is a feedback row with the source "judge"; beside a person's label it never counts as a label. A certificate
that uses a judge's labels charges their errors itself (`control.loop.safety_checks`).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from suffice.assurance.bounds import exact_binomial
from suffice.assurance.labels import JUDGE, JudgeError, judge_error_bound
from suffice.assurance.runs import LabelledEpisode, Match, SequencedLabel, current_label
from suffice.edge.judge import JudgeModel
from suffice.types import Feedback, Outcome

MOST_CALLS: Final = 200  # answers graded in one call


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeGrades:
    full: float
    stopped: float

    def as_feedback(self, item: LabelledEpisode, model: str, *, counts: bool) -> Feedback:
        """Build the feedback row. Without `counts` it says nothing about correctness; two right answers are a loss."""
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


def parse_grade(given: Feedback, model: str) -> JudgeGrades | None:
    """Parse this judge's grades in a feedback row; None: another judge's, invalid, or received over HTTP with a key."""
    if given.source != JUDGE or given.sender:
        return None
    try:
        noted = json.loads(given.comment or "")
        is_own = noted["model"] == model
        return JudgeGrades(full=float(noted["full"]), stopped=float(noted["stopped"])) if is_own else None
    except (ValueError, KeyError, TypeError):
        return None


def graded(labels: Iterable[SequencedLabel], model: str) -> JudgeGrades | None:
    grades = (parse_grade(label.feedback, model) for label in labels)
    return next((grade for grade in grades if grade is not None), None)


def human_label(labels: Sequence[SequencedLabel]) -> Feedback | None:
    """The label about correctness that counts, from anyone but a judge."""
    return current_label([label for label in labels if label.feedback.source != JUDGE])


def pair_grades(
    outcome: Outcome, label: Feedback | None, grades: JudgeGrades | None, match: Match
) -> list[tuple[float, bool]]:
    """The judge's grades beside a person's label: of both answers if that names the right one, else of one."""
    if label is None or grades is None:
        return []
    if label.gold is None:
        return [(grades.full, bool(label.correct))]
    sides = ((grades.full, outcome.answer), (grades.stopped, outcome.would_answer))
    return [(grade, answer is not None and match(answer, label.gold)) for grade, answer in sides]


# --------------------------------------------------------------------------- asking a judge


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgingResult:
    n_full: int  # full runs of the route
    n_differing: int  # of them, with a stop that would have given another answer, or none
    n_unknown: int  # of these, without a question in `questions`
    n_graded: int  # in this call
    n_ungraded: int  # runs that the judge failed to grade; the next call tries again
    n_labelled: int  # labels written in this call
    error: JudgeError | None  # against people, over the whole log; None: no run has both labels
    disagreement: float  # upper bound on the rate, used for the charge
    may_count: bool  # whether its labels count now
    reason: str  # a sentence for a person


async def judge_labels(
    episodes: Iterable[LabelledEpisode],
    judge: JudgeModel,
    append: Callable[[Feedback], Awaitable[object]],
    *,
    questions: Mapping[str, str],
    match: Match,
    max_em_drop: float,
    confidence: float,
    most_calls: int = MOST_CALLS,
) -> JudgingResult:
    """Measure a judge on the labelled runs of one route, and let it label the others if it is good enough.

    append       writes a row to the log and waits until it is there
    questions    texts by `Request.question_key`
    confidence   of the bound on the error and of that on the rate of disagreement, each, in (0.5, 1); their risks and
                 the certificate's are added

    Safe to repeat and interrupt: a run is graded once, whatever the grade.
    """
    runs = [item for item in episodes if is_full(item)]
    differing = [item for item in runs if differs(item)]
    disagreement = exact_binomial(len(differing), len(runs), 2 * confidence - 1).high if runs else 1.0
    known = [item for item in differing if item.episode.request.question_key in questions]
    by_people = {_id(item): human_label(item.labels) for item in differing}
    grading = _Grading(judge, append, questions, most_calls)
    beside = await grading.each([item for item in known if by_people[_id(item)] is not None], counts=False)

    def compare(item: LabelledEpisode) -> list[tuple[float, bool]]:
        grades = beside.get(_id(item)) or graded(item.labels, judge.model)
        return pair_grades(item.episode.outcome, by_people[_id(item)], grades, match)

    # A scorer may call a formula judge: off the event loop.
    pairs = await asyncio.to_thread(lambda: [pair for item in differing for pair in compare(item)])
    error = judge_error_bound(pairs, confidence=confidence, disagreement=disagreement) if pairs else None
    may_count = error is not None and error.charge < max_em_drop
    labelled: Mapping[str, JudgeGrades] = {}
    if may_count:
        labelled = await grading.each([item for item in known if by_people[_id(item)] is None], counts=True)
    return JudgingResult(
        n_full=len(runs),
        n_differing=len(differing),
        n_unknown=len(differing) - len(known),
        n_graded=len(beside) + len(labelled),
        n_ungraded=grading.n_ungraded,
        n_labelled=len(labelled),
        error=error,
        disagreement=disagreement,
        may_count=may_count,
        reason=_reason(error, max_em_drop),
    )


@dataclass(slots=True)
class _Grading:
    judge: JudgeModel
    append: Callable[[Feedback], Awaitable[object]]
    questions: Mapping[str, str]
    calls_left: int
    n_ungraded: int = 0

    async def each(self, items: Sequence[LabelledEpisode], *, counts: bool) -> dict[str, JudgeGrades]:
        model, result = self.judge.model, dict[str, JudgeGrades]()
        for item in items:
            if self.calls_left < 2 or graded(item.labels, model) is not None:
                continue
            self.calls_left -= 2
            question, outcome = self.questions[item.episode.request.question_key], item.episode.outcome
            answers = outcome.answer, outcome.would_answer
            grades = await asyncio.gather(*(self.judge.grade(question, answer) for answer in answers))
            full, stopped = (grade.value for grade in grades)
            if full is None or stopped is None:
                self.n_ungraded += 1
                continue
            result[_id(item)] = JudgeGrades(full=full, stopped=stopped)
            await self.append(result[_id(item)].as_feedback(item, model, counts=counts))
        return result


def _id(item: LabelledEpisode) -> str:
    return item.episode.request.episode_id


def is_full(item: LabelledEpisode) -> bool:
    request, outcome = item.episode.request, item.episode.outcome
    by_design = request.audit or request.mode == "observe"
    return request.ungoverned is None and by_design and outcome.is_finished


def differs(item: LabelledEpisode) -> bool:
    outcome = item.episode.outcome
    return outcome.stop_step is not None and outcome.would_answer != outcome.answer


def _reason(error: JudgeError | None, max_em_drop: float) -> str:
    if error is None:
        return "no run has both a grade and a person's label, so its labels do not count"
    counts = f"{error.n_wrong} of {error.n} grades differ from people's; the charge is {error.charge:.2%} of EM"
    if error.charge < max_em_drop:
        return f"{counts}, of a budget of {max_em_drop:.2%}"
    return f"{counts}, which leaves nothing of a budget of {max_em_drop:.2%}, so its labels do not count"
