"""`POST /v1/decide` over real sockets: any client, any mistake, runs that are left; and the library against it."""

from __future__ import annotations

import asyncio
import io
import json
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from suffice.gateway import context, open_runs, rounds_service
from suffice.gateway.rounds_service import LIMIT_BYTES
from suffice.governor import Governor
from suffice.store.database.views import read_episodes
from suffice.types import Outcome
from tests.drawn import examples
from tests.gateway.served import Served, post
from tests.gateway.served import served as gateway_served
from tests.governor import loops
from tests.governor.loops import ROUTE, STABLE, drive, episodes, served
from tests.stub_server import Stub, reply

LOOP: dict[str, Any] = {
    "kind": "rounds",
    "scorer": "text",
    "policy": STABLE,
    "mode": "enforce",
    "uncertified": True,
    "audit_share": 0.0,
    "upstream": "up",
}


async def decide(g: Served, body: dict[str, Any] | bytes, **headers: str) -> tuple[int, Any]:
    sent = {key.replace("_", "-"): value for key, value in headers.items()}
    raw = body if isinstance(body, bytes) else {"route": ROUTE} | body
    answer = await post(g.session, g.url + "/v1/decide", raw, sent)
    return answer.status, answer.json


def step(index: int, answer: str | None, tokens: int = 10, **signals: Any) -> dict[str, Any]:
    return {"index": index, "answer": answer, "tokens": tokens, "signals": signals}


def gateway(folder: Path, **changes: Any) -> Any:
    route = LOOP | changes.pop("route", {})
    return gateway_served(folder, routes={ROUTE: route, "other": {"upstream": "up"}}, **changes)


