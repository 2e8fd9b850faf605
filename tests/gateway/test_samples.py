"""Kind `samples`: one vote over many answers, in launch order, until it is decided, with every token accounted for."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

import pytest

from suffice.control.evidence.audits import Audit, Verdicts, audits_to_rows, rows_in_all_orders
from suffice.episode.vote import count_votes, deciding_sample
from suffice.learn.audits import AuditRuns
from suffice.learn.features import DENSE, FeatureSelection
from suffice.types import Outcome
from suffice_testing import FakeRequest, FakeUpstream, Fault, Reply, Samples, cut
from tests.gateway.conftest import Serve
from tests.gateway.served import Answer, Served, chat

SEED = 100
ANSWERS = FeatureSelection(DENSE["samples"], ())
BETA = {"policy": "beta"}  # at its published 0.95 the earliest stop is after four equal answers


def observing(n_samples: int, **more: Any) -> dict[str, Any]:
    return {"kind": "samples", "samples": n_samples, "scorer": "number", "policy": BETA, **more}


def enforcing(n_samples: int, **more: Any) -> dict[str, Any]:
    return observing(n_samples, mode="enforce", uncertified=True, **{"audit_share": 0.0, **more})


class BySeed:
    """The sample launched k-th says the k-th answer: the client's seed tells which one it is."""

    def __init__(self, replies: Sequence[str | Reply], delays_s: Sequence[float] = ()) -> None:
        self._replies = [Reply(answer=cut(r)) if isinstance(r, str) else r for r in replies]
        self._delays_s = delays_s

    def __call__(self, seen: FakeRequest) -> Reply:
        at = int(seen.body["seed"]) - SEED
        reply = self._replies[at]
        if not self._delays_s:
            return reply
        return Reply(answer=reply.answer, faults=reply.faults, first_delay_s=self._delays_s[at])


def seeded(**fields: Any) -> dict[str, Any]:
    return chat(seed=SEED, suffice={}, **fields)


def assert_reconciled(fake: FakeUpstream, outcome: Outcome, answer: Answer) -> None:
    """Every token that the upstream counted is told, as the client's usage or as overhead."""
    usage, more = outcome.usage, outcome.overhead
    assert usage is not None
    assert usage.prompt_tokens + more.extra_prompt_tokens == fake.total_prompt_tokens
    report = usage.completion_tokens + more.probe_tokens + more.discarded_tokens
    assert report == fake.total_completion_tokens
    assert more.n_extra_calls == len(fake.completions) - 1
    assert answer.usage["prompt_tokens"] == usage.prompt_tokens
    assert answer.usage["completion_tokens"] == usage.completion_tokens
    assert answer.usage["total_tokens"] == usage.prompt_tokens + usage.completion_tokens


async def finished(g: Served, answer: Answer) -> Outcome:
    outcome = await g.outcome()
    await g.quiet()
    assert_reconciled(g.fake, outcome, answer)
    return outcome


NINE = ["it is 4"] * 4 + ["no, 5"] * 5  # four of four for 4; the full vote says 5


async def test_observe_returns_the_vote_over_all_samples(serve: Serve) -> None:
    async with serve(BySeed(NINE), route=observing(9)) as g:
        answer = await g.ask(seeded())
        assert answer.text == "no, 5"
        assert answer.report["vote"] == {"5": 5, "4": 4}
        assert answer.report["stopped"] is False
        assert answer.report["stop_reason"] is None
        assert len(g.fake.completions) == 9
        outcome = await finished(g, answer)
        assert (outcome.end_reason, outcome.stopped, outcome.answer) == ("done", False, "5")
        assert (outcome.stop_step, outcome.would_answer) == (4, "4")
        assert answer.usage["completion_tokens"] == 4 * 3 + 5 * 2


async def test_enforce_stops_after_four_of_four_and_saves(serve: Serve) -> None:
    async with serve(BySeed(NINE), route=enforcing(9)) as g:
        answer = await g.ask(chat(seed=SEED))
        assert answer.text == "it is 4"
        assert len(g.fake.completions) == 4
        report = answer.report
        assert (report["stopped"], report["stop_reason"], report["certified"]) == (True, "suffices", False)
        assert (report["vote"], report["steps"]) == ({"4": 4}, 4)
        assert report["tokens_saved_estimate"] == 5 * 3
        assert report["estimate_method"]
        outcome = await finished(g, answer)
        assert (outcome.end_reason, outcome.stop_step, outcome.finish_method) == ("stopped", 4, "vote")
        assert outcome.tokens_saved_estimate == 15


