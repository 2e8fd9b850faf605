"""The doctor tells a server that does what it is asked from one that merely answers 200."""

from __future__ import annotations

import asyncio
import dataclasses
import tomllib
from typing import Any

import pytest

from suffice.doctor.examine import examine, recommend
from suffice.doctor.experiments import EXPERIMENTS, cancel
from suffice.doctor.forms import FIELDS
from suffice.doctor.session import ServerSession
from suffice.settings import FinishMethod, ModelFacts, Upstream, parse_settings
from suffice.types import Finding, Findings
from suffice.upstream.client import UpstreamClient
from suffice.upstream.drivers import DRIVERS, allows_probes, finish_methods, honoured, url_key
from suffice_testing import FakeUpstream, Reply, ServerBehaviour, ToolCall, cut
from suffice_testing.chain import SumsModel
from suffice_testing.reply import AnswerTokens, FakeRefusal, FakeRequest, Fault
from tests.doctor.server import THOUGHT, evidence, examine_fake, model, open_session, verdicts

GOOD: dict[str, Any] = {"prefix_cache": True, "slots": 2}


async def test_a_server_that_does_everything_is_believed() -> None:
    async with FakeUpstream(model(delay_s=0.005), ServerBehaviour(**GOOD)) as fake:
        findings, url = await examine_fake(fake), fake.url
    seen = verdicts(findings)
    # The fake has neither limits nor a list of contexts, and its settings no fields of paired calls.
    other = {
        "rate_limits": "no",
        "context": "no",
        "line_signals": "no",
        "paired_fields": "no",
    }
    assert seen == dict.fromkeys(EXPERIMENTS, "yes") | other
    assert findings.finish == ("native", "raw", "prefill")
    assert findings.n_slots == 2
    assert findings.url_key == url_key(url + "/v1")
    assert allows_probes(findings)
    recommendation = recommend(findings, name="up", url=url, driver=None)
    assert recommendation.driver == "llama.cpp"
    assert 'finish = ["native", "raw", "prefill"]' in recommendation.settings


async def test_the_pretended_server_for_newcomers_shows_what_a_llama_cpp_server_can_do() -> None:
    async with FakeUpstream(SumsModel(delay_s=0.002), ServerBehaviour(**GOOD)) as fake:
        findings = await examine_fake(fake)
    assert findings.finish == ("native", "raw", "prefill")
    assert allows_probes(findings)


# what the server ignores: experiment, and a number that its evidence must hold
LIES = {
    "n": ("n", "gave 1 answer"),
    "reasoning_budget_tokens": ("native_budget", "60 pieces of thought with a budget of 8, 60 without"),
    "logprobs": ("logprobs_stream", "without any"),
    "stream_options": ("stream_usage", "no usage"),
    "continue_final_message": ("prefill", "started over"),
    "max_completion_tokens": ("max_completion_tokens", "a cap of 4 was exceeded: 24 pieces"),
}


@pytest.fixture(scope="module")
def lies() -> dict[str, Any]:
    """One examination of a server that ignores all of it; none of these experiments shares a call with another."""

    async def run() -> Any:
        async with FakeUpstream(model(), ServerBehaviour(ignores=tuple(LIES), slots=2)) as fake:
            return await examine_fake(fake)

    findings = asyncio.run(run())
    return {"findings": findings, "verdicts": verdicts(findings)}


@pytest.mark.parametrize("field", LIES)
def test_a_field_that_is_accepted_and_ignored_is_found_out(lies: dict[str, Any], field: str) -> None:
    experiment, evidence_text = LIES[field]
    assert lies["verdicts"][experiment] == "ignored"
    assert evidence_text in evidence(lies["findings"], experiment)


