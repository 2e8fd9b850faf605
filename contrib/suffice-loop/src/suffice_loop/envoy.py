"""Envoy's external processor: it reads a streamed answer and ends it once it suffices, see `suffice_loop.stream`.

    python -m suffice_loop.envoy --gateway http://127.0.0.1:8400 --route stream --listen 127.0.0.1:18080

Envoy's filter needs `request_body_mode: BUFFERED`, `response_body_mode: FULL_DUPLEX_STREAMED`, and `SEND` as its
`response_header_mode` and `response_trailer_mode`. What this cannot read passes unchanged.
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
    "response_trailers": pb.TrailersResponse,
}


class SufficeProcessor(services.ExternalProcessorServicer):
    def __init__(self, governor: Governor) -> None:
        self._governor = governor

    async def Process(  # noqa: N802 - the protocol's own name
        self, requests: AsyncIterator[Any], context: Any
    ) -> AsyncIterator[Any]:
        """Answer each message of Envoy's stream; after a stop, nothing more."""
        exchange, is_ended = ProxyExchange(self._governor), False
        try:
            async for request in requests:
                kind = request.WhichOneof("request")
                message = getattr(request, kind)
                if kind == "request_body":
                    exchange.read_request(message.body)
                elif kind == "response_headers":
                    listed = message.headers.headers
                    await exchange.begin({one.key: one.value or one.raw_value.decode("latin-1") for one in listed})
                elif kind == "response_body" and not is_ended:
                    body, is_ended = await exchange.edit(message.body, is_last=message.end_of_stream)
                    streamed = pb.StreamedBodyResponse(body=body, end_of_stream=is_ended)
                    changed = pb.CommonResponse(body_mutation=pb.BodyMutation(streamed_response=streamed))
                    yield pb.ProcessingResponse(response_body=pb.BodyResponse(response=changed))
                    continue
                if not is_ended:
                    yield pb.ProcessingResponse(**{kind: ANSWERS[kind]()})
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
