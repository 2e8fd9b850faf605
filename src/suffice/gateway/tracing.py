"""One OpenTelemetry span for each request, built from its outcome, and exported by a thread over OTLP/HTTP.

A span shows what the reply's `suffice` object shows: neither whether the request was an audit nor what only audits do.
No prompt, answer or key is in it.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final

from suffice.episode.ledger import Ledger, RunTrace
from suffice.errors import ConfigError
from suffice.extras import how_to_install, installed_version
from suffice.settings import Telemetry
from suffice.telemetry import LOG, Metrics
from suffice.types import EndReason, Outcome

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
OPT_IN: Final = "gen_ai_latest_experimental"
QUEUE_SPANS: Final = 2_048  # waiting for the exporter; OTEL_BSP_MAX_QUEUE_SIZE
CLOSE_S: Final = 2.0  # for the exporter to send what waits, at shutdown
OPERATIONS: Final[Mapping[str, str]] = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
_ERRORS: Final[frozenset[EndReason]] = frozenset({"upstream_error", "timeout", "internal_error", "shutdown"})
_FINISH_REASONS: Final = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call"})
_PARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRules:
    share: float = 1.0  # of the requests that nobody has decided on
    follows_parent: bool = True  # the caller's decision counts
    shows_gen_ai: bool = False  # the attributes of the GenAI conventions, which are not stable yet
    most_pending: int = QUEUE_SPANS


def trace_rules(settings: Telemetry, environment: Mapping[str, str]) -> TraceRules | None:
    """Return how to trace; None: not at all. Raise ConfigError, naming the setting or the variable."""
    is_off = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    is_off = is_off or environment.get("OTEL_TRACES_EXPORTER", "").strip() == "none"
    if is_off or not (settings.otlp_endpoint or any(environment.get(name) for name in ENDPOINTS)):
        return None
    # A parent package that is missing raises where its parts are looked for.
    if any(find_spec(name) is None for name in ("opentelemetry", "opentelemetry.exporter", "opentelemetry.sdk")):
        message = f"telemetry.otlp_endpoint: traces need OpenTelemetry: {how_to_install('otel')}"
        if settings.otlp_endpoint:
            raise ConfigError(message)
        LOG.warning("%s; an OTEL_ variable asks for them, and none are sent", message)
        return None
    share, follows_parent = settings.trace_share, True
    if share is None:
        share, follows_parent = _sampler(environment)
    opted_in = environment.get("OTEL_SEMCONV_STABILITY_OPT_IN", "").replace(" ", "").split(",")
    most = environment.get("OTEL_BSP_MAX_QUEUE_SIZE", "")
    return TraceRules(
        share=share,
        follows_parent=follows_parent,
        shows_gen_ai=OPT_IN in opted_in,
        most_pending=int(most) if most.isdigit() else QUEUE_SPANS,
    )


def _sampler(environment: Mapping[str, str]) -> tuple[float, bool]:
    name = environment.get("OTEL_TRACES_SAMPLER", "").strip() or "parentbased_always_on"
    kind = name.removeprefix("parentbased_")
    shares = {"always_on": "1", "always_off": "0", "traceidratio": environment.get("OTEL_TRACES_SAMPLER_ARG") or "1"}
    try:
        share = float(shares[kind])
    except (KeyError, ValueError):
        share = -1.0
    if not 0 <= share <= 1:
        allowed = ", ".join(f"{prefix}{kind}" for prefix in ("", "parentbased_") for kind in shares)
        raise ConfigError(f"OTEL_TRACES_SAMPLER: got {name[:80]!r}; one of {allowed}, with a ratio from 0 to 1")
    return share, name != kind


class CountedExporter:
    """Passes spans on to an exporter, counts what became of them, and reports an outage once."""

    def __init__(self, exporter: Any, metrics: Metrics) -> None:
        self._exporter, self._metrics = exporter, metrics
        self._is_failing = False
        self.n_done = 0

    def export(self, spans: Any) -> Any:
        result = self._exporter.export(spans)
        is_failing = result.name != "SUCCESS"
        self.n_done += len(spans)
        self._metrics.inc("suffice_spans_total", "failed" if is_failing else "exported", by=len(spans))
        if is_failing != self._is_failing:
            what = "takes no spans; requests are not affected" if is_failing else "takes spans again"
            LOG.warning("traces: the collector %s", what)
        self._is_failing = is_failing
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


class Tracer:
    """Decides at the start of a request whether it has a span, and builds and queues the span at its end."""

    def __init__(
        self,
        rules: TraceRules,
        metrics: Metrics,
        exporter: CountedExporter,
        *,
        submit: Callable[[Any], None],
        resource: Any,
        monotonic_s: Callable[[], float],
        wall_s: Callable[[], float],
    ) -> None:
        from opentelemetry import trace
        from opentelemetry.sdk import trace as sdk
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        self._api, self._sdk = trace, sdk
        self._rules = rules
        self._metrics = metrics
        self._exporter = exporter
        self._submit = submit
        self._resource, self._scope = resource, InstrumentationScope("suffice", installed_version())
        self._monotonic_s, self._wall_s = monotonic_s, wall_s
        self._n_submitted = 0

    def begin(self, headers: Mapping[str, str], method: str) -> RunTrace | None:
        """Return the request's place in its trace, by the trace context in its headers; None: it has no span."""
        matched = _PARENT.fullmatch(headers.get("traceparent", ""))
        is_known = matched is not None and self._rules.follows_parent
        if is_known and matched is not None and not int(matched[3], 16) & 1:
            return None
        trace_id = int(matched[1] if matched is not None else os.urandom(16).hex(), 16)
        if not is_known and trace_id % 2**64 >= self._rules.share * 2**64:
            return None
        return RunTrace(
            trace_id=trace_id,
            span_id=int.from_bytes(os.urandom(8)) or 1,
            parent_id=None if matched is None else int(matched[2], 16),
            state="" if matched is None else headers.get("tracestate", ""),
            monotonic_s=self._monotonic_s,
            began_s=self._monotonic_s(),
            began_ns=int(self._wall_s() * 1e9),
            attributes={"http.request.method": method},
        )

    def finish(self, trace: RunTrace, ledger: Ledger, outcome: Outcome, *, ended_s: float) -> None:
        """Queue the span of an ended request. A failure costs the span."""
        if self._n_submitted - self._exporter.n_done >= self._rules.most_pending:
            self._metrics.inc("suffice_spans_total", "dropped")
            return
        try:
            self._submit(self._span(trace, ledger, outcome, ended_s))
        except Exception as error:  # noqa: BLE001 - see above
            LOG.error("traces: a span could not be built (%s)", type(error).__name__)
            self._metrics.inc("suffice_failopen_total", "trace")
        else:
            self._n_submitted += 1

    def _span(self, trace: RunTrace, ledger: Ledger, outcome: Outcome, ended_s: float) -> Any:
        api, event = self._api, self._sdk.Event

        def at_ns(at_s: float) -> int:
            return trace.began_ns + int((at_s - trace.began_s) * 1e9)

        def context(span_id: int, *, is_remote: bool) -> Any:
            return api.SpanContext(trace.trace_id, span_id, is_remote, api.TraceFlags(api.TraceFlags.SAMPLED), state)

        state = api.TraceState.from_header([trace.state]) if trace.state else None
        operation, model = OPERATIONS.get(ledger.request.endpoint), ledger.request.model[:200]
        attributes = span_attributes(trace, ledger, outcome)
        name = f"{trace.attributes['http.request.method']} {ledger.request.endpoint}"
        if self._rules.shows_gen_ai and operation is not None:
            name = f"{operation} {model}".rstrip()
            attributes |= gen_ai_attributes(operation, trace.provider, ledger, outcome)
        return self._sdk.ReadableSpan(
            name=name,
            context=context(trace.span_id, is_remote=False),
            parent=None if trace.parent_id is None else context(trace.parent_id, is_remote=True),
            resource=self._resource,
            attributes=attributes,
            events=[event(name, about, at_ns(at_s)) for at_s, name, about in _visible_events(trace, ledger, ended_s)],
            kind=api.SpanKind.SERVER,
            instrumentation_scope=self._scope,
            status=api.Status(api.StatusCode.ERROR if outcome.end_reason in _ERRORS else api.StatusCode.UNSET),
            start_time=trace.began_ns,
            end_time=at_ns(ended_s),
        )


