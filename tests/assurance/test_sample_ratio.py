"""A lottery that is not what it says is found out, and a healthy one is left alone."""

from __future__ import annotations

from math import comb, exp, inf, log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.assurance.sampling import LOG_ALARM, Draws, count_draws, find_sample_ratio_mismatch, log_sample_ratio
from suffice.rollout.assign import assign_audit
from tests.drawn import examples

shares = st.sampled_from([0.0, 0.02, 0.05, 0.1, 1.0])
rows = st.lists(st.tuples(shares, st.integers(0, 500), st.floats(0, 1)), max_size=5, unique_by=lambda row: row[0])
some_draws = rows.map(lambda drawn_rows: Draws(tuple(sorted((rho, n, round(n * part)) for rho, n, part in drawn_rows))))


@pytest.mark.parametrize(("n_audits", "log_e"), [(100, -1.538154), (140, 5.516220), (70, 3.611960)])
def test_the_evidence_has_its_published_values(n_audits: int, log_e: float) -> None:
    assert log_sample_ratio(Draws(((0.05, 2_000, n_audits),))) == pytest.approx(log_e, abs=5e-7)
    assert pytest.approx(6.907755, abs=5e-7) == LOG_ALARM


def assignments(n: int, share: float, *, lost: float = 0.0, seed: int = 0) -> tuple[list[bool], list[float]]:
    """Real lots with their logged odds; a part of the audits is lost, and logged as if it had not been drawn."""
    rng = np.random.default_rng(seed)
    drawn_lots = [assign_audit(f"{seed} {unit}", share=share, salt="s", at_s=0.0) for unit in range(n)]
    kept = [assignment.audit and rng.random() >= lost for assignment in drawn_lots]
    odds = [
        assignment.propensity if assignment.audit == keeps else 1 - share
        for assignment, keeps in zip(drawn_lots, kept, strict=True)
    ]
    return kept, odds


def log_e_of(audit: list[bool], odds: list[float]) -> float:
    return log_sample_ratio(count_draws(np.array(audit), np.array(odds)))


def test_lots_as_they_are_logged_make_one_share_and_no_alarm() -> None:
    audit, odds = assignments(20_000, 0.05)
    assert 1 - (1 - 0.05) != 0.05, "which is why shares are rounded"
    draws = count_draws(np.array(audit), np.array(odds))
    assert [share for share, _, _ in draws.by_share] == [0.05]
    assert log_sample_ratio(draws) < 0
    assert find_sample_ratio_mismatch(draws) is None


def test_a_sampler_that_loses_audits_is_found_and_told() -> None:
    audit, odds = assignments(8_000, 0.05, lost=0.4)
    report = find_sample_ratio_mismatch(count_draws(np.array(audit), np.array(odds)))
    assert report is not None
    assert "in 8000 requests where 400 were expected" in report
    assert report.startswith(str(sum(audit)))


@given(a=some_draws, b=some_draws, c=some_draws)
@settings(max_examples=examples(60))
def test_draws_of_replicas_add_up_in_any_order(a: Draws, b: Draws, c: Draws) -> None:
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    assert a + Draws() == a
    assert log_sample_ratio((c + a) + b) == log_sample_ratio(a + (b + c)), "to the last bit"


@given(seed=st.integers(0, 500), cut=st.integers(0, 300))
@settings(max_examples=examples(20))
def test_counting_in_batches_and_in_any_order_is_counting_at_once(seed: int, cut: int) -> None:
    rng = np.random.default_rng(seed)
    share = rng.choice([0.0, 0.05, 0.1, 1.0], 300)
    audit = rng.random(300) < share
    odds = np.where(audit, share, 1 - share)
    order = rng.permutation(300)
    whole = count_draws(audit, odds)
    assert count_draws(audit[:cut], odds[:cut]) + count_draws(audit[cut:], odds[cut:]) == whole
    assert count_draws(audit[order], odds[order]) == whole
    assert sum(n for _, n, _ in whole.by_share) == 300
    assert sum(k for _, _, k in whole.by_share) == audit.sum()


@given(seed=st.integers(0, 10_000))
@settings(max_examples=examples(30))
def test_the_evidence_is_a_bet_on_each_lot_in_turn_each_share_on_its_own(seed: int) -> None:
    # Prequential: the alternative predicts each lot from those before it at the same share.
    rng = np.random.default_rng(seed)
    share = rng.choice([0.05, 0.1, 0.3], 200)
    audit = rng.random(200) < rng.uniform(0, 2) * share
    log_e, seen = 0.0, {0.05: [0, 0], 0.1: [0, 0], 0.3: [0, 0]}
    for rho, won in zip(share.tolist(), audit.tolist(), strict=True):
        n, k = seen[rho]
        predicted = (100 * rho + k) / (100 + n)
        log_e += log(predicted / rho) if won else log((1 - predicted) / (1 - rho))
        seen[rho] = [n + 1, k + won]
    assert log_sample_ratio(count_draws(audit, np.where(audit, share, 1 - share))) == pytest.approx(log_e, abs=1e-9)


def test_where_there_is_no_lottery_one_exception_is_proof() -> None:
    assert log_sample_ratio(Draws(((1.0, 500, 500), (0.0, 500, 0)))) == 0
    assert log_sample_ratio(Draws(((1.0, 500, 499),))) == inf
    assert log_sample_ratio(Draws(((0.0, 500, 1),))) == inf
    assert find_sample_ratio_mismatch(Draws(((0.05, 2_000, 100), (1.0, 500, 499)))) is not None


def test_nothing_drawn_is_no_evidence() -> None:
    assert log_sample_ratio(Draws()) == 0
    assert find_sample_ratio_mismatch(count_draws(np.array([], dtype=np.bool_), np.array([]))) is None


def test_faults_that_touch_two_shares_are_seen_together() -> None:
    alone = Draws(((0.05, 2_000, 70),))
    assert find_sample_ratio_mismatch(alone) is None
    assert find_sample_ratio_mismatch(alone + Draws(((0.1, 1_000, 70),))) is not None


@pytest.mark.parametrize("odds", [0.0, -0.1, 1.1, float("nan")])
def test_odds_that_no_lottery_has_are_refused(odds: float) -> None:
    with pytest.raises(ValueError, match="propensity: need"):
        count_draws(np.array([True]), np.array([odds]))


@pytest.mark.parametrize("weight", [1.0, 10.0, 100.0])
def test_the_e_value_is_one_on_average_whatever_the_weight_of_its_alternative(weight: float) -> None:
    n = 30
    mean = sum(comb(n, k) * 0.5**n * exp(log_sample_ratio(Draws(((0.5, n, k),)), weight=weight)) for k in range(n + 1))
    assert mean == pytest.approx(1)
    assert log_sample_ratio(Draws(((0.5, 7, 7),)), weight=1.0) > log(20), "seven of seven are enough at 5 %"
