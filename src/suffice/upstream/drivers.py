"""What each kind of model server can do about a thought, and the request fields for it.

The facts of llama.cpp, vLLM 0.32 and SGLang 0.5 were tested against their servers; all others come from the projects'
documentation or sources. A capability that `suffice doctor` has not confirmed for a server is not used.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from typing import Any, Final, Literal

import msgspec

from suffice.errors import ConfigError, name_hint
from suffice.settings import CancelSaves, Driver, Effort, FinishMethod, ModelFacts, Probe, Route, Upstream
from suffice.types import Findings, ReplyForm, Verdict

Fields = dict[str, Any]
Prefill = Literal[
    "continue",  # continue_final_message and add_generation_prompt
    "continue-reasoning",  # the same, with the thought in `reasoning_content` and no content
    "continue-behind",  # continue_final_message; the text follows the generation prompt
    "prefix",  # `prefix: true` on the last message
    "prefix-reasoning",  # the same, with the thought in `reasoning_content`
]
CHAT_PATH = "/v1/chat/completions"
CONTROL_PATH = f"{CHAT_PATH}/control"
# Fields by which a client itself limits thinking. If one is present, ours are not added.
_BUDGET_FIELDS = ("reasoning_budget_tokens", "thinking_budget_tokens", "thinking_token_budget")
THINKING_FIELDS = (
    *("reasoning_effort", "reasoning", "thinking", "reasoning_budget", "thinking_budget", "enable_thinking"),
    *("prompt_mode", "output_config", *_BUDGET_FIELDS),
)
NESTED_THINKING_FIELDS: Mapping[str, tuple[str, ...]] = {
    "chat_template_kwargs": ("enable_thinking", "thinking", "thinking_budget", "reasoning_effort"),
    "custom_params": ("thinking_budget",),
    "nvext": ("max_thinking_tokens",),
    "extra_body": ("google",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverFacts:
    methods: tuple[FinishMethod, ...]  # ways to close a thought, best first, if the settings name none
    prefill: Prefill | None = None  # how it continues an assistant's message; None: it cannot
    formed_prefill: Prefill | None = None  # for a reply with tools or a schema; None: as `prefill`
    prefill_drops_schema: bool = False  # unless doctor has seen that it keeps one
    prefill_path: str = CHAT_PATH
    budget: Callable[[int, str], Fields] | None = None
    effort: Callable[[Effort], Fields | None]
    lowest: Effort = "none"  # the lowest level that all its models accept
    writes_prompt: Literal["apply-template", "tokenize"] | None = None  # endpoint that renders the chat template
    # Fields of a run whose thought may be ended by POST CONTROL_PATH, from the run's name, the text to write before the
    # closing tag, and the tag. None: there is no such endpoint.
    control: Callable[[str, str, str], Fields] | None = None
    # Fields of a run whose signals the same endpoint reports, from the run's name and the tag. None: it reports none.
    line_signals: Callable[[str, str], Fields] | None = None
    controls_by_run: bool = False  # the endpoint takes that name; else the completion's id
    counts_prompts: bool = False  # POST /tokenize {"prompt"} → {"count"}
    detokenized: str = "prompt"  # field of the text in the answer of /detokenize
    counts_chunks: bool = False  # `stream_options.continuous_usage_stats`: exact counts in every chunk
    caches_by_slot: bool = False  # a run's cached prefix stays in its slot after the run has left it
    cancel_saves: CancelSaves = "unknown"  # whether a call that is cancelled is generated and billed no further


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
        formed_prefill="continue-reasoning",  # it refuses a schema behind tags in the content
        budget=lambda n, message: {"reasoning_budget_tokens": n, "reasoning_budget_message": message},
        effort=_llama_effort,
        writes_prompt="apply-template",
        control=lambda _, closing, __: {"reasoning_control": True, "reasoning_budget_message": closing},
        caches_by_slot=True,
        cancel_saves="yes",
    ),
    # docs.vllm.ai: "OpenAI-compatible server" (chat's extra parameters, tokenizer API) and "Reasoning outputs"
    # (thinking_token_budget; the server must be started with --reasoning-config, or refuses the field).
    "vllm": DriverFacts(
        methods=("prefill", "raw", "re-ask"),
        prefill="continue",
        budget=lambda n, _: {"thinking_token_budget": n},
        effort=_template_effort,
        writes_prompt="tokenize",
        cancel_saves="yes",
        # Read by contrib/suffice-vllm in the engine; without it the fields mean nothing to vLLM.
        control=lambda run, closing, tag: {
            "vllm_xargs": {"suffice_run": run, "suffice_text": closing + tag, "suffice_tag": tag}
        },
        line_signals=lambda run, tag: {"vllm_xargs": {"suffice_run": run, "suffice_tag": tag, "suffice_signals": 1}},
        controls_by_run=True,
        counts_chunks=True,
    ),
    # docs.sglang.io: "Thinking budget" (custom_params, with --enable-strict-thinking or a logit processor, else
    # ignored); its chat protocol: continue_final_message, separate_reasoning. 0.5.23 gave plain text behind a prefill.
    "sglang": DriverFacts(
        methods=("prefill", "raw", "re-ask"),
        prefill="continue-behind",
        prefill_drops_schema=True,
        budget=lambda n, _: {"custom_params": {"thinking_budget": n}},
        effort=_template_effort,
        writes_prompt="tokenize",
        counts_prompts=True,
        cancel_saves="yes",
        detokenized="text",
        counts_chunks=True,
    ),
    # Whether hosted services bill what follows a cancelled stream: openrouter.ai/docs, "Stream cancellation".
    # api-docs.deepseek.com: "Chat prefix completion (beta)", and `thinking` of the chat API.
    "deepseek": DriverFacts(
        methods=("prefill", "re-ask"),
        prefill="prefix-reasoning",
        prefill_path="/beta/chat/completions",
        effort=_switch,
        cancel_saves="yes",
    ),
    # docs.mistral.ai: "Prefix" and `reasoning_effort`. The reply repeats the prefix.
    "mistral": DriverFacts(methods=("prefill", "re-ask"), prefill="prefix", effort=_plain_effort, cancel_saves="no"),
    # ai.google.dev: "OpenAI compatibility". Gemini 3 takes a level in place of the budget, see data/models.toml.
    "gemini": DriverFacts(
        methods=("re-ask",),
        budget=lambda n, _: {"extra_body": {"google": {"thinking_config": {"thinking_budget": n}}}},
        effort=_plain_effort,
        lowest="low",
        cancel_saves="no",
    ),
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
        cancel_saves="yes",
    ),
}


def driver_facts(name: Driver) -> DriverFacts:
    """Return the facts of a driver. Raise ConfigError with the known names."""
    if name in DRIVERS:
        return DRIVERS[name]
    raise ConfigError(f"driver: unknown name {name!r:.100}; {name_hint(name, DRIVERS)}")


# ---- the efforts that each model of a hosted API accepts: data/models.toml, and the tables of the settings

# How a router writes whose model it is: "anthropic/claude-opus-5".
_VENDORS: Final[Mapping[str, Driver]] = {
    "openai": "openai",
    "anthropic": "anthropic",
    "google": "gemini",
    "deepseek": "deepseek",
    "mistralai": "mistral",
}


@cache
def packaged_models() -> Mapping[Driver, Mapping[str, ModelFacts]]:
    text = files("suffice").joinpath("data", "models.toml").read_text(encoding="utf-8")
    return msgspec.convert(tomllib.loads(text), dict[str, dict[str, ModelFacts]])


def model_facts(upstream: Upstream, model: str) -> ModelFacts | None:
    """Return what is written about a model, the settings first; None: nothing is."""
    stated = _first_match(upstream.models, model)
    if stated is not None:
        return stated
    vendor, _, name = model.rpartition("/")
    routed = _VENDORS.get(vendor)
    if routed is None:
        return _first_match(packaged_models().get(upstream.driver, {}), name)
    own = _first_match(packaged_models()[routed], name)
    # A router has fields of its own, and translates them.
    return None if own is None else ModelFacts(efforts=own.efforts, takes_budget=own.takes_budget)


def _first_match(tables: Mapping[str, ModelFacts], model: str) -> ModelFacts | None:
    return next((facts for pattern, facts in tables.items() if model and fnmatchcase(model, pattern)), None)


def effort_refusal(facts: ModelFacts | None, model: str, level: Effort) -> str | None:
    """Why the model takes no such level; None: it does, or nothing is known of it."""
    if facts is None or level in facts.efforts:
        return None
    return f"effort: {model} does not take {level!r}; it takes {', '.join(facts.efforts) or 'none at all'}"


def filled(template: Mapping[str, Any], level: Effort) -> dict[str, Any]:
    """Return a copy of a template of fields in which "{effort}" is replaced by the level."""
    return {
        key: filled(value, level) if isinstance(value, Mapping) else level if value == "{effort}" else value
        for key, value in template.items()
    }


# ---- the fields that set how long a model may think


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
    effort: Effort | None = None  # the level that is among the fields
    model: str = ""  # that is called
    refusal: str | None = None  # why a level is not among them

    @property
    def name(self) -> str:
        """What is requested of which model, to remember whether an upstream accepts it; "": nothing."""
        names = ",".join(sorted(self.fields))
        return f"{names}={self.effort} {self.model}" if self.effort is not None else names

    @property
    def arm(self) -> str:
        """The effort or budget as outcomes name it; "" if neither is requested."""
        if self.effort is not None:
            return f"effort={self.effort}"
        return "" if self.budget_tokens is None else f"budget_tokens={self.budget_tokens}"

    @property
    def site(self) -> str:
        if self.effort is not None:
            return "effort"
        return "budget" if self.budget_tokens is not None else "logprobs" if "logprobs" in self.fields else "native"

    def with_fields(self, fields: Mapping[str, Any]) -> ReasoningFields:
        return replace(self, fields=merge_fields(self.fields, fields)) if fields else self


NO_FIELDS = ReasoningFields(fields={})


def choose_reasoning_fields(
    route: Route,
    upstream: Upstream,
    body: Mapping[str, Any],
    *,
    methods: tuple[FinishMethod, ...],
    policy_budget_tokens: int | None,
    run: str = "",
) -> ReasoningFields:
    """Return the fields that set how long the model may think; `native` first also enables the control endpoint.

    run     name of the run, for the control endpoint
    policy_budget_tokens  the budget of a policy that is only a budget, left to an engine that can keep one
    """
    facts, closing = DRIVERS[upstream.driver], (route.probe or Probe()).closing
    model = str(route.model or body.get("model") or "")
    known = model_facts(upstream, model)
    fields: dict[str, Any] = {}
    native = methods[:1] == ("native",)
    if native and facts.control is not None:
        fields |= facts.control(run, closing, upstream.think_close)
    if chosen_by_client(body):
        return ReasoningFields(fields=fields)
    budgets = [n for n in (route.budget_tokens, policy_budget_tokens if native else None) if n is not None]
    budget = min(budgets, default=None)
    limit = None if budget is None else budget_fields(facts, known, budget, closing)
    if limit is not None:
        return ReasoningFields(fields=fields | limit, budget_tokens=budget, model=model)
    level = next(iter(route.efforts), None)
    if level is None:
        return ReasoningFields(fields=fields)
    refusal = effort_refusal(known, model, level)
    effort = effort_fields(facts, known, level) if refusal is None else None
    if effort is None:
        return ReasoningFields(fields=fields, refusal=refusal or _no_field(upstream, level))
    return ReasoningFields(fields=fields | effort, effort=level, model=model)


def effort_fields(facts: DriverFacts, known: ModelFacts | None, level: Effort) -> Fields | None:
    """Return the request fields for a level that the model takes; None: the driver has none."""
    template: Fields = {} if known is None else known.off if level == "none" and known.off else known.fields
    return filled(template, level) or facts.effort(level)


def least_effort_fields(upstream: Upstream, model: str) -> Fields:
    """Return the request fields for the lowest level that the model takes; {}: it takes none."""
    facts, known = DRIVERS[upstream.driver], model_facts(upstream, model)
    if known is None or upstream.lowest_effort is not None:
        return facts.effort(upstream.lowest_effort or facts.lowest) or {}
    return (effort_fields(facts, known, known.efforts[0]) or {}) if known.efforts else {}


def budget_fields(facts: DriverFacts, known: ModelFacts | None, n_tokens: int, closing: str) -> Fields | None:
    if facts.budget is None or (known is not None and not known.takes_budget):
        return None
    return facts.budget(n_tokens, closing)


def cancel_saves(upstream: Upstream, findings: Findings | None) -> CancelSaves:
    """Whether a cancelled call is generated and billed no further: the owner's word, `doctor`'s, then the driver's."""
    if upstream.cancel_saves is not None:
        return upstream.cancel_saves
    verdict, stated = find_verdict(findings, "cancel"), DRIVERS[upstream.driver].cancel_saves
    return "no" if verdict in ("no", "ignored") else "yes" if verdict == "yes" and stated == "unknown" else stated


