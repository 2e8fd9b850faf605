"""What each kind of model server can do about a thought, and in which fields it wants to be asked.

Pure tables and small translations: it knows the servers' own words and refuses to know runs, routes
and sockets. Where a fact comes from stands beside it. llama.cpp's were tried against its server; all
others are taken from the projects' documentation or sources and were not verified against a live server.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from suffice.errors import ConfigError
from suffice.settings import Driver, Effort, FinishMethod

Fields = dict[str, Any]
Prefill = Literal[
    "continue",  # continue_final_message and add_generation_prompt
    "continue-behind",  # continue_final_message; the text is put behind the generation prompt
    "prefix",  # `prefix: true` on the last message
    "prefix-reasoning",  # the same, with the thought in `reasoning_content`
]
CHAT_PATH = "/v1/chat/completions"
# Fields by which a client itself says how long the model may think. One of them given: ours stay away.
THINKING_FIELDS = (
    "reasoning_effort",
    "reasoning",
    "thinking",
    "thinking_token_budget",
    "thinking_budget_tokens",
    "reasoning_budget_tokens",
    "reasoning_budget",
    "thinking_budget",
    "enable_thinking",
    "prompt_mode",
)
NESTED_THINKING_FIELDS: Mapping[str, tuple[str, ...]] = {
    "chat_template_kwargs": ("enable_thinking", "thinking", "thinking_budget", "reasoning_effort"),
    "custom_params": ("thinking_budget",),
    "nvext": ("max_thinking_tokens",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverFacts:
    """One kind of server.

    methods       ways to close a thought, best first, where the settings name none
    prefill       how it is told to continue an assistant's message; None: it cannot be
    prefill_path  where such a request goes
    budget        tokens and closing text → fields that make the engine close the thought itself; None: no such field
    effort        level → fields that ask for that much thought; None: this level cannot be asked for
    lowest        the level that thinks least and that all its models accept
    writes_prompt how the chat template's text is had; None: not at all
    """

    methods: tuple[FinishMethod, ...]
    prefill: Prefill | None = None
    prefill_path: str = CHAT_PATH
    budget: Callable[[int, str], Fields] | None = None
    effort: Callable[[Effort], Fields | None]
    lowest: Effort = "none"
    writes_prompt: Literal["apply-template", "tokenize"] | None = None
    has_control: bool = False  # llama.cpp's POST …/chat/completions/control
    counts_prompts: bool = False  # POST /tokenize {"prompt"} → {"count"}
    caches_by_slot: bool = False  # what a run has read is at hand in the slot that it left, once it has left it


def _plain_effort(level: Effort) -> Fields:
    return {"reasoning_effort": level}


def _template_effort(level: Effort) -> Fields:
    # Qwen's and GLM's templates read `enable_thinking`, DeepSeek's and Granite's `thinking`.
    if level == "none":
        return {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}}
    return {"reasoning_effort": level}


def _llama_effort(level: Effort) -> Fields:
    # A budget of 0 closes a thought that the template has opened whatever it was told.
    if level == "none":
        return {"chat_template_kwargs": {"enable_thinking": False}, "reasoning_budget_tokens": 0}
    return {"chat_template_kwargs": {"reasoning_effort": level}}


def _switch(level: Effort) -> Fields | None:
    return {"thinking": {"type": "disabled"}} if level == "none" else None


DRIVERS: dict[Driver, DriverFacts] = {
    # Any server with OpenAI's protocol. "low" is the lowest level that all of OpenAI's reasoning models take.
    "openai": DriverFacts(methods=("re-ask",), effort=_plain_effort, lowest="low"),
    # tools/server/README.md of llama.cpp, and its server itself.
    "llama.cpp": DriverFacts(
        methods=("native", "raw", "prefill", "re-ask"),
        prefill="continue",
        budget=lambda n, message: {"reasoning_budget_tokens": n, "reasoning_budget_message": message},
        effort=_llama_effort,
        writes_prompt="apply-template",
        has_control=True,
        caches_by_slot=True,
    ),
    # docs.vllm.ai: "OpenAI-compatible server" (chat's extra parameters, tokenizer API) and "Reasoning outputs"
    # (thinking_token_budget; the server must be started with --reasoning-config, or refuses the field).
    "vllm": DriverFacts(
        methods=("prefill", "raw", "re-ask"),
        prefill="continue",
        budget=lambda n, _: {"thinking_token_budget": n},
        effort=_template_effort,
        writes_prompt="tokenize",
    ),
    # docs.sglang.io: "Thinking budget" (custom_params, with --enable-strict-thinking or a logit processor, else
    # ignored); its chat protocol: continue_final_message, separate_reasoning; /tokenize takes a prompt only.
    "sglang": DriverFacts(
        methods=("prefill", "raw", "re-ask"),
        prefill="continue-behind",
        budget=lambda n, _: {"custom_params": {"thinking_budget": n}},
        effort=_template_effort,
        counts_prompts=True,
    ),
    # api-docs.deepseek.com: "Chat prefix completion (beta)", and `thinking` of the chat API.
    "deepseek": DriverFacts(
        methods=("prefill", "re-ask"),
        prefill="prefix-reasoning",
        prefill_path="/beta/chat/completions",
        effort=_switch,
    ),
    # docs.mistral.ai: "Prefix" and `reasoning_effort`. The reply repeats the prefix.
    "mistral": DriverFacts(methods=("prefill", "re-ask"), prefill="prefix", effort=_plain_effort),
    # openrouter.ai/docs: `reasoning: {effort | max_tokens}`. Whether a message is continued depends on the model
    # behind it, so `prefill` is tried only where the settings name it.
    "openrouter": DriverFacts(
        methods=("re-ask",),
        prefill="prefix",
        budget=lambda n, _: {"reasoning": {"max_tokens": n}},
        effort=lambda level: {"reasoning": {"effort": level}},
    ),
    # docs.claude.com: "OpenAI SDK compatibility" (thinking goes along, reasoning_effort is ignored) and "Extended
    # thinking" (at least 1,024 tokens). A message cannot be continued while thinking is on.
    "anthropic": DriverFacts(
        methods=("re-ask",),
        budget=lambda n, _: {"thinking": {"type": "enabled", "budget_tokens": max(1024, n)}},
        effort=_switch,
    ),
}


def driver_facts(name: Driver) -> DriverFacts:
    """What the driver of that name knows. Raises ConfigError with the known names."""
    if name in DRIVERS:
        return DRIVERS[name]
    near = difflib.get_close_matches(name[:100], DRIVERS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(f"driver: unknown name {name!r:.100}; {hint}known: {', '.join(DRIVERS)}")


def chosen_by_client(body: Mapping[str, Any]) -> bool:
    """Does the client itself say how much the model may think?"""
    if any(body.get(name) is not None for name in THINKING_FIELDS):
        return True
    return any(
        isinstance(body.get(outer), Mapping) and any(body[outer].get(name) is not None for name in names)
        for outer, names in NESTED_THINKING_FIELDS.items()
    )


def thinking_is_off(body: Mapping[str, Any]) -> bool:
    """Does a request switch thinking off, in any of the servers' ways to say so?"""
    kwargs, thinking, reasoning = (body.get(k) for k in ("chat_template_kwargs", "thinking", "reasoning"))
    budgets = ("reasoning_budget_tokens", "thinking_budget_tokens", "thinking_token_budget")
    return (
        (isinstance(kwargs, Mapping) and (kwargs.get("enable_thinking") is False or kwargs.get("thinking") is False))
        or (isinstance(thinking, Mapping) and thinking.get("type") == "disabled")
        or (isinstance(reasoning, Mapping) and (reasoning.get("effort") == "none" or reasoning.get("enabled") is False))
        or body.get("reasoning_effort") == "none"
        or any(body.get(name) == 0 and not isinstance(body.get(name), bool) for name in budgets)
    )


def merge_fields(body: Mapping[str, Any], fields: Mapping[str, Any]) -> Fields:
    """`body` with `fields` put in; objects in both are joined, and ours win."""
    joined = dict(body)
    for name, value in fields.items():
        before = joined.get(name)
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        joined[name] = {**before, **value} if both and isinstance(before, Mapping) else value
    return joined
