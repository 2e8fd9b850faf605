"""A collector of traces on a real socket: OTLP over HTTP, decoded from protobuf."""

from __future__ import annotations

import gzip
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.threaded_server import serving


@dataclass(slots=True)
class CollectedSpan:
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    state: str
    kind: int
    status: int
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    events: list[tuple[str, int, dict[str, Any]]]
    resource: dict[str, Any]


@dataclass(slots=True)
class Collector:
    """What arrived.

    status   of its responses
    delay_s  before each response
    """

    url: str
    status: int = 200
    delay_s: float = 0.0
    spans: list[CollectedSpan] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    def wait_for(self, n: int, within_s: float = 20.0, *, or_more: bool = False) -> list[CollectedSpan]:
        end_s = time.monotonic() + within_s
        while len(self.spans) < n and time.monotonic() < end_s:
            time.sleep(0.01)
        assert len(self.spans) == n or (or_more and len(self.spans) > n), f"{len(self.spans)} spans, not {n}"
        return self.spans

    def take(self, path: str, body: bytes) -> None:
        self.paths.append(path)
        self.bodies.append(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            about = _values(resource.resource.attributes)
            for span in (one for scope in resource.scope_spans for one in scope.spans):
                self.spans.append(
                    CollectedSpan(
                        name=span.name,
                        trace_id=span.trace_id.hex(),
                        span_id=span.span_id.hex(),
                        parent_id=span.parent_span_id.hex(),
                        state=span.trace_state,
                        kind=span.kind,
                        status=span.status.code,
                        start_ns=span.start_time_unix_nano,
                        end_ns=span.end_time_unix_nano,
                        attributes=_values(span.attributes),
                        events=[(one.name, one.time_unix_nano, _values(one.attributes)) for one in span.events],
                        resource=about,
                    )
                )


def _values(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    result = getattr(value, kind)
    return [_value(one) for one in result.values] if kind == "array_value" else result


@contextmanager
def collecting() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            time.sleep(made.delay_s)
            if made.status == 200:
                zipped = self.headers.get("content-encoding") == "gzip"
                made.take(self.path, gzip.decompress(body) if zipped else body)
            self.send_response(made.status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with serving(Handler) as url:
        made = Collector(url)
        yield made