def effort_problem(route: Route, upstream: Upstream) -> str | None:
    """Return why the upstream cannot accept the route's effort or budget; None if it can."""
    facts, model = DRIVERS[upstream.driver], route.model or ""
    known = model_facts(upstream, model)
    if route.budget_tokens is not None and budget_fields(facts, known, route.budget_tokens, "\n") is None:
        whose = f"driver {upstream.driver!r} has no field for" if known is None else f"{model} does not take"
        return f"budget_tokens: {whose} a reasoning budget"
    if known is not None:
        return next((why for level in route.efforts if (why := effort_refusal(known, model, level))), None)
    tables = [*upstream.models.values(), *packaged_models().get(upstream.driver, {}).values()]
    of_some_model = set() if model else {level for one in tables for level in one.efforts}
    unknown = (one for one in route.efforts if one not in of_some_model and facts.effort(one) is None)
    return next((_no_field(upstream, level) for level in unknown), None)


def _no_field(upstream: Upstream, level: Effort) -> str:
    return f"effort: driver {upstream.driver!r} has no field for {level!r}; allowed: none"


CONTINUES = ("prefill", "raw")
FORMED_METHODS: tuple[FinishMethod, ...] = ("native", "prefill")  # after which a server may lose a call or a schema


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


# ---- what form of reply a request asks for, and the ways to give it

