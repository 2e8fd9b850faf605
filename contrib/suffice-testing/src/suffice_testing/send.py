"""Sends a fake's reply in llama.cpp's or OpenAI's shape: streamed, in one body, as recorded bytes, or cut off."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from math import exp, log
from typing import Any, TypeAlias

from suffice.upstream.wire import DONE, encode_frame, encode_json, error_body, error_frame
from suffice_testing.dialects import ServerBehaviour
from suffice_testing.generate import Completion, Token, count_in
from suffice_testing.http1 import Response
from suffice_testing.reply import Death, FakeCall, FakeRequest, Fault, Reply, Script

Tokens: TypeAlias = AsyncGenerator[tuple[Completion, Token], None]

_JSON = {"content-type": "application/json"}
_LOOKS_S = 0.003  # between two checks whether a silence is over
_SSE = {"content-type": "text/event-stream", "cache-control": "no-cache"}
_BAD_FRAME = b"data: {oops\n\n"


class SimulatedFailure(Exception):
    def __init__(self, how: Death) -> None:
        super().__init__(how)
        self.how = how


async def generate(seen: FakeCall, reply: Reply, fault: Fault, runs: list[Completion]) -> Tokens:
    """Generate all choices token by token, counting each before it is sent. Raise SimulatedFailure for a fault."""
    await asyncio.sleep(reply.first_delay_s)
    open_runs = list(runs)
    while open_runs:
        for run in list(open_runs):
            if seen.n_tokens_sent == fault.die_after:
                raise SimulatedFailure(fault.die_how)
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
    await out.start(200, {**_SSE, **dict(shape.headers)})
    for run in runs:
        for chunk in shape.opening(run):
            await out.send(shape.encode(chunk))
    n_tokens = 0
    try:
        async for run, token in tokens:
            if n_tokens == fault.bad_frame_after:
                await out.send(_BAD_FRAME)
            n_tokens += 1
            for made in shape.token(run, token):
                await out.send(shape.encode(made))
    except SimulatedFailure as death:
        if death.how == "error_frame":
            await out.finish(shape.error_frame("fake upstream: it broke off as configured"))
        raise
    if n_tokens == fault.bad_frame_after:
        await out.send(_BAD_FRAME)
    frames = [shape.encode(chunk) for chunk in shape.closing(runs, finish=fault.finish)]
    frames += [shape.end_mark] if fault.done and shape.end_mark else []
    for frame in frames[:-1]:
        await out.send(frame)
    await out.finish(frames[-1] if frames else b"")


async def send_json(tokens: Tokens, runs: list[Completion], shape: ReplyShape, fault: Fault, out: Response) -> None:
    try:
        async for _ in tokens:
            pass
    except SimulatedFailure as death:
        if death.how == "error_frame":
            body = error_body("fake upstream: it broke off as configured", type="server_error", code="died")
            await out.whole(500, _JSON, body)
        raise
    if not fault.finish:
        for run in runs:
            run.finish_reason = None
    await out.whole(200, _JSON, encode_json(shape.body(runs)))


async def play(script: Script, out: Response) -> None:
    headers = {"content-type": script.content_type}
    if not script.keep_alive:
        headers["connection"] = "close"
    await out.start(script.status, headers)
    for piece in script.pieces[:-1] if script.end == "whole" else script.pieces:
        await asyncio.sleep(script.delay_s)
        await out.send(piece)
    if script.end == "torn":
        raise SimulatedFailure("fin")
    await asyncio.sleep(script.hang_s)
    await out.finish(script.pieces[-1] if script.pieces and script.end == "whole" else b"")
    if not script.keep_alive:
        raise SimulatedFailure("fin")


CREATED = 1_700_000_000


class ReplyShape:
    end_mark = DONE
    encode = staticmethod(encode_frame)
    error_frame = staticmethod(error_frame)

    @staticmethod
    def error_body(message: str, code: str) -> bytes:
        return error_body(message, code=code)

    def __init__(self, seen: FakeCall, reply: Reply, server: ServerBehaviour, completion_id: str) -> None:
        self._seen, self._reply, self._request = seen, reply, seen.request
        self.headers = reply.headers
        self._llama = server.dialect == "llama.cpp"
        self._id = completion_id
        prefix, echoes = seen.request.prefix, server.prefill_echo or server.dialect == "mistral"
        self._echo = prefix.text if echoes and prefix and not seen.request.is_raw else ""
        self._n_top = _n_top_logprobs(seen.request)
        options = seen.request.body.get("stream_options")
        requested = isinstance(options, Mapping) and options.get("include_usage") is True
        counts = server.dialect in ("vllm", "sglang") and isinstance(options, Mapping)
        self._counts_chunks = counts and options.get("continuous_usage_stats") is True  # type: ignore[union-attr]
        self._usage_at_end = reply.usage in ("always", "zero_first") or (requested and reply.usage == "last")

    # ---- streams

    def opening(self, run: Completion) -> list[dict[str, Any]]:
        if self._request.is_raw:
            return []
        role: dict[str, Any] = {"role": "assistant", "content": None}
        if not self._llama:
            role |= {"content": None if run.calls else "", "refusal": None}
        chunks = [self._chunk(run, role)]
        if self._reply.usage == "zero_first":
            chunks[0]["usage"] = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        return [*chunks, self._chunk(run, {"content": self._echo})] if self._echo else chunks

    def token(self, run: Completion, token: Token) -> list[dict[str, Any]]:
        if not token.text and token.channel != "tool":
            return []
        return [self._chunk(run, self._delta(run, token), token=token)]

    def closing(self, runs: Sequence[Completion], *, finish: bool) -> list[dict[str, Any]]:
        chunks = [self._chunk(run, {}, finish_reason=run.finish_reason) for run in runs] if finish else []
        if chunks and self._reply.usage == "with_finish":
            chunks[-1]["usage"] = self.usage()
        if self._usage_at_end:
            chunks.append({**self._top(chunk=True), "choices": [], "usage": self.usage()})
        if chunks and self._llama:
            chunks[-1]["timings"] = self._timings()
        return chunks

    def _chunk(
        self, run: Completion, delta: dict[str, Any], *, token: Token | None = None, finish_reason: str | None = None
    ) -> dict[str, Any]:
        choice = self._choice(run, finish_reason, [token] if token else [])
        if not self._request.is_raw:
            choice["delta"] = delta
        chunk = {**self._top(chunk=True), "choices": [choice]}
        if self._reply.usage == "every" or self._counts_chunks:
            chunk["usage"] = self.usage()
        elif not self._llama and self._usage_at_end:
            chunk["usage"] = None
        return chunk

    def _choice(self, run: Completion, finish_reason: str | None, tokens: Sequence[Token]) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": run.index, "finish_reason": finish_reason}
        if self._n_top is not None and tokens:
            choice["logprobs"] = self._logprobs(tokens)
        elif not self._llama or self._request.is_raw:
            choice["logprobs"] = None
        if self._request.is_raw:
            choice["text"] = "".join(token.text for token in tokens)
        return choice

    def _delta(self, run: Completion, token: Token) -> dict[str, Any]:
        if token.channel == "reasoning" and not self._reply.reasoning_field.startswith("inline"):
            return {self._reply.reasoning_field: token.text}
        if token.channel != "tool":
            return {"content": token.text}
        call = run.calls[token.call]
        if not token.opens_call:
            return {"tool_calls": [{"index": token.call, "function": {"arguments": token.text}}]}
        function = {"name": call.name, "arguments": token.text}
        opened = {"index": token.call, "id": call.id, "type": "function", "function": function}
        return {"tool_calls": [opened]}

    # ---- one body

    def body(self, runs: Sequence[Completion]) -> dict[str, Any]:
        choices = [self._choice(run, run.finish_reason, run.shown) for run in runs]
        if not self._request.is_raw:
            for run, choice in zip(runs, choices, strict=True):
                choice["message"] = self._message(run)
        body = {**self._top(chunk=False), "choices": choices}
        if self._reply.usage != "none":
            body["usage"] = self.usage()
        if self._llama:
            body["timings"] = self._timings()
        return body

    def _message(self, run: Completion) -> dict[str, Any]:
        field = self._reply.reasoning_field
        inline = field.startswith("inline")
        thought = "" if inline else "".join(t.text for t in run.shown if t.channel == "reasoning")
        spoken = ("reasoning", "tag", "answer") if inline else ("tag", "answer")
        text = self._echo + "".join(t.text for t in run.shown if t.channel in spoken)
        n_calls = sorted({t.call for t in run.shown if t.channel == "tool"})
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if not self._llama:
            message |= {"content": None if n_calls and not text else text, "refusal": None}
        if thought:
            message[field] = thought
        if n_calls:
            message["tool_calls"] = [self._call(run, n) for n in n_calls]
        return message

    def _call(self, run: Completion, n: int) -> dict[str, Any]:
        arguments = "".join(t.text for t in run.shown if t.call == n)
        call = run.calls[n]
        return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}

    # ---- what both have

    def usage(self) -> dict[str, Any]:
        seen = self._seen
        usage: dict[str, Any] = {
            **(seen.usage or {}),
            "prompt_tokens_details": {"cached_tokens": seen.cached_tokens},
        }
        if self._reply.count_reasoning and not self._request.is_raw:
            usage["completion_tokens_details"] = {"reasoning_tokens": seen.n_reasoning_tokens}
        return usage

    def _timings(self) -> dict[str, int]:
        seen = self._seen
        new = seen.prompt_tokens - seen.cached_tokens
        return {"prompt_n": new, "cache_n": seen.cached_tokens, "predicted_n": seen.n_tokens_sent}

    def _top(self, *, chunk: bool) -> dict[str, Any]:
        kind = "text_completion" if self._request.is_raw else "chat.completion"
        if chunk and not self._request.is_raw:
            kind += ".chunk"
        return {
            "id": self._id,
            "object": kind,
            "created": CREATED,
            "model": self._request.model,
            "system_fingerprint": "fake-1",
            **self._reply.extra,
        }

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any]:
        n_top = self._n_top or 0
        if self._request.is_raw and not self._llama:
            return {
                "tokens": [t.text for t in tokens],
                "token_logprobs": [t.logprob for t in tokens],
                "top_logprobs": [dict(_rivals(t, n_top)) for t in tokens],
            }
        return {
            "content": [
                {
                    "token": t.text,
                    "logprob": t.logprob,
                    "bytes": list(t.text.encode()),
                    "top_logprobs": [
                        {"token": text, "logprob": value, "bytes": list(text.encode())}
                        for text, value in _rivals(t, n_top)
                    ],
                }
                for t in tokens
            ]
        }


def _rivals(token: Token, n_top: int) -> list[tuple[str, float]]:
    rest = max(1.0 - exp(token.logprob), 1e-9) / max(1, n_top - 1)
    return [(token.text, token.logprob), *((f"~{n}", log(rest)) for n in range(1, n_top))][:n_top]


def _n_top_logprobs(request: FakeRequest) -> int | None:
    requested = request.body.get("logprobs")
    if request.is_raw and not isinstance(requested, bool):
        return count_in(request, "logprobs") or None
    return (count_in(request, "top_logprobs") or 0) if requested is True else None
