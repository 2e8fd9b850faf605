"""The job `advance` on a real log: harm goes back, proof goes forward, and whoever looks again takes the same step."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from suffice.assurance.runs import Match
from suffice.control.advance import Advance
from suffice.control.jobs import Worker
from suffice.rollout import stages
from suffice.rollout.rules import Rules
from suffice.rollout.versions import Lineage, make_version
from suffice.settings import Route, Settings
from suffice.store import rollouts
from suffice.store.decisions import Decisions
from suffice.store.events import Event, RequestEnded, RequestSeen
from suffice.store.rollouts import Held, read_rollouts
from suffice.types import ArmDraw
from tests.control.made import label, run

OWN = {"policy": "stable-answer", "streak": 5}
ROUTE = Route(
    upstream="up", kind="samples", samples=8, scorer="number", mode="enforce", uncertified=True, policy=OWN,
    label_timeout_s=1e9,
)  # fmt: skip
RULES = Rules(least_stage_s=0.0, warmup_requests=0, warmup_s=0.0)
SECRET = "the deployment's own"


@contextmanager
def matches(_: Route) -> Any:
    match: Match = lambda answer, gold: answer == gold
    yield match


class World:
    """A log, a clock that stands still, and the job."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writer = Decisions.open(path, now=lambda: 1_000.0, monotonic_s=lambda: 0.0)
        self.n = 0

    def begin(self, policy: dict[str, Any]) -> Held:
        version = make_version(
            "policy", policy, kind="samples", scorer="number", model_family=None,
            lineage=Lineage(parent=None, proposed_by="person:ann", why="saves more"),
        )  # fmt: skip
        found = rollouts.propose(
            self.writer, version, route="r", own=rollouts.own_version(ROUTE), author="ann", reason="x",
            name=f"r-{self.n}", rules=RULES, secret=SECRET,
        )  # fmt: skip
        assert not isinstance(found, str), found
        return found

    def audits(self, n: int, **options: Any) -> None:
        """Full runs, each with a word that the full run was right."""
        events, rng = list[Event](), random.Random(self.n)
        for number in range(self.n, self.n + n):
            request, outcome = run(number, rng, **options)
            events += [RequestSeen(request), RequestEnded(outcome), label(number, correct=True)]
        self.n += n
        self.writer.write(None, events)

    def live(self, n: int, ends: Callable[[str, random.Random], dict[str, Any]]) -> None:
        """Runs of new units, half of them of each arm."""
        events, rng, state = list[Event](), random.Random(self.n), self.held.state
        for number in range(self.n, self.n + n):
            arm = "candidate" if rng.random() < 0.5 else "control"
            draw = ArmDraw(
                experiment=f"rollout {state.rollout}", run=1, arm=arm, propensity=state.share, others=(),
                unit=f"u{number}",
            )  # fmt: skip
            request, outcome = run(number, rng, sure=True, audit=False)
            events += [RequestSeen(replace(request, arms=(draw,))), RequestEnded(replace(outcome, **ends(arm, rng)))]
        self.n += n
        self.writer.write(None, events)

    def promote(self) -> None:
        at = sum(one.episode.request.ungoverned is None for one in rollouts_runs(self.path))
        moved = rollouts.move(
            self.writer, "r", lambda state: stages.promote(state, RULES, by="person:ann", reason="go", at=at, now_s=0.0)
        )
        assert not isinstance(moved, str), moved

    @property
    def held(self) -> Held:
        return read_rollouts(self.path)[-1]

    def look(self) -> Sequence[str]:
        """One round of the worker, which knows nothing but the log; what it said."""
        job = Advance(
            settings=Settings(routes={"r": ROUTE}), path=self.path, author="w", matches=matches, secret=SECRET,
            now=lambda: 1_000.0, monotonic_s=lambda: 0.0, rules=RULES,
        )  # fmt: skip
        with Decisions.open(self.path, now=lambda: 1_000.0, monotonic_s=lambda: 0.0) as writer:
            worker = Worker(
                decisions=writer, jobs=(job,), author="w", now=lambda: 0.0, monotonic_s=lambda: 0.0,
                new_id=lambda: uuid4().hex,
            )  # fmt: skip
            return [report.said for report in worker.once("advance") or ()]


def rollouts_runs(path: Path) -> list[Any]:
    from suffice.store.views import read_episodes

    return list(read_episodes(path, "r", read_rollouts(path)[-1].seq))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "log.db")


def test_a_candidate_that_loses_answers_goes_back_before_anybody_is_served_by_it(world: World) -> None:
    world.begin({"policy": "fixed-rounds", "max_steps": 1})
    for _ in range(6):
        world.audits(60, p_right=0.5)
        (said,) = world.look()
        if said:
            break
    assert "roll_back" in said
    held = world.held
    assert held.state.stage == "rolled_back"
    assert [move.by for move in held.moves] == ["evidence"]
    assert held.moves[0].readings, "what it stood on is on record"
    assert held.state.share == 0
    assert world.look() == []


def test_a_harmless_candidate_leaves_shadow_when_it_is_proved_and_not_before(world: World) -> None:
    world.begin({"policy": "stable-answer", "streak": 3})
    world.audits(60, p_right=0.97)
    assert not any(world.look())
    assert world.held.state.stage == "shadow", "not enough data is a state"
    world.audits(900, p_right=0.99)
    (said,) = world.look()
    assert "promote, canary at 10%" in said
    assert world.held.state.share == 0.1


def test_live_errors_send_a_canary_back_though_its_answers_are_right(world: World) -> None:
    world.begin({"policy": "stable-answer", "streak": 3})
    world.promote()

    def ends(arm: str, rng: random.Random) -> dict[str, Any]:
        fails = arm == "candidate" and rng.random() < 0.3
        return {"end_reason": "upstream_error", "answer": None, "status": 502} if fails else {}

    world.live(400, ends)
    (said,) = world.look()
    assert "roll_back" in said
    assert "error" in world.held.moves[-1].reason


def test_a_candidate_that_stops_everything_never_leaves_shadow(world: World) -> None:
    world.begin({"policy": "fixed-rounds", "max_steps": 1})
    world.audits(900, sure=True)
    world.look()
    assert world.held.state.stage in ("shadow", "rolled_back")
    assert world.held.state.share == 0


def test_two_workers_that_look_at_the_same_log_write_one_step(world: World) -> None:
    world.begin({"policy": "fixed-rounds", "max_steps": 1})
    world.audits(360, p_right=0.5)
    before = replace(world.held)
    world.look()
    world.look()
    assert len(world.held.moves) == 1
    assert before.moves == ()


def test_a_version_that_is_gone_leaves_the_rollout_where_it_is(world: World) -> None:
    world.begin({"policy": "stable-answer", "streak": 3})
    with world.writer.transaction() as connection:
        connection.execute("DELETE FROM artefacts")
    world.audits(20)
    (said,) = world.look()
    assert "stays where it is" in said
    assert world.held.state.stage == "shadow"
