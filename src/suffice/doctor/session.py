"""Calls a model server during an examination, and records what the experiments observe."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from msgspec.structs import replace

from suffice.errors import UpstreamError
from suffice.settings import Driver, Upstream
from suffice.types import Verdict
from suffice.upstream import wire
from suffice.upstream.assemble import first_message
from suffice.upstream.client import Call, UpstreamClient, governed_headers
from suffice.upstream.drivers import DRIVERS

CHAT = "/v1/chat/completions"
ENGINES: Final[Mapping[str, Driver]] = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llama.cpp"}  # by `owned_by`
_ERROR_CHARS = 120  # of a server's own error message


@dataclass(frozen=True, slots=True)
class Result:
    verdict: Verdict
    evidence: str  # one sentence with the numbers that were measured


class Refusal(Exception):
    """A server did not answer 200, which settles the experiment with `result`."""

    def __init__(self, result: Result) -> None:
        super().__init__(result.evidence)
        self.result = result


@dataclass(slots=True, kw_only=True)
class ServerReply:
    status: int = 0
    body: Mapping[str, Any] = field(default_factory=dict)  # {} if it is not a JSON object, or a stream
    took_s: float = 0.0

    @property
    def refused(self) -> str:
        """The status, with the server's own message."""
        message = wire.within(self.body, "error", "message") or self.body.get("error", self.body.get("message"))
        words = f" ({message[:_ERROR_CHARS].strip()})" if isinstance(message, str) and message else ""
        return f"{self.status}{words}"


class WholeResponse(ServerReply):
    @property
    def choices(self) -> list[Mapping[str, Any]]:
        return [choice for choice in wire.items_in(self.body, "choices") if isinstance(choice, dict)]

    @property
    def text(self) -> str:
        parts = map(first_message(self.body).get, (*wire.REASONING_FIELDS, "content"))
        return "".join(part for part in parts if isinstance(part, str))


@dataclass(slots=True, kw_only=True)
class StreamTranscript(ServerReply):
    completion_id: str = ""
    content: str = ""
    thought: str = ""
    thought_field: str = ""  # "" if no field carried a thought
    n_pieces: int = 0  # chunks with text of any kind: about as many tokens
    n_thought_pieces: int = 0
    n_logprobs: int = 0
    n_rivals: int = 0  # listed beside the first token
    n_tool_pieces: int = 0
    usage: wire.WireUsage | None = None
    null_usage: bool = False  # whether other chunks carried `usage: null`
    timings: Mapping[str, Any] = field(default_factory=dict)
    finish_reason: str | None = None
    start_s: float = field(default_factory=time.monotonic)  # of the request
    first_s: float | None = None  # from the request to the first piece

    @property
    def n_cached(self) -> int | None:
        if isinstance(self.timings.get("cache_n"), int):
            return int(self.timings["cache_n"])
        details = None if self.usage is None else self.usage.prompt_tokens_details
        return None if details is None else details.cached_tokens

    @property
    def n_prompt(self) -> int | None:
        if self.usage is not None and self.usage.prompt_tokens is not None:
            return self.usage.prompt_tokens
        new, cached = self.timings.get("prompt_n"), self.timings.get("cache_n")
        return new + cached if isinstance(new, int) and isinstance(cached, int) else None


