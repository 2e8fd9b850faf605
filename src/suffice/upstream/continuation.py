"""Builds the requests that close a thought and let the model answer. Pure; `client` sends them.

One builder serves the probe (a trial answer, cut short) and the delivered answer, so that one represents the other.

    native   POST …/chat/completions/control {"action": "reasoning_end"}: the stream itself goes on
    prefill  the chat again, its last message an assistant's that the model continues
    raw      /v1/completions with the chat template's own text, the thought so far and its closing
    re-ask   the chat again, with the thought so far as text, and a request for the answer alone
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from suffice.settings import FinishMethod, Probe, Upstream
from suffice.types import ReplyForm
from suffice.upstream.drivers import (
    CARRIED,
    CHAT_PATH,
    DRIVERS,
    STOPS,
    Fields,
    least_effort_fields,
    merge_fields,
    reply_form,
    stop_words,
    thinking_is_off,
)

# Sampling fields, which the continuation repeats.
SAMPLING = (
    *("temperature", "top_p", "top_k", "min_p", "seed", "random_seed", "presence_penalty", "frequency_penalty"),
    *("repeat_penalty", "logit_bias", "user"),
)
# Fields that choose the chat template's variant and the provider behind a broker, likewise.
CHAT_ONLY = ("chat_template_kwargs", "provider")
N_RIVALS = 5  # alternatives listed for each token of a trial answer: the most that plain completions give


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    text: str | None  # ends where generation begins, inside the opened thought; None: not rendered
    n_tokens: int | None  # None: the engine has no tokenizer endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    path: str
    body: Fields
    prefill: str = ""  # text that some engines repeat at the start of the reply
    answer_prefix: str = ""  # words that begin the answer and are not part of the reply
    stop: tuple[str, ...] = ()  # stop words for the reader, because they were not sent to the engine
    added_chars: int = 0  # of our own text in the prompt, beside the thought
    opened: bool = False  # the reply begins inside a thought of its own


def probe_of_form(probe: Probe, form: ReplyForm) -> Probe:
    """Return the probe of a request: nothing is written before a call or JSON, and neither ends at a stop word."""
    if form == "text":
        return probe
    ask = probe.reask_tools_ask if form == "tools" else probe.reask_ask
    return msgspec.structs.replace(probe, max_tokens=probe.formed_tokens, answer_prefix="", stop=(), reask_ask=ask)


def build_continuation(
    method: FinishMethod,
    client_body: Mapping[str, Any],
    thought: str,
    *,
    upstream: Upstream,
    probe: Probe,
    prompt: Prompt | None = None,
    max_tokens: int | None = None,
    trial: bool = False,
) -> Continuation:
    """Build the request that answers after `thought`. Raise ValueError if the driver or the prompt does not allow it.

    trial  end the answer at the probe's stop words, and list the probabilities of its tokens
    """
    body: Fields = {k: client_body[k] for k in ("model", *SAMPLING, *STOPS) if k in client_body}
    # A call that is cancelled reports no usage at its end.
    in_chunks = {"continuous_usage_stats": True} if DRIVERS[upstream.driver].counts_chunks else {}
    body |= {"stream": True, "stream_options": {"include_usage": True, **in_chunks}}
    if max_tokens is not None:
        # Some chat APIs refuse the older name of the cap: use the one that the client used.
        names_completion = method != "raw" and client_body.get("max_completion_tokens") is not None
        body["max_completion_tokens" if names_completion else "max_tokens"] = max_tokens
    if trial:
        body |= {"logprobs": N_RIVALS} if method == "raw" else {"logprobs": True, "top_logprobs": N_RIVALS}
    stops = (*stop_words(client_body), *(probe.stop if trial and method != "re-ask" else ()))
    if stops:
        body["stop"] = list(stops)
    if method == "raw":
        return _raw(body, thought, upstream, probe, prompt)
    kept = CHAT_ONLY if reply_form(client_body) == "text" else (*CHAT_ONLY, *CARRIED)
    body |= {k: client_body[k] for k in kept if k in client_body}
    if method == "prefill":
        return _prefill(body, client_body["messages"], thought, upstream, probe)
    if method == "re-ask":
        return _reask(body, client_body["messages"], thought.strip(), upstream, probe, trial=trial)
    raise ValueError(f"continuation: {method!r} needs no second request")


def close_thought(thought: str, upstream: Upstream, probe: Probe) -> str:
    return f"{thought.rstrip()}{probe.closing}{upstream.think_close}{probe.answer_prefix}"


def _raw(body: Fields, thought: str, upstream: Upstream, probe: Probe, prompt: Prompt | None) -> Continuation:
    if prompt is None or prompt.text is None:
        raise ValueError("raw continuation: needs the prompt as rendered by the engine's template")
    if upstream.driver == "vllm":
        body["add_special_tokens"] = False  # the template's text has its own BOS
    # If the template leaves the opening tag to the model, the thought needs one.
    opened = "" if prompt.text.rstrip().endswith(upstream.think_open) else upstream.think_open
    body["prompt"] = prompt.text + opened + close_thought(thought, upstream, probe)
    return Continuation(path="/v1/completions", body=body, answer_prefix=probe.answer_prefix)


def _prefill(body: Fields, messages: Sequence[Any], thought: str, upstream: Upstream, probe: Probe) -> Continuation:
    facts, closed = DRIVERS[upstream.driver], close_thought(thought, upstream, probe)
    how = facts.prefill if reply_form(body) == "text" else facts.formed_prefill or facts.prefill
    if how is None:
        raise ValueError(f"continuation: driver {upstream.driver!r} cannot continue a message")
    last = upstream.think_open + closed
    message: dict[str, Any] = {"role": "assistant", "content": last}
    if how == "continue":
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    elif how == "continue-reasoning":
        last, reasoning = "", f"{thought.rstrip()}{probe.closing}"
        message |= {"content": last, "reasoning_content": reasoning}
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    elif how == "continue-behind":
        # The text follows the generation prompt; the reasoning parser would take the answer for a thought.
        last = message["content"] = closed if upstream.think_opened else last
        body |= {"continue_final_message": True, "separate_reasoning": False}
    elif how == "prefix":
        message["prefix"] = True
    else:
        # An empty content would leave the thought open; a line end is how the model begins its answer.
        last = probe.answer_prefix or "\n"
        reasoning = f"{thought.rstrip()}{probe.closing}".rstrip()
        message |= {"content": last, "reasoning_content": reasoning, "prefix": True}
    body["messages"] = [*messages, message]
    return Continuation(path=facts.prefill_path, body=body, prefill=last, answer_prefix=probe.answer_prefix)


def _reask(
    body: Fields, messages: Sequence[Any], thought: str, upstream: Upstream, probe: Probe, *, trial: bool
) -> Continuation:
    """The reader applies the stop words: a reply that thinks first would end inside its own thought."""
    reasoning = probe.reask_thought.replace("{thought}", thought)
    turns = [{"role": "assistant", "content": reasoning}, {"role": "user", "content": probe.reask_ask}]
    body["messages"] = [*messages, *turns]
    body = merge_fields(body, least_effort_fields(upstream, str(body.get("model") or "")))
    return Continuation(
        path=CHAT_PATH,
        body=body,
        stop=probe.stop if trial else (),
        added_chars=len(reasoning) - len(thought) + len(probe.reask_ask),
        opened=upstream.think_opened and not thinking_is_off(body),
    )


def cut_at(text: str, stop: tuple[str, ...]) -> str:
    """Return `text` up to the first stop word after its leading white space, as an engine would have cut it."""
    start = len(text) - len(text.lstrip())
    ends = [at for word in stop if (at := text.find(word, start)) >= 0]
    return text[: min(ends)] if ends else text
