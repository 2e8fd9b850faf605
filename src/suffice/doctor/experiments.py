"""Experiments at a model server; its report about its cache counts only if the measured times agree."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from functools import partial
from statistics import median
from typing import Any, Final, TypeAlias, get_args

from suffice.doctor.forms import CONTROL_AFTER, FORM_EXPERIMENTS, SLACK, end_thought, line_signals, quoted
from suffice.doctor.session import CHAT, Result, ServerSession, StreamTranscript
from suffice.episode.extra_calls import PrefillStripper
from suffice.errors import UpstreamProtocol
from suffice.settings import Effort, Probe
from suffice.upstream.continuation import Continuation, Prompt, build_continuation
from suffice.upstream.drivers import CONTROL_PATH, DRIVERS, effort_fields, model_facts
from suffice.upstream.prompts import render_prompt
from suffice.upstream.wire import REASONING_FIELDS, items_in, parse_token_count, within

Experiment: TypeAlias = Callable[[ServerSession], Awaitable[Result]]

HELLO = "Say hello."
COUNT = "Write the whole numbers from 1 to 200, one a line, as digits, and nothing else."
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


def _positive(value: object) -> int | None:
    return parse_token_count(value) or None


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.0f} ms"


# --------------------------------------------------------------------------- single requests


async def _models(session: ServerSession) -> Result:
    status, body = await session.get("/v1/models")
    items = items_in(body, "data")
    if status != 200 or not items:
        return Result("no", f"/v1/models answered {status} and listed no models")
    mine = next((one for one in items if within(one, "id") == session.model), None)
    session.context_tokens = _positive(within(mine, "max_model_len"))
    here = "including the requested model" if mine else f"the requested model {session.model!r} is not among them"
    return Result("yes", f"{len(items)} listed, {here}")


async def reachable(session: ServerSession) -> Result:
    answer = await session.whole(session.body(HELLO, 8))
    if answer.status == 400:
        session.cap_field = "max_completion_tokens"
        answer = await session.whole(session.body(HELLO, 8))
    if answer.status != 200 or not answer.choices:
        return Result("no", f"a one-line chat request was answered {answer.refused}")
    return Result("yes", f"200 in {_ms(answer.took_s)}")


async def _capped(name: str, session: ServerSession) -> Result:
    body = session.body(COUNT, CAP)
    del body[session.cap_field]
    seen = await session.stream({**body, name: CAP}, enough=lambda s: s.n_pieces >= FAR_OVER, refusal="answered")
    if seen.n_pieces >= FAR_OVER:
        return Result("ignored", f"a cap of {CAP} was exceeded: {seen.n_pieces} pieces arrived before we disconnected")
    if seen.finish_reason == "length":
        return Result("yes", f"a cap of {CAP} ended the answer after {seen.n_pieces} pieces, finish reason length")
    ended = f"the answer ended by itself after {seen.n_pieces} pieces, finish reason {seen.finish_reason}"
    return Result("ignored" if seen.n_pieces > CAP else "unclear", ended)


async def _stream_usage(session: ServerSession) -> Result:
    body = session.body(HELLO, 8, stream_options={"include_usage": True})
    seen = await session.stream(body, refusal="stream_options was answered")
    if seen.usage is None or not seen.usage.completion_tokens:
        return Result("ignored", f"requested but not sent: {seen.n_pieces} pieces and no usage")
    elsewhere = "null in the other chunks" if seen.null_usage else "absent from the other chunks"
    counts = f"{seen.n_prompt or 'unknown'} prompt and {seen.usage.completion_tokens} completion tokens"
    return Result("yes", f"{counts} at the end, {elsewhere}")


async def _logprobs(session: ServerSession) -> Result:
    answer = await session.whole(session.body(HELLO, 8, logprobs=True, top_logprobs=2), refusal="answered")
    items = within(answer.choices[0], "logprobs", "content") if answer.choices else None
    if not isinstance(items, list) or not items:
        return Result("ignored", "requested but not sent: the answer has none")
    rivals = within(items[0], "top_logprobs")
    n_rivals = len(rivals) if isinstance(rivals, list) else 0
    return Result("yes", f"for {len(items)} tokens, {n_rivals} of 2 alternatives each, in chat's shape")


async def _logprobs_stream(session: ServerSession) -> Result:
    seen = await session.stream(session.body(HELLO, 8, logprobs=True, top_logprobs=2), refusal="answered")
    if not seen.n_logprobs:
        return Result("ignored", f"requested but not sent: {seen.n_pieces} pieces without any")
    return Result(
        "yes", f"for {seen.n_logprobs} tokens in {seen.n_pieces} pieces, {seen.n_rivals} of 2 alternatives each"
    )


async def _tool_stream(session: ServerSession) -> Result:
    ask = "What is the weather in Reykjavik, the capital of Iceland? Call the tool."
    seen = await session.stream(session.body(ask, 96, tools=[_TOOL], tool_choice="required"))
    if seen.status != 200:
        body = session.body(ask, 96, tools=[_TOOL], tool_choice="auto")
        seen = await session.stream(body, refusal="a request with a tool was answered")
    if seen.n_tool_pieces > 1:
        return Result("yes", f"{seen.n_tool_pieces} pieces")
    if seen.n_tool_pieces == 1:
        return Result("no", "the whole call arrived as one piece")
    return Result("unclear", f"the model called no tool; it wrote {seen.n_pieces} pieces of text")


async def _n(session: ServerSession) -> Result:
    answer = await session.whole(session.body(HELLO, 8, n=2, temperature=1), refusal="n = 2 was answered")
    count = len(answer.choices)
    return Result("yes" if count == 2 else "ignored", f"n = 2 gave {count} answer{'s' if count != 1 else ''}")


async def _slots(session: ServerSession) -> Result:
    status, props = await session.get("/props")
    if status == 200:
        session.n_slots = _positive(within(props, "total_slots"))
        context = _positive(within(props, "default_generation_settings", "n_ctx"))
        session.context_tokens = session.context_tokens or context
    status, listed = await session.get("/slots")
    if status == 200 and isinstance(listed, list) and listed:
        session.n_slots = session.n_slots or len(listed)
        session.context_tokens = session.context_tokens or _positive(within(listed[0], "n_ctx"))
    if session.n_slots is None:
        session.n_slots = await _sglang_slots(session)
    if session.n_slots is not None:
        return Result("yes", f"{session.n_slots} at once")
    return await _observed_slots(session)


async def _sglang_slots(session: ServerSession) -> int | None:
    """Return what SGLang reports as its effective limit, of all its replicas."""
    for path in ("/get_server_info", "/server_info"):
        status, info = await session.get(path)
        for engine in items_in(info, "internal_states")[:1] if status == 200 else ():  # one of each replica, all alike
            if n_slots := _positive(within(engine, "effective_max_running_requests_per_dp")):
                return n_slots * (_positive(within(engine, "dp_size")) or 1)
    return None


async def _observed_slots(session: ServerSession) -> Result:
    """Open one long answer after another until the server's metrics report that one waits."""
    if await _gauge(session, _RUNNING) is None or await _gauge(session, _WAITING) is None:
        return Result("no", "no endpoint and no metric reports it; set upstreams.NAME.slots yourself")
    n_running = n_waiting = 0
    async with AsyncExitStack() as stack:
        for n_open in range(1, MOST_SLOTS + 1):
            call = session.open(CHAT, session.body(COUNT, LONG_CAP, stream=True))
            task = asyncio.create_task(stack.enter_async_context(call))
            stack.callback(task.cancel)
            if n_open % SLOTS_AT_ONCE == 0:
                n_running, n_waiting = await _settled(session, n_open)
                if n_waiting:
                    break
    session.n_slots = max(1, n_running)
    if n_waiting:
        return Result("yes", f"{n_running} at once: further requests waited, by its metrics")
    return Result("yes", f"at least {session.n_slots} at once: none of so many requests waited, by its metrics")


