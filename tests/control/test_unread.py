"""Clients that hang up on audits: read to the end, none of them can deny a certificate, hide a loss or make one up."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from suffice.store.rows.events import Event
from suffice.types import Outcome, Publication, Request
from tests.control.made import rows, story, traffic
from tests.control.test_deaths import attacked, is_ever_certified

SHARES = (0.06, 0.2)


def left(log: Sequence[Event], leaves: Callable[[Outcome], bool], *, unread: bool = True) -> list[Event]:
    """The log if the clients of these runs hang up, and the gateway reads them to their end, or does not."""

    def ended(one: Outcome) -> Outcome:
        if unread:
            return replace(one, end_reason="client_left", finished_unread=True)
        return replace(one, end_reason="client_left", answer=None, steps=one.steps[:2])

    return [ended(one) if isinstance(one, Outcome) and leaves(one) else one for one in log]


def at_random(share: float, seed: int = 0) -> Callable[[Outcome], bool]:
    rng = random.Random(seed)
    return lambda _: rng.random() < share


def loses(one: Outcome) -> bool:
    """A stop at any of the first samples would have answered otherwise."""
    return one.steps[0].answer != one.answer


def decided(log: Sequence[Event]) -> list[Publication]:
    return story().feed(rows(log)).settle().published


@pytest.mark.parametrize("share", SHARES)
def test_hanging_up_at_random_changes_no_decision(share: float) -> None:
    log = traffic(700, sure=True)
    calm, shaken = decided(log), decided(left(log, at_random(share)))
    assert shaken == calm
    assert calm[-1].level > 0


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("share", SHARES)
def test_hanging_up_on_runs_that_nobody_reads_on_denies_the_certificate(share: float) -> None:
    """What the owner of a route chooses with `unread_audits = 0`, and what is over the limit."""
    log = traffic(700, sure=True)
    assert decided(left(log, at_random(share), unread=False))[-1].level < decided(log)[-1].level


@pytest.mark.parametrize("share", SHARES)
def test_neither_does_it_while_the_route_observes(share: float) -> None:
    """Runs of observe are evidence for the first level in enforce: unread, they would deny it before it acts."""
    observed = [replace(one, mode="observe") if isinstance(one, Request) else one for one in traffic(700, sure=True)]
    calm = decided(observed)
    assert decided(left(observed, at_random(share))) == calm
    assert calm[-1].level > 0
    unread = decided(left(observed, at_random(share), unread=False))
    assert unread[-1].level < calm[-1].level


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("unread", [True, False])
def test_a_client_that_hangs_up_exactly_when_a_stop_would_lose_hides_nothing(unread: bool) -> None:
    """Each eighth request loses, more than the budget of 8 %; its client sees the answer and then hangs up."""
    logs = [attacked(seed, lambda _: False) for seed in range(20)]
    hung_up = [left(log, loses, unread=unread) for log in logs]
    certified = sum(map(is_ever_certified, hung_up))
    assert certified <= 5, "of 20 streams at a confidence of 90 %; more come by chance once in 90 times"
    if unread:
        gone = [{e.episode_id for e in log if isinstance(e, Outcome) and loses(e)} for log in logs]
        kept = ([e for e in log if e.episode_id not in ids] for log, ids in zip(logs, gone, strict=True))  # type: ignore[union-attr]
        assert sum(map(is_ever_certified, kept)) == 20, "leaving out what was hung up on would certify every stream"


@pytest.mark.slow(keep=1)
def test_a_client_that_hangs_up_unless_a_stop_would_lose_cannot_take_a_certificate_away() -> None:
    """The other way about: evidence for a stop is never lost either."""
    log = traffic(700, sure=True)
    assert decided(left(log, lambda one: not loses(one))) == decided(log)