async def test_a_loop_in_any_language_is_three_kinds_of_call(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        status, first = await decide(g, {"question": "q", "step": step(1, "a")})
        assert status == 200
        assert set(first) == {
            "episode_id",
            "action",
            "stop_reason",
            "reason",
            "return_step",
            "policy_version",
            "propensity",
            "mode",
            "certified",
            "degraded",
            "feedback_token",
            "promise",
        }
        assert (first["action"], first["return_step"], first["propensity"]) == ("continue", 1, 1.0)
        assert (first["mode"], first["certified"], first["stop_reason"]) == ("enforce", False, None)
        episode_id = first["episode_id"]
        _, second = await decide(g, {"episode_id": episode_id, "step": step(2, "A.", confidence=0.5)})
        assert (second["action"], second["stop_reason"], second["return_step"]) == ("stop", "suffices", 2)
        await decide(g, {"episode_id": episode_id, "done": True})
        feedback = {"feedback_id": "f", "episode_id": episode_id, "gold": "A", "source": "exact-match"}
        assert (await post(g.session, g.url + "/v1/feedback", feedback, {})).json["joined"] is True
        assert g.gateway.metrics.value("suffice_open_episodes") == 0
        assert g.gateway.metrics.value("suffice_decisions_total", route=ROUTE, action="stop") == 1
        result = (await g.episodes(1))[0]
    outcome = result.episode.outcome
    assert (outcome.end_reason, outcome.stopped, outcome.answer) == ("stopped", True, "a")
    assert result.episode.request.endpoint == "/v1/decide"
    assert len(result.labels) == 1


async def test_a_call_that_comes_again_changes_nothing(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        opening = {"question": "q", "step": step(1, "a")}
        first = await decide(g, opening, idempotency_key="k1")
        assert await decide(g, opening, idempotency_key="k1") == first
        episode_id = first[1]["episode_id"]
        second = await decide(g, {"episode_id": episode_id, "step": step(2, "a")})
        for _ in range(2):
            assert await decide(g, {"episode_id": episode_id, "step": step(2, "a")}) == second
            again = await decide(g, {"episode_id": episode_id, "step": step(1, "a")})
            assert (again[0], again[1]["action"]) == (200, "continue")
        last = {"episode_id": episode_id, "step": step(3, "a"), "done": True}
        assert await decide(g, last) == await decide(g, last)
        assert (await decide(g, {"episode_id": episode_id, "done": True}))[0] == 200
        outcome = await g.outcome()
    assert len(outcome.steps) == 3
    assert outcome.usage is not None
    assert outcome.usage.completion_tokens == 30


MISTAKES: list[tuple[dict[str, Any] | bytes, int, str]] = [
    ({"question": "q", "step": step(2, "a")}, 409, "step.index: got 2; the first step of a run is 1"),
    ({"episode_id": "OPEN", "step": step(3, "a")}, 409, "got 3; the next step of this run is 2"),
    ({"episode_id": "OPEN", "step": step(1, "b")}, 409, "step 1 was already reported with another answer"),
    ({"episode_id": "OPEN", "step": step(1, "a", 11)}, 409, "another answer or token count"),
    ({"episode_id": "OPEN", "step": step(1, "a"), "route": "other"}, 409, "belongs to the route 'loop'"),
    ({"episode_id": "ep_none", "step": step(1, "a")}, 404, "'ep_none' is not open here"),
    ({"route": "lop", "question": "q"}, 400, "unknown route 'lop'; known: loop, other"),
    ({"route": "", "question": "q"}, 400, "route: is needed"),
    ({"step": step(1, "a")}, 400, "question: is needed when a run begins"),
    ({}, 400, "step: is needed"),
    ({"question": 3}, 400, "question: must be a string"),
    ({"question": "q", "stepp": 1}, 400, "stepp: unknown field; known: route, episode_id"),
    ({"question": "q", "step": []}, 400, "step: must be an object"),
    ({"question": "q", "step": {"index": 1, "answer": "a"}}, 400, "step.tokens: is needed"),
    ({"question": "q", "step": {"index": 0, "tokens": 1}}, 400, "step.index: is needed, a whole number from 1"),
    ({"question": "q", "step": {"index": True, "tokens": 1}}, 400, "step.index"),
    ({"question": "q", "step": step(1, "a", -1)}, 400, "step.tokens: got -1"),
    ({"question": "q", "step": step(1, 7)}, 400, "step.answer: must be a string, got int"),  # type: ignore[arg-type]
    ({"question": "q", "step": step(1, "a", mood="x")}, 400, "step.signals.mood: unknown field"),
    ({"question": "q", "step": step(1, "a", logprobs="x")}, 400, "step.signals.logprobs: must be a list"),
    ({"question": "q", "metadata": {"a": 1}}, 400, "metadata: must be an object"),
    ({"question": "q", "planned_steps": 0}, 400, "planned_steps: must be a whole number"),
    ({"question": "q", "done": 1}, 400, "done: must be true or false"),
    (b"[1]", 400, "must be a JSON object"),
    (b'{"route": "loop", "route": "loop"}', 400, "appears twice"),
]


@pytest.mark.slow(keep=16)
@pytest.mark.parametrize(("body", "status", "message"), MISTAKES, ids=[m[2][:40] for m in MISTAKES])
async def test_a_mistake_is_a_4xx_that_says_what_and_harms_no_run(
    tmp_path: Path, body: dict[str, Any] | bytes, status: int, message: str
) -> None:
    async with gateway(tmp_path) as g:
        _, opened = await decide(g, {"question": "q", "step": step(1, "a")})
        if isinstance(body, dict) and body.get("episode_id") == "OPEN":
            body = body | {"episode_id": opened["episode_id"]}
        got, output = await decide(g, body)
        assert (got, output["error"]["type"]) == (status, "invalid_request_error")
        assert message in output["error"]["message"]
        _, after = await decide(g, {"episode_id": opened["episode_id"], "step": step(2, "b"), "done": True})
        assert after["action"] == "continue"
        assert len((await g.outcome()).steps) == 2


async def test_a_body_has_a_limit(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        body = io.BytesIO(b'{"route": "loop", "question": "' + b"x" * LIMIT_BYTES + b'"}')
        async with g.session.post(g.url + "/v1/decide", data=body, headers={"content-type": "application/json"}) as got:
            assert got.status == 413


async def test_a_run_that_is_over_takes_no_further_step(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        _, opened = await decide(g, {"question": "q", "step": step(1, "a"), "done": True})
        status, output = await decide(g, {"episode_id": opened["episode_id"], "step": step(2, "a")})
        assert (status, output["error"]["code"]) == (409, "run_is_over")
        assert "ended after step 1" in output["error"]["message"]


async def test_it_asks_for_a_key_like_everything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYS_OF_THIS_TEST", "right,plain")
    async with gateway(tmp_path, server={"api_keys_env": "KEYS_OF_THIS_TEST"}, route={"uncertified": False}) as g:
        assert (await decide(g, {"question": "q"}))[0] == 401
        assert (await decide(g, {"question": "q"}, authorization="Bearer right"))[0] == 200
        assert (await post(g.session, g.url + "/decide", {"route": ROUTE, "question": "q"}, {})).status == 401


async def test_an_audit_and_an_aborted_run_over_the_wire(tmp_path: Path) -> None:
    async with gateway(tmp_path, route={"audit_share": 1.0}) as g:
        _, opened = await decide(g, {"question": "q", "step": step(1, "a")})
        for index in range(2, 6):
            _, output = await decide(g, {"episode_id": opened["episode_id"], "step": step(index, "a")})
            assert (output["action"], output["reason"], output["propensity"]) == ("continue", "the run goes on", 1.0)
        await decide(g, {"episode_id": opened["episode_id"], "aborted": True})
        outcome = await g.outcome()
    assert (outcome.end_reason, outcome.stop_step) == ("client_left", 2)


async def test_runs_that_are_left_end_and_the_oldest_make_room(tmp_path: Path) -> None:
    clock = [0.0]

    def change(gw: context.GatewayState) -> None:
        gw.runs = open_runs.OpenRuns(limit=3, idle_s=100.0)
        real = gw.monotonic_s
        gw.monotonic_s = lambda: real() + clock[0]

    async with gateway(tmp_path, change=change) as g:
        ids = [(await decide(g, {"question": f"q{n}", "step": step(1, "a")}))[1]["episode_id"] for n in range(3)]
        await decide(g, {"episode_id": ids[0], "step": step(2, "b")})  # touched: now the second is the oldest
        await decide(g, {"question": "q3", "step": step(1, "a")})
        assert (await decide(g, {"episode_id": ids[1], "step": step(2, "b")}))[0] == 404
        assert (await decide(g, {"episode_id": ids[0], "step": step(3, "b")}))[0] == 200
        clock[0] = 101.0
        assert (await decide(g, {"episode_id": ids[0], "step": step(4, "b")}))[0] == 404
        assert len(g.gateway.runs) == 0
        ends = [result.episode.outcome.end_reason for result in await g.episodes(4)]
    assert sorted(ends) == ["client_left"] * 3 + ["stopped"], "the touched one was told to stop"


@pytest.mark.parametrize("goes_on", [False, True])
async def test_a_loop_that_obeys_a_stop_and_leaves_was_stopped_unless_it_goes_on(tmp_path: Path, goes_on: bool) -> None:
    clock = [0.0]

    def change(gw: context.GatewayState) -> None:
        real = gw.monotonic_s
        gw.monotonic_s = lambda: real() + clock[0]

    async with gateway(tmp_path, change=change) as g:
        _, opened = await decide(g, {"question": "q", "step": step(1, "a")})
        _, output = await decide(g, {"episode_id": opened["episode_id"], "step": step(2, "a")})
        assert output["action"] == "stop"
        clock[0] = open_runs.STOP_GRACE_S / 2
        if goes_on:
            _, output = await decide(g, {"episode_id": opened["episode_id"], "step": step(3, "b")})
            assert output["action"] == "continue"
        clock[0] = 2 * open_runs.STOP_GRACE_S
        rounds_service.close_old(g.gateway)
        if goes_on:
            await decide(g, {"episode_id": opened["episode_id"], "step": step(4, "c"), "done": True})
        outcome = await g.outcome()
    assert (outcome.end_reason, outcome.stopped) == ("done" if goes_on else "stopped", not goes_on)
    assert len(outcome.steps) == (4 if goes_on else 2)


async def test_an_audit_is_never_told_to_stop_and_ends_as_left(tmp_path: Path) -> None:
    clock = [0.0]

    def change(gw: context.GatewayState) -> None:
        real = gw.monotonic_s
        gw.monotonic_s = lambda: real() + clock[0]

    async with gateway(tmp_path, route={"audit_share": 1.0}, change=change) as g:
        _, opened = await decide(g, {"question": "q", "step": step(1, "a")})
        await decide(g, {"episode_id": opened["episode_id"], "step": step(2, "a")})
        clock[0] = 2 * open_runs.IDLE_RUN_S
        rounds_service.close_old(g.gateway)
        outcome = await g.outcome()
    assert (outcome.end_reason, outcome.stopped) == ("client_left", False)


async def test_the_end_of_the_gateway_ends_the_runs(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        await decide(g, {"question": "q", "step": step(1, "a")})
    result = list(read_episodes(tmp_path / "log.db"))
    assert [e.episode.outcome.end_reason for e in result] == ["shutdown"]


async def test_a_failure_of_ours_tells_the_client_to_go_on(tmp_path: Path) -> None:
    def change(gw: context.GatewayState) -> None:
        def broken() -> str:
            raise OSError("no randomness")

        gw.new_id = broken

    async with gateway(tmp_path, change=change) as g:
        status, output = await decide(g, {"question": "q"})
        assert (status, output["error"]["message"]) == (500, "internal error; continue without Suffice")
        assert g.failed_open("decide") == 1


async def test_many_clients_at_once(tmp_path: Path) -> None:
    async def client(number: int) -> list[str]:
        actions, episode_id = [], None
        for index, answer in enumerate(["x", f"{number}", f"{number}", "y"], start=1):
            who = {"question": f"q{number}"} if episode_id is None else {"episode_id": episode_id}
            _, output = await decide(g, who | {"step": step(index, answer), "done": index == 4})
            episode_id = output["episode_id"]
            actions.append(output["action"])
        return actions

    async with gateway(tmp_path) as g:
        result = await asyncio.gather(*(client(number) for number in range(40)))
        assert result == [["continue", "continue", "stop", "continue"]] * 40
        assert len(await g.episodes(40)) == 40


# ── the library against a server ────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module", params=[0.0, 1.0], ids=["live", "audits"])
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Governor, Governor]]:
    """A governor in process and one against a server, with the same secret."""
    here, there = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("there")
    for folder in (here, there):
        (folder / "log.salt").write_text("one secret for both")
    route = {"audit_share": request.param}
    with (
        served(loops.settings(there, **route)) as url,
        loops.local(here, **route) as inside,
        Governor.connect(url, route=ROUTE) as outside,
    ):
        yield inside, outside


ANSWERS = st.lists(st.sampled_from(["a", "b", "A", "a b", "", None]), min_size=0, max_size=7)


@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answers=ANSWERS, key=st.integers(0, 50), confidence=st.none() | st.floats(0, 1), aborts=st.booleans())
def test_in_process_and_over_the_wire_decide_the_same(
    both: tuple[Governor, Governor],
    answers: Sequence[str | None],
    key: int,
    confidence: float | None,
    aborts: bool,
) -> None:
    seen = []
    for gov in both:
        try:
            with gov.episode("q", key=f"k{key}") as ep:
                decisions = drive(ep, answers, confidence=confidence)
                if aborts:
                    raise ValueError("the caller's own")
        except ValueError:
            pass
        report = [(d.action, d.reason, d.stop_reason, d.propensity) for d in decisions]
        seen.append((report, ep.answer, ep.return_step, ep.stopped, ep.mode, ep.policy_version, ep.degraded))
    assert seen[0] == seen[1]


def same(outcome: Outcome) -> tuple[Any, ...]:
    return (
        outcome.end_reason,
        outcome.stopped,
        outcome.stop_step,
        outcome.would_answer,
        outcome.answer,
        outcome.usage,
        outcome.steps,
        outcome.decision,
    )


def test_and_so_are_their_records(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
        (folder / "log.salt").write_text("one secret for both")
    report: dict[str, Any] = {"confidence": 0.5, "ctx_tokens": 7, "action": "search", "text": "so it is"}
    with served(loops.settings(there)) as url:
        for gov in (loops.local(here), Governor.connect(url, route=ROUTE)):
            with gov:
                for answers in (["a", "b", "b"], ["a"], []):
                    with gov.episode("q", metadata={"task": "t"}, query_class="c", planned_steps=3, model="m") as ep:
                        drive(ep, answers, **report)
    inside, outside = episodes(here, 3), episodes(there, 3)
    assert [same(e.episode.outcome) for e in inside] == [same(e.episode.outcome) for e in outside]
    assert [e.episode.request.query for e in inside] == [e.episode.request.query for e in outside]
    assert [e.episode.request.model for e in outside] == ["m"] * 3


async def test_the_library_awaits_a_server_without_blocking_its_loop(tmp_path: Path) -> None:
    with served(loops.settings(tmp_path)) as url:
        async with Governor.connect(url, route=ROUTE) as gov:

            async def one(number: int) -> str | None:
                async with gov.episode(f"q{number}") as ep:
                    await loops.adrive(ep, ["x", str(number), str(number), "y"])
                return ep.answer

            assert await asyncio.gather(*(one(n) for n in range(30))) == [str(n) for n in range(30)]
            async with gov.episode("labelled") as ep:
                await ep.step(answer="a", tokens=1)
            assert (await gov.afeedback(ep.id, correct=True, source="user")).joined
    assert sum(e.episode.outcome.stopped for e in episodes(tmp_path, 31)) == 30


# ── a server that is not there ──────────────────────────────────────────────────────────────────────


def test_without_its_server_a_loop_goes_on_and_the_server_is_hardly_asked() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: every connection is refused
        with Governor.connect(f"http://127.0.0.1:{taken.getsockname()[1]}", route=ROUTE) as gov:
            for _ in range(8):
                with gov.episode("q") as ep:
                    assert not any(d.stop for d in drive(ep, ["a", "b", None]))
                assert (ep.answer, ep.return_step, ep.mode, ep.degraded) == ("b", 2, "off", ("server",))
            assert gov.failed_open == {"server": 8}


def test_a_server_that_goes_away_costs_the_governing_and_nothing_else(tmp_path: Path) -> None:
    with served(loops.settings(tmp_path)) as url:
        gov = Governor.connect(url, route=ROUTE)
        with gov.episode("q") as ep:
            ep.step(answer="a", tokens=1)
            first = ep.id
            break_off = gov.episode("r").__enter__()
            assert break_off.id
    with gov.episode("s") as ep:
        assert [d.stop for d in drive(ep, ["a"] * 4)] == [False] * 4
    assert ep.answer == "a"
    gov.close()
    assert {e.episode.outcome.episode_id: e.episode.outcome.end_reason for e in episodes(tmp_path, 2)}[first] == "done"


STUBS = {
    "silent": (b"", 30.0),
    "closes": (b"", 0.0),
    "no http": (b"hello\r\n\r\n", 0.0),
    "no json": (reply("200 OK", b"<html>"), 0.0),
    "a list": (reply("200 OK", b"[]"), 0.0),
    "nonsense": (reply("200 OK", json.dumps({"action": 7, "return_step": "x", "propensity": None}).encode()), 0.0),
    "empty": (reply("200 OK", b"{}"), 0.0),
    "another service": (reply("200 OK", b'{"status": "ok"}'), 0.0),
    "error": (reply("500 No", b'{"error": {"message": "m"}}'), 0.0),
    "refuses": (reply("401 No", b'{"error": {"message": "m"}}'), 0.0),
    "torn": (b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{", 0.0),
}


@pytest.mark.parametrize("kind", STUBS)
def test_no_server_can_harm_a_loop(kind: str) -> None:
    stub = Stub(*STUBS[kind])
    with Governor.connect(stub.url, route=ROUTE, timeout_s=0.3) as gov, gov.episode("q") as ep:
        assert [d.action for d in drive(ep, ["a", "a", "a"])] == ["continue"] * 3
        assert len(ep.history) == 3
        assert ep.id
        assert ep.answer == "a"
        assert "server" in ep.degraded
    stub.close()


DECISION: dict[str, Any] = {
    "episode_id": "ep_1",
    "feedback_token": None,
    "action": "continue",
    "stop_reason": None,
    "reason": "r",
    "return_step": None,
    "policy_version": "v",
    "propensity": 1.0,
    "mode": "enforce",
    "certified": False,
    "degraded": [],
}
INCOMPLETE: dict[str, dict[str, Any]] = {
    "a stop without a step": {"action": "stop", "stop_reason": "suffices"},
    "a stop at a step that the run lacks": {"action": "stop", "stop_reason": "suffices", "return_step": 9},
    "a step that the run lacks": {"return_step": 9},
    "step zero": {"return_step": 0},
    "a step in another type": {"return_step": "1"},
    "a step that is true": {"return_step": True},
    "an unknown action": {"action": "halt"},
    "an action in another type": {"action": 7},
    "no probability": {"propensity": 0.0},
    "a probability in another type": {"propensity": "1"},
    "certified in another type": {"certified": "yes"},
    "a reason in another type": {"reason": None},
    "an unknown mode": {"mode": "on"},
    "sites in another type": {"degraded": "no"},
    "no name": {"episode_id": ""},
    "a name in another type": {"episode_id": 5},
}


@pytest.mark.parametrize("case", INCOMPLETE)
def test_an_incomplete_decision_counts_as_none(case: str) -> None:
    stub = Stub(reply("200 OK", json.dumps(DECISION | INCOMPLETE[case]).encode()))
    with Governor.connect(stub.url, route=ROUTE, timeout_s=3) as gov, gov.episode("q") as ep:
        assert [d.action for d in drive(ep, ["a", "b", "c"])] == ["continue"] * 3
        assert ep.answer == "c"
        assert "server" in ep.degraded
        assert gov.failed_open == {"server": 1}
    stub.close()


@pytest.mark.parametrize("left_out", [name for name in DECISION if name not in ("feedback_token", "degraded")])
def test_a_decision_that_lacks_a_field_counts_as_none(left_out: str) -> None:
    decision = {name: value for name, value in DECISION.items() if name != left_out}
    stub = Stub(reply("200 OK", json.dumps(decision).encode()))
    with Governor.connect(stub.url, route=ROUTE, timeout_s=3) as gov, gov.episode("q") as ep:
        assert [d.action for d in drive(ep, ["a", "b"])] == ["continue"] * 2
        assert (ep.answer, ep.degraded) == ("b", ("server",))
    stub.close()


def test_a_decision_about_another_run_counts_as_none() -> None:
    opening = json.dumps(DECISION).encode()
    other = json.dumps(DECISION | {"episode_id": "ep_2", "action": "stop", "return_step": 1}).encode()
    stub = Stub(reply("200 OK", opening), then=reply("200 OK", other))
    with Governor.connect(stub.url, route=ROUTE, timeout_s=3) as gov, gov.episode("q") as ep:
        assert ep.id == "ep_1"
        assert [d.action for d in drive(ep, ["a", "b"])] == ["continue"] * 2
        assert ep.answer == "b"
    stub.close()


def test_the_desk_ends_a_run_once(tmp_path: Path) -> None:
    with loops.local(tmp_path) as gov:
        local_backend = gov._state.backend
        assert hasattr(local_backend, "gateway")
        gw: context.GatewayState = local_backend.gateway
        run = rounds_service.open_run(gw, gw.deployment.routes[0], rounds_service.RunStart(question="q"))
        for _ in range(3):
            rounds_service.close_run(gw, run)
        assert gw.metrics.value("suffice_open_episodes") == 0
        assert gw.metrics.value("suffice_requests_total", route=ROUTE, mode="enforce", end_reason="done") == 1
    assert episodes(tmp_path, 1)[0].episode.outcome.end_reason == "done"
