"""What tells one engine's requests from another's: fields, continued messages, budgets. Strict on purpose.

A real engine ignores a field that it has never heard of, and a wrong request then looks like a right
one. These fakes refuse what their engine would silently misread, so that a test fails where a user
would only lose tokens. It knows requests and refuses to know replies and sockets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from suffice.testing.prompt import THINK_OPEN, prompt_text
from suffice.testing.reply import Dialect, FakeRequest

# Fields beyond OpenAI's that some engine here has; a dialect takes its own and refuses the others'.
_TAKES: Mapping[Dialect, frozenset[str]] = {
    "openai": frozenset({"reasoning_effort"}),
    "llama.cpp": frozenset(
        {
            "reasoning_effort",
            "reasoning_control",
            "reasoning_budget_tokens",
            "thinking_budget_tokens",
            "reasoning_budget_message",
            "continue_final_message",
            "add_generation_prompt",
            "chat_template_kwargs",
        }
    ),
    "vllm": frozenset(
        {
            "reasoning_effort",
            "continue_final_message",
            "add_generation_prompt",
            "chat_template_kwargs",
            "thinking_token_budget",
            "add_special_tokens",
        }
    ),
    "sglang": frozenset(
        {
            "reasoning_effort",
            "continue_final_message",
            "separate_reasoning",
            "chat_template_kwargs",
            "custom_params",
        }
    ),
    "deepseek": frozenset({"thinking"}),
    "mistral": frozenset({"reasoning_effort"}),
}
_KNOWN = frozenset().union(*_TAKES.values())
_PREFIXED: tuple[Dialect, ...] = ("deepseek", "mistral")


class NotMyDialect(ValueError):
    """The engine would refuse this request, or read it otherwise than it was meant."""


def check_dialect(dialect: Dialect, request: FakeRequest, *, opens_thought: bool, keeps_budgets: bool) -> None:
    """Refuse what this engine would not take. Raises NotMyDialect."""
    body = request.body
    foreign = sorted((_KNOWN - _TAKES[dialect]) & set(body))
    if foreign and dialect != "openai":  # nobody knows what is behind that one: it ignores them, as most do
        raise NotMyDialect(f"fake upstream: {dialect} has no field {foreign[0]!r}")
    if body.get("continue_final_message") is True and body.get("add_generation_prompt") is True:
        raise NotMyDialect("fake upstream: continue_final_message and add_generation_prompt cannot both be true")
    last = request.messages[-1] if request.messages else None
    last = last if isinstance(last, Mapping) else {}
    if body.get("continue_final_message") is True and last.get("role") != "assistant":
        raise NotMyDialect("fake upstream: continue_final_message needs an assistant's message at the end")
    if dialect == "vllm":
        _check_vllm(request, keeps_budgets=keeps_budgets)
    elif dialect == "sglang":
        _check_sglang(body, last, opens_thought=opens_thought)
    elif not request.is_raw:
        _check_prefixes(dialect, request, last)


def _check_vllm(request: FakeRequest, *, keeps_budgets: bool) -> None:
    body = request.body
    # Its default for add_generation_prompt is true.
    if (body.get("continue_final_message") is True) != (body.get("add_generation_prompt") is False):
        raise NotMyDialect("fake upstream: continue_final_message goes with add_generation_prompt = false")
    if request.is_raw and body.get("add_special_tokens") is not False:
        raise NotMyDialect("fake upstream: the template's text would get a second begin-of-text token")
    if "thinking_token_budget" in body and not keeps_budgets:
        raise NotMyDialect("fake upstream: thinking_token_budget needs a server with a reasoning config")


def _check_sglang(body: Mapping[str, Any], last: Mapping[str, Any], *, opens_thought: bool) -> None:
    if body.get("continue_final_message") is not True:
        return
    if body.get("separate_reasoning") is not False:
        raise NotMyDialect("fake upstream: the reasoning parser would take the answer for a thought")
    # The message goes behind the generation prompt, which may have opened the thought already.
    if prompt_text(last.get("content")).lstrip().startswith(THINK_OPEN) == opens_thought:
        raise NotMyDialect("fake upstream: the thought would be opened twice, or not at all")


def _check_prefixes(dialect: Dialect, request: FakeRequest, last: Mapping[str, Any]) -> None:
    messages = [m for m in request.messages if isinstance(m, Mapping)]
    if any("prefix" in m for m in messages if m is not last) or (
        "prefix" in last and (dialect not in _PREFIXED or last.get("role") != "assistant")
    ):
        raise NotMyDialect("fake upstream: only an assistant's last message can be a prefix")
    if dialect == "mistral" and last.get("role") == "assistant" and last.get("prefix") is not True:
        raise NotMyDialect("fake upstream: the last message is an assistant's and no prefix")
    if dialect != "deepseek":
        return
    if last.get("prefix") is True and not request.target.startswith("/beta/"):
        raise NotMyDialect("fake upstream: a prefix is taken under /beta only")
    if any("reasoning_content" in m for m in messages if m is not last or m.get("prefix") is not True):
        raise NotMyDialect("fake upstream: reasoning_content is taken in a prefix only")


def continues(dialect: Dialect, request: FakeRequest) -> bool:
    """Does the model go on with the last message, if it is an assistant's?"""
    if dialect == "llama.cpp":
        return True
    if dialect in ("vllm", "sglang"):
        return request.body.get("continue_final_message") is True
    last = request.messages[-1] if request.messages else None
    return dialect in _PREFIXED and isinstance(last, Mapping) and last.get("prefix") is True


def budget_of(dialect: Dialect, body: Mapping[str, Any], *, keeps_budgets: bool) -> int | None:
    """The tokens after which this engine closes a thought; None: no limit that it keeps."""
    budgets: list[Any] = []
    if dialect == "llama.cpp":
        budgets = [body.get("reasoning_budget_tokens"), body.get("thinking_budget_tokens")]
    elif dialect == "vllm" and keeps_budgets:
        budgets = [body.get("thinking_token_budget")]
    elif dialect == "sglang" and keeps_budgets:
        params = body.get("custom_params")
        budgets = [params.get("thinking_budget")] if isinstance(params, Mapping) else []
    return next((n for n in budgets if isinstance(n, int) and not isinstance(n, bool) and n >= 0), None)


def is_thinking_off(body: Mapping[str, Any]) -> bool:
    """Is the model told not to think at all?"""
    kwargs, thinking = body.get("chat_template_kwargs"), body.get("thinking")
    return (
        (isinstance(kwargs, Mapping) and kwargs.get("enable_thinking") is False)
        or (isinstance(thinking, Mapping) and thinking.get("type") == "disabled")
        or body.get("reasoning_effort") == "none"
    )
