"""Pass-through: bytes in, the same bytes out, and what can be learned from their tail.

Used for everything that is not governed. Nothing is parsed while it streams; when the answer is
complete, the last bytes are searched for the usage, so that each request still has its record.
"""

from __future__ import annotations

from typing import Any

import msgspec

from suffice.episode.ledger import CallAccount, Ledger
from suffice.episode.reading import note_usage
from suffice.errors import UpstreamProtocol
from suffice.gateway.exchange import Exchange
from suffice.upstream.client import Headers, UpstreamClient
from suffice.upstream.wire import SseSplitter, decode_chunk

TAIL_BYTES = 64 * 1024


async def pass_through(
    exchange: Exchange, client: UpstreamClient, path: str, body: bytes, headers: Headers, ledger: Ledger
) -> None:
    """Relay one call byte for byte. Raises UpstreamError when there is no answer to relay."""
    account = ledger.open_call("main")
    account.cancelled = True  # until its end has been seen
    async with client.open(path, body, headers) as call:
        if 300 <= call.status < 400:
            raise UpstreamProtocol(f"the upstream answered {call.status}; redirects are not followed")
        events = call.content_type == "text/event-stream"
        await exchange.start(call.status, call.headers, events=events)
        tail = bytearray()
        while data := await call.read():
            await exchange.body(data)
            tail += data
            if len(tail) > 2 * TAIL_BYTES:
                del tail[:-TAIL_BYTES]
        await exchange.body(b"", more=False)
        account.cancelled = False
        if call.status >= 400:
            ledger.end_reason = "upstream_error"
        note_tail(account, ledger, bytes(tail), events=events)


def note_tail(account: CallAccount, ledger: Ledger, tail: bytes, *, events: bool) -> None:
    """Read usage and id from the end of a relayed answer; silence where there are none."""
    if events:
        splitter = SseSplitter()
        frames = splitter.feed(tail) + splitter.close()
        parts = [f.data for f in frames[-4:] if f.data is not None and f.data != b"[DONE]"]
    else:
        parts = [tail]
    for part in parts:
        try:
            chunk = decode_chunk(part)
        except UpstreamProtocol:
            continue  # compressed, cut or foreign: nothing to learn
        note_usage(account, chunk.usage)
        ledger.response_id = chunk.id or ledger.response_id
        for choice in chunk.choices or ():
            ledger.truncated = ledger.truncated or choice.finish_reason == "length"


def forwarded(intake_raw: bytes, body: dict[str, Any], *, changed: bool) -> bytes:
    """The client's own bytes, or the body again when a field had to be taken out."""
    return msgspec.json.encode(body) if changed else intake_raw
