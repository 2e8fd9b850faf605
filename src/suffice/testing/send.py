"""How a reply leaves the fake upstream: as a stream, as one body, as recorded bytes, or cut off.

It knows faults and when they strike. It refuses to know routes and what was asked.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from typing import TypeAlias

from suffice.testing.generate import Completion, Token
from suffice.testing.http1 import Response
from suffice.testing.reply import Death, FakeCall, Fault, Reply
from suffice.testing.shape import ReplyShape
from suffice.testing.streams import Script
from suffice.upstream.wire import DONE, encode_frame, encode_json, error_body, error_frame

Tokens: TypeAlias = AsyncGenerator[tuple[Completion, Token], None]

_JSON = {"content-type": "application/json"}
_LOOKS_S = 0.003  # between two looks at whether a silence is over
_SSE = {"content-type": "text/event-stream", "cache-control": "no-cache"}
_BAD_FRAME = b"data: {oops\n\n"


class Dies(Exception):
    """The fault says: break off here."""

    def __init__(self, how: Death) -> None:
        super().__init__(how)
        self.how = how


async def generate(seen: FakeCall, reply: Reply, fault: Fault, runs: list[Completion]) -> Tokens:
    """Generate all choices in turn, token by token; count each before anybody can see it.

    Raises Dies where the fault says so.
    """
    await asyncio.sleep(reply.first_delay_s)
    open_runs = list(runs)
    while open_runs:
        for run in list(open_runs):
            if seen.n_tokens_sent == fault.die_after:
                raise Dies(fault.die_how)
            if seen.n_tokens_sent == fault.stall_after:
                await _be_silent(fault, run)
            await asyncio.sleep(reply.delay_s)
            token = run.next()
            if token is None:
                open_runs.remove(run)
                continue
            seen.n_tokens_sent += 1
            seen.n_reasoning_tokens += token.channel in ("reasoning", "tag")
            seen.thought_ended_by = run.cut_by or seen.thought_ended_by
            yield run, token


async def _be_silent(fault: Fault, run: Completion) -> None:
    if not fault.stall_until_cut:
        await asyncio.sleep(fault.stall_s)
        return
    for _ in range(math.ceil(fault.stall_s / _LOOKS_S)):
        if run.cut_by is not None:
            return
        await asyncio.sleep(_LOOKS_S)


async def stream(tokens: Tokens, runs: list[Completion], shape: ReplyShape, fault: Fault, out: Response) -> None:
    """Send a reply as an event stream."""
    await out.start(200, {**_SSE, **dict(shape.headers)})
    for run in runs:
        for chunk in shape.opening(run):
            await out.send(encode_frame(chunk))
    n_tokens = 0
    try:
        async for run, token in tokens:
            if n_tokens == fault.bad_frame_after:
                await out.send(_BAD_FRAME)
            n_tokens += 1
            made = shape.token(run, token)
            if made is not None:
                await out.send(encode_frame(made))
    except Dies as death:
        if death.how == "error_frame":
            await out.finish(error_frame("fake upstream: it broke off as it was told"))
        raise
    if n_tokens == fault.bad_frame_after:
        await out.send(_BAD_FRAME)
    frames = [encode_frame(chunk) for chunk in shape.closing(runs, finish=fault.finish)]
    frames += [DONE] if fault.done else []
    for frame in frames[:-1]:
        await out.send(frame)
    await out.finish(frames[-1] if frames else b"")


async def send_json(tokens: Tokens, runs: list[Completion], shape: ReplyShape, fault: Fault, out: Response) -> None:
    """Send a reply as one JSON body, when all of it has been generated."""
    try:
        async for _ in tokens:
            pass
    except Dies as death:
        if death.how == "error_frame":
            body = error_body("fake upstream: it broke off as it was told", type="server_error", code="died")
            await out.whole(500, _JSON, body)
        raise
    if not fault.finish:
        for run in runs:
            run.finish_reason = None
    await out.whole(200, _JSON, encode_json(shape.body(runs)))


async def play(script: Script, out: Response) -> None:
    """Send a script's bytes as they stand."""
    headers = {"content-type": script.content_type}
    if not script.keep_alive:
        headers["connection"] = "close"
    await out.start(script.status, headers)
    for piece in script.pieces[:-1] if script.end == "whole" else script.pieces:
        await asyncio.sleep(script.delay_s)
        await out.send(piece)
    if script.end == "torn":
        raise Dies("fin")
    await asyncio.sleep(script.hang_s)
    await out.finish(script.pieces[-1] if script.pieces and script.end == "whole" else b"")
    if not script.keep_alive:
        raise Dies("fin")
