"""From a real log to what an experiment shows: witnesses, audits replayed for every arm, and what must not count."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest

from suffice.control.compare.counterfactual import AuditReplay
from suffice.control.compare.experiments import gather, read_experiment
from suffice.control.evidence.audits import Audit
from suffice.control.evidence.versions import read_back
from suffice.control.jobs.proposals import ExperimentWatch
from suffice.errors import ConfigError
from suffice.rollout.experiment import Arm, draw_arms, units_of
from suffice.rollout.results import EM, LATENCY, SATISFACTION, TOKENS, ExperimentData
from suffice.settings import Settings, Store, parse_settings
from suffice.store.database.decisions import Decisions
from suffice.store.database.views import open_reader, read_events
from suffice.store.database.writer import LogWriter
from suffice.store.people.alerts import alert_of, resolutions_of
from suffice.store.routes.experiments import (
    ExperimentRun,
    read_experiments,
    read_worse_arms,
    start_experiment,
    stop_experiment,
)
from suffice.store.rows.events import Event, ExperimentEnd, ExperimentStart, FeedbackEvent, WorseArm
from suffice.types import Episode, Feedback, Outcome, Request, Usage
from tests.control.made import ROUTE, one_round, rows, run, traffic
from tests.control.made import story as certify

BRISK = {"policy": "stable-answer", "streak": 2}


def settings(**changes: Any) -> Settings:
    """A route of eight samples whose owner lets it stop at four equal answers, and an experiment with two."""
    experiment = {
        "routes": ["r"],
        "unit": "conversation",
        "warmup_units": 20,
        "arms": {"full": {"full": True}, "brisk": {"policy": BRISK}},
        **changes,
    }
    return parse_settings(
        {
            "upstreams": {"up": {"url": "http://h"}},
            "routes": {
                "r": {
                    "upstream": "up",
                    "kind": "samples",
                    "samples": 8,
                    "scorer": "number",
                    "mode": "enforce",
                    "policy": {"policy": "stable-answer", "streak": 4},
                    "uncertified": True,
                }
            },
            "metrics": {"solved": {"type": "boolean"}, "tone": {"type": "category", "values": ["warm", "cold"]}},
            "experiments": {"e": experiment},
        }
    )


@dataclass
class Story:
    """A log with an experiment that runs, and a way to add what happens."""

    folder: Path
    settings: Settings
    held: ExperimentRun
    rng: random.Random = field(default_factory=lambda: random.Random(1))
    n: int = 0

    @property
    def path(self) -> Path:
        return self.folder / "a.db"

    def write(self, events: Sequence[Event]) -> None:
        log = LogWriter(Store(url=f"sqlite:///{self.path}", flush_ms=0), now=lambda: 0.0)
        for event in events:
            assert log.append(event)
        log.close()

    def request(self, of: str, *, audit: bool = False, **changes: Any) -> tuple[Request, Outcome]:
        """A run of a unit in the arm that it draws, as a gateway would have served it."""
        self.n += 1
        arms = draw_arms([self.held.experiment], route="r", units=units_of("", request=of), salt="s")
        request, outcome = run(self.n, self.rng, audit=audit, propensity=0.1 if audit else 0.9, **changes)
        request = replace(request, arms=arms)
        if arms and arms[0].arm == "brisk" and not audit:
            usage = Usage(prompt_tokens=5, completion_tokens=100)
            outcome = replace(outcome, usage=usage, steps=outcome.steps[:2], stopped=True, stop_step=2)
            outcome = replace(outcome, end_reason="stopped")
        elif arms and arms[0].arm == "full":
            request = replace(request, mode="observe")
        return request, replace(outcome, duration_s=2.0)

    def ran(self, unit: str, *labels: Feedback, **options: Any) -> Request:
        request, outcome = self.request(unit, **options)
        given = [FeedbackEvent(replace(one, episode_id=request.episode_id)) for one in labels]
        self.write([request, outcome, *given])
        return request

    def material(self) -> ExperimentData:
        held = next(one for one in read_experiments(self.path) if one.experiment.name == "e")
        with open_reader(self.path) as connection:
            return gather(connection, held, self.settings)


def story(folder: Path, **changes: Any) -> Story:
    given = settings(**changes)
    with Decisions(folder / "a.db", now=lambda: 0.0, monotonic_s=lambda: 0.0) as writer:
        begun = start_experiment(writer, "e", given.experiments["e"], author="a", reason="r")
    assert isinstance(begun, ExperimentStart)
    return Story(folder, given, read_experiments(folder / "a.db")[0])


@pytest.fixture
def trial(tmp_path: Path) -> Story:
    return story(tmp_path)


def of(arm: str, trial: Story) -> Iterator[str]:
    """Units that draw this arm."""
    for number in range(10_000):
        unit = f"{arm}-{number}"
        if draw_arms([trial.held.experiment], route="r", units=units_of("", request=unit), salt="s")[0].arm == arm:
            yield unit


def test_a_run_tells_its_tokens_its_time_and_what_people_said(trial: Story) -> None:
    full, brisk = next(of("full", trial)), next(of("brisk", trial))
    trial.ran(brisk, Feedback(feedback_id="a", rating=4), Feedback(feedback_id="b", correct=True, source="reviewer"))
    trial.ran(full, Feedback(feedback_id="c", metrics=(("solved", True), ("tone", "warm"), ("unknown", 3.0))))
    data = trial.material()
    assert [(one.arm, one.value) for one in data.values[SATISFACTION]] == [("brisk", 0.75)]
    assert [(one.arm, one.value) for one in data.values[EM]] == [("brisk", 1.0)]
    assert [(one.arm, one.value) for one in data.values["solved"]] == [("full", 1.0)]
    assert [(one.arm, one.value) for one in data.values[LATENCY]] == [("brisk", 2.0), ("full", 2.0)]
    assert data.values[TOKENS][0].value == 100
    assert set(data.values) == {SATISFACTION, EM, "solved", LATENCY, TOKENS}
    assert [one.arm for one in data.drawn] == ["brisk", "full"]
    assert all(one.odds == {"full": 0.5, "brisk": 0.5} for one in data.values[TOKENS])


def test_a_unit_is_one_witness_by_its_first_value(trial: Story) -> None:
    brisk = next(of("brisk", trial))
    trial.ran(brisk, Feedback(feedback_id="a", rating=1))
    trial.ran(brisk, Feedback(feedback_id="b", rating=5))
    data = trial.material()
    assert [one.value for one in data.values[SATISFACTION]] == [0.0]
    assert len(data.values[TOKENS]) == len(data.drawn) == 1
    assert data.n_requests == 2


def test_audits_and_what_is_not_governed_stand_for_no_arm(trial: Story) -> None:
    trial.ran(next(of("brisk", trial)), audit=True)
    trial.ran(next(of("full", trial)), ungoverned="tools")
    data = trial.material()
    assert data.values == {}
    assert len(data.audits) == 1


def test_runs_that_did_not_end_have_no_time_and_those_that_spent_have_tokens(trial: Story) -> None:
    trial.ran(next(of("full", trial)), end_reason="client_left")
    trial.ran(next(of("brisk", trial)), end_reason="rejected")
    data = trial.material()
    assert [one.arm for one in data.values[LATENCY]] == ["brisk"]  # which the story lets end by a stop
    assert len(data.values[TOKENS]) == 2


def test_the_first_units_are_the_warm_up(trial: Story) -> None:
    units = of("brisk", trial)
    for _ in range(25):
        trial.ran(next(units))
    assert [one.warmup for one in trial.material().values[TOKENS]] == [True] * 20 + [False] * 5


def test_an_audit_shows_both_arms_by_replay(trial: Story) -> None:
    """Of eight answers 3, 3, 7 … 7: two equal ones stop the brisk arm, and the full vote says otherwise."""
    request, outcome = trial.request("u", audit=True)
    answers = ["3", "3", *["7"] * 6]
    steps = tuple(replace(step, answer=answer) for step, answer in zip(outcome.steps, answers, strict=True))
    outcome = replace(outcome, steps=steps, answer="7", stopped=False, end_reason="done")
    label = FeedbackEvent(Feedback(feedback_id="g", episode_id=request.episode_id, gold="7", source="reviewer"))
    trial.write([request, outcome, label])
    data = trial.material()
    assert data.paired == {"full", "brisk"}
    arms = data.audits[0].arms
    assert (arms["full"].answer, arms["full"].right) == ("7", True)
    assert (arms["brisk"].answer, arms["brisk"].right) == ("3", False)


def test_an_arm_that_lets_a_run_come_to_its_end_gives_the_full_answer(trial: Story) -> None:
    request, outcome = trial.request("u", audit=True)
    answers = ["1", "2", "1", "2", "1", "2", "1", "1"]
    steps = tuple(replace(step, answer=answer) for step, answer in zip(outcome.steps, answers, strict=True))
    trial.write([request, replace(outcome, steps=steps, answer="1")])
    arms = trial.material().audits[0].arms
    assert arms["brisk"].answer == arms["full"].answer == "1"
    assert arms["brisk"].right is None


def test_what_nobody_saw_shows_nothing(trial: Story) -> None:
    request, outcome = trial.request("u", audit=True)
    steps = (replace(outcome.steps[0], missing=True), *outcome.steps[1:])
    trial.write([request, replace(outcome, steps=steps)])
    left, gone = trial.request("v", audit=True, end_reason="client_left")
    trial.write([left, gone])
    first, second = trial.material().audits
    assert not first.arms["brisk"].seen
    assert not second.arms["full"].seen
    assert not second.arms["brisk"].seen


def test_a_repeated_delivery_of_an_audit_is_no_second_witness(trial: Story) -> None:
    for delivery in (1, 2):
        request, outcome = trial.request("u", audit=True)
        trial.write([replace(request, unit="same", delivery=delivery), outcome])
    assert len(trial.material().audits) == 1


def test_behind_its_end_only_its_own_runs_count(trial: Story) -> None:
    request, outcome = trial.request(next(of("brisk", trial)))
    trial.write([request])
    with Decisions(trial.path, now=lambda: 0.0, monotonic_s=lambda: 0.0) as writer:
        stop_experiment(writer, "e", author="a", reason="r")
    late, ended = trial.request("u", audit=True)
    feedback = FeedbackEvent(Feedback(feedback_id="a", episode_id=request.episode_id, rating=5))
    trial.write([outcome, feedback, replace(late, arms=()), ended])
    data = trial.material()
    assert [one.value for one in data.values[SATISFACTION]] == [1.0]
    assert data.audits == []


def test_an_effort_is_shown_by_audits_that_were_asked_twice_with_it() -> None:
    raw = {
        "upstreams": {"up": {"url": "http://h"}},
        "routes": {"r": {"upstream": "up", "mode": "enforce", "scorer": "number", "effort": "low"}},
    }
    route = parse_settings(raw).routes["r"]
    one = AuditReplay(route=route, match=lambda a, b: a == b, published=lambda _: None, load=lambda _: None)
    own, other = Arm(name="low", weight=1), Arm(name="high", weight=1, effort="high")
    assert (one.replayable(own), one.replayable(other), one.replayable(Arm(name="f", weight=1, full=True))) == (
        True,
        False,
        True,
    )
    request, outcome = run(1, random.Random(0), audit=True)
    paired = replace(outcome, pair_arm="effort=low", pair_propensity=0.9, pair_answer="5")
    audits = [
        Audit(seq=n, at=0, ended_at_s=0, episode=Episode(request=request, outcome=o))
        for n, o in enumerate((paired, outcome))
    ]
    answers = one.arm(own, audits)
    assert answers[0] is not None
    assert answers[0].answer == "5"
    assert answers[1] is None
    assert one.arm(other, audits) == [None, None]


def test_a_whole_experiment_is_looked_at_through_the_log(tmp_path: Path) -> None:
    trial, events = story(tmp_path, margins={"em": 0.2}), list[Event]()
    for number in range(600):
        request, outcome = trial.request(f"u{number}", audit=number % 3 == 0, unit=f"u{number}")
        events += [request, outcome]
    trial.write(events)
    state = read_experiment(trial.path, trial.held, trial.settings)
    assert state.withheld is None
    assert state.n_units == state.n_requests == 600
    arm = state.arms[0]
    assert arm.of(TOKENS).verdict == "better"
    assert arm.of(EM).paired
    assert arm.of(EM).n >= 200
    assert msgspec.json.encode(msgspec.to_builtins(state))


def test_ratings_that_come_arm_by_arm_show_the_same_effect(tmp_path: Path) -> None:
    # As a file of labels has them that somebody sorted: first all of one arm, then all of the other.
    trial, rng = story(tmp_path), random.Random(3)
    events, ratings = list[Event](), list[tuple[str, FeedbackEvent]]()
    for number in range(800):
        request, outcome = trial.request(f"u{number}", unit=f"u{number}")
        arm = request.arms[0].arm
        thumbs: Literal["up", "down"] = "up" if rng.random() < {"full": 0.85, "brisk": 0.55}[arm] else "down"
        given = Feedback(feedback_id=f"f{number}", episode_id=request.episode_id, thumbs=thumbs)
        events += [request, outcome]
        ratings.append((arm, FeedbackEvent(given)))
    trial.write(events + [one for arm in ("full", "brisk") for drawn, one in ratings if drawn == arm])
    comparison = read_experiment(trial.path, trial.held, trial.settings).arms[0].of(SATISFACTION)
    assert comparison.effect == pytest.approx(-0.3, abs=0.08)
    assert comparison.effect == pytest.approx(comparison.plain, abs=0.02)


def test_a_route_that_is_gone_is_said(trial: Story) -> None:
    with (
        open_reader(trial.path) as connection,
        pytest.raises(ConfigError, match="route 'r' is not in the settings any"),
    ):
        gather(connection, trial.held, parse_settings({}))


def test_a_level_is_shown_by_the_version_of_its_time() -> None:
    """What a level would have answered, by the models that served then: as the certificate itself judged it."""
    history = certify().feed(rows(traffic(420, seed=3))).settle()
    made = max(history.published, key=lambda one: one.level)
    version = read_back(made.fit, history.artefacts[made.fit])
    one = AuditReplay(
        route=ROUTE,
        match=lambda a, b: a == b,
        published=lambda seq: made if seq > 10 else None,
        load=lambda address: version if address == made.fit else None,
    )
    rng = random.Random(9)
    audits = [
        Audit(seq=n, at=n, ended_at_s=0, episode=Episode(request=request, outcome=outcome))
        for n, (request, outcome) in enumerate(run(n, rng) for n in range(120))
    ]
    assert made.level > 1
    by_level = {level: one.arm(Arm(name="a", weight=1, level=level), audits) for level in (0, made.level, 99, None)}
    full = [audit.episode.outcome.answer for audit in audits]
    assert [arm.answer for arm in by_level[0] if arm is not None] == full
    assert by_level[99] == by_level[made.level] == by_level[None], "a level is never above what was certified"
    answers = [arm.answer for arm in by_level[made.level] if arm is not None]
    assert answers[:11] == full[:11], "nothing was in force yet"
    halts = one._levels(Arm(name="a", weight=1), audits)
    stops = [halts.get(audit.id) for audit in audits]
    assert sum(stop is not None for stop in stops) > 20
    for audit, halt in zip(audits, stops, strict=True):
        if halt is not None:
            votes = [step.answer for step in audit.episode.outcome.steps[: halt[0] + 1]]
            assert votes.count(halt[1]) == max(votes.count(answer) for answer in votes)
    gone = replace(made, fit="another")
    lost = AuditReplay(route=ROUTE, match=one.match, published=lambda _: gone, load=lambda _: None)
    assert [arm.answer for arm in lost.arm(Arm(name="a", weight=1), audits) if arm is not None] == full


def test_one_key_that_asks_the_model_speaks_for_a_share_of_the_units(trial: Story) -> None:
    units = of("brisk", trial)
    for number in range(60):
        loud = number < 40
        feedback = Feedback(
            feedback_id=f"f{number}", rating=1 if loud else 5, sender="k" if loud else f"s{number}", door="key"
        )
        trial.ran(next(units), feedback)
    values = [one.value for one in trial.material().values[SATISFACTION]]
    assert values == [0.0] * 3 + [1.0] * 20, "5 % of 60 units, and everybody else"


def test_what_a_unit_says_after_the_weights_changed_does_not_count(trial: Story) -> None:
    early, late = next(of("full", trial)), "somebody new"
    trial.ran(early)
    arms = {"full": {"full": True}, "brisk": {"policy": BRISK, "weight": 9.0}}
    given = settings(arms=arms).experiments["e"]
    with Decisions(trial.path, now=lambda: 0.0, monotonic_s=lambda: 0.0) as writer:
        assert isinstance(start_experiment(writer, "e", given, author="a", reason="r"), ExperimentStart)
    trial.held = read_experiments(trial.path)[0]
    trial.ran(early, Feedback(feedback_id="a", rating=5))
    trial.ran(late, Feedback(feedback_id="b", rating=1))
    data = trial.material()
    assert [one.value for one in data.values[SATISFACTION]] == [0.0]
    assert [one.odds["brisk"] for one in data.values[TOKENS]] == [0.5, 0.9]


def worse(folder: Path, **changes: Any) -> Story:
    """An experiment on satisfaction whose brisk arm people like far less."""
    trial, events = story(folder, primary="satisfaction", **changes), list[Event]()
    for number in range(1_200):
        request, outcome = trial.request(f"u{number}", unit=f"u{number}")
        rng, brisk = trial.rng, bool(request.arms) and request.arms[0].arm == "brisk"
        thumbs: Any = "up" if rng.random() < (0.4 if brisk else 0.9) else "down"
        feedback = Feedback(feedback_id=f"f{number}", episode_id=request.episode_id, thumbs=thumbs, source="user")
        events += [request, outcome, FeedbackEvent(feedback)]
    trial.write(events)
    return trial


def look(trial: Story, written: Settings) -> list[str]:
    job = ExperimentWatch(settings=written, path=trial.path, author="worker 1", now=lambda: 0.0)
    return list(one_round(trial.path, job))


def test_an_arm_that_is_proved_worse_is_reported_once_and_ends_nothing_by_itself(tmp_path: Path) -> None:
    trial = worse(tmp_path)
    sentences = look(trial, trial.settings)
    assert "'brisk' against 'full' is worse in satisfaction" in sentences[0]
    assert look(trial, trial.settings) == []
    (worse_arm,) = [one.event for one in read_events(trial.path) if isinstance(one.event, WorseArm)]
    notice, cause = alert_of(worse_arm) or (None, None)
    assert notice is not None
    assert (notice.kind, notice.path) == ("worse_arm", "/experiments")
    assert "worse in satisfaction" in notice.sentence
    assert read_experiments(trial.path)[0].runs
    assert read_worse_arms(trial.path, "r") == (worse_arm,), "and status of its route"
    assert read_worse_arms(trial.path, "another") == ()

    with Decisions(trial.path, now=lambda: 0.0, monotonic_s=lambda: 0.0) as writer:
        ended = stop_experiment(writer, "e", author="ann", reason="enough")
    assert isinstance(ended, ExperimentEnd)
    assert cause is not None
    assert [one.ends(cause) for one in resolutions_of(ended)] == [True]
    assert read_worse_arms(trial.path, "r") == ()


def test_an_experiment_ends_when_an_arm_is_worse_if_its_owner_says_so(tmp_path: Path) -> None:
    trial = worse(tmp_path, end_when_worse=True)
    assert "ended: arm 'brisk' is proved worse than 'full'" in look(trial, trial.settings)[0]
    (held,) = read_experiments(trial.path)
    assert held.ended is not None
    assert held.ended.author == "worker 1"
    assert "end_when_worse" in held.ended.reason
    assert any("worse in satisfaction" in sentence for sentence in held.ended.summary)
    assert look(trial, trial.settings) == []


def test_an_arm_that_may_be_as_good_raises_nothing(tmp_path: Path) -> None:
    trial = story(tmp_path, primary="satisfaction", end_when_worse=True)
    for number in range(40):
        trial.ran(f"u{number}", Feedback(feedback_id=f"f{number}", rating=3, source="user"))
    assert look(trial, trial.settings) == []
    assert read_experiments(trial.path)[0].runs
