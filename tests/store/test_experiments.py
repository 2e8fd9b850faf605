"""Experiments in a real log: one start, one end, layers that stay apart, draws in their order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from suffice.errors import ConfigError
from suffice.rollout.experiment import define, draw_arms, n_slots, units_of
from suffice.settings import Experiment, ExperimentArm, Store
from suffice.store.database.decisions import Decisions
from suffice.store.database.location import LogLocation
from suffice.store.database.writer import LogWriter
from suffice.store.routes.experiments import (
    ExperimentRun,
    read_draws,
    read_experiments,
    read_running_experiments,
    read_runs,
    start_experiment,
    stop_experiment,
)
from suffice.store.rows.events import ExperimentEnd, ExperimentStart
from suffice.types import Query, Request
from tests.records import plain_request


def table(**changes: Any) -> Experiment:
    arms = {"full": ExperimentArm(full=True), "brisk": ExperimentArm()}
    return Experiment(**({"routes": ("math",), "arms": arms} | changes))


@pytest.fixture
def writer(database: LogLocation) -> Iterator[Decisions]:
    with Decisions(database, now=lambda: 7.0, monotonic_s=lambda: 0.0) as opened:
        yield opened


def begin(writer: Decisions, name: str = "e", **changes: Any) -> ExperimentStart | str:
    return start_experiment(writer, name, table(**changes), author="Ada", reason="to see")


def held(writer: Decisions) -> dict[tuple[str, int], ExperimentRun]:
    return {(one.experiment.name, one.experiment.run): one for one in read_experiments(writer.path)}


def test_an_experiment_runs_from_its_start_to_its_end_and_again(writer: Decisions) -> None:
    begun = begin(writer)
    assert isinstance(begun, ExperimentStart)
    assert read_running_experiments(read_experiments(writer.path)) == (begun.experiment,)
    result = held(writer)["e", 1]
    assert (result.author, result.reason, result.revision, result.started_at_s) == ("Ada", "to see", 0, 7.0)
    assert begin(writer) == "runs already, started by Ada: to see"
    ended = stop_experiment(writer, "e", author="Bob", reason="seen", summary=("It is better.",))
    assert ended == ExperimentEnd(experiment="e", run=1, author="Bob", reason="seen", summary=("It is better.",))
    assert read_running_experiments(read_experiments(writer.path)) == ()
    assert stop_experiment(writer, "e", author="Bob", reason="seen") == "is not running"
    again = begin(writer)
    assert isinstance(again, ExperimentStart)
    assert again.experiment.run == 2
    assert held(writer)["e", 1].ended == ended


def test_weights_and_share_change_while_it_runs_and_nothing_else(writer: Decisions) -> None:
    begin(writer, share=0.2)
    arms = {"full": ExperimentArm(full=True), "brisk": ExperimentArm(weight=3.0)}
    changed = begin(writer, share=0.4, arms=arms)
    assert isinstance(changed, ExperimentStart)
    assert changed.revision == 1
    result = held(writer)["e", 1]
    assert result.experiment.odds()["brisk"] == 0.75
    assert n_slots(result.experiment.slots) == 400
    assert "stop it before" in str(begin(writer, share=0.4, arms=arms, primary="em"))
    assert begin(writer, share=0.4, arms=arms) == "runs already, started by Ada: to see"


def test_a_layer_is_shared_out_and_has_one_unit(writer: Decisions) -> None:
    begin(writer, "a", share=0.6)
    with pytest.raises(ConfigError, match=r"the layer has 40\.0% left beside a 60\.0%"):
        begin(writer, "b", share=0.5)
    refused = "has the unit 'user', and a, which runs in its layer on the same route, has 'request'"
    assert refused in str(begin(writer, "b", unit="user"))
    assert isinstance(begin(writer, "b", share=0.4), ExperimentStart)
    assert isinstance(begin(writer, "c", layer="people", unit="user"), ExperimentStart)
    stop_experiment(writer, "a", author="Ada", reason="room")
    assert isinstance(begin(writer, "d", share=0.6), ExperimentStart)


def test_experiments_on_disjoint_routes_take_nothing_from_each_other(writer: Decisions) -> None:
    """Each may have its whole route and a unit of its own; one that has both routes in common finds no room."""
    first = begin(writer, "a", routes=("math",))
    second = begin(writer, "b", routes=("law",), unit="user")
    assert isinstance(first, ExperimentStart)
    assert isinstance(second, ExperimentStart)
    assert (first.experiment.share, second.experiment.share) == (1.0, 1.0)
    assert all(one.runs for one in held(writer).values())
    with pytest.raises(ConfigError, match=r"the layer has 0\.0% left beside a 100\.0%"):
        begin(writer, "c", routes=("math", "news"), share=0.1)
    assert isinstance(begin(writer, "d", routes=("news",)), ExperimentStart)


def test_of_two_people_who_take_the_same_slots_at_once_one_has_them(writer: Decisions) -> None:
    begin(writer, "a")
    rival = define("b", table(), run=1, slots=((0, 1_000),))
    begun = ExperimentStart(experiment=rival, revision=0, author="Bob", reason="r")
    assert writer.write(None, [begun]) == [True]
    result = held(writer)["b", 1]
    assert not result.runs
    assert result.ended is not None
    assert result.ended.reason == "never ran: a had taken its part of the layer at the same moment"
    assert [one.name for one in read_running_experiments(read_experiments(writer.path))] == ["a"]


def test_of_two_people_who_start_it_at_once_one_has_started_it(writer: Decisions) -> None:
    begin(writer)
    first = define("e", table(), run=1, slots=((0, 10),))
    begun = ExperimentStart(experiment=first, revision=0, author="Bob", reason="r")
    assert writer.write(None, [begun]) == [False]


def seen(number: int, experiments: tuple[Any, ...]) -> Request:
    arms = draw_arms(experiments, route="math", units=units_of("", request=f"u{number // 2}"), salt="s")
    return plain_request(
        f"ep{number}",
        route="math",
        mode="enforce",
        propensity=0.9,
        arms=arms,
        query=Query(n_words=number) if number % 3 else None,
    )


def test_draws_are_read_while_it_ran_and_of_its_run_alone(tmp_path: Path) -> None:
    log = LogWriter(Store(url=f"sqlite:///{tmp_path}/a.db", flush_ms=0), now=lambda: 0.0)
    log.append(seen(-2, ()))
    log.close()
    with Decisions(log.path, now=lambda: 0.0, monotonic_s=lambda: 0.0) as writer:
        begun, other = begin(writer), begin(writer, "other", layer="b")
        assert isinstance(begun, ExperimentStart)
        assert isinstance(other, ExperimentStart)
        both = begun.experiment, other.experiment
        log = LogWriter(Store(url=f"sqlite:///{tmp_path}/a.db", flush_ms=0), now=lambda: 0.0)
        for number in range(40):
            log.append(seen(number, both))
        log.close()
        stop_experiment(writer, "e", author="a", reason="r")
        log = LogWriter(Store(url=f"sqlite:///{tmp_path}/a.db", flush_ms=0), now=lambda: 0.0)
        log.append(seen(99, both))  # of a gateway that had not heard of the end
        log.close()
        result = list(read_draws(log.path, held(writer)["e", 1]))
    assert len(result) == 40
    assert {1 + len(draw.others) for _, draw, _ in result} == {2}
    assert len({draw.unit for _, draw, _ in result}) == 20
    assert [seq for seq, _, _ in result] == sorted(seq for seq, _, _ in result)
    assert [query for _, _, query in result] == [seen(number, both).query for number in range(40)]
    assert list(read_runs(log.path, held(writer)["e", 1])) == []
