"""The tuner proposes, and what it may do by itself is bounded: rails, rests, retreat, and a state that goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest

from suffice.assurance.labels import TrustedLabel
from suffice.learn.arm_values import PriceBounds, ShadowAudit
from suffice.learn.effort import TunedArm
from suffice.learn.tuner import Tuner, TunerTick, TuningBounds, TuningProposal

ARMS = tuple(
    TunedArm(name=name, expected_share=share)
    for name, share in (("full", 1.0), ("half", 0.5), ("third", 0.3), ("none", 0.02))
)
TUNING = TuningBounds(
    arms=ARMS,
    classes=("easy", "hard"),
    max_em_drop=0.05,
    expected_requests=100_000,
    price=PriceBounds(least=0.01, start=0.1, largest=0.1),
    largest_step=0.7,
    cool_down_s=100.0,
)
SAFE = {"easy": (0.0, 0.0, 0.0, 0.0), "hard": (0.0, 0.0, 0.3, 0.5)}  # P(an arm loses) by class


class Life:
    """A tuner, and audits whose losses we choose."""

    def __init__(self, tuning: TuningBounds = TUNING, seed: int = 1) -> None:
        self.tuner, self.rng, self.now_s, self.n = Tuner(tuning), Random(seed), 0.0, 0

    def audits(
        self, n: int, lost: Mapping[str, tuple[float, ...]], *, wait_s: float = 0.0, says: int | None = None
    ) -> None:
        """Some audits; every loss is labelled by a reviewer, or `says` something else by an untrusted key."""
        for _ in range(n):
            self.n += 1
            name = self.rng.choice(self.tuner.tuning.classes)
            draw = self.tuner.draw_audit(name, self.rng.random())
            lose = self.rng.random() < lost[name][draw.arm]
            self.tuner.add_audit(
                ShadowAudit(
                    audit_id=str(self.n),
                    query_class=name,
                    arm=draw.arm,
                    odds=draw.odds,
                    disagrees=lose,
                    due_s=self.now_s + wait_s,
                    full_tokens=100.0,
                    arm_tokens=100 * ARMS[draw.arm].expected_share,
                )
            )
            self.tuner.add_cost(name, 0, tokens=100.0)
            self.tuner.add_cost(name, draw.arm, tokens=100 * ARMS[draw.arm].expected_share)
            if lose:
                trust = 3 if says is None else 0
                self.tuner.add_label(
                    TrustedLabel(
                        audit=str(self.n),
                        seq=self.n,
                        source="reviewer" if trust else "user",
                        key=f"k{trust}",
                        trust=trust,
                        verdict=1 if says is None else says,
                    )
                )

    def tick(self, after_s: float = 1_000.0) -> TunerTick:
        self.now_s += after_s
        return self.tuner.tick(self.now_s)

    def accept_all(self, n_ticks: int, lost: Mapping[str, tuple[float, ...]], batch: int = 200) -> list[TuningProposal]:
        found = []
        for _ in range(n_ticks):
            self.audits(batch, lost)
            if (proposal := self.tick().proposal) is not None:
                assert self.tuner.accept(proposal)
                found.append(proposal)
        return found


def test_it_finds_the_arm_of_each_class_and_says_what_that_stands_on() -> None:
    life = Life()
    proposals = life.accept_all(25, SAFE)
    assert life.tuner.active == {"easy": 2, "hard": 1}
    assert [proposal.number for proposal in proposals] == list(range(1, len(proposals) + 1))
    assert dict(proposals[0].before) == {"easy": 0, "hard": 0}
    for earlier, later in pairwise(proposals):
        assert later.before == earlier.after, "lineage"
    for proposal in proposals:
        for name, arm in proposal.after.items():
            if arm != proposal.before[name]:
                assert proposal.log_e[name] > 3
                assert proposal.n_audits[name] >= TUNING.least_audits
        assert proposal.change.after.low < proposal.change.after.value < proposal.change.after.high
        assert "proved" in proposal.reason
    draw = life.tuner.draw("easy", 0.5)
    assert draw.arm == 2
    assert draw.propensity >= 1 - TUNING.explore_ceiling


def test_nothing_changes_until_a_proposal_is_accepted() -> None:
    life = Life()
    for _ in range(10):
        life.audits(200, SAFE)
        life.tick()
    assert life.tuner.active == {"easy": 0, "hard": 0}


def test_stopping_everything_never_leaves_the_shadow() -> None:
    """F34: no loss at all, ever, and the largest saving; it is asked on audits and shown to nobody."""
    life = Life()
    life.accept_all(30, dict.fromkeys(SAFE, (0.0,) * 4))
    assert life.tuner.active == {"easy": 2, "hard": 2}
    points = [i / 200 for i in range(200)]
    assert {life.tuner.draw(name, point).arm for name in SAFE for point in points} <= {0, 1, 2}
    assert any(life.tuner.draw_audit("easy", point).arm == 3 for point in points)


def test_liars_cannot_prove_anything() -> None:
    """F33: every label of every loss says "nothing lost", from a key that nobody trusts."""
    life = Life()
    for _ in range(20):
        life.audits(200, {"easy": (0.0, 0.2, 0.2, 0.2), "hard": (0.0, 0.2, 0.2, 0.2)}, says=0)
        tick = life.tick()
        assert tick.proposal is None
        assert set(tick.eligible.values()) == {(0,)}


def test_it_rests_between_proposals_and_has_a_largest_number_a_day() -> None:
    """F51: whatever is proposed is thrown over at once, and the evidence is there again an hour later."""
    life = Life(replace(TUNING, cool_down_s=5_000.0, proposals_a_day=3))
    made, refusals = [], []
    for _ in range(30):
        life.audits(800, SAFE)
        tick = life.tick(2_000.0)
        refusals.append(tick.refusal)
        if tick.proposal is not None:
            made.append(tick.proposal.at_s)
            life.tuner.forget()
    assert len(made) == 3, "in less than a day"
    assert all(later - earlier >= 5_000 for earlier, later in pairwise(made))
    assert {"cooling_down", "day_is_full"} <= set(refusals)
    life.audits(800, SAFE)
    assert life.tick(40_000.0).proposal is not None, "another day"


def test_an_arm_that_becomes_worse_is_withdrawn_at_once_and_has_to_be_proved_anew() -> None:
    life = Life()
    life.accept_all(25, SAFE)
    ticks = []
    for _ in range(12):
        life.audits(100, {"easy": (0.0, 0.3, 0.3, 0.5), "hard": SAFE["hard"]})
        ticks.append(life.tick())
    (withdrawn,) = [w for tick in ticks for w in tick.withdrawn if w.to == 0][:1]
    assert withdrawn.query_class == "easy"
    assert life.tuner.active["easy"] == 0
    assert life.tuner.active["hard"] == 1, "the other class is not touched"
    assert 2 not in ticks[-1].eligible["easy"]


def test_a_proposal_is_void_when_what_it_stands_on_has_changed() -> None:
    life = Life()
    found = None
    while found is None:
        life.audits(200, SAFE)
        found = life.tick().proposal
    assert not life.tuner.accept(replace(found, before={"easy": 1, "hard": 0}))
    assert not life.tuner.accept(replace(found, after={"easy": 3, "hard": 3})), "not in play"
    life.tuner.forget()
    assert not life.tuner.accept(found), "another epoch"
    assert life.tuner.active == {"easy": 0, "hard": 0}


def test_a_known_change_brings_full_runs_back() -> None:
    life = Life()
    life.accept_all(25, SAFE)
    life.tuner.forget("easy")
    assert life.tuner.active == {"easy": 0, "hard": 1}
    assert {life.tuner.draw("easy", i / 50).arm for i in range(50)} == {0}


def test_labels_that_are_late_are_waited_for() -> None:
    """F37: audits whose labels are not due prove nothing, however many agree."""
    life = Life()
    for _ in range(12):
        life.audits(200, SAFE, wait_s=1e6)
        assert life.tick().proposal is None
    life.now_s += 1e6
    assert life.tick().proposal is not None


def test_classes_that_are_not_tuned_run_in_full() -> None:
    life = Life()
    draw = life.tuner.draw("unheard", 0.9)
    assert (draw.arm, draw.propensity) == (0, 1.0)
    assert life.tuner.draw_audit("unheard", 0.9).arm == 0
    assert life.tuner.audit_share("unheard") == 0.0
    life.tuner.add_cost("unheard", 0, tokens=1.0)
    audit = ShadowAudit(
        audit_id="x",
        query_class="unheard",
        arm=1,
        odds=(0.0, 1.0, 0.0, 0.0),
        disagrees=False,
        due_s=0.0,
        full_tokens=1.0,
        arm_tokens=1.0,
    )
    assert not life.tuner.add_audit(audit)
    assert life.tuner.add_audit(replace(audit, query_class="easy"))
    assert not life.tuner.add_audit(replace(audit, query_class="easy")), "known"


@pytest.mark.parametrize("expected", [0, 19_999])
def test_where_traffic_does_not_pay_for_evidence_it_asks_for_none(expected: int) -> None:
    tuner = Tuner(replace(TUNING, expected_requests=expected))
    assert tuner.audit_share("easy") == tuner.audit_share("hard") == 0.0
    assert Tuner(TUNING).audit_share("easy") == TUNING.burst_share


def test_evidence_is_asked_for_while_it_pays_then_watched_and_never_quite_given_up() -> None:
    life = Life()
    life.accept_all(30, SAFE)
    assert life.tuner.audit_share("easy") == TUNING.watch_share
    life.tuner.forget("hard")
    life.audits(600, {"easy": SAFE["easy"], "hard": (0.0, 0.5, 0.5, 0.5)})
    life.tick()
    assert 0 < life.tuner.audit_share("hard") < TUNING.watch_share


def test_it_goes_on_from_json_as_if_it_had_never_been_away() -> None:
    life = Life()
    life.accept_all(8, SAFE)
    life.audits(50, SAFE, wait_s=5_000.0)
    kept = json.loads(json.dumps(life.tuner.plain()))
    again = Life()
    again.tuner, again.now_s, again.n = Tuner(TUNING, kept), life.now_s, life.n
    again.rng.setstate(life.rng.getstate())
    for one in (life, again):
        one.accept_all(10, SAFE)
    assert again.tuner.plain() == life.tuner.plain()
    assert again.tuner.active != {"easy": 0, "hard": 0}


def test_a_state_of_other_arms_is_refused() -> None:
    kept = Tuner(TUNING).plain()
    with pytest.raises(ValueError, match="others are set"):
        Tuner(replace(TUNING, classes=("easy", "odd")), kept)
