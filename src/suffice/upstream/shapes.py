"""The engines' wire shapes: recorded from a live server, or known from documentation only. Pure data.

`recorded` shapes came from a live server (`python -m tests.wire.record`); `synthetic` ones were *not verified against a
live server*, and no figure is ever taken from them. The files are in `tests/wire/streams/`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Evidence = Literal["recorded", "synthetic"]


class AnswerShape(NamedTuple):
    engine: str
    name: str  # of the file, without its extension
    shape: str  # description for people

    @property
    def evidence(self) -> Evidence:
        return "recorded" if self.engine == "llama.cpp" else "synthetic"


SHAPES: tuple[AnswerShape, ...] = (
    AnswerShape("llama.cpp", "llama_cpp_chat_reasoning", "chat stream, thought in reasoning_content, usage chunk"),
    AnswerShape("llama.cpp", "llama_cpp_chat_inline_tags", "chat stream, thought between tags in the content"),
    AnswerShape("llama.cpp", "llama_cpp_chat_no_usage", "chat stream without usage"),
    AnswerShape("llama.cpp", "llama_cpp_chat_body", "chat, one body"),
    AnswerShape("llama.cpp", "llama_cpp_chat_logprobs", "chat stream with log-probabilities, cut by its cap"),
    AnswerShape("llama.cpp", "llama_cpp_chat_tools", "chat stream with tools offered"),
    AnswerShape("llama.cpp", "llama_cpp_chat_prefill", "chat stream that continues an assistant message (prefill)"),
    AnswerShape("llama.cpp", "llama_cpp_chat_budget", "chat stream whose thought a budget ended"),
    AnswerShape("llama.cpp", "llama_cpp_chat_control", "chat stream whose thought the control endpoint ended (native)"),
    AnswerShape("llama.cpp", "llama_cpp_chat_cancelled", "chat stream that was left early"),
    AnswerShape("llama.cpp", "llama_cpp_completions_raw", "completions stream that continues a template's text (raw)"),
    AnswerShape("llama.cpp", "llama_cpp_completions_body", "completions, one body"),
    AnswerShape("llama.cpp", "llama_cpp_completion_native", "llama.cpp's own completion, stream"),
    AnswerShape("llama.cpp", "llama_cpp_responses", "responses stream"),
    AnswerShape("llama.cpp", "llama_cpp_responses_body", "responses, one body"),
    AnswerShape("llama.cpp", "llama_cpp_messages", "messages stream with a thought"),
    AnswerShape("llama.cpp", "llama_cpp_messages_body", "messages, one body"),
    AnswerShape("llama.cpp", "llama_cpp_count_tokens", "messages, token count"),
    AnswerShape("vLLM", "vllm_reasoning", "chat stream, thought in reasoning"),
    AnswerShape("vLLM", "vllm_reasoning_content", "chat stream, thought in reasoning_content"),
    AnswerShape("vLLM", "vllm_continuous_usage", "chat stream, usage in every chunk"),
    AnswerShape("SGLang", "sglang_reasoning_content", "chat stream, thought in reasoning_content, nulls beside it"),
    AnswerShape("DeepSeek API", "deepseek_reasoning_content", "chat stream, comments, usage with the finish reason"),
    AnswerShape("Ollama", "ollama_reasoning", "chat stream, thought in reasoning"),
    AnswerShape("OpenAI API", "openai_chat", "chat stream, hidden thought, usage null until the end"),
    AnswerShape("OpenAI API", "openai_responses", "responses stream"),
    AnswerShape("OpenAI API", "openai_responses_body", "responses, one body"),
    AnswerShape("OpenAI API", "openai_embeddings", "embeddings"),
    AnswerShape("Anthropic API", "anthropic_messages", "messages stream with a thought"),
    AnswerShape("Anthropic API", "anthropic_messages_body", "messages, one body"),
    AnswerShape("OpenRouter", "openrouter_reasoning", "chat stream, comments, reasoning beside reasoning_details"),
    AnswerShape("Mistral API", "mistral_thinking", "chat stream, thought in parts of the content"),
)


def engines(evidence: Evidence) -> tuple[str, ...]:
    return tuple(dict.fromkeys(s.engine for s in SHAPES if s.evidence == evidence))
