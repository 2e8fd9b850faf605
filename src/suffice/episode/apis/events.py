"""What differs between the APIs in a governed stream: how their events are read as chat chunks, and ours are written.

Everything between works on chat chunks alone. One object follows one stream as its client sees it, so that what it
writes goes on where the engine's own events ended: blocks, items and sequence numbers included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import msgspec

from suffice.episode.chain_reader import StreamState
from suffice.episode.ledger import usage_json
from suffice.errors import UpstreamProtocol
from suffice.settings import Driver, FinishMethod
from suffice.types import Usage
from suffice.upstream.assemble import AnswerFacts
from suffice.upstream.drivers import CHAT_PATH, NO_FIELDS, ReasoningFields
from suffice.upstream.pattern import TextPattern
from suffice.upstream.wire import (
    DONE,
    DONE_DATA,
    Choice,
    Chunk,
    Delta,
    Frame,
    TokenDetails,
    WireUsage,
    decode_chunk,
    decode_json,
    encode_frame,
    encode_json,
    within,
)

DONE_FRAME = Frame(raw=DONE, data=DONE_DATA)


def data_frame(obj: Any) -> Frame:
    raw = encode_frame(obj)
    return Frame(raw=raw, data=raw[6:-2])


class ChatEvents:
    """The stream of chat completions, which is the internal form."""

    is_native = False  # whether the client reads another API's events
    is_over = False  # the last event read is the last one of the stream, without an end mark of its own
    is_ours = False  # the end that the client gets was written here
    rewrites = False  # a rerun: the client has seen another stream's beginning

    def read(self, frame: Frame) -> Chunk | None:
        """Return an event as a chunk; None: it is the stream's end mark. Raise UpstreamProtocol if it is not JSON."""
        return None if frame.data == DONE_DATA else decode_chunk(frame.data or b"")

    def teach(self, pattern: TextPattern, frame: Frame, chunk: Chunk, *, is_edited: bool) -> None:
        pattern.learn(frame, chunk, without_usage=is_edited)

    def note_repeated(self, texts: Sequence[str]) -> None:
        """Follow events that differ from earlier ones only in their text. Raise UpstreamProtocol for too many."""

    def rerun(self) -> ChatEvents:
        """Return what reads another run and writes it after what the client has already seen."""
        return self

    def hold(self) -> None:
        """Remember what the client has seen: the next events are held back."""

    def rewind(self) -> None:
        """Forget the events since `hold`: the client never sees them."""

    def end_mark(self) -> list[Frame]:
        return [DONE_FRAME]

    def body(self) -> dict[str, Any]:
        """Return the body of the non-streamed response, of APIs other than chat."""
        raise NotImplementedError

    def text(self, state: StreamState, text: str) -> list[Frame]:
        return [_frame_of(state, {"content": text})]

    def calls(self, state: StreamState, deltas: Sequence[Any]) -> list[Frame]:
        return [_frame_of(state, {"tool_calls": list(deltas)})]

    def closing(
        self, state: StreamState, finish: str, *, usage: Usage | None, report: dict[str, Any] | None
    ) -> list[Frame]:
        """Write everything from the finish reason on. `usage`: None if the client gets none."""
        frames = [_frame_of(state, {}, finish, **({} if report is None else {"suffice": report}))]
        if usage is not None:
            frames.append(_chunk(state, choices=[], usage=usage_json(usage)))
        return [*frames, DONE_FRAME]


def _frame_of(state: StreamState, delta: dict[str, Any], finish_reason: str | None = None, **extra: Any) -> Frame:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return _chunk(state, choices=[choice], **extra)


def _chunk(state: StreamState, **fields: Any) -> Frame:
    head = {"id": state.id, "object": "chat.completion.chunk", "created": state.created, "model": state.model}
    return data_frame(head | fields)


# ---- the events of other APIs

KEPT_BYTES = 32 * 2**20  # of a response, in memory


@dataclass(slots=True)
class Block:
    """A part of the response: Anthropic's content block, or an item of OpenAI's output."""

    kind: Literal["thought", "text", "call", "other"]
    fields: dict[str, Any]  # without its text
    texts: list[str] = field(default_factory=list)
    is_open: bool = True

    @property
    def text(self) -> str:
        return "".join(self.texts)


