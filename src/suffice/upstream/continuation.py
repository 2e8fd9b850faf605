"""The ways to close a thought and let the model answer: what is sent, and how to read the reply.

Pure: it builds bodies and reads chunks; `client` sends them. The same builder serves the probe
(a trial answer, cut short) and the delivered answer, so that one stands for the other.

    native   POST …/chat/completions/control {"action": "reasoning_end"}: the stream itself goes on
    prefill  the chat again, its last message an assistant's that the model continues
    raw      /v1/completions with the chat template's own text, the thought so far and its closing
    re-ask   the chat again, the thought so far told as text, and a request for the answer alone

Which server takes which, and in which fields, stands in `drivers`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from suffice.settings import Driver, Effort, FinishMethod, Template
from suffice.upstream.drivers import CHAT_PATH, DRIVERS, merge_fields, thinking_is_off

DRIVER_METHODS: dict[Driver, tuple[FinishMethod, ...]] = {name: d.methods for name, d in DRIVERS.items()}
# Fields that shape the sampling and so belong to the continuation too.
SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "random_seed",
    "presence_penalty",
    "frequency_penalty",
    "repeat_penalty",
    "logit_bias",
    "user",
)
# The same for what chooses the chat template's variant and the provider behind a broker.
CHAT_ONLY = ("chat_template_kwargs", "provider")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    text: str | None  # ends where generation begins, inside the opened thought; None: not asked for
    n_tokens: int | None  # None: the engine has no tokenizer endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Thought:
    """A thought to be closed, and the words around it."""

    text: str
    closing: str = "\n"
    think_open: str = "<think>"
    think_close: str = "</think>"
    answer_prefix: str = ""
    opened: bool = False  # the chat template writes the opening tag itself
    reask_thought: str = ""  # an assistant's message around {thought}
    reask_ask: str = ""  # the user's message behind it

    @property
    def ended(self) -> str:
        """The thought so far and its closing text, without a tag."""
        return f"{self.text.rstrip()}{self.closing}"

    @property
    def closed(self) -> str:
        """The thought so far, its closing text and tag, and the words that begin the answer."""
        return f"{self.ended}{self.think_close}{self.answer_prefix}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What cuts a reply short.

    max_tokens  cap of the answer, None: the engine's own
    stop        words at which a trial answer ends
    logprobs    alternatives per token that the reply must carry, 0: none
    """

    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    method: FinishMethod
    path: str
    body: dict[str, Any]
    prefill: str = ""  # text that some engines repeat at the start of the reply
    answer_prefix: str = ""  # words that begin the answer and are no part of the reply
    stop: tuple[str, ...] = ()  # words that the reader must stop at, because the engine was not told
    added_chars: int = 0  # of our own text in the prompt, beside the thought
    tags: tuple[str, str] = field(default=("<think>", "</think>"))
    opened: bool = False  # the reply begins inside a thought of its own


def build_continuation(
    method: FinishMethod,
    client_body: Mapping[str, Any],
    thought: Thought,
    *,
    driver: Driver,
    prompt: Prompt | None = None,
    limits: Limits = Limits(),
    lowest_effort: Effort | None = None,
) -> Continuation:
    """Write the request that answers after `thought`.

    lowest_effort  level at which a re-ask may think; None: the driver's lowest
    Raises ValueError when the driver has no such way, or `raw` is asked for without the template's text.
    """
    body: dict[str, Any] = {k: client_body[k] for k in ("model", *SAMPLING) if k in client_body}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    if limits.max_tokens is not None:
        body["max_completion_tokens" if _names_completion(client_body, method) else "max_tokens"] = limits.max_tokens
    if method == "raw":
        return _raw(body, thought, driver, prompt, limits)
    body |= {k: client_body[k] for k in CHAT_ONLY if k in client_body}
    if limits.logprobs:
        body |= {"logprobs": True, "top_logprobs": limits.logprobs}
    if method == "prefill":
        return _prefill(body, client_body["messages"], thought, driver, limits)
    if method == "re-ask":
        return _reask(body, client_body["messages"], thought, driver, limits, lowest_effort)
    raise ValueError(f"continuation: {method!r} needs no second request")


def _names_completion(client_body: Mapping[str, Any], method: FinishMethod) -> bool:
    """Some chat APIs refuse the older name of the cap: the client knows which one its server takes."""
    return method != "raw" and client_body.get("max_completion_tokens") is not None