def _visible_events(
    trace: RunTrace, ledger: Ledger, ended_s: float
) -> Iterator[tuple[float, str, dict[str, str | int]]]:
    """Yield the events that every run of the route may have; others would tell audits apart."""
    shows_probes = ledger.disclosure.includes_probes
    shows_decision = ledger.stop.acted or (ledger.request.mode == "observe" and shows_probes)
    for event in trace.events:
        at_s, name, about = event
        is_hidden = about.get("purpose") == "probe" and not shows_probes
        if at_s <= ended_s and not is_hidden and (name != "suffice.stop_decision" or shows_decision):
            yield event


def span_attributes(trace: RunTrace, ledger: Ledger, outcome: Outcome) -> dict[str, Any]:
    request = ledger.request
    attributes: dict[str, Any] = trace.attributes | {
        "http.route": request.endpoint,
        "suffice.episode_id": request.episode_id,
        "suffice.route": request.route,
        "suffice.mode": request.mode,
        "suffice.kind": request.kind,
        "suffice.policy_version": request.policy_version,
        "suffice.certified": request.certified,
        "suffice.end_reason": outcome.end_reason,
        "suffice.stopped": outcome.stopped,
    }
    if outcome.status:
        attributes["http.response.status_code"] = outcome.status
    if outcome.end_reason in _ERRORS:
        attributes["error.type"] = outcome.end_reason
    if request.ungoverned is not None:
        attributes["suffice.ungoverned"] = request.ungoverned
    if outcome.stopped:
        about = {"reason": outcome.stop_reason, "step": outcome.stop_step, "method": outcome.finish_method}
        attributes |= {f"suffice.stop.{name}": value for name, value in about.items() if value is not None}
        attributes["suffice.saved_tokens"] = outcome.tokens_saved_estimate or 0
    degraded = ledger.disclosed_degraded
    return attributes | {"suffice.degraded": degraded} if degraded else attributes