def test_what_was_ignored_is_not_used(lies: dict[str, Any]) -> None:
    findings = lies["findings"]
    assert "prefill" not in findings.finish
    assert not honoured(findings, "logprobs_stream")
    assert lies["verdicts"]["prefix_cache"] == "no"
    assert not allows_probes(findings)
    sentences = " ".join(recommend(findings, name="up", url="http://h", driver=None).sentences)
    assert "accepts a reasoning budget and ignores it" in sentences
    assert "not sent, because the server caches no prefixes" in sentences


async def test_a_plain_server_offers_no_way_to_close_a_thought() -> None:
    async with FakeUpstream(model(), ServerBehaviour(dialect="openai")) as fake:
        findings = await examine_fake(fake)
    seen = verdicts(findings)
    assert (seen["prefill"], seen["raw"], seen["native_end"]) == ("ignored", "no", "no")
    assert findings.finish == ()
    recommendation = recommend(findings, name="up", url="http://h", driver=None)
    assert recommendation.driver == "openai"
    assert "finish" not in recommendation.settings
    assert any("no way to close a thought was observed" in sentence for sentence in recommendation.sentences)


async def test_a_cache_that_nothing_reports_is_seen_by_the_clock() -> None:
    async with FakeUpstream(model(cold_s=0.4, usage="none"), ServerBehaviour(dialect="openai")) as fake:
        findings = await examine_fake(fake)
    assert verdicts(findings)["prefix_cache"] == "yes"
    assert "nothing reported" in evidence(findings, "prefix_cache")


@pytest.mark.slow
async def test_a_server_that_goes_on_after_a_hang_up_is_found_out() -> None:
    async with (
        FakeUpstream(model(delay_s=0.1), ServerBehaviour(cancels=False, slots=2)) as fake,
        open_session(fake) as session,
    ):
        session.n_slots = 2
        result = await cancel(session)
    assert result.verdict == "no"
    assert "1 still running" in result.evidence


async def test_a_server_that_answers_no_chat_is_asked_nothing_more() -> None:
    async with FakeUpstream(Reply(faults=(Fault(status=503),))) as fake:
        findings = await examine_fake(fake)
    assert verdicts(findings) == {"reachable": "no"}
    assert "503" in evidence(findings, "reachable")


async def test_an_experiment_that_takes_too_long_gives_no_verdict_and_the_others_go_on() -> None:
    async with FakeUpstream(model(delay_s=60.0), ServerBehaviour(**GOOD)) as fake:
        findings = await examine_fake(fake, timeout_s=2.0)
    seen = verdicts(findings)
    assert seen["max_tokens"] == "unclear"
    assert "did not finish within 2 s" in evidence(findings, "max_tokens")
    assert seen["n"] == "yes"


def test_findings_of_another_address_say_nothing() -> None:
    assert url_key("http://a:1/v1/") == url_key("http://a:1")
    assert url_key("http://a:1") != url_key("http://a:2")


def test_a_message_that_is_continued_is_written_down_with_a_driver_that_asks_for_it() -> None:
    seen = Findings(
        examination_id="ex",
        upstream="up",
        url_key="",
        model="m",
        at_s=0.0,
        finish=("prefill",),
        findings=(Finding(experiment="prefill", verdict="yes", evidence=""),),
    )
    recommendation = recommend(seen, name="up", url="http://h", driver=None)
    settings = parse_settings(tomllib.loads(recommendation.settings)).upstreams["up"]
    assert DRIVERS[settings.driver].prefill is not None
    assert settings.finish == ("prefill",)
    assert "finish" not in recommend(seen, name="up", url="http://h", driver="openai").settings


