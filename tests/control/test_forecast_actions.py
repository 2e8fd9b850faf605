"""The loop does what the log's forecasts ask for at its next look, and a replay does the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from suffice.assurance.drift import DOUBT_SHARE
from suffice.assurance.forecast import ForecastAction
from suffice.store.database.log import StoredEvent
from suffice.store.rows.events import Event
from suffice.types import Publication
from tests.control.made import CONTROL, Story, rows, story, traffic

N, CAPPED, LIFTED = 400, 285, 345  # requests: of the traffic, and behind which a forecast acts


def action(at: int, *, cap: int | None, in_doubt: bool = False, epoch: int = 1, route: str = "r") -> ForecastAction:
    reason = "level low (a breach is near)" if cap is not None else "the forecast no longer asks for a cap"
    return ForecastAction(
        route=route, epoch=epoch, at=at, level=9, cap=cap, in_doubt=in_doubt, reason=reason, author="m"
    )


def log_with(*actions: tuple[int, ForecastAction]) -> list[StoredEvent]:
    """Certified traffic, and actions behind the events of so many requests."""
    events, n, waiting = list[Event](), 0, dict(actions)
    for event in traffic(N):
        events.append(event)
        n += hasattr(event, "end_reason")
        if n in waiting:
            events.append(waiting.pop(n))
    return rows(events)


@pytest.fixture(scope="module")
def plain() -> Story:
    made = story().feed(log_with()).settle()
    assert made.loop.level > 2
    return made


@pytest.fixture(scope="module")
def capped(plain: Story) -> Story:
    del plain
    return (
        story()
        .feed(log_with((CAPPED, action(CAPPED, cap=1, in_doubt=True)), (LIFTED, action(LIFTED, cap=None))))
        .settle()
    )


def made_after(one: Story, at: int) -> Publication:
    return next(made for made in one.published if made.at > at)


def test_a_cap_lowers_the_level_at_the_next_look_names_its_reason_and_is_lifted(plain: Story, capped: Story) -> None:
    lowered, lifted = made_after(capped, CAPPED), made_after(capped, LIFTED)
    assert (lowered.level, lowered.cap, lowered.certified) == (1, 1, True)
    assert "a breach is near" in lowered.reason
    assert CAPPED < lowered.at <= CAPPED + CONTROL.tick_requests
    assert lowered.evidence.n_missing is None
    assert lifted.cap is None
    assert 1 < lifted.level <= plain.loop.level, "it may rise in steps"
    assert "no longer asks for a cap" in lifted.reason
    levels = [made.level for made in capped.published if made.at >= lifted.at]
    assert levels == sorted(levels)
    assert capped.loop.level > 1


def test_doubt_raises_the_share_of_audits_until_it_ends(plain: Story, capped: Story) -> None:
    usual = plain.published[-1].share
    assert made_after(capped, CAPPED).share == max(usual, DOUBT_SHARE)
    assert made_after(capped, LIFTED).share == usual


def test_cap_zero_runs_everything_in_full(plain: Story) -> None:
    del plain
    history = story().feed(log_with((CAPPED, action(CAPPED, cap=0)))).settle()
    assert (history.loop.level, made_after(history, CAPPED).level, made_after(history, CAPPED).share) == (0, 0, 1.0)


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("changes", [{"epoch": 2}, {"route": "other"}])
def test_the_forecast_of_another_epoch_or_route_changes_nothing(plain: Story, changes: dict[str, Any]) -> None:
    other = replace(action(CAPPED, cap=1, in_doubt=True), **changes)
    history = story().feed(log_with((CAPPED, other))).settle()
    assert [made.level for made in history.published] == [made.level for made in plain.published]


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("cut", [580, 700])
def test_a_worker_that_was_killed_is_followed_by_one_that_decides_the_same(capped: Story, cut: int) -> None:
    log = log_with((CAPPED, action(CAPPED, cap=1, in_doubt=True)), (LIFTED, action(LIFTED, cap=None)))
    before = story().feed(log[:cut])
    after = story(expected=before.published, artefacts=before.artefacts).feed(log).settle()
    assert before.published + after.published == capped.published
