"""The job `advance` on a real log: harm goes back, proof goes forward, and whoever looks again takes the same step."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from suffice.assurance.runs import Match
from suffice.control.compare.assessment import Assessment, RolloutAssessor, standing_of
from suffice.control.compare.counterfactual import AuditReplay
from suffice.control.jobs.proposals import Advance
from suffice.review.decide import OverrideForm
from suffice.rollout.evidence import Rules, rules_of
from suffice.rollout.versions import Version, VersionLineage
from suffice.settings import Control, Rollout, Route, Settings
from suffice.store.database.decisions import Decisions
from suffice.store.database.sqlite import SqliteConnection
from suffice.store.database.views import LogReader, label_requests, open_reader
from suffice.store.people.deciding import open_incident, set_override
from suffice.store.routes import rollouts
from suffice.store.routes.deployments import NOTHING
from suffice.store.routes.rollouts import RolloutRun, read_rollouts
from suffice.store.rows.events import Event
from suffice.types import ArmDraw, Epoch, Pause, Query
from tests.control.made import label, one_round, run

OWN = {"policy": "stable-answer", "streak": 5}
ROUTE = Route(
    upstream="up",
    kind="samples",
    samples=8,
    scorer="number",
    mode="enforce",
    uncertified=True,
    policy=OWN,
    label_timeout_s=1e9,
)
RULES = Rules(least_stage_s=0.0, warmup_requests=0, warmup_s=0.0)
SECRET = "the deployment's own"
SETTINGS = Settings(routes={"r": ROUTE})


@contextmanager
def matches(_: Route) -> Any:
    match: Match = lambda answer, gold: answer == gold
    yield match


def standing(connection: LogReader, trial: Trial) -> Assessment:
    """What whoever asks is told."""
    return standing_of(connection, trial.held, SETTINGS, matches, secret=SECRET, now_s=1_000.0)


class Trial:
    """A log, a clock that stands still, and the job."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writer = Decisions(path, now=lambda: 1_000.0, monotonic_s=lambda: 0.0)
        self.n = 0

    def begin(self, policy: dict[str, Any], rules: Rules = RULES) -> RolloutRun:
        version = Version(
            form="policy",
            body=policy,
            kind="samples",
            scorer="number",
            model_family=None,
            lineage=VersionLineage(parent=None, proposed_by="person:ann", why="saves more"),
        )
        one = rollouts.own_candidate(read_rollouts(self.path), version, route="r", own=rollouts.own_version(ROUTE))
        assert not isinstance(one, str), one
        started = rollouts.start_candidate(
            self.writer, one, author="ann", reason="x", name=f"r-{self.n}", rules=rules, secret=SECRET
        )
        assert not isinstance(started, str), started
        return started

    def audits(self, n: int, **options: Any) -> None:
        """Full runs, each with a word that the full run was right."""
        events, rng = list[Event](), random.Random(self.n)
        for number in range(self.n, self.n + n):
            request, outcome = run(number, rng, **options)
            events += [request, outcome, label(number, correct=True)]
        self.n += n
        self.writer.write(None, events)

    def live(
        self,
        n: int,
        ends: Callable[[str, random.Random], dict[str, Any]],
        says: Callable[[str, random.Random], tuple[str, bool | None]] = lambda *_: ("", None),
    ) -> None:
        """Runs of new units, half of them of each arm; of a class, and with what was said of each."""
        events, rng, state = list[Event](), random.Random(self.n), self.held.state
        for number in range(self.n, self.n + n):
            arm = "candidate" if rng.random() < 0.5 else "control"
            name, right = says(arm, rng)
            draw = ArmDraw(
                experiment=f"rollout {state.rollout}",
                run=1,
                arm=arm,
                propensity=state.share,
                others=(),
                unit=f"u{number}",
            )
            query = Query(planned_steps=8, query_class=name)
            request, outcome = run(number, rng, sure=True, audit=False, query=query, received_at_s=1_000.0)
            events += [replace(request, arms=(draw,)), replace(outcome, **ends(arm, rng))]
            events += [] if right is None else [label(number, correct=right)]
        self.n += n
        self.writer.write(None, events)

    def promote(self) -> None:
        moved = rollouts.step(self.writer, "r", "promote", author="ann", reason="go")
        assert not isinstance(moved, str), moved

    @property
    def held(self) -> RolloutRun:
        return read_rollouts(self.path)[-1]

    def job(self, route: Route = ROUTE) -> Advance:
        return Advance(
            settings=Settings(routes={"r": route}),
            path=self.path,
            author="w",
            matches=matches,
            secret=SECRET,
            now=lambda: 1_000.0,
            monotonic_s=lambda: 0.0,
        )

    def look(self, route: Route = ROUTE) -> Sequence[str]:
        """One round of the worker, which knows nothing but the log; what it said."""
        job = self.job(route)
        return one_round(self.path, job)


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return Trial(tmp_path / "log.db")