@pytest.mark.parametrize("driver", ["vllm", "sglang"])
async def test_an_engine_is_examined_by_the_requests_of_its_driver(driver: Any) -> None:
    """Neither has llama.cpp's pages: a template is rendered by two others, and the slots stand elsewhere."""
    behaviour = ServerBehaviour(
        dialect=driver,
        prefix_cache=True,
        slots=6,
        has_control=driver == "vllm",
        opens_thought=False,
        line_margins=(9.0,),
    )
    async with FakeUpstream(model(delay_s=0.01), behaviour) as fake:
        findings = await examine_fake(fake, driver=driver)
        url = fake.url
    native = ("native",) if driver == "vllm" else ()
    assert findings.finish == (*native, "raw", "prefill"), verdicts(findings)
    assert findings.n_slots == 6, evidence(findings, "slots")
    assert honoured(findings, "line_signals") == (driver == "vllm"), evidence(findings, "line_signals")
    assert verdicts(findings)["cancel"] == "yes"
    recommendation = recommend(findings, name="up", url=url, driver=driver)
    settings = parse_settings(tomllib.loads(recommendation.settings)).upstreams["up"]
    assert (settings.driver, settings.slots, settings.finish) == (driver, 6, findings.finish)


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [("then step 9, </think>180", "ignored"), ("step 8, step 9, step 10, 180", "ignored"), ("180", "yes")],
)
async def test_a_budget_is_not_honoured_if_the_answer_is_the_rest_of_the_thought(answer: str, verdict: str) -> None:
    replies = model()

    def cut_short(seen: Any) -> Reply:
        reply = replies(seen)
        if "thinking_token_budget" not in seen.body:
            return reply
        return dataclasses.replace(reply, answer_after=lambda _: AnswerTokens(cut(answer)))

    async with FakeUpstream(cut_short, ServerBehaviour(dialect="vllm")) as fake:
        findings = await examine_fake(fake, driver="vllm")
    assert verdicts(findings)["native_budget"] == verdict, evidence(findings, "native_budget")


LENGTHS = {"none": 0, "minimal": 5, "low": 10, "medium": 20, "high": 40}


@pytest.mark.parametrize(
    ("obeys", "refuses", "verdict", "evidence_text"),
    [
        (True, (), "yes", "takes none, minimal, low, medium, high; 0 tokens of thought at none, 40 at high"),
        (True, ("none", "minimal"), "yes", "takes low, medium, high; refuses none (400"),
        (False, ("none",), "ignored", "40 tokens of thought at minimal, 40 at high"),
        (False, tuple(LENGTHS), "no", "takes no level; refuses none (400"),
    ],
)
async def test_an_effort_is_taken_refused_or_ignored(
    obeys: bool, refuses: tuple[str, ...], verdict: str, evidence_text: str
) -> None:
    def think(seen: FakeRequest) -> Reply:
        level = str(seen.body.get("reasoning_effort"))
        if level in refuses:
            raise FakeRefusal(f"unsupported value {level!r}")
        return Reply(reasoning=THOUGHT[: LENGTHS[level] if obeys else 40], answer=("180",))

    facts = ModelFacts(efforts=("none", "minimal", "low", "medium", "high"))
    async with FakeUpstream(think, ServerBehaviour(dialect="openai")) as fake:
        upstream = Upstream(url=fake.url, models={"fake": facts})
        async with UpstreamClient("up", upstream, None) as client:
            result = await EXPERIMENTS["effort"][1](ServerSession(client, model="fake", timeout_s=30.0))
    assert (result.verdict, evidence_text in result.evidence) == (verdict, True), result.evidence


@pytest.mark.parametrize("way", ["native", "prefill"])
async def test_a_form_that_is_dropped_after_a_thought_is_found_out_and_not_used(way: FinishMethod) -> None:
    """vLLM's issue 44012: constrained in one call, free in a continuation."""
    names = [f"{form}_{way}" for form in ("json", "tools")]
    async with FakeUpstream(model(drops=(way,)), ServerBehaviour(**GOOD)) as fake, open_session(fake) as session:
        upstream = Upstream(url=fake.url, driver="llama.cpp", finish=(way, "re-ask"))
        results = {
            name: await EXPERIMENTS[name][1](session) for name in EXPERIMENTS if name.partition("_")[0] in FIELDS
        }
    assert {name for name, one in results.items() if one.verdict == "ignored"} == set(names)
    assert all(one.verdict == "yes" for name, one in results.items() if name not in names)
    findings = Findings(
        examination_id="e",
        upstream="up",
        url_key="k",
        model="m",
        at_s=0.0,
        findings=tuple(Finding(experiment=name, verdict=one.verdict, evidence="") for name, one in results.items()),
    )
    for fields in FIELDS.values():
        assert finish_methods(upstream, fields) == (way, "re-ask")
        assert finish_methods(upstream, fields, findings) == ("re-ask",)
    assert finish_methods(upstream, {}, findings) == (way, "re-ask")


