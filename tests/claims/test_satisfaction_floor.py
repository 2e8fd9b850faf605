"""Where stopped answers are liked less than the floor allows, the level goes to where they meet it, class by class.

A closed loop: what people say depends on the level at which the route serves them, and the level on what they say.
`python -m pytest -q -s tests/claims/test_satisfaction_floor.py` prints the figures.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import pytest

from suffice.assurance.satisfaction import SatisfactionTest
from suffice.store.database.log import StoredEvent
from suffice.store.rows.events import Event
from tests.control.made import BURST, CONTROL, Story, learned, rows, run, story, traffic
from tests.control.test_ratings import RATED, SHARE, rating

FLOOR, FULL = 0.8, 0.92
World = Mapping[str, Callable[[float], float]]  # by class: satisfaction where level x of the way up stops runs

ALL_ALIKE: World = {"": lambda x: FULL - 0.3 * x}
LATE: World = {"": lambda x: FULL - 0.3 * x**3}
ONE_CLASS: World = {"a": lambda x: FULL - 0.5 * x, "b": lambda x: FULL - 0.02 * x, "c": lambda x: FULL - 0.02 * x}


def level_of(found: Story, name: str) -> int:
    made = found.loop.held.publication
    return 0 if made is None else dict(made.classes).get(name, made.level)


def events(n: int, world: World, found: Story, rng: random.Random, *, first: int) -> Iterator[Event]:
    """Certified requests in random classes, each rated as its class likes the level that now serves it."""
    for number in range(first, first + n):
        name = rng.choice(list(world))
        level, audit = level_of(found, name), rng.random() < SHARE
        stops = level > 0
        request, outcome = run(
            number,
            rng,
            audit=audit,
            propensity=SHARE if audit else 1 - SHARE,
            certified=stops,
            stop_step=4 if stops else None,
            stopped=stops and not audit,
            end_reason="stopped" if stops and not audit else "done",
        )
        assert request.query is not None
        request = replace(request, query=replace(request.query, query_class=name))
        if outcome.stopped:
            outcome = replace(outcome, steps=outcome.steps[:4], would_answer=outcome.answer)
        liked = world[name](level / 40) if outcome.stopped else FULL
        yield from (request, outcome, rating(number, up=rng.random() < liked))


def lived(world: World, n: int, seed: int) -> tuple[Story, list[StoredEvent], int]:
    """A route in a world; its log, and the requests until every class was first served within a point of the floor."""
    rng, found = random.Random(seed), story(RATED)
    log = rows(traffic(BURST, seed))
    found.feed(log)
    met: int | None = None
    for first in range(BURST, BURST + n, CONTROL.tick_requests):
        levels = {name: level_of(found, name) for name in world}
        if (
            met is None
            and all(levels.values())
            and all(like(levels[name] / 40) >= FLOOR - 0.01 for name, like in world.items())
        ):
            met = first - BURST
        more = rows(events(CONTROL.tick_requests, world, found, rng, first=first), first=len(log) + 1)
        log += more
        found.feed(more)
    return found.settle(), log, n if met is None else met


@pytest.mark.slow
@pytest.mark.parametrize("world", [ALL_ALIKE, LATE])
def test_the_level_jumps_to_the_floor_in_far_fewer_requests_than_one_level_at_a_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, seeds = 1_600, range(3)
    jumps = [lived(world, n, seed) for seed in seeds]
    levels = [found.loop.level for found, _, _ in jumps]
    with monkeypatch.context() as patched:
        patched.setattr(SatisfactionTest, "satisfactory_level", lambda *_, served, **__: served - 1)  # as it was
        steps = [lived(world, n, seed) for seed in seeds]
    print(f"requests to the floor: {[met for *_, met in jumps]}, one level at a time {[met for *_, met in steps]}")
    print(f"levels then: {levels}, satisfaction {[round(world[''](level / 40), 3) for level in levels]}")
    assert sorted(met for *_, met in jumps)[1] < sorted(met for *_, met in steps)[1] / 2
    assert min(world[""](level / 40) for level in levels) >= FLOOR - 0.05
    assert max(levels) > 0, "it keeps what people accept"


@pytest.mark.slow
def test_only_the_class_that_minds_goes_down_and_a_second_worker_comes_to_the_same() -> None:
    for seed in range(2):
        found, log, met = lived(ONE_CLASS, 2_000, seed)
        levels = {name: level_of(found, name) for name in ONE_CLASS}
        why = [made.reason for made in found.published if made.class_ceilings][:1]
        print(f"seed {seed}: met after {met} requests, levels {levels}: {why}")
        assert levels["a"] < min(levels["b"], levels["c"])
        assert ONE_CLASS["a"](levels["a"] / 40) >= FLOOR - 0.05
        made = found.published
        again = story(RATED, expected=made, artefacts=found.artefacts).feed(log).settle()
        assert not again.published
        assert learned(again.loop).floor.published == learned(found.loop).floor.published
