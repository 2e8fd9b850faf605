"""Attacks on what grows: floods of labels, of routes and of reviews, and arms that are slow in ways nobody planned.

One case is one attack with its expected answer.
"""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from suffice.errors import ConfigError
from suffice.gateway.context import MOST_ANSWER_CHARS, MOST_RECALLED, LogSampler
from suffice.review.select import Demand, share_out
from suffice.rollout.evidence import GuardrailValue, RolloutEvidence, Rules, UnitRun, read_live
from suffice.settings import parse_settings
from suffice.store.database.views import read_events
from suffice.store.rows.events import FeedbackEvent
from suffice.types import Feedback, Outcome
from suffice_testing import FakeUpstream, ScriptedThought
from tests.gateway_process import GatewayProcess
from tests.records import plain_request

STEPS = [("two and two\n", "3"), ("make four\n", "4"), ("so four\n", "4"), ("yes four\n", "4"), ("wait\n", "5")]
ROUTE: dict[str, Any] = {
    "upstream": "up",
    "mode": "enforce",
    "uncertified": True,
    "scorer": "number",
    "probe": {"verified_by": "owner"},
    "policy": {"policy": "stable-answer", "streak": 3},
    "steps": {"min_tokens": 3, "growth": 1.0},
    "sample_rate": 0.001,
    "audit_share": 0.0,
}

# ---- labels, at a gateway -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with FakeUpstream.in_thread(ScriptedThought(STEPS, "it is 5")) as fake:
        up = {"url": fake.url, "finish": ["raw"], "slots": 4}
        with GatewayProcess.serving(
            tmp_path_factory.mktemp("gateway"), {"upstreams": {"up": up}, "routes": {"r": ROUTE}}
        ) as running:
            yield running


