"""Each request has its own audit draw, repeated deliveries share it, and no reply tells how it came out."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from suffice.assurance.runs import measure_run
from suffice.control.evidence.audits import is_evidence
from suffice.gateway.auth import KEY_WINDOW_S, DeliveryMemory, RequestKey
from suffice.gateway.context import GatewayState
from suffice.learn.dataset import fate
from suffice.rollout.assign import AuditAssignment, joined
from suffice.types import Episode
from suffice_testing import FakeRequest, Fault, Reply, ScriptedThought
from tests.drawn import examples
from tests.gateway.conftest import Serve
from tests.gateway.served import Answer, Served, chat, post
from tests.gateway.test_audit_propensity import CHAIN, ENFORCE, RAW, STEPS, drawn

PROPERTY = settings(max_examples=examples(300))
TEXT = st.text(st.sampled_from("ab1:-\x00"), max_size=4)
WINDOW_S = 600.0
RETRIES = {"server": {"retry_window_s": WINDOW_S}}
N_THOUGHT = sum(len(text.split()) for text, _ in STEPS)


def held(after: int = N_THOUGHT) -> ScriptedThought:
    """So many tokens are said at once; then the upstream is silent, so that every probe is answered before it ends."""
    return ScriptedThought(STEPS, "it is 5", reply=Reply(faults=(Fault(stall_after=after, stall_s=1.5),)))


class DeliveryClient:
    """A memory of deliveries with its clock, as a gateway would use it."""

    def __init__(self, share: float, *, window_s: float = WINDOW_S, salt: str = "pepper") -> None:
        self.memory, self.share, self.window_s, self.salt = DeliveryMemory(), share, window_s, salt
        self.now_s, self.skew_s, self.n = 0.0, 0.0, 0

    def ask(self, body: str = "q", **key: Any) -> AuditAssignment:
        """One delivery."""
        self.n += 1
        known = {"route": "r", "caller": "", "body": body.encode()} | key
        return self.memory.assign(
            RequestKey(**known),
            episode_id=f"ep-{self.n}",
            share=self.share,
            salt=self.salt,
            window_s=self.window_s,
            now_s=self.now_s,
            wall_s=1e9 + self.skew_s + self.now_s,
        )


def within_bounds(n_audits: int, n: int, share: float) -> bool:
    """Could so many of `n` independent draws be audits? A healthy sampler fails one time in a million."""
    return bool(binom.ppf(5e-7, n, share) <= n_audits <= binom.ppf(1 - 5e-7, n, share))


# --------------------------------------------------------------------------- the draw


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
def test_twenty_turns_of_one_conversation_are_twenty_draws(share: float) -> None:
    door, counts = DeliveryClient(share), list[int]()
    for talk in range(500):
        turns = [door.ask(f"turn {n}", conversation=f"talk-{talk}") for n in range(20)]
        assert len({turn.unit for turn in turns}) == 20
        counts.append(sum(turn.audit for turn in turns))
    assert within_bounds(sum(counts), 10_000, share)
    # Were turns of one conversation drawn together, it would have all of them audited or none.
    for k in range(21):
        p = float(binom.pmf(k, 20, share))
        assert within_bounds(counts.count(k), 500, p), f"{k} audits in a conversation"


def test_the_same_ids_of_two_tenants_are_independent_draws() -> None:
    door = DeliveryClient(0.5)
    pairs = list[list[bool]]()
    for n in range(4_000):
        door.now_s += 2 * WINDOW_S
        kind = ("conversation", "idempotency_key")[n % 2]
        pairs.append([door.ask("hello", caller=f"Bearer {name}", **{kind: "1"}).audit for name in ("a", "b")])
    assert within_bounds(sum(one == other for one, other in pairs), len(pairs), 0.5)
    assert within_bounds(sum(one for one, _ in pairs), len(pairs), 0.5)


@PROPERTY
@given(
    parts=st.tuples(TEXT, TEXT, st.none() | TEXT, st.none() | TEXT, TEXT),
    other=st.tuples(TEXT, TEXT, st.none() | TEXT, st.none() | TEXT, TEXT),
)
def test_two_requests_never_have_one_key(parts: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    def key(route: str, caller: str, conversation: str | None, idempotency: str | None, body: str) -> RequestKey:
        return RequestKey(
            route=route, caller=caller, conversation=conversation, idempotency_key=idempotency, body=body.encode()
        )

    def meaning(route: str, caller: str, conversation: str | None, idempotency: str | None, body: str) -> Any:
        return route, caller, conversation or None, idempotency or None, "" if idempotency else body

    assert (key(*parts).digest == key(*other).digest) == (meaning(*parts) == meaning(*other))


@PROPERTY
@given(one=st.lists(st.none() | TEXT, max_size=4), other=st.lists(st.none() | TEXT, max_size=4))
def test_joined_parts_can_be_told_apart(one: list[str | None], other: list[str | None]) -> None:
    assert (joined(*one) == joined(*other)) == (one == other)


# --------------------------------------------------------------------------- repeated deliveries


def test_deliveries_of_one_request_share_its_draw_and_are_numbered() -> None:
    door = DeliveryClient(0.5)
    for n in range(50):
        first = door.ask(f"question {n}")
        door.share = 1.0  # a burst has begun meanwhile: the draw and its odds stay those of the first delivery
        again = [door.ask(f"question {n}") for _ in range(3)]
        door.share = 0.5
        assert again == [replace(first, delivery=number) for number in (2, 3, 4)]


def test_a_key_makes_a_repeat_whatever_the_body_is() -> None:
    door = DeliveryClient(0.5)
    first = door.ask("this", idempotency_key="k")
    assert door.ask("that", idempotency_key="k") == replace(first, delivery=2)
    assert door.ask("that", idempotency_key="k", conversation="c").delivery == 1
    assert door.ask("that", idempotency_key="k", caller="Bearer b").delivery == 1
    assert door.ask("that").delivery == 1


@pytest.mark.parametrize("key", [{}, {"idempotency_key": "k"}], ids=["body", "key"])
def test_the_window_runs_from_the_first_delivery_and_ends(key: dict[str, str]) -> None:
    door = DeliveryClient(0.5)
    first = door.ask(**key)
    for number, now_s in enumerate((0.0, 300.0, WINDOW_S), 2):
        door.now_s = now_s
        assert door.ask(**key) == replace(first, delivery=number)
    door.now_s = WINDOW_S + 0.001
    anew = door.ask(**key)
    assert (anew.delivery, anew.unit != first.unit) == (1, True)
    assert door.ask(**key) == replace(anew, delivery=2)


def test_with_no_window_only_a_key_makes_a_repeat() -> None:
    door = DeliveryClient(0.5, window_s=0.0)
    assert len({door.ask().unit for _ in range(100)}) == 100
    assert [door.ask(idempotency_key="k").delivery for _ in range(3)] == [1, 2, 3]
    door.now_s = KEY_WINDOW_S + 1
    assert door.ask(idempotency_key="k").delivery == 1


def test_what_is_too_old_is_forgotten() -> None:
    door = DeliveryClient(0.5)
    for n in range(1_000):
        door.now_s = float(n)
        door.ask(f"question {n}")
    assert len(door.memory._known) <= WINDOW_S + 1


# --------------------------------------------------------------------------- a client that chooses

Strategy = Callable[[DeliveryClient, random.Random, dict[str, list[AuditAssignment]]], AuditAssignment]


def spaces(door: DeliveryClient, rng: random.Random, _seen: Any) -> AuditAssignment:
    return door.ask("q" + " " * rng.randrange(3_000))


def seeds(door: DeliveryClient, rng: random.Random, _seen: Any) -> AuditAssignment:
    return door.ask(f'{{"seed": {rng.randrange(10**9)}}}')


def lucky_name(kind: str) -> Strategy:
    """Reuse whichever name has so far met the fewest audits, as its client might have guessed from replies."""

    def ask(door: DeliveryClient, _rng: random.Random, seen: dict[str, list[AuditAssignment]]) -> AuditAssignment:
        door.now_s += WINDOW_S / 10
        name = min((f"n{n}" for n in range(20)), key=lambda one: len(seen[one]))
        result = door.ask("q", **{kind: name})
        if result.delivery == 1 and result.audit:
            seen[name].append(result)
        return result

    return ask


def waits_for_luck(door: DeliveryClient, rng: random.Random, seen: dict[str, list[AuditAssignment]]) -> AuditAssignment:
    """Send the body again as soon as the window lets it be drawn anew, but only a body that was no audit."""
    door.now_s += WINDOW_S + 1
    last = seen["last"]
    body = last[-1].unit if last and not last[-1].audit else str(rng.random())
    last.append(door.ask(body))
    return last[-1]


@pytest.mark.slow(keep=4)
@pytest.mark.parametrize(
    "strategy",
    [spaces, seeds, lucky_name("conversation"), lucky_name("idempotency_key"), lucky_name("caller"), waits_for_luck],
    ids=["spaces", "seeds", "ids", "keys", "callers", "waiting"],
)
@pytest.mark.parametrize("share", [0.05, 0.3])
def test_no_choice_of_a_client_changes_the_odds_of_a_request(strategy: Strategy, share: float) -> None:
    door, rng, seen = DeliveryClient(share), random.Random(7), defaultdict[str, list[AuditAssignment]](list)
    requested = [strategy(door, rng, seen) for _ in range(20_000)]
    new = [one for one in requested if one.delivery == 1]
    assert len({one.unit for one in new}) == len(new) >= 500
    assert within_bounds(sum(one.audit for one in new), len(new), share)
    # Nor does what was drawn before say anything of the next draw.
    after = [later.audit for before, later in pairwise(new) if not before.audit]
    assert within_bounds(sum(after), len(after), share)


def test_another_process_draws_anew_for_the_same_request() -> None:
    """Also where its episode ids begin as those of the other did, another secret is another lottery."""
    one = [DeliveryClient(0.5, salt="a").ask(f"q{n}").audit for n in range(2_000)]
    other = [DeliveryClient(0.5, salt="b").ask(f"q{n}").audit for n in range(2_000)]
    assert within_bounds(sum(a == b for a, b in zip(one, other, strict=True)), 2_000, 0.5)


# --------------------------------------------------------------------------- through the gateway


async def runs(g: Served, n: int) -> list[Episode]:
    return [episode for episode in await drawn(g, n) if episode.request.ungoverned is None]


async def test_turns_are_drawn_one_by_one_and_carry_their_conversation(serve: Serve) -> None:
    async with serve(route={"audit_share": 0.5}, **RETRIES) as g:
        for n in range(40):
            await g.ask(chat(f"turn {n}"), headers={"x-conversation-id": "talk"})
        await g.ask(chat("else"), headers={"x-conversation-id": "other"})
        await g.ask(chat("none"))
        result = [episode.request for episode in await runs(g, 42)]
    assert {one.audit for one in result[:40]} == {True, False}  # but for one run in 10^12
    assert len({one.unit for one in result}) == 42
    assert len({one.conversation for one in result[:40]}) == 1
    assert len({one.conversation for one in result}) == 3
    assert result[-1].conversation == ""
    assert "talk" not in {one.conversation for one in result}


async def test_the_same_id_of_two_keys_is_two_conversations(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYS_OF_THIS_TEST", "one,other")
    server = {"retry_window_s": WINDOW_S, "api_keys_env": "KEYS_OF_THIS_TEST"}
    async with serve(route={"audit_share": 0.5}, server=server) as g:
        for key in ("one", "other", "one"):
            headers = {"x-conversation-id": "1", "authorization": f"Bearer {key}"}
            assert (await g.ask(chat(), headers=headers)).status == 200
        one, other, again = [episode.request for episode in await runs(g, 3)]
    assert (one.delivery, other.delivery, again.delivery) == (1, 1, 2)
    assert one.unit == again.unit != other.unit
    assert one.conversation == again.conversation != other.conversation


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("key", [None, "again"], ids=["body", "key"])
@pytest.mark.parametrize("share", [0.0, 1.0], ids=["live", "audit"])
async def test_from_the_second_delivery_on_a_request_runs_in_full_and_is_no_evidence(
    serve: Serve, share: float, key: str | None
) -> None:
    headers = {} if key is None else {"idempotency-key": key}
    async with serve(held(), upstream=RAW, route={**ENFORCE, "audit_share": share}, **RETRIES) as g:
        answers = [await g.ask(chat("q" if key is None else f"q {n}", suffice={}), headers=headers) for n in range(3)]
        first, *later = await runs(g, 3)
        measured = [measure_run(item, lambda a, b: a == b) for item in await g.episodes(3)]
        assert g.gateway.metrics.value("suffice_audits_total", route="r") == share
    assert first.outcome.stopped is (share == 0.0)
    for number, (episode, answer) in enumerate(zip(later, answers[1:], strict=True), 2):
        request, outcome = episode.request, episode.outcome
        assert replace(request, episode_id="", received_at_s=0, delivery=1, question_key="") == replace(
            first.request, episode_id="", received_at_s=0, question_key=""
        )
        assert (request.delivery, outcome.stopped, answer.text) == (number, False, "it is 5")
        assert outcome.stop_step == 4, "what the policy would have done stays on record"
        assert fate(request, outcome) == "broken"
        assert not is_evidence(request, outcome, probes=True)
    assert is_evidence(first.request, first.outcome, probes=True) is (share == 1.0)
    assert [run.full for run in measured].count(True) == share
    assert [run.would_stop for run in measured].count(True) == share
    assert [run.disagrees for run in measured].count(None) == 3 - share


async def test_a_repeated_loop_at_decide_runs_in_full(serve: Serve) -> None:
    loop = {
        "kind": "rounds",
        "scorer": "text",
        "policy": {"policy": "stable-answer", "streak": 2},
        "mode": "enforce",
        "uncertified": True,
        "audit_share": 0.0,
        "upstream": "up",
    }
    async with serve(routes={"loop": loop}, **RETRIES) as g:
        assert [await _stops(g, "q"), await _stops(g, "q"), await _stops(g, "another")] == [True, False, True]


async def test_an_opening_call_is_recognised_for_its_own_caller_only(serve: Serve) -> None:
    loop = {"kind": "rounds", "scorer": "text", "policy": {"policy": "never"}, "upstream": "up"}
    async with serve(routes={"loop": loop}, **RETRIES) as g:
        ids = [
            (await _decide(g, {"question": "q"}, **{"idempotency-key": "1", "authorization": f"Bearer {caller}"}))[
                "episode_id"
            ]
            for caller in ("a", "b", "a")
        ]
    assert ids[0] == ids[2] != ids[1]


async def _decide(g: Served, body: dict[str, Any], **headers: str) -> Any:
    return (await post(g.session, g.url + "/v1/decide", {"route": "loop"} | body, headers)).json


async def _stops(g: Served, question: str) -> bool:
    output = await _decide(g, {"question": question, "step": {"index": 1, "answer": "a", "tokens": 1}})
    output = await _decide(g, {"episode_id": output["episode_id"], "step": {"index": 2, "answer": "a", "tokens": 1}})
    return bool(output["action"] == "stop")


async def test_after_the_window_a_body_is_a_new_request_that_may_be_stopped(serve: Serve) -> None:
    ahead_s = 0.0

    def later(gateway: GatewayState) -> None:
        real, wall = gateway.monotonic_s, gateway.wall_s
        gateway.monotonic_s = lambda: real() + ahead_s
        gateway.wall_s = lambda: wall() + ahead_s

    route = {**ENFORCE, "audit_share": 0.0}
    async with serve(held(), upstream=RAW, route=route, change=later, **RETRIES) as g:
        for at_s in (0.0, WINDOW_S - 60, 2 * WINDOW_S):  # the log's rows are read when the clock may have moved on
            ahead_s = at_s
            await g.ask(chat())
        result = await runs(g, 3)
    assert [(one.request.delivery, one.outcome.stopped) for one in result] == [(1, True), (2, False), (1, True)]


# --------------------------------------------------------------------------- what the client sees


def shape(answer: Answer) -> Any:
    """Everything of an answer that could tell, values that differ anyway left out."""
    chunks = answer.chunks if answer.headers["content-type"].startswith("text/event-stream") else [answer.json]
    keys = [(sorted(c), sorted(c.get("suffice") or ()), sorted(c.get("usage") or ())) for c in chunks]
    # A token is made of the id and a time alone.
    report = {k: v for k, v in (answer.report or {}).items() if k not in ("episode_id", "feedback_token")}
    its_own = ("x-suffice-episode-id", "x-suffice-feedback-token")
    own = {k: v for k, v in answer.headers.items() if k.startswith("x-suffice") and k not in its_own}
    return answer.status, sorted(answer.headers), own, keys, report, answer.text


NEVER = {**ENFORCE, "policy": {"policy": "never"}}
KINDS: dict[str, dict[str, Any]] = {
    "observe": {"kind": "reasoning", "samples": 3, "scorer": "number"},
    "observe, probed": {**ENFORCE, "mode": "observe"},
    "not certified": {**ENFORCE, "uncertified": False},
    "samples": {"kind": "samples", "samples": 3, "scorer": "number", "wave": 1},
    "samples, enforced": {
        "kind": "samples",
        "samples": 3,
        "scorer": "number",
        "mode": "enforce",
        "uncertified": True,
        "wave": 1,
    },
    "enforce": NEVER,
    "enforce, no probes": {**NEVER, "probe": None},
    "finished": {**NEVER, "finish_unclosed": True},
}


@pytest.mark.slow(keep=2)
@pytest.mark.parametrize("route", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
@pytest.mark.parametrize("cap", [None, 6], ids=["whole", "cut"])
async def test_the_reply_never_tells(serve: Serve, stream: bool, route: dict[str, Any], cap: int | None) -> None:
    """Of two routes that differ in their share of audits alone, every reply is the same: first deliveries and later."""
    routes = {
        name: {"upstream": "up", **route, "audit_share": share, "match": {"header": name}}
        for name, share in (("audit", 1.0), ("plain", 0.0))
    }
    capped: dict[str, Any] = {} if cap is None else {"max_tokens": cap}
    output = held(N_THOUGHT if cap is None else cap - 1) if route.get("policy") == NEVER["policy"] else CHAIN
    async with serve(output, upstream=RAW, routes=routes, **RETRIES) as g:
        shapes = list[Any]()
        for name in routes:
            for _delivery in range(2):
                answer = await g.ask(chat(stream=stream, suffice={}, **capped), headers={"x-suffice-route": name})
                await g.quiet()
                assert answer.headers["x-suffice-route"] == name
                assert b"audit" not in answer.raw
                assert b"propensity" not in answer.raw
                code, headers, own, *rest = shape(answer)
                shapes.append((code, headers, {k: v for k, v in own.items() if k != "x-suffice-route"}, *rest))
        result = [(e.request.audit, e.request.delivery) for e in await drawn(g, 4)]
        assert result == [(True, 1), (True, 2), (False, 1), (False, 2)]
        assert shapes == [shapes[0]] * 4


async def test_a_failing_probe_does_not_tell_an_audit_while_observing(serve: Serve) -> None:
    def failing(seen: FakeRequest) -> Reply:
        return Reply(faults=(Fault(status=500, status_body=b"{}"),)) if seen.is_raw else CHAIN(seen)

    routes = {
        name: {"upstream": "up", **KINDS["observe, probed"], "audit_share": share, "match": {"header": name}}
        for name, share in (("audit", 1.0), ("plain", 0.0))
    }
    async with serve(failing, upstream=RAW, routes=routes, **RETRIES) as g:
        report = [(await g.ask(chat(suffice={}), headers={"x-suffice-route": name})).report for name in routes]
    assert {(one["probe_tokens"], one["extra_prompt_tokens"], tuple(one["degraded"])) for one in report} == {(0, 0, ())}


@pytest.mark.parametrize("delivery", [1, 2])
async def test_a_loop_is_told_the_same_in_an_audit_and_in_a_run_that_goes_on(serve: Serve, delivery: int) -> None:
    """The audit's policy would have stopped at its second step; the other run's policy never does."""
    loop = {"kind": "rounds", "scorer": "text", "mode": "enforce", "uncertified": True, "upstream": "up"}
    routes = {
        "audit": {**loop, "policy": {"policy": "stable-answer", "streak": 2}, "audit_share": 1.0},
        "plain": {**loop, "policy": {"policy": "stable-answer", "streak": 9}, "audit_share": 0.0},
    }
    report = list[Any]()
    async with serve(routes=routes, **RETRIES) as g:
        for name in routes:
            for _ in range(delivery):
                output, answers = await _decide(g, {"route": name, "question": "q"}), list[Any]()
                for index in range(1, 5):
                    step = {"index": index, "answer": "a", "tokens": 1}
                    answers.append(await _decide(g, {"route": name, "episode_id": output["episode_id"], "step": step}))
            own = ("episode_id", "feedback_token", "policy_version")
            report.append([{k: v for k, v in answer.items() if k not in own} for answer in answers])
    assert report[0] == report[1]
    assert {answer["reason"] for answer in report[0]} == {"the run goes on"}
