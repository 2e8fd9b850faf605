"""A learned route begins by share: it stops part of the requests as soon as a level is proved for that part."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from suffice.control.evidence.cold_start import epoch_start
from suffice.control.jobs.snapshot import restore_snapshot, take_snapshot
from suffice.control.loop.route_loop import RouteLoop
from suffice.learn.version import N_LEVELS
from suffice.policy.starting_version import starting_version
from suffice.settings import Control
from suffice.store.rows.events import Event
from suffice.types import Epoch, Kind, Publication, Query
from tests.control.made import ROUTE as USUAL
from tests.control.made import Story, began, label, rows, run, story

CONTROL = Control(refit_requests=160)
ROUTE = msgspec.structs.replace(USUAL, max_em_drop=0.04)
BUDGET = 0.04
BURST = 600  # 24 / BUDGET


def ramp(**options: object) -> Story:
    return story(ROUTE, control=CONTROL, held=began(ROUTE, burst=BURST, ramps=True), **options)  # type: ignore[arg-type]


def served(n: int, history: Story, *, seed: int = 0, mode: str = "enforce") -> list[Event]:
    """`n` requests as gateways serve them: audits at the published share, the others at the published level.

    Half of them are of a class whose samples agree, which only a version that is fitted here can know.
    """
    rng, log = random.Random(seed), list[Event]()
    first = history.loop.n
    for number in range(first, first + n):
        made = history.published[-1] if history.published else None
        share = 1.0 if made is None or mode == "observe" else made.share
        audit, is_easy = rng.random() < share, number % 2 == 0
        query = Query(planned_steps=8, query_class="easy" if is_easy else "other")
        odds = share if audit else 1 - share
        drawn: dict[str, Any] = {
            "mode": mode,
            "audit": audit,
            "propensity": odds,
            "certified": not audit,
            "query": query,
        }
        request, outcome = run(number, rng, sure=is_easy, p_right=0.5, **drawn)
        if not audit:
            outcome = replace(outcome, end_reason="stopped", stopped=True, steps=outcome.steps[:3])
        events: list[Event] = [request, outcome]
        log += events
        history.feed(rows(events, first=len(log) + 2 * first - 1))
    return log


@pytest.fixture(scope="module")
def whole() -> tuple[Story, list[Event]]:
    history = ramp()
    return history, [*served(300, history), *served(400, history, seed=1, mode="observe")]


def test_the_first_level_acts_long_before_a_burst_is_over(whole: tuple[Story, list[Event]]) -> None:
    first = next(made for made in whole[0].published if made.level)
    assert first.at <= 100
    assert first.fit == starting_version("samples").address
    assert first.certified
    assert first.exposure < 1
    assert first.share == pytest.approx(1 - first.exposure), "the other requests are audits"
    assert first.evidence.max_em_drop == pytest.approx(BUDGET), "of all requests"


def test_a_share_of_one_half_is_the_most_until_there_are_as_many_audits_as_a_burst_has(
    whole: tuple[Story, list[Event]],
) -> None:
    early = [made for made in whole[0].published if made.level and made.evidence.n_audits < BURST]
    assert early
    last = whole[0].published[-1]
    assert last.exposure == 1
    assert last.share == pytest.approx(0.05)


def test_a_fitted_version_takes_over_without_a_rollout(whole: tuple[Story, list[Event]]) -> None:
    fits = [made.fit for made in whole[0].published]
    assert fits[0] == starting_version("samples").address
    assert whole[0].loop.certifier.version >= 1
    assert fits[-1] != fits[0]


def test_a_replay_of_the_log_comes_to_the_same_decisions(whole: tuple[Story, list[Event]]) -> None:
    history, log = whole
    again = ramp(expected=history.published, artefacts=history.artefacts)
    again.feed(rows(log)).settle()
    assert not [one for one in again.decided if isinstance(one, Publication)]
    assert (again.loop.level, again.loop.held.publication) == (history.loop.level, history.published[-1])


def test_a_loop_that_was_stored_goes_on_as_one_that_was_not() -> None:
    history, other = ramp(), ramp()
    log = served(200, history, seed=3)
    other.feed(rows(log))
    context = other.loop.context
    given = {"context": context, "route": context.route, "control": context.control}
    given |= {"match": context.match, "load": context.load}
    restored = restore_snapshot(take_snapshot(other.loop, given), given)
    assert isinstance(restored, RouteLoop)
    other = Story(restored, other.artefacts, other.decided)
    later = served(400, history, seed=4)
    other.feed(rows(later, first=len(log) + 1))
    assert other.published == history.published


@pytest.mark.parametrize("kind", ["samples", "reasoning", "rounds"])
def test_a_fitted_version_has_as_many_levels_as_the_one_whose_place_it_takes(kind: Kind) -> None:
    assert len(starting_version(kind).levels[0]) == N_LEVELS - 1


def test_an_alarm_begins_by_share_again() -> None:
    history = ramp()
    log = served(300, history)
    assert history.loop.level
    rng, n = random.Random(9), len(log)
    for number in range(history.loop.n, history.loop.n + 200):
        request, outcome = run(number, rng, sure=True, propensity=history.published[-1].share)
        steps = [replace(step, answer="another") if step.index > 4 else step for step in outcome.steps]
        outcome = replace(outcome, steps=(*steps, replace(steps[-1], index=9)), answer="another")
        history.feed(rows([request, outcome, label(number, gold="another")], first=n + 1))
        n += 3
        if epochs := [one for one in history.decided if isinstance(one, Epoch)]:
            break
    assert (epochs[0].ramps, epochs[0].burst) == (True, BURST)
    assert history.loop.level == 0


@pytest.mark.parametrize(
    ("changes", "control", "ramps"),
    [
        ({}, CONTROL, True),
        ({}, Control(burst_requests=160), False),
        ({"promise": "budgeted"}, CONTROL, False),
        ({"policy": {"policy": "dynasor"}}, CONTROL, False),
    ],
)
def test_an_owner_who_asks_for_a_burst_or_writes_a_policy_gets_no_start_by_share(
    changes: dict[str, object], control: Control, ramps: bool
) -> None:
    route = msgspec.structs.replace(ROUTE, **changes)
    assert epoch_start(route, control)["ramps"] is ramps
