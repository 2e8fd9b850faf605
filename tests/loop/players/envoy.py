"""Plays Envoy's part of the external-processing protocol against the service, and prints what came back.

    python -m tests.loop.players.envoy GATEWAY

The messages are those that Envoy sends for a streamed answer with the filter set up as `suffice_loop.envoy` says: see
"External Processing" in Envoy's documentation, and `external_processor.proto`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from typing import Any

import grpc
from envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from envoy.service.ext_proc.v3 import external_processor_pb2_grpc as services

from suffice import Governor
from suffice_loop.envoy import serve

PARAGRAPHS = ["Vienna\n\n", "Dan", "ube\n", "\nDanube\n\n", "Danube\n\n", "Danube"]
BODY = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "Which river?"}]}


def headers(**fields: str) -> pb.HttpHeaders:
    named = [HeaderValue(key=key.replace("_", "-"), raw_value=value.encode()) for key, value in fields.items()]
    return pb.HttpHeaders(headers=HeaderMap(headers=named))


def events() -> bytes:
    parts = [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in PARAGRAPHS]
    return b"".join(b"data: " + json.dumps(part).encode() + b"\n\n" for part in parts) + b"data: [DONE]\n\n"


def messages(body: dict[str, Any], kind: str, size: int) -> Iterator[pb.ProcessingRequest]:
    yield pb.ProcessingRequest(request_headers=headers(content_type="application/json"))
    yield pb.ProcessingRequest(request_body=pb.HttpBody(body=json.dumps(body).encode(), end_of_stream=True))
    status = HeaderValue(key=":status", raw_value=b"200")
    answer = headers(content_type=kind)
    answer.headers.headers.append(status)
    yield pb.ProcessingRequest(response_headers=answer)
    raw = events()
    for at in range(0, len(raw), size):
        last = at + size >= len(raw)
        yield pb.ProcessingRequest(response_body=pb.HttpBody(body=raw[at : at + size], end_of_stream=last))


async def exchange(port: int, **options: Any) -> dict[str, Any]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = services.ExternalProcessorStub(channel)
        received, kinds, ended = b"", [], False
        async for reply in stub.Process(messages(**options)):
            kinds.append(reply.WhichOneof("response"))
            if kinds[-1] == "response_body":
                streamed = reply.response_body.response.body_mutation.streamed_response
                assert not ended, "a body after its end"
                received, ended = received + streamed.body, streamed.end_of_stream
    return {"body": received.decode(), "ended": ended, "kinds": kinds[:4], "sent": events().decode()}


async def main() -> None:
    with Governor.connect(sys.argv[1], route="stream", timeout_s=30) as governor:
        server, port = await serve(governor, "127.0.0.1:0")
        stream = "text/event-stream; charset=utf-8"
        results = {
            "pieces": await exchange(port, body=BODY, kind=stream, size=7),
            "whole": await exchange(port, body=BODY, kind=stream, size=100_000),
            "not streamed": await exchange(port, body=BODY | {"stream": False}, kind="application/json", size=50),
            "not a chat": await exchange(port, body={"input": "x"}, kind=stream, size=50),
        }
        await server.stop(None)
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    asyncio.run(main())
