"""A stop costs what its live run would have cost: probes, what is generated meanwhile, and nothing for what is late."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from suffice.assurance.money import RunLengths
from suffice.assurance.thoughts import SavingTrial, thought_costs
from suffice.control.loop.live_costs import LiveCosts
from suffice.learn.audits import NO_AUDITS
from suffice.learn.costs import LiveCost, remaining_ratio, stop_cost
from suffice.types import Outcome, Overhead, StepRecord, Usage
from tests.records import plain_request, plain_step

THOUGHT, ANSWER, LINE = 100, 5, 10


def step(index: int, *, late: int = 0, probe: int = 0, answer: str = "4", tokens: int = LINE) -> StepRecord:
    return plain_step(index, tokens=tokens, answer=answer, probe_tokens=probe, late_tokens=late)


def run(
    *steps: StepRecord, spent: int = THOUGHT + ANSWER, stop_step: int | None = None, probes: int | None = None
) -> Outcome:
    n_probed = sum(one.probe_tokens for one in steps) if probes is None else probes
    return Outcome(
        episode_id="e",
        end_reason="done" if stop_step is None else "stopped",
        status=200,
        answer="4",
        response_id=None,
        usage=Usage(prompt_tokens=9, completion_tokens=spent, reasoning_tokens=spent - ANSWER),
        overhead=Overhead(probe_tokens=n_probed),
        stopped=stop_step is not None,
        stop_step=stop_step,
        steps=steps,
    )


def audit(*, late: int = 0, probe: int = 0) -> Outcome:
    whole = THOUGHT + ANSWER
    return run(*(step(n, late=min(late, whole - LINE * n), probe=probe) for n in range(1, THOUGHT // LINE + 1)))


def test_a_stop_at_once_costs_its_thought_the_answer_and_the_probes_so_far() -> None:
    costs = thought_costs(audit(probe=2))
    assert costs[:-1] == pytest.approx([LINE * n + ANSWER + 2 * n for n in range(1, 10)])
    assert costs[-1] == THOUGHT + ANSWER + 2 * 10, "a run that is not stopped pays all of its probes"


def test_what_is_generated_until_the_second_call_opens_is_paid_and_a_late_stop_saves_nothing() -> None:
    costs = thought_costs(audit(late=30))
    assert costs[0] == LINE + 2 * 30 + ANSWER, "the second call is expected to open as slowly as the probe answered"
    assert (costs[3:] == THOUGHT + ANSWER).all(), "dropped behind the end of its thought"


def test_probes_that_only_an_audit_makes_up_for_are_not_a_live_runs() -> None:
    never_in_time = run(*(step(n, late=THOUGHT + ANSWER - LINE * n, probe=6) for n in range(1, 11)))
    assert thought_costs(never_in_time)[-1] == THOUGHT + ANSWER + 6


@given(late=st.integers(0, 120), probe=st.integers(0, 20))
def test_lateness_never_makes_a_stop_cheaper_than_at_once(late: int, probe: int) -> None:
    at_once = np.array([LINE * n + ANSWER + probe for n in range(1, 11)])
    assert (thought_costs(audit(late=late, probe=probe)) >= np.minimum(at_once, THOUGHT + ANSWER)).all()


def test_usage_that_tells_of_no_thought_is_read_from_the_steps() -> None:
    whole = audit()
    silent = Usage(prompt_tokens=9, completion_tokens=THOUGHT + ANSWER)
    assert (thought_costs(replace(whole, usage=silent)) == thought_costs(whole)).all()
    assert thought_costs(replace(whole, usage=None))[-1] == THOUGHT


def test_the_level_that_costs_tokens_gives_way_to_one_that_saves_or_to_none() -> None:
    runs = replace(
        NO_AUDITS,
        starts=np.array([0, 3, 6]),
        cost=np.array([120.0, 80.0, 110.0, 120.0, 80.0, 110.0]),
        full=np.array([100.0, 100.0]),
    )
    rows, both = np.array([[2, 1, 0], [5, 4, 3]]), np.arange(2)
    assert LiveCost().saved(runs, rows, both).sum(axis=0).tolist() == [0.0, 40.0, -40.0]
    assert LiveCost().paying_level(runs, rows, both, 0.05) == 1
    assert LiveCost().paying_level(runs, rows[:, :2], both, 0.05) == 1
    assert LiveCost(stop_excess=30.0).paying_level(runs, rows, both, 0.05) == 0
    assert LiveCost(audit_overhead=5.0).paying_level(runs, rows, both, 0.05) == 0, "audits cost more than it saves"
    assert LiveCost(objection="dear").paying_level(runs, rows, both, 0.05) == 0
    assert LiveCost(audit_overhead=0.2).of_all(50.0, 100.0, 0.1) == pytest.approx(0.9 * 0.5 - 0.1 * 0.2)
    assert LiveCost().of_all(0.0, 0.0, 0.1) is None


def thinking(lines: int, *, late: int = 0) -> Outcome:
    whole = LINE * lines + ANSWER
    steps = (step(n, late=min(late, whole - LINE * n)) for n in range(1, lines + 1))
    return run(*steps, spent=whole)


def test_what_a_rule_cuts_off_is_compared_with_what_any_run_had_left() -> None:
    # The rule stops the short half of the runs, all after their first line.
    runs, stops = [thinking(5), thinking(10)] * 20, np.array([0, -1] * 20)
    assert remaining_ratio(runs, stops) == pytest.approx((55 - 10) / (80 - 10))
    assert remaining_ratio(runs[:30], stops[:30]) is None, "too few stops"
    assert remaining_ratio(runs, np.zeros(40, np.int64)) == pytest.approx(1.0)
    assert remaining_ratio([], np.zeros(0, np.int64)) is None


@given(late=st.integers(0, 30), lines=st.lists(st.integers(2, 12), min_size=80, max_size=80), seed=st.integers(0, 99))
def test_estimates_of_full_runs_from_their_cuts_add_up_to_the_truth(late: int, lines: list[int], seed: int) -> None:
    """As a gateway estimates them: by the runs that thought longer than the cut, a hand-over after the step."""
    runs, dice = [thinking(n, late=late) for n in lines], np.random.default_rng(seed)
    stops = np.array([int(dice.integers(-1, n - 1)) for n in lines])
    ratio, lengths = remaining_ratio(runs, stops), RunLengths()
    estimated = truth = 0.0
    for one in runs:
        assert one.usage is not None
        lengths.add(one.usage)
    for one, stop in zip(runs, stops.tolist(), strict=True):
        assert one.usage is not None
        cut = LINE * (stop + 1) + 2 * late
        if stop >= 0 and cut < one.usage.reasoning_tokens:
            remaining = lengths.remaining(cut)
            assume(remaining is not None)
            assert remaining is not None
            estimated += cut + remaining.tokens * (ratio or 1.0)
            truth += one.usage.completion_tokens
    assume(ratio is not None)
    assert estimated == pytest.approx(truth)


# --------------------------------------------------------------------------- live runs


def watching(n_audits: int = 100, *, probe: int = 2) -> LiveCosts:
    costs = LiveCosts()
    for _ in range(n_audits):
        costs.add_audit(audit(probe=probe))
    return costs


def served(n: int, costs: LiveCosts, *, spent: int, stop_step: int | None = 3) -> int:
    """Add runs until the first objection, at most n; return how many were added."""
    request = plain_request("e", mode="enforce")
    steps = [step(k, probe=2) for k in range(1, 4)]
    for at in range(n):
        if costs.at(float(at)).objection:
            return at
        costs.add_live(request, run(*steps, spent=spent, stop_step=stop_step), at=float(at))
    return n


@pytest.mark.parametrize("more", [0.12, 0.17, 0.5])
def test_live_runs_that_cost_more_than_full_runs_are_noticed_within_200(more: float) -> None:
    costs = watching()
    n = served(400, costs, spent=round((THOUGHT + ANSWER) * (1 + more)) - 6)
    assert n <= 200
    assert "more tokens than full runs" in costs.at(float(n)).objection


def test_live_runs_that_save_are_left_alone_and_correct_what_audits_say() -> None:
    costs = watching()
    assert served(3_000, costs, spent=70) == 3_000
    expected = stop_cost(run(*(step(k, probe=2) for k in range(1, 4)), stop_step=3), ANSWER)
    assert expected == 3 * LINE + 6 + ANSWER
    assert costs.at(0.0).stop_excess == pytest.approx(70 + 6 - expected, rel=0.05)
    assert costs.at(0.0).audit_overhead == pytest.approx(20 / (THOUGHT + ANSWER))


def test_probes_that_stops_do_not_pay_for_are_an_objection_from_few_audits_alone() -> None:
    assert not watching(15, probe=6).at(0.0).objection, "too few to say so"
    assert "stops save too little" in watching(16, probe=60).at(0.0).objection
    assert "stops save too little" in watching(4, probe=60).at(0.0).objection, "they cost as much as 8 full runs"
    assert not watching(60, probe=2).at(0.0).objection


def test_what_live_runs_cost_they_show_themselves() -> None:
    costs = watching(20, probe=60)
    assert costs.at(0.0).objection
    served(2, costs, spent=70)
    costs.add_live(plain_request("e", mode="enforce"), run(step(1), spent=70, stop_step=1), at=0.0)
    assert not costs.at(0.0).objection


@pytest.mark.parametrize(
    ("probe", "answers", "pays"), [(1, "4", True), (6, "4", True), (60, "4", False), (1, "", False)]
)
def test_a_trial_bounds_what_a_burst_spends_before_stops_are_known_to_pay(probe: int, answers: str, pays: bool) -> None:
    """Requests come at once, or one by one; a thought whose trial answers never repeat themselves cannot be stopped."""
    for at_once in (1, 8, 3_000):
        trial, spent, full, dice = SavingTrial(), 0.0, 0.0, np.random.default_rng(1)
        for first in range(0, 3_000, at_once):
            drawn = 0
            for _ in range(first, min(3_000, first + at_once)):
                full += THOUGHT + ANSWER
                is_audit = dice.random() < trial.share
                drawn += is_audit
                trial.n_begun += is_audit
            for _ in range(drawn):
                one = audit(probe=probe)
                if not answers:
                    one = replace(one, steps=tuple(replace(s, answer=str(s.index)) for s in one.steps))
                spent += one.overhead.probe_tokens
                trial.add(one)
        assert trial.fails is not pays
        if at_once < 3_000:
            assert (trial.share == 1.0) is pays
            assert pays or spent <= 0.01 * full


@pytest.mark.parametrize("seed", range(8))
def test_a_trial_that_stays_undecided_costs_about_a_hundredth_of_3000_requests(seed: int) -> None:
    """Some thoughts repeat an answer at once, others never, and on average a stop gains nothing."""
    trial, spent, full, dice = SavingTrial(), 0.0, 0.0, np.random.default_rng(seed)
    early = audit(probe=5)
    never = replace(early, steps=tuple(replace(one, answer=str(one.index)) for one in early.steps))
    overhead = early.overhead.probe_tokens
    gains = [THOUGHT + ANSWER - thought_costs(one)[at] - overhead / 8 for one, at in ((early, 1), (never, -1))]
    p_early = gains[1] / (gains[1] - gains[0])
    for _ in range(3_000):
        full += THOUGHT + ANSWER
        if dice.random() < trial.share:
            trial.n_begun += 1
            one = early if dice.random() < p_early else never
            spent += one.overhead.probe_tokens
            trial.add(one)
    assert spent < 0.011 * full, (trial.n_begun, trial.fails)


def test_a_run_whose_cost_says_nothing_is_left_out() -> None:
    costs, request = watching(), plain_request("e", mode="enforce")
    before = costs.at(0.0)
    costs.add_live(plain_request("e", kind="samples"), run(step(1)), at=1.0)
    costs.add_live(request, replace(audit(), usage=None), at=1.0)
    costs.add_audit(replace(audit(), usage=None))
    assert costs.at(0.0) == before
    assert stop_cost(run(step(1)), ANSWER) is None