async def test_a_stop_at_the_last_sample_is_no_stop(serve: Serve) -> None:
    async with serve(BySeed(NINE), route=enforcing(7, wave=1)) as g:
        answer = await g.ask(seeded())
        assert answer.report["stopped"] is False
        assert (await finished(g, answer)).end_reason == "done"


async def test_an_audit_in_enforce_draws_until_the_full_vote_is_decided(serve: Serve) -> None:
    async with serve(BySeed(NINE), route=enforcing(9, audit_share=1.0)) as g:
        answer = await g.ask(seeded())
        assert answer.text == "no, 5"
        assert len(g.fake.completions) == 9
        episode = await g.episode()
        assert episode.request.audit is True
        assert episode.outcome.stopped is False
        assert (episode.outcome.stop_step, episode.outcome.would_answer) == (4, "4")


async def test_never_more_than_a_wave_at_once(serve: Serve) -> None:
    async with serve(Samples(["who knows"], reply=Reply(delay_s=0.01)), route=observing(7, wave=3)) as g:
        assert (await g.ask(chat())).status == 200
        assert len(g.fake.completions) == 7
        assert g.fake.max_in_flight == 3


async def test_samples_are_seen_in_launch_order_whatever_finishes_first(serve: Serve) -> None:
    answers = ["it is 4", "also 4", "again 4", "sure 4", "no 5", "no 6"]
    delays_s = [0.10, 0.08, 0.06, 0.04, 0.0, 0.0]
    async with serve(BySeed(answers, delays_s), route=enforcing(9, wave=6)) as g:
        answer = await g.ask(seeded())
        assert answer.text == "it is 4"
        outcome = await finished(g, answer)
        assert [s.answer for s in outcome.steps] == ["4"] * 4
        assert [s.index for s in outcome.steps] == [1, 2, 3, 4]
        assert all(s.answer_source == "sample" for s in outcome.steps)
        assert outcome.vote == (("4", 4),)
        # What the last two had said by then was paid for, and is told.
        assert answer.usage["completion_tokens"] == 3 + 2 * 5


async def test_a_tie_goes_to_the_answer_launched_first_not_to_the_quickest(serve: Serve) -> None:
    async with serve(BySeed(["7", "8", "8", "7"], [0.06, 0.0, 0.0, 0.04]), route=observing(4)) as g:
        answer = await g.ask(seeded())
        assert answer.text == "7"
        assert list(answer.report["vote"].items()) == [("7", 2), ("8", 2)]


async def test_the_winners_text_is_that_of_its_earliest_sample_verbatim(serve: Serve) -> None:
    texts = ["just 3", "  The answer is **4**.\n", "4", "four is 4"]
    async with serve(BySeed([Reply(answer=(t,)) for t in texts]), route=observing(4)) as g:
        answer = await g.ask(seeded())
        assert answer.text == texts[1]
        assert answer.json["id"] in {f"chatcmpl-fake-{n}" for n in range(4)}
        assert (await g.outcome()).response_id == answer.json["id"]


async def test_a_null_answer_does_not_vote(serve: Serve) -> None:
    async with serve(BySeed(["who knows", "no idea", "hmm", "it is 7"]), route=observing(4)) as g:
        answer = await g.ask(seeded())
        assert answer.text == "it is 7"
        assert answer.report["vote"] == {"7": 1}
        assert [s.answer for s in (await g.outcome()).steps] == [None, None, None, "7"]


async def test_when_nobody_votes_sample_one_is_delivered_verbatim(serve: Serve) -> None:
    async with serve(BySeed(["who knows", "no idea", "hmm"], [0.05, 0.0, 0.0]), route=enforcing(3)) as g:
        answer = await g.ask(seeded())
        assert answer.text == "who knows"
        assert answer.report["vote"] is None
        outcome = await finished(g, answer)
        assert (outcome.answer, outcome.vote, outcome.stopped) == (None, (), False)


@pytest.mark.parametrize("n_reported", [0, 2])
async def test_what_was_received_of_a_cancelled_sample_is_spent(serve: Serve, n_reported: int) -> None:
    stalled = Reply(answer=cut("well well well 5"), faults=(Fault(stall_after=n_reported, stall_s=9.0),))
    says = BySeed([*["it is 4"] * 4, stalled, stalled], [0.08] * 4 + [0.0] * 2)
    async with serve(says, route=enforcing(9, wave=6)) as g:
        answer = await g.ask(chat(seed=SEED))
        assert answer.text == "it is 4"
        assert answer.report["vote"] == {"4": 4}
        outcome = await finished(g, answer)
        assert answer.usage["completion_tokens"] == 4 * 3 + 2 * n_reported
        assert sum(c.cancelled for c in outcome.calls) == 2
        assert sum(c.cancelled for c in g.fake.completions) == 2