def test_a_candidate_that_loses_answers_goes_back_before_anybody_is_served_by_it(trial: Trial) -> None:
    trial.begin({"policy": "fixed-rounds", "max_steps": 1})
    for _ in range(6):
        trial.audits(60, p_right=0.5)
        (summary,) = trial.look()
        if summary:
            break
    assert "roll back" in summary
    held = trial.held
    assert held.state.stage == "rolled_back"
    assert [move.by for move in held.moves] == ["evidence"]
    assert held.moves[0].readings, "what it stood on is on record"
    assert held.state.share == 0
    assert trial.look() == []


def test_a_harmless_candidate_leaves_shadow_when_it_is_proved_and_not_before(trial: Trial) -> None:
    trial.begin({"policy": "stable-answer", "streak": 3})
    trial.audits(60, p_right=0.97)
    assert not any(trial.look())
    assert trial.held.state.stage == "shadow", "not enough data is a state"
    trial.audits(900, p_right=0.99)
    (summary,) = trial.look()
    assert "promote, canary at 10%" in summary
    assert trial.held.state.share == 0.1


def test_live_errors_send_a_canary_back_though_its_answers_are_right(trial: Trial) -> None:
    trial.begin({"policy": "stable-answer", "streak": 3})
    trial.promote()

    def ends(arm: str, rng: random.Random) -> dict[str, Any]:
        fails = arm == "candidate" and rng.random() < 0.3
        return {"end_reason": "upstream_error", "answer": None, "status": 502} if fails else {}

    trial.live(400, ends)
    (summary,) = trial.look()
    assert "roll back" in summary
    assert "error" in trial.held.moves[-1].reason


def test_a_candidate_that_stops_everything_never_leaves_shadow(trial: Trial) -> None:
    trial.begin({"policy": "fixed-rounds", "max_steps": 1})
    trial.audits(900, sure=True)
    trial.look()
    assert trial.held.state.stage in ("shadow", "rolled_back")
    assert trial.held.state.share == 0


def test_a_rule_that_changes_while_a_rollout_runs_holds_for_the_next_one(trial: Trial) -> None:
    lax = msgspec.structs.replace(
        ROUTE,
        rollout=Rollout(
            em_margin=0.9,
            class_em_margin=0.9,
            least_audits=1,
            least_class_audits=1,
            shares=(0.5,),
            least_stage_s=0.0,
        ),
    )
    trial.begin({"policy": "stable-answer", "streak": 3})
    trial.audits(60, p_right=0.97)
    assert not any(trial.look(lax)), "evidence that was looked at is judged by the margins that stood before it"
    assert trial.held.rules == RULES
    trial.promote()
    assert (trial.held.state.share, trial.held.rules.n_steps) == (0.1, 4), "a person's step is that of its own rules"
    rollouts.step(trial.writer, "r", "rollback", author="ann", reason="now under the new ones")
    trial.begin({"policy": "stable-answer", "streak": 3}, rules_of(lax))
    trial.audits(60, p_right=0.97)
    (summary,) = trial.look()
    assert "promote, canary at 50%" in summary, "and they hold though the settings have others again"


def test_a_rollout_of_a_log_without_rules_has_the_usual_ones(trial: Trial) -> None:
    trial.begin({"policy": "stable-answer", "streak": 3})
    with trial.writer.transaction() as connection:
        connection.execute(
            "UPDATE events SET body = json_remove(body, '$.beginning.rules', '$.start.rules')"
            " WHERE kind = 'rollout_begun'"
        )
    assert trial.held.rules == Rules()


def test_people_are_asked_about_audits_on_which_the_two_versions_differ(trial: Trial) -> None:
    trial.begin({"policy": "fixed-rounds", "max_steps": 1})
    events, rng = list[Event](), random.Random(3)
    for number in range(40):
        request, outcome = run(number, rng, sure=number < 30, p_right=0.5)
        events += [request, outcome]
    trial.writer.write(None, events)
    (summary,) = trial.look()
    with open_reader(trial.path) as connection:
        wanted = label_requests(connection, "r")
        pending = standing(connection, trial).evidence.all_audits.pending
    assert f"{len(wanted)} labels wanted" in summary
    assert 0 < pending == len(wanted) < 11
    assert all(one.would_answer != one.answer for one in wanted.values()), "a reviewer is shown two answers"
    assert trial.look() == [""], "once is enough"


def test_two_workers_that_look_at_the_same_log_write_one_step(trial: Trial) -> None:
    trial.begin({"policy": "fixed-rounds", "max_steps": 1})
    trial.audits(360, p_right=0.5)
    before = replace(trial.held)
    trial.look()
    trial.look()
    assert len(trial.held.moves) == 1
    assert before.moves == ()


