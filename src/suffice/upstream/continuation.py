"""The ways to close a thought and let the model answer: what is sent, and how to read the reply.

Pure: it builds bodies and reads chunks; `client` sends them. The same builder serves the probe
(a trial answer, cut short) and the delivered answer, so that one stands for the other.

    native   POST …/chat/completions/control {"action": "reasoning_end"}: the stream itself goes on
    prefill  the chat again, its last message an assistant's that the model continues
    raw      /v1/completions with the chat template's own text, the thought so far and its closing
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from suffice.settings import Driver, FinishMethod

# Which ways an engine honours, best first. llama.cpp: run against its server. vLLM: from its
# documentation, not verified against a live server. Plain OpenAI offers none of them.
DRIVER_METHODS: dict[Driver, tuple[FinishMethod, ...]] = {
    "llama.cpp": ("native", "raw", "prefill"),
    "vllm": ("prefill",),
    "openai": (),
}
# Fields that shape the sampling and so belong to the continuation too.
SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty",
    "repeat_penalty", "logit_bias", "user",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """The client's prompt as the engine's own template writes it."""

    text: str             # ends where generation begins, inside the opened thought
    n_tokens: int | None  # None: the engine has no tokenizer endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """A request that continues a run after its thought was closed."""

    method: FinishMethod
    path: str
    body: dict[str, Any]
    prefill: str          # text that some engines repeat at the start of the reply


def closed_thought(reasoning: str, *, closing: str, think_close: str, answer_prefix: str) -> str:
    """The thought so far, its closing text and tag, and the words that begin the answer."""
    return f"{reasoning.rstrip()}{closing}{think_close}{answer_prefix}"


def build(
    method: FinishMethod,
    client_body: Mapping[str, Any],
    closed: str,
    *,
    prompt: Prompt | None,
    think_open: str,
    max_tokens: int | None,
    stop: tuple[str, ...] = (),
    logprobs: int = 0,
) -> Continuation:
    """Write the request that continues after `closed`.

    max_tokens  cap of the answer, None: the engine's own
    logprobs    alternatives per token that the reply must carry, 0: none
    Raises ValueError when `raw` is asked for without the template's text, or for `native`.
    """
    body: dict[str, Any] = {k: client_body[k] for k in ("model", *SAMPLING) if k in client_body}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    if stop:
        body["stop"] = list(stop)
    if method == "raw":
        if prompt is None:
            raise ValueError("raw continuation: needs the prompt as the engine's template writes it")
        if logprobs:
            body["logprobs"] = logprobs
        # A template that leaves the opening tag to the model ends before it: the thought needs one.
        opened = "" if prompt.text.rstrip().endswith(think_open) else think_open
        body["prompt"] = prompt.text + opened + closed
        return Continuation(method="raw", path="/v1/completions", body=body, prefill="")
    if method == "prefill":
        if logprobs:
            body |= {"logprobs": True, "top_logprobs": logprobs}
        last = think_open + closed
        body["messages"] = [*client_body["messages"], {"role": "assistant", "content": last}]
        body |= {"continue_final_message": True, "add_generation_prompt": False}
        return Continuation(method="prefill", path="/v1/chat/completions", body=body, prefill=last)
    raise ValueError(f"continuation: {method!r} needs no second request")


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
            return self._held[len(self._prefill):]
        if self._prefill.startswith(self._held):
            return ""
        self._done = True
        return self._held

    def close(self) -> str:
        """What was held back when the reply ended."""
        held, self._held = ("" if self._done else self._held), ""
        return held
