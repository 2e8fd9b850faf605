"""The fleet's promise on live routes: its requirement and its warm starts are rows that each loop folds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from suffice.assurance.certify import FleetRequirement, WarmStart
from suffice.assurance.runs import Match
from suffice.cli.inspect.status import status
from suffice.control.jobs.certify import Certify
from suffice.settings import Assurance, Route, Settings
from suffice.store.database.decisions import Decisions
from suffice.store.database.views import read_kinds
from suffice.store.routes.deployments import read_decided, read_fleet
from suffice.store.rows.events import Event, kind_named
from suffice.types import Epoch, Outcome, Publication, Request
from tests.control.made import BURST, CONTROL, ROUTE, began, one_round, rows, story, traffic

LONG = 400
FLEET = Assurance(fleet_confidence=0.9)


def required(wealth: float, number: int = 1) -> FleetRequirement:
    return FleetRequirement(
        number=number,
        wealth=wealth,
        confidence=0.9,
        n_routes=2,
        n_certified=1,
        evidence=(),
        reason="",
        author="w",
    )


def on(route: str, events: Sequence[Event]) -> list[Event]:
    """The same traffic on another route."""
    moved = list[Event]()
    for event in events:
        if isinstance(event, Request):
            moved.append(
                replace(event, route=route, episode_id=f"{route}_{event.episode_id}", unit=f"{route}{event.unit}")
            )
        elif isinstance(event, Outcome):
            moved.append(
                replace(event, episode_id=f"{route}_{event.episode_id}", response_id=f"{route}-{event.response_id}")
            )
    return moved


class Fleet:
    """A log of several routes, and rounds of the worker that knows nothing else."""

    def __init__(self, path: Path, assurance: Assurance = FLEET, **routes: Route) -> None:
        self.path, self.settings = path, Settings(routes=routes, control=CONTROL, assurance=assurance)

    def write(self, *events: Event, days: float = 0.0) -> None:
        with Decisions(self.path, now=lambda: 1_000.0 + 86_400 * days, monotonic_s=lambda: 0.0) as writer:
            writer.write(None, events)

    def look(self, n: int = 1) -> None:
        for _ in range(n):
            one_round(
                self.path,
                Certify(settings=self.settings, path=self.path, author="w", matches=matches),
            )

    def rows(self, *payloads: type[Any]) -> list[Any]:
        return [stored.event for stored in read_kinds(self.path, *map(kind_named, payloads))]


@contextmanager
def matches(_: object) -> Iterator[Match]:
    yield lambda answer, gold: answer == gold


# ---------------------------------------------------------------- the fold


def test_a_requirement_in_the_log_holds_a_level_back_and_a_lower_one_lets_it_act_at_once() -> None:
    log = traffic(LONG)
    free = story().feed(rows(log)).settle()
    assert free.published[0].level > 0
    held = story().feed(rows([required(1e12), *log]))
    assert {made.level for made in held.published} == {0}
    before = held.loop.n
    held.feed(rows([required(10.0, 2)], first=len(log) + 2))
    assert held.loop.n == before
    assert held.published[-1].level > 0, "without another request"
    assert held.published[-1].at == before


def test_a_higher_requirement_takes_levels_away_that_do_not_reach_it() -> None:
    log = traffic(LONG)
    acting = story().feed(rows(log))
    assert acting.loop.level > 0
    acting.feed(rows([required(1e12)], first=len(log) + 1))
    assert acting.loop.level == 0


@pytest.mark.parametrize("cut", [2 * BURST + 40, 2 * LONG + 2])
def test_a_replay_decides_the_same_and_a_killed_worker_is_followed(cut: int) -> None:
    log = rows([*traffic(BURST + 40), required(1e12), *traffic(60, seed=1, first=BURST + 40), required(20.0, 2)])
    log = [*log, *rows(traffic(100, seed=2, first=BURST + 100), first=len(log) + 1)]
    whole = story().feed(log).settle()
    assert len({made.level > 0 for made in whole.published}) == 2
    before = story().feed(log[:cut])
    after = story(expected=before.published, artefacts=before.artefacts).feed(log).settle()
    assert before.published + after.published == whole.published


def test_a_new_epoch_begins_under_the_requirement_in_force() -> None:
    log = [*traffic(BURST + 20), required(1e12), *traffic(60, seed=1, first=BURST + 20, model="another")]
    history = story().feed(rows(log))
    (epoch,) = [event for event in history.decided if isinstance(event, Epoch)]
    assert epoch.required_wealth == 1e12
    again = story(held=replace(began(), epoch=epoch, n_epochs=2))
    assert again.loop.state.delta == pytest.approx(1e-12)


def test_without_the_setting_nothing_changes() -> None:
    state = story().loop.state
    assert state.delta == 1 - ROUTE.confidence
    assert state.epoch.required_wealth == 1


# ---------------------------------------------------------------- the job


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path / "log.db", r=ROUTE, twin=ROUTE, other=replace_route(samples=4))


def replace_route(**changes: Any) -> Route:
    known = {name: getattr(ROUTE, name) for name in ROUTE.__struct_fields__}
    return Route(**(known | changes))


def test_routes_that_reach_it_are_certified_together_and_the_log_says_by_what_evidence(tmp_path: Path) -> None:
    both = Fleet(tmp_path / "log.db", r=ROUTE, twin=ROUTE)
    log = traffic(BURST + 60)
    both.look()
    assert both.rows(FleetRequirement)[0].wealth >= 20, "nobody has evidence: two routes need twice 1/alpha"
    both.write(*log, *on("twin", log))
    both.look(3)
    last = both.rows(FleetRequirement)[-1]
    assert last.n_certified == last.n_routes == 2
    assert last.wealth == pytest.approx(10)
    assert all(one.wealth >= last.wealth for one in last.evidence)
    assert read_fleet(both.path) == "fleet: 2 of 2 routes certified; expected wrong among them at most 10 %"
    result = CliRunner().invoke(status, ["--db", str(both.path)])
    assert result.exit_code == 0, result.output
    assert result.output.endswith("fleet: 2 of 2 routes certified; expected wrong among them at most 10 %\n")
    n = len(both.rows(Publication, FleetRequirement, Epoch))
    both.look(2)
    assert len(both.rows(Publication, FleetRequirement, Epoch)) == n, "it has settled"


def test_a_new_route_begins_with_the_version_of_a_similar_one_and_its_own_audits_certify_it(fleet: Fleet) -> None:
    fleet.look()
    fleet.write(*traffic(BURST + 60))
    fleet.look(2)
    source = read_decided(fleet.path).of("r").publication
    assert source is not None
    assert source.level > 0
    (start,) = fleet.rows(WarmStart)
    assert (start.route, start.source, start.fit) == ("twin", "r", source.fit), "the other takes other samples"
    assert start.burst < BURST
    assert read_decided(fleet.path).of("twin").publication is None, "nothing is certified without its own audits"
    slow = on("twin", traffic(start.burst + 20, seed=9))
    fleet.write(*slow[:40])
    fleet.write(*slow[40:], days=8)
    fleet.look(3)
    made = read_decided(fleet.path).of("twin").publication
    assert made is not None
    assert made.level > 0
    assert made.evidence.n_audits < BURST
    assert made.fit == source.fit


def test_a_busy_route_has_all_the_full_runs_of_a_cold_start(fleet: Fleet) -> None:
    fleet.look()
    fleet.write(*traffic(BURST + 60))
    fleet.look(2)
    (start,) = fleet.rows(WarmStart)
    fleet.write(*on("twin", traffic(BURST - 1, seed=9)), days=1)
    fleet.look(3)
    assert start.burst < BURST
    assert read_decided(fleet.path).of("twin").publication is None


def test_a_misleading_version_acts_only_as_far_as_the_own_audits_of_the_route_certify_it(fleet: Fleet) -> None:
    fleet.look()
    fleet.write(*traffic(BURST + 60))
    fleet.look(2)
    source = read_decided(fleet.path).of("r").publication
    (start,) = fleet.rows(WarmStart)
    split = on("twin", traffic(start.burst + 20, seed=9, sure=False, p_right=0.3))
    fleet.write(*split[:40])
    fleet.write(*split[40:], days=8)
    fleet.look(3)
    made = read_decided(fleet.path).of("twin").publication
    assert source is not None
    assert made is not None
    assert made.level < source.level / 2, "its votes are split where those of the other route agree"
    if made.certified:
        assert made.evidence.n_lost < ROUTE.max_em_drop * made.evidence.n_audits
        assert made.evidence.e_value is not None
        assert made.evidence.e_value >= fleet.rows(FleetRequirement)[-1].wealth


def test_unset_it_writes_nothing_and_removed_it_frees_the_routes(tmp_path: Path) -> None:
    off = Fleet(tmp_path / "log.db", Assurance(), r=ROUTE, twin=ROUTE)
    off.write(*traffic(40))
    off.look(2)
    assert off.rows(FleetRequirement, WarmStart) == []
    assert read_fleet(off.path) == ""
    off.settings = Settings(routes={"r": ROUTE}, control=CONTROL, assurance=FLEET)
    off.look()
    off.settings = Settings(routes={"r": ROUTE}, control=CONTROL)
    off.look(2)
    assert [made.confidence for made in off.rows(FleetRequirement)] == [0.9, None]
    assert off.rows(FleetRequirement)[-1].wealth == 1
    assert read_fleet(off.path) == ""