def proved(trial: Trial) -> None:
    """A rollout with everything that it takes to leave shadow."""
    trial.begin({"policy": "stable-answer", "streak": 3})
    trial.audits(500, p_right=0.99)


def paused(trial: Trial) -> None:
    pause = Pause(route="r", number=1, cause="critical_em", reason="too many wrong answers", author="w")
    trial.writer.write(None, [pause])


def complained(trial: Trial) -> None:
    incident = open_incident(trial.writer, "r", ROUTE, "answers about tax look odd", "ann", now_s=1_000.0)
    assert not isinstance(incident, str), incident


def overridden(trial: Trial) -> None:
    wanted = OverrideForm(kind="observe", reason="exams", author="ann", days=1.0)
    override = set_override(trial.writer, "r", ROUTE, wanted, now_s=1_000.0)
    assert not isinstance(override, str), override


def began_anew(trial: Trial) -> None:
    seq = trial.held.seq + 1
    epoch = Epoch(route="r", number=1, at=0, since_seq=seq, reason="another model answers", author="w")
    trial.writer.write(None, [epoch])


@pytest.mark.slow(keep=3)
@pytest.mark.parametrize(
    ("what", "says"),
    [
        (paused, "paused: too many wrong"),
        (complained, "waits for a person: answers about tax"),
        (overridden, "a person holds"),
        (began_anew, "epoch 1 began during the rollout: another model"),
    ],
)
def test_nothing_goes_forward_while_something_is_wrong_on_the_route(
    trial: Trial, what: Callable[[Trial], None], says: str
) -> None:
    proved(trial)
    what(trial)
    assert not any(trial.look())
    with open_reader(trial.path) as connection:
        seen = standing(connection, trial)
    assert says in "; ".join(seen.standing.missing)
    assert trial.held.state.stage == "shadow"


def test_an_owner_who_writes_another_policy_ends_the_rollout(trial: Trial) -> None:
    proved(trial)
    (summary,) = trial.look(msgspec.structs.replace(ROUTE, policy={"policy": "stable-answer", "streak": 6}))
    assert "roll back" in summary
    assert "publication 1 came in between" in summary


def test_live_labels_that_look_better_over_all_and_are_worse_in_each_class_withhold_it(trial: Trial) -> None:
    proved(trial)
    trial.promote()
    right = {"candidate": {"easy": 0.9, "hard": 0.2}, "control": {"easy": 0.99, "hard": 0.3}}

    labelled = {"candidate": {"easy": 0.9, "hard": 0.2}, "control": {"easy": 0.3, "hard": 0.9}}

    def says(arm: str, rng: random.Random) -> tuple[str, bool | None]:
        name = rng.choice(["easy", "hard"])
        return name, rng.random() < right[arm][name] if rng.random() < labelled[arm][name] else None

    trial.live(600, lambda *_: {}, says)
    with open_reader(trial.path) as connection:
        seen = standing(connection, trial)
    assert any("look better over all" in one for one in seen.standing.missing)
    trial.look()
    assert trial.held.state.share == 0.1


def test_whoever_goes_on_looking_reads_only_what_is_new_and_finds_what_a_new_reader_finds(trial: Trial) -> None:
    trial.begin({"policy": "fixed-rounds", "max_steps": 1})
    with matches(ROUTE) as match, open_reader(trial.path) as connection:
        kept = RolloutAssessor(connection, trial.held, AuditReplay(route=ROUTE, match=match), Control(), secret=SECRET)
    for _ in range(4):
        trial.audits(30, p_right=0.97)
        read_to, queries = kept.gathering.seq, list[str]()
        with open_reader(trial.path) as connection:
            assert isinstance(connection, SqliteConnection)
            connection.set_trace_callback(queries.append)
            seen = kept.see(connection, trial.held, NOTHING, now_s=1_000.0)
            fresh = standing(connection, trial)
        assert (seen.evidence, seen.at, seen.standing) == (fresh.evidence, fresh.at, fresh.standing)
        assert seen.evidence.n_audits == trial.n
        rows = [one for one in queries if "FROM events WHERE seq >" in one and "LIMIT" in one]
        assert f"seq > {read_to}\n" in rows[0], "it goes on behind the last row that it read"


def test_a_version_that_is_gone_leaves_the_rollout_where_it_is(trial: Trial) -> None:
    trial.begin({"policy": "stable-answer", "streak": 3})
    with trial.writer.transaction() as connection:
        connection.execute("DELETE FROM artefacts")
    trial.audits(20)
    (summary,) = trial.look()
    assert "stays where it is" in summary
    assert trial.held.state.stage == "shadow"