@pytest.mark.parametrize("route", [observing(3, wave=3), enforcing(3, wave=3)], ids=["observe", "enforce"])
async def test_an_engine_that_can_counts_a_cancelled_sample_itself(serve: Serve, route: dict[str, Any]) -> None:
    """Seen on vLLM 0.32: a decided vote left its last sample's tokens to be estimated."""
    stalled = Reply(answer=cut("well well well 5"), faults=(Fault(stall_after=2, stall_s=9.0),))
    says = BySeed(["it is 4", "it is 4", stalled], [0.08, 0.08, 0.0])
    async with serve(says, route=route, upstream={"driver": "vllm"}, fake={"dialect": "vllm"}) as g:
        outcome = await finished(g, await g.ask(chat(seed=SEED)))
        assert [(call.cancelled, call.source) for call in outcome.calls] == [
            (False, "provider"),
            (False, "provider"),
            (True, "provider"),
        ]
        assert outcome.usage is not None
        assert outcome.usage.completion_tokens == 2 * 3 + 2


@pytest.mark.parametrize("mode", [observing, enforcing])
@pytest.mark.parametrize(
    "fault",
    [Fault(status=500), Fault(die_after=1, die_how="rst"), Fault(die_after=1, die_how="error_frame")],
    ids=["500", "rst", "frame"],
)
async def test_one_failing_sample_leaves_the_vote_to_the_rest(serve: Serve, mode: Any, fault: Any) -> None:
    bad = Reply(answer=cut("no 5"), faults=(fault,))
    async with serve(BySeed(["it is 4", bad, "so 3", "it is 4"]), route=mode(4)) as g:
        answer = await g.ask(seeded())
        assert (answer.status, answer.text) == (200, "it is 4")
        assert answer.report["vote"] == {"4": 2, "3": 1}
        assert answer.report["degraded"] == ["sample"]
        outcome = await g.outcome()
        assert (outcome.end_reason, outcome.degraded) == ("done", ("sample",))
        assert g.failed_open("sample") == 1
        assert answer.usage["completion_tokens"] == g.fake.total_completion_tokens


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
async def test_when_all_fail_the_upstreams_own_words_are_relayed(serve: Serve, stream: bool) -> None:
    body = b'{"error": {"message": "slow down", "type": "rate_limit", "param": null, "code": "429x"}}'
    fails = Reply(faults=(Fault(status=429, status_body=body, status_headers={"retry-after": "7"}),))
    async with serve(fails, route=observing(8)) as g:
        answer = await g.ask(chat(stream=stream))
        assert (answer.status, answer.raw) == (429, body)
        assert answer.headers["retry-after"] == "7"
        assert answer.headers["x-suffice-episode-id"]
        assert len(g.fake.completions) == 4  # one wave: an upstream that refuses is not asked for more
        assert (await g.outcome()).end_reason == "upstream_error"


