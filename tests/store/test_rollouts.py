"""Rollouts on a real log: of many people at once one has moved it, and nobody goes back to what cannot serve."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any, ClassVar
from unittest.mock import patch

import pytest

from suffice.errors import StoreError
from suffice.rollout.evidence import Rules
from suffice.rollout.versions import Version, VersionLineage
from suffice.settings import Route
from suffice.signals import base
from suffice.signals.base import FOLDS
from suffice.signals.fold import Fields, SignalField
from suffice.signals.folds.answers import Votes
from suffice.store.database.decisions import Decisions
from suffice.store.database.location import LogLocation
from suffice.store.routes import rollouts
from suffice.store.routes.rollouts import RolloutRun, read_rollouts, take_back

SECRET = "the deployment's own"
OWN = {"policy": "fixed-budget", "max_tokens": 900}
ROUTE = Route(upstream="up", kind="samples", samples=8, scorer="number", policy=OWN)
VOTING = {"policy": "beta", "threshold": 0.9}
STEADY = {"policy": "stable-answer", "streak": 3}
MANY = 50


def version(policy: dict[str, Any]) -> Version:
    lineage = VersionLineage(parent=None, proposed_by="person:ann", why="saves more")
    return Version(form="policy", body=policy, kind="samples", scorer="number", model_family=None, lineage=lineage)


def opened(path: LogLocation) -> Decisions:
    return Decisions(path, now=lambda: 1_000.0, monotonic_s=lambda: 0.0)


@pytest.fixture
def path(database: LogLocation) -> LogLocation:
    with opened(database):
        return database


def propose(writer: Decisions, policy: dict[str, Any], name: str) -> RolloutRun | str:
    own = rollouts.own_version(ROUTE)
    one = rollouts.own_candidate(read_rollouts(writer.path), version(policy), route="r", own=own)
    if isinstance(one, str):
        return one
    return rollouts.start_candidate(writer, one, author="ann", reason="x", name=name, rules=Rules(), secret=SECRET)


def back(writer: Decisions, route: Route = ROUTE) -> RolloutRun | str:
    return take_back(writer, "r", route, author="ann", reason="enough", secret=SECRET)


def at_once(path: LogLocation, act: Callable[[Decisions, int], Any]) -> list[Any]:
    """What each of many people got, who have the log open and begin at the same moment."""
    result, gate = list[Any](), threading.Barrier(MANY)

    def run(writer: Decisions, number: int) -> None:
        gate.wait()
        try:
            result.append(act(writer, number))
        except StoreError as error:  # a busy machine: it says that another process has the log, and to try again
            result.append(str(error))

    with ExitStack() as stack:
        threads = [
            threading.Thread(target=run, args=(stack.enter_context(opened(path)), number)) for number in range(MANY)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return result


def test_of_fifty_who_propose_at_once_one_has_begun_and_the_others_are_told(path: LogLocation) -> None:
    result = at_once(path, lambda writer, number: propose(writer, {**STEADY, "streak": 2 + number}, f"r-{number}"))
    begun = [one for one in result if not isinstance(one, str)]
    assert len(begun) == 1
    assert [one.state.rollout for one in read_rollouts(path)] == [begun[0].state.rollout]
    output = {one for one in result if isinstance(one, str)}
    assert len(result) == MANY
    assert all(one.endswith(("one at a time", "try again")) for one in output), output


def test_of_fifty_who_move_it_at_once_each_move_follows_the_one_before_it_and_the_others_are_told(
    path: LogLocation,
) -> None:
    with opened(path) as writer:
        propose(writer, STEADY, "r-1")

    def step(writer: Decisions, number: int) -> Any:  # a transition, or a sentence
        name = ("promote", "hold", "rollback")[number % 3]
        return rollouts.step(writer, "r", name, author=f"admin {number}", reason="go")

    result = at_once(path, step)
    made = [one for one in result if not isinstance(one, str)]
    (held,) = read_rollouts(path)
    assert len(result) == MANY
    assert sorted(made, key=lambda one: one.number) == list(held.moves), "who was told that he moved it has moved it"
    assert [one.number for one in held.moves] == list(range(1, len(made) + 1))
    assert 0 < held.state.n_moves < MANY


@pytest.fixture
def serving(path: LogLocation) -> Iterator[Decisions]:
    """A log whose route is served by a steady policy, brought behind one that counts votes."""
    with opened(path) as writer:
        for number, policy in enumerate((VOTING, STEADY)):
            assert not isinstance(propose(writer, policy, f"r-{number}"), str)
            while not read_rollouts(path)[-1].state.over:
                rollouts.step(writer, "r", "promote", author="ann", reason="go")
        yield writer
    base.resolve_needs.cache_clear()


def test_a_roll_back_goes_to_the_version_before_it_and_then_to_the_owners_own(serving: Decisions) -> None:
    first, second = back(serving), back(serving)
    assert not isinstance(first, str)
    assert not isinstance(second, str)
    assert (first.first.active, second.first.active) == (
        version(VOTING).address,
        rollouts.own_version(ROUTE).address,
    )
    assert "came by no rollout" in str(back(serving))


@pytest.mark.parametrize("gone", [False, True])
def test_a_roll_back_to_a_version_whose_signals_are_gone_is_refused_and_says_the_way_out(
    serving: Decisions, *, gone: bool
) -> None:
    class Other(Votes):
        fields: ClassVar[Fields] = {**Votes.fields, "mood": SignalField("what its versions did not have")}

    with patch.dict(FOLDS, votes=Other):  # which restores the order of the table, too
        if gone:
            del FOLDS["votes"]
        base.resolve_needs.cache_clear()
        output = back(serving)
    base.resolve_needs.cache_clear()
    assert isinstance(output, str)
    assert ("unknown signal 'votes'" if gone else "reads other signals here") in output
    assert "`suffice kill` lets everything run in full" in output
    own = rollouts.own_version(ROUTE).address
    assert rollouts.read_serving_version(read_rollouts(serving.path), "r", own) == version(STEADY).address, (
        "and it goes on serving"
    )


@pytest.mark.sqlite_only
def test_a_roll_back_to_one_that_was_changed_beside_the_log_is_refused(serving: Decisions) -> None:
    with closing(sqlite3.connect(str(serving.path))) as connection, connection:
        connection.execute("UPDATE artefacts SET body = replace(body, '0.9', '0.1')")
    assert "changed, or cut off" in str(back(serving))
