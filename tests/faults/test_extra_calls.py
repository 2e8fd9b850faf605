"""Promise P7 and the budget of extra calls: over real sockets, counted at the upstream."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from suffice.errors import ConfigError
from suffice.settings import parse_settings
from suffice_testing import FakeRequest, Fault, Reply, Samples, ScriptedThought, cut
from tests.gateway.conftest import Serve
from tests.gateway.served import Answer, Served, chat, settings_for
from tests.gateway.test_stop import STEPS, chain, enforcing

RAW = {"finish": ["raw"], "slots": 4}
NEVER = {"policy": "never"}


def watching(**route: Any) -> dict[str, Any]:
    """An observing route whose every request is a probing audit."""
    probe = {"verified_by": "owner"}
    return {"scorer": "number", "probe": probe, "audit_share": 1.0, "steps": {"min_tokens": 3, "growth": 1.0}, **route}


class ProbesGet:
    """The chain, with this fault (or these headers) for probes and continuations alone."""

    def __init__(self, *faults: Fault, headers: tuple[tuple[str, str], ...] = (), **reply: Any) -> None:
        self._main = chain(delay_s=0.002, headers=headers, **reply)
        self._extra = ScriptedThought(STEPS, "5 dear", reply=Reply(faults=faults))

    def __call__(self, seen: FakeRequest) -> Reply:
        return (self._extra if seen.is_raw else self._main)(seen)


def skipped(g: Served, reason: str) -> float:
    return g.gateway.metrics.value("suffice_extra_calls_skipped_total", route="r", reason=reason)


def refused(g: Served) -> float:
    return g.gateway.metrics.value("suffice_extra_calls_refused_total", route="r")


def sample_of(seen: FakeRequest) -> int:
    """Which of its request's samples a call drew: each has its own seed, and a wave may arrive in any order."""
    return int(seen.body["seed"])


def n_probes(g: Served) -> int:
    return sum(seen.request.is_raw for seen in g.fake.completions)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
@pytest.mark.parametrize("headers", [{"retry-after": "60"}, {}], ids=["retry-after", "silent"])
async def test_a_429_on_a_probe_leaves_the_client_what_it_would_have_got(
    serve: Serve, stream: bool, headers: dict[str, str]
) -> None:
    async with serve(ProbesGet(), upstream=RAW, route=watching(probe=None)) as g:
        plain = await g.ask(chat(stream=stream))
        assert n_probes(g) == 0
    async with serve(ProbesGet(Fault(status=429, status_headers=headers)), upstream=RAW, route=watching()) as g:
        probed = await g.ask(chat(stream=stream))
        assert (probed.status, probed.raw) == (plain.status, plain.raw)
        assert "retry-after" not in probed.headers
        outcome = (await g.episodes(2))[1].episode.outcome  # the log has seen the run without probes, too
        assert n_probes(g) == 1, "the pause began with the first refusal"
        assert [step.answer_source for step in outcome.steps] == [None] * len(STEPS)
        assert (refused(g), skipped(g, "paused")) == (1, len(STEPS) - 1)
        await g.ask(chat(stream=stream))  # the pause is the upstream's, not the request's
        await g.episodes(3)
        assert (n_probes(g), skipped(g, "paused")) == (1, 2 * len(STEPS) - 1)


async def test_a_429_on_the_main_call_is_the_clients_and_pauses_extra_calls(serve: Serve) -> None:
    def says(seen: FakeRequest) -> Reply:
        refuses = Reply(
            faults=(
                Fault(
                    status=429, status_body=b'{"error":{"message":"slow down"}}', status_headers={"retry-after": "7"}
                ),
            )
        )
        return refuses if seen.nth == 0 else chain(delay_s=0.002)(seen)

    async with serve(says, upstream=RAW, route=enforcing()) as g:
        answer = await g.ask(chat(stream=True))
        assert (answer.status, answer.raw) == (429, b'{"error":{"message":"slow down"}}')
        assert answer.headers["retry-after"] == "7"
        answer = await g.ask(chat(stream=True))
        assert (answer.status, answer.report) == (200, None)
        await g.episodes(2)
        assert n_probes(g) == 0
        assert (refused(g), skipped(g, "paused")) == (0, len(STEPS))


