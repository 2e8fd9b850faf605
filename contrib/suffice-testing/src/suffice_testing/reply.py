"""A fake model server's requests, its replies, and byte streams that it plays unchanged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from suffice_testing.prompt import Prefix, messages_of, prompt_text

ReasoningField: TypeAlias = Literal[
    "reasoning",
    "reasoning_content",
    "thinking",
    "inline",  # in the content, between tags
    "inline-opened",  # in the content, without the opening tag: the chat template wrote it
]
UsageStyle: TypeAlias = Literal[
    "last",  # one chunk with `choices: []`, if the request asks for it
    "always",  # the same, also unasked
    "with_finish",  # in the chunk with the finish reason
    "every",  # so far, in every chunk
    "zero_first",  # zeros in the first chunk, the true counts in the last
    "none",  # never, not even in the non-streamed response
]
# Plain "openai" has no control, no template and no continuation of a prefill.
Dialect: TypeAlias = Literal["llama.cpp", "openai", "vllm", "sglang", "deepseek", "mistral"]
Death: TypeAlias = Literal["rst", "fin", "error_frame"]


class FakeRefusal(ValueError):
    code = "bad_request"

    def __init__(self, message: str, *, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code or self.code


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    die_after: int | None = None  # generated tokens after which it breaks off; 0: headers only
    die_how: Death = "rst"  # a reset, a quiet close in mid-body, or an error frame
    stall_after: int | None = None  # generated tokens after which it is silent …
    stall_s: float = 0.0  # … for so long
    stall_until_cut: bool = False  # … or until the thought is cut short
    status: int | None = None  # sent instead of a reply
    status_body: bytes | None = None  # None: an error in OpenAI's shape
    status_headers: Mapping[str, str] = field(default_factory=dict)
    finish: bool = True  # send the finish reason
    done: bool = True  # send [DONE]
    header_delay_s: float = 0.0  # before the first byte of the response
    piece_bytes: int | None = None  # size of the HTTP chunks of the body
    html: bool = False  # 200 with a web page, as a misplaced proxy answers
    force: Literal["sse", "json"] | None = None  # an event stream, or one body, whatever the request says
    bad_frame_after: int | None = None  # generated tokens after which a frame is not JSON


def merged(faults: tuple[Fault, ...]) -> Fault:
    """Merge all faults; for the same field the later one counts."""
    plain, changes = asdict(Fault()), dict[str, Any]()
    for fault in faults:
        changes |= {name: value for name, value in asdict(fault).items() if value != plain[name]}
    return Fault(**changes)


@dataclass(frozen=True, slots=True)
class AnswerTokens:
    tokens: tuple[str, ...]
    logprobs: tuple[float, ...] = ()  # natural log; shorter than `tokens`: the rest is -0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    id: str
    name: str
    arguments: tuple[str, ...]  # in pieces, one token each


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A model's reply and the server's behaviour; every text in `reasoning`, `answer` and `arguments` is one token."""

    answer: tuple[str, ...] = ("ok",)
    reasoning: tuple[str, ...] = ()
    reasoning_field: ReasoningField = "reasoning_content"
    answer_after: Callable[[str], AnswerTokens] | None = None  # answer if the thought is closed here
    rethinks: tuple[str, ...] = ()  # before it answers a re-ask, unless thinking is off
    answer_logprobs: tuple[float, ...] = ()  # natural log; sent if requested
    reasoning_logprobs: tuple[float, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    calls_after: Callable[[str], tuple[ToolCall, ...]] | None = None  # tool calls if the thought is closed here
    finish_reason: str = "stop"
    delay_s: float = 0.0  # before each token
    first_delay_s: float = 0.0  # before the first one, in addition
    usage: UsageStyle = "last"
    count_reasoning: bool = True  # include reasoning tokens in the usage
    headers: tuple[tuple[str, str], ...] = ()  # of a streamed response, beside the usual ones
    extra: Mapping[str, Any] = field(default_factory=dict)  # top-level fields of every chunk
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeRequest:
    method: str
    path: str  # without the query and without /v1
    target: str  # as received
    headers: tuple[tuple[str, str], ...]
    raw_body: bytes
    body: Mapping[str, Any]  # {} if the body is not a JSON object
    nth: int  # number of earlier requests of any kind
    nth_same: int  # number of earlier completions with the same prompt
    prefix: Prefix | None  # the part of the reply that the request already carries

    def header(self, name: str) -> str | None:
        return next((v for k, v in self.headers if k.lower() == name.lower()), None)

    @property
    def is_raw(self) -> bool:
        return self.path == "/completions"

    @property
    def stream(self) -> bool:
        return self.body.get("stream") is True

    @property
    def model(self) -> str:
        return str(self.body.get("model", ""))

    @property
    def is_native(self) -> bool:
        """Whether it speaks another API than OpenAI's completions."""
        return self.path in ("/messages", "/responses")

    @property
    def messages(self) -> list[Any]:
        """The conversation as a chat's messages."""
        if self.is_native:
            return messages_of(self.body)
        held = self.body.get("messages")
        return held if isinstance(held, list) else []

    @property
    def text(self) -> str:
        if self.is_raw:
            return prompt_text(self.body.get("prompt"))
        return "\n".join(prompt_text(m.get("content")) for m in self.messages if isinstance(m, Mapping))


@dataclass(slots=True, kw_only=True)
class FakeCall:
    """One call and its result. It is filled in while the call runs; read it when `closed_at_s` is set."""

    request: FakeRequest
    opened_at_s: float  # monotonic clock
    closed_at_s: float | None = None  # monotonic clock; None: still running
    status: int | None = None  # None: no status line was sent
    cancelled: bool = False  # the client hung up before the answer was complete
    prompt_tokens: int = 0  # 0 until generation began
    cached_tokens: int = 0
    n_tokens_sent: int = 0  # generated so far, whether or not the client read them
    n_reasoning_tokens: int = 0  # part of them
    n_bytes_sent: int = 0  # of the body, as far as the socket accepted it
    thought_ended_by: str | None = None  # "control", "budget": the thought was cut short
    error: str | None = None  # why the fake itself refused the call

    @property
    def path(self) -> str:
        return self.request.path

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        return self.request.headers

    @property
    def body(self) -> Mapping[str, Any]:
        return self.request.body

    @property
    def raw_body(self) -> bytes:
        return self.request.raw_body

    @property
    def is_completion(self) -> bool:
        return self.path in ("/chat/completions", "/completions", "/messages", "/responses")

    @property
    def usage(self) -> dict[str, int] | None:
        """The tokens that the call has cost, even if it was cut off; None if nothing was generated."""
        if not self.prompt_tokens:
            return None
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.n_tokens_sent,
            "total_tokens": self.prompt_tokens + self.n_tokens_sent,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    pieces: tuple[bytes, ...]
    end: Literal["whole", "torn", "hang"] = "whole"  # torn: the connection closes inside it
    hang_s: float = 0.0  # hang: silence before the body is completed
    delay_s: float = 0.0  # before each piece
    status: int = 200
    content_type: str = "text/event-stream"
    keep_alive: bool = False  # whether the connection may be reused

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)
