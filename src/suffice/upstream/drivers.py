"""What each kind of model server can do about a thought, and the request fields for it.

llama.cpp's facts were tested against its server; all others come from the projects' documentation or sources. A
capability that `suffice doctor` has not confirmed for a server is not used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from suffice.errors import ConfigError, name_hint
from suffice.settings import Driver, Effort, FinishMethod, Probe, Route, Upstream
from suffice.types import Findings, Verdict

Fields = dict[str, Any]
Prefill = Literal[
    "continue",  # continue_final_message and add_generation_prompt
    "continue-behind",  # continue_final_message; the text follows the generation prompt
    "prefix",  # `prefix: true` on the last message
    "prefix-reasoning",  # the same, with the thought in `reasoning_content`
]
CHAT_PATH = "/v1/chat/completions"
# Fields by which a client itself limits thinking. If one is present, ours are not added.
_BUDGET_FIELDS = ("reasoning_budget_tokens", "thinking_budget_tokens", "thinking_token_budget")
THINKING_FIELDS = (
    *("reasoning_effort", "reasoning", "thinking", "reasoning_budget", "thinking_budget", "enable_thinking"),
    *("prompt_mode", *_BUDGET_FIELDS),
)
NESTED_THINKING_FIELDS: Mapping[str, tuple[str, ...]] = {
    "chat_template_kwargs": ("enable_thinking", "thinking", "thinking_budget", "reasoning_effort"),
    "custom_params": ("thinking_budget",),
    "nvext": ("max_thinking_tokens",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverFacts:
    methods: tuple[FinishMethod, ...]  # ways to close a thought, best first, if the settings name none
    prefill: Prefill | None = None  # how it continues an assistant's message; None: it cannot
    prefill_path: str = CHAT_PATH
    budget: Callable[[int, str], Fields] | None = None
    effort: Callable[[Effort], Fields | None]
    lowest: Effort = "none"  # the lowest level that all its models accept
    writes_prompt: Literal["apply-template", "tokenize"] | None = None  # endpoint that renders the chat template
    has_control: bool = False  # llama.cpp's POST …/chat/completions/control
    counts_prompts: bool = False  # POST /tokenize {"prompt"} → {"count"}
    caches_by_slot: bool = False  # a run's cached prefix stays in its slot after the run has left it


def _plain_effort(level: Effort) -> Fields:
    return {"reasoning_effort": level}


def _template_effort(level: Effort) -> Fields:
    # Qwen's and GLM's templates read `enable_thinking`, DeepSeek's and Granite's `thinking`.
    if level == "none":
        return {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}}
    return {"reasoning_effort": level}


def _llama_effort(level: Effort) -> Fields:
    # A budget of 0 closes a thought that the template opened regardless of its arguments.
    if level == "none":
        return {"chat_template_kwargs": {"enable_thinking": False}, "reasoning_budget_tokens": 0}
    return {"chat_template_kwargs": {"reasoning_effort": level}}


def _switch(level: Effort) -> Fields | None:
    return {"thinking": {"type": "disabled"}} if level == "none" else None


DRIVERS: dict[Driver, DriverFacts] = {
    # Any server with OpenAI's protocol. "low" is the lowest level that all of OpenAI's reasoning models accept.
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
        methods=("prefill", "re-ask"), prefill="prefix-reasoning", prefill_path="/beta/chat/completions", effort=_switch
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
    """Return the facts of a driver. Raise ConfigError with the known names."""
    if name in DRIVERS:
        return DRIVERS[name]
    raise ConfigError(f"driver: unknown name {name!r:.100}; {name_hint(name, DRIVERS)}")


def chosen_by_client(body: Mapping[str, Any]) -> bool:
    if any(body.get(name) is not None for name in THINKING_FIELDS):
        return True
    return any(
        isinstance(body.get(outer), Mapping) and any(body[outer].get(name) is not None for name in names)
        for outer, names in NESTED_THINKING_FIELDS.items()
    )


def thinking_is_off(body: Mapping[str, Any]) -> bool:
    tables = (body.get(name) for name in ("chat_template_kwargs", "thinking", "reasoning"))
    kwargs, thinking, reasoning = (table if isinstance(table, Mapping) else {} for table in tables)
    return (
        any(flag is False for flag in (kwargs.get("enable_thinking"), kwargs.get("thinking"), reasoning.get("enabled")))
        or thinking.get("type") == "disabled"
        or "none" in (reasoning.get("effort"), body.get("reasoning_effort"))
        or any(body.get(name) == 0 and not isinstance(body.get(name), bool) for name in _BUDGET_FIELDS)
    )


def merge_fields(body: Mapping[str, Any], fields: Mapping[str, Any]) -> Fields:
    """Return `body` with `fields` added; objects in both are merged, and `fields` takes precedence."""
    joined = {**body, **fields}
    for name, value in fields.items():
        before = body.get(name)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            joined[name] = {**before, **value}
    return joined


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningFields:
    fields: Mapping[str, Any]
    budget_tokens: int | None = None  # of thought, which the engine was instructed to keep
    has_effort: bool = False  # an effort level is among the fields

    @property
    def name(self) -> str:
        """The names of the fields, to remember whether an upstream accepts them; "": none."""
        return ",".join(sorted(self.fields))

    def arm(self, route: Route) -> str:
        """Return the effort or budget as outcomes name it; "" if neither is requested."""
        if self.has_effort:
            return f"effort={route.effort}"
        return "" if self.budget_tokens is None else f"budget_tokens={self.budget_tokens}"

    @property
    def site(self) -> str:
        return "effort" if self.has_effort else "budget" if self.budget_tokens is not None else self._other_site

    @property
    def _other_site(self) -> str:
        return "logprobs" if "logprobs" in self.fields else "native"

    def with_logprobs(self, n_listed: int) -> ReasoningFields:
        """Ask for each token's log-probability and that of the `n_listed` best ones."""
        return replace(self, fields={**self.fields, "logprobs": True, "top_logprobs": n_listed})


