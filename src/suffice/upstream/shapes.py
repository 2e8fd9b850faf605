"""Which engine's wire shapes were seen, and which are known from documentation alone. Pure data.

`recorded` means that the bytes came from a live server; they can be recorded again by
`python -m tests.wire.record`. `synthetic` means written from the engine's documentation and *not verified
against a live server*. The files stand in `tests/wire/streams/`, and no figure is ever taken from a synthetic one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class AnswerShape:
    """One way in which an engine answers."""

    engine: str
    name: str  # of the file, without its ending
    shape: str  # for a person
    evidence: Literal["recorded", "synthetic"]


def _recorded(name: str, shape: str) -> AnswerShape:
    return AnswerShape("llama.cpp", f"llama_cpp_{name}", shape, "recorded")


def _written(engine: str, name: str, shape: str) -> AnswerShape:
    return AnswerShape(engine, name, shape, "synthetic")


SHAPES: tuple[AnswerShape, ...] = (
    _recorded("chat_reasoning", "chat stream, thought in reasoning_content, usage chunk"),
    _recorded("chat_inline_tags", "chat stream, thought between tags in the content"),
    _recorded("chat_no_usage", "chat stream without usage"),
    _recorded("chat_body", "chat, one body"),
    _recorded("chat_logprobs", "chat stream with log-probabilities, cut by its cap"),
    _recorded("chat_tools", "chat stream with tools offered"),
    _recorded("chat_prefill", "chat stream that continues an assistant message (prefill)"),
    _recorded("chat_budget", "chat stream whose thought a budget ended"),
    _recorded("chat_control", "chat stream whose thought the control endpoint ended (native)"),
    _recorded("chat_cancelled", "chat stream that was left early"),
    _recorded("completions_raw", "completions stream that continues a template's text (raw)"),
    _recorded("completions_body", "completions, one body"),
    _recorded("completion_native", "llama.cpp's own completion, stream"),
    _recorded("responses", "responses stream"),
    _recorded("responses_body", "responses, one body"),
    _recorded("messages", "messages stream with a thought"),
    _recorded("messages_body", "messages, one body"),
    _recorded("count_tokens", "messages, token count"),
    _written("vLLM", "vllm_reasoning", "chat stream, thought in reasoning"),
    _written("vLLM", "vllm_reasoning_content", "chat stream, thought in reasoning_content"),
    _written("vLLM", "vllm_continuous_usage", "chat stream, usage in every chunk"),
    _written("SGLang", "sglang_reasoning_content", "chat stream, thought in reasoning_content, nulls beside it"),
    _written("DeepSeek API", "deepseek_reasoning_content", "chat stream, comments, usage with the finish reason"),
    _written("Ollama", "ollama_reasoning", "chat stream, thought in reasoning"),
    _written("OpenAI API", "openai_chat", "chat stream, hidden thought, usage null until the end"),
    _written("OpenAI API", "openai_responses", "responses stream"),
    _written("OpenAI API", "openai_responses_body", "responses, one body"),
    _written("OpenAI API", "openai_embeddings", "embeddings"),
    _written("Anthropic API", "anthropic_messages", "messages stream with a thought"),
    _written("Anthropic API", "anthropic_messages_body", "messages, one body"),
    _written("OpenRouter", "openrouter_reasoning", "chat stream, comments, reasoning beside reasoning_details"),
    _written("Mistral API", "mistral_thinking", "chat stream, thought in parts of the content"),
)


def engines(evidence: Literal["recorded", "synthetic"]) -> tuple[str, ...]:
    """The engines with shapes of this evidence, in the order of the table."""
    return tuple(dict.fromkeys(s.engine for s in SHAPES if s.evidence == evidence))