async def _settled(session: ServerSession, n_open: int) -> tuple[int, int]:
    """Return the requests that run and that wait, once all that are open are among them, or after a while."""
    end_s = time.monotonic() + min(SETTLE_S, session.timeout_s / SLOTS_AT_ONCE)
    while True:
        n_running, n_waiting = await _gauge(session, _RUNNING) or 0, await _gauge(session, _WAITING) or 0
        if n_waiting or n_running >= n_open or time.monotonic() > end_s:
            return n_running, n_waiting
        await asyncio.sleep(0.05)


async def _context(session: ServerSession) -> Result:
    if session.context_tokens is None:
        return Result("no", "neither the list of models nor /props reports it")
    return Result("yes", f"{session.context_tokens:,} tokens a request")


async def _rate_limits(session: ServerSession) -> Result:
    names = sorted(name for name in session.headers if "ratelimit" in name or name == "retry-after")
    if not names:
        return Result("no", f"no such header on the answers to {session.n_calls} calls")
    return Result("yes", ", ".join(names))


async def _paired_fields(session: ServerSession) -> Result:
    fields = session.settings.paired_fields
    if not fields:
        return Result("no", "`paired_fields` of this upstream is empty")
    answer = await session.whole(session.body(HELLO, 8, **fields), refusal="a request with them was answered")
    requested, served = fields.get("service_tier"), within(answer.body, "service_tier")
    if requested is not None and served not in (None, requested):
        return Result("ignored", f"service_tier {requested} was requested, and {served} served")
    return Result("yes", f"200 in {_ms(answer.took_s)} with {', '.join(sorted(fields))}")