def _raw(body: dict[str, Any], thought: Thought, driver: Driver, prompt: Prompt | None, limits: Limits) -> Continuation:
    if prompt is None or prompt.text is None:
        raise ValueError("raw continuation: needs the prompt as the engine's template writes it")
    if limits.logprobs:
        body["logprobs"] = limits.logprobs
    if limits.stop:
        body["stop"] = list(limits.stop)
    if driver == "vllm":
        body["add_special_tokens"] = False  # the template's text has its own; a second BOS would be added
    # A template that leaves the opening tag to the model ends before it: the thought needs one.
    opened = "" if prompt.text.rstrip().endswith(thought.think_open) else thought.think_open
    body["prompt"] = prompt.text + opened + thought.closed
    return Continuation(
        method="raw",
        path="/v1/completions",
        body=body,
        answer_prefix=thought.answer_prefix,
        tags=(thought.think_open, thought.think_close),
    )


def _prefill(
    body: dict[str, Any], messages: Sequence[Any], thought: Thought, driver: Driver, limits: Limits
) -> Continuation:
    facts = DRIVERS[driver]
    kind = facts.prefill
    if kind is None:
        raise ValueError(f"continuation: driver {driver!r} continues no message")
    if limits.stop:
        body["stop"] = list(limits.stop)
    last = thought.think_open + thought.closed
    message: dict[str, Any] = {"role": "assistant", "content": last}
    if kind == "continue":
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    elif kind == "continue-behind":
        # The text goes behind the generation prompt; its reasoning parser would take the answer for a thought.
        last = message["content"] = thought.closed if thought.opened else last
        body |= {"continue_final_message": True, "separate_reasoning": False}
    elif kind == "prefix":
        message["prefix"] = True
    else:
        # An empty content would leave the thought open; a line end is how the model begins its answer.
        last = thought.answer_prefix or "\n"
        message |= {"content": last, "reasoning_content": thought.ended.rstrip(), "prefix": True}
    body["messages"] = [*messages, message]
    return Continuation(
        method="prefill",
        path=facts.prefill_path,
        body=body,
        prefill=last,
        answer_prefix=thought.answer_prefix,
        tags=(thought.think_open, thought.think_close),
    )


def _reask(
    body: dict[str, Any],
    messages: Sequence[Any],
    thought: Thought,
    driver: Driver,
    limits: Limits,
    lowest: Effort | None,
) -> Continuation:
    """Stop words are left to the reader: a reply that thinks first would end inside its own thought."""
    facts = DRIVERS[driver]
    told = thought.reask_thought.replace("{thought}", thought.text.strip())
    body["messages"] = [
        *messages,
        {"role": "assistant", "content": told},
        {"role": "user", "content": thought.reask_ask},
    ]
    body = merge_fields(body, facts.effort(lowest or facts.lowest) or {})
    return Continuation(
        method="re-ask",
        path=CHAT_PATH,
        body=body,
        stop=limits.stop,
        added_chars=len(told) - len(thought.text.strip()) + len(thought.reask_ask),
        tags=(thought.think_open, thought.think_close),
        opened=thought.opened and not thinking_is_off(body),
    )


def write_prompt(template: Template, messages: Sequence[Any]) -> str:
    """Messages as the owner's template writes them, up to where generation begins.

    Raises ValueError for a message that is more than text, which no such template can write.
    """
    text = template.begin
    for message in messages:
        turn = template.turn.replace("{role}", str(message.get("role", "user")))
        text += turn.replace("{content}", _text_of(message.get("content")))
    return text + template.generate


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    if not parts or not all(isinstance(p, Mapping) and isinstance(p.get("text"), str) for p in parts):
        raise ValueError("template: a message holds more than text")
    return "".join(p["text"] for p in parts)


def cut_at(text: str, stop: tuple[str, ...]) -> str:
    """`text` up to the first stop word behind its leading white space, as an engine would have cut it."""
    if not stop:
        return text
    start = len(text) - len(text.lstrip())
    ends = [at for word in stop if (at := text.find(word, start)) >= 0]
    return text[: min(ends)] if ends else text


class PrefillStripper:
    """Removes the prefill from the start of a reply: llama.cpp repeats it, vLLM does not."""

    def __init__(self, prefill: str) -> None:
        self._prefill = prefill
        self._held = ""
        self._done = not prefill

    def feed(self, text: str) -> str:
        """The part of `text` that is new. Text is held back only while it may still be the prefill."""
        if self._done:
            return text
        self._held += text
        if self._held.startswith(self._prefill):
            self._done = True
            return self._held[len(self._prefill) :]
        if self._prefill.startswith(self._held):
            return ""
        self._done = True
        return self._held

    def close(self) -> str:
        """What was held back when the reply ended."""
        held, self._held = ("" if self._done else self._held), ""
        return held