async def test_a_paused_upstream_is_not_asked_to_continue_and_the_run_goes_on(serve: Serve) -> None:
    """The answer that the policy waits for is visible, so it decides without probes; its stop is not made."""
    main = ScriptedThought([(f"so {n} is 4\n", "4") for n in range(6)], "4", reply=Reply(delay_s=0.004))
    async with serve(main, upstream=RAW, route=enforcing(probe=None)) as g:
        g.gateway.upstreams["up"].allowance.paused_until_s = float("inf")
        answer = await g.ask(chat(stream=True))
        assert answer.text == "4"
        outcome = await g.outcome()
        assert (outcome.stopped, outcome.stop_step) == (False, 3)
        assert (len(g.fake.completions), skipped(g, "paused")) == (1, 1)


@pytest.mark.parametrize("reason", ["calls_per_s", "tokens_per_s"])
async def test_no_budget_means_no_probe_and_missing_steps(serve: Serve, reason: str) -> None:
    async with serve(chain(), upstream=RAW | {"extra": {reason: 0}}, route=watching()) as g:
        await asyncio.gather(*(g.ask(chat(f"q{n}", stream=True)) for n in range(3)))
        episodes = await g.episodes(3)
        assert len(g.fake.completions) == 3
        assert skipped(g, reason) == 3 * len(STEPS)
        for result in episodes:
            assert [step.answer_source for step in result.episode.outcome.steps] == [None] * len(STEPS)


async def test_the_budget_is_shared_by_all_requests(serve: Serve) -> None:
    """Two calls at once and hardly more after them: however many requests want to probe."""
    upstream = {"finish": ["raw"], "slots": 64, "extra": {"calls_per_s": 2.0}}
    async with serve(chain(), upstream=upstream, route=watching()) as g:
        start = asyncio.get_running_loop().time()
        await asyncio.gather(*(g.ask(chat(f"q{n}", stream=True)) for n in range(12)))
        await g.quiet()
        lasted_s = asyncio.get_running_loop().time() - start
        assert 2 <= n_probes(g) <= 2 + 2 * lasted_s
        assert skipped(g, "calls_per_s") > 0


@pytest.mark.parametrize(("left", "n_allowed"), [(0, 0), (10, 2), (1_000, len(STEPS))])
async def test_probes_keep_within_a_share_of_what_the_headers_leave(serve: Serve, left: int, n_allowed: int) -> None:
    headers = (("x-ratelimit-remaining-requests", str(left)), ("x-ratelimit-reset-requests", "1m0s"))
    async with serve(ProbesGet(headers=headers), upstream=RAW, route=watching(policy=NEVER)) as g:
        await g.ask(chat(stream=True))
        await g.outcome()
        assert n_probes(g) == n_allowed
        assert skipped(g, "rate_limit") == len(STEPS) - n_allowed


async def test_a_busy_upstream_is_not_probed(serve: Serve) -> None:
    """Both slots are taken by clients: no probe waits between them, so nobody waits for a probe."""
    slow = chain(delay_s=0.01)
    async with serve(slow, upstream={"finish": ["raw"], "slots": 2}, route=enforcing(policy=NEVER)) as g:
        answers = await asyncio.gather(*(g.ask(chat(f"q{n}", stream=True)) for n in range(2)))
        assert [a.status for a in answers] == [200, 200]
        await g.episodes(2)
        assert g.fake.max_in_flight <= 2
        assert skipped(g, "slots") >= len(STEPS)


async def test_an_owner_may_let_probes_wait_their_turn(serve: Serve) -> None:
    upstream = {"finish": ["raw"], "slots": 2, "extra": {"when_busy": "queue"}}
    async with serve(chain(delay_s=0.01), fake={"slots": 2}, upstream=upstream, route=enforcing()) as g:
        answers = await asyncio.gather(*(g.ask(chat(f"q{n}", stream=True)) for n in range(2)))
        assert [a.status for a in answers] == [200, 200]
        assert n_probes(g) > 0
        await g.episodes(2)
        assert skipped(g, "slots") == 0


