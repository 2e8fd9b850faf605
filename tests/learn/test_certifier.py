"""The certifier proves before it stops, on evidence that has come in this regime, and lets go when it is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from suffice.arrays import Bools, Floats
from suffice.assurance.certify import STARTS, STRETCH, certified_level, weighted_log_wealth
from suffice.certification.certificate import SWING, Certificate, pending_audits
from suffice.certification.certifier import KEPT_BEFORE, Certifier
from suffice.certification.evidence import SLOW_MARGIN, Change, Evidence, RunDurations
from suffice.certification.plan import BURST_PART, HORIZON, Plan, full_runs
from suffice.learn.audits import AuditRuns
from suffice.learn.version import N_FOLDS, FoldedModels, Learner, PGood, cut_levels, fit_served, level_risk
from tests.learn.runs_made import audits, believing, fit_learned

PLAN = Plan(max_em_drop=0.02, warm_up=400, burst=400, n_levels=9, refit_every=400, watches_signals=False)
PERIOD = 100


def fed(certifier: Certifier, runs: AuditRuns, *, begin: int = 0, **more: Any) -> list[Change]:
    """Give the keeper all runs, a period at a time; what changed."""
    changes = list[Change]()
    for at in range(0, len(runs), PERIOD):
        block = np.arange(at, min(at + PERIOD, len(runs)))
        certifier.add_audits(runs.take(block))
        changes += certifier.look(Evidence(at=float(begin + block[-1] + 1), **more)).changes
    return changes


def two_steps(n: int, *, lost: float, gap: bool = False, first: int = 0, seed: int = 0, **more: Any) -> AuditRuns:
    """Runs of two steps; a stop at the first loses with chance `lost`. With `gap` the score tells which."""
    rng = np.random.default_rng(seed)
    loses = rng.random(n) < lost
    score = np.where(loses & gap, 0.1, 0.9) + rng.uniform(-0.05, 0.05, n)
    return audits([[s, s] for s in score.tolist()], z=[[int(x), 0] for x in loses.tolist()], first=first, **more)


def test_it_begins_cold_and_every_request_is_an_audit_until_the_warm_up_is_over() -> None:
    certifier = Certifier(PLAN, believing)
    runs = two_steps(1_200, lost=0.0)
    assert certifier.share == 1.0
    fed(certifier, runs.take(np.arange(300)))
    assert (certifier.level, certifier.share, certifier.served) == (0, 1.0, None)
    fed(certifier, runs.take(np.arange(300, 1_200)), begin=300)
    assert certifier.level > 0
    assert certifier.share < 1


@pytest.mark.parametrize("free_audits", [True, False])
def test_behind_the_burst_audits_are_thin_as_soon_as_a_level_is_certified_or_where_they_cost_something(
    free_audits: bool,
) -> None:
    certifier = Certifier(replace(PLAN, free_audits=free_audits, share=0.5, window=300), believing)
    shares, begin = list[tuple[bool, float]](), 0
    for begin in range(0, 2_400, PERIOD):
        shares.append((certifier.level > 0, certifier.share))
        n = round(PERIOD * certifier.share)
        runs = two_steps(n, lost=0.5 if begin < 800 else 0.0, first=begin)
        certifier.add_audits(drawn_at(runs, np.linspace(begin, begin + PERIOD - 1, n).tolist(), certifier.share))
        certifier.look(Evidence(at=float(begin + PERIOD)))
    assert [share for _, share in shares[:4]] == [1.0] * 4, "the burst"
    assert not any(certified for certified, _ in shares[:8])
    behind = 1.0 if free_audits else 0.5
    assert {share for certified, share in shares[4:] if not certified} == {behind}
    assert {share for certified, share in shares if certified} == {0.5}


@pytest.mark.parametrize(
    ("max_em_drop", "horizon", "n"),
    [
        (0.02, HORIZON, 1_200),
        (0.01, HORIZON, 2_400),
        (0.05, HORIZON, 480),  # by the budget alone
        (0.001, 10_000, int(10_000 * BURST_PART)),
        (0.01, 1_000, int(1_000 * BURST_PART)),
        (0.02, 2, 1),
    ],
)  # or by a part
def test_a_burst_is_as_long_as_the_budget_is_small_and_a_short_horizon_is_not_spent_on_it(
    max_em_drop: float, horizon: float, n: int
) -> None:
    assert full_runs(max_em_drop, horizon) == n
    assert n <= horizon / 2


def memorising(x: Floats, good: Bools, _weight: Floats) -> PGood:
    """A learner that knows every run it has seen by heart, and of others what their neighbour would say."""
    order = np.argsort(x[:, 1], kind="stable")
    known, of_it = x[order, 1], good[order]

    def p_good(rows: Floats) -> Floats:
        at = np.minimum(np.searchsorted(known, rows[:, 1]), len(known) - 1)
        return np.where(of_it[at], 1.0, 0.0)

    return p_good


def fit_naive(runs: AuditRuns, learner: Learner, *, n_levels: int, cost_exponent: float, **_: object) -> FoldedModels:
    """What must not be done: one model, judged on the audits that it learned from."""
    example = np.ones(len(runs.x), dtype=bool)
    example[runs.last] = False
    model = learner(runs.x[example], runs.z[example] <= 0, np.ones(int(example.sum())))
    levels = cut_levels(level_risk(1 - model(runs.x), runs, cost_exponent), runs, n_levels)
    return FoldedModels(models=(model,) * N_FOLDS, levels=np.stack([levels] * N_FOLDS), cost_exponent=cost_exponent)


@pytest.mark.parametrize("seed", range(8))
def test_a_model_that_knows_its_runs_by_heart_certifies_nothing_and_would_if_it_judged_them(seed: int) -> None:
    runs = two_steps(1_500, lost=0.1, seed=seed)
    honest, naive = Certifier(PLAN, memorising, fit=fit_learned), Certifier(PLAN, memorising, fit=fit_naive)
    assert not [change for change in fed(honest, runs) if change.kind == "certified"]
    fed(naive, runs.take(np.arange(400)))  # to the first look: later audits, which it has not seen, betray it
    assert naive.level > 0
    fresh = two_steps(2_000, lost=0.1, seed=seed + 100, first=10_000)
    assert naive.served is not None
    drop = float(fresh.z[naive.served.rows_at(fresh, naive.level)].mean())
    assert drop > 2 * PLAN.max_em_drop, "and it would have broken the promise"


@pytest.mark.parametrize("seed", range(8))
def test_a_score_that_tells_loss_from_none_is_certified_just_up_to_where_loss_begins(seed: int) -> None:
    runs = two_steps(1_500, lost=0.15, gap=True, seed=seed)
    certifier = Certifier(PLAN, believing)
    fed(certifier, runs)
    assert certifier.level > 0
    assert certifier.served is not None
    rows = certifier.served.rows_at(runs, certifier.level)
    assert float(runs.z[rows].mean()) <= PLAN.max_em_drop
    assert (rows < runs.last).mean() > 0.5


def test_nothing_is_certified_by_labels_that_have_not_come() -> None:
    """Every stop disagrees and loses nothing, which only labels can tell."""
    n = 1_200
    runs = audits([[0.9, 0.9]] * n, z=[[0, 0]] * n, d=[[True, False]] * n, label_at=5_000.0)
    other = replace(runs, z=np.where(np.arange(2 * n) % 2 == 0, np.int8(-1), np.int8(0)))
    for one in (runs, other):
        certifier = Certifier(PLAN, believing)
        fed(certifier, one)
        assert certifier.level == 0, "whatever the labels will say"
        certifier.look(Evidence(at=4_999.0))
        assert certifier.level == 0
        certifier.look(Evidence(at=5_000.0))
        assert certifier.level > 0, "and at once when they are there"


def test_without_labels_disagreement_stands_for_the_drop() -> None:
    n = 1_200
    agreeing = audits([[0.9, 0.9]] * n, label_at=np.inf)
    certifier = Certifier(replace(PLAN, label_free=True), believing)
    fed(certifier, agreeing)
    assert certifier.level > 0
    gained = audits([[0.9, 0.9]] * n, z=[[-1, 0]] * n)
    certifier = Certifier(replace(PLAN, label_free=True), believing)
    fed(certifier, gained)
    assert certifier.level == 0, "a label is not looked at even where it is there"


def test_an_audit_counts_when_its_time_is_over_and_a_missing_label_is_a_loss() -> None:
    n = 800
    runs = replace(
        audits([[0.5, 0.5]] * n, z=[[-1, 0]] * n), label_at=np.where(np.arange(n) % 2 == 0, np.arange(n) + 50.0, np.inf)
    )
    at_once = FoldedModels(
        models=(lambda x: x[:, 1],) * N_FOLDS, levels=np.array([[-np.inf, 1.0]] * N_FOLDS), cost_exponent=0.0
    )
    certifier = Certifier(replace(PLAN, label_timeout=200.0), believing, began=700.0)
    certifier.adopt(at_once, runs)
    outcomes = certifier.outcomes()
    assert outcomes is not None
    counts, losses = outcomes
    assert np.array_equal(counts, runs.at <= 500)
    assert np.array_equal(losses[counts][:, 1], np.where(np.arange(501) % 2 == 0, -1, 1))
    assert not losses[:, 0].any()
    broken = replace(runs, abandoned=np.ones(n, dtype=bool))
    losses = broken.losses(at_once.rows(broken), now=700.0)
    assert (losses[:, 1:] == 1).all(), "an audit that was broken off is a loss at every level"
    assert not losses[:, 0].any(), "but for the one that never stops"


def test_only_the_newest_audits_certify_once_they_fill_the_window() -> None:
    old, new = two_steps(800, lost=0.2), two_steps(800, lost=0.0, first=800)
    certifier = Certifier(replace(PLAN, window=500, share=1.0), believing, fit=fit_learned)
    fed(certifier, old)
    assert certifier.level == 0
    fed(certifier, new, begin=800)
    assert certifier.level > 0
    remembering = Certifier(replace(PLAN, window=10_000, share=1.0), believing, fit=fit_learned)
    fed(remembering, old)
    fed(remembering, new, begin=800)
    assert remembering.level == 0


def test_split_in_half_only_the_other_half_certifies() -> None:
    runs = two_steps(1_500, lost=0.0)
    odd = runs.fold % 2 == 1
    harmed = replace(runs, z=np.where(odd[runs.run_of_row] & (np.arange(3_000) % 2 == 0), np.int8(1), np.int8(0)))
    spared = replace(runs, z=np.where(~odd[runs.run_of_row] & (np.arange(3_000) % 2 == 0), np.int8(1), np.int8(0)))
    levels = []
    for one in (harmed, spared):
        certifier = Certifier(replace(PLAN, split="half", watches_outcomes=False), believing)
        fed(certifier, one)
        levels.append(certifier.level)
    assert levels[0] == 0
    assert levels[1] > 0


def test_when_the_deployed_level_begins_to_lose_everything_runs_in_full_and_the_old_world_is_no_evidence() -> None:
    certifier = Certifier(PLAN, believing)
    fed(certifier, two_steps(1_500, lost=0.0))
    assert certifier.level > 0
    changes = fed(certifier, two_steps(PERIOD, lost=0.9, first=1_500, seed=1), begin=1_500)
    assert [change.kind for change in changes] == ["alarm", "epoch"]
    assert (certifier.level, certifier.in_burst, certifier.share, certifier.epoch.n_audits, certifier.served) == (
        0,
        True,
        1.0,
        0,
        None,
    )
    fed(certifier, two_steps(800, lost=0.9, first=1_600, seed=2), begin=1_600)
    assert certifier.level == 0, "the world after is judged by itself"
    again = Certifier(PLAN, believing)
    fed(again, two_steps(1_500, lost=0.0))
    fed(again, two_steps(PERIOD, lost=0.9, first=1_500, seed=1), begin=1_500)
    fed(again, two_steps(800, lost=0.0, first=1_600, seed=2), begin=1_600)
    assert again.level > 0, "and a good one is certified anew"


def test_an_alarm_on_signals_keeps_the_audits_of_the_last_requests_alone() -> None:
    certifier = Certifier(replace(PLAN, watches_signals=True), believing)
    rng = np.random.default_rng(0)
    runs = two_steps(2_500, lost=0.0)
    alarms: list[int] = []
    for begin in range(0, 2_500, PERIOD):
        certifier.add_audits(runs.take(np.arange(begin, begin + PERIOD)))
        moved = 0.0 if begin < 2_000 else 1.0
        signals = moved + 0.1 * rng.standard_normal((100, 4))
        if certifier.look(Evidence(at=float(begin + PERIOD), signals=[signals])).alarm:
            alarms.append(begin)
            assert certifier.epoch.n_audits == KEPT_BEFORE
            assert certifier.in_burst
            assert certifier.level == 0
    assert alarms
    assert 2_000 <= alarms[0] < 2_300


def test_a_reset_by_hand_forgets_everything() -> None:
    certifier = Certifier(PLAN, believing)
    fed(certifier, two_steps(1_500, lost=0.0))
    assert certifier.reset("another model")[0].reason == "another model"
    assert (certifier.level, certifier.in_burst, certifier.epoch.n_audits, certifier.served) == (0, True, 0, None)


@pytest.mark.parametrize("worse_first", [True, False])
def test_a_new_version_serves_only_if_it_saves_as_much(worse_first: bool) -> None:
    order: Sequence[bool] = [worse_first, not worse_first, *[True] * 10]
    fits = iter(order)

    def fit(runs: AuditRuns, learner: Learner, **options: Any) -> FoldedModels | None:
        served = fit_served(runs, learner, **options)
        assert served is not None
        return replace(served, levels=np.full_like(served.levels, -np.inf)) if next(fits) else served

    certifier = Certifier(PLAN, believing, fit=fit)
    fed(certifier, two_steps(1_600, lost=0.0))
    assert certifier.level > 0, "a version that stops nothing never replaces one that does"
    assert certifier.served is not None
    assert np.isfinite(certifier.served.levels[:, 1:]).any()


def test_an_alarm_on_signals_keeps_few_audits_where_few_of_the_requests_were_audited() -> None:
    certifier = Certifier(replace(PLAN, watches_signals=True), believing)
    runs = two_steps(2_000, lost=0.0)
    for begin in range(0, 2_000, PERIOD):
        certifier.add_audits(runs.take(np.arange(begin, begin + PERIOD, 1 if begin < 400 else 20)))
        certifier.look(Evidence(at=float(begin + PERIOD)))
    certifier.reset("signals", keep=KEPT_BEFORE)
    assert certifier.epoch.n_audits == 3 * PERIOD // 20, "requests are counted, not audits"


# --------------------------------------------------------------------------- what a certificate rests on


def looked(certifier: Certifier) -> Certificate:
    """What the last look of the keeper rests on."""
    assert certifier.epoch.certificate is not None
    return certifier.epoch.certificate


def drawn_at(runs: AuditRuns, at: Sequence[float], share: float) -> AuditRuns:
    """The same runs, begun at these requests and drawn at this share."""
    began = np.array(at, dtype=np.float64)
    return replace(runs, at=began, label_at=began, share=np.full(len(runs), share))


def served_thinly(n_requests: int, *, lost: float = 0.0, seed: int = 0) -> Certifier:
    """A keeper behind a burst of 400, whose later audits are every twentieth request."""
    certifier = Certifier(replace(PLAN, window=300), believing)
    fed(certifier, two_steps(400, lost=0.0))
    for begin in range(400, n_requests, PERIOD):
        few = two_steps(PERIOD // 20, lost=lost, first=begin, seed=seed + begin)
        certifier.add_audits(drawn_at(few, range(begin, begin + PERIOD, 20), 0.05))
        certifier.look(Evidence(at=float(begin + PERIOD)))
    return certifier


def test_a_certificate_looks_at_the_audits_of_its_window_and_at_nothing_else() -> None:
    certifier = served_thinly(2_000)
    certificate = looked(certifier)
    assert certificate.window is not None
    assert (certificate.window.start, certificate.window.end, certificate.window.share) == (0.0, 400.0, 1.0), (
        "thin ones are too few yet"
    )
    assert np.array_equal(np.flatnonzero(certificate.inside), np.arange(400))
    assert (certificate.weight == 1).all()

    certifier = served_thinly(9_000)
    certificate = looked(certifier)
    assert certificate.window is not None
    assert certificate.window.share == 0.05
    assert certificate.window.start >= 400, "and then the burst is forgotten"
    assert certifier.epoch.windows.known[0].share == 1.0
    n_inside = int(certificate.inside.sum())
    assert 300 <= n_inside <= 300 * (STRETCH + 1 / STARTS) + 1
    assert certificate.inside[-n_inside:].all()


def test_the_wealth_is_that_of_the_audits_of_the_window_with_their_weights_and_the_level_follows_from_it() -> None:
    """A share that rises by less than a half stays in its window, and each of its audits weighs the less."""
    certifier = Certifier(replace(PLAN, window=300), believing)
    fed(certifier, two_steps(400, lost=0.0))
    for begin in range(400, 9_000, PERIOD):
        share = 0.05 if begin % 200 else 0.08
        few = two_steps(round(PERIOD * share), lost=0.0, first=begin)
        certifier.add_audits(drawn_at(few, np.linspace(begin, begin + PERIOD - 1, len(few)).tolist(), share))
        certifier.look(Evidence(at=float(begin + PERIOD)))
    certificate = looked(certifier)
    assert set(certificate.weight.round(9).tolist()) == {1.0, 0.625}
    wealth = weighted_log_wealth(certificate.z, certificate.weight, max_em_drop=PLAN.max_em_drop)
    assert np.array_equal(certificate.log_e, wealth)
    assert certificate.level == certifier.level == certified_level(wealth, delta=PLAN.delta)
    assert certifier.level > 0


def test_an_audit_that_has_not_returned_counts_as_lost_at_every_level_above_0() -> None:
    certifier = Certifier(replace(PLAN, share=1.0, window=1_000), believing)
    runs = two_steps(1_000, lost=0.0)
    fed(certifier, runs.take(np.arange(900)))
    free = certifier.level
    assert free > 0
    certifier.add_audits(runs.take(np.arange(900, 960)))
    hanging = pending_audits([(960 + number, 1.0) for number in range(40)])
    certifier.look(Evidence(at=1_000.0, pending=hanging))
    certificate = looked(certifier)
    assert certificate.n_pending == 40
    assert (certificate.z[-40:, 1:] == 1).all()
    assert not certificate.z[:, 0].any()
    assert certifier.level == 0, "40 lost of 1,000 are twice the budget"
    certifier.add_audits(runs.take(np.arange(960, 1_000)))
    for n_looks in range(1, free // SWING + 2):
        certifier.look(Evidence(at=1_000.0))
        assert certifier.level == min(free, n_looks * SWING), "and once they are back they count as what they show"
    assert looked(certifier).n_pending == 0


def test_what_was_asked_before_a_run_times_out_is_claimed_without_those_that_run_still() -> None:
    """Audits take 50 requests: a claim about all that began 50 requests ago has none that is pending."""
    certifier, durations = Certifier(PLAN, believing), RunDurations()
    runs = two_steps(1_000, lost=0.0)
    for now in range(PERIOD, 1_001, PERIOD):
        begun = np.arange(max(0, now - PERIOD - 50), now - 50)
        certifier.add_audits(runs.take(begun))
        durations.add([50.0] * len(begun))
        pending = pending_audits([(number, 1.0) for number in range(now - 50, now)])
        certifier.look(Evidence(at=float(now), pending=pending, run_timeout=durations.timeout))
    assert durations.timeout == SLOW_MARGIN * 50
    certificate = looked(certifier)
    assert certificate.until == 1_000 - durations.timeout
    assert certificate.n_pending == 0
    assert certifier.level > 0


def test_audits_that_hang_for_good_are_lost_for_good() -> None:
    certifier, durations = Certifier(PLAN, believing), RunDurations()
    runs = two_steps(1_200, lost=0.0)
    hanging = np.arange(1_200) % 25 == 0
    for now in range(PERIOD, 1_201, PERIOD):
        block = np.arange(now - PERIOD, now)
        certifier.add_audits(runs.take(block[~hanging[block]]))
        durations.add([1.0] * int((~hanging[block]).sum()))
        pending = pending_audits([(number, 1.0) for number in np.flatnonzero(hanging[:now]).tolist()])
        certifier.look(Evidence(at=float(now), pending=pending, run_timeout=durations.timeout))
    assert certifier.level == 0, "4 % of the audits never return"


def test_the_order_in_which_audits_return_changes_nothing() -> None:
    runs = two_steps(1_200, lost=0.015, gap=True)
    first, second = Certifier(PLAN, believing), Certifier(PLAN, believing)
    for now in range(PERIOD, 1_201, PERIOD):
        block = np.arange(now - PERIOD, now)
        for certifier, order in ((first, block), (second, np.random.default_rng(now).permutation(block))):
            certifier.add_audits(runs.take(order))
            certifier.look(Evidence(at=float(now)))
        assert np.array_equal(first.epoch.log_e, second.epoch.log_e)
        assert first.level == second.level
    assert first.level > 0


def test_a_charge_is_taken_off_the_budget_of_the_level_that_it_is_charged_to() -> None:
    certifier = Certifier(PLAN, believing)
    fed(certifier, two_steps(900, lost=0.0))
    assert certifier.served is not None
    n_levels = certifier.served.n_levels
    assert certifier.level == n_levels - 1
    charge = np.zeros(n_levels)
    charge[3:] = 0.019
    certifier.look(Evidence(at=900.0, charge=lambda _: charge))
    assert certifier.level == 2, "900 audits prove less than 2 % and not less than 0.1 %"
    certifier.look(Evidence(at=900.0, charge=lambda _: PLAN.max_em_drop))
    assert certifier.level == 0, "where nothing of the budget is left nothing passes"


# --------------------------------------------------------------------------- labels that come late


def late_and_harmless(n: int, *, first: int = 0) -> AuditRuns:
    """Every fourth stop disagrees, and its label, which comes 500 requests later, says that nothing was lost."""
    differs = (np.arange(first, first + n) % 4 == 0).tolist()
    made = audits([[0.9, 0.9]] * n, z=[[0, 0]] * n, d=[[differing, False] for differing in differs], first=first)
    return replace(made, label_at=made.at + 500.0)


def test_what_a_label_may_still_deny_is_no_outcome_yet() -> None:
    """Certified while labels came at once; then they are late, and until they come every fourth audit looks lost."""
    plan = replace(PLAN, label_timeout=0.0, max_em_drop=0.05)
    certifier = Certifier(plan, believing)
    at_once = late_and_harmless(1_000)
    fed(certifier, replace(at_once, label_at=at_once.at))
    assert certifier.level > 0
    late = late_and_harmless(1_000, first=1_000)  # so few are old enough that all of them certify, as lost
    changes = fed(certifier, late, begin=1_000, label_timeout=900.0)
    assert not [change for change in changes if change.kind == "alarm"]


def test_a_loss_is_heard_once_its_time_is_over() -> None:
    plan = replace(PLAN, label_timeout=300.0, max_em_drop=0.05)
    certifier = Certifier(plan, believing)
    fed(certifier, two_steps(1_500, lost=0.0))
    assert certifier.level > 0
    silent = replace(two_steps(600, lost=0.9, first=1_500, seed=1), d=np.zeros(1_200, dtype=bool))
    changes = fed(certifier, silent, begin=1_500)
    first = next(change.at for change in changes if change.kind == "alarm")
    assert 1_800 < first <= 2_000
