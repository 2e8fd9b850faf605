"""Attacks on what is counted: one caller fills, empties, overflows or shares counters to change what others get."""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from suffice.assurance.labels import INFERENCE_KEY, MAX_SHARE
from suffice.control.evidence.feedback import MOST_CLASSES, MOST_OF_ONE, Ratings
from suffice.episode.rounds import RoundsRun
from suffice.gateway.auth import Caller
from suffice.gateway.clients import KeyLimitError, KeyLimits
from suffice.gateway.open_runs import OpenRuns
from suffice.rollout.assign import conversation_key, joined
from suffice.rollout.experiment import units_of
from suffice.settings import Key
from suffice.types import Episode, Feedback, Query
from tests.control.made import run

CPU_S = 5.0  # however busy the machine is


# ---- loops that a gateway keeps open


def loop(name: str, sender: str) -> RoundsRun:
    request = SimpleNamespace(sender=sender)
    made = SimpleNamespace(id=name, ledger=SimpleNamespace(request=request), has_stop=True, is_over=False)
    return cast("RoundsRun", made)


ORDERS = {
    "before the others": lambda mine, others: [*mine, *others],
    "after the others": lambda mine, others: [*others, *mine],
    "in turn": lambda mine, others: [one for pair in itertools.zip_longest(mine, others) for one in pair if one],
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("n_eves", [11, 100, 2_000])
def test_a_flood_of_open_loops_closes_only_its_senders(order: str, n_eves: int) -> None:
    runs, closed = OpenRuns(limit=20, idle_s=100.0), Counter[str]()
    mine = [loop(f"eve-{n}", "eve") for n in range(n_eves)]
    others = [loop(f"key-{n}", f"key-{n % 3}") for n in range(12)]
    for at, one in enumerate(ORDERS[order](mine, others)):
        runs.put(one, key=f"{one.id} opens", now_s=at / 1e6)
        closed.update(gone.ledger.request.sender for gone in runs.pop_old(now_s=at / 1e6))
    assert set(closed) == {"eve"}
    assert len(runs) == 20
    assert all(runs.get(one.id, sender=one.ledger.request.sender, now_s=1.0) is one for one in others)
    assert set(runs.opened) >= {f"{one.id} opens" for one in others}
    assert len(runs.opened) == 20


def test_a_hundred_thousand_loops_cost_little_and_leave_nothing() -> None:
    runs, began_s = OpenRuns(limit=200, idle_s=100.0), time.process_time()
    for n in range(100_000):
        runs.put(loop(f"ep_{n}", "eve"), key=str(n), now_s=0.0)
        for _ in runs.pop_old(now_s=0.0):
            pass
    assert time.process_time() - began_s < CPU_S
    assert (len(runs), len(runs.opened)) == (200, 200)
    assert len(list(runs.pop_old(now_s=float("inf")))) == 200
    assert (len(runs), len(runs.opened), runs._n_of) == (0, 0, Counter())


@pytest.mark.parametrize("name", ["ep_1", "", "ep_2", "EP_1", "ep_1 ", "ep_1\0"])
def test_a_loop_is_its_openers_whatever_others_call_it(name: str) -> None:
    runs = OpenRuns()
    runs.put(loop("ep_1", "ann"), key=None, now_s=0.0)
    assert runs.get(name, sender="eve", now_s=1.0) is None
    assert runs.get("ep_1", sender="ann", now_s=1.0) is not None


def test_who_keeps_loops_alive_keeps_no_other_out() -> None:
    """Eve touches all of hers before each of Ann's, so that Ann's is always the one idle longest."""
    runs = OpenRuns(limit=20, idle_s=1e9)
    for n in range(30):
        runs.put(loop(f"eve-{n}", "eve"), key=None, now_s=0.0)
        list(runs.pop_old(now_s=0.0))
    for n in range(8):
        runs.put(loop(f"ann-{n}", "ann"), key=None, now_s=1.0)
        for at in range(30):
            runs.get(f"eve-{at}", sender="eve", now_s=2.0)
        list(runs.pop_old(now_s=2.0))
    assert all(runs.get(f"ann-{n}", sender="ann", now_s=3.0) for n in range(8))


# ---- names of conversations, units and senders

PAIRS = {
    "moved across the border": (("ab", "c"), ("a", "bc")),
    "a null character": (("a\0b", "c"), ("a", "b\0c")),
    "a colon": (("a:b", "c"), ("a", "b:c")),
    "a slash": (("a/b", "c"), ("a", "b/c")),
    "an escaped border": (("a\\", "b"), ("a", "\\b")),
    "digits, as of a length": (("1", "11"), ("11", "1")),
    "an empty sender": (("", "ab"), ("a", "b")),
    "half a character": (("a\ud800", "b"), ("a", "\ud800b")),
    "the same by another": (("ann", "1"), ("eve", "1")),
}


@pytest.mark.parametrize("case", PAIRS)
def test_no_two_callers_make_one_conversation(case: str) -> None:
    one, other = PAIRS[case]
    assert conversation_key(*one, salt="s") != conversation_key(*other, salt="s")
    assert joined(*one) != joined(*other)


@pytest.mark.parametrize("case", PAIRS)
@pytest.mark.parametrize("kind", ["conversation", "user", "tenant"])
def test_no_caller_takes_part_in_an_experiment_as_another(case: str, kind: str) -> None:
    (sender, name), (other_sender, other_name) = PAIRS[case]
    one = units_of(sender, request="r", **{kind: name})
    other = units_of(other_sender, request="r", **{kind: other_name})
    assert one[kind] != other[kind]  # type: ignore[index]


# ---- limits of keys

NOON_S = 1_764_331_200.0
LIMITS: dict[str, dict[str, Any]] = {
    "a minute": {"requests_per_minute": 3},
    "at once": {"concurrency": 3},
    "tokens": {"tokens_per_day": 30},
    "dollars": {"usd_per_day": 3.0},
    "dollars of a month": {"usd_per_month": 3.0},
}


def caller(name: str, **permits: Any) -> Caller:
    return Caller(id=name, name=name, permits=Key(key_env="K", **permits))


def ask(limits: KeyLimits, who: Caller, *, wall_s: float = NOON_S) -> bool:
    try:
        limits.enter(who, spends=True, now_s=0.0, wall_s=wall_s)
    except KeyLimitError:
        return False
    limits.spend(who.id, 10, usd=1.0, wall_s=wall_s)
    return True


@pytest.mark.parametrize("limit", LIMITS)
def test_a_caller_at_its_limit_takes_nothing_from_another(limit: str) -> None:
    eve, ann = caller("eve", **LIMITS[limit]), caller("ann", **LIMITS[limit])
    limits = KeyLimits([eve, ann])
    assert sum(ask(limits, eve) for _ in range(1_000)) == 3
    assert sum(ask(limits, ann) for _ in range(1_000)) == 3


@pytest.mark.parametrize("limit", LIMITS)
def test_more_endings_than_requests_give_no_room(limit: str) -> None:
    eve = caller("eve", **LIMITS[limit])
    limits = KeyLimits([eve])
    for _ in range(50):
        limits.leave(eve)
    assert sum(ask(limits, eve) for _ in range(100)) == 3


@pytest.mark.parametrize("limit", LIMITS)
def test_a_caller_that_is_not_known_counts_for_nobody(limit: str) -> None:
    eve, stranger = caller("eve", **LIMITS[limit]), caller("stranger", **LIMITS[limit])
    limits = KeyLimits([eve])
    for _ in range(50):
        ask(limits, stranger)
        limits.leave(stranger)
    assert set(limits.traffic(now_s=0.0)) == {"eve"}
    assert sum(ask(limits, eve) for _ in range(100)) == 3


# ---- ratings that steer


EVES: dict[str, Callable[[int], list[int]]] = {  # what eve rates after each run, by number
    "each run": lambda n: [n],
    "each run ten times": lambda n: [n] * 10,
    "one run again and again": lambda _: [1],
    "audits alone": lambda n: [n - n % 5],
    "stopped runs alone": lambda n: [n] if n % 5 else [],
    "runs that there are not": lambda n: [n + 5_000],
    "runs that are still to come": lambda n: [n + 1],
    "all at the end": lambda n: list(range(1_000)) if n == 999 else [],
}


def rated(eves: Callable[[int], list[int]], *, names: int = 1) -> Ratings:
    """A thousand certified runs, a fifth of them audits. Others like a third of them; eve likes no stop."""
    ratings, rng = Ratings(floor=0.8, delta=0.05), random.Random(1)

    def rate(number: int, sender: str, *, up: bool) -> None:
        name, thumbs = f"ep_{number:05}", "up" if up else "down"
        given = {"feedback_id": f"{sender}-{number}", "episode_id": name, "source": "user", "thumbs": thumbs}
        ratings.note_label(name, Feedback(**given, sender=sender, door=INFERENCE_KEY))  # type: ignore[arg-type]

    for number in range(1_000):
        audit = number % 5 == 0
        request, outcome = run(number, rng, audit=audit, propensity=0.2 if audit else 0.8, certified=True)
        ended = SimpleNamespace(request=request, outcome=replace(outcome, stop_step=3, stopped=not audit))
        ratings.ended(cast("Episode", ended))
        if number % 3 == 1:
            rate(number, f"key-{number % 40}", up=True)
        for at in eves(number):
            rate(at, f"eve-{at % names}", up=at % 5 == 0)
    return ratings


@pytest.mark.parametrize("case", EVES)
def test_ratings_of_one_key_take_no_level_from_others(case: str) -> None:
    ratings = rated(EVES[case])
    assert ratings._counted["eve-0"] <= MAX_SHARE * 1_000
    assert ratings.asks is None


def test_the_same_ratings_of_many_keys_do() -> None:
    assert rated(EVES["each run"], names=40).asks is not None


def test_made_up_classes_of_one_caller_leave_room_for_those_of_others() -> None:
    """Each class has a test of its own up to a limit: one caller cannot use the limit up."""
    ratings, rng = Ratings(floor=0.5, delta=0.1), random.Random(0)

    def ends(number: int, name: str, caller: str) -> None:
        query = Query(query_class=name)
        request, outcome = run(number, rng, propensity=0.5, certified=True, stop_step=4, query=query)
        ratings.ended(Episode(request=replace(request, sender=caller), outcome=outcome))

    for number in range(3 * MOST_CLASSES):
        ends(number, f"made-up-{number}", "eve")
    assert len(ratings.by_class) == MOST_OF_ONE
    for at, name in enumerate(("law", "maths", "code")):
        ends(1_000 + at, name, "bob")
    assert {"law", "maths", "code"} <= set(ratings.by_class)
    for number in range(2 * MOST_CLASSES):
        ends(2_000 + number, f"class-{number}", f"key-{number % 20}")
    assert len(ratings.by_class) == MOST_CLASSES