# --------------------------------------------------------------------------- ways to end a thought

THINK = (
    "A shop sells 3 boxes of 12 pens each day from Monday to Friday. How many pens is that?"
    " Think step by step, then write only the final number."
)
THINK_CAP = 96  # tokens: enough to see a thought, and to see that it is cut short
TEMPLATE_END_CHARS = 24
LIST = "Write the whole numbers from 1 to 12 on one line, separated by commas."
BEGUN = "In order: 1, 2, 3, 4, 5,"  # no model begins its own answer with these words
NEXT = "6"
BUDGET_TOKENS = 8
MIN_THOUGHT = 3 * BUDGET_TOKENS  # pieces: a shorter thought cannot show a budget
REST_CHARS = 24  # of an answer that begins like the rest of a thought which was cut


async def _reasoning(session: ServerSession) -> Result:
    seen = session.thought = await session.stream(session.body(THINK, THINK_CAP))
    if seen.status != 200:
        return Result("unclear", f"answered {seen.refused}")
    begun, ended = session.settings.think_open, session.settings.think_close
    if seen.thought_field:
        where = f"in the field {seen.thought_field}"
        closed = "then the answer" if seen.content.strip() else f"not ended within {THINK_CAP} tokens"
        return Result("yes", f"{where}: {seen.n_thought_pieces} pieces, {closed}")
    if seen.content.lstrip().startswith(begun) or ended in seen.content:
        return Result("yes", f"inside the content, {'between' if begun in seen.content else 'up to'} its tags")
    fields = ", ".join(REASONING_FIELDS)
    return Result("no", f"{seen.n_pieces} pieces, none in {fields}, and no {begun} in the content")


async def _prefill(session: ServerSession) -> Result:
    made = await _continuation(session, "prefill", prompt=None)
    seen = await session.stream(made.body, made.path, refusal="answered")
    stripper = PrefillStripper(made.prefill)
    text = stripper.feed(seen.content) + stripper.close()
    repeats = "the reply repeats it, which is stripped" if text != seen.content else "the reply does not repeat it"
    if text.lstrip().startswith(NEXT):
        return Result("yes", f"after {BEGUN!r} came {quoted(text, 16)}; {repeats}")
    if BEGUN in seen.content and seen.content.partition(BEGUN)[2].lstrip().startswith(NEXT):
        return Result("unclear", f"it continues, but repeats {quoted(seen.content)} in a way that cannot be stripped")
    return Result("ignored", f"after {BEGUN!r} the model started over: {quoted(seen.thought + text)}")


