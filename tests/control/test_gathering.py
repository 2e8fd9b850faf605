"""A rollout's evidence read in pieces: at every cut what whoever begins at its first row finds; late labels count."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.assurance.sampling import UnloggedRequests
from suffice.control.compare.rollout_evidence import EvidenceFold, ReplayedPair
from suffice.control.evidence.audits import Audit
from suffice.rollout import stages
from suffice.rollout.evidence import RolloutEvidence, Rules
from suffice.rollout.results import ArmEvidence
from suffice.store.database.log import StoredEvent
from suffice.store.routes.rollouts import RolloutRun
from suffice.store.rows.events import Event, RequestCount, RolloutMove
from suffice.types import ArmDraw, Query
from tests.control.made import label, rows, run
from tests.drawn import examples

RULES = Rules(least_stage_s=0.0, warmup_requests=3, warmup_s=0.0)
PROPERTY = settings(max_examples=examples(25))


def held() -> RolloutRun:
    state = stages.start_rollout(
        "r-1", route="r", candidate="pv-c", active="pv-f", follows=0, at=0, now_s=0.0, rules=RULES
    )
    return RolloutRun(state=state, first=state, number=1, seq=0, author="ann", reason="x", rules=RULES)


def gathering() -> EvidenceFold:
    return EvidenceFold(held=held(), match=lambda answer, gold: answer == gold, probes=False)


def replay(audits: Sequence[Audit], _levels: Sequence[int]) -> list[ReplayedPair | None]:
    """The candidate stops after the first sample, the version in force after the second; one in nine shows no pair."""
    pairs = list[ReplayedPair | None]()
    for audit in audits:
        steps = audit.outcome.steps
        first, second = (ArmEvidence(answer=step.answer, right=None, tokens=float(step.tokens)) for step in steps[:2])
        pairs.append(None if hash_of(audit) == 0 else {"candidate": first, "in force": second})
    return pairs


def hash_of(audit: Audit) -> int:
    return int(audit.id[3:]) % 9


def judge(audits: Sequence[Audit], pairs: Mapping[str, ReplayedPair], callers: set[str]) -> Mapping[str, ReplayedPair]:
    """The latest gold of each audit; who asked the model does not count."""
    assert all(len({one.answer for one in pairs[audit.id].values()}) > 1 for audit in audits), "of those that differ"
    judged = dict[str, dict[str, ArmEvidence]]()
    for audit in audits:
        gold = [one.feedback.gold for one in audit.labels if one.feedback.gold and one.feedback.sender not in callers]
        if gold:
            judged[audit.id] = {
                name: replace(one, right=one.answer == gold[-1]) for name, one in pairs[audit.id].items()
            }
    return judged


def see(one: EvidenceFold) -> RolloutEvidence:
    return one.evidence(replay, judge)


def made(seed: int, n: int) -> list[StoredEvent]:
    """A log of a rollout: audits and live runs of two classes, words of all kinds early and late, and its steps."""
    rng, events, later = random.Random(seed), list[Event](), list[tuple[int, Event]]()
    state = held().first
    for number in range(n):
        if number in (n // 5, n // 2):
            move = stages.promote_rollout(
                state, RULES, stages.StepOrder(by="person:ann", reason="go", at=number, now_s=0.0)
            )
            state = state.after(move)
            events.append(RolloutMove(route="r", author="ann", reason="go", transition=move))
        audit = rng.random() < 0.5
        arms: tuple[ArmDraw, ...] = ()
        if not audit and state.share:
            arm = rng.choice(["candidate", "control"])
            arms = (
                ArmDraw(
                    experiment="rollout r-1",
                    run=1,
                    arm=arm,
                    propensity=state.share,
                    others=(),
                    unit=f"u{rng.randrange(n)}",
                ),
            )
        query = Query(planned_steps=8, n_words=5, query_class=rng.choice(["easy", "hard"]))
        request, outcome = run(number, rng, p_right=0.5, audit=audit, query=query, unit=f"v{rng.randrange(n)}")
        events.append(replace(request, arms=arms, sender=f"key-{rng.randrange(3)}"))
        later.append((number + rng.randrange(4), outcome))
        for fields in (
            {"gold": rng.choice([one.answer for one in outcome.steps])},
            {"correct": rng.random() < 0.5},
            {"rating": float(rng.randrange(1, 6)), "sender": f"key-{rng.randrange(6)}"},
        ):
            if rng.random() < 0.5:
                later.append((number + rng.randrange(-1, 30), label(number, **fields)))
        later.sort(key=lambda one: one[0])
        while later and later[0][0] <= number:
            events.append(later.pop(0)[1])
    return rows([*events, *(event for _, event in later)])


@pytest.mark.slow
@PROPERTY
@given(seed=st.integers(0, 10_000), cuts=st.sets(st.integers(0, 400), max_size=8))
def test_read_in_pieces_it_says_at_every_cut_what_it_says_read_at_once(seed: int, cuts: set[int]) -> None:
    log, kept = made(seed, 90), gathering()
    for cut in [*sorted(cuts), len(log)]:
        for stored in log[:cut]:  # what it has read already changes nothing
            kept.feed(stored)
        fresh = gathering()
        for stored in log[:cut]:
            fresh.feed(stored)
        assert see(kept) == see(fresh)
        assert kept.n == fresh.n


def test_the_made_up_log_holds_everything_that_is_compared() -> None:
    whole = gathering()
    for stored in made(1, 300):
        whole.feed(stored)
    evidence = see(whole)
    assert set(evidence.audits) == {"easy", "hard"}
    assert all(getattr(evidence.all_audits, what) for what in ("gained", "same", "lost", "pending"))
    assert (
        min(
            evidence.n_candidate, evidence.n_control, evidence.satisfaction.candidate.n, evidence.satisfaction.control.n
        )
        > 5
    )
    assert [cell.query_class for cell in evidence.labelled] == ["easy", "hard"]


def fed(events: Sequence[Event], one: EvidenceFold | None = None, *, first: int = 1) -> EvidenceFold:
    one = one or gathering()
    for stored in rows(events, first=first):
        one.feed(stored)
    return one


def two_answers(number: int, **changes: Any) -> list[Event]:
    """An audit on which the candidate answers 5 and the version in force 6."""
    request, outcome = run(number, random.Random(0), sure=True, **changes)
    steps = tuple(replace(step, answer="5" if step.index == 1 else "6") for step in outcome.steps)
    return [request, replace(outcome, steps=steps, answer="6")]


@pytest.mark.parametrize(("fields", "outcome"), [({"gold": "6"}, "lost"), ({"gold": "5"}, "gained")])
def test_an_audit_is_judged_anew_when_its_label_comes_and_again_when_a_later_one_does(
    fields: dict[str, Any], outcome: str
) -> None:
    one = fed(two_answers(1))
    assert (see(one).n_audits, see(one).all_audits.pending) == (1, 1)
    fed([label(1, **fields)], one, first=3)
    assert (see(one).n_audits, getattr(see(one).all_audits, outcome), see(one).all_audits.pending) == (1, 1, 0)
    other = {"lost": "gained", "gained": "lost"}[outcome]
    fed([label(1, gold={"6": "5", "5": "6"}[fields["gold"]])], one, first=4)
    assert (getattr(see(one).all_audits, outcome), getattr(see(one).all_audits, other)) == (0, 1)


def test_a_label_that_came_before_the_run_was_written_counts() -> None:
    request, ended = two_answers(1)
    assert see(fed([request, label(1, gold="6"), ended])).all_audits.lost == 1


def test_requests_without_rows_are_part_of_the_traffic() -> None:
    cells = (
        UnloggedRequests(query_class="hard", version="", ungoverned="", n=30, ends=(("done", 30),)),
        UnloggedRequests(query_class="", version="", ungoverned="tools", n=5, ends=(("done", 5),)),
    )
    counted = RequestCount(count_id="c-1", route="r", n_requests=35, n_governed=30, cells=cells)
    one = fed([counted, replace(counted, route="other"), *two_answers(1)])
    assert (one.n, see(one).traffic, see(one).n_audits) == (31, {"": 1, "hard": 30}, 1)


def test_each_turn_of_a_conversation_is_a_witness_and_a_repeated_delivery_is_none() -> None:
    turns = [*two_answers(1, unit="u1", conversation="talk"), *two_answers(2, unit="u2", conversation="talk")]
    assert see(fed(turns)).n_audits == 2
    assert see(fed([*turns, *two_answers(3, unit="u2", conversation="talk", delivery=2)])).n_audits == 2


def test_a_run_that_began_before_the_rollout_is_none_of_its_witnesses() -> None:
    _, ended = two_answers(1)
    assert see(fed([ended])).n_audits == 0


def live(number: int, arm: str, unit: str, **changes: Any) -> list[Event]:
    draw = ArmDraw(experiment="rollout r-1", run=1, arm=arm, propensity=0.1, others=(), unit=unit)
    request, outcome = run(number, random.Random(0), sure=True, audit=False, **changes)
    return [replace(request, arms=(draw,)), outcome]


def promoted(at: int) -> RolloutMove:
    move = stages.promote_rollout(held().first, RULES, stages.StepOrder(by="person:ann", reason="go", at=at, now_s=0.0))
    return RolloutMove(route="r", author="ann", reason="go", transition=move)


def test_live_runs_count_when_the_warm_up_of_their_step_is_over_and_a_unit_once() -> None:
    early = [event for n in range(3) for event in live(n, "candidate", f"u{n}")]
    late = [event for n in range(3, 6) for event in live(n, "candidate", "u3" if n < 5 else "u5")]
    evidence = see(fed([*early, promoted(3), *live(9, "control", "u9"), *late]))
    assert (evidence.n_candidate, evidence.n_control) == (2, 0), "two requests of the step still belong to its warm-up"


def test_what_people_say_of_live_runs_is_told_by_arm_and_class() -> None:
    query = Query(planned_steps=8, n_words=5, query_class="hard")
    begin = [promoted(0), *live(1, "control", "u1"), *live(2, "control", "u2")]
    one = fed([*begin, *live(3, "candidate", "u3", query=query), *live(4, "control", "u4", query=query)])
    assert see(one).labelled == ()
    fed([label(3, correct=False), label(4, correct=True)], one, first=10)
    (cell,) = see(one).labelled
    assert (cell.query_class, cell.n_stopping, cell.n_stopping_right, cell.n_full, cell.n_full_right) == (
        "hard",
        1,
        0,
        1,
        1,
    )
    fed([label(3, correct=True, feedback_id="later")], one, first=12)
    assert see(one).labelled[0].n_stopping_right == 1, "the latest word on a run is the one that counts"
