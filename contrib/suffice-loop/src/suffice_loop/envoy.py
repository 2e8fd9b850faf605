"""Envoy's external processor: it reads a streamed answer and ends it once it suffices, see `suffice_loop.stream`.

    python -m suffice_loop.envoy --gateway http://127.0.0.1:8400 --route stream --listen 127.0.0.1:18080

`envoy.yaml` of this package sets up Envoy for it. What this cannot read passes unchanged.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from envoy.service.ext_proc.v3 import external_processor_pb2_grpc as services

from suffice import Governor
from suffice_loop.exchange import ProxyExchange

ANSWERS = {
    "request_headers": pb.HeadersResponse,
    "request_body": pb.BodyResponse,
    "request_trailers": pb.TrailersResponse,
    "response_headers": pb.HeadersResponse,
    "response_body": pb.BodyResponse,
    "response_trailers": pb.TrailersResponse,
}


class SufficeProcessor(services.ExternalProcessorServicer):
    def __init__(self, governor: Governor) -> None:
        self._governor = governor

    async def Process(self, requests: AsyncIterator[Any], context: Any) -> None:  # noqa: N802 - the protocol's own name
        """Answer each message of Envoy's stream, up to the end of the body.

        It writes and yields nothing: a generator would be left to the garbage collector when Envoy ends the stream.
        """
        exchange, is_ended = ProxyExchange(self._governor), False
        try:
            async for request in requests:
                kind = request.WhichOneof("request")
                message = getattr(request, kind)
                answer = ANSWERS[kind]()
                if kind == "request_body":
                    exchange.read_request(message.body)
                elif kind == "response_headers":
                    listed = message.headers.headers
                    await exchange.begin({one.key: one.value or one.raw_value.decode("latin-1") for one in listed})
                elif kind == "response_body":
                    body, is_ended = await exchange.edit(message.body, is_last=message.end_of_stream)
                    streamed = pb.StreamedBodyResponse(body=body, end_of_stream=is_ended)
                    answer.response.body_mutation.streamed_response.CopyFrom(streamed)
                await context.write(pb.ProcessingResponse(**{kind: answer}))
                if is_ended:
                    return
        finally:
            await exchange.end(aborted=not is_ended)


async def serve(governor: Governor, address: str) -> tuple[grpc.aio.Server, int]:
    """Start the service and return it with its port."""
    server = grpc.aio.server()
    services.add_ExternalProcessorServicer_to_server(SufficeProcessor(governor), server)
    port = server.add_insecure_port(address)
    await server.start()
    return server, port


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m suffice_loop.envoy")
    parser.add_argument("--gateway", required=True, help="URL of suffice serve")
    parser.add_argument("--route", required=True, help='a route of kind "rounds"')
    parser.add_argument("--listen", default="127.0.0.1:18080", help="address for Envoy (default: %(default)s)")
    options = parser.parse_args()
    with Governor.connect(options.gateway, route=options.route) as governor:
        server, _ = await serve(governor, options.listen)
        await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