async def test_probes_of_many_requests_take_half_of_the_slots(serve: Serve) -> None:
    def says(seen: FakeRequest) -> Reply:
        return ScriptedThought(
            STEPS, "5", reply=Reply(delay_s=0.004, faults=(Fault(header_delay_s=0.05),) if seen.is_raw else ())
        )(seen)

    running = Counter[int]()

    async with serve(says, upstream={"finish": ["raw"], "slots": 8}, route=enforcing(policy=NEVER)) as g:

        async def watch() -> None:
            while True:
                running[sum(s.request.is_raw and s.closed_at_s is None for s in g.fake.completions)] += 1
                await asyncio.sleep(0.002)

        watcher = asyncio.create_task(watch())
        await asyncio.gather(*(g.ask(chat(f"q{n}", stream=True)) for n in range(5)))
        watcher.cancel()
        assert g.fake.max_in_flight <= 8
        assert 1 <= max(running) <= 4


# --------------------------------------------------------------------------- P7

MISHAPS: dict[str, Callable[[int], Fault | None]] = {
    "none": lambda _: None,
    "all die before the first byte": lambda _: Fault(die_after=0),
    "all are refused": lambda _: Fault(status=429, status_headers={"retry-after": "1"}),
    "all fail": lambda _: Fault(status=500),
    "every other dies": lambda nth: Fault(die_after=0) if nth % 2 else None,
    "every other breaks off": lambda nth: Fault(die_after=3) if nth % 2 else None,
    "the first breaks off": lambda nth: Fault(die_after=3) if nth == 0 else None,
    "continuations fail": lambda nth: Fault(status=500) if nth else None,
}
KINDS: dict[str, tuple[dict[str, Any], Any]] = {
    "reasoning": (enforcing(max_extra_calls=4), ScriptedThought(STEPS, "5", reply=Reply(delay_s=0.003))),
    "samples": (
        {"kind": "samples", "samples": 5, "wave": 2, "scorer": "number", "max_extra_calls": 4},
        Samples(["4", "5", "6"]),
    ),
}


@pytest.mark.slow(keep=16)
@pytest.mark.parametrize("retries", [0, 1, 2])
@pytest.mark.parametrize("mishap", MISHAPS)
@pytest.mark.parametrize("kind", KINDS)
async def test_no_request_causes_more_attempts_than_promised(
    serve: Serve, kind: str, mishap: str, retries: int
) -> None:
    """Attempts a request <= 1 + retries + max_extra_calls, for the client's every own try."""
    route, model = KINDS[kind]
    n_of_key = Counter[str]()

    def says(seen: FakeRequest) -> Reply:
        key = (seen.header("idempotency-key") or "").split("-")[0]
        fault = MISHAPS[mishap](n_of_key[key])
        n_of_key[key] += 1
        reply: Reply = model(seen)
        return Reply(
            answer=reply.answer,
            reasoning=reply.reasoning,
            answer_after=reply.answer_after,
            delay_s=reply.delay_s,
            faults=() if fault is None else (fault,),
        )

    async with serve(says, upstream=RAW | {"retries": retries}, route=route) as g:
        for n in range(2):
            answer: Answer = await g.ask(chat(f"q{n}", stream=True), headers={"idempotency-key": f"key{n}"})
            assert answer.status != 200 or answer.done or answer.errors
        await g.quiet()
        assert set(n_of_key) <= {"key0", "key1"}, "the client's key goes upstream with every call"
        for key, n_attempts in n_of_key.items():
            assert n_attempts <= 1 + retries + 4, key