async def test_when_all_break_off_the_client_is_told_so(serve: Serve) -> None:
    async with serve(Reply(faults=(Fault(die_after=0),)), route=observing(2)) as g:
        answer = await g.ask(chat())
        assert answer.status == 502
        assert answer.json["error"]["type"] == "upstream_error"
        assert set(answer.json["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("temperature", [0, 0.0])
async def test_at_temperature_zero_one_sample_is_drawn_and_said_so(serve: Serve, temperature: float) -> None:
    async with serve(Reply(answer=("4",)), route=enforcing(8)) as g:
        answer = await g.ask(chat(temperature=temperature))
        assert answer.text == "4"
        assert len(g.fake.completions) == 1
        assert len(answer.report["warnings"]) == 1
        assert "temperature" in answer.report["warnings"][0]
        assert (await finished(g, answer)).end_reason == "done"


async def test_a_clients_seed_becomes_one_seed_a_sample(serve: Serve) -> None:
    async with serve(Reply(answer=("who knows",)), route=observing(6)) as g:
        await g.ask(chat(seed=7))
        assert sorted(c.body["seed"] for c in g.fake.completions) == [7, 8, 9, 10, 11, 12]


async def test_without_a_seed_none_is_made_up(serve: Serve) -> None:
    async with serve(Reply(answer=("4",)), route=observing(2)) as g:
        await g.ask(chat(temperature=0.7, top_p=0.9))
        for call in g.fake.completions:
            assert "seed" not in call.body
            assert (call.body["temperature"], call.body["top_p"]) == (0.7, 0.9)


@pytest.mark.parametrize("seed", [None, 7])
async def test_an_audit_counts_in_other_orders_unless_its_client_chose_a_seed(serve: Serve, seed: int | None) -> None:
    def rows(of: Sequence[Audit], counts: Verdicts) -> AuditRuns:
        return audits_to_rows(of, chosen=ANSWERS, match=lambda answer, gold: answer == gold, wave=4, counts=counts)

    async with serve(Samples(("4", "5", "6")), route=observing(3)) as g:
        await g.ask(chat() if seed is None else chat(seed=seed))
        episode = await g.episode()
        assert episode.request.seeded is (seed is not None)
        audit = Audit(seq=1, at=1, ended_at_s=0.0, episode=episode)
        assert (rows_in_all_orders([audit], {}, rows).orders is None) is (seed is not None)


@pytest.mark.parametrize("requested", [True, False])
async def test_a_stream_is_one_ordinary_stream(serve: Serve, requested: bool) -> None:
    options: dict[str, Any] = {"stream_options": {"include_usage": True}} if requested else {}
    thinks = Reply(reasoning=("so ", "four"), answer=("it is", " 4"))
    async with serve(thinks, route=enforcing(9)) as g:
        answer = await g.ask(chat(stream=True, **options))
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.done
        assert answer.data.count("[DONE]") == 1
        chunks = answer.chunks
        assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
        assert (answer.text, answer.thought) == ("it is 4", "so four")
        deltas = [c["choices"][0]["delta"] for c in chunks if c["choices"]]
        kinds = [next(iter(delta)) for delta in deltas if delta and "role" not in delta]
        assert kinds == ["reasoning_content", "content"]
        assert {c["object"] for c in chunks} == {"chat.completion.chunk"}
        assert len({(c["id"], c["created"], c["model"]) for c in chunks}) == 1
        last = chunks[-2] if requested else chunks[-1]
        assert last["choices"][0]["delta"] == {}
        assert last["choices"][0]["finish_reason"] == "stop"
        assert last["suffice"]["stopped"] is True
        assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]].count("stop") == 1
        assert ["usage" in c for c in chunks] == [False] * (len(chunks) - requested) + [True] * requested
        if requested:
            assert chunks[-1]["choices"] == []
            assert answer.usage["completion_tokens_details"]["reasoning_tokens"] == 4 * 2
            await finished(g, answer)


async def test_a_slow_stream_is_kept_alive_by_comments(serve: Serve) -> None:
    slow = Reply(answer=("4",), first_delay_s=0.3)
    async with serve(slow, route=observing(2), server={"ping_s": 0.05}) as g:
        answer = await g.ask(chat(stream=True))
        before = answer.raw.split(b"data:", 1)[0]
        assert before.count(b": ping\n\n") >= 2
        assert (answer.text, answer.done, answer.finish) == ("4", True, "stop")


async def test_an_error_behind_a_comment_is_an_error_frame(serve: Serve) -> None:
    slow = Reply(first_delay_s=0.2, faults=(Fault(die_after=0),))
    async with serve(slow, route=observing(2), server={"ping_s": 0.05}) as g:
        answer = await g.ask(chat(stream=True))
        assert answer.status == 200
        assert [e["type"] for e in answer.errors] == ["upstream_error"]
        assert answer.finish is None


@pytest.mark.parametrize(
    ("route", "body", "reason"),
    [
        (observing(5), chat(n=2), "n"),
        (observing(1), chat(), "samples=1"),
        (observing(5), chat(suffice={"samples": 1}), "samples=1"),
    ],
    ids=["n=2", "route's 1", "request's 1"],
)
async def test_one_sample_or_several_choices_pass_through(
    serve: Serve, route: dict[str, Any], body: dict[str, Any], reason: str
) -> None:
    async with serve(Reply(answer=("4",)), route=route) as g:
        answer = await g.ask(body)
        assert answer.status == 200
        assert answer.report is None
        (call,) = g.fake.completions
        assert call.body == {k: v for k, v in body.items() if k != "suffice"}
        assert len(answer.json["choices"]) == body.get("n", 1)
        assert (await g.episode()).request.ungoverned == reason


