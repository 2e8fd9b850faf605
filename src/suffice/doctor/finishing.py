"""Experiments with the ways to close a thought: does the reply really go on from the text it is given?

What is sent is built by the same code that a live stop uses (`upstream.continuation`), so that a
verdict stands for the real thing. A server that answers 200 and begins anew has ignored the text.
"""

from __future__ import annotations

from typing import Any

from suffice.doctor.seen import THINK, THINK_CAP, Facts, Saw, quoted, within
from suffice.doctor.talk import CHAT, StreamTranscript, Talk
from suffice.upstream.continuation import Continuation, Limits, PrefillStripper, Prompt, Thought, build_continuation
from suffice.upstream.drivers import DRIVERS

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
    found = within(answer.body, "prompt") if answer.status == 200 else None
    return found if isinstance(found, str) and found else None


async def _continuation(talk: Talk, method: Any, *, prompt: Prompt | None) -> Continuation:
    settings = talk.settings
    begun = await talk.stream(talk.body(LIST, 24), enough=lambda s: s.n_pieces >= 8)
    thought = begun.thought or begun.content.partition(settings.think_open)[2]
    closed = Thought(
        text=thought.partition(settings.think_close)[0],
        answer_prefix=BEGUN,
        opened=settings.think_opened,
        think_open=settings.think_open,
        think_close=settings.think_close,
    )
    body = {"model": talk.model, "messages": [{"role": "user", "content": LIST}], "temperature": 0}
    # A server whose driver names no way to continue a message is tried in the way that most have.
    driver = settings.driver if DRIVERS[settings.driver].prefill is not None else "llama.cpp"
    return build_continuation(method, body, closed, driver=driver, prompt=prompt, limits=Limits(max_tokens=12))


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
