"""The budgeted mode of a keeper accounts for every audit, never goes below what is certified, and is off without it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.assurance.certify import Counts
from suffice.certification.certificate import DROP_PER_DISAGREEMENT, ETA, Spender
from suffice.certification.certifier import Certifier
from suffice.certification.evidence import Evidence
from suffice.certification.plan import Plan
from suffice.learn.audits import AuditRuns
from suffice.learn.version import N_FOLDS, FoldedModels
from suffice.types import BudgetAccount
from tests.drawn import examples
from tests.learn.runs_made import audits, believing

N_LEVELS = 5
LEVELS = np.array([-np.inf, 0.2, 0.4, 0.6, 0.8])  # of 1 - score, a step costs nothing here
SERVED = FoldedModels(
    models=(lambda rows: rows[:, 0],) * N_FOLDS, levels=np.tile(LEVELS, (N_FOLDS, 1)), cost_exponent=0.0
)
CLEAN = Counts(np.zeros(N_LEVELS, int), np.full(N_LEVELS, 100), np.zeros(N_LEVELS, int))


def counts(lost: list[int]) -> Counts:
    lost_at = np.array(lost)
    return Counts(0 * lost_at, 100 - lost_at, lost_at)


def booked(
    here: Spender,
    runs: AuditRuns,
    *,
    level: int,
    max_em_drop: float = 0.02,
    now: float = 0.0,
    timeout: float = 0.0,
    label_free: bool = False,
) -> Spender:
    here.book(
        runs,
        SERVED.rows(runs),
        level=level,
        max_em_drop=max_em_drop,
        now=now,
        timeout=timeout,
        label_free=label_free,
    )
    return here


def running(level: int = 1) -> Spender:
    here = Spender()
    assert here.place(CLEAN, certified=level, max_em_drop=0.02) == level
    return here


def gap(here: Spender) -> float:
    """How far the identity of guarantee B is from holding, under budgets that may have moved."""
    spent, n = here.integrator, here.account.n_audits
    assert spent is not None
    assert here.account.em_drop is not None
    assert here.account.max_em_drop is not None
    moved = (spent.started - spent.theta + spent.clipped) / (ETA * n)
    return here.account.em_drop - here.account.max_em_drop - moved


@settings(max_examples=examples(40))
@given(
    looks=st.lists(
        st.tuples(
            st.lists(st.sampled_from(["same", "harmless", "lost", "silent"]), max_size=12),
            st.integers(1, 4),
            st.sampled_from([0.01, 0.02, 0.05]),
        ),
        min_size=1,
        max_size=12,
    ),
    first=st.integers(1, 4),
)
def test_the_account_explains_itself_whatever_happens_and_however_the_budget_moves(
    looks: list[tuple[list[str], int, float]], first: int
) -> None:
    here, level, outcomes = running(first), first, list[str]()
    for new, affordable, budget in looks:
        outcomes += new
        z = [[int(what in {"lost", "silent"}), 0] for what in outcomes]
        runs = (
            audits([[0.9, 0.9]] * len(outcomes), z=z, d=[[what != "same", False] for what in outcomes])
            if outcomes
            else None
        )
        if runs is not None:
            known = np.array([np.inf if what == "silent" else 0.0 for what in outcomes])
            runs = replace(runs, label_at=known)
            booked(here, runs, level=level, max_em_drop=budget, now=float(len(outcomes)), timeout=5)
        lost = [0] * (affordable + 1) + [50] * (N_LEVELS - affordable - 1)
        level = here.place(counts(lost), certified=1, max_em_drop=budget)
        assert 1 <= level <= max(1, affordable)
        if here.account.n_audits:
            assert gap(here) == pytest.approx(0, abs=1e-12)
    assert here.account.n_audits == len(outcomes)


def test_before_anything_is_certified_nothing_is_booked_and_everything_runs_in_full() -> None:
    here = booked(Spender(), audits([[0.9, 0.9]] * 20), level=0)
    assert here.place(CLEAN, certified=0, max_em_drop=0.02) == 0
    assert here.account == BudgetAccount(
        floor=0, affordable=0, n_audits=0, n_waiting=0, em_drop=None, max_em_drop=None, clipped=0.0
    )
    assert here.place(CLEAN, certified=2, max_em_drop=0.02) == 2
    assert booked(here, audits([[0.9, 0.9]] * 25), level=2).account.n_audits == 5, "those of before are not its own"


def test_where_the_certificate_goes_the_level_goes_with_it() -> None:
    here = booked(running(), audits([[0.9, 0.9]] * 60), level=1)
    assert here.place(CLEAN, certified=1, max_em_drop=0.02) > 1
    assert here.place(CLEAN, certified=0, max_em_drop=0.02) == 0, "nothing proved, nothing stopped"
    assert here.place(CLEAN, certified=1, max_em_drop=0.02) == 1
    assert gap(here) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("label_at", "now", "z", "waiting"),
    [(0.0, 10.0, 0, 0), (np.inf, 10.0, None, 1), (np.inf, 99.0, 1, 0)],
    ids=["labelled", "waits", "late"],
)
def test_a_label_settles_what_a_disagreement_cost_and_one_that_never_comes_is_a_loss(
    label_at: float, now: float, z: int | None, waiting: int
) -> None:
    runs = replace(audits([[0.9, 0.9]], z=[[0, 0]], d=[[True, False]]), label_at=np.array([label_at]))
    here = booked(running(), runs, level=1, now=now, timeout=50)
    assert here.account.n_waiting == waiting
    assert here.account.em_drop == pytest.approx(DROP_PER_DISAGREEMENT if z is None else z)


def test_without_labels_a_disagreement_is_a_loss_at_once_and_so_is_an_audit_that_was_left() -> None:
    runs = audits([[0.9, 0.9]] * 4, d=[[True, False]] + [[False, False]] * 3)
    assert booked(running(), runs, level=1, label_free=True).account.em_drop == pytest.approx(0.25)
    left = replace(runs, abandoned=np.array([False, True, False, False]), label_at=np.zeros(4))
    assert booked(running(), left, level=1).account.em_drop == pytest.approx(0.25), "left: lost; the other: harmless"


def test_a_label_counts_at_the_stop_that_was_in_force_when_the_audit_came() -> None:
    """Level 1 would stop at the second step, where nothing is lost; level 4 at the first, where all is."""
    runs = audits([[0.3, 0.9, 0.9]], z=[[1, 0, 0]], d=[[True, True, False]])
    for level, lost in ((1, 0.0), (4, 1.0)):
        here = booked(running(level), replace(runs, label_at=np.array([np.inf])), level=level, timeout=50)
        assert here.account.n_waiting == 1
        here.place(CLEAN, certified=2, max_em_drop=0.02)  # the level moves before the label lands
        assert booked(here, runs, level=2, now=1.0, timeout=50).account.em_drop == pytest.approx(lost)


def test_audits_that_are_forgotten_while_they_wait_count_as_lost() -> None:
    runs = replace(audits([[0.9, 0.9]] * 3, d=[[True, False]] * 3), label_at=np.full(3, np.inf))
    here = booked(running(), runs, level=1, timeout=50)
    here.drop_oldest(2)
    assert here.account.n_waiting == 1
    assert here.account.em_drop == pytest.approx((1 + 1 + 0.45) / 3)
    assert booked(here, replace(runs.take(np.array([2])), label_at=np.zeros(1)), level=1).account.n_waiting == 0
    assert gap(here) == pytest.approx(0, abs=1e-12)


# --------------------------------------------------------------------------- inside the keeper

PLAN = Plan(
    max_em_drop=0.05,
    warm_up=300,
    burst=300,
    n_levels=9,
    refit_every=300,
    watches_signals=False,
    watches_outcomes=False,
    cost_exponent=0.0,
)


def traffic(n: int, seed: int) -> AuditRuns:
    """Runs of three steps; a stop at the first loses with a chance that grows as its score falls."""
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0.5, 1.0, n)
    lost = rng.random(n) < 0.4 * (1 - scores) ** 1.2
    return audits([[s, 1.0, 1.0] for s in scores], z=[[int(one), 0, 0] for one in lost])


def lived(plan: Plan, runs: AuditRuns) -> tuple[Certifier, list[int], list[int]]:
    """The keeper behind all runs, and at each look the level in force and the one that is certified."""
    certifier, levels, floors = Certifier(plan, believing), [], []
    for begin in range(0, len(runs), 100):
        certifier.add_audits(runs.take(np.arange(begin, begin + 100)))
        certifier.look(Evidence(at=float(begin + 100)))
        levels.append(certifier.level)
        floors.append(certifier.level if plan.promise == "certified" else certifier.epoch.spender.floor)
    return certifier, levels, floors


def test_the_keeper_runs_above_what_is_certified_and_certifies_the_same_as_ever() -> None:
    runs = traffic(3_000, 3)
    _, levels, certified = lived(PLAN, runs)
    certifier, budgeted, floors = lived(replace(PLAN, promise="budgeted"), runs)
    assert floors == certified, "the certificate is no other one"
    assert all(mine >= proved for mine, proved in zip(budgeted, certified, strict=True))
    assert sum(budgeted[5:]) > sum(levels[5:])
    account = certifier.epoch.spender.account
    assert account.n_audits > 2_000
    assert gap(certifier.epoch.spender) == pytest.approx(0, abs=1e-9)
    assert abs((account.em_drop or 0) - 0.05) < (9 + 4 + abs(account.clipped)) / (4 * account.n_audits) + 1e-9


def test_a_new_epoch_begins_a_new_account() -> None:
    certifier, *_ = lived(replace(PLAN, promise="budgeted"), traffic(900, 4))
    assert certifier.level > 0
    certifier.reset("another model")
    assert (certifier.level, certifier.epoch.spender.account.n_audits) == (0, 0)