async def _rendered(session: ServerSession) -> Prompt | None:
    # A server whose driver cannot render a template is tested with llama.cpp's endpoint for it.
    driver = session.settings.driver
    driver = driver if DRIVERS[driver].writes_prompt is not None else "llama.cpp"
    body = {"model": session.model, "messages": [{"role": "user", "content": LIST}]}
    with suppress(UpstreamProtocol):
        return await render_prompt(session.client, body, (), driver=driver, text=True)
    return None


async def _opens_thought(session: ServerSession) -> Result:
    prompt = await _rendered(session)
    if prompt is None or not prompt.text:
        return Result("unclear", "nothing renders the chat template")
    end = prompt.text.rstrip()[-TEMPLATE_END_CHARS:]
    session.opens_thought = end.endswith(session.settings.think_open)
    return Result("yes" if session.opens_thought else "no", f"the template ends with {end!r}")


async def _raw(session: ServerSession) -> Result:
    prompt = await _rendered(session)
    if prompt is None or not prompt.text:
        answer = await session.whole({"model": session.model, "prompt": BEGUN, session.cap_field: 6}, "/v1/completions")
        plain = "200" if answer.status == 200 else answer.refused
        return Result("no", f"nothing renders the chat template; /v1/completions answered {plain}")
    made = await _continuation(session, "raw", prompt=prompt)
    seen = await session.stream(made.body, made.path, refusal="answered")
    if seen.content.lstrip().startswith(NEXT):
        return Result("yes", f"after {BEGUN!r} came {quoted(seen.content, 16)}")
    return Result("ignored", f"after {BEGUN!r} the model started over: {quoted(seen.thought + seen.content)}")


async def _continuation(session: ServerSession, method: Any, *, prompt: Prompt | None) -> Continuation:
    settings = session.settings
    begun = await session.stream(session.body(LIST, 24), enough=lambda s: s.n_pieces >= 8)
    thought = begun.thought or begun.content.partition(settings.think_open)[2]
    thought = thought.partition(settings.think_close)[0]
    body = {"model": session.model, "messages": [{"role": "user", "content": LIST}], "temperature": 0}
    probe = Probe(answer_prefix=BEGUN)
    return build_continuation(
        method, body, thought, upstream=session.continuing, probe=probe, prompt=prompt, max_tokens=12
    )


async def _native_end(session: ServerSession) -> Result:
    base = session.thought
    if base is None or base.n_thought_pieces < CONTROL_AFTER + SLACK:
        return Result("unclear", f"no thought to end: {_length(base)}")
    seen, ended_at, status, success = await end_thought(session, session.body(THINK, THINK_CAP))
    if not ended_at:
        return Result("unclear", f"the thought ended after {seen.n_thought_pieces} pieces, before the control request")
    if not success:
        return Result("no", f"{CONTROL_PATH} answered {status}" + (" and no success" if status == 200 else ""))
    more, otherwise = seen.n_thought_pieces - ended_at, base.n_thought_pieces - ended_at
    compared = f"{more} more pieces of thought, against {otherwise} without the request"
    if more < otherwise and seen.content.strip():
        return Result("yes", f"{compared}, then the answer")
    if more < otherwise and seen.finish_reason == "stop":
        return Result("unclear", f"{compared}: it ends, but the model then wrote no answer")
    return Result("ignored", f"the server reported success, but {compared}")


