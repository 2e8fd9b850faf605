"""What an experiment is said to show: verdicts, what is withheld, what is missing, and sentences that claim no more."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from bench.claims.experiments import simpson
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.assurance.bounds import Interval
from suffice.rollout.analysis import alphas, analyse, compared_metrics, judge_interval
from suffice.rollout.experiment import Arm, RunningExperiment
from suffice.rollout.results import (
    EM,
    LATENCY,
    METRICS,
    SATISFACTION,
    TOKENS,
    ArmComparison,
    ArmEvidence,
    ArmResult,
    AuditAnswers,
    ClassEffect,
    ExperimentData,
    ExperimentResult,
    MetricValue,
    UnitAssignment,
    Verdict,
    metric_of,
    summarize_arm,
)
from tests.drawn import examples

NAMES = ("full", "brisk")
HALF = {"full": 0.5, "brisk": 0.5}


def made(**changes: Any) -> RunningExperiment:
    known: dict[str, Any] = {
        "name": "e",
        "run": 1,
        "routes": ("r",),
        "unit": "request",
        "layer": "default",
        "slots": ((0, 1_000),),
        "arms": (Arm(name="full", weight=1, full=True), Arm(name="brisk", weight=1)),
        "control": "full",
        "primary": TOKENS,
    }
    return RunningExperiment(**(known | changes))


def values(
    n: int,
    seed: int,
    *,
    full: float,
    brisk: float,
    spread: float = 0.2,
    high: float = 1.0,
    classes: tuple[str, ...] = ("",),
    warmup: int = 100,
) -> list[MetricValue]:
    """Values of two arms around their means."""
    rng = np.random.default_rng(seed)
    values_of_units = []
    for at in range(n):
        arm = NAMES[int(rng.integers(2))]
        mean = full if arm == "full" else brisk
        value = float(np.clip(mean + spread * rng.normal(), 0, high))
        values_of_units.append(
            MetricValue(
                arm=arm,
                odds=HALF,
                query_class=classes[at % len(classes)],
                value=value,
                known=(0.0,),
                warmup=at < warmup,
            )
        )
    return values_of_units


def material(by_metric: dict[str, list[MetricValue]], **changes: Any) -> ExperimentData:
    longest = max(by_metric.values(), key=len, default=[])
    drawn = [UnitAssignment(arm=one.arm, odds=one.odds, query_class=one.query_class) for one in longest]
    known: dict[str, Any] = {"n_requests": len(drawn), "drawn": drawn, "values": by_metric}
    return ExperimentData(**(known | changes))


def audits(n: int, *, lost: int, gained: int = 0, pending: int = 0, query_class: str = "") -> list[AuditAnswers]:
    def one(full: bool | None, brisk: bool | None, *, same: bool = False) -> AuditAnswers:
        answers = ("4", "4") if same else ("4", "5")
        return AuditAnswers(
            query_class=query_class,
            arms={
                "full": ArmEvidence(answer=answers[0], right=full),
                "brisk": ArmEvidence(answer=answers[1], right=brisk),
            },
        )

    differing = [one(True, False)] * lost + [one(False, True)] * gained + [one(None, None)] * pending
    return differing + [one(True, True, same=True)] * (n - len(differing))


PAIRED = frozenset(NAMES)


# --------------------------------------------------------------------------- verdicts


def test_fewer_tokens_and_no_loss_of_em_is_better() -> None:
    tokens = values(4_000, 1, full=900, brisk=600, spread=150, high=4_000)
    result = analyse(
        made(margins=((EM, 0.02),)),
        material({TOKENS: tokens}, audits=audits(3_000, lost=12, gained=6), paired=PAIRED),
    )
    (arm,) = result.arms
    assert arm.verdict == "better"
    assert arm.of(TOKENS).verdict == "better"
    assert arm.of(EM).paired
    assert arm.of(EM).verdict == "no worse"
    between = arm.of(TOKENS).between
    assert between is not None
    assert between.low <= -300 <= between.high
    first, second, *_ = summarize_arm(result, arm)
    begins = "'brisk' against 'full' is better, and nothing with a margin loses more than you allow: a request uses"
    assert first.startswith(begins)
    assert "fewer tokens (33%), between" in first
    assert "within the 2.00 points that you allow" in second


def test_a_loss_beyond_the_margin_is_worse_whatever_was_saved() -> None:
    tokens = values(4_000, 1, full=900, brisk=600, spread=150, high=4_000)
    result = analyse(
        made(margins=((EM, 0.02),)), material({TOKENS: tokens}, audits=audits(3_000, lost=200), paired=PAIRED)
    )
    assert result.arms[0].verdict == "worse"
    report = summarize_arm(result, result.arms[0])
    assert report[0].startswith("'brisk' against 'full' is worse in em: ")
    assert "more than the 2.00 points that you allow" in report[1]


def test_too_little_is_inconclusive_and_says_how_much_is_missing() -> None:
    """What it says is missing is about what it takes: twice as many such requests decide most experiments."""

    def look(n: int, seed: int) -> ExperimentResult:
        measured = values(n, seed, full=0.70, brisk=0.66)
        return analyse(made(primary=SATISFACTION), material({SATISFACTION: measured}))

    arms = {seed: look(600, seed).arms[0] for seed in range(12)}
    waiting = {seed: arm.n_missing for seed, arm in arms.items() if arm.n_missing is not None}
    assert all(arms[seed].verdict == "inconclusive" for seed in waiting)
    assert len(waiting) >= 6
    decided = [look(600 + 2 * n, seed).arms[0].verdict == "worse" for seed, n in waiting.items()]
    assert sum(decided) > len(decided) / 2
    seed = min(waiting)
    arm, report = arms[seed], summarize_arm(look(600, seed), arms[seed])
    assert any(f"bout {arm.n_missing:,} more requests would decide it" in sentence for sentence in report)


def test_no_difference_at_all_has_no_number_of_missing_requests() -> None:
    one = made(primary=SATISFACTION)
    same = [MetricValue(arm=NAMES[at % 2], odds=HALF, query_class="", value=0.5) for at in range(600)]
    result = analyse(one, material({SATISFACTION: same}))
    (arm,) = result.arms
    assert (arm.verdict, arm.n_missing) == ("inconclusive", None)
    assert summarize_arm(result, arm)[-1].startswith("What was seen may still be chance; about 9,400 more requests")


def test_when_the_plan_is_complete_an_experiment_says_what_it_excludes_and_asks_for_no_more_requests() -> None:
    """Without a difference no number of requests decides: it must not send its owner for 70,000 of them."""
    one = made(primary=SATISFACTION, planned_units=2_000)
    report = list[str]()
    for seed in range(10):
        result = analyse(one, material({SATISFACTION: values(2_400, seed, full=0.7, brisk=0.7)}))
        (arm,) = result.arms
        assert arm.verdict == "inconclusive"
        report.append(summarize_arm(result, arm)[-1])
    assert sum("would decide it" in sentence for sentence in report) <= 2
    closing = "The plan is complete: satisfaction differs by less than "
    assert any(sentence.startswith(closing) and "no realistic number" in sentence for sentence in report)


def test_an_experiment_that_has_ended_asks_for_no_more_requests() -> None:
    results = [
        analyse(made(primary=SATISFACTION), material({SATISFACTION: values(n, seed, full=0.70, brisk=0.66)}))
        for n in (50, 600)
        for seed in range(6)
    ]
    report = [sentence for one in results for sentence in summarize_arm(replace(one, ended=True), one.arms[0])]
    assert any("would have decided it" in sentence for sentence in report)
    assert not [sentence for sentence in report if "would decide" in sentence or "more requests complete" in sentence]


def test_the_first_half_of_the_units_predicts_the_differences_of_audits_at_the_plan() -> None:
    one = made(primary=EM, planned_units=4_000)
    tokens = values(4_000, 1, full=900, brisk=600, spread=150, high=4_000)
    seen = [replace(audit, place=place) for place in (1_000, 3_000) for audit in audits(2_000, lost=60, gained=60)]
    analyses = [
        analyse(design, material({TOKENS: tokens}, audits=seen, paired=PAIRED)).arms[0].of(EM).between
        for design in (one, replace(one, planned_units=0))
    ]
    planned, plain = (between.high - between.low for between in analyses if between is not None)
    assert planned < 0.8 * plain


def test_a_plan_narrows_the_interval_where_it_was_planned() -> None:
    measured = {SATISFACTION: values(3_000, 3, full=0.7, brisk=0.7)}
    planned, without = (analyse(made(primary=SATISFACTION, planned_units=n), material(measured)) for n in (3_000, 0))
    of_planned, of_other = (one.arms[0].of(SATISFACTION).between for one in (planned, without))
    assert of_planned is not None
    assert of_other is not None
    assert of_planned.high - of_planned.low < 0.85 * (of_other.high - of_other.low)


def test_earlier_values_of_a_caller_predict_later_ones_and_narrow_the_interval() -> None:
    """CUPED: callers differ much, and an arm cannot gain by that, whoever is in it."""
    rng = np.random.default_rng(3)
    levels = rng.uniform(0.2, 0.8, 20)
    plain, grouped = list[MetricValue](), list[MetricValue]()
    for at in range(3_000):
        caller, arm = int(rng.integers(20)), NAMES[int(rng.integers(2))]
        value = float(np.clip(levels[caller] + 0.05 * rng.normal(), 0, 1))
        one = MetricValue(arm=arm, odds=HALF, query_class="", value=value, warmup=at < 100)
        plain.append(one)
        grouped.append(replace(one, groups=(f"caller-{caller}",)))
    made_of = [analyse(made(primary=SATISFACTION), material({SATISFACTION: one})) for one in (plain, grouped)]
    wide, narrow = (one.arms[0].of(SATISFACTION).between for one in made_of)
    assert wide is not None
    assert narrow is not None
    assert narrow.high - narrow.low < 0.7 * (wide.high - wide.low)
    assert narrow.low < 0 < narrow.high


def test_with_a_margin_no_difference_is_an_answer() -> None:
    one = made(primary=SATISFACTION, margins=((SATISFACTION, 0.05),))
    result = analyse(one, material({SATISFACTION: values(6_000, 5, full=0.7, brisk=0.7)}))
    assert result.arms[0].verdict == "no worse"
    assert "is not worse than you allow" in summarize_arm(result, result.arms[0])[0]


def test_nothing_measured_is_inconclusive_and_said_so() -> None:
    result = analyse(made(), material({}))
    assert result.arms[0].verdict == "inconclusive"
    sentence = summarize_arm(result, result.arms[0])[0]
    assert sentence == "'brisk' against 'full' is inconclusive: tokens was not measured yet."
    assert summarize_arm(result, result.arms[0])[-1].endswith("can be said once there is something to measure.")
    one_arm = [MetricValue(arm="full", odds=HALF, query_class="", value=1.0)] * 50
    lone = analyse(made(), material({}, values={TOKENS: one_arm}))
    assert lone.arms[0].of(TOKENS).effect is None


@given(low=st.floats(-1, 1), width=st.floats(0, 1), margin=st.none() | st.floats(0, 1), higher=st.booleans())
@settings(max_examples=examples(200))
def test_a_verdict_is_what_the_interval_proves(low: float, width: float, margin: float | None, higher: bool) -> None:
    metric = METRICS[EM] if higher else METRICS[TOKENS]
    verdict = judge_interval(Interval(low, low + width), metric, margin)
    gains = (low, low + width) if higher else (-low - width, -low)
    if verdict == "better":
        assert gains[0] > 0
    elif verdict == "no worse":
        assert margin is not None
        assert gains[0] > -margin
    elif verdict == "worse":
        assert gains[1] < -(margin or 0)
    else:
        assert gains[0] <= 0
        assert gains[1] >= -(margin or 0)


# --------------------------------------------------------------------------- error, arms, classes


def test_arms_and_metrics_share_one_error() -> None:
    for n_others in (1, 3):
        arms = tuple(Arm(name=f"a{at}", weight=1) for at in range(n_others + 1))
        one = made(margins=(("solved", 0.1),), confidence=0.9, arms=arms, control="a0")
        shares = alphas(one)
        assert sum(shares.values()) * n_others == pytest.approx(0.1)
        assert shares[TOKENS] * n_others == pytest.approx(0.06), "the metric that decides has most"
        assert shares["solved"] * n_others == pytest.approx(0.025), "one with a margin decides, too"
        assert shares[EM] * n_others == pytest.approx(0.005)
        assert alphas(made(confidence=0.9, arms=arms, control="a0"))[TOKENS] * n_others == pytest.approx(0.085)
        assert compared_metrics(one) == (TOKENS, EM, SATISFACTION, LATENCY, "solved")


def test_more_arms_make_wider_intervals_and_each_is_compared_with_the_control() -> None:
    third = {"full": 1 / 3, "brisk": 1 / 3, "bold": 1 / 3}
    arms = tuple(Arm(name=name, weight=1, full=name == "full") for name in third)
    rng = np.random.default_rng(6)
    analyses = [
        MetricValue(
            arm=name,
            odds=third,
            query_class="",
            value=float(np.clip({"full": 0.7, "brisk": 0.7, "bold": 0.5}[name] + 0.1 * rng.normal(), 0, 1)),
        )
        for name in rng.choice(list(third), 6_000).tolist()
    ]
    result = analyse(made(arms=arms, primary=SATISFACTION), material({SATISFACTION: analyses}))
    assert {arm.arm: arm.verdict for arm in result.arms} == {"brisk": "inconclusive", "bold": "worse"}
    assert result.arms[0].of(SATISFACTION).confidence > 0.975


def test_an_arm_that_lost_its_weight_is_still_told() -> None:
    arms = (Arm(name="full", weight=1, full=True), Arm(name="brisk", weight=0), Arm(name="never", weight=0))
    liked = values(4_000, 1, full=0.8, brisk=0.6)
    result = analyse(made(arms=arms, primary=SATISFACTION), material({SATISFACTION: liked}))
    assert [(arm.arm, arm.verdict) for arm in result.arms] == [("brisk", "worse")]


def test_a_class_that_is_harmed_is_named_though_the_whole_is_fine() -> None:
    """A gain in one class hides a harm in another: the whole is better, and the class is named at once."""
    easy = values(6_000, 7, full=0.5, brisk=0.8, classes=("easy",))
    hard = values(2_000, 8, full=0.6, brisk=0.45, classes=("hard",), warmup=0)
    mixed = [one for four in zip(*[iter(easy)] * 3, hard, strict=False) for one in four]
    result = analyse(made(primary=SATISFACTION), material({SATISFACTION: mixed}))
    arm = result.arms[0]
    assert arm.verdict == "mixed"
    assert arm.of(SATISFACTION).verdict == "better"
    assert arm.of(SATISFACTION).harmed == ("hard",)
    assert "is mixed, for it is worse in satisfaction for class hard: on the whole, " in summarize_arm(result, arm)[0]
    aside = analyse(made(), material({SATISFACTION: mixed, TOKENS: values(8_000, 9, full=900, brisk=600, high=4_000)}))
    assert aside.arms[0].verdict == "better", "what has no margin and does not decide is told, and decides nothing"
    assert "worse in satisfaction for class hard, whatever the whole says" in summarize_arm(aside, aside.arms[0])[-1]


def test_classes_of_audits_are_shown_too() -> None:
    seen = audits(1_000, lost=100, query_class="hard") + audits(2_000, lost=0, gained=60, query_class="easy")
    comparison = analyse(made(), material({}, audits=seen, paired=PAIRED)).arms[0].of(EM)
    assert {one.query_class: one.verdict for one in comparison.classes} == {"hard": "worse", "easy": "better"}
    assert comparison.effect == pytest.approx(-40 / 3_000)


def test_audits_without_a_label_widen_and_those_not_seen_count_for_nobody() -> None:
    blind = AuditAnswers(
        query_class="", arms={name: ArmEvidence(answer=None, right=None, seen=False) for name in NAMES}
    )
    foreign = AuditAnswers(query_class="", arms={"full": ArmEvidence(answer="4", right=True)})
    seen = [*audits(1_000, lost=5, pending=20), blind, foreign]
    comparison = analyse(made(), material({}, audits=seen, paired=PAIRED)).arms[0].of(EM)
    assert (comparison.n, comparison.n_pending) == (1_001, 21)
    alone = analyse(made(), material({}, audits=audits(1_000, lost=5), paired=PAIRED)).arms[0].of(EM)
    assert comparison.between is not None
    assert alone.between is not None
    assert comparison.between.low < alone.between.low
    assert comparison.between.high > alone.between.high


@pytest.mark.no_cover
def test_what_the_arm_costs_in_satisfaction_for_each_em_point() -> None:
    liked = values(20_000, 9, full=0.75, brisk=0.69)
    result = analyse(
        made(primary=SATISFACTION),
        material({SATISFACTION: liked}, audits=audits(4_000, lost=140, gained=20), paired=PAIRED),
    )
    arm = result.arms[0]
    assert arm.per_point is not None
    assert arm.per_point_between is not None
    assert arm.per_point_between.low < 2.0 < arm.per_point_between.high
    assert summarize_arm(result, arm)[-1].startswith("Each EM point lost goes with ")
    won = analyse(
        made(primary=SATISFACTION),
        material({SATISFACTION: liked}, audits=audits(4_000, lost=20, gained=140), paired=PAIRED),
    )
    assert won.arms[0].per_point is not None
    assert won.arms[0].per_point < 0
    assert "Each EM point won goes with -" in summarize_arm(won, won.arms[0])[-1]


# --------------------------------------------------------------------------- Simpson, splits, warm-up


@pytest.mark.no_cover
def test_simpson_is_shown_and_not_hidden() -> None:
    """F40: the brisk arm loses 5 points in each class, and its plain mean is higher."""
    result = simpson(20_000, 0, broken=False)
    displayed = result.arms[0].of(SATISFACTION)
    assert displayed.plain is not None
    assert displayed.effect is not None
    assert displayed.stratified is not None
    assert displayed.plain > 0.1
    assert displayed.effect < 0
    assert displayed.stratified < 0
    assert displayed.misleading
    assert {part.query_class for part in displayed.classes} == {"hard", "easy"}
    assert all(part.effect < 0 for part in displayed.classes)
    last = summarize_arm(result, result.arms[0])[-1]
    assert "and mislead: the arms had different mixes of questions, and weighed by class satisfaction is 5." in last


def test_a_split_that_does_not_fit_its_odds_withholds_everything() -> None:
    """F41: 53/47 where halves were drawn."""
    rng = np.random.default_rng(10)
    drawn = [
        UnitAssignment(arm="brisk" if brisk else "full", odds=HALF, query_class="")
        for brisk in rng.random(20_000) < 0.53
    ]
    tokens = values(4_000, 1, full=900, brisk=600, spread=150, high=4_000)
    analysis = analyse(made(), material({TOKENS: tokens}, drawn=drawn))
    assert analysis.withheld is not None
    assert re.search(r"20,000 units are split brisk 10,\d+, full 9,\d+, which does not fit the odds", analysis.withheld)
    assert analysis.arms[0].verdict == "withheld"
    assert all(one.effect is None for one in analysis.arms[0].comparisons)
    assert summarize_arm(analysis, analysis.arms[0])[0].startswith(
        "No result is given for 'brisk': 20,000 units are split"
    )


def test_a_split_that_is_right_on_the_whole_and_wrong_in_each_class_is_found() -> None:
    result = simpson(20_000, 1, broken=True)
    assert result.withheld is not None
    assert re.search(r"units are split in class \w+ brisk \d,\d+, full \d,\d+; in class \w+ brisk", result.withheld)


def test_a_metric_that_one_arm_gives_more_often_is_withheld_alone() -> None:
    """People of one arm rate twice as often: who rates is another crowd, so nothing is said of it."""
    liked = [one for one in values(6_000, 11, full=0.7, brisk=0.7) if one.arm == "full" or one.value < 0.7]
    tokens = values(6_000, 11, full=900, brisk=600, spread=150, high=4_000)
    result = analyse(made(), material({TOKENS: tokens, SATISFACTION: liked}))
    arm = result.arms[0]
    assert arm.of(SATISFACTION).verdict == "withheld"
    assert arm.verdict == "better"
    assert "satisfaction is withheld, because" in summarize_arm(result, arm)[1]


def test_the_warm_up_is_left_out() -> None:
    """F43: the first units look very good, and are not counted."""
    first = [
        MetricValue(arm=NAMES[at % 2], odds=HALF, query_class="", value=float(at % 2), warmup=True) for at in range(200)
    ]
    steady = values(3_000, 12, full=0.7, brisk=0.7, warmup=0)
    novel = [
        MetricValue(arm=one.arm, odds=one.odds, query_class="", value=one.value, warmup=one.warmup) for one in steady
    ]
    result = analyse(made(primary=SATISFACTION), material({SATISFACTION: first + novel}))
    assert result.arms[0].verdict == "inconclusive"
    without = [MetricValue(arm=one.arm, odds=one.odds, query_class="", value=one.value) for one in first] + novel
    assert analyse(made(primary=SATISFACTION), material({SATISFACTION: without})).arms[0].verdict == "better"


def test_what_comes_late_from_the_warm_up_does_not_count_either() -> None:
    late = [MetricValue(arm="brisk", odds=HALF, query_class="", value=1.0, warmup=True)] * 500
    steady = values(2_000, 13, full=0.7, brisk=0.7)
    result = analyse(made(primary=SATISFACTION), material({SATISFACTION: steady + late}, drawn=[]))
    assert result.arms[0].of(SATISFACTION).n == 1_900


def test_a_run_that_costs_more_than_anybody_knew_counts_as_the_cap() -> None:
    tokens = values(500, 14, full=900, brisk=600, spread=10, high=4_000)
    wild = MetricValue(arm="full", odds=HALF, query_class="", value=1e9, known=(0.0,))
    displayed = analyse(made(), material({TOKENS: [*tokens, wild]})).arms[0].of(TOKENS)
    assert displayed.n_cut == 1
    named = analyse(made(max_tokens=700.0), material({TOKENS: tokens})).arms[0].of(TOKENS)
    assert named.n_cut > 100


# --------------------------------------------------------------------------- sentences


VERDICTS: st.SearchStrategy[Verdict] = st.sampled_from(["better", "no worse", "worse", "inconclusive"])


@st.composite
def comparisons(draw: st.DrawFn, metric: str) -> ArmComparison:
    one = metric_of(metric)
    measured = draw(st.booleans())
    low = draw(st.floats(-1, 1))
    between = Interval(low, low + draw(st.floats(0, 1))) if measured else None
    margin = draw(st.none() | st.floats(0, 1))
    unmeasured: st.SearchStrategy[Verdict] = st.sampled_from(["inconclusive", "withheld"])
    verdict = judge_interval(between, one, margin) if between is not None else draw(unmeasured)
    effect = (between.low + between.high) / 2 if between is not None else None
    classes = tuple(
        ClassEffect(query_class=name, n=300, effect=0.0, between=Interval(-1, 1), verdict=draw(VERDICTS))
        for name in draw(st.lists(st.sampled_from(["", "law"]), max_size=2, unique=True))
    )
    return ArmComparison(
        arm="brisk",
        metric=metric,
        paired=draw(st.booleans()),
        n=draw(st.integers(0, 10**6)),
        effect=effect,
        between=between,
        confidence=0.99,
        margin=margin,
        verdict=verdict,
        why="of a reason",
        control_mean=1.0,
        plain=draw(st.none() | st.floats(-1, 1)) if measured else None,
        classes=classes,
    )


@pytest.mark.no_cover
@given(data=st.data())
@settings(max_examples=examples(150))
def test_a_reading_never_claims_more_than_its_verdicts(data: st.DataObject) -> None:
    compared = tuple(data.draw(comparisons(metric)) for metric in (TOKENS, EM, SATISFACTION, "solved"))
    guarded = {one.verdict for one in compared if one is compared[0] or one.margin is not None}
    order: tuple[Verdict, ...] = ("withheld", "worse", "inconclusive")
    verdict = next((word for word in order if word in guarded), compared[0].verdict)
    if verdict not in order[:2] and any(one.harmed for one in compared if one is compared[0] or one.margin is not None):
        verdict = "mixed"
    missing = data.draw(st.none() | st.integers(1, 10**6)) if verdict == "inconclusive" else None
    arm = ArmResult(arm="brisk", verdict=verdict, comparisons=compared, n_missing=missing)
    result = ExperimentResult(
        experiment="e",
        run=1,
        control="full",
        primary=TOKENS,
        confidence=0.95,
        n_requests=10,
        n_units=10,
        n_by_arm={"full": 5, "brisk": 5},
        planned_units=data.draw(st.sampled_from([5, 20_000])),
        withheld=None,
        arms=(arm,),
    )
    report = summarize_arm(result, arm)
    assert 1 <= len(report) <= 3
    assert all(sentence.endswith(".") and sentence[0] in "'BNAEIHSTW" for sentence in report), report
    text = " ".join(report)
    assert ("is better" in report[0]) == (verdict == "better"), text
    assert ("against 'full' is worse" in report[0]) == (verdict == "worse"), text
    assert ("is mixed" in report[0]) == (verdict == "mixed"), text
    if verdict == "withheld":
        assert report[0].startswith("No result is given")
        assert "points" not in text
    for one in compared[1:]:
        if verdict != "withheld" and one.verdict == "withheld":
            assert f"{one.metric} is withheld" in text
