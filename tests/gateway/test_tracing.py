"""Traces: one span for each request, in its caller's trace, without anything that must stay hidden."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv.attributes import error_attributes, http_attributes

from suffice.errors import ConfigError
from suffice.gateway import tracing
from suffice.gateway.tracing import TraceRules, trace_rules
from suffice.settings import Telemetry
from suffice_testing import Fault, Reply
from tests.gateway.conftest import Serve
from tests.gateway.served import chat, post
from tests.gateway.test_stop import chain, enforcing, held
from tests.otlp_collector import Collector, collecting

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=a,other=b"}
UNSAMPLED = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
OFF = {"mode": "off"}
RAW = {"finish": ["raw"], "slots": 3}


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collecting() as made:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", made.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
        yield made


@pytest.fixture
def opted_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "http, gen_ai_latest_experimental")


async def test_a_request_is_one_span_that_joins_its_row_reply_and_time(serve: Serve, collector: Collector) -> None:
    before_ns = time.time_ns()
    async with serve(Reply(answer=("four",)), route={"mode": "observe"}) as g:
        answer = await g.ask(chat())
        episode = await g.episode()
    (span,) = collector.wait_for(1)
    assert collector.paths == ["/v1/traces"]
    assert (span.name, span.kind, span.parent_id, span.status) == ("POST /v1/chat/completions", 2, "", 0)
    assert before_ns - 10**7 <= span.start_ns <= span.end_ns <= time.time_ns()
    assert span.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "suffice.episode_id": episode.request.episode_id,
        "suffice.request_id": answer.headers["x-request-id"],
        "suffice.route": "r",
        "suffice.upstream": "up",
        "suffice.mode": "observe",
        "suffice.kind": "reasoning",
        "suffice.policy_version": episode.request.policy_version,
        "suffice.certified": False,
        "suffice.end_reason": "done",
        "suffice.stopped": False,
    }
    assert span.resource["service.name"] == "suffice"
    assert [(name, about) for name, _, about in span.events] == [("suffice.call", {"purpose": "main"})]


async def test_the_callers_trace_goes_on_and_the_upstream_is_told(serve: Serve, collector: Collector) -> None:
    async with serve(Reply(), route=OFF) as g:
        await g.ask(chat(), headers=SAMPLED)
        seen = {k.lower(): v for k, v in g.fake.calls[0].headers}
    (span,) = collector.wait_for(1)
    assert (span.trace_id, span.parent_id, span.state) == (TRACE, PARENT, "vendor=a,other=b")
    assert seen["traceparent"] == f"00-{TRACE}-{span.span_id}-01"
    assert seen["tracestate"] == "vendor=a,other=b"


async def test_a_caller_that_does_not_sample_gets_no_span_and_its_own_context(
    serve: Serve, collector: Collector
) -> None:
    async with serve(Reply(), route=OFF) as g:
        await g.ask(chat(), headers=UNSAMPLED)
        await g.ask(chat("another"), headers=SAMPLED)
        seen = {k.lower(): v for k, v in g.fake.calls[0].headers}
    assert seen["traceparent"] == UNSAMPLED["traceparent"]
    assert len(collector.wait_for(1)) == 1


BAD_CONTEXTS = [
    "",
    "00",
    f"00-{TRACE}-{PARENT}",
    f"ff-{TRACE}-{PARENT}-01",
    f"00-{'0' * 32}-{PARENT}-01",
    f"00-{TRACE}-{'0' * 16}-01",
    f"00-{TRACE.upper()}-{PARENT}-01",
    f"00-{TRACE}x-{PARENT}-01",
    f"00-{TRACE}-{PARENT}-1",
    f"00-{TRACE}-{PARENT}-01-\xff\n",
]


@pytest.mark.parametrize("context", BAD_CONTEXTS)
def test_a_malformed_context_begins_a_new_trace(context: str) -> None:
    assert tracing._PARENT.fullmatch(context) is None


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_share_of_traced_requests_is_the_one_in_the_settings(share: float) -> None:
    tracer = tracing.Tracer(
        TraceRules(share=share),
        metrics=None,  # type: ignore[arg-type]
        exporter=None,  # type: ignore[arg-type]
        submit=print,
        resource=None,
        monotonic_s=time.monotonic,
        wall_s=time.time,
    )
    n = sum(tracer.begin({}, "POST") is not None for _ in range(4_000))
    assert abs(n / 4_000 - share) < 0.04  # 5.8 standard deviations
    assert tracer.begin(SAMPLED, "POST") is not None, "the caller has decided"
    assert tracer.begin(UNSAMPLED, "POST") is None


def _names_of(*modules: ModuleType) -> set[str]:
    return {value for module in modules for value in vars(module).values() if isinstance(value, str)}


async def test_gen_ai_attributes_have_the_names_of_the_conventions_and_need_the_opt_in(
    serve: Serve, collector: Collector, opted_in: None
) -> None:
    async with serve(Reply(reasoning=(" so",) * 5, answer=("four", ".")), route={"mode": "observe"}) as g:
        await g.ask(chat(stream=True))
        outcome = await g.outcome()
    (span,) = collector.wait_for(1)
    assert span.name == "chat m"
    known = _names_of(gen_ai_attributes, http_attributes, error_attributes)
    assert {name for name in span.attributes if not name.startswith("suffice.")} <= known
    results = {name.removeprefix("gen_ai."): value for name, value in span.attributes.items() if "gen_ai" in name}
    first_s = results.pop("response.time_to_first_chunk")
    assert first_s == pytest.approx(outcome.ttft_s)
    assert outcome.usage is not None
    assert results == {
        "operation.name": "chat",
        "provider.name": "llama.cpp",
        "request.model": "m",
        "request.stream": True,
        "response.id": outcome.response_id,
        "response.model": outcome.model,
        "response.finish_reasons": ["stop"],
        "usage.input_tokens": outcome.usage.prompt_tokens,
        "usage.output_tokens": outcome.usage.completion_tokens,
        "usage.cache_read.input_tokens": 0,
        "usage.reasoning.output_tokens": outcome.usage.reasoning_tokens,
    }


async def test_a_stop_is_an_event_with_its_time_and_the_span_says_what_it_saved(
    serve: Serve, collector: Collector
) -> None:
    async with serve(held(), upstream=RAW, route=enforcing()) as g:
        await g.ask(chat(stream=True))
        outcome = await g.outcome()
    assert outcome.stopped
    (span,) = collector.wait_for(1)
    names = [name for name, _, _ in span.events]
    assert names[0] == "suffice.call"
    assert names.index("suffice.stop_decision") < names.index("suffice.stop_transition")
    purposes = [about["purpose"] for name, _, about in span.events if name == "suffice.call"]
    assert purposes == [call.purpose for call in outcome.calls]
    times = [at_ns for _, at_ns, _ in span.events]
    assert span.start_ns <= times[0] <= times[-1] <= span.end_ns
    assert times == sorted(times)
    decision = next(about for name, _, about in span.events if name == "suffice.stop_decision")
    assert decision == {"step": outcome.stop_step, "reason": "suffices"}
    results = {k: v for k, v in span.attributes.items() if k.startswith(("suffice.st", "suffice.sa"))}
    assert results == {
        "suffice.stopped": True,
        "suffice.stop.reason": "suffices",
        "suffice.stop.step": outcome.stop_step,
        "suffice.stop.method": "raw",
        "suffice.saved_tokens": outcome.tokens_saved_estimate or 0,
    }


@pytest.mark.parametrize("mode", ["enforce", "observe"])
async def test_an_audit_looks_like_any_other_full_run(serve: Serve, collector: Collector, mode: str) -> None:
    never = {"policy": "stable-answer", "streak": 1_000}
    probe = {"verified_by": "owner"}
    live = enforcing(policy=never) if mode == "enforce" else enforcing(mode=mode, probe=probe)
    spans = []
    for route in (enforcing(mode=mode, audit_share=1.0, probe=probe), live):
        collector.spans.clear()
        async with serve(chain(delay_s=0.006), upstream=RAW, route=route) as g:
            await g.ask(chat(stream=True))
            outcome = await g.outcome()
            if route is not live:
                assert outcome.stop_step is not None, "the audit has a decision that is not followed"
                assert any(call.purpose == "probe" for call in outcome.calls)
        spans.extend(collector.wait_for(1))
        g.database.unlink()
    audit, full = ({(name, *sorted(about.items())) for name, _, about in span.events} for span in spans)
    assert audit == full
    differing = {"suffice.episode_id", "suffice.request_id", "suffice.policy_version"}
    about = [{k: v for k, v in span.attributes.items() if k not in differing} for span in spans]
    assert about[0] == about[1]
    assert "audit" not in repr(spans)


async def test_a_failing_upstream_is_an_error_of_the_span(serve: Serve, collector: Collector) -> None:
    async with serve(Reply(faults=(Fault(die_after=1, die_how="rst"),)), route=OFF, upstream={"retries": 0}) as g:
        await g.ask(chat(stream=True))
    (span,) = collector.wait_for(1)
    assert span.status == 2
    assert span.attributes["error.type"] == span.attributes["suffice.end_reason"] == "upstream_error"


async def test_a_callers_loop_is_one_span(serve: Serve, collector: Collector) -> None:
    routes = {"loop": {"kind": "rounds", "scorer": "text"}}
    async with serve(routes=routes) as g:
        url = f"{g.url}/v1/decide"
        opened = (await post(g.session, url, {"route": "loop", "question": "?"}, SAMPLED)).json
        for index in (1, 2):
            step = {"index": index, "answer": "x", "tokens": 5}
            await post(g.session, url, {"route": "loop", "episode_id": opened["episode_id"], "step": step}, {})
        await post(g.session, url, {"route": "loop", "episode_id": opened["episode_id"], "done": True}, {})
    (span,) = collector.wait_for(1)
    assert (span.name, span.trace_id, span.parent_id) == ("POST /v1/decide", TRACE, PARENT)
    assert span.attributes["suffice.episode_id"] == opened["episode_id"]
    assert span.attributes["suffice.kind"] == "rounds"


@pytest.mark.parametrize("fault", ["down", "refuses", "slow"])
async def test_a_collector_that_fails_costs_spans_which_are_counted_and_no_answer(
    serve: Serve, collector: Collector, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    if fault == "down":
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    collector.status, collector.delay_s = (403, 0.0) if fault == "refuses" else (200, 3.0)
    began_s = time.monotonic()
    async with serve(Reply(), route=OFF) as g:
        for n in range(40):
            assert (await g.ask(chat(f"question {n}"))).status == 200
        assert g.gateway.process.tracer is not None
        await asyncio.sleep(0.3)
        counted = {
            result: g.gateway.metrics.value("suffice_spans_total", result=result)
            for result in ("exported", "failed", "dropped")
        }
    took_s = time.monotonic() - began_s
    assert counted["exported"] == 0
    assert counted["failed"] + counted["dropped"] >= 40 - 8 if fault != "refuses" else counted["failed"] > 0
    assert took_s < 30, "the shutdown does not wait for a collector"


RULES: dict[str, tuple[Telemetry, dict[str, str], TraceRules | None]] = {
    "nothing": (Telemetry(), {}, None),
    "setting": (Telemetry(otlp_endpoint="http://c:4318"), {}, TraceRules()),
    "variable": (Telemetry(), {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, TraceRules()),
    "variable for traces": (Telemetry(), {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c/t"}, TraceRules()),
    "switched off": (Telemetry(otlp_endpoint="http://c:4318"), {"OTEL_SDK_DISABLED": "true"}, None),
    "no exporter": (Telemetry(otlp_endpoint="http://c:4318"), {"OTEL_TRACES_EXPORTER": "none"}, None),
    "share": (Telemetry(otlp_endpoint="http://c:4318", trace_share=0.1), {}, TraceRules(share=0.1)),
    "share over variable": (
        Telemetry(otlp_endpoint="http://c:4318", trace_share=0.1),
        {"OTEL_TRACES_SAMPLER": "always_off"},
        TraceRules(share=0.1),
    ),
    "sampler": (
        Telemetry(otlp_endpoint="http://c:4318"),
        {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.5"},
        TraceRules(share=0.5, follows_parent=False),
    ),
    "parent": (
        Telemetry(otlp_endpoint="http://c:4318"),
        {"OTEL_TRACES_SAMPLER": "parentbased_always_off"},
        TraceRules(share=0.0),
    ),
    "queue": (
        Telemetry(otlp_endpoint="http://c:4318"),
        {"OTEL_BSP_MAX_QUEUE_SIZE": "9", "OTEL_SEMCONV_STABILITY_OPT_IN": "gen_ai_latest_experimental"},
        TraceRules(most_pending=9, shows_gen_ai=True),
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_settings_and_standard_variables_decide_together(name: str) -> None:
    settings, environment, expected = RULES[name]
    assert trace_rules(settings, environment) == expected


@pytest.mark.parametrize("sampler", [("jaeger_remote", ""), ("traceidratio", "2"), ("traceidratio", "x")])
def test_a_sampler_that_is_none_is_named(sampler: tuple[str, str]) -> None:
    variables = {"OTEL_TRACES_SAMPLER": sampler[0], "OTEL_TRACES_SAMPLER_ARG": sampler[1]}
    with pytest.raises(ConfigError, match=r"OTEL_TRACES_SAMPLER: got .*; one of always_on"):
        trace_rules(Telemetry(otlp_endpoint="http://c:4318"), variables)


def test_a_missing_extra_is_one_sentence_where_the_settings_ask_for_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        return None if name.startswith("opentelemetry") else find_spec(name)

    monkeypatch.setattr(tracing, "find_spec", absent)
    with pytest.raises(ConfigError, match=re.escape("the extra otel")):
        trace_rules(Telemetry(otlp_endpoint="http://c:4318"), {})
    assert trace_rules(Telemetry(), {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"}) is None, "a variable stops no start"


async def test_variables_that_opentelemetry_refuses_are_a_sentence_at_the_start(
    serve: Serve, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")  # below the size of a batch
    with pytest.raises(ConfigError, match="OTEL_ variables: OpenTelemetry refuses them"):
        async with serve(Reply()):
            pass


def test_without_traces_nothing_of_opentelemetry_is_imported() -> None:
    code = "import sys, suffice.wiring.gateway; print([m for m in sys.modules if 'opentelemetry' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout.strip() == "[]"
