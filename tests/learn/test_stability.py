"""A certified level stays while its window has passed and the audits still speak for it, and swings seldom."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from suffice.assurance.certify import certified_level
from suffice.certification.certificate import CALM, SWING, Certificate, pending_audits
from suffice.certification.certifier import Certifier
from suffice.certification.evidence import Evidence
from suffice.certification.level_report import summarize_evidence
from suffice.certification.plan import Plan
from suffice.learn.audits import AuditRuns
from tests.learn.runs_made import audits, believing

PLAN = Plan(
    max_em_drop=0.02,
    warm_up=400,
    burst=400,
    window=2_000,
    share=1.0,
    refit_every=1_000_000,
    watches_signals=False,
    watches_outcomes=False,
)
LOOK = 50


def requests(n: int, *, loses: tuple[int, ...] = ()) -> AuditRuns:
    """Runs of two equal steps, numbered from 1; a stop at the first one loses at these requests, whatever the level."""
    return audits([[0.8, 0.8]] * n, z=[[int(at in loses), 0] for at in range(1, n + 1)], first=1)


def looks(certifier: Certifier, runs: AuditRuns, first: int, end: int) -> list[int]:
    """Feed audits from `first` up to `end`; the level after each look."""
    levels = []
    for at in range(first, end, LOOK):
        certifier.add_audits(runs.take(np.arange(at, at + LOOK)))
        certifier.look(Evidence(at=float(at + LOOK)))
        levels.append(certifier.level)
    return levels


def certificate(certifier: Certifier) -> Certificate:
    assert certifier.epoch.certificate is not None
    return certifier.epoch.certificate


def losing_after(n: int, *, lost: int) -> tuple[Certifier, AuditRuns]:
    """A certifier that certifies its last level at request 400, and audits of which `lost` lose from request `n` on."""
    runs = requests(2_000, loses=tuple(range(n, n + lost)))
    certifier = Certifier(PLAN, believing)
    assert looks(certifier, runs, 0, 400)[-1] == PLAN.n_levels - 1
    return certifier, runs


def test_a_level_that_has_passed_is_held_on_the_claim_it_passed_with() -> None:
    certifier, runs = losing_after(401, lost=3)
    top, before = certifier.level, certificate(certifier)
    assert looks(certifier, runs, 400, 450) == [top]
    held = certificate(certifier)
    assert certified_level(certifier.epoch.log_e, delta=PLAN.delta) == top
    assert held.until == before.until == 400, "the claim ends where it last passed"
    assert len(held.z) == 400, "and counts none of the audits since"
    assert summarize_evidence(certifier).window_end == 401
    assert looks(certifier, runs, 450, 900)[-1] == top
    assert certificate(certifier).until == 900, "a later pass takes its place"


def test_a_level_falls_at_once_when_no_evidence_for_it_is_left() -> None:
    certifier, runs = losing_after(401, lost=12)
    assert looks(certifier, runs, 400, 450) == [0]
    assert certificate(certifier).until == 450


def test_a_level_is_not_held_on_audits_that_a_later_label_turns_into_losses() -> None:
    certifier, runs = losing_after(401, lost=3)
    assert looks(certifier, runs, 400, 450)[-1] > 0
    worse = requests(2_000, loses=tuple(range(300, 320)))
    certifier.epoch.amend(np.arange(300, 320), worse.take(np.arange(300, 320)))
    certifier.look(Evidence(at=450.0))
    assert certifier.level == 0


def test_audits_that_are_late_to_return_do_not_pull_down_a_level_that_passed_without_them() -> None:
    certifier, runs = losing_after(2_000, lost=0)
    top = certifier.level
    pending = pending_audits([(number, 1.0) for number in (401, 402, 403)])
    certifier.add_audits(runs.take(np.arange(403, 450)))
    certifier.look(Evidence(at=450.0, pending=pending))
    assert (certifier.level, certificate(certifier).until) == (top, 400)
    assert looks(certifier, runs, 450, 500) == [top]


def test_an_average_promise_holds_no_level() -> None:
    certifier = Certifier(replace(PLAN, promise="budgeted"), believing)
    runs = requests(2_000, loses=tuple(range(401, 404)))
    looks(certifier, runs, 0, 400)
    looks(certifier, runs, 400, 450)
    assert certificate(certifier).until == 450


@pytest.mark.parametrize("again", [True, False])
def test_after_a_swing_a_level_rises_in_steps_and_a_first_one_at_once(again: bool) -> None:
    certifier, runs = Certifier(PLAN, believing), requests(2_000)
    if again:
        certifier.reset("something changed")
    levels = looks(certifier, runs, 0, 1_200)
    rises = [now - before for before, now in pairwise([0, *levels]) if now != before]
    assert levels[-1] == PLAN.n_levels - 1
    assert rises == ([SWING] * ((PLAN.n_levels - 1) // SWING) if again else [PLAN.n_levels - 1])


def test_a_swing_is_long_past_after_enough_requests() -> None:
    certifier, runs = Certifier(PLAN, believing), requests(500)
    certifier.reset("something changed")
    late = runs.at + CALM
    certifier.add_audits(replace(runs, at=late, label_at=late))
    certifier.look(Evidence(at=float(CALM + 500)))
    assert certifier.level == PLAN.n_levels - 1


@pytest.mark.parametrize("seed", range(3))
def test_at_every_look_the_active_level_has_passed_on_the_audits_of_its_claim(seed: int) -> None:
    """Losses at nine tenths of the budget: levels pass seldom, lose their pass again, and are held or fall."""
    rng, n = np.random.default_rng(seed), 4_000
    loses = np.flatnonzero(rng.random(n + 1) < np.where(np.arange(n + 1) < 600, 0.004, 0.018))
    certifier, runs = Certifier(PLAN, believing), requests(n, loses=tuple(loses.tolist()))
    n_held = 0
    for at in range(0, n, LOOK):
        looks(certifier, runs, at, at + LOOK)
        if not certifier.level:
            continue
        now = certificate(certifier)
        assert now.window is not None
        assert certifier.epoch.log_e[certifier.level] >= np.log(1 / PLAN.delta)
        assert len(now.z) == int((now.window.holds(runs.at) & (runs.at <= now.until)).sum()), "all up to its end"
        n_held += now.until < certifier.now
    assert n_held > 0
