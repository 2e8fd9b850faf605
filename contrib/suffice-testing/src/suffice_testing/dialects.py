"""The requests that each engine accepts. A fake refuses what its engine would silently misread, so that tests fail."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from suffice_testing.prompt import THINK_OPEN, prompt_text
from suffice_testing.reply import Dialect, FakeRefusal, FakeRequest, Script

# Fields beyond OpenAI's that some engine here has; a dialect accepts its own and refuses the others'.
_CONTINUED = {"reasoning_effort", "continue_final_message", "chat_template_kwargs"}
_BUDGETS = {"reasoning_control", "reasoning_budget_tokens", "thinking_budget_tokens", "reasoning_budget_message"}
_TAKES: Mapping[Dialect, set[str]] = {
    "openai": {"reasoning_effort"},
    "llama.cpp": {*_CONTINUED, *_BUDGETS, "add_generation_prompt"},
    "vllm": {*_CONTINUED, "add_generation_prompt", "thinking_token_budget", "add_special_tokens", "vllm_xargs"},
    "sglang": {*_CONTINUED, "separate_reasoning", "custom_params"},
    "deepseek": {"thinking"},
    "mistral": {"reasoning_effort"},
}
_KNOWN = set().union(*_TAKES.values())
_PREFIXED: tuple[Dialect, ...] = ("deepseek", "mistral")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerBehaviour:
    """How a fake model server behaves, independent of its model. It refuses what its engine would misread."""

    dialect: Dialect = "llama.cpp"
    keeps_budgets: bool = True  # vLLM and SGLang are configured to keep thought budgets
    has_control: bool = False  # vLLM runs with suffice-vllm, whose endpoint ends a thought
    scripts: Mapping[str, Script] = field(default_factory=dict)  # by model name: streams that are played instead
    paths: Mapping[str, Script] = field(default_factory=dict)  # by "METHOD /path" without /v1: endpoints of other APIs
    line_margins: tuple[float, ...] = ()  # … and reports these at the ends of the thought's lines
    slots: int | None = None  # completions generated at once, others wait; None: no limit
    opens_thought: bool = True  # the chat template writes the opening tag of the thought
    numbers_events: bool = False  # llama.cpp's stream of Responses is whole and numbered, as other engines write it
    prefill_echo: bool = False  # the reply to a continued assistant message begins with that message's text
    prefix_cache: bool = False  # prompts that begin like an earlier one report cached tokens
    ignores: tuple[str, ...] = ()  # request fields that are accepted without effect
    cancels: bool = True  # False: a client that hangs up does not end the generation
    models: tuple[str, ...] = ("fake",)  # listed under /models
    owner: str = "fake"  # as whose its models are listed; engines write their own name
    api_key: str | None = None  # required of requests; None: open to all
    idle_close_s: float | None = None  # idle connections are closed after so long; None: never
    port: int = 0  # 0: a free one


class NotMyDialect(FakeRefusal):
    code = "not_my_dialect"


def check_dialect(server: ServerBehaviour, request: FakeRequest) -> None:
    """Raise NotMyDialect for a request that this engine would not accept."""
    body, dialect = request.body, server.dialect
    foreign = sorted((_KNOWN - _TAKES[dialect]) & set(body))
    if foreign and dialect != "openai":  # the engine behind it is unknown, so it ignores them, as most do
        raise NotMyDialect(f"{dialect} has no field {foreign[0]!r}")
    if body.get("continue_final_message") is True and body.get("add_generation_prompt") is True:
        raise NotMyDialect("continue_final_message and add_generation_prompt cannot both be true")
    last = _last_message(request)
    if body.get("continue_final_message") is True and last.get("role") != "assistant":
        raise NotMyDialect("continue_final_message needs an assistant's message at the end")
    if dialect == "vllm":
        _check_vllm(request, keeps_budgets=server.keeps_budgets)
    elif dialect == "sglang":
        _check_sglang(body, last, opens_thought=server.opens_thought)
    elif not request.is_raw:
        _check_prefixes(dialect, request, last)


def _last_message(request: FakeRequest) -> Mapping[str, Any]:
    last = request.messages[-1] if request.messages else None
    return last if isinstance(last, Mapping) else {}


def _check_vllm(request: FakeRequest, *, keeps_budgets: bool) -> None:
    body = request.body
    # vLLM's default for add_generation_prompt is true.
    if (body.get("continue_final_message") is True) != (body.get("add_generation_prompt") is False):
        raise NotMyDialect("continue_final_message goes with add_generation_prompt = false")
    if request.is_raw and body.get("add_special_tokens") is not False:
        raise NotMyDialect("the template's text would get a second begin-of-text token")
    if "thinking_token_budget" in body and not keeps_budgets:
        raise NotMyDialect("thinking_token_budget needs a server with a reasoning config")


def _check_sglang(body: Mapping[str, Any], last: Mapping[str, Any], *, opens_thought: bool) -> None:
    if body.get("continue_final_message") is not True:
        return
    if body.get("separate_reasoning") is not False:
        raise NotMyDialect("the reasoning parser would take the answer for a thought")
    # The message follows the generation prompt, which may have opened the thought already.
    if prompt_text(last.get("content")).lstrip().startswith(THINK_OPEN) == opens_thought:
        raise NotMyDialect("the thought would be opened twice, or not at all")


def _check_prefixes(dialect: Dialect, request: FakeRequest, last: Mapping[str, Any]) -> None:
    messages = [m for m in request.messages if isinstance(m, Mapping)]
    if any("prefix" in m for m in messages if m is not last) or (
        "prefix" in last and (dialect not in _PREFIXED or last.get("role") != "assistant")
    ):
        raise NotMyDialect("only an assistant's last message can be a prefix")
    if dialect == "mistral" and last.get("role") == "assistant" and last.get("prefix") is not True:
        raise NotMyDialect("the last message is an assistant's and no prefix")
    if dialect != "deepseek":
        return
    if last.get("prefix") is True and not request.target.startswith("/beta/"):
        raise NotMyDialect("a prefix is taken under /beta only")
    if any("reasoning_content" in m for m in messages if m is not last or m.get("prefix") is not True):
        raise NotMyDialect("reasoning_content is taken in a prefix only")


def continues(server: ServerBehaviour, request: FakeRequest) -> bool:
    if "continue_final_message" in server.ignores:
        return False
    if server.dialect == "llama.cpp":
        return True
    if server.dialect in ("vllm", "sglang"):
        return request.body.get("continue_final_message") is True
    return server.dialect in _PREFIXED and _last_message(request).get("prefix") is True


def budget_of(server: ServerBehaviour, body: Mapping[str, Any]) -> int | None:
    """Return the tokens after which this engine closes a thought; None if it keeps no limit."""
    budgets: list[Any] = []
    if server.dialect == "llama.cpp":
        budgets = [body.get("reasoning_budget_tokens"), body.get("thinking_budget_tokens")]
    elif server.dialect == "vllm" and server.keeps_budgets:
        budgets = [body.get("thinking_token_budget")]
    elif server.dialect == "sglang" and server.keeps_budgets:
        params = body.get("custom_params")
        budgets = [params.get("thinking_budget")] if isinstance(params, Mapping) else []
    return next((n for n in budgets if isinstance(n, int) and not isinstance(n, bool) and n >= 0), None)


def is_thinking_off(body: Mapping[str, Any]) -> bool:
    kwargs, thinking = body.get("chat_template_kwargs"), body.get("thinking")
    return (
        (isinstance(kwargs, Mapping) and kwargs.get("enable_thinking") is False)
        or (isinstance(thinking, Mapping) and thinking.get("type") == "disabled")
        or body.get("reasoning_effort") == "none"
    )
