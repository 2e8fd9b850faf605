"""What a watch on audits must notice, must put up with, and must not take for normal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import log, prod
from random import Random
from typing import Any

import pytest

from suffice.assurance.bounds import exact_binomial
from suffice.assurance.drift import (
    DOUBT_BEGINS,
    DOUBT_ENDS,
    DOUBT_SHARE,
    HARMLESS,
    QUANTILE,
    RISES,
    THRESHOLD,
    AuditWatch,
    DetectionLaw,
    Reference,
    detection_law,
    share_in_doubt,
)

BUDGET = 0.02
QUIET = Reference(n_disagreeing=8, n_lost=3, n=800)


def watch(reference: Reference = QUIET) -> AuditWatch:
    return AuditWatch(max_em_drop=BUDGET, reference=reference)


def add(here: AuditWatch, disagreements: str) -> list[str | None]:
    """Audits without labels: `x` disagrees, `.` does not."""
    return [here.add(None, mark == "x") for mark in disagreements]


# --------------------------------------------------------------------------- the statistic


@pytest.mark.parametrize("marks", ["x", "....x..", "x" + "." * 20 + "x.", "." * 300 + "x...x"])
@pytest.mark.parametrize("count", [0, 8, 40])
def test_suspicion_is_the_best_start_of_a_rise_averaged_over_the_alternatives(marks: str, count: int) -> None:
    here = watch(replace(QUIET, n_disagreeing=count))
    add(here, marks)
    normal = max(exact_binomial(count, 800, 2 * QUANTILE - 1).high, HARMLESS * BUDGET)
    wealth = []
    for rise in RISES:
        rate = normal + rise * BUDGET
        ratios = [rate / normal if mark == "x" else (1 - rate) / (1 - normal) for mark in marks]
        wealth.append(max(prod(ratios[start:]) for start in range(len(ratios))))
    expected = log(sum(wealth) / len(RISES)) / log(THRESHOLD)
    assert here.suspicion == pytest.approx(max(0.0, expected))


def test_each_way_to_get_worse_has_its_sentence() -> None:
    assert "disagree more often" in str(add(watch(), "x" * 20)[-1])
    loud = replace(QUIET, n_disagreeing=400)  # half of the audits disagree, harmlessly
    here = watch(loud)
    output = [here.add(int(n % 2 == 0), n % 2 == 0) for n in range(40)]
    assert next(filter(None, output)) == "audits lose more often than when the level was certified"
    lossy = watch(replace(loud, n_lost=400))
    output = [lossy.add(int(n % 2 == 0), n % 2 == 0) for n in range(200)]
    assert next(filter(None, output)) == "audits lose more than the budget", "a reference is no excuse for that"


def test_agreement_gains_and_disagreement_at_the_usual_rate_are_no_alarm() -> None:
    here = watch()
    assert not any(here.add(0, False) for _ in range(5_000))
    assert here.suspicion == 0
    gains = watch(replace(QUIET, n_disagreeing=80))
    assert not any(gains.add(-1 if n % 10 == 0 else 0, n % 10 == 0) for n in range(5_000))
    assert not any(add(watch(), ("x" + "." * 99) * 50))


def test_a_label_that_comes_later_counts_as_if_it_had_come_with_the_run() -> None:
    rng, at_once, later = Random(1), watch(), watch()
    outcomes = [(int(rng.random() < 0.03), rng.random() < 0.05) for _ in range(300)]
    for z, disagrees in outcomes:
        at_once.add(z, disagrees)
        later.add(None, disagrees)
    for z, _ in outcomes:
        later.add(z, None)
    assert at_once.suspicion == later.suspicion > 0


# --------------------------------------------------------------------------- the frozen reference


def test_another_level_on_the_same_audits_keeps_the_evidence() -> None:
    here = watch()
    add(here, "x..x")
    before = here.suspicion
    here.rebase(replace(QUIET, n_disagreeing=60))
    assert here.suspicion == before > 0
    add(here, "x")
    bold, same = here.suspicion, watch()
    add(same, "x..xx")
    assert bold < same.suspicion, "a bolder level disagrees more often, so one more tells less"


def test_a_slow_ramp_is_not_absorbed_however_often_levels_change() -> None:
    def alarm_at(rebases: bool) -> int:
        rng, here = Random(3), watch()
        for n in range(5_000):
            if rebases and n % 20 == 0:
                here.rebase(QUIET)
            if here.add(None, rng.random() < 0.01 + 0.08 * n / 1_000):
                return n
        raise AssertionError("no alarm")

    assert alarm_at(True) == alarm_at(False) < 1_000


def test_few_certifying_audits_leave_more_possible() -> None:
    few, many = watch(Reference(n_disagreeing=4, n_lost=0, n=80)), watch(Reference(n_disagreeing=40, n_lost=0, n=800))
    assert add(few, "xx") == add(many, "xx") == [None, None]
    assert few.suspicion < many.suspicion


# --------------------------------------------------------------------------- doubt buys audits


def test_doubt_raises_the_share_until_it_is_settled() -> None:
    here, shares, suspicions = watch(), list[float](), list[float]()
    for mark in "." * 50 + "x" + "." * 100:
        add(here, mark)
        shares.append(share_in_doubt(0.05, 1.0) if here.in_doubt else 0.05)
        suspicions.append(here.suspicion)
    assert shares[49] == 0.05
    assert shares[50] == DOUBT_SHARE
    assert suspicions[50] >= DOUBT_BEGINS
    settled = shares.index(0.05, 51)
    assert suspicions[settled] < DOUBT_ENDS <= suspicions[settled - 1]
    assert any(suspicion < DOUBT_BEGINS for suspicion in suspicions[51:settled]), "hysteresis: it ends lower"
    assert set(shares[settled:]) == {0.05}


@pytest.mark.parametrize(
    ("base", "cap", "share"),
    [
        (0.05, 0.2, 0.2),
        (0.05, 1.0, DOUBT_SHARE),
        (0.05, 0.01, 0.05),
        (0.8, 1.0, 0.8),
    ],
)
def test_the_owner_caps_what_doubt_may_buy(base: float, cap: float, share: float) -> None:
    here = watch()
    doubts = [here.in_doubt]
    add(here, "xx")
    assert [*doubts, here.in_doubt] == [False, True]
    assert share_in_doubt(base, cap) == share


# --------------------------------------------------------------------------- the law


def law(drop: float, **changes: Any) -> DetectionLaw:
    known: dict[str, Any] = {"max_em_drop": BUDGET, "reference": QUIET, "audit_share": 0.05, "cap": 0.5}
    return detection_law(drop, **{**known, **changes})


def test_larger_losses_more_audits_and_doubt_are_noticed_sooner() -> None:
    result = [law(drop).median_requests for drop in (0.02, 0.03, 0.06, 0.12)]
    assert result == sorted(filter(None, result), reverse=True)
    usual = law(0.06)
    assert usual.median_requests is not None
    for slower in (law(0.06, audit_share=0.02), law(0.06, cap=0.05)):
        assert slower.median_requests is not None
        assert slower.median_requests > 1.3 * usual.median_requests


def test_the_law_is_told_in_a_sentence() -> None:
    assert str(DetectionLaw(drop=0.03, median_requests=4_049)) == (
        "a silent loss of 3 points would be noticed within about 4,000 requests"
    )
    assert str(DetectionLaw(drop=0.01, median_requests=None)) == (
        "a silent loss of 1 point might not be noticed within 20,000 requests"
    )
    assert law(0.002, audit_share=0.01).median_requests is None


@pytest.mark.parametrize(
    "bad",
    [
        lambda: Reference(n_disagreeing=0, n_lost=0, n=0),
        lambda: Reference(n_disagreeing=9, n_lost=0, n=8),
        lambda: AuditWatch(max_em_drop=0.0, reference=QUIET),
        lambda: law(0.0),
        lambda: law(0.1, audit_share=0.0),
    ],
)
def test_what_has_no_meaning_is_refused(bad: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="got"):
        bad()