# Fields that constrain the answer and leave the thought free: OpenAI's, llama.cpp's, vLLM's and SGLang's. llama.cpp's
# `grammar` is not among them, because it constrains the thought too (seen on its server).
CONSTRAINTS = (
    *("response_format", "json_schema", "structured_outputs", "regex", "ebnf"),
    *("guided_json", "guided_regex", "guided_choice", "guided_grammar"),
)
# What a continuation needs of them, so that it can give the same kind of reply.
CARRIED = ("tools", "tool_choice", "parallel_tool_calls", *CONSTRAINTS)
STOPS = ("stop_token_ids", "stop_regex", "include_stop_str_in_output", "no_stop_trim")  # beside `stop`
CLIENT_TOOLS = (None, "function", "custom")  # types of tools that the client runs; a server runs the others


def has_field(body: Mapping[str, Any], name: str) -> bool:
    return body.get(name) not in (None, False, [], {}, "")


def reply_form(body: Mapping[str, Any]) -> ReplyForm:
    if has_field(body, "tools"):
        return "tools"
    given = [name for name in CONSTRAINTS if name in body and has_field(body, name)]
    if given == ["response_format"] and body["response_format"] == {"type": "text"}:
        return "text"
    return "json" if given else "text"


def requires_call(body: Mapping[str, Any]) -> bool:
    return body.get("tool_choice") not in (None, "auto", "none")