def post(gateway: GatewayProcess, path: str, body: Any) -> tuple[int, Any, Mapping[str, str]]:
    requested = urllib.request.Request(
        f"{gateway.url}/v1/{path}", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(requested, timeout=60) as reply:
            return reply.status, json.load(reply), {key.lower(): value for key, value in reply.headers.items()}
    except urllib.error.HTTPError as error:
        return error.code, json.load(error), {}


def episode(gateway: GatewayProcess) -> str:
    body = {"model": "m", "messages": [{"role": "user", "content": "what is two and two"}]}
    status, _, headers = post(gateway, "chat/completions", body)
    assert status == 200
    return headers["x-suffice-episode-id"]


def stored(gateway: GatewayProcess, prefix: str) -> list[FeedbackEvent]:
    return [
        one.event
        for one in read_events(gateway.database)
        if isinstance(one.event, FeedbackEvent) and one.event.feedback.feedback_id.startswith(prefix)
    ]


FORGED = {"episode_id": "ep_x", "route": "r", "stopped": True, "answer": "5"}
LABEL = {"feedback_id": "x", "episode_id": "ep_x", "correct": True, "source": "user"}
REFUSED: dict[str, tuple[str, Any, str]] = {
    "a run that the client made up, as `about`": ("feedback", {**LABEL, "about": FORGED}, "about"),
    "the weight of a label": ("feedback", {**LABEL, "weight": 1e9}, "weight"),
    "a rate at which its run is kept": ("feedback", {**LABEL, "keep_rate": 1e-9}, "keep_rate"),
    "an id of 100,000 characters": ("feedback", {**LABEL, "episode_id": "e" * 100_000}, "episode_id"),
    "an id that is a list": ("feedback", {**LABEL, "episode_id": ["ep_x"]}, "episode_id"),
    "an id with NUL": ("feedback", {**LABEL, "episode_id": "ep_\x00"}, "episode_id"),
    "odds of asking that are 0": ("feedback", {**LABEL, "propensity": 0}, "propensity"),
    "1,001 labels at once": ("feedback/batch", {"feedback": [LABEL] * 1_001}, "1,001|1001"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_labels_that_are_refused(gateway: GatewayProcess, name: str) -> None:
    path, body, report = REFUSED[name]
    status, answer, _ = post(gateway, path, body)
    assert status == (413 if "at once" in name else 400)
    assert re.search(report, answer["error"]["message"])
    assert not stored(gateway, "x")


def test_a_flood_of_labels_for_unknown_ids_is_stored_joins_nothing_and_leaves_nothing_in_memory(
    gateway: GatewayProcess,
) -> None:
    before = gateway.rss_bytes()
    for flood in range(4):
        rows = [
            {"feedback_id": f"flood-{flood}-{n}", "episode_id": f"ep_{flood}_{n}", "correct": False, "source": "user"}
            for n in range(1_000)
        ]
        status, answer, _ = post(gateway, "feedback/batch", {"feedback": rows})
        assert status == 200
        assert (answer["accepted"], answer["refused"]) == (1_000, 0)
        assert not any(one["joined"] for one in answer["results"])
    assert gateway.rss_bytes() - before < 64 * 2**20
    assert all(one.about is None for one in stored(gateway, "flood-"))


def test_a_storm_of_one_label_is_one_row_and_one_vote(gateway: GatewayProcess) -> None:
    name = episode(gateway)
    one = {"feedback_id": "storm", "episode_id": name, "correct": True, "source": "gold"}
    status, answer, _ = post(gateway, "feedback/batch", {"feedback": [one] * 500})
    assert status == 200
    assert answer["accepted"] == 500
    assert answer["duplicates"] == 499
    (event,) = stored(gateway, "storm")
    assert event.about is not None
    assert event.about.episode_id == name


def test_a_label_of_an_unkept_run_says_what_the_gateway_saw_and_not_what_its_sender_says(
    gateway: GatewayProcess,
) -> None:
    name = episode(gateway)
    given = {"feedback_id": "lie", "episode_id": name, "answer": "77", "correct": False, "source": "user"}
    assert post(gateway, "feedback", given)[0] == 200
    (event,) = stored(gateway, "lie")
    assert event.about is not None
    assert (event.about.episode_id, event.about.route) == (name, "r")
    assert event.about.answer != "77"


# ---- what is remembered, without a gateway --------------------------------------------------------

SETTINGS = parse_settings({"upstreams": {"up": {"url": "http://127.0.0.1:1"}}, "routes": {"r": ROUTE}})
REQUEST = plain_request("e", mode="enforce")


def ended(sampling: LogSampler, name: str, *, response: str | None = None, answer: str = "5", **changes: Any) -> None:
    request, _ = sampling.drawn(replace(REQUEST, episode_id=name, unit=name, **changes))
    sampling.remember(
        request,
        Outcome(
            episode_id=name,
            end_reason="stopped",
            status=200,
            answer=answer,
            response_id=response,
            usage=None,
        ),
        now_s=1.0,
    )


def by(episode_id: str | None = None, response_id: str | None = None) -> Feedback:
    return Feedback(feedback_id="f", episode_id=episode_id, response_id=response_id)


def forgets_the_oldest(sampling: LogSampler) -> None:
    for number in range(MOST_RECALLED + 500):
        ended(sampling, f"e{number}", response=f"r{number}")
    assert sampling.recalled(by(episode_id="e0")) is sampling.recalled(by(response_id="r0")) is None
    assert sampling.recalled(by(episode_id=f"e{MOST_RECALLED}")) is not None
    assert max(len(sampling._recent), len(sampling._answered)) == MOST_RECALLED
    assert not sampling._open


def one_response_id_for_all(sampling: LogSampler) -> None:
    for number in range(100):
        ended(sampling, f"e{number}", response="chatcmpl-0")
    assert sampling.recalled(by(response_id="chatcmpl-0")) is None, "nobody can say which is meant"
    assert len(sampling._answered) == 1


def answers_of_a_megabyte(sampling: LogSampler) -> None:
    for number in range(50):
        ended(sampling, f"e{number}", answer="x" * 2**20)
    assert not sampling._recent
    ended(sampling, "short", answer="x" * MOST_ANSWER_CHARS)
    assert sampling.recalled(by(episode_id="short")) is not None


def what_has_rows_for_certain(sampling: LogSampler) -> None:
    ended(sampling, "audit", audit=True, propensity=0.5)
    ended(sampling, "passed", ungoverned="tools")
    ended(sampling, "observed", mode="observe")
    assert not sampling._recent, "their weight is 1 already, or nobody judges them"
    assert not sampling._open


def an_episode_and_anothers_response(sampling: LogSampler) -> None:
    ended(sampling, "mine", response="r-mine")
    ended(sampling, "other", response="r-other")
    result = sampling.recalled(by(episode_id="mine", response_id="r-other"))
    assert result is not None
    assert result.episode_id == "mine", "the episode is ours to give, the response id is the upstream's"


@pytest.mark.parametrize(
    "attack",
    [
        forgets_the_oldest,
        one_response_id_for_all,
        answers_of_a_megabyte,
        what_has_rows_for_certain,
        an_episode_and_anothers_response,
    ],
)
def test_what_a_gateway_remembers(attack: Callable[[LogSampler], None]) -> None:
    attack(LogSampler(settings=SETTINGS, salt="s"))


# ---- reviews --------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_day", [-1, 10_001, 10**30, "50", 1.5, None, True, float("nan")], ids=repr)
def test_a_daily_cap_that_is_none_is_refused(per_day: Any) -> None:
    with pytest.raises(ConfigError, match=r"review\.per_day"):
        parse_settings({"review": {"per_day": per_day}})


def demand(name: str, **changes: Any) -> Demand:
    known: dict[str, Any] = {
        "n_chosen": 0,
        "n_drawn": 0,
        "drawable": 1,
        "priorities": [5.0] * 30,
        "control_share": 0.2,
    }
    return Demand(route=name, **known | changes)


FLEETS: dict[str, tuple[int, Sequence[Demand], int]] = {
    "5,000 routes and room for 40": (40, [demand(f"r{n}") for n in range(5_000)], 40),
    "one route that wants all of it": (40, [demand("greedy", priorities=[7.0] * 1_000), demand("meek")], 40),
    "no room": (0, [demand("r")], 0),
    "nobody wants anything": (9, [demand("r", drawable=0, priorities=[])], 0),
    "a route that was asked about 10,000 times today": (10, [demand("a", n_chosen=10_000), demand("b")], 10),
    "a control share of all": (10, [demand("r", control_share=1.0, drawable=3)], 10),
    "more room than wishes": (10_000, [demand("a"), demand("b")], 62),
}


@pytest.mark.parametrize("name", FLEETS)
def test_no_fleet_of_routes_gets_more_than_the_cap(name: str) -> None:
    room, demands, expected = FLEETS[name]
    began_s = time.process_time()
    granted = share_out(room, demands, day=7)
    assert time.process_time() - began_s < 2.0
    assert sum(map(sum, granted.values())) == expected
    if "wants all" in name:
        assert sum(granted["meek"]) == 20, "as much as the greedy one"
    if "10,000" in name:
        assert granted["a"] == (0, 0)


# ---- slow arms ------------------------------------------------------------------------------------

RULES = msgspec.structs.replace(Rules(), latency_cap_s=60.0)
Seconds = Callable[[np.random.Generator, int], float]


def read(candidate: Seconds, control: Seconds, *, n: int = 4_000, seed: int = 1) -> list[GuardrailValue]:
    """What the guard-rail of latency says, at each look."""
    rng, evidence, result = np.random.default_rng(seed), RolloutEvidence(), list[GuardrailValue]()
    for at in range(n):
        mine = rng.random() < 0.5
        run = UnitRun(seconds=(candidate if mine else control)(rng, at))
        evidence = evidence.with_run("candidate" if mine else "control", run, RULES)
        if at % 200 == 199:
            result.append(next(one for one in read_live(evidence, RULES) if one.rail == "latency"))
    return result


def fast(rng: np.random.Generator, at: int) -> float:
    return float(rng.exponential(0.2))


SLOW: dict[str, tuple[Seconds, Seconds]] = {
    "hangs in every request": (lambda rng, at: 60.0, fast),
    "hangs in one of fifty": (lambda rng, at: 60.0 if rng.random() < 0.02 else fast(rng, at), fast),
    "sits just below sixteen means in one of twenty": (
        lambda rng, at: 3.0 if rng.random() < 0.05 else fast(rng, at),
        fast,
    ),
    "begins to be slow later": (lambda rng, at: fast(rng, at) * (2.0 if at > 500 else 1.0), fast),
    "is slow beside a control that hung once at the start": (
        lambda rng, at: 1.5 * fast(rng, at),
        lambda rng, at: 60.0 if at < 2 else fast(rng, at),
    ),
    "is twice as slow at a millisecond": (lambda rng, at: 2e-3 * fast(rng, at), lambda rng, at: 1e-3 * fast(rng, at)),
}


@pytest.mark.parametrize("name", SLOW)
def test_a_slow_candidate_is_never_proved_to_be_fine(name: str) -> None:
    result = read(*SLOW[name])
    assert all(one.finding != "fine" for one in result)
    assert result[-1].finding == "harm"


def test_a_control_that_takes_no_time_at_all_proves_nothing() -> None:
    result = read(lambda rng, at: 0.5, lambda rng, at: 0.0)
    assert all(one.finding != "fine" for one in result)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -float("inf")], ids=repr)
def test_a_clock_that_says_no_number_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        RolloutEvidence().with_run("candidate", UnitRun(seconds=seconds), RULES)