def gen_ai_attributes(operation: str, provider: str, ledger: Ledger, outcome: Outcome) -> dict[str, Any]:
    """Return the attributes of the GenAI conventions, under the names of `opentelemetry-semantic-conventions` 0.66."""
    request = ledger.request
    usage = outcome.usage
    finish = ledger.reply.finish_reason
    known: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": provider or None,
        "gen_ai.request.model": request.model[:200] or None,
        "gen_ai.request.stream": request.stream,
        "gen_ai.response.id": outcome.response_id,
        "gen_ai.response.model": outcome.model,
        "gen_ai.response.finish_reasons": [finish] if isinstance(finish, str) and finish in _FINISH_REASONS else None,
        "gen_ai.response.time_to_first_chunk": outcome.ttft_s if request.stream else None,
    }
    if usage is not None:
        known |= {
            "gen_ai.usage.input_tokens": usage.prompt_tokens,
            "gen_ai.usage.output_tokens": usage.completion_tokens,
            "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
            "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens,
        }
    return {name: value for name, value in known.items() if value is not None}


@contextmanager
def open_tracer(
    settings: Telemetry,
    environment: Mapping[str, str],
    metrics: Metrics,
    *,
    monotonic_s: Callable[[], float],
    wall_s: Callable[[], float],
) -> Iterator[Tracer | None]:
    """Yield a tracer, or None where traces are off; send what waits afterwards, for at most `CLOSE_S`."""
    rules = trace_rules(settings, environment)
    if rules is None:
        yield None
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # its lines quote addresses; ours counts instead
    base = settings.otlp_endpoint.rstrip("/")
    try:
        made: Any = CountedExporter(OTLPSpanExporter(endpoint=f"{base}/v1/traces" if base else None), metrics)
        processor = BatchSpanProcessor(made)
    except ValueError as error:  # such as a queue shorter than a batch
        raise ConfigError(f"OTEL_ variables: OpenTelemetry refuses them: {error}") from None
    resource = Resource.create({"service.version": installed_version()})
    if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": "suffice"}))
    try:
        times = {"monotonic_s": monotonic_s, "wall_s": wall_s}
        yield Tracer(rules, metrics, made, submit=processor.on_end, resource=resource, **times)
    finally:  # in a thread: a dead collector would hold the shutdown for its whole time limit
        closing = threading.Thread(target=processor.shutdown, name="traces", daemon=True)
        closing.start()
        closing.join(CLOSE_S)
