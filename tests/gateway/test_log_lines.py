"""Log lines: one for each request, as text or JSON, that name the request as its client and its reply do."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from suffice.telemetry import ACCESS, ACCESS_LINE, CURRENT_REQUEST, LOG, LineFormatter, RequestContext, is_request_id
from suffice_testing import FakeRequest, Fault, Reply
from tests.gateway.conftest import Serve
from tests.gateway.served import Answer, Served, chat
from tests.otlp_collector import collecting

OFF = {"mode": "off"}


@pytest.fixture(params=["text", "json"])
def lines(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    text, level = io.StringIO(), ACCESS.level
    handler = logging.StreamHandler(text)
    handler.setFormatter(LineFormatter(request.param))
    LOG.addHandler(handler)
    ACCESS.setLevel(logging.INFO)
    yield text
    LOG.removeHandler(handler)
    ACCESS.setLevel(level)


def parsed(text: io.StringIO) -> list[dict[str, Any]]:
    """The access lines, from either format."""
    result = []
    for line in text.getvalue().splitlines():
        if line.startswith("{"):
            result += [json.loads(line)] if "suffice.access" in line else []
        elif "suffice.access" in line:
            matched = re.fullmatch(
                r".*: (\S+) (\S+) (\d+) (\d+) ms (\d+) bytes route=(\S+) id=(\S+) request_id=(\S+)", line
            )
            assert matched is not None
            names = ("method", "path", "status", "duration_ms", "bytes", "route", "episode_id", "request_id")
            result.append(dict(zip(names, (int(g) if g.isdigit() else g for g in matched.groups()), strict=True)))
    return result


async def _ask(g: Served, given: str | None = None) -> Answer:
    return await g.ask(chat(), headers={} if given is None else {"x-request-id": given})


async def test_a_line_says_what_was_asked_answered_and_how_long_it_took(serve: Serve, lines: io.StringIO) -> None:
    async with serve(Reply(), route=OFF) as g:
        answer = await _ask(g)
        episode = await g.episode()
    (line,) = parsed(lines)
    assert (line["method"], line["path"], line["status"]) == ("POST", "/v1/chat/completions", 200)
    assert line["bytes"] > len(answer.raw)
    assert 0 <= line["duration_ms"] < 30_000
    assert (line["route"], line["episode_id"]) == ("r", episode.request.episode_id)
    assert line["request_id"] == answer.headers["x-request-id"]


async def test_the_clients_id_names_the_request_everywhere(serve: Serve, lines: io.StringIO) -> None:
    async with serve(Reply(), route=OFF) as g:
        answer = await _ask(g, "order-17/a")
        seen = {k.lower(): v for k, v in g.fake.calls[0].headers}
    assert answer.headers["x-request-id"] == seen["x-request-id"] == "order-17/a"
    assert parsed(lines)[0]["request_id"] == "order-17/a"


@pytest.mark.parametrize("given", [None, "mine"])
async def test_an_id_of_the_upstream_is_never_lost(serve: Serve, lines: io.StringIO, given: str | None) -> None:
    says = Reply(faults=(Fault(status=200, status_body=b"{}", status_headers={"x-request-id": "req_theirs"}),))
    async with serve(says, route=OFF) as g:
        answer = await _ask(g, given)
    expected = {None: ("req_theirs", None), "mine": ("mine", "req_theirs")}[given]
    assert (answer.headers["x-request-id"], answer.headers.get("x-upstream-request-id")) == expected
    assert parsed(lines)[0]["request_id"] == expected[0]


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, 'a"b', "a\u00e9", "a{b}", "a;b"])
async def test_an_odd_id_is_replaced_and_writes_no_line_of_its_own(
    serve: Serve, lines: io.StringIO, given: str
) -> None:
    async with serve(Reply(), route=OFF) as g:
        answer = await _ask(g, given)
    assert re.fullmatch("req_[0-9a-f]{16}", answer.headers["x-request-id"])
    assert parsed(lines)[0]["request_id"] == answer.headers["x-request-id"]


async def test_refusals_and_pages_have_ids_too(serve: Serve, lines: io.StringIO) -> None:
    async with serve(Reply(), route=OFF) as g:
        for path in ("/healthz", "/nothing"):
            async with g.session.get(g.url + path, headers={"x-request-id": "a"}) as answer:
                assert answer.headers["x-request-id"] == "a"
        assert (await g.ask(b"{", headers={"x-request-id": "b"})).headers["x-request-id"] == "b"
    assert [line["request_id"] for line in parsed(lines)] == ["a", "a", "b"]


async def test_extra_calls_have_names_of_their_own(serve: Serve) -> None:
    seen: list[str] = []

    def says(request: FakeRequest) -> Reply:
        seen.extend(v for k, v in request.headers if k.lower() == "x-request-id")
        return Reply(answer=(str(len(seen)),))  # no two agree, so the vote needs them all

    async with serve(says, route={"kind": "samples", "samples": 3, "scorer": "number", "mode": "observe"}) as g:
        await _ask(g, "a")
        await g.outcome()  # what is not delivered goes on behind the answer
    assert sorted(seen) == ["a", "a-2", "a-3"], "vLLM refuses a second running request of the same name"


async def test_a_warning_inside_a_request_names_it(serve: Serve, lines: io.StringIO) -> None:
    async with serve(Reply(faults=(Fault(status=503),)), route=OFF, upstream={"url": "http://127.0.0.1:9"}) as g:
        await _ask(g, "order-18")
    report = [line for line in lines.getvalue().splitlines() if "upstream up" in line]
    assert report
    assert all("order-18" in line for line in report)


async def test_a_traced_request_has_its_trace_in_its_lines(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(LineFormatter("json"))
    LOG.addHandler(handler)
    level = ACCESS.level
    ACCESS.setLevel(logging.INFO)
    try:
        with collecting() as collector:
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
            async with serve(Reply(), route=OFF) as g:
                await _ask(g)
            (span,) = collector.wait_for(1)
    finally:
        LOG.removeHandler(handler)
        ACCESS.setLevel(level)
    (line,) = parsed(text)
    assert line["trace_id"] == span.trace_id


def _record(message: str, *args: object, name: str = "suffice") -> logging.LogRecord:
    return logging.LogRecord(name, logging.WARNING, "", 0, message, args, None)


def test_every_json_line_is_one_object_with_a_time_in_utc() -> None:
    before = datetime.now(UTC)
    line = LineFormatter("json").format(_record("a\nb \ud800 %s", "\u2028\x1b"))
    assert "\n" not in line
    result = json.loads(line)
    assert set(result) == {"time", "level", "logger", "message"}
    assert abs((datetime.fromisoformat(result["time"]) - before).total_seconds()) < 5
    assert result["level"] == "warning"


def test_a_traceback_stays_in_its_line() -> None:
    record = _record("failed")
    try:
        raise ValueError("x")
    except ValueError as error:
        record.exc_info = (type(error), error, error.__traceback__)
    assert "ValueError: x" in json.loads(LineFormatter("json").format(record))["exception"]
    assert LineFormatter().format(record).endswith("ValueError: x")


def test_the_two_formats_say_the_same_of_a_request() -> None:
    token = CURRENT_REQUEST.set(RequestContext("abc", route="math", episode_id="ep_1", trace_id="t"))
    try:
        text = LineFormatter().format(_record("careful"))
        result = json.loads(LineFormatter("json").format(_record("careful")))
    finally:
        CURRENT_REQUEST.reset(token)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} WARNING suffice: careful route=math request_id=abc", text
    )
    assert {k: result[k] for k in ("message", "request_id", "route", "episode_id", "trace_id")} == {
        "message": "careful",
        "request_id": "abc",
        "route": "math",
        "episode_id": "ep_1",
        "trace_id": "t",
    }


def test_unknown_parts_of_an_access_line_are_left_out_of_its_object() -> None:
    record = _record(ACCESS_LINE, "-", "-", 408, 0, 120, "-", "-", "-", name="suffice.access")
    result = json.loads(LineFormatter("json").format(record))
    assert set(result) == {"time", "level", "logger", "message", "status", "duration_ms", "bytes"}


@pytest.mark.parametrize("text", ["a", "req_1", "018f:x/y.z~=+@-_", "x" * 128])
def test_ids_of_the_usual_makers_are_taken(text: str) -> None:
    assert is_request_id(text)