@pytest.mark.parametrize("mode", ["off", "observe"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
async def test_nothing_is_tried_again_behind_the_first_byte(serve: Serve, mode: str, stream: bool) -> None:
    dies = chain(faults=(Fault(die_after=3),))
    async with serve(dies, upstream={"retries": 3}, route={"mode": mode}) as g:
        answer = await g.ask(chat(stream=stream))
        assert answer.errors if stream else answer.status == 502 or answer.torn
        await g.quiet()
        # A body that was asked for whole dies before its first byte where nothing governs it.
        assert len(g.fake.completions) == (4 if mode == "off" and not stream else 1)


async def test_further_samples_carry_a_key_of_their_own(serve: Serve) -> None:
    """A server that honours keys would give the first sample's answer again and again."""
    async with serve(Samples(["who knows"]), route=KINDS["samples"][0]) as g:
        await g.ask(chat(), headers={"idempotency-key": "k"})
        keys = [seen.request.header("idempotency-key") for seen in g.fake.completions]
        assert sorted(keys, key=str) == ["k", "k-2", "k-3", "k-4", "k-5"]


def test_more_samples_than_extra_calls_are_refused_at_start(tmp_path: Any) -> None:
    route = {"kind": "samples", "samples": 40}
    with pytest.raises(ConfigError, match=r"routes\.r\.samples: got 40; at most 33, because"):
        settings_for("http://127.0.0.1:9", tmp_path, route=route)
    enough = settings_for("http://127.0.0.1:9", tmp_path, route=route | {"max_extra_calls": 39})
    assert enough.routes["r"].samples == 40
    with pytest.raises(ConfigError, match=r"routes\.r\.max_extra_calls: got -1; at least 0"):
        settings_for("http://127.0.0.1:9", tmp_path, route={"max_extra_calls": -1})
    with pytest.raises(ConfigError, match=r"upstreams\.up\.extra\.rate_limit_share: got 2\.0; a fraction"):
        parse_settings({"upstreams": {"up": {"url": "http://127.0.0.1:9", "extra": {"rate_limit_share": 2.0}}}})


async def test_a_request_that_asks_for_more_samples_is_told_the_limit(serve: Serve) -> None:
    async with serve(Samples(["4"]), route=KINDS["samples"][0]) as g:
        answer = await g.ask(chat(suffice={"samples": 6}))
        assert answer.status == 400
        assert answer.json["error"]["message"] == "suffice.samples: got 6; at most 5 on this route"
        assert answer.json["error"]["code"] == "too_many_samples"
        assert g.fake.completions == []


# --------------------------------------------------------------------------- samples that fail


@pytest.mark.parametrize(("mode", "n_drawn"), [("observe", 8), ("enforce", 2)])
async def test_where_the_record_counts_a_failed_sample_does_not_end_the_drawing(
    serve: Serve, mode: str, n_drawn: int
) -> None:
    def says(seen: FakeRequest) -> Reply:
        return Reply(answer=cut("it is 4"), faults=(Fault(status=500),) if sample_of(seen) == 2 else ())

    route = {
        "kind": "samples",
        "samples": 15,
        "wave": 2,
        "scorer": "number",
        "mode": mode,
        "audit_share": 0.0,
        "uncertified": mode == "enforce",
    }
    async with serve(says, route=route) as g:
        answer = await g.ask(chat(suffice={}, seed=1))
        assert (answer.text, answer.report["degraded"]) == ("it is 4", ["sample"])
        assert len(g.fake.completions) == n_drawn
        outcome = await g.outcome()
        assert [step.answer for step in outcome.steps].count(None) == 1
        assert len(outcome.steps) == n_drawn


@pytest.mark.parametrize("mode", ["observe", "enforce"])
async def test_a_429_on_a_sample_ends_the_drawing_and_the_vote_stands(serve: Serve, mode: str) -> None:
    def says(seen: FakeRequest) -> Reply:
        slow_down = Fault(status=429, status_headers={"retry-after": "60"})
        return Reply(answer=cut("it is 4"), faults=(slow_down,) if sample_of(seen) == 2 else ())

    route = {
        "kind": "samples",
        "samples": 8,
        "wave": 2,
        "scorer": "number",
        "mode": mode,
        "audit_share": 0.0,
        "uncertified": mode == "enforce",
    }
    async with serve(says, route=route) as g:
        answer = await g.ask(chat(suffice={}, seed=1))
        assert (answer.status, answer.text, len(g.fake.completions)) == (200, "it is 4", 2)
        answer = await g.ask(chat(suffice={}, seed=1))
        assert (answer.status, answer.text) == (200, "it is 4")
        assert len(g.fake.completions) == 3, "the client's own call is made, further samples are not"
        await g.episodes(2)
        assert refused(g) == 1
