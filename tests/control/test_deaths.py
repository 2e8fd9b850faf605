"""A gateway that dies takes its runs out of the evidence; a client that can end it gains nothing by that."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from suffice.control.evidence.run_join import Gap, GatewayDeaths
from suffice.store.rows.events import Event
from suffice.types import Alarm, EndReason, Outcome
from tests.control.made import BURST, ROUTE, WINDOW, Story, rows, run, story, traffic
from tests.control.test_certify import late

BEFORE = 700  # requests until the gateway dies
OPEN = 200  # of them still open then
LONGEST = WINDOW / 0.05  # requests that a window is used at the usual share of audits


def killed(*, first: int = 0, n: int = BEFORE, end: EndReason = "lost", **options: Any) -> list[Event]:
    """Full runs that take as long as OPEN others need to begin, until their gateway dies."""
    log = traffic(n, seed=first, first=first, sure=True, **options)
    ends = [event for event in log if isinstance(event, Outcome)]
    lost = [replace(one, end_reason=end, answer=None, steps=(), usage=None) for one in ends[-OPEN:]]
    return [*late(log, OPEN, lambda _: True), *lost]


def later(n: int, *, first: int = BEFORE, **options: Any) -> list[Event]:
    return late(traffic(n, seed=first, first=first, **{"sure": True, **options}), OPEN, lambda _: True)


def alarms(history: Story) -> list[Alarm]:
    return [event for event in history.decided if isinstance(event, Alarm)]


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("end", ["lost", "shutdown"])
def test_a_gateway_that_dies_with_200_open_audits_ends_no_certificate(end: EndReason) -> None:
    alive = story().feed(rows(killed(end=end)[:-OPEN]))
    here = story().feed(rows([*killed(end=end), *later(700)])).settle()
    assert alarms(here) == []
    levels = [made.level for made in here.published if made.at >= alive.loop.n - OPEN]
    assert min([alive.loop.level, here.loop.level, *levels]) == alive.loop.level > 0
    certificate = here.loop.certifier.epoch.certificate
    assert certificate is not None
    assert not certificate.z.any(), "no lost audit is in a window"


def test_claims_are_about_requests_before_the_first_that_died_or_after_all_of_them() -> None:
    here = story().feed(rows([*killed(), *later(40)])).loop
    assert here.state.deaths.gap == Gap(BEFORE - OPEN + 1, BEFORE)
    ends = {window.end for window in here.certifier.epoch.windows.known if window.start <= BEFORE}
    assert max(ends) == BEFORE - OPEN + 1
    assert min(window.start for window in here.certifier.epoch.windows.known if window.end > BEFORE) == BEFORE + 1


@pytest.mark.slow
def test_the_worker_that_follows_decides_the_same() -> None:
    log = rows([*killed(), *later(300)])
    whole = story().feed(log).settle()
    before = story().feed(log[: 2 * BEFORE - 50])
    after = story(expected=before.published, artefacts=before.artefacts).feed(log).settle()
    assert before.published + after.published == whole.published
    assert before.decided == before.published


@pytest.mark.slow
def test_losses_after_a_death_are_found_as_soon_as_without_one() -> None:
    worse = later(600, sure=False, p_right=0.4)
    calm = later(BEFORE, first=0)
    alarm_at = alarms(story().feed(rows([*killed(), *worse])))[0].at
    assert alarm_at <= alarms(story().feed(rows([*calm, *worse])))[0].at + 40


@pytest.mark.slow
def test_a_second_death_so_soon_counts_as_losses() -> None:
    here = story().feed(rows([*killed(), *killed(first=BEFORE), *later(300, first=2 * BEFORE)])).settle()
    assert alarms(here) or here.loop.level == 0


def test_only_runs_that_had_begun_when_the_first_one_died_can_have_died_with_it() -> None:
    deaths = GatewayDeaths()
    assert deaths.note(10, now=30, every=LONGEST) == Gap(10, 30)
    assert deaths.note(5, now=90, every=LONGEST) == Gap(5, 30)
    assert deaths.note(31, now=31, every=LONGEST) is None
    assert deaths.note(31, now=29 + int(LONGEST), every=LONGEST) is None
    assert deaths.note(40, now=30 + int(LONGEST), every=LONGEST) == Gap(40, 30 + int(LONGEST))


def _batch(first: int, ends: Sequence[EndReason]) -> list[Event]:
    rng = random.Random(first)
    pairs = [run(first + k, rng, sure=False, p_right=0.3) for k in range(len(ends))]
    lost = [
        replace(one, end_reason=end, answer=None, steps=(), usage=None)
        for (_, one), end in zip(pairs, ends, strict=True)
    ]
    return [*(request for request, _ in pairs), *lost]


def test_a_client_that_ends_the_gateway_before_each_loss_is_seen_certifies_nothing() -> None:
    """Its poisoned requests lose at every level; it ends the gateway whenever one of them is audited."""
    log = list[Event]()
    for n in range(0, 600, 12):
        log += [*traffic(8, seed=n, first=n, sure=True), *_batch(n + 8, ["lost"] * 4)]
    assert {made.level for made in story().feed(rows(log)).settle().published} == {0}


OWNED = msgspec.structs.replace(ROUTE, policy={"policy": "beta", "threshold": 0.9}, agent="off")  # one level
ATTACKS: dict[str, Callable[[int], bool]] = {  # at which of its audits a client ends the gateway
    "always": lambda _: True,
    "in the burst": lambda number: number < BURST,
    "after the burst": lambda number: number >= BURST,
    "once": lambda number: BURST <= number < BURST + 50,
    "nearly always": lambda number: number % 100 > 10,
    "never": lambda _: False,
}


def attacked(seed: int, ends: Callable[[int], bool]) -> list[Event]:
    """Each eighth request loses by a stop, more than the budget; its client knows which ones are audited."""
    rng, log = random.Random(seed), list[Event]()
    for number in range(1_200):
        drawn = number < BURST or rng.random() < 0.4
        request, outcome = run(number, rng, sure=True, audit=drawn, propensity=1.0 if number < BURST else 0.4)
        if number % 8 == seed % 8:
            answers = ["11"] * 3 + ["77"] * 5
            steps = tuple(replace(step, answer=own) for step, own in zip(outcome.steps, answers, strict=True))
            outcome = replace(outcome, steps=steps, answer="77")
            if drawn and ends(number):
                outcome = replace(outcome, end_reason="lost", answer=None, steps=(), usage=None)
        log += [request, outcome]
    return log


def is_ever_certified(log: Sequence[Event]) -> bool:
    return any(made.level for made in story(OWNED).feed(rows(log)).settle().published)


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_client_that_can_end_the_gateway_gains_nothing_whenever_it_does(attack: str) -> None:
    logs = [attacked(seed, ATTACKS[attack]) for seed in range(20)]
    certified = sum(map(is_ever_certified, logs))
    assert certified <= 5, "of 20 streams at a confidence of 90 %; more come by chance once in 90 times"
    if attack in ("always", "nearly always"):
        left_out = [{e.episode_id for e in log if isinstance(e, Outcome) and e.end_reason == "lost"} for log in logs]
        kept = (
            [e for e in log if getattr(e, "episode_id", "") not in dead]
            for log, dead in zip(logs, left_out, strict=True)
        )
        assert sum(map(is_ever_certified, kept)) == 20, "leaving out what died would certify it in every stream"
