"""A streamed answer is cut into the same paragraphs however it arrives, and bytes pass unchanged up to the end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice import Governor
from suffice.settings import parse_settings
from suffice_loop import AgentRun
from suffice_loop.exchange import LAST, ProxyExchange
from suffice_loop.stream import StreamedAnswer, question_of

HEAD = {":status": "200", "content-type": "text/event-stream"}
REQUEST = json.dumps({"stream": True, "messages": [{"role": "user", "content": "Which?"}]}).encode()


@pytest.fixture(scope="module")
def governor(tmp_path_factory: pytest.TempPathFactory) -> Governor:
    route: dict[str, object] = {"kind": "rounds", "policy": {"policy": "stable-answer", "streak": 2}, "mode": "enforce"}
    route |= {"uncertified": True, "audit_share": 0.0}
    url = f"sqlite:///{tmp_path_factory.mktemp('stream')}/log.db"
    server = {"retry_window_s": 0}  # else a question that is asked again runs in full
    settings = parse_settings({"server": server, "routes": {"stream": route}, "store": {"url": url}})
    return Governor.open(settings, route="stream")


def event(text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}).encode() + b"\n\n"


paragraphs = st.lists(st.sampled_from(["Vienna", "Danube", "The Danube\nit is"]), min_size=1, max_size=6)


@given(paragraphs, st.data())
async def test_the_same_paragraphs_however_they_arrive(
    governor: Governor, parts: list[str], data: st.DataObject
) -> None:
    text, histories = "\n\n".join(parts), []
    for size in (len(text), data.draw(st.integers(1, 7))):
        with AgentRun(governor, "Which?") as run:
            answer = StreamedAnswer(run)
            for at in range(0, len(text), size):
                if await answer.feed(text[at : at + size]):
                    break
            else:
                await answer.finish()
        histories.append([(record.text, record.decision.action) for record in run.episode.history])
    assert histories[0] == histories[1]
    reported = [output for output, _ in histories[0]]
    assert reported == parts[: len(reported)]
    assert len(reported) == len(parts) or run.stops


@given(st.integers(1, 200))
async def test_bytes_pass_unchanged_up_to_the_end(governor: Governor, size: int) -> None:
    body = event("Vienna\n\n") + event("Danube\n\n") + event("Danube\n\n") + event("Danube\n\n") + b"data: [DONE]\n\n"
    exchange, received, ended = ProxyExchange(governor), b"", False
    exchange.read_request(REQUEST)
    await exchange.begin(HEAD)
    for at in range(0, len(body), size):
        piece, ended = await exchange.edit(body[at : at + size], is_last=at + size >= len(body))
        received += piece
        if ended:
            break
    await exchange.end(aborted=False)
    assert received == event("Vienna\n\n") + event("Danube\n\n") + event("Danube\n\n") + LAST


@pytest.mark.parametrize("size", [1, 9, 1_000])
async def test_what_cannot_be_read_passes_whole(governor: Governor, size: int) -> None:
    body = event("Vienna\n\n") + b"data: {broken\n\n" + event("Danube\n\n") * 4 + b"data: torn"
    exchange, received = ProxyExchange(governor), b""
    exchange.read_request(REQUEST)
    await exchange.begin(HEAD)
    for at in range(0, len(body), size):
        piece, ended = await exchange.edit(body[at : at + size], is_last=at + size >= len(body))
        received += piece
    await exchange.end(aborted=True)
    assert (received, ended) == (body, True)


@pytest.mark.parametrize(
    ("request_body", "head"),
    [
        (REQUEST.replace(b"true", b"false"), HEAD),
        (b"not json", HEAD),
        (b"[]", HEAD),
        (REQUEST, HEAD | {":status": "500"}),
        (REQUEST, HEAD | {"content-type": "application/json"}),
        (REQUEST, HEAD | {"content-encoding": "gzip"}),
    ],
)
async def test_other_answers_are_not_read(governor: Governor, request_body: bytes, head: dict[str, str]) -> None:
    exchange = ProxyExchange(governor)
    exchange.read_request(request_body)
    await exchange.begin(head)
    body = event("Danube\n\n") * 4
    assert await exchange.edit(body, is_last=True) == (body, True)


def test_the_question_is_the_users_last_message() -> None:
    messages = [
        {"role": "user", "content": "A?"},
        {"role": "assistant", "content": "B"},
        {"role": "user", "content": "C?"},
    ]
    assert question_of({"messages": messages}) == "C?"
    assert question_of({"messages": "x"}) == question_of({}) == ""


def test_a_run_is_aborted_by_an_exception_and_ends_once(governor: Governor, tmp_path: Path) -> None:
    with pytest.raises(KeyError), AgentRun(governor, "Which?", read_answer=lambda text: text.upper()) as run:
        run.take("danube", tokens=3, calls_tool=True)
        assert run.answer == "DANUBE"
        raise KeyError(tmp_path)
    run.end()
    assert not run.stops
