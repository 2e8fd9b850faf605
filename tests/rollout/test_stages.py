"""A rollout goes forward on proof, back on evidence of harm, and nowhere on little."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.assurance.strata import Cell
from suffice.rollout.assign import assign_audit
from suffice.rollout.effects import PairCounts
from suffice.rollout.evidence import RolloutEvidence, Rules, UnitRun, group_classes, read_em
from suffice.rollout.stages import (
    State,
    StepOrder,
    Transition,
    advance,
    assess_rollout,
    hold_rollout,
    place,
    promote_rollout,
    resume_rollout,
    roll_back,
    start_rollout,
)
from tests.drawn import examples
from tests.rollout.made import audited, ran

PROPERTY = settings(max_examples=examples(50))
RULES = Rules(least_stage_s=0.0, warmup_s=0.0, warmup_requests=0)
COUNT = st.integers(0, 900)
CLASSES = st.dictionaries(
    st.sampled_from(["a", "b", "c", "d", ""]),
    st.builds(
        PairCounts,
        gained=st.integers(0, 3),
        same=COUNT,
        lost=st.integers(0, 3),
        pending=st.integers(0, 1),
    ),
    max_size=5,
)


def started(rules: Rules = RULES) -> State:
    return start_rollout(
        "r1", route="sums", candidate="pv-new", active="pv-old", follows=3, at=0, now_s=0.0, rules=rules
    )


def step(state: State, evidence: RolloutEvidence, at: int = 5_000, rules: Rules = RULES) -> Transition | None:
    return advance(state, evidence, rules, at=at, now_s=1e6)


def proved(n: int = 400) -> RolloutEvidence:
    """Audits enough of two classes, nothing lost."""
    return audited(audited(RolloutEvidence(), "a", same=n), "b", same=n)


def moved(state: State, evidence: RolloutEvidence, rules: Rules = RULES) -> State:
    move = step(state, evidence, rules=rules)
    assert move is not None
    return state.after(move)


def at_step(n: int, rules: Rules = RULES) -> State:
    """A state that has gone so far, its EM proved."""
    state = started(rules)
    for _ in range(n):
        state = state.after(promote_rollout(state, rules, StepOrder(by="ann", reason="I know it", at=0, now_s=0.0)))
    return replace(state, audit_share=None) if n else state


# --------------------------------------------------------------------------- forward


@PROPERTY
@given(classes=CLASSES)
def test_nothing_is_promoted_without_samples_enough_in_the_whole_and_in_every_class(
    classes: dict[str, PairCounts],
) -> None:
    evidence = RolloutEvidence(audits=classes)
    move = step(started(), evidence)
    if move is not None and move.move == "promote":
        assert evidence.n_audits >= RULES.least_audits
        for group in group_classes(evidence, RULES):
            assert group.audits.n >= RULES.least_class_audits or not group.is_waited_for(RULES)
        assert all(one.finding == "fine" for one in read_em(evidence, RULES)[:1])


def test_seven_perfect_audits_are_not_enough_and_it_says_how_many_are_missing() -> None:
    evidence = audited(RolloutEvidence(), "a", same=7)
    standing = assess_rollout(started(), evidence, RULES, at=7, now_s=1e6)
    assert step(started(), evidence, at=7) is None
    assert standing.word == "not enough data"
    assert standing.missing == ("the whole: 7 of 400 audits", "class a: 7 of 200 audits")
    assert assess_rollout(started(), RolloutEvidence(), RULES, at=0, now_s=1e6).word == "not enough data"
    assert assess_rollout(started(), proved(), RULES, at=800, now_s=1e6).word == "ready"


def test_seven_live_runs_are_not_enough_either() -> None:
    evidence = ran(ran(proved(), "candidate", 7), "control", 7)
    standing = assess_rollout(at_step(1), evidence, RULES, at=5_000, now_s=1e6)
    assert step(at_step(1), evidence) is None
    assert standing.missing == ("candidate: 7 of 100 new units", "control: 7 of 100 new units")


def test_enough_audits_without_proof_are_not_enough() -> None:
    evidence = audited(audited(RolloutEvidence(), "a", same=395, lost=5), "b", same=400)
    standing = assess_rollout(started(), evidence, RULES, at=800, now_s=1e6)
    assert step(started(), evidence, at=800) is None
    assert standing.word == "not enough data"
    assert "more audits like these" in standing.missing[0]


@pytest.mark.no_cover
def test_a_harmless_version_goes_all_the_way_and_each_share_only_grows() -> None:
    state, evidence, seen = started(), proved(), []
    assert state.audit_share == RULES.audit_share
    n = 0
    while not state.over:
        state = moved(state, evidence)
        seen.append((state.stage, state.share))
        assert state.audit_share is None, "what is proved needs no more audits than usual"
        n += 400
        evidence = ran(ran(evidence, "candidate", 400, every=100, error=True), "control", 400, every=100, error=True)
        if state.step == 3:
            evidence = ran(ran(evidence, "candidate", 3_000, every=99, no_answer=True), "control", 3_000, every=99)
    assert seen == [("canary", 0.1), ("ramp", 0.25), ("ramp", 0.5), ("full", 1.0)]
    assert step(state, evidence) is None


def test_before_all_are_served_what_is_required_must_be_proved() -> None:
    evidence = ran(ran(proved(), "candidate", 300), "control", 300)
    standing = assess_rollout(at_step(3), evidence, RULES, at=5_000, now_s=1e6)
    assert step(at_step(3), evidence) is None
    assert len(standing.missing) == 3
    assert moved(at_step(2), evidence).stage == "ramp", "a smaller step needs no proof, and no sign of harm"
    lenient = msgspec.structs.replace(RULES, required=())
    assert moved(at_step(3, lenient), evidence, lenient).stage == "full"


def test_what_looks_worse_than_its_margin_does_not_go_forward() -> None:
    evidence = ran(ran(proved(), "candidate", 110, every=20, error=True), "control", 110)
    standing = assess_rollout(at_step(1), evidence, RULES, at=5_000, now_s=1e6)
    assert any("errors" in one and "looks worse" in one for one in standing.missing)
    assert step(at_step(1), evidence) is None


def test_a_step_lasts_its_time_and_its_warm_up() -> None:
    rules = Rules()
    assert advance(started(), proved(), rules, at=900, now_s=599.0) is None
    assert advance(started(), proved(), rules, at=900, now_s=600.0) is not None
    state = replace(at_step(1, rules), since_at=900, since_s=600.0)
    evidence = ran(ran(proved(), "candidate", 200), "control", 200)
    assert advance(state, evidence, rules, at=999, now_s=1e6) is None
    assert advance(state, evidence, rules, at=1_000, now_s=1e6) is not None
    assert not state.counts(999, 1e6, rules)
    assert not state.counts(1_000, 659.0, rules)
    assert state.counts(1_000, 660.0, rules)
    assert not started().counts(10**6, 1e6, rules), "in shadow nobody is served"
    assert not replace(state, share=1.0).counts(10**6, 1e6, rules), "and at the end there is no control"


def test_while_something_withholds_it_nothing_goes_forward_and_harm_goes_back() -> None:
    assert step(started(), replace(proved(), withheld="a new epoch has begun")) is None
    hurt = replace(audited(RolloutEvidence(), "a", same=300, lost=40), withheld="a new epoch has begun")
    move = step(started(), hurt)
    assert move is not None
    assert move.stage == "rolled_back"


# --------------------------------------------------------------------------- back


def test_harm_in_one_class_of_five_is_enough_though_the_whole_looks_well() -> None:
    evidence = RolloutEvidence()
    for name in "abcd":
        evidence = audited(evidence, name, same=290, gained=8, lost=2)
    evidence = audited(evidence, "e", same=270, lost=25, gained=5)
    whole, *classes = read_em(evidence, RULES)
    assert whole.worse is not None
    assert whole.worse < 0
    assert [one.about for one in classes if one.finding == "harm"] == ["e"]
    move = step(started(), evidence)
    assert move is not None
    assert (move.move, move.stage, move.share, move.by) == ("roll_back", "rolled_back", 0.0, "evidence")
    assert move.reason.startswith("EM of e: lower by 6.67 points on 300 audits, surely lower")
    assert len(move.readings) == 6
    assert assess_rollout(started(), evidence, RULES, at=5_000, now_s=1e6).word == "goes back"


@pytest.mark.parametrize(
    ("rail", "bad"),
    [("latency", {"seconds": 60.0}), ("errors", {"error": True}), ("no_answer", {"no_answer": True})],
)
def test_each_live_guard_rail_alone_sends_it_back(rail: str, bad: dict[str, Any]) -> None:
    evidence = ran(ran(proved(), "control", 800), "candidate", 800, every=8, **bad)
    standing = assess_rollout(at_step(2), evidence, RULES, at=5_000, now_s=1e6)
    assert [one.rail for one in standing.readings if one.finding == "harm"] == [rail]
    move = step(at_step(2), evidence)
    assert move is not None
    assert move.stage == "rolled_back"
    assert ran(proved(), "candidate", 1) != evidence


def test_satisfaction_alone_sends_it_back() -> None:
    evidence = ran(ran(proved(), "control", 300), "candidate", 300)
    for i in range(300):
        evidence = evidence.with_rating("candidate", 0.25 if i % 2 else 0.75).with_rating("control", 0.75)
    standing = assess_rollout(at_step(2), evidence, RULES, at=5_000, now_s=1e6)
    assert [one.rail for one in standing.readings if one.finding == "harm"] == ["satisfaction"]
    assert step(at_step(2), evidence) is not None


def test_what_is_surely_worse_and_surely_within_the_margin_is_put_up_with() -> None:
    evidence = RolloutEvidence(audits={"a": PairCounts(same=60_000, lost=60)})
    assert read_em(evidence, RULES)[0].finding == "fine"
    move = step(started(), evidence)
    assert move is not None
    assert move.move == "promote"


def test_stop_everything_never_leaves_shadow() -> None:
    """It keeps almost no token; whether it loses answers or not does not matter."""
    evidence = RolloutEvidence()
    for _ in range(2_000):
        evidence = evidence.with_audit("a", 0, full=100, active=60, candidate=1)
    move = step(started(), evidence)
    assert move is not None
    assert (move.stage, move.reason) == (
        "rolled_back",
        "the candidate keeps 1.0% of the full runs' tokens, at least 5% must stay",
    )
    halved = RolloutEvidence()
    for _ in range(2_000):
        halved = halved.with_audit("a", 0, full=100, active=60, candidate=10)
    move = step(started(), halved)
    assert move is not None
    assert "cuts 83% of the tokens that the active version keeps" in move.reason


def test_what_is_not_proved_in_time_goes_back_as_inconclusive() -> None:
    evidence = audited(RolloutEvidence(), "a", same=7)
    assert step(started(), evidence, at=19_999) is None
    move = step(started(), evidence, at=20_000)
    assert move is not None
    assert move.stage == "rolled_back"
    assert move.reason.startswith("inconclusive: 20,000 requests")


def test_where_a_saving_is_all_that_is_missing_it_goes_back_sooner_and_only_there() -> None:
    idle = replace(proved(), idle="it keeps 90 tokens a run, the active version 80")
    assert step(started(), idle, at=4_999) is None
    move = step(started(), idle, at=5_000)
    assert move is not None
    assert (move.stage, move.reason) == (
        "rolled_back",
        f"inconclusive: after 5,000 requests in this step all that is missing is a saving: {idle.idle}",
    )
    for waits in (audited(idle, "a", lost=3), replace(idle, withheld="a person holds it")):
        assert step(started(), waits, at=5_000) is None
    held = started().after(hold_rollout(started(), StepOrder(by="ann", reason="wait", at=1, now_s=1.0)))
    assert step(held, idle, at=19_000) is None, "a person wants to look at it"


def test_another_publication_ends_it() -> None:
    assert step(started(), replace(audited(RolloutEvidence(), "a", same=7), latest=3)) is None
    move = step(started(), replace(proved(), latest=4))
    assert move is not None
    assert move.stage == "rolled_back"
    assert "publication 4 came in between" in move.reason


def test_a_label_that_has_not_come_counts_as_lost_for_proof_and_not_for_harm() -> None:
    evidence = audited(RolloutEvidence(), "a", same=600)
    for _ in range(40):
        evidence = evidence.with_audit("a", None)
    assert step(started(), evidence) is None, "neither"
    gone_well, gone_wrong = evidence, evidence
    for _ in range(40):
        gone_well, gone_wrong = gone_well.with_label("a", 0), gone_wrong.with_label("a", 1)
    forward, back = step(started(), gone_well), step(started(), gone_wrong)
    assert forward is not None
    assert back is not None
    assert (forward.move, back.move) == ("promote", "roll_back")
    with pytest.raises(ValueError, match="no audit of class 'a' is pending"):
        gone_well.with_label("a", 1)


# --------------------------------------------------------------------------- means that lie


def test_gains_in_a_class_that_is_audited_more_do_not_pay_for_losses_in_the_traffic() -> None:
    """The audits hold ten times as much of the class that gains: over all of them the candidate is better."""
    evidence = RolloutEvidence()
    for z, n in ((0, 3_900), (-1, 100)):
        for _ in range(n):
            evidence = evidence.with_audit("gains", z)  # type: ignore[arg-type]
    for z, n in ((0, 2_940), (1, 60)):
        for _ in range(n):
            evidence = evidence.with_audit("loses", z)  # type: ignore[arg-type]
    evidence = evidence.with_request("gains", 1_000).with_request("loses", 9_000)
    assert all(one.finding == "fine" for one in read_em(evidence, RULES))
    assert step(started(), evidence) is None
    missing = assess_rollout(started(), evidence, RULES, at=5_000, now_s=1e6).missing
    assert missing == ("weighted as the traffic is, classes lose 1.55 points, of 1 point allowed",)


def test_live_labels_that_are_better_over_all_and_worse_in_each_class_withhold_it() -> None:
    cells = (
        Cell(query_class="easy", n_full=300, n_full_right=270, n_stopping=900, n_stopping_right=783),
        Cell(query_class="hard", n_full=900, n_full_right=450, n_stopping=300, n_stopping_right=138),
    )
    evidence = ran(ran(proved(), "candidate", 150), "control", 150)
    assert step(at_step(1), evidence) is not None
    lying = replace(evidence, labelled=cells)
    assert step(at_step(1), lying) is None
    assert "worse class by class" in assess_rollout(at_step(1), lying, RULES, at=5_000, now_s=1e6).missing[0]


def test_rare_classes_are_judged_together_and_none_of_them_hides_harm() -> None:
    evidence = audited(RolloutEvidence(), "a", same=2_000)
    for i in range(4):
        evidence = audited(evidence, f"rare {i}", same=5)
    assert [group.name for group in group_classes(evidence, RULES)] == ["a", "4 rare classes"]
    move = step(started(), evidence)
    assert move is not None
    assert move.move == "promote", "a few odd questions hold nobody up"
    hurt = step(started(), audited(evidence, "rare 9", lost=20))
    assert hurt is not None
    assert hurt.move == "roll_back"
    many = evidence
    for i in range(4):
        many = audited(many, f"rare {i}", same=40)
    assert step(started(), many) is None, "together they are more than a rare class, and too few to be proved"


# --------------------------------------------------------------------------- paused


def uneven() -> RolloutEvidence:
    return ran(ran(proved(), "candidate", 470), "control", 800)


def test_a_split_that_is_not_the_one_drawn_withholds_the_results_and_calls_a_person() -> None:
    move = step(at_step(2), uneven())
    assert move is not None
    assert (move.move, move.share, move.by) == ("pause", 0.0, "evidence")
    assert "470 units of the candidate and 800 of the control" in move.reason
    assert assess_rollout(at_step(2), uneven(), RULES, at=5_000, now_s=1e6).word == "broken"
    paused = at_step(2).after(move)
    assert step(paused, uneven()) is None
    assert place(paused, "u", salt="s").arm is None, "nobody is served by what cannot be measured"
    back = resume_rollout(paused, RULES, StepOrder(by="ann", reason="the split is mended", at=9_000, now_s=2e6))
    after = paused.after(back)
    assert (after.share, after.paused, after.since_at) == (0.25, "", 9_000)


def test_a_split_that_is_broken_in_one_class_alone_is_seen() -> None:
    evidence = proved()
    for i in range(1_000):
        evidence = evidence.with_run("candidate", UnitRun(query_class="a" if i % 5 else "b"), RULES)
        evidence = evidence.with_run("control", UnitRun(query_class="a" if i % 10 else "b"), RULES)
    assert "in b" in assess_rollout(at_step(2), evidence, RULES, at=5_000, now_s=1e6).broken


def test_while_a_person_holds_it_nothing_goes_forward_and_harm_goes_back() -> None:
    held = started().after(hold_rollout(started(), StepOrder(by="ann", reason="holidays", at=10, now_s=10.0)))
    assert (held.paused, held.paused_by, held.stage) == ("holidays", "ann", "shadow")
    assert step(held, proved()) is None
    assert step(held, audited(RolloutEvidence(), "a", same=7), at=10**6) is None, "a hold is not a reason to give up"
    move = step(held, audited(RolloutEvidence(), "a", same=200, lost=40))
    assert move is not None
    assert move.stage == "rolled_back"
    with pytest.raises(ValueError, match="ann holds it already"):
        hold_rollout(held, StepOrder(by="bob", reason="me too", at=11, now_s=11.0))
    after = held.after(resume_rollout(held, RULES, StepOrder(by="bob", reason="go on", at=20, now_s=20.0)))
    assert moved(after, proved()).stage == "canary"
    with pytest.raises(ValueError, match="it is not paused"):
        resume_rollout(after, RULES, StepOrder(by="bob", reason="go on", at=20, now_s=20.0))


def test_a_person_may_hold_what_the_evidence_has_paused() -> None:
    paused = at_step(2).after(step(at_step(2), uneven()))  # type: ignore[arg-type]
    held = paused.after(hold_rollout(paused, StepOrder(by="ann", reason="I look into it", at=1, now_s=1.0)))
    assert (held.share, held.paused_by) == (0.0, "ann")


def test_a_person_may_end_it_and_nothing_follows_an_end() -> None:
    move = roll_back(at_step(2), StepOrder(by="ann", reason="customers complain", at=100, now_s=100.0))
    ended = at_step(2).after(move)
    assert (ended.stage, ended.share, ended.over) == ("rolled_back", 0.0, True)
    assert step(ended, proved()) is None
    with pytest.raises(ValueError, match="cannot roll back what has ended"):
        roll_back(ended, StepOrder(by="ann", reason="x", at=1, now_s=1.0))
    with pytest.raises(ValueError, match="cannot hold what"):
        hold_rollout(ended, StepOrder(by="ann", reason="x", at=1, now_s=1.0))
    with pytest.raises(ValueError, match="cannot promote"):
        promote_rollout(ended, RULES, StepOrder(by="ann", reason="x", at=1, now_s=1.0))
    with pytest.raises(ValueError, match="cannot resume"):
        resume_rollout(ended, RULES, StepOrder(by="ann", reason="x", at=1, now_s=1.0))


def test_who_skips_the_shadow_still_owes_its_proof() -> None:
    state = started().after(
        promote_rollout(started(), RULES, StepOrder(by="ann", reason="it is urgent", at=0, now_s=0.0))
    )
    assert (state.stage, state.audit_share) == ("canary", RULES.audit_share)
    unproved = ran(ran(audited(RolloutEvidence(), "a", same=7), "candidate", 400), "control", 400)
    assert step(state, unproved) is None
    assert assess_rollout(state, unproved, RULES, at=5_000, now_s=1e6).missing[0] == "the whole: 7 of 400 audits"
    after = moved(state, ran(ran(proved(), "candidate", 400), "control", 400))
    assert (after.stage, after.audit_share) == ("ramp", None)


def test_of_two_moves_from_the_same_state_one_can_be_made() -> None:
    state = started()
    one, other = step(state, proved()), roll_back(state, StepOrder(by="ann", reason="no", at=1, now_s=1.0))
    assert one is not None
    assert one.number == other.number == 1
    with pytest.raises(ValueError, match="transition 1 of r1 does not follow 1"):
        state.after(one).after(other)
    with pytest.raises(ValueError, match="of r2"):
        state.after(replace(one, rollout="r2"))


# --------------------------------------------------------------------------- who gets it


def arms(state: State, n: int = 20_000, salt: str = "s") -> list[str | None]:
    return [place(state, f"conversation-{i}", salt=salt).arm for i in range(n)]


def test_arms_have_the_share_that_was_asked_for_and_their_control_is_as_large() -> None:
    for n in (1, 2, 3):
        state = at_step(n)
        result = arms(state)
        for arm in ("candidate", "control"):
            expected = state.share * len(result)
            assert abs(result.count(arm) - expected) < 4 * sqrt(expected)
    assert set(arms(at_step(4), 100)) == {"candidate"}
    assert set(arms(started(), 100)) == {None}


@pytest.mark.no_cover
def test_a_growing_share_only_adds_units_and_a_restart_changes_nothing() -> None:
    before = arms(at_step(1))
    for n in (2, 3):
        after = arms(at_step(n))
        assert all(b is None or b == a for b, a in zip(before, after, strict=True))
        assert after == arms(msgspec.json.decode(msgspec.json.encode(at_step(n)), type=State))
        before = after
    assert None not in arms(at_step(3)), "at one half everybody is in an arm"


@pytest.mark.no_cover
def test_other_rollouts_salts_and_the_audit_lot_are_independent() -> None:
    state = at_step(3)
    own = arms(state)
    audits = [assign_audit(f"conversation-{i}", share=0.5, salt="s", at_s=0.0).audit for i in range(20_000)]
    for other in (
        arms(replace(state, rollout="r2")),
        arms(state, salt="t"),
        [("control", "candidate")[audit] for audit in audits],
    ):
        agree = sum(mine == yours for mine, yours in zip(own, other, strict=True))
        assert abs(agree - 10_000) < 4 * sqrt(5_000)


@PROPERTY
@given(share=st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]), unit=st.text(max_size=20))
def test_a_unit_keeps_its_arm_and_knows_its_odds(share: float, unit: str) -> None:
    state = replace(at_step(1), share=share)
    result = place(state, unit, salt="s")
    assert result == place(state, unit, salt="s")
    assert result.propensity == {"candidate": share, "control": share, None: max(1 - 2 * share, 0.0) or 1.0}[result.arm]


# --------------------------------------------------------------------------- kept


def test_everything_is_plain_data_that_can_be_kept() -> None:
    evidence = ran(ran(proved(3), "candidate", 30), "control", 30).with_rating("control", 0.5)
    assert msgspec.json.decode(msgspec.json.encode(evidence), type=RolloutEvidence) == evidence
    move = step(started(), proved())
    assert msgspec.json.decode(msgspec.json.encode(move), type=Transition) == move
    assert msgspec.json.decode(msgspec.json.encode(RULES), type=Rules) == RULES


@PROPERTY
@given(
    classes=CLASSES,
    at=st.integers(0, 30_000),
    n_steps=st.integers(0, 3),
    latest=st.none() | st.integers(2, 4),
    n_candidate=st.integers(0, 30),
    n_control=st.integers(0, 30),
)
def test_advance_is_pure_and_explains_itself(
    classes: dict[str, PairCounts], at: int, n_steps: int, latest: int | None, n_candidate: int, n_control: int
) -> None:
    evidence = RolloutEvidence(audits=classes, latest=latest)
    evidence = ran(ran(evidence, "candidate", n_candidate), "control", n_control)
    state = at_step(n_steps)
    move = step(state, evidence, at=at)
    assert move == step(state, evidence, at=at)
    standing = assess_rollout(state, evidence, RULES, at=at, now_s=1e6)
    assert all(one.sentence for one in standing.readings)
    if move is None:
        assert standing.word == "not enough data"
        assert standing.missing
    else:
        assert move.reason
        assert state.after(move).n_moves == state.n_moves + 1