async def _native_budget(session: ServerSession) -> Result:
    base = session.thought
    if base is None or base.n_thought_pieces < MIN_THOUGHT:
        return Result("unclear", f"the thought is too short to test a budget: {_length(base)}")
    budget = DRIVERS[session.settings.driver].budget or DRIVERS["llama.cpp"].budget
    assert budget is not None
    fields = budget(BUDGET_TOKENS, "\n")
    body = session.body(THINK, THINK_CAP, **fields)
    seen = await session.stream(body, refusal=f"{', '.join(fields)} answered")
    n, n_before = seen.n_thought_pieces, base.n_thought_pieces
    compared = f"{n} pieces of thought with a budget of {BUDGET_TOKENS}, {n_before} without"
    if not (n <= BUDGET_TOKENS + SLACK and n < n_before):
        return Result("ignored", compared)
    rest = base.thought[len(seen.thought) :].strip() if base.thought.startswith(seen.thought.strip()) else ""
    content = seen.content.strip()
    if session.settings.think_close in content or (rest and rest[:REST_CHARS] == content[:REST_CHARS]):
        return Result("ignored", f"{compared}; but the answer is the rest of the thought: {quoted(content)}")
    return Result("yes" if content else "unclear", f"{compared}, then {'the' if content else 'no'} answer")


def _length(base: StreamTranscript | None) -> str:
    return "none was observed" if base is None else f"it had {base.n_thought_pieces} pieces"


async def _effort(session: ServerSession) -> Result:
    """Send every level that the model should take, then compare the thoughts at the lowest and the highest."""
    settings = session.settings
    known = model_facts(settings, session.model)
    taken, refused = dict[str, dict[str, Any]](), list[str]()
    for level in get_args(Effort) if known is None else known.efforts:
        fields = effort_fields(DRIVERS[settings.driver], known, level)
        if fields is None:
            continue
        answer = await session.whole(session.body(HELLO, 1, **fields))
        if answer.status == 200:
            taken[level] = fields
        else:
            refused.append(f"{level} ({answer.refused})")
    names = f"takes {', '.join(taken) or 'no level'}" + (f"; refuses {', '.join(refused)}" if refused else "")
    if len(taken) < 2:
        return Result("no" if not taken else "unclear", names)
    lowest, *_, highest = taken
    low, high = [await _thought_tokens(session, taken[level]) for level in (lowest, highest)]
    compared = f"{names}; {low} tokens of thought at {lowest}, {high} at {highest}"
    if lowest == "none" and low:
        return Result("ignored", compared)
    if not high:
        return Result("unclear", f"{compared}: no thought was observed")
    return Result("yes" if low < high else "unclear" if low >= THINK_CAP else "ignored", compared)


async def _thought_tokens(session: ServerSession, fields: Mapping[str, Any]) -> int:
    """Return the length of a thought, hidden ones by the usage; at most the cap."""
    seen = await session.stream(session.body(THINK, THINK_CAP, stream_options={"include_usage": True}, **fields))
    hidden = None if seen.usage is None else seen.usage.reasoning_tokens
    return max(seen.n_thought_pieces, hidden or 0)


# --------------------------------------------------------------------------- the engine

N_WORDS = 1_200  # of a long prompt: hosted services cache from 1,024 tokens on
FEW_WORDS = 128  # of one whose cached tokens are only counted
ROUNDS = 3  # of the time to first token, for its median
SEEN_SHARE = 0.5  # of the prompt that a useful cache must serve
FASTER = 0.5  # warm time over cold time that shows a cache if nothing is reported
CLEAR_S = 0.05  # time differences below are noise
CANCEL_WITHIN_S = 3.0  # a cancelled slot must be free by then
LONG_CAP = 1_024  # tokens of a run that is cancelled
_WORDS = ("river", "stone", "lamp", "garden", "winter", "paper", "music", "bridge", "morning", "table")
_RUNNING = re.compile(
    r"^(?:llamacpp:requests_processing|vllm:num_requests_running|sglang:num_running_reqs)(?:{\S*})? ([\d.]+)",
    re.MULTILINE,
)
_WAITING = re.compile(
    r"^(?:llamacpp:requests_deferred|vllm:num_requests_waiting|sglang:num_queue_reqs)(?:{\S*})? ([\d.]+)", re.MULTILINE
)
MOST_SLOTS = 32  # requests opened at once to see how many the server runs; more change nothing that Suffice decides
SLOTS_AT_ONCE = 4
SETTLE_S = 10.0  # at most, for a request to appear in the metrics, which are updated after a step of the engine