async def test_a_server_that_gives_no_json_at_all_loses_none_at_a_stop() -> None:
    async with FakeUpstream(lambda _: Reply(answer=("An apple.",)), ServerBehaviour(**GOOD)) as fake:
        async with open_session(fake) as session:
            result = await EXPERIMENTS["json_prefill"][1](session)
    assert (result.verdict, "no json either" in result.evidence) == ("unclear", True)


async def test_a_thought_in_the_answer_is_no_json() -> None:
    """Seen of SGLang 0.5.23: its grammar waits for a closing tag in what is generated, and the prompt holds it."""

    def again(seen: FakeRequest) -> Reply:
        late = seen.body.get("continue_final_message")
        return Reply(answer=cut('They want one fruit.</think>{"fruit": "kiwi"}' if late else '{"fruit": "kiwi"}'))

    async with FakeUpstream(again, ServerBehaviour(dialect="sglang")) as fake:
        async with open_session(fake, driver="sglang") as session:
            session.opens_thought = True
            assert (await EXPERIMENTS["json_prefill"][1](session)).verdict == "ignored"


async def test_text_before_a_required_call_means_that_nothing_constrains_it() -> None:
    """Seen of SGLang 0.5.23, for the same reason."""

    def again(seen: FakeRequest) -> Reply:
        call = ToolCall(id="call_1", name="name_fruit", arguments=('{"fruit": "kiwi"}',))
        late = seen.body.get("continue_final_message")
        return Reply(answer=cut("They want one fruit.</think>") if late else (), tool_calls=(call,))

    async with FakeUpstream(again, ServerBehaviour(dialect="sglang")) as fake:
        async with open_session(fake, driver="sglang") as session:
            session.opens_thought = True
            assert (await EXPERIMENTS["tools_prefill"][1](session)).verdict == "ignored"


@pytest.mark.parametrize("opens", [False, True])
async def test_a_message_is_continued_behind_the_tag_that_the_template_writes(opens: bool) -> None:
    """The fake refuses a thought that would be opened twice, or not at all."""
    async with FakeUpstream(model(), ServerBehaviour(dialect="sglang", opens_thought=opens)) as fake:
        async with open_session(fake, driver="sglang") as session:
            results = {
                name: await EXPERIMENTS[name][1](session) for name in ("opens_thought", "prefill", "json_prefill")
            }
    assert [one.verdict for one in results.values()] == ["yes" if opens else "no", "yes", "yes"], results


@pytest.mark.parametrize("takes", [True, False])
async def test_a_tier_for_paired_calls_is_tried_before_any_is_made(takes: bool) -> None:
    def think(seen: FakeRequest) -> Reply:
        if not takes and "service_tier" in seen.body:
            raise FakeRefusal("unknown field 'service_tier'")
        return Reply(answer=("hello",))

    async with FakeUpstream(think, ServerBehaviour(dialect="openai")) as fake:
        upstream = Upstream(url=fake.url, paired_fields={"service_tier": "flex"})
        async with UpstreamClient("up", upstream, None) as client:
            session = ServerSession(client, model="fake", timeout_s=30.0)
            findings = await examine(session, upstream="up", examination_id="x", at_s=0.0, only=["paired_fields"])
    (results,) = findings.findings
    assert (results.verdict, "service_tier" in results.evidence) == ("yes" if takes else "no", True), results.evidence