def are_clients(tools: object) -> bool:
    """Return whether the client runs all of these tools, so that a call ends the reply."""
    listed = tools if isinstance(tools, list) else []
    return all(isinstance(tool, Mapping) and tool.get("type") in CLIENT_TOOLS for tool in listed)


def stop_words(body: Mapping[str, Any]) -> tuple[str, ...]:
    stop = body.get("stop")
    words = [stop] if isinstance(stop, str) else stop if isinstance(stop, list) else []
    return tuple(word for word in words if isinstance(word, str) and word)


def continuing_methods(
    upstream: Upstream, body: Mapping[str, Any], findings: Findings | None = None
) -> tuple[FinishMethod, ...]:
    """Return the ways to answer this request after a thought, best first, that keep the form that it asks for."""
    ways, left_out = upstream.finish or DRIVERS[upstream.driver].methods, set[FinishMethod]()
    if (form := reply_form(body)) != "text":
        left_out.add("raw")  # plain completions parse no calls, and their schema fields differ by engine
        left_out |= losing_methods(upstream.driver, findings, form, must_call=requires_call(body))
    if any(has_field(body, name) for name in ("stop", *STOPS)):
        left_out.add("re-ask")  # the words would end a thought of its own
    return tuple(way for way in ways if way not in left_out) if left_out else ways


def losing_methods(
    driver: Driver, findings: Findings | None, form: ReplyForm, *, must_call: bool = False
) -> set[FinishMethod]:
    """Return the ways after which the server drops this form of reply, as doctor saw or as is known of its kind.

    must_call  the request requires a call, which a server constrains as it does JSON under a schema
    """
    is_constrained = form == "json" or must_call
    lost: set[FinishMethod] = {"prefill"} if is_constrained and DRIVERS[driver].prefill_drops_schema else set()
    for way in FORMED_METHODS:
        if (verdict := find_verdict(findings, f"{form}_{way}")) in ("no", "ignored"):
            lost.add(way)
        elif verdict == "yes":
            lost.discard(way)
    return lost


def finish_methods(
    upstream: Upstream, body: Mapping[str, Any], findings: Findings | None = None
) -> tuple[FinishMethod, ...]:
    """Return the ways to deliver such an answer; log-probabilities stay exact only inside one stream."""
    ways = continuing_methods(upstream, body, findings)
    return tuple(way for way in ways if way == "native") if has_field(body, "logprobs") else ways