class ServerSession:
    """The calls that experiments make, and their observations so far."""

    def __init__(self, client: UpstreamClient, *, model: str, timeout_s: float) -> None:
        self.client = client
        self.model = model
        self.timeout_s = timeout_s
        self.cap_field = "max_tokens"  # the name that this server accepts
        # Results that later experiments build on. None: not observed, or not tested yet.
        self.n_slots: int | None = None
        self.context_tokens: int | None = None
        self.thought: StreamTranscript | None = None  # the run without a budget, for comparison
        self.opens_thought = False  # whether its chat template writes the opening tag
        self.headers: dict[str, str] = {}  # of all responses, lower case; the latest value
        self.is_gateway = False  # of Suffice, by its answers
        self.n_calls = 0

    @property
    def settings(self) -> Upstream:
        return self.client.settings

    @property
    def continuing(self) -> Upstream:
        """The settings to continue a message by; a server whose driver cannot is tested with the most common way."""
        driver = self.settings.driver if DRIVERS[self.settings.driver].prefill is not None else "llama.cpp"
        return replace(self.settings, driver=driver, think_opened=self.opens_thought or self.settings.think_opened)

    def body(self, ask: str, cap: int, **more: Any) -> dict[str, Any]:
        """Return a chat request with at most `cap` tokens of answer, at temperature 0 unless `more` overrides it."""
        messages = [{"role": "user", "content": ask}]
        return {"model": self.model, "messages": messages, self.cap_field: cap, "temperature": 0, **more}

    async def whole(self, body: Mapping[str, Any], path: str = CHAT, *, refusal: str | None = None) -> WholeResponse:
        """Send a request and read the whole response. Raise UpstreamError.

        refusal  beginning of the message of Refusal, raised unless the status is 200; None: return any response
        """
        start_s = time.monotonic()
        async with self.open(path, body) as call:
            data = await call.read_all()
        answer = WholeResponse(status=call.status, body=_object(data), took_s=time.monotonic() - start_s)
        _check(answer, refusal)
        return answer

    async def get(self, path: str) -> tuple[int, Any]:
        """Read a page; return (status, its JSON, or its text if it is not JSON). Raise UpstreamError."""
        self.n_calls += 1
        status, data, _ = await self.client.fetch(path, method="GET", timeout_s=self.timeout_s)
        try:
            return status, wire.decode_json(data)
        except (UpstreamError, ValueError):
            return status, data.decode("utf-8", "replace")

    async def models(self, key: str = "id") -> list[str]:
        """Return the names of the models, or what else is listed of each, such as `owned_by`. Raise UpstreamError."""
        status, body = await self.get("/v1/models")
        names = [wire.within(one, key) for one in (wire.items_in(body, "data") if status == 200 else ())]
        return [name for name in names if isinstance(name, str)]

    async def engine(self) -> Driver | None:
        """Return the driver of the engine as which the server lists its models; None: it says nothing known."""
        with suppress(UpstreamError):
            return next((ENGINES[name] for name in await self.models("owned_by") if name in ENGINES), None)
        return None

    @asynccontextmanager
    async def open(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[Call]:
        """Send a request; leaving the block early hangs up. Raise UpstreamError."""
        self.n_calls += 1
        async with self.client.open(path, wire.encode_json(body), governed_headers([])) as call:
            self.headers |= {name.lower(): value for name, value in call.headers}
            self.is_gateway = self.is_gateway or call.is_gateway
            yield call

    @asynccontextmanager
    async def begun(
        self, body: Mapping[str, Any], enough: Callable[[StreamTranscript], bool], path: str = CHAT
    ) -> AsyncIterator[StreamTranscript]:
        """Stream a request until `enough` is true; leaving the block hangs up. Raise UpstreamError."""
        seen = StreamTranscript()
        async with self.open(path, {**body, "stream": True}) as call:
            async for _ in self.pieces(call, seen):
                if enough(seen):
                    break
            yield seen

    async def stream(
        self,
        body: Mapping[str, Any],
        path: str = CHAT,
        *,
        enough: Callable[[StreamTranscript], bool] = lambda _: False,
        refusal: str | None = None,
    ) -> StreamTranscript:
        """Stream a request and read it until `enough` is true; `refusal` as in `whole`. Raise UpstreamError."""
        async with self.begun(body, enough, path) as seen:
            _check(seen, refusal)
        return seen

    async def pieces(self, call: Call, seen: StreamTranscript) -> AsyncIterator[None]:
        """Read a stream into `seen`, yielding after each piece of text. Raise UpstreamError."""
        seen.status = call.status
        if call.status != 200:
            seen.body = _object(await call.read_all())
            return
        splitter, done = wire.SseSplitter(), False
        while not done and (data := await call.read()):
            for frame in splitter.feed(data):
                done = done or frame.data == wire.DONE_DATA
                if frame.data is None or done:
                    continue
                before = seen.n_pieces
                _take(seen, frame.data)
                if seen.n_pieces > before:
                    seen.first_s = seen.first_s or time.monotonic() - seen.start_s
                    yield
        seen.took_s = time.monotonic() - seen.start_s
        await call.settle()


def _check(answer: ServerReply, refusal: str | None) -> None:
    if refusal is not None and answer.status != 200:
        raise Refusal(Result("no", f"{refusal} {answer.refused}"))


def _object(data: bytes) -> Mapping[str, Any]:
    try:
        result = wire.decode_json(data)
    except (UpstreamError, ValueError):
        return {}
    return result if isinstance(result, Mapping) else {}


def _take(seen: StreamTranscript, data: bytes) -> None:
    chunk, raw = wire.decode_chunk(data), _object(data)
    seen.completion_id = chunk.id or seen.completion_id
    seen.usage = chunk.usage or seen.usage
    seen.null_usage = seen.null_usage or ("usage" in raw and raw["usage"] is None)
    if isinstance(raw.get("timings"), Mapping):
        seen.timings = raw["timings"]
    for choice in chunk.choices or ():
        if choice.index != 0:
            continue
        seen.finish_reason = choice.finish_reason or seen.finish_reason
        logprobs = wire.logprobs_of(choice)
        if logprobs and not seen.n_logprobs:
            seen.n_rivals = len(logprobs[0].top)
        seen.n_logprobs += len(logprobs)
        thought, name = wire.reasoning_of(choice.delta) if choice.delta else ("", "")
        text = choice.text or (choice.delta.content if choice.delta else None) or ""
        calls_tool = bool(choice.delta and choice.delta.calls_tool)
        seen.thought, seen.content = seen.thought + thought, seen.content + text
        seen.thought_field = name or seen.thought_field
        seen.n_thought_pieces += bool(thought)
        seen.n_tool_pieces += calls_tool
        seen.n_pieces += bool(thought or text or calls_tool)