@pytest.mark.parametrize(("route_says", "request_says"), [(5, 2), (1, 3)])
async def test_the_requests_number_of_samples_wins_over_the_routes(
    serve: Serve, route_says: int, request_says: int
) -> None:
    async with serve(Reply(answer=("who knows",)), route=observing(route_says)) as g:
        answer = await g.ask(chat(suffice={"samples": request_says}))
        assert len(g.fake.completions) == request_says
        assert answer.report["steps"] == request_says
        assert (await g.episode()).request.n_samples == request_says
        assert not any("suffice" in c.body for c in g.fake.completions)


@pytest.mark.parametrize("seed", range(4))
async def test_a_live_stop_sees_what_the_audit_sees_up_to_its_step(serve: Serve, seed: int) -> None:
    draw = random.Random(seed)
    answers = [f"it is {draw.choice('4445')}" for _ in range(12)]
    delays_s = [draw.random() * 0.03 for _ in range(12)]
    seen: list[Outcome] = []
    routes = {
        "audit": {"upstream": "up", "match": {"header": "audit"}, **enforcing(12, audit_share=1.0)},
        "live": {"upstream": "up", "match": {"header": "live"}, **enforcing(12)},
    }
    async with serve(BySeed(answers, delays_s), routes=routes) as g:
        for route in routes:
            await g.ask(seeded(), headers={"x-suffice-route": route})
        by_route = {e.episode.request.route: e.episode.outcome for e in await g.episodes(2)}
        seen = [by_route["audit"], by_route["live"]]
    full, live = seen
    assert len(full.steps) == deciding_sample([a.removeprefix("it is ") for a in answers], 12)
    assert live.steps == full.steps[: len(live.steps)]
    assert live.stop_step == full.stop_step
    assert live.stopped is (full.stop_step is not None and full.stop_step < len(full.steps))
    if live.stopped:
        assert live.answer == full.would_answer


async def test_the_client_does_not_wait_for_samples_that_were_cancelled(serve: Serve) -> None:
    stalled = Reply(answer=("5",), faults=(Fault(stall_after=0, stall_s=60.0),))
    async with serve(BySeed([*["4"] * 4, stalled]), route=enforcing(5, wave=5)) as g:
        began = time.monotonic()
        assert (await g.ask(chat(seed=SEED))).text == "4"
        await g.quiet()
        assert time.monotonic() - began < 30


WAYS = {
    "observe": observing(9, wave=3),
    "observe without a policy": observing(9, wave=3, policy={"policy": "never"}),
    "audit": enforcing(9, wave=3, audit_share=1.0),
    "live, not stopped": enforcing(9, wave=3, policy={"policy": "never"}),
}


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
@pytest.mark.parametrize("way", WAYS)
async def test_a_decided_vote_draws_no_more(serve: Serve, way: str, stream: bool) -> None:
    """Five of nine agree: the sixth, of the same wave, is cancelled, and the last three are never asked for."""
    stalled = Reply(answer=cut("well well well 5"), faults=(Fault(stall_after=2, stall_s=9.0),))
    says = BySeed([*["it is 4"] * 5, stalled], [0.08] * 5 + [0.0])
    options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    async with serve(says, route=WAYS[way]) as g:
        answer = await g.ask(seeded(**options))
        assert answer.text == "it is 4"
        assert len(g.fake.completions) == 6
        outcome = await finished(g, answer)
        assert sum(call.cancelled for call in g.fake.completions) == 1
    assert (outcome.end_reason, outcome.stopped, outcome.answer) == ("done", False, "4")
    assert (outcome.vote, len(outcome.steps)) == ((("4", 5),), 5)
    assert outcome.tokens_saved_estimate is None
    assert answer.usage["completion_tokens"] == 5 * 3 + 2


@pytest.mark.parametrize("seed", range(6))
async def test_a_vote_that_was_cut_short_delivers_what_the_vote_over_all_samples_would(serve: Serve, seed: int) -> None:
    draw = random.Random(seed)
    answers = [draw.choice(["4", "4", "5", "6", None]) for _ in range(10)]
    texts = ["nothing" + "!" * n if a is None else f"so {a}" + "." * n for n, a in enumerate(answers)]
    async with serve(BySeed([Reply(answer=(text,)) for text in texts]), route=observing(10, wave=1)) as g:
        answer = await g.ask(seeded())
        outcome = await finished(g, answer)
    assert answer.text == texts[count_votes(answers).winner - 1]
    assert len(outcome.steps) == deciding_sample(answers, 10)