async def _prefix_cache(session: ServerSession) -> Result:
    pilot = await _first_token(session, _long_prompt(session, FEW_WORDS))
    # A slow server gets a prompt that it can read in an eighth of the time.
    word_s = max(pilot.first_s or pilot.took_s, 1e-6) / FEW_WORDS
    n_words = max(FEW_WORDS, min(N_WORDS, int(session.timeout_s / 8 / word_s)))
    begin_s, rounds = time.monotonic(), list[list[StreamTranscript]]()
    while len(rounds) < ROUNDS:
        prompt = _long_prompt(session, n_words)
        answers = [await _first_token(session, text) for text in (prompt, prompt, prompt + " And one more word: sea.")]
        if answers[0].status != 200:
            return Result("unclear", f"a long prompt was answered {answers[0].refused}")
        rounds.append(answers)
        elapsed_s = time.monotonic() - begin_s
        if elapsed_s * (1 + 2 / len(rounds)) > session.timeout_s:
            break  # one more round might not end in time
    cold_s, warm_s, longer_s = (median(one.first_s or one.took_s for one in same) for same in zip(*rounds, strict=True))
    clock = (
        f"first token after {_ms(cold_s)} cold, {_ms(warm_s)} again, {_ms(longer_s)} with a suffix"
        f" (median of {len(rounds)})"
    )
    _, warm, longer = rounds[-1]
    faster = max(warm_s, longer_s) <= FASTER * cold_s and cold_s - max(warm_s, longer_s) >= CLEAR_S
    if warm.n_cached is None or longer.n_cached is None or not warm.n_prompt:
        sure = faster or cold_s >= 4 * CLEAR_S  # a quick cold prompt leaves nothing to save
        return Result("yes" if faster else "no" if sure else "unclear", f"nothing reported; {clock}")
    reported = f"cached {warm.n_cached:,} of {warm.n_prompt:,} prompt tokens again, {longer.n_cached:,} with a suffix"
    if min(warm.n_cached, longer.n_cached) < SEEN_SHARE * warm.n_prompt:
        return Result("no", f"{reported}; {clock}")
    if not faster and cold_s >= 10 * CLEAR_S:
        return Result("unclear", f"{reported}, but the measured times do not agree: {clock}")
    return Result("yes", f"{reported}; {clock}")


