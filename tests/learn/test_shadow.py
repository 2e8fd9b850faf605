"""Evidence from audits: late, poisoned, repeated and reordered labels, and windows that move."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice.assurance.labels import TrustedLabel
from suffice.learn.arm_values import ShadowAudit, ShadowAudits, ShadowLog, count_losses

AUDIT = ShadowAudit(
    audit_id="a",
    query_class="easy",
    arm=1,
    odds=(0.0, 0.6, 0.4),
    disagrees=True,
    due_s=10.0,
    full_tokens=100.0,
    arm_tokens=50.0,
)


def log(n: int = 0, *, window: int = 100, key_cap: float = 0.1) -> ShadowLog:
    """A log with n disagreeing audits, a0 …"""
    made = ShadowLog(3, window=window, key_cap=key_cap)
    for i in range(n):
        assert made.add(replace(AUDIT, audit_id=f"a{i}"))
    return made


def label(i: int, z: int, *, seq: int = 0, key: str = "r", trust: int = 3) -> TrustedLabel:
    return TrustedLabel(audit=f"a{i}", seq=seq, source="reviewer" if trust else "user", key=key, trust=trust, verdict=z)


def by_id(evidence: ShadowAudits, losses: Sequence[int]) -> dict[str, int]:
    return {audit.audit_id: loss for audit, loss in zip(evidence.audits, losses, strict=True)}


def test_an_audit_counts_when_its_label_is_due_whether_it_agrees_or_not() -> None:
    made = log(1)
    made.add(replace(AUDIT, audit_id="same", disagrees=False))
    assert not made.evidence(9.9).audits
    assert made.n_waiting("easy", 9.9) == [0, 2, 0]
    evidence = made.evidence(10.0)
    assert by_id(evidence, evidence.proved) == {"a0": 1, "same": 0}, "no label: lost; no disagreement: nothing lost"
    assert made.n_waiting("easy", 10.0) == [0, 0, 0]


def test_only_trusted_voices_prove_that_nothing_was_lost() -> None:
    made = log(2)
    made.label(label(0, 0))
    made.label(label(1, 0, key="u", trust=0))
    evidence = made.evidence(10.0)
    assert by_id(evidence, evidence.proved) == {"a0": 0, "a1": 1}
    assert by_id(evidence, evidence.guessed) == {"a0": 0, "a1": 0}


@pytest.mark.parametrize("n_lies", [1, 5, 20])
def test_one_key_moves_a_guess_by_no_more_than_its_part(n_lies: int) -> None:
    """F33: one key says "nothing lost" of up to a fifth of all audits; a twentieth of them at most is believed."""
    made = log(100, key_cap=0.05)
    for i in range(n_lies):
        made.label(label(i, 0, seq=i, key="mallory", trust=0))
    evidence = made.evidence(10.0)
    assert sum(evidence.proved) == 100
    assert sum(evidence.guessed) == 100 - min(n_lies, 5)


@given(order=st.permutations(range(6)), twice=st.booleans())
def test_the_evidence_depends_on_what_was_said_and_not_on_when_it_came(order: list[int], twice: bool) -> None:
    """F25, F27: doubled and reordered labels, some of them changed minds, come to the same."""
    said = [
        label(0, 1, seq=1),
        label(0, 0, seq=2),
        label(1, -1, seq=3),
        label(2, 0, seq=4, key="u", trust=0),
        label(2, 1, seq=5),
        label(1, -1, seq=6, key="s"),
    ]
    made, reference = log(3), log(3)
    for one in said:
        reference.label(one)
    for at in [*order, *(order if twice else [])]:
        made.label(said[at])
    assert made.evidence(10.0) == reference.evidence(10.0)
    assert made.evidence(10.0).proved == [0, -1, 1]


def test_an_audit_is_taken_once_and_only_as_it_can_have_been_drawn() -> None:
    made = log()
    assert made.add(AUDIT)
    assert not made.add(AUDIT)
    assert len(made) == 1
    for wrong in (replace(AUDIT, audit_id="b", arm=0), replace(AUDIT, audit_id="b", odds=(0.5, 0.0, 0.5))):
        with pytest.raises(ValueError, match="not the full run"):
            made.add(wrong)


def test_labels_of_what_needs_none_or_is_not_here_are_refused() -> None:
    made = log()
    made.add(replace(AUDIT, audit_id="a0", disagrees=False))
    assert not made.label(label(0, 0))
    assert not made.label(label(7, 0))


def test_the_window_drops_the_oldest_that_count_and_none_that_wait() -> None:
    made = log(3, window=2)
    for i in range(3, 6):
        made.add(replace(AUDIT, audit_id=f"a{i}", due_s=20.0))
    assert [audit.audit_id for audit in made.evidence(10.0).audits] == ["a1", "a2"]
    assert made.n_waiting("easy", 10.0) == [0, 3, 0]
    assert [audit.audit_id for audit in made.evidence(20.0).audits] == ["a4", "a5"]


def test_forgetting_leaves_the_other_classes_and_the_safer_arms() -> None:
    made = log(1)
    made.add(replace(AUDIT, audit_id="b", arm=2))
    made.add(replace(AUDIT, audit_id="c", arm=2, query_class="hard"))
    made.forget("easy", from_arm=2)
    assert [audit.audit_id for audit in made.evidence(10.0).audits] == ["a0", "c"]
    made.forget("easy")
    assert [audit.audit_id for audit in made.evidence(10.0).audits] == ["c"]
    assert made.get("a0") is None
    assert not made.label(label(0, 0))


def test_it_survives_json() -> None:
    made = log(4)
    made.label(label(1, 0))
    made.label(label(2, -1, seq=3, key="u", trust=0))
    again = ShadowLog(3, window=100, key_cap=0.1)
    again.restore(json.loads(json.dumps(made.plain())))
    assert again.evidence(10.0) == made.evidence(10.0)
    assert again.plain() == made.plain()


def test_losses_are_counted_by_class_and_arm() -> None:
    made = log(3)
    made.add(replace(AUDIT, audit_id="b", arm=2, disagrees=False))
    made.add(replace(AUDIT, audit_id="c", query_class="hard"))
    made.label(label(0, -1))
    made.label(label(1, 0))
    easy, hard = count_losses(made.evidence(10.0), ("easy", "hard"), 3)
    assert (easy.gained.tolist(), easy.same.tolist(), easy.lost.tolist()) == ([0, 1, 0], [0, 1, 1], [0, 1, 0])
    assert hard.n.tolist() == [0, 1, 0]
