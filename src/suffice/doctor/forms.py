"""Whether an answer after a thought that was ended is of the form that the request asks for: a tool's call, or JSON.

An engine may constrain an answer only where its own parser saw the thought end, as in vLLM's issue 44012 and
ollama-python's 523.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, TypeAlias

from suffice.doctor.session import CHAT, Result, ServerSession, StreamTranscript
from suffice.settings import FinishMethod, Probe
from suffice.upstream.continuation import build_continuation
from suffice.upstream.drivers import CONTROL_PATH, DRIVERS, FORMED_METHODS
from suffice.upstream.wire import within

Form: TypeAlias = Literal["json", "tools"]

CONTROL_AFTER = 6  # pieces of thought before the request to end it
SLACK = 12  # pieces that may still be in flight, a closing message included
FRUIT = "kiwi"  # the only one that the schema allows; a model that is free names another
ASK = "Name one fruit as JSON with the key fruit, and write nothing else."
LONG_ASK = f"Think step by step about five fruits and how they taste. Then: {ASK}"  # enough thought to be ended
THOUGHT = "They want one fruit as JSON."
CAP = 48  # tokens of the answer
LONG_CAP = 192  # … and of a thought before it
_ONE_FRUIT = {
    "type": "object",
    "properties": {"fruit": {"type": "string", "enum": [FRUIT]}},
    "required": ["fruit"],
    "additionalProperties": False,
}
_TOOL = {"name": "name_fruit", "description": "Takes the fruit.", "parameters": _ONE_FRUIT}
_SCHEMA = {"name": "fruit", "strict": True, "schema": _ONE_FRUIT}
FIELDS: Mapping[Form, Mapping[str, Any]] = {
    "json": {"response_format": {"type": "json_schema", "json_schema": _SCHEMA}},
    "tools": {"tools": [{"type": "function", "function": _TOOL}], "tool_choice": "required"},
}
WORDS: Mapping[Form, str] = {"json": "JSON under a schema", "tools": "a tool's call that `tool_choice` requires"}


async def end_thought(session: ServerSession, body: Mapping[str, Any]) -> tuple[StreamTranscript, int, int, bool]:
    """Run a request, end its thought by the control endpoint, and read on to the answer's end. Raise UpstreamError.

    Return what came; the pieces of thought before the request to end it, 0 if the thought was over before; the status
    of the answer to that request; and whether it reports success.
    """
    seen = StreamTranscript()
    ended_at = 0
    status = 0
    success = False
    facts = DRIVERS[session.settings.driver]
    name = f"doctor-{secrets.token_hex(8)}"
    tag = session.settings.think_close
    control = facts.control or DRIVERS["llama.cpp"].control
    assert control is not None
    async with session.open(CHAT, {**body, "stream": True, **control(name, "\n", tag)}) as call:
        async for _ in session.pieces(call, seen):
            if seen.n_thought_pieces >= CONTROL_AFTER and not ended_at:
                ended_at = seen.n_thought_pieces
                name = name if facts.controls_by_run else seen.completion_id
                answer = await session.whole({"id": name, "action": "reasoning_end"}, CONTROL_PATH)
                status, success = answer.status, within(answer.body, "success") is True
                if not success:
                    break
            if ended_at and seen.n_thought_pieces > ended_at + 3 * SLACK:
                break
    return seen, ended_at, status, success


async def keeps_form(form: Form, method: FinishMethod, session: ServerSession) -> Result:
    if method == "native":
        body = session.body(LONG_ASK, LONG_CAP, **FIELDS[form])
        seen, ended_at, status, success = await end_thought(session, body)
        if not success:
            why = f"{CONTROL_PATH} answered {status}" if ended_at else f"{seen.n_thought_pieces} pieces of it"
            return Result("unclear", f"no thought was ended: {why}")
    else:
        body = session.body(ASK, CAP, **FIELDS[form])
        made = build_continuation("prefill", body, THOUGHT, upstream=session.continuing, probe=Probe(), max_tokens=CAP)
        refusal = f"a continuation with {', '.join(FIELDS[form])} answered"
        seen = await session.stream(made.body, made.path, refusal=refusal)
    if (kept := _is_of(form, seen)) is not False:
        came = quoted(seen.content) if seen.content.strip() else f"{seen.n_tool_pieces} pieces of a call"
        return Result("yes", f"after the thought came {came}") if kept else Result("unclear", "no answer came")
    whole = await session.stream({**body, session.cap_field: LONG_CAP})
    came = f"after the thought came {quoted(seen.content)}"
    if not _is_of(form, whole):
        return Result("unclear", f"{came}; without a stop it gave no {form} either")
    return Result("ignored", f"{came}; without a stop it keeps {', '.join(FIELDS[form])}")


def _is_of(form: Form, seen: StreamTranscript) -> bool | None:
    """Return whether an answer has the form; None: there is none, or it was cut."""
    text = seen.content.strip()
    if form == "tools":  # nothing comes before a call that is required
        return bool(seen.n_tool_pieces) and not text if text or seen.n_tool_pieces else None
    if text.startswith("{") and FRUIT not in text and seen.finish_reason == "length":
        return None
    return text.startswith("{") and FRUIT in text if text else None


def quoted(text: str, n_chars: int = 32) -> str:
    flat = " ".join(text.split())
    return repr(flat if len(flat) <= n_chars else flat[:n_chars] + "…")


async def line_signals(session: ServerSession) -> Result:
    """Read what a processor in the engine reports of a thought with at least one whole line."""
    ask_for, name = DRIVERS[session.settings.driver].line_signals, f"doctor-{secrets.token_hex(8)}"
    if ask_for is None:
        return Result("no", f"driver {session.settings.driver!r} has no such fields")
    body = session.body(LONG_ASK, LONG_CAP, **ask_for(name, session.settings.think_close))
    async with session.begun(body, lambda seen: "\n" in seen.thought.rstrip()) as seen:
        answer = await session.whole({"id": name, "action": "signals"}, CONTROL_PATH)
    rows = within(answer.body, "signals")
    if answer.status != 200 or not isinstance(rows, list):
        return Result("no", f"{CONTROL_PATH} answered {answer.refused}")
    read = f"{len(rows)} line ends in {seen.n_thought_pieces} pieces of thought"
    return Result("yes" if rows else "unclear", read)


# As `doctor.experiments.EXPERIMENTS`; `upstream.drivers.losing_methods` knows the names.
FORM_EXPERIMENTS = {
    f"{form}_{method}": (f"gives {words} after a thought that was ended by {method}", partial(keeps_form, form, method))
    for form, words in WORDS.items()
    for method in FORMED_METHODS
}
