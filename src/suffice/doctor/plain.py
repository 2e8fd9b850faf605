"""Experiments on single requests, and on the ways to end a thought early."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from suffice.doctor.talk import (
    CHAT,
    COUNT,
    THINK,
    THINK_CAP,
    Facts,
    Saw,
    StreamTranscript,
    Talk,
    ms,
    parse_number,
    quoted,
    within,
)
from suffice.episode.chunk_parsing import PrefillStripper
from suffice.settings import Probe
from suffice.upstream.continuation import Continuation, Prompt, build_continuation
from suffice.upstream.drivers import DRIVERS
from suffice.upstream.wire import REASONING_FIELDS

CAP = 4  # tokens: small enough that a model that counts to 200 must pass it
FAR_OVER = 24  # pieces: no cap of 4 tokens makes so many
_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


async def examine_models(talk: Talk, facts: Facts) -> Saw:
    status, body = await talk.get("/v1/models")
    listed = within(body, "data")
    items = listed if isinstance(listed, list) else []
    names = [str(within(one, "id")) for one in items]
    if status != 200 or not names:
        return Saw("no", f"/v1/models answered {status} and listed nothing")
    mine = next((one for one in items if within(one, "id") == talk.model), None)
    facts.owned_by = str(within(mine, "owned_by") or "")
    facts.context_tokens = parse_number(within(mine, "max_model_len"))
    here = "among them the one asked for" if mine else f"not the one asked for, {talk.model!r}"
    return Saw("yes", f"{len(names)} listed, {here}")


async def reachable(talk: Talk, facts: Facts) -> Saw:  # noqa: ARG001 - an experiment's signature
    answer = await talk.whole(talk.body("Say hello.", 8))
    if answer.status == 400:
        talk.cap_field = "max_completion_tokens"
        answer = await talk.whole(talk.body("Say hello.", 8))
    if answer.status != 200 or not answer.choices:
        return Saw("no", f"a chat of one line was answered {answer.refused}")
    return Saw("yes", f"200 in {ms(answer.took_s)}")


async def unknown_fields(talk: Talk, facts: Facts) -> Saw:  # noqa: ARG001
    answer = await talk.whole(talk.body("Say hello.", 1, suffice_unknown_field=1))
    if answer.status == 200:
        return Saw("yes", "a field that no server knows was answered 200")
    return Saw("no", f"a field that no server knows was answered {answer.refused}")


async def max_tokens(talk: Talk, facts: Facts) -> Saw:  # noqa: ARG001
    return await _capped(talk, "max_tokens")


async def max_completion_tokens(talk: Talk, facts: Facts) -> Saw:  # noqa: ARG001
    return await _capped(talk, "max_completion_tokens")


async def _capped(talk: Talk, name: str) -> Saw:
    body = talk.body(COUNT, CAP)
    del body[talk.cap_field]
    seen = await talk.stream({**body, name: CAP}, enough=lambda s: s.n_pieces >= FAR_OVER)
    if seen.status != 200:
        return Saw("no", f"answered {seen.refused}")
    if seen.n_pieces >= FAR_OVER:
        return Saw("ignored", f"a cap of {CAP} was passed: {seen.n_pieces} pieces came before we hung up")
    if seen.finish_reason == "length":
        return Saw("yes", f"a cap of {CAP} ended the answer after {seen.n_pieces} pieces, finish reason length")
    ended = f"the answer ended by itself after {seen.n_pieces} pieces, finish reason {seen.finish_reason}"
    return Saw("ignored" if seen.n_pieces > CAP else "unclear", ended)


async def stream_usage(talk: Talk, facts: Facts) -> Saw:  # noqa: ARG001
    body = talk.body("Say hello.", 8, stream_options={"include_usage": True})
    seen = await talk.stream(body)
    if seen.status != 200:
        return Saw("no", f"stream_options was answered {seen.refused}")
    counted = parse_number(within(seen.usage, "completion_tokens"))
    if seen.usage is None or not counted:
        return Saw("ignored", f"asked for and not sent: {seen.n_pieces} pieces and no usage")
    elsewhere = "null in the other chunks" if seen.null_usage else "absent from the other chunks"
    prompt = seen.n_prompt or "unknown"
    return Saw("yes", f"{prompt} prompt and {counted} completion tokens at the end, {elsewhere}")


async def examine_reasoning(talk: Talk, facts: Facts) -> Saw:
    seen = facts.thought = await talk.stream(talk.body(THINK, THINK_CAP))
    if seen.status != 200:
        return Saw("unclear", f"answered {seen.refused}")
    begun, ended = talk.settings.think_open, talk.settings.think_close
    if seen.thought_field:
        where = f"in the field {seen.thought_field}"
        closed = "then the answer" if seen.content.strip() else f"not ended within {THINK_CAP} tokens"
        return Saw("yes", f"{where}: {seen.n_thought_pieces} pieces, {closed}")
    if seen.content.lstrip().startswith(begun) or ended in seen.content:
        return Saw("yes", f"inside the content, {'between' if begun in seen.content else 'up to'} its tags")
    fields = ", ".join(REASONING_FIELDS)
    return Saw("no", f"{seen.n_pieces} pieces, none in {fields}, and no {begun} in the content")


async def logprobs(talk: Talk, facts: Facts) -> Saw:  # noqa: ARG001
    answer = await talk.whole(talk.body("Say hello.", 8, logprobs=True, top_logprobs=2))
    if answer.status != 200:
        return Saw("no", f"answered {answer.refused}")
    items = within(answer.choices[0], "logprobs", "content") if answer.choices else None
    if not isinstance(items, list) or not items:
        return Saw("ignored", "asked for and not sent: the answer has none")
    rivals = within(items[0], "top_logprobs")
    n_rivals = len(rivals) if isinstance(rivals, list) else 0
    return Saw("yes", f"for {len(items)} tokens, {n_rivals} of 2 alternatives each, in chat's shape")


async def logprobs_stream(talk: Talk, facts: Facts) -> Saw:  # noqa: ARG001
    seen = await talk.stream(talk.body("Say hello.", 8, logprobs=True, top_logprobs=2))
    if seen.status != 200:
        return Saw("no", f"answered {seen.refused}")
    if not seen.n_logprobs:
        return Saw("ignored", f"asked for and not sent: {seen.n_pieces} pieces without any")
    return Saw("yes", f"for {seen.n_logprobs} tokens in {seen.n_pieces} pieces, {seen.n_rivals} of 2 alternatives each")


async def tool_stream(talk: Talk, facts: Facts) -> Saw:  # noqa: ARG001
    ask = "What is the weather in Reykjavik, the capital of Iceland? Call the tool."
    seen = StreamTranscript()
    for choice in ("required", "auto"):
        seen = await talk.stream(talk.body(ask, 96, tools=[_TOOL], tool_choice=choice))
        if seen.status == 200:
            break
    if seen.status != 200:
        return Saw("no", f"a request with a tool was answered {seen.refused}")
    if seen.n_tool_pieces > 1:
        return Saw("yes", f"{seen.n_tool_pieces} pieces")
    if seen.n_tool_pieces == 1:
        return Saw("no", "the whole call came as one piece")
    return Saw("unclear", f"the model called no tool; it wrote {seen.n_pieces} pieces of text")


async def n(talk: Talk, facts: Facts) -> Saw:  # noqa: ARG001
    answer = await talk.whole(talk.body("Say hello.", 8, n=2, temperature=1))
    if answer.status != 200:
        return Saw("no", f"n = 2 was answered {answer.refused}")
    count = len(answer.choices)
    return Saw("yes" if count == 2 else "ignored", f"n = 2 gave {count} answer{'s' if count != 1 else ''}")


async def seed(talk: Talk, facts: Facts) -> Saw:  # noqa: ARG001
    """The same seed twice, and another one: only the comparison says whether it matters."""
    ask = "Write one unusual sentence about the sea."

    async def text(**more: Any) -> str | None:
        answer = await talk.whole(talk.body(ask, 16, **more))
        return answer.text if answer.status == 200 else None

    greedy = [await text(seed=7) for _ in range(2)]
    if None in greedy:
        return Saw("no", "a request with a seed was refused")
    drawn = [await text(seed=s, temperature=1.5) for s in (7, 7, 8)]
    cold = f"temperature 0: two runs {'the same' if greedy[0] == greedy[1] else 'differ'}"
    if drawn[0] != drawn[1]:
        return Saw(
            "ignored",
            f"temperature 1.5: the same seed gave {quoted(drawn[0] or '')} and {quoted(drawn[1] or '')}; {cold}",
        )
    if drawn[0] == drawn[2]:
        return Saw("unclear", f"temperature 1.5: another seed gave the same text too; {cold}")
    return Saw("yes", f"temperature 1.5: the same seed gave the same text, another seed another; {cold}")


async def slots(talk: Talk, facts: Facts) -> Saw:
    status, props = await talk.get("/props")
    if status == 200:
        facts.n_slots = parse_number(within(props, "total_slots"))
        facts.context_tokens = facts.context_tokens or parse_number(
            within(props, "default_generation_settings", "n_ctx")
        )
    status, listed = await talk.get("/slots")
    if status == 200 and isinstance(listed, list) and listed:
        facts.can_list_slots = True
        facts.n_slots = facts.n_slots or len(listed)
        facts.context_tokens = facts.context_tokens or parse_number(within(listed[0], "n_ctx"))
    if facts.n_slots is None:
        return Saw("no", "neither /props nor /slots says; write upstreams.NAME.slots yourself")
    return Saw("yes", f"{facts.n_slots} at once")


async def context(talk: Talk, facts: Facts) -> Saw:  # noqa: ARG001
    if facts.context_tokens is None:
        return Saw("no", "neither the list of models nor /props says")
    return Saw("yes", f"{facts.context_tokens:,} tokens a request")


async def rate_limits(talk: Talk, facts: Facts) -> Saw:  # noqa: ARG001
    results = sorted(name for name in talk.headers if "ratelimit" in name or name == "retry-after")
    if not results:
        return Saw("no", f"no such header on the answers to {talk.n_calls} calls")
    return Saw("yes", ", ".join(results))


LIST = "Write the whole numbers from 1 to 12 on one line, separated by commas."
BEGUN = "In order: 1, 2, 3, 4, 5,"  # no model begins its own answer with these words
NEXT = "6"
BUDGET_TOKENS = 8
MIN_THOUGHT = 3 * BUDGET_TOKENS  # pieces: a shorter thought cannot show a budget
CONTROL_AFTER = 6  # pieces of thought before it is told to end
SLACK = 12  # pieces that may still be on their way, a closing message included


async def prefill(talk: Talk, facts: Facts) -> Saw:  # noqa: ARG001 - an experiment's signature
    made = await _continuation(talk, "prefill", prompt=None)
    seen = await talk.stream(made.body, made.path)
    if seen.status != 200:
        return Saw("no", f"answered {seen.refused}")
    stripper = PrefillStripper(made.prefill)
    text = stripper.feed(seen.content) + stripper.close()
    repeats = "the reply repeats it, which is stripped" if text != seen.content else "the reply does not repeat it"
    if text.lstrip().startswith(NEXT):
        return Saw("yes", f"after {BEGUN!r} came {quoted(text, 16)}; {repeats}")
    if BEGUN in seen.content and seen.content.partition(BEGUN)[2].lstrip().startswith(NEXT):
        return Saw("unclear", f"it goes on, but repeats {quoted(seen.content)} in a way that cannot be stripped")
    return Saw("ignored", f"after {BEGUN!r} it began anew: {quoted(seen.thought + text)}")


async def raw(talk: Talk, facts: Facts) -> Saw:  # noqa: ARG001
    template = await _template(talk)
    if template is None:
        answer = await talk.whole({"model": talk.model, "prompt": BEGUN, talk.cap_field: 6}, "/v1/completions")
        plain = "answered 200" if answer.status == 200 else f"answered {answer.refused}"
        return Saw("no", f"no /apply-template to write the prompt with; /v1/completions {plain}")
    made = await _continuation(talk, "raw", prompt=Prompt(text=template, n_tokens=None))
    seen = await talk.stream(made.body, made.path)
    if seen.status != 200:
        return Saw("no", f"answered {seen.refused}")
    text = seen.content
    if text.lstrip().startswith(NEXT):
        return Saw("yes", f"after {BEGUN!r} came {quoted(text, 16)}")
    return Saw("ignored", f"after {BEGUN!r} it began anew: {quoted(seen.thought + text)}")


async def _template(talk: Talk) -> str | None:
    messages = [{"role": "user", "content": LIST}]
    answer = await talk.whole({"messages": messages}, "/apply-template")
    result = within(answer.body, "prompt") if answer.status == 200 else None
    return result if isinstance(result, str) and result else None


async def _continuation(talk: Talk, method: Any, *, prompt: Prompt | None) -> Continuation:
    settings = talk.settings
    begun = await talk.stream(talk.body(LIST, 24), enough=lambda s: s.n_pieces >= 8)
    thought = begun.thought or begun.content.partition(settings.think_open)[2]
    thought = thought.partition(settings.think_close)[0]
    body = {"model": talk.model, "messages": [{"role": "user", "content": LIST}], "temperature": 0}
    # A server whose driver names no way to continue a message is tried in the way that most have.
    driver = settings.driver if DRIVERS[settings.driver].prefill is not None else "llama.cpp"
    upstream, probe = replace(settings, driver=driver), Probe(answer_prefix=BEGUN)
    return build_continuation(method, body, thought, upstream=upstream, probe=probe, prompt=prompt, max_tokens=12)


async def native_end(talk: Talk, facts: Facts) -> Saw:
    base = facts.thought
    if base is None or base.n_thought_pieces < CONTROL_AFTER + SLACK:
        return Saw("unclear", f"there is no thought to end: {_length(base)}")
    seen, start_s = StreamTranscript(), talk.clock_s()
    status, told_at, success = 0, 0, False
    body = talk.body(THINK, THINK_CAP, reasoning_control=True, reasoning_budget_message="\n", stream=True)
    async with talk.open(CHAT, body) as call:
        async for _ in talk.pieces(call, seen, start_s):
            if seen.n_thought_pieces >= CONTROL_AFTER and not told_at:
                told_at = seen.n_thought_pieces
                answer = await talk.whole({"id": seen.completion_id, "action": "reasoning_end"}, f"{CHAT}/control")
                status, success = answer.status, within(answer.body, "success") is True
                if not success:
                    break
            if seen.content.strip() or (told_at and seen.n_thought_pieces > told_at + 3 * SLACK):
                break
    if not told_at:
        return Saw("unclear", f"the thought was over after {seen.n_thought_pieces} pieces, before it was told")
    if not success:
        return Saw("no", f"{CHAT}/control answered {status}" + (" and no success" if status == 200 else ""))
    more = seen.n_thought_pieces - told_at
    compared = f"{more} more pieces of thought, against {base.n_thought_pieces - told_at} when not told"
    shorter = more < base.n_thought_pieces - told_at
    if shorter and seen.content.strip():
        return Saw("yes", f"{compared}, then the answer")
    if shorter and seen.finish_reason == "stop":
        return Saw("unclear", f"{compared}: it ends, but the model then wrote no answer")
    return Saw("ignored", f"it said success, and yet: {compared}")


async def native_budget(talk: Talk, facts: Facts) -> Saw:
    base = facts.thought
    if base is None or base.n_thought_pieces < MIN_THOUGHT:
        return Saw("unclear", f"the thought is too short to see a budget: {_length(base)}")
    budget = DRIVERS[talk.settings.driver].budget or DRIVERS["llama.cpp"].budget
    assert budget is not None
    fields = budget(BUDGET_TOKENS, "\n")
    body = talk.body(THINK, THINK_CAP, **fields)
    seen = await talk.stream(body, enough=lambda s: bool(s.content.strip()))
    if seen.status != 200:
        return Saw("no", f"{', '.join(fields)} answered {seen.refused}")
    compared = (
        f"{seen.n_thought_pieces} pieces of thought with a budget of {BUDGET_TOKENS}, {base.n_thought_pieces} without"
    )
    kept = seen.n_thought_pieces <= BUDGET_TOKENS + SLACK and seen.n_thought_pieces < base.n_thought_pieces
    return Saw("yes" if kept else "ignored", compared)


def _length(base: StreamTranscript | None) -> str:
    return "none was seen" if base is None else f"it had {base.n_thought_pieces} pieces"
