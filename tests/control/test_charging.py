"""A judge's labels count where trusted people have measured it, and what its mistakes may cost is taken off first."""

from __future__ import annotations

import random
from dataclasses import replace

import msgspec
import pytest

from suffice.assurance.fidelity import bound_fidelity
from suffice.assurance.labels import CHARGE_CONFIDENCE
from suffice.control.evidence.audits import Audit, verdicts
from suffice.control.evidence.judging import JudgeGrades, graded, parse_grade
from suffice.control.loop.safety_checks import MOST_SHARE, JudgeCharge
from suffice.settings import Judge
from suffice.store.database.views import StoredLabel
from suffice.store.rows.events import Event, FeedbackEvent
from suffice.types import Episode, Feedback
from tests.control.made import ROUTE, learned, rows, run, story

MODEL = "grader"
BUDGET = 0.1


def same(answer: str | None, gold: str) -> bool:
    return answer == gold


def audit(number: int, *words: Feedback) -> Audit:
    """A full run that answered 4 where its stop would have said 7, and what was said of it."""
    request, outcome = run(number, random.Random(number))
    outcome = replace(outcome, answer="4", would_answer="7", stop_step=1)
    labels = tuple(StoredLabel(number * 10 + at, word) for at, word in enumerate(words))
    return Audit(
        seq=number, at=number, ended_at_s=0.0, episode=Episode(request=request, outcome=outcome), labels=labels
    )


def judge(number: int, *, right: bool = True, counts: bool = True, model: str = MODEL, sender: str = "") -> Feedback:
    """What the judge said: that the full run is right and the stop is not, or the other way round."""
    grades = JudgeGrades(full=1.0 if right else -1.0, stopped=-1.0 if right else 1.0)
    return replace(grades.as_feedback(audit(number), model, counts=counts), sender=sender)


def person(number: int, *, gold: str = "4", source: str = "reviewer", sender: str = "") -> Feedback:
    return Feedback(feedback_id=f"p{number}", episode_id=f"ep_{number:05}", gold=gold, source=source, sender=sender)


def looked(*audits: Audit, model: str | None = MODEL, callers: frozenset[str] = frozenset()) -> JudgeCharge:
    here = JudgeCharge(model=model, match=same)
    here.look(audits, BUDGET, callers)
    return here


def measured_by(n: int, *, wrong: int = 0, **word: str) -> list[Audit]:
    """Audits that a person and the judge have spoken of."""
    return [audit(at, judge(at, right=at >= wrong, counts=False), person(at, **word)) for at in range(n)]


ALONE = [audit(at, judge(at)) for at in range(1_000, 1_040)]
QUIET = [audit(at) for at in range(2_000, 2_400)]


def test_a_measured_judge_is_heard_and_pays_twice_its_error_times_what_rests_on_it() -> None:
    here = looked(*measured_by(200, wrong=3), *ALONE, *QUIET)
    error, share = (
        bound_fidelity(6, 400, confidence=CHARGE_CONFIDENCE),
        bound_fidelity(40, 640, confidence=CHARGE_CONFIDENCE),
    )
    assert error is not None
    assert share is not None
    assert here.is_accepted
    assert here.charge == pytest.approx(2 * error.upper * share.upper)
    assert 0 < here.charge <= MOST_SHARE * BUDGET
    assert here.accepts(judge(1_000))
    counts = verdicts([*ALONE, *QUIET], same, accepts=here.accepts)
    assert len(counts) == 40, "each of its words counts: what it gets wrong is paid for, so no cap silences it"


@pytest.mark.parametrize(
    "evidence",
    [[], measured_by(5), measured_by(200, wrong=80), measured_by(200, source="user"), measured_by(200, sender="app")],
    ids=["nobody", "few", "wrong", "users", "a key that asks"],
)
def test_a_judge_that_nobody_measured_or_that_is_often_wrong_is_not_heard(evidence: list[Audit]) -> None:
    here = looked(*evidence, *ALONE, *QUIET, callers=frozenset({"app"}))
    assert (here.is_accepted, here.charge) == (False, 0.0)
    assert not here.accepts(judge(1_000))
    assert verdicts(ALONE, same, accepts=here.accepts) == {}


def test_a_route_without_a_judge_hears_none_and_other_judges_are_not_its_own() -> None:
    assert not looked(*measured_by(200), *ALONE, model=None).is_accepted
    here = looked(*measured_by(200), *ALONE, *QUIET)
    assert here.is_accepted
    assert not here.accepts(judge(1_000, model="another"))


def test_who_writes_as_the_judge_over_http_is_nobody() -> None:
    forged = judge(1, sender="0123456789abcdef")
    assert parse_grade(forged, MODEL) is None
    assert graded([StoredLabel(1, forged)], MODEL) is None
    assert parse_grade(replace(judge(1), comment="no json"), MODEL) is None
    assert parse_grade(replace(judge(1), comment=None), MODEL) is None


def test_a_persons_word_stands_over_the_judges() -> None:
    both = audit(1, judge(1), person(1, gold="7"))
    counts = verdicts([both], same, accepts=lambda _: True)
    assert counts[both.id].source == "reviewer"


# --------------------------------------------------------------------------- in the loop

JUDGED = msgspec.structs.replace(ROUTE, judge=Judge(url="http://h", model=MODEL), max_em_drop=0.3)


def judged_log(*, with_people: bool) -> list[Event]:
    """Full runs whose stop at the first sample may answer otherwise; the judge says of each that both are wrong."""
    rng, events = random.Random(9), list[Event]()
    for number in range(200):
        request, outcome = run(number, rng, p_right=0.6)
        first = outcome.steps[0].answer
        outcome = replace(outcome, stop_step=1, would_answer=first)
        events += [request, outcome]
        if first == outcome.answer:
            continue
        by_person = with_people and number % 2 == 0
        item = Audit(seq=0, at=0, ended_at_s=0.0, episode=Episode(request=request, outcome=outcome))
        grade = JudgeGrades(full=-1.0, stopped=-1.0).as_feedback(item, MODEL, counts=not by_person)
        events.append(FeedbackEvent(grade))
        if by_person:
            events.append(FeedbackEvent(person(number, gold="1000")))
    return events


def test_what_a_judge_costs_stands_in_the_publication_and_without_people_it_counts_for_nothing() -> None:
    alone, beside = (story(JUDGED).feed(rows(judged_log(with_people=some))).settle() for some in (False, True))
    silent, heard = alone.published[0].evidence, beside.published[0].evidence
    assert silent.judge_charge == 0
    assert silent.max_em_drop == JUDGED.max_em_drop
    assert heard.judge_charge > 0
    assert heard.max_em_drop == pytest.approx(JUDGED.max_em_drop - heard.judge_charge)
    assert learned(beside.loop).counts
    assert not learned(alone.loop).counts, "nobody has measured it"
