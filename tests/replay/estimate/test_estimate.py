"""What is estimated from a log holds: against sums by hand, against simulation, and against replay."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice.assurance.certify import BETS
from suffice.policy.base import build_policy
from suffice.replay.estimate import (
    LADDERS,
    LogEstimate,
    LogRun,
    LogRuns,
    LogTraffic,
    estimate_levels,
    expected_audits,
    replay_ladder,
    runs_of_calls,
    traffic_of,
)
from suffice.replay.logs import LoggedCall
from suffice.scoring.base import build_scorer
from suffice.signals.observe import Observer
from suffice.types import Step

NUMBER = build_scorer("number")
NO_TRAFFIC = LogTraffic(n_calls=0, n_requests=0, span_s=None, requests_per_day=None, completion_share=None, n_counted=0)


def votes(question: str, answers: Sequence[str], *, tokens: int = 10, gold: str | None = None) -> LogRun:
    from suffice.episode import vote

    steps = tuple(Step(index=k, tokens=tokens, answer=a, answer_source="sample") for k, a in enumerate(answers, 1))
    return LogRun(
        question=question,
        steps=steps,
        full_answer=vote.count_votes(list(answers)).answer,
        full_tokens=tokens * len(answers),
        gold=gold,
    )


def estimated(runs: list[LogRun], seed: int = 0, traffic: LogTraffic = NO_TRAFFIC, **changes: float) -> LogEstimate:
    given = {"max_em_drop": 0.02, "confidence": 0.95, "audit_share": 0.1, "most_audits": 800} | changes
    return estimate_levels(
        replay_ladder(LogRuns(runs=runs, kind="samples"), NUMBER),
        traffic,
        rng=np.random.default_rng(seed),
        max_em_drop=given["max_em_drop"],
        confidence=given["confidence"],
        audit_share=given["audit_share"],
        most_audits=int(given["most_audits"]),
    )


# --------------------------------------------------------------------------- audits


@pytest.mark.parametrize("risk", [0.0, 0.005, 0.01])
def test_most_certificates_are_there_after_so_many_audits_and_few_long_before(risk: float) -> None:
    eps, rng, n_streams = 0.02, np.random.default_rng(1), 300
    expected = float(expected_audits(np.array(risk), max_em_drop=eps, confidence=0.95))
    bets = np.array(BETS) / (1 - eps)
    horizon = int(expected)
    lost = rng.random((n_streams, horizon)) < risk
    logs = np.where(lost[..., None], np.log1p(bets * (eps - 1)), np.log1p(bets * eps)).cumsum(axis=1)
    passed = np.log(np.exp(logs).mean(axis=2)) >= np.log(20)
    by_then, by_half = passed.any(axis=1).mean(), passed[:, : horizon // 2].any(axis=1).mean()
    print(f"risk {risk}: {by_then:.0%} certified within {horizon} audits, {by_half:.0%} within half of them")
    assert by_then > 0.6
    assert by_half < 0.45


@pytest.mark.parametrize("eps", [0.005, 0.01, 0.02, 0.05])
def test_a_level_at_its_budget_or_above_is_never_certified(eps: float) -> None:
    risks = np.array([eps, 1.5 * eps, 0.9, 1.0])
    assert np.isinf(expected_audits(risks, max_em_drop=eps, confidence=0.95)).all()


@given(eps=st.floats(0.002, 0.3), share=st.floats(0, 0.7), more=st.floats(0, 0.2), confidence=st.floats(0.5, 0.999))
def test_more_risk_a_smaller_budget_and_more_confidence_take_more_audits(
    eps: float, share: float, more: float, confidence: float
) -> None:
    def needed(risk: float, budget: float, sure: float) -> float:
        return float(expected_audits(np.array(risk), max_em_drop=budget, confidence=sure))

    risk = share * eps
    base = needed(risk, eps, confidence)
    assert base >= 1
    assert needed(min(1.0, risk + more * eps), eps, confidence) >= base
    assert needed(risk, 1.1 * eps, confidence) <= base
    assert needed(risk, eps, (1 + confidence) / 2) >= base


# --------------------------------------------------------------------------- levels


def test_a_level_stops_where_its_policy_does_and_pays_whole_waves() -> None:
    rng = random.Random(7)
    runs = [votes(f"q{i}", [rng.choice("1123") for _ in range(12)]) for i in range(60)]
    evidence = replay_ladder(LogRuns(runs=runs, kind="samples"), NUMBER)
    for level, spec in enumerate(LADDERS["votes"]):
        policy = build_policy(dict(spec))
        for i, run in enumerate(runs):
            observer, stop = Observer(policy.needs, "samples"), None
            for step in run.steps[:-1]:
                signals = observer.observe(step)
                if policy.decide(signals).action == "stop":
                    stop = step.index, signals.answer
                    break
            assert evidence.stopped[i, level] == (stop is not None)
            drawn = 12 if stop is None else -(-stop[0] // 4) * 4
            assert evidence.tokens[i, level] == 10 * drawn
            assert evidence.differs[i, level] == (stop is not None and stop[1] != run.full_answer)
    assert (np.diff(evidence.tokens, axis=1) <= 0).all()  # a bolder level never spends more


def test_unanimous_votes_save_what_is_plain_by_hand() -> None:
    result = estimated([votes(f"q{i}", ["4"] * 16) for i in range(200)])
    by_name = {level.name: level for level in result.levels}
    # Half a run that stops and half a run that does not are added to the two hundred.
    assert by_name["beta 0.95"].saving.middle == pytest.approx(0.75, abs=0.003)  # four of sixteen
    assert by_name["beta 0.999"].saving.middle == pytest.approx(0.25, abs=0.003)  # ten equal ones, so twelve are drawn
    agreement = result.promises[0]
    assert agreement.saving.middle == pytest.approx(0.75, abs=0.003)
    assert agreement.audit_cost.middle == pytest.approx(0.075, abs=0.003)
    assert agreement.net_saving.middle == pytest.approx(0.675, abs=0.003)
    assert agreement.p_any > 0.9


def test_seeing_no_disagreement_is_no_proof_that_there_is_none() -> None:
    few, many = (estimated([votes(f"q{i}", ["4"] * 16) for i in range(n)]) for n in (10, 400))
    assert few.levels[-1].disagreement.high > 0.05
    assert many.levels[-1].disagreement.high < 0.01
    assert few.promises[0].p_any < many.promises[0].p_any


def test_repeats_of_one_question_are_not_taken_for_evidence_of_many() -> None:
    rng = random.Random(3)
    runs = [votes(f"q{i}", [rng.choice("1112") for _ in range(8)]) for i in range(30)]
    once, often = estimated(runs).levels[-1], estimated(runs * 10).levels[-1]
    assert often.saving.high - often.saving.low == pytest.approx(once.saving.high - once.saving.low, rel=0.25)


@pytest.mark.slow
def test_ninety_per_cent_intervals_hold_the_truth_about_as_often() -> None:
    def draw(rng: random.Random, n: int) -> list[LogRun]:
        runs = []
        for i in range(n):
            p = rng.choice([0.99, 0.9, 0.6])
            runs.append(votes(f"q{i}", ["4" if rng.random() < p else rng.choice("56") for _ in range(9)]))
        return runs

    truth = replay_ladder(LogRuns(runs=draw(random.Random(99), 1_200), kind="samples"), NUMBER)
    saving = 1 - truth.tokens.sum(axis=0) / truth.full_tokens.sum()
    disagreement = truth.differs.mean(axis=0)
    hits, n_logs = np.zeros(2), 25
    for seed in range(n_logs):
        level = estimated(draw(random.Random(seed), 40), seed).levels[5]
        hits += [
            level.saving.low <= saving[5] <= level.saving.high,
            level.disagreement.low <= disagreement[5] <= level.disagreement.high,
        ]
    print(f"saving held in {hits[0]:.0f}, disagreement in {hits[1]:.0f} of {n_logs} logs")
    assert (hits >= 0.8 * n_logs).all()


@pytest.mark.slow
def test_a_level_that_stops_hardly_a_run_still_has_an_interval_that_holds() -> None:
    def draw(rng: random.Random, n: int) -> list[LogRun]:
        runs = []
        for i in range(n):
            p = 0.99 if rng.random() < 0.03 else 0.5
            runs.append(votes(f"q{i}", ["4" if rng.random() < p else rng.choice("56") for _ in range(16)]))
        return runs

    truth = replay_ladder(LogRuns(runs=draw(random.Random(99), 2_000), kind="samples"), NUMBER)
    assert (truth.stopped.mean(axis=0)[:3] < 0.08).all()
    saving = 1 - truth.tokens.sum(axis=0) / truth.full_tokens.sum()
    hits, n_logs = np.zeros(3), 50
    for seed in range(n_logs):
        levels = estimated(draw(random.Random(seed), 40), seed).levels[:3]
        hits += [level.saving.low <= came <= level.saving.high for level, came in zip(levels, saving, strict=False)]
    assert (hits >= 0.76 * n_logs).all(), hits  # 0.68 at the safest without the half runs


def test_a_bold_level_behind_a_failing_one_is_not_certified() -> None:
    # All of the boldest levels disagree often; the safest never stop at all within so few samples.
    rng = random.Random(5)
    runs = [votes(f"q{i}", [rng.choice("123") for _ in range(9)]) for i in range(100)]
    result = estimated(runs, max_em_drop=0.05)
    risky = [level.name for level in result.levels if level.disagreement.middle > 0.05]
    assert risky
    assert result.promises[0].level not in risky
    assert result.promises[0].saving.high < min(level.saving.low for level in result.levels if level.name in risky)


def test_with_references_what_a_differing_answer_costs_is_measured() -> None:
    rng = random.Random(11)
    answers = [[rng.choice("44456") for _ in range(8)] for _ in range(120)]
    wrong = estimated([votes(f"q{i}", a, gold="9") for i, a in enumerate(answers)])
    assert wrong.drop_per_disagreement.middle == pytest.approx(0.05)  # nothing can be lost; a floor is kept
    runs = [votes(f"q{i}", a) for i, a in enumerate(answers)]
    right = estimated([votes(r.question, a, gold=r.full_answer) for r, a in zip(runs, answers, strict=True)])
    assert right.drop_per_disagreement.middle == pytest.approx(1.0)  # every differing answer is a loss


# --------------------------------------------------------------------------- calls


def call(
    prompt: str, *texts: str, thoughts: tuple[str, ...] = (), at_s: float | None = None, tokens: int = 40
) -> LoggedCall:
    return LoggedCall(
        prompt=prompt,
        texts=texts,
        thoughts=thoughts or ("",) * len(texts),
        prompt_tokens=60,
        completion_tokens=tokens,
        at_s=at_s,
    )


def test_calls_of_one_prompt_become_one_vote_in_the_order_of_their_times() -> None:
    calls = [call("a", "3", at_s=30.0), call("b", "1"), call("a", "1", "2", at_s=10.0), call("a", "4", at_s=20.0)]
    result = runs_of_calls(calls, NUMBER)
    (run,) = result.runs
    assert (result.kind, result.n_unfit) == ("samples", 1)
    assert [s.answer for s in run.steps] == ["1", "2", "4", "3"]
    assert [s.tokens for s in run.steps] == [20, 20, 40, 40]


def test_a_thought_that_repeats_its_answer_can_be_stopped_and_one_that_finds_it_last_cannot() -> None:
    idle = "so it is 4.\n" + "that is right, it is 4, let me look at it once more and count again: 4.\n" * 12
    late = "first this and then that and then some more of the same words again and again\n" * 12 + "it is 4\n"
    runs = runs_of_calls(
        [call("a", "4", thoughts=(idle,), tokens=400), call("b", "4", thoughts=(late,), tokens=400)], NUMBER
    )
    assert runs.kind == "reasoning"
    evidence = replay_ladder(runs, NUMBER)
    assert evidence.ladder == "visible answers"
    saved = 1 - evidence.tokens / evidence.full_tokens[:, None]
    assert saved[0, -1] > 0.5
    assert not evidence.differs[0].any()
    assert saved[1, -1] < 0.1


def test_one_answer_a_prompt_and_no_thought_says_nothing() -> None:
    assert not runs_of_calls([call(str(i), "4") for i in range(50)], NUMBER).runs


def test_the_rate_and_the_share_of_generated_tokens_come_from_the_log() -> None:
    calls = [call(str(i), "4", at_s=1e9 + 60.0 * i) for i in range(1_441)]
    traffic = traffic_of(calls, len(calls), np.random.default_rng(0))
    assert traffic.requests_per_day is not None
    assert traffic.requests_per_day.middle == pytest.approx(1_440, rel=0.02)
    assert traffic.requests_per_day.low < 1_440 < traffic.requests_per_day.high
    assert traffic.completion_share == pytest.approx(0.4)
    result = estimated([votes(f"q{i}", ["4"] * 16) for i in range(400)], traffic=traffic)
    promise = result.promises[0]
    assert promise.audits is not None
    assert promise.days is not None
    assert promise.days.middle == pytest.approx(promise.audits.middle / 144, rel=0.05)
    assert promise.net_saving_of_all_tokens is not None
    assert promise.net_saving_of_all_tokens.middle == pytest.approx(0.4 * promise.net_saving.middle, rel=0.01)
