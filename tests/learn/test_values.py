"""What arms are worth: costs fade, losses are guessed with caution, a change is compared on the same audits."""

from __future__ import annotations

import numpy as np
import pytest

from suffice.learn.arm_values import Costs, ShadowAudit, ShadowAudits, compare_gain, estimate_losses
from suffice.learn.effort import TunedArm

ARMS = (TunedArm(name="full"), TunedArm(name="half", expected_share=0.5), TunedArm(name="tenth", expected_share=0.1))


def costs(half_life: float = 1_000.0) -> Costs:
    return Costs(ARMS, 2, half_life=half_life)


def test_before_anything_was_seen_the_owners_guess_stands() -> None:
    assert costs().shares() == pytest.approx(np.array([[1.0, 0.5, 0.1]] * 2))
    assert costs().class_share(0) == 0.5
    assert costs().full_tokens == 1.0


def test_shares_are_of_a_mean_full_run_of_all_classes() -> None:
    made = costs()
    made.add(0, 0, tokens=100.0, seconds=1.0, n_runs=1)
    made.add(1, 0, tokens=300.0, seconds=3.0, n_runs=1)
    made.add(1, 1, tokens=90.0, seconds=1.0, n_runs=1)
    assert made.full_tokens == pytest.approx(200.0, rel=1e-3)
    assert made.shares() == pytest.approx(np.array([[0.5, 0.25, 0.05], [1.5, 0.45, 0.15]]), rel=2e-3)
    assert made.seconds()[1].tolist() == pytest.approx([3.0, 1.0, 0.3], rel=1e-3)
    assert made.class_share(1) == pytest.approx(2 / 3, rel=1e-2)


def test_runs_told_together_are_runs_told_one_by_one_and_old_ones_fade() -> None:
    one_by_one, together = costs(50.0), costs(50.0)
    for _ in range(40):
        one_by_one.add(0, 1, tokens=10.0, seconds=0.0, n_runs=1)
    together.add(0, 1, tokens=400.0, seconds=0.0, n_runs=40)
    assert one_by_one.shares()[0, 1] == pytest.approx(together.shares()[0, 1])
    for made in (one_by_one, together):
        made.add(0, 1, tokens=200.0 * 100, seconds=0.0, n_runs=200)
        assert made.shares()[0, 1] > 0.95 * 100.0
        assert made.n_draws(0) <= 250, "bounded, so that exploring never ends"


def test_a_state_of_other_arms_is_refused() -> None:
    with pytest.raises(ValueError, match="costs: got shape"):
        Costs(ARMS[:2], 2, half_life=1.0).restore(costs().plain())


def test_few_audits_without_a_loss_do_not_make_an_arm_look_free() -> None:
    shares = costs().shares()
    nothing = np.zeros((2, 3))
    unknown = estimate_losses(nothing, nothing, shares)
    assert unknown[:, 0].tolist() == [0.0, 0.0]
    assert (unknown[:, 1] > 0).all()
    assert (unknown[:, 1] < unknown[:, 2]).all(), "what saves more is guessed to lose more"
    ten = estimate_losses(np.array([[0.0, 10, 0], [0, 0, 0]]), nothing, shares)
    many = estimate_losses(np.array([[0.0, 2_000, 0], [0, 0, 0]]), nothing, shares)
    assert ten[0, 1] > 0.01 > many[0, 1]


def test_a_class_is_held_to_the_arms_mean_until_it_has_audits_of_its_own() -> None:
    n = np.array([[0.0, 1_000, 0], [0, 5, 0]])
    lost = np.array([[0.0, 100, 0], [0, 0, 0]])
    found = estimate_losses(n, lost, costs().shares())
    assert found[0, 1] == pytest.approx(0.1, abs=0.01)
    assert found[1, 1] > 0.05, "five audits do not outweigh what the arm loses elsewhere"


# --------------------------------------------------------------------------- a change


def audits(n: int, seed: int) -> ShadowAudits:
    """Two classes, arms by an uneven lot; arm 1 loses 2 % and saves half, arm 2 loses 30 % and saves nine tenths."""
    rng = np.random.default_rng(seed)
    made, lost = [], []
    for i in range(n):
        arm = 1 if rng.random() < 0.7 else 2
        loss = int(rng.random() < (0.02 if arm == 1 else 0.3))
        lost.append(loss)
        made.append(
            ShadowAudit(
                audit_id=str(i),
                query_class="ab"[i % 2],
                arm=arm,
                odds=(0.0, 0.7, 0.3),
                disagrees=bool(loss),
                due_s=0.0,
                full_tokens=200.0,
                arm_tokens=100.0 if arm == 1 else 20.0,
            )
        )
    return ShadowAudits(audits=made, proved=lost, guessed=lost)


def test_both_maps_are_estimated_without_bias_and_the_difference_with_its_error() -> None:
    values, errors = [], []
    for seed in range(60):
        change = compare_gain(
            audits(300, seed),
            {"a": 0, "b": 1},
            {"a": 1, "b": 2},
            n_arms=3,
            price=0.2,
            full_tokens=200.0,
            confidence=0.9,
        )
        values.append((change.before.value, change.after.value))
        errors.append(change.error)
        assert change.after.low < change.after.value < change.after.high
    before, after = 0.5 * (0.2 * 0.5 - 0.02), 0.5 * (0.2 * 0.5 - 0.02) + 0.5 * (0.2 * 0.9 - 0.3)
    assert np.mean(values, axis=0) == pytest.approx([before, after], abs=3.5 * np.std(values, axis=0).max() / 60**0.5)
    assert np.std(np.diff(values, axis=1)) == pytest.approx(np.mean(errors), rel=0.4)


def test_a_change_for_the_worse_is_called_so() -> None:
    worse = compare_gain(
        audits(900, 1), {"a": 1, "b": 1}, {"a": 2, "b": 2}, n_arms=3, price=0.1, full_tokens=200.0, confidence=0.9
    )
    better = compare_gain(
        audits(900, 1), {"a": 0, "b": 0}, {"a": 1, "b": 1}, n_arms=3, price=0.1, full_tokens=200.0, confidence=0.9
    )
    assert worse.is_worse
    assert not better.is_worse
    assert better.before.value == pytest.approx(0.0, abs=1e-12), "full runs gain nothing over themselves, for certain"