class NativeEvents(ChatEvents):
    """The events of an API that is not chat: each names its type, in its first line and in its data.

    It keeps the response as the client has it, for the body of a client that does not stream and for closing events
    that repeat texts.

    model, created_s  of the request, for engines whose events do not name them
    is_body           the client gets one body, so that nothing of it may be dropped
    """

    is_native = True
    _names: ClassVar[Mapping[str, str]] = {}  # of the texts in its deltas, by their names in chat
    _sequence: int | None = None  # number of the last event; None: this API or engine numbers none

    def __init__(
        self, *, model: str = "", created_s: int = 0, is_body: bool = False, client: NativeEvents | None = None
    ) -> None:
        self._model = model
        self._created_s = created_s
        self._is_body = is_body
        self.rewrites = client is not None
        self._first = client  # run whose events the client has seen; None: this one
        self._facts = AnswerFacts()
        self._blocks: list[Block] = []
        self._kept_bytes = 0
        self._n_calls = 0
        self._held: tuple[int, int, bool] = (0, 0, False)

    # ---- reading

    def read(self, frame: Frame) -> Chunk | None:
        event = decode_json(frame.data or b"null")
        if not isinstance(event, dict):
            return Chunk()
        return self._fold(str(event.get("type")), event)

    def _fold(self, kind: str, event: dict[str, Any]) -> Chunk | None:
        raise NotImplementedError

    def _begin(self, kind: Literal["thought", "text", "call", "other"], fields: dict[str, Any]) -> None:
        self._blocks.append(Block(kind, fields))
        self._keep(fields)

    def _keep(self, value: Any) -> bool:
        """Return whether there is room for one more value. Raise UpstreamProtocol if the client needs it."""
        self._kept_bytes += len(value) if isinstance(value, str) else len(encode_json(value))
        if self._kept_bytes > KEPT_BYTES and self._is_body:
            message = f"upstream: an answer takes more than {KEPT_BYTES} bytes; at most that many are kept"
            raise UpstreamProtocol(message)
        return self._kept_bytes <= KEPT_BYTES

    def _add(self, text: Any) -> str:
        """Add text to the open block and return it."""
        new: str = text if isinstance(text, str) else ""
        if new and self._blocks and self._keep(new):
            self._blocks[-1].texts.append(new)
        return new

    def _usage(self, usage: Any) -> WireUsage:
        facts = self._facts
        if isinstance(usage, dict):
            facts.note_usage(usage)
        return WireUsage(
            prompt_tokens=facts.prompt_tokens,
            completion_tokens=facts.completion_tokens,
            prompt_tokens_details=TokenDetails(cached_tokens=facts.cached_tokens),
            completion_tokens_details=TokenDetails(reasoning_tokens=facts.reasoning_tokens),
        )

    def teach(self, pattern: TextPattern, frame: Frame, chunk: Chunk, *, is_edited: bool) -> None:  # noqa: ARG002
        def decode(data: bytes) -> Chunk:
            return type(self)().read(Frame(raw=b"", data=data)) or Chunk()

        pattern.learn(frame, chunk, decode=decode, names=self._names)

    def note_repeated(self, texts: Sequence[str]) -> None:
        if self._sequence is not None:
            self._sequence += len(texts)
        self._kept_bytes += sum(map(len, texts))
        if self._blocks and (self._kept_bytes <= KEPT_BYTES or self._keep("")):
            self._blocks[-1].texts += texts

    # ---- what the client has seen

    @property
    def _client(self) -> NativeEvents:
        return self._first or self  # a reference to itself would keep the whole response until a full collection

    @property
    def _open(self) -> Block | None:
        last = self._blocks[-1] if self._blocks else None
        return last if last is not None and last.is_open else None

    def hold(self) -> None:
        last = self._open
        self._held = len(self._blocks), 0 if last is None else len(last.texts), last is not None

    def rewind(self) -> None:
        n_blocks, n_texts, was_open = self._held
        del self._blocks[n_blocks:]
        if was_open:
            last = self._blocks[-1]
            last.is_open = True
            del last.texts[n_texts:]

    def rerun(self) -> NativeEvents:
        client = None if self._is_body else self._client
        return type(self)(model=self._model, created_s=self._created_s, is_body=self._is_body, client=client)

    # ---- writing

    def end_mark(self) -> list[Frame]:
        return []

    def calls(self, state: StreamState, deltas: Sequence[Any]) -> list[Frame]:
        frames = list[Frame]()
        for delta in deltas:
            name, arguments = within(delta, "function", "name"), within(delta, "function", "arguments")
            if isinstance(name, str) and name:
                frames += self._open_call(state, str(delta.get("id") or ""), name)
            if isinstance(arguments, str) and arguments:
                frames.append(self._arguments(self._add(arguments)))
        return frames

    def _open_call(self, state: StreamState, call_id: str, name: str) -> list[Frame]:
        raise NotImplementedError

    def _arguments(self, text: str) -> Frame:
        raise NotImplementedError

    def _with_report(self, event: dict[str, Any], report: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    def edited(self, frame: Frame, report: dict[str, Any] | None) -> Frame:
        return frame if report is None else event_frame(self._with_report(decode_json(frame.data or b"{}"), report))

    def rewritten(
        self,
        state: StreamState,
        choice: Choice | None,
        answer: str | None,
        usage: Usage | None,
        report: dict[str, Any] | None,
    ) -> Frame | None:
        """Return a rerun's event after the events that the client has seen, without its thought."""
        if choice is None:
            return None
        frames, delta = self._client.text(state, answer) if answer else [], choice.delta
        if delta is not None and delta.refusal:
            frames += self._client.text(state, delta.refusal)
        if delta is not None and delta.calls_tool:
            frames += self._client.calls(state, msgspec.json.decode(delta.tool_calls))
        if choice.finish_reason is not None:
            frames += self._client.closing(state, choice.finish_reason, usage=usage, report=report)
        return Frame(raw=b"".join(frame.raw for frame in frames), data=None) if frames else None


def event_frame(event: dict[str, Any]) -> Frame:
    data = encode_json(event)
    return Frame(raw=b"event: %b\ndata: %b\n\n" % (str(event["type"]).encode(), data), data=data)


def delta_chunk(**delta: Any) -> Chunk:
    return Chunk(choices=[Choice(delta=Delta(**delta))])


def call_chunk(index: int, **fields: Any) -> Chunk:
    return delta_chunk(tool_calls=msgspec.Raw(msgspec.json.encode([{"index": index} | fields])))


# ---- what is known of each API

ENGINES: frozenset[Driver] = frozenset({"llama.cpp", "vllm", "sglang"})  # thoughts in the clear, unsigned
AsChat = Callable[[Mapping[str, Any]], tuple[dict[str, Any], str | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiFormat:
    path: str = CHAT_PATH
    events: type[NativeEvents] | None = None  # None: chat itself
    as_chat: AsChat = lambda body: (dict(body), None)
    own_driver: Driver | None = None  # whose fields for effort and budget are this API's, in chats too
    has_own_key: bool = False  # its hosted server takes the key in `x-api-key`
    effort: Callable[[str], dict[str, Any]] = lambda _: {}
    no_tool: Any = "none"  # `tool_choice` of a request that allows none to be called
    budget: Callable[[int], dict[str, Any]] | None = None

    def new_events(self, *, model: str = "", created_s: int = 0, is_body: bool = False) -> ChatEvents:
        if self.events is None:
            return ChatEvents()
        return self.events(model=model, created_s=created_s, is_body=is_body)

    def excluded_methods(self, driver: Driver) -> tuple[FinishMethod, ...]:
        """Return the ways to finish that cannot be used: a signed thought is not cut, and only chats have a control."""
        if self.events is None:
            return ()
        return ("native",) if driver in ENGINES else ("native", "raw", "prefill", "re-ask")

    def fields(self, fields: ReasoningFields, driver: Driver) -> ReasoningFields:
        if self.events is None or not fields.fields or driver == self.own_driver:
            return fields
        if fields.effort is not None:
            return replace(fields, fields=self.effort(fields.effort))
        if fields.budget_tokens is None or self.budget is None:
            return NO_FIELDS
        return replace(fields, fields=self.budget(fields.budget_tokens))


CHAT = ApiFormat()
