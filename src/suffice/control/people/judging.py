"""Labels from a judge model, which count only after they were measured against people's labels.

    full runs whose stop would have answered otherwise
      ├─ a person said what is right ──▶ graded: how often is the judge wrong?  ──▶ JudgeError
      └─ nobody did ──▶ graded, and labelled, while that error leaves something of the EM budget

A grade is a row of the log like any feedback, with the source "judge". A grade beside a person's word says nothing of
right and wrong, so nobody can count it; only a judge whose error was measured, and whose charge is below the route's
`max_em_drop`, writes labels. Whoever certifies with them subtracts a charge of its own (`control.loop.charges`).

The log holds no question, so the caller brings them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from suffice.assurance.bounds import exact_binomial
from suffice.assurance.labels import JudgeError, judge_error_bound
from suffice.assurance.runs import FINISHED_ENDS, LabelledEpisode, Match
from suffice.control.evidence.feedback import JudgeGrades, graded, pair_grades, persons_word
from suffice.edge.judge import Grade
from suffice.types import Feedback

MOST_CALLS = 200  # answers that are graded in one go


class Grades(Protocol):
    """A judge model; `edge.judge` is one."""

    @property
    def model(self) -> str: ...

    async def grade(self, question: str, answer: str | None, gold: str | None = None) -> Grade:
        """Grade one answer; it never raises for what a server does."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgingResult:
    n_full: int  # full runs of the route
    n_differing: int  # of them: the stop would have answered otherwise, or not at all
    n_unknown: int  # of these: their question was not among those that were brought
    n_graded: int  # runs graded in this go
    n_ungraded: int  # runs for which the judge gave no grade: asked again next time
    n_labelled: int  # labels written in this go
    error: JudgeError | None  # against people, over the whole log; None: no run has both words
    disagreement: float  # upper bound on the rate, that the charge was computed with
    may_count: bool  # are its labels worth anything now?
    reason: str  # a sentence for a person


async def judge_labels(
    episodes: Iterable[LabelledEpisode],
    judge: Grades,
    append: Callable[[Feedback], Awaitable[object]],
    *,
    questions: Mapping[str, str],
    match: Match,
    max_em_drop: float,
    confidence: float,
    most_calls: int = MOST_CALLS,
) -> JudgingResult:
    """Measure a judge on the runs of one route that people labelled, and let it label the others if it is good enough.

    append       puts a row into the log; waits until it is there
    questions    texts by `Request.question_key`
    match        does an answer equal a reference? The route's scorer
    max_em_drop  fraction: the route's
    confidence   of the bound on the error and of that on the rate of disagreement, each, in (0.5, 1); their risks and
                 the certificate's are added
    most_calls   answers graded in this go at most; what is left waits for the next one

    May be repeated and interrupted: a run is graded once, whatever the judge said.
    """
    runs = [item for item in episodes if is_full(item)]
    differing = [item for item in runs if differs(item)]
    disagreement = exact_binomial(len(differing), len(runs), 2 * confidence - 1).high if runs else 1.0
    known = [item for item in differing if item.episode.request.question_key in questions]
    grading = _Grading(judge, append, questions, most_calls)
    graded_beside = await grading.each([item for item in known if persons_word(item.labels) is not None], counts=False)
    told = {_id(item): graded_beside.get(_id(item)) or graded(item.labels, judge.model) for item in differing}
    # A yardstick may wait for a judge of formulas, which must not hold up an event loop.
    pairs = await asyncio.to_thread(
        lambda: [pair for item in differing for pair in _compared(item, told[_id(item)], match)]
    )
    error = judge_error_bound(pairs, confidence=confidence, disagreement=disagreement) if pairs else None
    may_count = error is not None and error.charge < max_em_drop
    labelled: Mapping[str, JudgeGrades] = {}
    if may_count:
        labelled = await grading.each([item for item in known if persons_word(item.labels) is None], counts=True)
    return JudgingResult(
        n_full=len(runs),
        n_differing=len(differing),
        n_unknown=len(differing) - len(known),
        n_graded=len(graded_beside) + len(labelled),
        n_ungraded=grading.n_ungraded,
        n_labelled=len(labelled),
        error=error,
        disagreement=disagreement,
        may_count=may_count,
        reason=_reason(error, max_em_drop),
    )


class _Grading:
    """Grades runs one after the other, as long as there are calls left, and writes down what was said."""

    def __init__(
        self, judge: Grades, append: Callable[[Feedback], Awaitable[object]], questions: Mapping[str, str], most: int
    ) -> None:
        self._judge, self._append, self._questions, self._left = judge, append, questions, most
        self.n_ungraded = 0

    async def each(self, items: Sequence[LabelledEpisode], *, counts: bool) -> dict[str, JudgeGrades]:
        """What was said of the runs that were graded here, by episode; those graded before are left out."""
        grades: dict[str, JudgeGrades] = {}
        for item in items:
            if self._left < 2 or graded(item.labels, self._judge.model) is not None:
                continue
            told = await self._of(item)
            if told is None:
                self.n_ungraded += 1
                continue
            grades[_id(item)] = told
            await self._append(told.as_feedback(item, self._judge.model, counts=counts))
        return grades

    async def _of(self, item: LabelledEpisode) -> JudgeGrades | None:
        self._left -= 2
        question = self._questions[item.episode.request.question_key]
        answers = item.episode.outcome.answer, item.episode.outcome.would_answer
        grades = await asyncio.gather(*(self._judge.grade(question, answer) for answer in answers))
        full, stopped = (grade.value for grade in grades)
        return None if full is None or stopped is None else JudgeGrades(full=full, stopped=stopped)


def _id(item: LabelledEpisode) -> str:
    return item.episode.request.episode_id


def is_full(item: LabelledEpisode) -> bool:
    """A run that nothing could stop and that came to its end."""
    request, outcome = item.episode.request, item.episode.outcome
    by_design = request.audit or request.mode == "observe"
    return request.ungoverned is None and by_design and outcome.end_reason in FINISHED_ENDS


def differs(item: LabelledEpisode) -> bool:
    outcome = item.episode.outcome
    return outcome.stop_step is not None and outcome.would_answer != outcome.answer


def _compared(item: LabelledEpisode, told: JudgeGrades | None, match: Match) -> list[tuple[float, bool]]:
    return pair_grades(item.episode.outcome, persons_word(item.labels), told, match)


def _reason(error: JudgeError | None, max_em_drop: float) -> str:
    if error is None:
        return "no run has both a grade and a person's word, so its labels do not count"
    counts = f"{error.n_wrong} of {error.n} grades differ from people's; the charge is {error.charge:.2%} of EM"
    if error.charge < max_em_drop:
        return f"{counts}, of a budget of {max_em_drop:.2%}"
    return f"{counts}, which leaves nothing of a budget of {max_em_drop:.2%}, so its labels do not count"