def _long_prompt(session: ServerSession, most_words: int) -> str:
    """Return a prompt with a new first word, so that it is in no cache."""
    room = session.context_tokens or 8 * N_WORDS
    n_words = max(64, min(most_words, room // 4))
    words = (_WORDS[(i * i + i // 7) % len(_WORDS)] for i in range(n_words))
    return f"{secrets.token_hex(6)}: here is a list of words. {' '.join(words)}. Say hello."


async def _first_token(session: ServerSession, text: str, **more: Any) -> StreamTranscript:
    return await session.stream(session.body(text, 1, stream_options={"include_usage": True}, **more))


async def cancel(session: ServerSession) -> Result:
    idle_s = median([(await session.whole(session.body(HELLO, 1))).took_s for _ in range(ROUNDS)])
    async with session.begun(session.body(COUNT, LONG_CAP), lambda s: s.n_pieces >= 4) as seen:
        # SGLang updates its gauge every few dozen steps.
        during = await _poll_running(session, until_any=True, within_s=min(SETTLE_S, session.timeout_s / 3))
    left_s = time.monotonic()
    if seen.status != 200 or seen.finish_reason is not None:
        return Result("unclear", f"there was no long answer to disconnect from ({seen.n_pieces} pieces)")
    if during:
        within_s = max(CANCEL_WITHIN_S, 3 * idle_s)  # a slow engine looks for disconnected clients between its steps
        if not (n_left := await _poll_running(session, until_any=False, within_s=within_s)):
            return Result("yes", f"{during} running before, none {_ms(time.monotonic() - left_s)} after the disconnect")
        return Result("no", f"{n_left} still running {within_s:g} s after the disconnect")
    after = await session.whole(session.body(HELLO, 1))
    sentence = f"a short request took {_ms(after.took_s)} after a disconnect, {_ms(idle_s)} when idle"
    if after.took_s > 3 * idle_s + 0.5:
        return Result("no", sentence)
    if session.n_slots == 1:
        return Result("yes", sentence)
    return Result("unclear", f"{sentence}; a server with a free slot would answer the same")


async def _busy(session: ServerSession) -> list[int] | None:
    status, listed = await session.get("/slots")
    if status != 200 or not isinstance(listed, list):
        return None
    return [int(str(within(s, "id"))) for s in listed if within(s, "is_processing") is True]


async def _running(session: ServerSession) -> int | None:
    busy = await _busy(session)
    if busy is not None:
        return len(busy)
    return await _gauge(session, _RUNNING)


async def _gauge(session: ServerSession, pattern: re.Pattern[str]) -> int | None:
    """Return a gauge of the server's metrics, all engines together; None if it has none."""
    status, text = await session.get("/metrics")
    values = pattern.findall(text) if status == 200 and isinstance(text, str) else []
    return int(sum(map(float, values))) if values else None


async def _poll_running(session: ServerSession, *, until_any: bool, within_s: float) -> int | None:
    """Wait until something runs, or nothing; return how many requests run then or at the end, None if unknown."""
    end_s = time.monotonic() + within_s
    while True:
        n_running = await _running(session)
        if n_running is None or (n_running > 0) == until_any or time.monotonic() > end_s:
            return n_running
        await asyncio.sleep(0.02)


# What a "yes" means, and the experiment, in the order in which they run and are displayed: results come before the
# experiments that use them.
EXPERIMENTS: Final[Mapping[str, tuple[str, Experiment]]] = {
    "reachable": ("answers a chat request", reachable),
    "models": ("lists its models", _models),
    "slots": ("reports how many requests it serves at once", _slots),
    "context": ("reports its maximum context length", _context),
    "max_tokens": ("`max_tokens` caps the answer", partial(_capped, "max_tokens")),
    "max_completion_tokens": ("`max_completion_tokens` caps the answer", partial(_capped, "max_completion_tokens")),
    "stream_usage": ("a stream ends with its usage when `stream_options.include_usage` asks for it", _stream_usage),
    "reasoning": ("returns the thought, in a field of its own or between tags", _reasoning),
    "logprobs": ("returns the log-probability of every answer token", _logprobs),
    "logprobs_stream": ("returns log-probabilities in a stream too", _logprobs_stream),
    "tool_stream": ("streams a tool call piece by piece", _tool_stream),
    "n": ("`n = 2` returns two answers", _n),
    "opens_thought": ("the chat template writes the opening tag of the thought", _opens_thought),
    "prefill": ("continues an assistant's last message", _prefill),
    "raw": ("`/v1/completions` continues the text of the chat template", _raw),
    "native_end": ("ends a running thought on request", _native_end),
    "native_budget": ("ends a thought after a number of tokens", _native_budget),
    **FORM_EXPERIMENTS,
    "line_signals": ("reports the margin to the end of thought at the ends of lines", line_signals),
    "effort": ("takes reasoning efforts, and a higher one makes the thought longer", _effort),
    "prefix_cache": ("reuses the cached prefix of an earlier prompt", _prefix_cache),
    "cancel": ("stops generating when the client hangs up", cancel),
    "rate_limits": ("reports its rate limits in headers", _rate_limits),
    "paired_fields": ("takes the fields of paired calls", _paired_fields),
}