NO_FIELDS = ReasoningFields(fields={})


def choose_reasoning_fields(
    route: Route,
    upstream: Upstream,
    body: Mapping[str, Any],
    *,
    methods: tuple[FinishMethod, ...],
    policy_budget_tokens: int | None,
) -> ReasoningFields:
    """Return the fields that set how long the model may think; `native` first also enables the control endpoint.

    policy_budget_tokens  the budget of a policy that is only a budget, left to an engine that can keep one
    """
    facts, closing = DRIVERS[upstream.driver], (route.probe or Probe()).closing
    fields: dict[str, Any] = {}
    native = methods[:1] == ("native",)
    if native and facts.has_control:
        fields |= {"reasoning_control": True, "reasoning_budget_message": closing}
    if chosen_by_client(body):
        return ReasoningFields(fields=fields)
    budgets = [n for n in (route.budget_tokens, policy_budget_tokens if native else None) if n is not None]
    budget = min(budgets, default=None) if facts.budget is not None else None
    if budget is not None and facts.budget is not None:
        fields |= facts.budget(budget, closing)
    effort = facts.effort(route.effort) if route.effort is not None and budget is None else None
    return ReasoningFields(fields=fields | (effort or {}), budget_tokens=budget, has_effort=effort is not None)


def effort_problem(route: Route, upstream: Upstream) -> str | None:
    """Return why the upstream cannot accept the route's effort or budget; None if it can."""
    facts = DRIVERS[upstream.driver]
    if route.budget_tokens is not None and facts.budget is None:
        return f"budget_tokens: driver {upstream.driver!r} has no field for a reasoning budget"
    if route.effort is not None and facts.effort(route.effort) is None:
        return f"effort: driver {upstream.driver!r} has no field for {route.effort!r}; allowed: none"
    return None


CONTINUES = ("prefill", "raw")


def url_key(url: str) -> str:
    """Return a short hash of a server's address, with or without /v1. It reveals no credentials."""
    base = url.rstrip("/").removesuffix("/v1").rstrip("/")
    return hashlib.blake2b(base.encode(), digest_size=8).hexdigest()


def find_verdict(findings: Findings | None, experiment: str) -> Verdict | None:
    known = () if findings is None else findings.findings
    return next((one.verdict for one in known if one.experiment == experiment), None)


def honoured(findings: Findings | None, experiment: str) -> bool:
    return find_verdict(findings, experiment) == "yes"


def allows_probes(findings: Findings | None) -> bool:
    """Return whether doctor saw the server continue a text and cache prefixes; else a probe is useless or costly."""
    return any(honoured(findings, way) for way in CONTINUES) and honoured(findings, "prefix_cache")
