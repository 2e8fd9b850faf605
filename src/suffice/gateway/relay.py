"""Pass-through: bytes in, the same bytes out, and what can be learned from their tail.

Used for everything that is not governed. Nothing is parsed while it streams; events leave whole, so
that an error can follow a stream that broke off. When the answer is complete, its last bytes are
searched for the usage, so that each request still has its record.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from suffice.episode.chunk_parsing import note_usage
from suffice.episode.ledger import CallAccount, Ledger
from suffice.errors import UpstreamProtocol
from suffice.gateway.exchange import Exchange
from suffice.types import Purpose
from suffice.upstream.client import Call, Headers, UpstreamClient
from suffice.upstream.wire import Chunk, decode_chunk, encode_json, is_given, last_events

TAIL_BYTES = 64 * 1024
HELD_BYTES = 64 * 1024  # a longer event is passed on in parts
_EVENT_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreign:
    """How a call of another API is made and what is read of its answer."""

    note: Callable[[CallAccount, Ledger, bytes, bool], None]  # reads the answer's last bytes
    method: str = "POST"
    key_header: str = "authorization"  # where the upstream wants its key
    mark: bytes = b'"delta"'  # stands once in each event that carries text


async def pass_through(
    exchange: Exchange,
    client: UpstreamClient,
    path: str,
    body: bytes | None,
    headers: Headers,
    ledger: Ledger,
    *,
    purpose: Purpose = "main",
    foreign: Foreign | None = None,
) -> None:
    """Relay one call byte for byte. Raises UpstreamError when there is no answer to relay.

    foreign  how another API than chat completions is called and read
    """
    account = ledger.open_call(purpose)
    how, extra = foreign or _CHAT, purpose == "rerun"
    async with client.open(path, body, headers, method=how.method, key_header=how.key_header, extra=extra) as call:
        if not (200 <= call.status < 300 or 400 <= call.status < 600):
            raise UpstreamProtocol(f"the upstream answered {call.status}; redirects are not followed")
        account.began = True
        # Compressed events are opaque: neither can they be kept whole nor may an error be written among them.
        events = call.content_type == "text/event-stream" and not call.is_encoded
        await exchange.start(call.status, call.headers, events=events)
        tail = await (_relay_events if events else _relay_bytes)(exchange, call, account, how.mark)
        if not exchange.complete:
            await exchange.body(b"", more=False)
        account.cancelled = False
        if call.status >= 400:
            ledger.end_reason = "upstream_error"
        how.note(account, ledger, tail, events)
        await call.settle()


async def _relay_bytes(exchange: Exchange, call: Call, _: CallAccount, __: bytes) -> bytes:
    tail = bytearray()
    while data := await call.read():
        _keep_tail(tail, data)
        await exchange.body(data, more=not call.at_end)  # a short answer is one write
        if exchange.complete:
            break
    return bytes(tail)


async def _relay_events(exchange: Exchange, call: Call, account: CallAccount, mark: bytes) -> bytes:
    tail, held, n_deltas = bytearray(), bytearray(), 0

    def at_once(data: bytes) -> bool:
        nonlocal n_deltas
        if held or not _is_whole(data) or not exchange.body_now(data):
            return False
        _keep_tail(tail, data)
        n_deltas += data.count(mark)
        account.received_tokens = max(0, n_deltas - 1)
        return True

    while data := await call.read(at_once):
        _keep_tail(tail, data)
        if whole := take_whole_events(held, data):
            # One event a token, less the one that only opens the message, is a floor; the upstream's own
            # count replaces it at the end.
            n_deltas += whole.count(mark)
            account.received_tokens = max(0, n_deltas - 1)
            await exchange.body(whole)
    if held:
        await exchange.body(bytes(held))
    return bytes(tail)


def take_whole_events(held: bytearray, data: bytes) -> bytes:
    """Add `data` to `held` and take out all that ends with an event's blank line; the rest stays held.

    What is held is never longer than HELD_BYTES: an event beyond that goes out in parts.
    """
    if not held and _is_whole(data):
        return data
    held += data
    ends = [at + len(mark) for mark in _EVENT_ENDS if (at := held.rfind(mark)) >= 0]
    cut = len(held) if len(held) > HELD_BYTES else max(ends, default=0)
    whole = bytes(held[:cut])
    del held[:cut]
    return whole


def _is_whole(data: bytes) -> bool:
    """Does a read that begins with an event hold whole events only, as nearly every one does?"""
    return data.endswith(b"\n\n") and len(data) <= HELD_BYTES


def _keep_tail(tail: bytearray, data: bytes) -> None:
    tail += data
    if len(tail) > 2 * TAIL_BYTES:
        del tail[:-TAIL_BYTES]


def note_tail(account: CallAccount, ledger: Ledger, tail: bytes, events: bool) -> None:
    """Read usage, id and failure from the end of a relayed answer; silence where there are none."""
    for chunk in _last_chunks(tail) if events else [_whole_or_usage(tail)]:
        note_usage(account, chunk.usage)
        ledger.response_id = chunk.id or ledger.response_id
        if events and is_given(chunk.error):
            ledger.end_reason = "upstream_error"
        for choice in chunk.choices or ():
            ledger.truncated = ledger.truncated or choice.finish_reason == "length"


_CHAT = Foreign(note=note_tail)


def _last_chunks(tail: bytes) -> list[Chunk]:
    chunks = []
    for frame in last_events(tail, 4):
        try:
            chunks.append(decode_chunk(frame.data or b""))
        except UpstreamProtocol:
            continue  # [DONE], cut or foreign: nothing to learn
    return chunks


def _whole_or_usage(tail: bytes) -> Chunk:
    """A whole body, or of a body too long to be kept its usage alone."""
    try:
        return decode_chunk(tail)
    except UpstreamProtocol:
        pass
    text = tail.decode("utf-8", "replace")
    at = text.rfind('"usage":')
    try:
        usage, _ = json.JSONDecoder().raw_decode(text[at + 8 :].lstrip()) if at >= 0 else (None, 0)
        return decode_chunk(encode_json({"usage": usage}))
    except (ValueError, RecursionError, UpstreamProtocol):
        return Chunk()


def forwarded(intake_raw: bytes, body: dict[str, Any], *, changed: bool) -> bytes:
    """The client's own bytes, or the body again when a field had to be taken out."""
    return encode_json(body) if changed else intake_raw
