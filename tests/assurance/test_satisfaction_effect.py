"""What people say of answers: intervals hold at every look, anger is no effect, and silence counts for nothing."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.assurance.satisfaction import (
    FeedbackValue,
    Measure,
    RunFeedback,
    SatisfactionEffect,
    estimate_satisfaction,
)
from tests.drawn import examples

SATISFACTION = Measure(name="satisfaction")
SHARE = 0.1


def traffic(
    seed: int,
    n: int,
    *,
    full: float,
    stopped: float,
    angry: float = 0.2,
    content: float = 0.2,
    weigh: bool = False,
    drift: float = 0.0,
) -> list[RunFeedback]:
    """Runs by lot; who is angry votes with another probability than who is content.

    drift  by how much both kinds of runs fall from the first to the last
    """
    rng = np.random.default_rng(seed)
    runs = []
    for at in range(n):
        audit = bool(rng.random() < SHARE)
        happy = bool(rng.random() < (full if audit else stopped) - drift * at / n)
        request = content if happy else angry
        feedback: tuple[FeedbackValue, ...] = ()
        if rng.random() < request:
            feedback = (
                FeedbackValue(
                    seq=at,
                    source=f"v{at}",
                    values=(("satisfaction", float(happy)),),
                    weight=1 / request if weigh else 1.0,
                ),
            )
        runs.append(
            RunFeedback(
                query_class="",
                version="p",
                full=audit,
                stopped=not audit,
                drawn=True,
                audit=audit,
                conversation=f"u{at}",
                propensity=SHARE if audit else 1 - SHARE,
                feedback=feedback,
            )
        )
    return runs


def whole(runs: list[RunFeedback], measure: Measure = SATISFACTION, **options: Any) -> SatisfactionEffect:
    return next(
        one
        for one in estimate_satisfaction(runs, [measure], **options)
        if one.query_class is None and one.version is None
    )


# --------------------------------------------------------------------------- the effect


@pytest.mark.no_cover
def test_no_effect_is_claimed_no_oftener_than_it_may_be_however_angry_people_vote() -> None:
    n_seeds, misses = 60, 0
    for seed in range(n_seeds):
        runs = traffic(seed, 1_000, full=0.7, stopped=0.7, angry=0.6, content=0.1)
        looks = [whole(runs[:n]).effect for n in (200, 500, 1_000)]
        misses += any(one is not None and not one.low <= 0 <= one.high for one in looks)  # type: ignore[operator]
    assert misses / n_seeds <= 0.05


@pytest.mark.slow
def test_a_real_fall_is_found_and_its_interval_holds_it() -> None:
    result, held = 0, 0
    for seed in range(15):
        effect = whole(traffic(seed, 3_000, full=0.85, stopped=0.55, angry=0.5, content=0.5)).effect
        assert effect is not None
        assert effect.low is not None
        assert effect.high is not None
        result += effect.high < 0
        held += effect.low <= -0.30 <= effect.high
    assert result >= 13
    assert held >= 14


@pytest.mark.no_cover
def test_a_weeks_fall_of_both_is_no_effect_of_stopping() -> None:
    misses = 0
    for seed in range(20):
        effect = whole(traffic(seed, 1_500, full=0.9, stopped=0.9, angry=0.5, content=0.5, drift=0.6)).effect
        assert effect is not None
        misses += not effect.low <= 0 <= effect.high  # type: ignore[operator]
    assert misses <= 1


@pytest.mark.slow
@pytest.mark.no_cover
def test_votes_of_people_who_were_asked_by_lot_are_weighted_by_one_over_the_odds() -> None:
    """The angry are asked three times as often: plain means are far too low, weighted ones are not."""
    plain, weighted = [], []
    for seed in range(8):
        report: dict[str, Any] = {"full": 0.8, "stopped": 0.6, "angry": 0.6, "content": 0.2}
        bare = whole(traffic(seed, 3_000, **report))
        fair = whole(traffic(seed, 3_000, **report, weigh=True), most_weight=5.0)
        assert bare.stopped is not None
        assert fair.stopped is not None
        assert fair.effect is not None
        assert fair.full is not None
        plain.append(bare.stopped.value)
        weighted.append(
            (
                fair.stopped.value,
                fair.effect.low <= -0.2 <= fair.effect.high,  # type: ignore[operator]
                fair.full.low <= 0.8 <= fair.full.high,  # type: ignore[operator]
            )
        )
    assert np.mean(plain) < 0.45
    assert np.mean([value for value, _, _ in weighted]) == pytest.approx(0.6, abs=0.03)
    assert all(held for _, held, _ in weighted)
    assert all(held for _, _, held in weighted)


def test_where_audits_are_rated_more_often_the_effect_says_so() -> None:
    rng, runs = random.Random(1), traffic(1, 3_000, full=0.8, stopped=0.8, angry=0.1, content=0.1)
    loud = [
        replace(run, feedback=(FeedbackValue(seq=at, source=f"v{at}", values=(("satisfaction", 1.0),)),))
        if run.audit and rng.random() < 0.7
        else run
        for at, run in enumerate(runs)
    ]
    report, quiet = whole(loud), whole(runs)
    assert report.effect is not None
    assert quiet.effect is not None
    assert report.effect.note == "audits are rated more often, so the raters differ as well"
    assert quiet.effect.note is None
    assert report.rated_audits is not None
    assert report.rated_stopped is not None
    assert report.rated_audits > 0.6
    assert report.rated_stopped < 0.2


def test_without_both_kinds_there_is_no_effect_and_without_a_word_there_is_nothing() -> None:
    runs = traffic(2, 400, full=0.8, stopped=0.8, angry=1.0, content=1.0)
    assert whole([run for run in runs if run.audit]).effect is None
    assert whole([replace(run, drawn=False) for run in runs]).effect is None
    assert estimate_satisfaction([replace(run, feedback=()) for run in runs], [SATISFACTION]) == ()
    assert estimate_satisfaction([], [SATISFACTION]) == ()


def test_each_turn_of_a_conversation_is_compared_by_its_own_draw() -> None:
    """Turns lose as often as single requests do: the effect is that over all requests, whatever their conversation."""
    single = traffic(3, 3_000, full=1.0, stopped=0.7, angry=1.0, content=1.0)
    turns = [replace(run, conversation=f"talk-{at // 10}") for at, run in enumerate(single)]
    effect, alone = whole(turns).effect, whole(single).effect
    assert effect is not None
    assert effect == alone
    assert effect.high is not None
    assert effect.high < 0


# --------------------------------------------------------------------------- silence


def test_silence_is_neither_good_nor_bad() -> None:
    runs = traffic(4, 1_000, full=0.5, stopped=0.5, angry=0.2, content=0.2)
    spoken = [run for run in runs if run.feedback]
    report, only = whole(runs), whole(spoken)
    assert report.stopped is not None
    assert only.stopped is not None
    assert (report.stopped.value, report.stopped.n) == (only.stopped.value, only.stopped.n)
    assert report.n_heard == len(spoken)
    assert "without any are left out" in (report.stopped.note or "")


def test_an_event_that_nobody_reported_did_not_happen_and_is_compared_over_all_runs() -> None:
    measure = Measure(name="regenerated", better="lower", level="conversation", silent=0.0)
    runs = [
        replace(run, feedback=(FeedbackValue(seq=at, source="app", values=(("regenerated", 1.0),)),))
        if at % (20 if run.audit else 4) == 0
        else replace(run, feedback=())
        for at, run in enumerate(traffic(5, 4_000, full=1, stopped=1))
    ]
    report = whole(runs, measure)
    assert report.stopped is not None
    assert report.effect is not None
    assert report.effect.low is not None
    assert report.stopped.n == sum(run.stopped for run in runs)
    assert report.stopped.value == pytest.approx(0.25, abs=0.02)
    assert report.effect.value == pytest.approx(0.20, abs=0.05)
    assert report.effect.low > 0
    assert report.stopped.note is None


# --------------------------------------------------------------------------- whose word counts

SOURCES = st.sampled_from(["a", "b", "c"])


@pytest.mark.no_cover
@settings(max_examples=examples(30))
@given(data=st.data())
def test_the_order_in_which_words_are_listed_changes_nothing(data: st.DataObject) -> None:
    n_runs = data.draw(st.integers(2, 12))
    words: list[list[FeedbackValue]] = [[] for _ in range(n_runs)]
    for seq in range(data.draw(st.integers(0, 25))):
        at, source = data.draw(st.integers(0, n_runs - 1)), data.draw(SOURCES)
        value = data.draw(st.sampled_from([0.0, 0.25, 0.5, 1.0]))
        words[at].append(FeedbackValue(seq=seq, source=source, values=(("satisfaction", value),), capped=source == "c"))
    runs = [
        RunFeedback(
            query_class="",
            version="p",
            full=at % 3 == 0,
            stopped=at % 3 != 0,
            drawn=True,
            audit=at % 3 == 0,
            conversation=f"u{at}",
            propensity=1 / 3 if at % 3 == 0 else 2 / 3,
            feedback=tuple(output),
        )
        for at, output in enumerate(words)
    ]
    mixed = [replace(run, feedback=tuple(data.draw(st.permutations(run.feedback)))) for run in runs]
    assert estimate_satisfaction(runs, [SATISFACTION]) == estimate_satisfaction(mixed, [SATISFACTION])
    doubled = [replace(run, feedback=run.feedback * 2) for run in runs]
    assert estimate_satisfaction(runs, [SATISFACTION]) == estimate_satisfaction(doubled, [SATISFACTION])


def one_run(*feedback: FeedbackValue) -> RunFeedback:
    return RunFeedback(
        query_class="",
        version="p",
        full=True,
        stopped=False,
        drawn=False,
        audit=True,
        conversation="u",
        feedback=feedback,
    )


def word(seq: int, value: float, source: str = "v", **changes: Any) -> FeedbackValue:
    return FeedbackValue(seq=seq, source=source, values=(("satisfaction", value),), **changes)


def test_the_last_word_of_each_voice_counts_and_voices_are_averaged() -> None:
    report = whole([one_run(word(5, 1.0), word(3, 0.0), word(4, 0.5, "w"))])
    assert report.full is not None
    assert report.full.value == 0.75


def test_one_key_speaks_for_a_share_of_the_runs_at_most() -> None:
    runs = [replace(one_run(word(at, 0.0, "loud", capped=True)), conversation=f"u{at}") for at in range(200)]
    report = whole(runs)
    assert (report.n_heard, report.n_set_aside) == (10, 190)
    assert (whole(runs[:3]).n_heard, whole(runs[:3]).n_set_aside) == (1, 2), "for one at least"
    free = [replace(run, feedback=(replace(run.feedback[0], capped=False),)) for run in runs]
    assert (whole(free).n_heard, whole(free).n_set_aside) == (200, 0)


def test_a_value_of_a_conversation_or_of_a_user_counts_once() -> None:
    solved = Measure(name="solved", level="conversation")
    turns = [FeedbackValue(seq=at, source="app", values=(("solved", float(at == 3)),)) for at in range(4)]
    runs = [replace(one_run(turn), conversation="talk") for turn in turns]
    report = whole(runs, solved)
    assert (report.n_heard, report.everybody and report.everybody.value) == (1, 1.0), "the last word"
    nps = Measure(name="nps", low=0, high=10, level="user")
    runs = [
        one_run(FeedbackValue(seq=at, source=f"app {user}", values=(("nps", 8.0 + at),), user=user))
        for at, user in enumerate(("ann", "bob", "ann", ""))
    ]
    report = whole(runs, nps)
    assert report.everybody is not None
    assert (report.n_heard, report.everybody.value, report.full, report.effect) == (2, 9.5, None, None)


def test_classes_and_versions_have_their_own_numbers_in_the_measures_own_unit() -> None:
    effort = Measure(name="effort", low=1, high=7, better="lower")
    runs = [
        replace(
            one_run(FeedbackValue(seq=at, source=f"v{at}", values=(("effort", 2.0 if at % 2 else 6.0),))),
            query_class="easy" if at % 2 else "hard",
            version="p1" if at < 20 else "p2",
            conversation=f"u{at}",
        )
        for at in range(40)
    ]
    report = {(one.query_class, one.version): one for one in estimate_satisfaction(runs, [effort])}
    assert set(report) == {(None, None), ("easy", None), ("hard", None), (None, "p1"), (None, "p2")}
    means = {key: one.full.value for key, one in report.items() if one.full is not None}
    expected = {(None, None): 4.0, ("easy", None): 2.0, ("hard", None): 6.0, (None, "p1"): 4.0, (None, "p2"): 4.0}
    assert means == pytest.approx(expected)
    assert all(1 <= one.full.low <= one.full.high <= 7 for one in report.values() if one.full)  # type: ignore[operator]
    assert {one.better for one in report.values()} == {"lower"}


def test_a_value_that_is_out_of_its_range_by_now_counts_as_its_end() -> None:
    narrow = Measure(name="satisfaction", low=0.0, high=0.5)
    report = whole([one_run(word(1, 1.0))], narrow)
    assert report.full is not None
    assert report.full.value == 0.5
