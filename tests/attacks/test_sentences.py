"""States in which a sentence could lie: what status, decisions, figures and lines say, against what is so."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import CliRunner

from suffice.assurance.saving import LESS_EFFORT
from suffice.certification.certifier import Certifier
from suffice.certification.level_report import explain_level
from suffice.cli.inspect.route_report import phase_lines
from suffice.cli.main import main
from suffice.review.decide import DecisionInputs, DecisionRows, IncidentForm, describe_state, resolve_incident
from suffice.review.holds import NO_HOLDS, Override, in_effect
from suffice.review.route_guarantee import GuaranteeInputs, guarantee_of
from suffice.settings import Route, Settings, Store, parse_settings
from suffice.store.database.writer import LogWriter
from suffice.store.routes.deployments import RouteDeployment, phase_of
from suffice.store.rows.events import Event
from suffice.types import Epoch, EvidenceSummary, Pause, Publication, Resumption, Usage
from suffice.types import Outcome as Ended
from suffice.wiring.keys import kill_file
from tests.records import plain_request

OWN: dict[str, Any] = {"policy": {"policy": "stable-answer"}}
RISKY: dict[str, Any] = {**OWN, "uncertified": True}
EFFORT: dict[str, Any] = {"effort": "low"}
FAR_S = 4_000_000_000.0


def began(number: int = 1) -> Epoch:
    return Epoch(route="r", number=number, at=0, since_seq=0, reason="cold start", author="w", burst=9)


def published(number: int = 1, level: int = 3, **changes: Any) -> Publication:
    known: dict[str, Any] = {
        "route": "r",
        "number": number,
        "epoch": 1,
        "at": 9,
        "version": "v",
        "fit": "v",
        "level": level,
        "n_levels": 9,
        "certified": level > 0,
        "share": 0.05,
        "reason": "x",
        "author": "w",
        "setup": "",
        "evidence": EvidenceSummary(n_audits=400, n_disagreeing=2, max_em_drop=0.02, confidence=0.95, share=0.7),
    }
    return Publication(**(known | changes))


def paused(number: int = 1) -> Pause:
    return Pause(route="r", number=number, cause="person", reason="look", author="ann")


def resumed(number: int = 1) -> Resumption:
    return Resumption(route="r", number=number, reason="fine", author="ann")


def held(kind: Any, *, until_s: float = FAR_S, **changes: Any) -> Override:
    return Override(
        route="r",
        number=1,
        kind=kind,
        reason="x",
        author="ann",
        set_at_s=FAR_S - 9,
        expires_at_s=until_s,
        **changes,
    )


def run(
    number: int, *, mode: Any = "enforce", audit: bool = False, tokens: int = 100, stopped: bool = False, **ended: Any
) -> list[Event]:
    name = f"ep{number}"
    request = plain_request(name, mode=mode, audit=audit, propensity=0.5, question_key=name)
    outcome = Ended(
        episode_id=name,
        end_reason="stopped" if stopped else "done",
        status=200,
        answer="4",
        response_id=None,
        usage=Usage(prompt_tokens=9, completion_tokens=tokens),
        stopped=stopped,
        **ended,
    )
    return [request, outcome]


def of_100(tokens: int) -> dict[str, Any]:
    """What a gateway notes of a shortened run that took so many tokens, where full runs take 100."""
    return {"finish_method": LESS_EFFORT, "tokens_saved_estimate": 100 - tokens}


STOPPED = [event for number in range(30) for event in run(number, stopped=True, tokens=40)]
AUDITS = [event for number in range(100, 130) for event in run(number, audit=True)]


def settings_of(folder: Path, route: dict[str, Any]) -> Settings:
    return parse_settings(
        {
            "upstreams": {"up": {"url": "http://127.0.0.1:9", "driver": "vllm"}},
            "routes": {"r": {"upstream": "up", "mode": "enforce", "scorer": "number", **route}},
            "store": {"url": f"sqlite:///{folder / 'log.db'}"},
        }
    )


def written(folder: Path, events: Iterable[Event]) -> Path:
    log = LogWriter(Store(url=f"sqlite:///{folder / 'log.db'}"), now=lambda: 0.0)
    for event in events:
        assert log.append(event)
    log.close()
    return folder / "log.db"


def config_of(folder: Path, route: dict[str, Any]) -> Path:
    lines = []
    for key, value in ({"upstream": "up", "mode": "enforce", "scorer": "number"} | route).items():
        toml_value = "{policy = " + json.dumps(value["policy"]) + "}" if key == "policy" else json.dumps(value)
        lines.append(f"{key} = {toml_value}")
    file = folder / "suffice.toml"
    file.write_text(
        '[upstreams.up]\nurl = "http://127.0.0.1:9"\ndriver = "vllm"\n[routes.r]\n'
        + "\n".join(lines)
        + f'\n[store]\nurl = "sqlite:///{folder / "log.db"}"\n',
        "utf-8",
    )
    return file


def status(*arguments: str | Path) -> tuple[str, dict[str, Any]]:
    """What a person and a program read of the one route."""
    words = [str(argument) for argument in arguments]
    text, plain = (CliRunner().invoke(main, ["status", *words, *more]) for more in (["--all"], ["--json"]))
    assert (text.exit_code, plain.exit_code) == (0, 0), text.output + plain.output
    return text.output, json.loads(plain.stdout.splitlines()[0])


@dataclass(frozen=True)
class Case:
    """A route in some state."""

    route: dict[str, Any]
    events: list[Event]
    state: str
    has: str = ""  # of the text for people
    lacks: str = ""
    killed: bool = False


CASES: dict[str, Case] = {
    "uncertified, stopped runs": Case(RISKY, STOPPED, "uncertified", "NONE: the policy stops runs", "runs in full"),
    "uncertified, resumed after a pause": Case(
        RISKY, [*STOPPED, paused(), resumed()], "uncertified", "no test vouches", "no control loop has begun"
    ),
    "uncertified, paused": Case(RISKY, [*STOPPED, paused()], "paused", "the route is paused", "NONE"),
    "uncertified, an override that has ended": Case(
        RISKY, [*STOPPED, held("observe", until_s=1e9)], "uncertified", "NONE", "every request runs in full"
    ),
    "uncertified, an override that holds": Case(
        RISKY, [*STOPPED, held("observe")], "held", "an override holds", "NONE"
    ),
    "uncertified, a class that an override holds": Case(
        RISKY, [*STOPPED, held("observe", query_class="law")], "uncertified", "NONE"
    ),
    "uncertified, killed": Case(RISKY, STOPPED, "killed", "the kill switch is on", "NONE", killed=True),
    "uncertified, decisions of an earlier learned life": Case(
        RISKY, [began(), published(), *STOPPED], "uncertified", "NONE", "certified, level"
    ),
    "uncertified effort, nothing published": Case(
        {**EFFORT, "uncertified": True}, STOPPED, "uncertified", "effort=low acts, and is not proved", "all in full"
    ),
    "uncertified effort, paused": Case({**EFFORT, "uncertified": True}, [*STOPPED, paused()], "paused"),
    "uncertified, audits that count for nothing": Case(
        RISKY, [*STOPPED, *AUDITS], "uncertified", "no control loop certifies this route's policy", "more, in"
    ),
    "observe, a policy": Case({**OWN, "mode": "observe"}, STOPPED, "observe", "nothing is stopped", "NONE"),
    "observe, certified": Case({"mode": "observe"}, [began(), published(), *STOPPED], "observe", "the route observes"),
    "off, stopped runs of another day": Case({"mode": "off"}, STOPPED, "off", "pass through untouched", "more, in"),
    "a policy that never stops": Case(
        {"policy": {"policy": "never"}, "uncertified": True}, STOPPED, "idle", "no policy of the route may act"
    ),
    "learned, no worker": Case({}, STOPPED, "unattended", "no control loop has begun"),
    "learned, a first epoch": Case({}, [began(), *STOPPED], "burst", "the first requests of an epoch"),
    "learned, nothing passes": Case({}, [began(), published(level=0), *STOPPED], "searching", "nothing is certified"),
    "learned, certified": Case({}, [began(), published(), *STOPPED], "certified", "less than 2 points of EM", "NONE"),
    "learned, of an ended epoch": Case(
        {}, [began(), published(), began(2), *STOPPED], "burst", lacks="less than 2 points"
    ),
    "learned, the owner wants less loss now": Case(
        {"max_em_drop": 0.01}, [began(), published(), *STOPPED], "void", "not acted on", "No promise"
    ),
    "learned, the owner wants to be surer now": Case(
        {"confidence": 0.99}, [began(), published(), *STOPPED], "void", "does not fit the settings"
    ),
    "learned, a smaller budget by a person": Case(
        {}, [began(), published(), held("budget", max_em_drop=0.005), *STOPPED], "void", lacks="less than 2 points"
    ),
    "learned, capped at level 0": Case({}, [began(), published(), held("cap", level=0), *STOPPED], "held"),
    "learned, certified and paused": Case({}, [began(), published(), paused(), *STOPPED], "paused", "PAUSED until"),
    "learned, paused where load may let a level act": Case(
        {"on_fallback": "availability_first"},
        [began(), published(), paused(), *STOPPED],
        "paused",
        "a level that is not certified any more may act",
    ),
    "effort, published for another effort": Case(
        EFFORT, [began(), published(level=1, fit="", arm="effort=high"), *STOPPED], "void", lacks="asked with"
    ),
    "an owner's policy, not proved yet": Case(OWN, [began(), *STOPPED], "burst", lacks="NONE"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_status_says_what_is_so(tmp_path: Path, case: Case) -> None:
    written(tmp_path, case.events)
    if case.killed:
        kill_file(settings_of(tmp_path, case.route)).touch()
    text, plain = status("--config", config_of(tmp_path, case.route))
    assert plain["promise_state"] == case.state
    assert plain["promise"] in text
    assert case.has in text
    assert not case.lacks or case.lacks not in text


@pytest.mark.parametrize(
    ("route", "mode", "is_so"),
    [
        (RISKY, "enforce", "NONE: the policy stops runs"),
        (OWN, "observe", "the route observes"),
        ({}, "enforce", "nothing is certified"),
        (OWN, "off", "the route's mode is off"),
    ],
    ids=["uncertified", "observing", "learned", "off"],
)
def test_a_resume_says_what_happens_then(tmp_path: Path, route: dict[str, Any], mode: str, is_so: str) -> None:
    """It said "everything runs in full until a level is certified" where 93 % of the runs were stopped."""
    configured = settings_of(tmp_path, {**route, "mode": mode}).routes["r"]
    pause = paused()
    now = DecisionInputs(
        name="r",
        holds=NO_HOLDS.after(pause, 1.0),
        settings=configured,
        epoch=began(),
        pause=pause,
        publication=published(level=0),
    )
    result = resolve_incident(
        IncidentForm(incident="r:p1", decision="resume", reason="fine", author="ann"), now, now_s=2.0
    )
    assert not isinstance(result, DecisionRows) or is_so in result.decision.after
    assert is_so in describe_state(replace(now, pause=None), now_s=2.0)


def test_a_certified_arm_shows_the_saving_that_is_measured_and_no_older_one(tmp_path: Path) -> None:
    """It said "certified, saves 70 %" above "-19.9 % fewer tokens"."""
    dear = [event for number in range(40) for event in run(number, tokens=130, **of_100(130))]
    made = published(level=1, fit="", version="effort=low", arm="effort=low", n_levels=2)
    written(tmp_path, [began(), made, *dear, *AUDITS])
    text, plain = status("--config", config_of(tmp_path, EFFORT))
    assert plain["measured"]["saving"]["value"] == pytest.approx(1 - (40 * 130 + 30 * 100) / 7_000)
    assert "saving                 -17.1%" in text
    assert "70.0%" not in text
    assert "fewer tokens" not in text


def test_stopped_runs_without_an_estimate_are_no_saving_and_are_counted(tmp_path: Path) -> None:
    written(tmp_path, STOPPED)
    text, plain = status("--config", config_of(tmp_path, RISKY))
    assert plain["measured"]["saving"]["value"] == 0
    assert "30 stopped runs without an estimate count as 0" in text


def test_probes_that_cost_more_than_stops_save_are_a_saving_below_nothing(tmp_path: Path) -> None:
    written(
        tmp_path,
        [*AUDITS, *(event for number in range(9) for event in run(number, stopped=True, tokens=400, **of_100(400)))],
    )
    _, plain = status("--config", config_of(tmp_path, RISKY))
    assert plain["measured"]["saving"]["value"] < 0


def test_without_settings_nothing_is_promised_that_hangs_on_them(tmp_path: Path) -> None:
    database = written(tmp_path, [began(), published(), *STOPPED])
    text, plain = status("--db", database)
    assert plain["promise_state"] == "unknown"
    assert "name them with --config" in text


def test_a_log_from_another_scorer_is_scored_anew(tmp_path: Path) -> None:
    from suffice.store.rows.events import FeedbackEvent
    from suffice.types import Feedback
    from suffice.wiring.worker import open_worker

    labels = [FeedbackEvent(Feedback(feedback_id=f"f{n}", episode_id=f"ep{n}", gold="4.0")) for n in range(100, 130)]
    written(tmp_path, [*AUDITS, *labels])
    with open_worker(settings_of(tmp_path, {**RISKY, "scorer": "text"}), learning=False) as here:
        assert here.once("rollup") is not None
    _, letters = status("--config", config_of(tmp_path, {**RISKY, "scorer": "text"}))
    _, numbers = status("--config", config_of(tmp_path, RISKY))
    assert (letters["measured"]["em_full"]["value"], numbers["measured"]["em_full"]["value"]) == (0.0, 1.0)


def test_a_level_that_passes_is_not_certified_because_none_passes() -> None:
    """It said "certified level 40 … because no level passes"."""

    certifier = SimpleNamespace(level=40, share=0.05, idle=False, epoch=SimpleNamespace(n_audits=400))
    sentence = explain_level(cast(Certifier, certifier), (), None, level=40, most=None, fit="m-1")
    assert sentence == "level 40 passes on 400 audits"


def test_a_certified_level_that_nobody_acts_on_says_so() -> None:
    made = published()
    deployment = RouteDeployment(epoch=began(), publication=made, last=made, n_epochs=1)
    phase = dict(phase_lines(phase_of(deployment), per_s=None, acts=False))
    assert phase["phase"].endswith("; not acted on")
    assert "saves" not in phase["phase"]


@pytest.mark.parametrize("beside", [("experiment dearer",), ("a rollout",)], ids=["experiment", "rollout"])
def test_a_promise_names_who_is_outside_of_it(beside: tuple[str, ...]) -> None:
    one = GuaranteeInputs(
        name="r",
        settings=Route(upstream="up", mode="enforce"),
        epoch=began(),
        publication=published(),
        beside=beside,
    )
    assert f"requests that draw an arm of {beside[0]}" in guarantee_of(one).sentence
    assert "draw an arm" not in guarantee_of(replace(one, beside=())).sentence


def test_two_overrides_at_once_are_the_stricter_one() -> None:
    ones = [held("cap", level=2), replace(held("observe"), number=2)]
    one = GuaranteeInputs(
        name="r",
        settings=Route(upstream="up", mode="enforce"),
        epoch=began(),
        publication=published(),
        holding=in_effect(ones, 1.0),
    )
    assert guarantee_of(one).state == "held"
