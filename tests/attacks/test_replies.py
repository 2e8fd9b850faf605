"""Attacks by the services that we call: whatever they reply, no caller sees an exception and nothing is believed."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from suffice.doctor.session import ServerSession
from suffice.edge import judge as judge_module
from suffice.edge import math as math_module
from suffice.edge.embedder import HttpEmbedder
from suffice.edge.judge import JudgeModel
from suffice.edge.math import MathProcess
from suffice.edge.notification import MailServer, post_json, send_mail
from suffice.errors import BadRequest, StoreError, UpstreamError
from suffice.gateway.tracing import CountedExporter
from suffice.governor import Governor
from suffice.settings import Upstream
from suffice.telemetry import Metrics
from suffice.upstream.client import UpstreamClient
from tests.stub_server import Stub, reply

CPU_S = 5.0  # of one reply, however busy the machine is
OK = "200 OK"


def head(status: str, *headers: str, body: bytes = b"") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "connection: close"]).encode("latin-1") + b"\r\n\r\n" + body


WRONG: dict[str, bytes] = {  # no service of any kind may reply so
    "nothing": b"",
    "no http": b"220 mail.example ESMTP\r\n",
    "http of another kind": b"HTTP/9.9 200 OK\r\n\r\n{}",
    "a status that is none": b"HTTP/1.1 banana OK\r\n\r\n{}",
    "a status of minus one": b"HTTP/1.1 -1 OK\r\n\r\n{}",
    "a line without end": b"HTTP/1.1 200 " + b"x" * 300_000,
    "ten thousand headers": head(OK, *(f"x-{n}: y" for n in range(10_000)), body=b"{}"),
    "a header without a colon": head(OK, "content-length", body=b"{}"),
    "two lengths": head(OK, "content-length: 2", "content-length: 3", body=b"{}x"),
    "a length below nothing": head(OK, "content-length: -5", body=b"{}"),
    "a length in words": head(OK, "content-length: two", body=b"{}"),
    "less than promised": head(OK, "content-length: 5000", body=b'{"data": []}'),
    "chunks that are none": head(OK, "transfer-encoding: chunked", body=b"zz\r\n{}\r\n0\r\n\r\n"),
    "a chunk below nothing": head(OK, "transfer-encoding: chunked", body=b"-2\r\n{}\r\n0\r\n\r\n"),
    "bytes that are packed": head(OK, "content-encoding: gzip", "content-length: 2", body=b"\x1f\x8b"),
    "a redirect elsewhere": head("302 Found", "location: http://127.0.0.1:9/", "content-length: 0"),
    "a page": reply(OK, b"<html><script>alert(1)</script></html>"),
    "an empty body": reply(OK, b""),
    "no content": reply("204 No Content", b""),
    "bytes that are no text": reply(OK, b"\xff\xfe\x00"),
    "lists without end": reply(OK, b"[" * 500_000),
    "objects without end": reply(OK, b'{"data":' * 100_000),
    "a number of 5,000 digits": reply(OK, b'{"data": ' + b"9" * 5_000 + b"}"),
    "a list": reply(OK, b"[]"),
    "a text": reply(OK, b'"ok"'),
    "nothing in JSON": reply(OK, b"null"),
    "another service": reply(OK, b'{"status": "ok"}'),
    "an error with status 200": reply(OK, b'{"error": {"message": "busy"}}'),
    "an error that is a list": reply("500 No", b'{"error": ["busy"]}'),
    "an error whose words are an object": reply("503 No", b'{"error": {"message": {"a": 1}}}'),
}


@pytest.fixture(autouse=True)
def _cheap() -> Iterator[None]:
    began_s = time.process_time()
    yield
    assert time.process_time() - began_s < CPU_S


@pytest.fixture
def stub(request: pytest.FixtureRequest) -> Iterator[Stub]:
    """The service that replies as the case says."""
    made = Stub(WRONG[request.param])
    yield made
    made.close()


wrong = pytest.mark.parametrize("stub", WRONG, indirect=True)


# ---- the server of `Governor.connect`


@wrong
def test_no_reply_of_a_server_is_a_decision(stub: Stub) -> None:
    with Governor.connect(stub.url, route="r", timeout_s=2) as gov, gov.episode("q") as ep:
        decided = [ep.step(answer=answer, tokens=1).action for answer in ("a", "b")]
        assert decided == ["continue", "continue"]
        assert ep.answer == "b", "the loop's own answer is kept"
        assert "server" in ep.degraded


@wrong
def test_no_reply_of_a_server_is_a_receipt_of_feedback(stub: Stub) -> None:
    with Governor.connect(stub.url, route="r", timeout_s=2) as gov:
        with pytest.raises(StoreError, match="send it again with the same feedback_id"):
            gov.feedback("ep_1", source="user", rating=5, feedback_id="f")


TAKEN = {"accepted": True, "duplicate": False, "joined": True}
RECEIPTS: dict[str, Any] = {
    "no results": {},
    "results of no list": {"results": 5},
    "no result": {"results": []},
    "one result for two rows": {"results": [TAKEN]},
    "three results for two rows": {"results": [TAKEN] * 3},
    "results of no object": {"results": ["ok", "ok"]},
    "a result that is none": {"results": [TAKEN, None]},
    "accepted in words": {"results": [TAKEN, TAKEN | {"accepted": "yes"}]},
    "accepted as a number": {"results": [TAKEN, TAKEN | {"accepted": 1}]},
    "joined in words": {"results": [TAKEN, TAKEN | {"joined": "no"}]},
    "nobody says that it was accepted": {"results": [TAKEN, {"joined": True}]},
}


@pytest.mark.parametrize("case", RECEIPTS)
def test_a_batch_is_stored_when_each_row_has_its_receipt(case: str) -> None:
    stub = Stub(reply(OK, json.dumps(RECEIPTS[case]).encode()))
    rows = [{"feedback_id": f"f{n}", "episode_id": "ep_1", "source": "user", "rating": 5} for n in range(2)]
    with Governor.connect(stub.url, route="r", timeout_s=2) as gov, pytest.raises(StoreError, match="send it again"):
        gov.feedback_batch(rows)
    stub.close()


@pytest.mark.parametrize("error", [None, "no", 5, [], {"message": None}, {"message": "rating: is wrong"}], ids=repr)
def test_a_row_that_was_refused_is_named_whatever_the_reason_is(error: Any) -> None:
    refused = {"accepted": False, "error": error}
    stub = Stub(reply(OK, json.dumps({"results": [TAKEN, refused]}).encode()))
    rows = [{"feedback_id": f"f{n}", "episode_id": "ep_1", "source": "user", "rating": 5} for n in range(2)]
    with Governor.connect(stub.url, route="r", timeout_s=2) as gov, pytest.raises(BadRequest, match="row 2, "):
        gov.feedback_batch(rows)
    stub.close()


# ---- an upstream's list of models


LISTS: dict[str, Any] = {
    "no list": {"data": 5},
    "a list of words": {"data": ["gpt", "claude"]},
    "names in another type": {"data": [{"id": 5}, {"id": None}, {"id": ["m"]}, {}]},
    "owners in another type": {"data": [{"id": [], "owned_by": {"a": 1}}]},
    "an object of models": {"data": {"m": {"id": "m"}}},
}


async def listed(url: str) -> tuple[list[str], object]:
    async with UpstreamClient("up", Upstream(url=url, retries=0, first_byte_timeout_s=5.0), None) as client:
        session = ServerSession(client, model="m", timeout_s=5.0)
        try:
            return await session.models(), await session.engine()
        except UpstreamError:
            return [], None


@wrong
async def test_no_reply_makes_up_a_model(stub: Stub) -> None:
    assert await listed(stub.url) == ([], None)


@pytest.mark.parametrize("case", LISTS)
async def test_a_list_of_something_else_lists_no_model(case: str) -> None:
    stub = Stub(reply(OK, json.dumps(LISTS[case]).encode()))
    assert await listed(stub.url) == ([], None)
    stub.close()


# ---- the judge and the embedder


@wrong
async def test_no_reply_is_a_grade(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_module, "FIRST_PAUSE_S", 0.0)
    async with JudgeModel(stub.url, "grader", timeout_s=2.0) as judge:
        grade = await judge.grade("q", "a")
    assert grade.value is None
    assert grade.problem
    assert grade.n_calls <= 1 + judge_module.RETRIES


def completion(content: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": content}}]}


GRADES: dict[str, Any] = {
    "choices of no list": {"choices": {"0": "Grade: 1"}},
    "a choice of no object": {"choices": ["Grade: 1"]},
    "a message of no object": {"choices": [{"message": "Grade: 1"}]},
    "a list of parts": completion([{"type": "text", "text": "Grade: 1"}]),
    "a number": completion(1),
    "true": completion(True),
    "inside an endless thought": completion("<think>Grade: 1"),
    "another scale": completion("Grade: 9/10"),
    "per cent": completion("Grade: 95%"),
    "beyond the scale": completion("Grade: 1.01"),
    "no number": completion("Grade: nan"),
    "without end": completion("Grade: inf"),
    "out of ten": completion("Grade: 1 out of 10"),
    "of two": completion("Grade: 1 of 2"),
    "per cent in words": completion("Grade: 1 per cent"),
    "behind two spaces": completion("Grade: 1  / 10"),
    "a version": completion("Grade: 1.0.0"),
}


@pytest.mark.parametrize("case", GRADES)
async def test_a_reply_that_only_resembles_a_grade_is_none(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_module, "FIRST_PAUSE_S", 0.0)
    stub = Stub(reply(OK, json.dumps(GRADES[case]).encode()))
    async with JudgeModel(stub.url, "grader", timeout_s=2.0) as judge:
        assert (await judge.grade("q", "a")).value is None
    stub.close()


@wrong
async def test_no_reply_is_a_vector(stub: Stub) -> None:
    async with HttpEmbedder(stub.url, model="m", timeout_s=2.0) as embedder:
        assert await embedder.embed("a") is None
        assert embedder.n_failures == 1
        assert await embedder.embed("b") is None, "and it rests"
        assert embedder.n_failures == 1


# ---- the worker that judges formulas


LINES: dict[str, str] = {
    "nothing": "",
    "words": "print('yes')",
    "a number": "print(1)",
    "a text": "print('\"true\"')",
    "a list": "print('[true]')",
    "lists without end": "print('[' * 100_000)",
    "half a line": "print('tru', end='')",
    "bytes that are no text": "sys.stdout.buffer.write(b'\\xff\\xfe\\n')",
    "a number of 5,000 digits": "print('9' * 5_000)",
    "silence": "time.sleep(60)",
}


@pytest.mark.parametrize("case", LINES)
def test_no_line_of_the_math_worker_is_a_verdict_but_true_and_false(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("math_verify")
    program = f"import sys, time\nprint('true', flush=True)\nsys.stdin.readline()\n{LINES[case]}\n"

    def start() -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe, text=True, encoding="utf-8")

    monkeypatch.setattr(math_module, "_start", start)
    monkeypatch.setattr(math_module, "LIMIT_S", 1.0)
    judge = MathProcess()
    try:
        assert judge.equivalent("1", "1") is None
    finally:
        judge.close()


# ---- alerts by webhook and mail, and the collector of spans


@pytest.mark.parametrize("case", [case for case in WRONG if not WRONG[case].startswith(b"HTTP/1.1 2")])
def test_a_webhook_that_does_not_take_an_alert_is_said_in_a_short_sentence(case: str) -> None:
    stub = Stub(WRONG[case])
    problem = post_json(f"{stub.url}/hook/sk-secret", b"{}", timeout_s=2.0)
    assert problem is not None
    assert len(problem) < 200
    assert "sk-secret" not in problem
    stub.close()


def test_a_webhook_that_sends_without_end_is_left() -> None:
    stub = Stub(head(OK, body=b"x" * 50_000_000))
    assert post_json(stub.url, b"{}", timeout_s=5.0) is None, "a page of any length is a 200"
    stub.close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hook",
        "file:///etc/passwd",
        "gopher://127.0.0.1/",
        "http://",
        "http://:80/",
        "http://127.0.0.1:99999/",
        "http://127.0.0.1:x/",
        "http://127.0.0.1:9/a b",
        "http://127.0.0.1:9/a\r\nx-admin: 1",
        "http://127.0.0.1:9/\u00e9",
        "http://[::1",
        "http://a..b/",
        "http://" + "a" * 300 + "/",
    ],
)
def test_an_address_that_is_no_webhook_sends_nothing(url: str) -> None:
    problem = post_json(url, b"{}", timeout_s=2.0)
    assert problem is not None
    assert problem.startswith("the webhook")


MAILS: dict[str, bytes] = {
    "nothing": b"",
    "a page": reply(OK, b"<html>"),
    "a refusal": b"554 no\r\n",
    "a code that is none": b"abc hello\r\n",
    "a code of two digits": b"22 hello\r\n",
    "a line without end": b"220 " + b"x" * 1_000_000,
    "lines without end": b"220-x\r\n" * 100_000,
    "bytes that are no text": b"\xff\xfe\xfd\r\n",
}


@pytest.mark.parametrize("case", MAILS)
def test_a_mail_server_that_is_none_is_said_in_a_sentence(case: str) -> None:
    stub = Stub(MAILS[case])
    port = int(stub.url.rpartition(":")[2])
    server = MailServer(host="127.0.0.1", port=port, login=("user", "sk-secret"))
    problem = send_mail(server, sender="a@b.example", to=["c@d.example"], subject="s", text="t", timeout_s=1.0)
    assert problem is not None
    assert problem.startswith("the mail server")
    assert "sk-secret" not in problem
    stub.close()


@pytest.mark.parametrize("field", ["sender", "to", "subject"])
def test_no_line_break_becomes_a_header_of_a_mail(field: str) -> None:
    heard = list[bytes]()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rwb") as file:
                file.write(b"220 here\r\n")
                file.flush()
                while line := file.readline():
                    heard.append(line)
                    file.write(b"354 go\r\n" if line.startswith(b"DATA") else b"250 ok\r\n")
                    file.flush()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        server = MailServer(host="127.0.0.1", port=listener.getsockname()[1], tls="off")
        given: dict[str, Any] = {"sender": "a@b.example", "to": ["c@d.example"], "subject": "s"}
        hostile = "x@y.example\r\nBcc: everybody@evil.example"
        given[field] = [hostile] if field == "to" else hostile
        problem = send_mail(server, text="t", timeout_s=2.0, **given)
    assert problem == "a line break stands in the sender, an address or the subject: nothing was sent"
    assert not any(line.lower().startswith((b"bcc:", b"rcpt to:<everybody")) for line in heard)


@pytest.mark.parametrize("name", ["FAILURE", "", "success", "SUCCESS ", "OK"])
def test_spans_count_as_exported_where_the_collector_said_so(name: str) -> None:
    metrics = Metrics()
    exporter = CountedExporter(SimpleNamespace(export=lambda _: SimpleNamespace(name=name)), metrics)
    exporter.export([1, 2])
    assert metrics.value("suffice_spans_total", result="failed") == 2
