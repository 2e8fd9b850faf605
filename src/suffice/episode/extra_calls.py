"""Extra calls beside a run: continuations, trial answers, an audit's paired call, vectors of drafts.

A thought is closed for a stop and for a probe by the same request, so a trial answer predicts the real one. A failed
probe never stops a run.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from math import exp, log
from typing import Any

import msgspec

from suffice.episode.apis.events import CHAT, ApiFormat, ChatEvents
from suffice.episode.chain_reader import ChannelText, ThinkTag, first_choice
from suffice.episode.checkpoints import Checkpoint, missing_step
from suffice.episode.ledger import CallAccount, Ledger
from suffice.errors import UpstreamBusy, UpstreamDown, UpstreamError, UpstreamProtocol, UpstreamTimeout
from suffice.scoring.scorer import Scorer
from suffice.settings import FinishMethod, Probe, Upstream
from suffice.signals.folds.wording import Embedder
from suffice.types import Purpose, Step
from suffice.upstream import wire
from suffice.upstream.assemble import CallParts
from suffice.upstream.client import Call, Headers, UpstreamClient, governed_headers
from suffice.upstream.connection import ArrivalCallback
from suffice.upstream.continuation import Continuation, Prompt, build_continuation, cut_at
from suffice.upstream.drivers import (
    CONTROL_PATH,
    DRIVERS,
    DriverFacts,
    continuing_methods,
    find_verdict,
    finish_methods,
    honoured,
    thinking_is_off,
)
from suffice.upstream.prompts import ask_field, render_prompt
from suffice.upstream.wire import Choice, Chunk, TokenLogprob, encode_json

CHARS_A_TOKEN = 4.5  # of English text; only to estimate the prompt of a call that was cut off before it counted
FINISH_TIMEOUT_S = 60.0  # of a whole finish that is requested for the record only
PAIR_TIMEOUT_S = 600.0  # of a whole second run
KEPT_CALLS = 2  # of the request's extra calls: one to continue after a stop, one to run again if that fails
SITE = "embedder"  # the degraded site of a run whose drafts were compared by words because vectors were missing
MOST_EVENTS = 250_000  # of a reply that is read whole before it is used
MOST_ANSWER_CHARS = 2**20  # of a continuation: far beyond any model's answer


@dataclass(frozen=True, slots=True)
class TrialReply:
    """The reply to a request that closes a thought."""

    request: Continuation
    pieces: list[Piece]
    n_tokens: int  # generated for this reply

    @property
    def text(self) -> str:
        text = "".join(piece.text for piece in self.pieces)
        return self.request.answer_prefix + cut_at(text, self.request.stop)

    @property
    def is_cut(self) -> bool:
        return any(piece.finish_reason == "length" for piece in self.pieces)

    @property
    def calls(self) -> list[Any]:
        return next((piece.calls for piece in reversed(self.pieces) if piece.calls), [])

    @property
    def tokens(self) -> list[TokenLogprob]:
        return [token for piece in self.pieces for token in piece.tokens]


@dataclass(slots=True, kw_only=True)
class Continuer:
    client: UpstreamClient
    probe: Probe
    max_extra_calls: int
    body: Mapping[str, Any]  # the client's
    headers: Headers
    ledger: Ledger
    # Whether the running thought is in the content. A server that separates it does so in a second
    # call too, and no content begins inside a thought, whatever the template opens.
    thinks_inline: Callable[[], bool] = lambda: True
    excluded: tuple[FinishMethod, ...] = ()  # ways to finish that the client's API does not allow
    _prompt: Prompt | None = None

    @property
    def settings(self) -> Upstream:
        return self.client.settings

    @property
    def facts(self) -> DriverFacts:
        return DRIVERS[self.settings.driver]

    @property
    def methods(self) -> tuple[FinishMethod, ...]:
        """Ways to finish, best first; empty if this upstream offers none, so that nothing can be stopped."""
        methods = finish_methods(self.settings, self.body, self.client.findings)
        return tuple(m for m in methods if m not in self.excluded) if self.excluded else methods

    @property
    def second_call(self) -> FinishMethod | None:
        """The method that sends the thought so far in a second request; probes need one."""
        ways = continuing_methods(self.settings, self.body, self.client.findings)
        return next((m for m in ways if m != "native"), None)

    def may_call(self, *, keep: int) -> bool:
        """Return whether one more extra call is allowed, with `keep` calls left for what may have to follow."""
        return self.ledger.n_extra_calls + keep < self.max_extra_calls

    async def end_reasoning(self, completion_id: str, within_s: float) -> bool:
        """End the running thought in place by the engine's control endpoint; return True if it confirms."""
        fields: dict[str, Any] = {"id": completion_id, "action": "reasoning_end"}
        if self.facts.controls_by_run:  # suffice-vllm ends no thought later, when the run is finished in another way
            fields |= {"id": self.ledger.request.episode_id, "within_s": within_s}
        try:
            success = await ask_field(self.client, CONTROL_PATH, fields, "success", self.headers, within_s)
            return bool(success)
        except UpstreamProtocol:
            return False

    async def prompt(self, *, text: bool) -> Prompt | None:
        """Return the rendered prompt and its token count; without `text`, maybe only the count. Raise UpstreamError."""
        if self._prompt is None or (text and self._prompt.text is None):
            driver = self.settings.driver
            self._prompt = await render_prompt(self.client, self.body, self.headers, driver=driver, text=text)
        return self._prompt

    async def prepare(
        self, method: FinishMethod, thought: str, *, purpose: Purpose, max_tokens: int | None
    ) -> Continuation:
        """Build the request that answers after `thought`. Raise UpstreamError if the upstream cannot serve it."""
        prompt, upstream = await self.prompt(text=True) if method == "raw" else None, self.settings
        if method == "prefill" and honoured(self.client.findings, "opens_thought"):
            # The message is continued behind the opening tag, which doctor saw in the chat template.
            upstream = msgspec.structs.replace(upstream, think_opened=True)
        if method == "raw" and prompt is None:
            raise UpstreamProtocol(f"raw continuation: driver {self.settings.driver!r} cannot render a chat template")
        try:
            request = build_continuation(
                method,
                self.body,
                thought,
                upstream=upstream,
                probe=self.probe,
                prompt=prompt,
                max_tokens=max_tokens,
                trial=purpose == "probe",
            )
        except ValueError as error:
            raise UpstreamProtocol(str(error)) from None
        if find_verdict(self.client.findings, "stream_usage") == "no":
            del request.body["stream_options"]  # as for the client's own call
        return replace(request, opened=request.opened and self.thinks_inline())

    @asynccontextmanager
    async def open(
        self,
        request: Continuation,
        *,
        thought_tokens: int,
        purpose: Purpose,
        api: ApiFormat = CHAT,
        through: Callable[[Call], Call] = lambda call: call,
        price_share: float | None = None,
    ) -> AsyncIterator[tuple[AsyncGenerator[Piece, None], CallAccount]]:
        """Send a request; yield its pieces and account. Raise UpstreamError; UpstreamBusy for a probe without room.

        through      what the reply is read through
        price_share  of a call of another service tier; None: it is of the usual one
        """
        account = CallAccount(purpose, price_share=1.0 if price_share is None else price_share)
        account.context_tokens = thought_tokens + round(request.added_chars / CHARS_A_TOKEN)
        account.is_open = True
        is_beta = request.path.startswith("/beta/") and self.settings.url.rstrip("/").endswith("/beta")
        path = request.path.removeprefix("/beta") if is_beta else request.path
        async with AsyncExitStack() as stack:
            extra = self.client.extra_call(lambda: account.fresh_tokens, is_probe=purpose == "probe")
            stack.enter_context(extra)
            stack.callback(setattr, account, "is_open", False)
            self.ledger.add_call(account)
            headers = governed_headers(self.headers, nth=len(self.ledger.calls))
            content, x_api_key = encode_json(request.body), api.has_own_key
            own_tier = price_share is not None
            opened = self.client.open(path, content, headers, extra=True, own_tier=own_tier, x_api_key=x_api_key)
            call = await stack.enter_async_context(opened)
            self.ledger.extra.n_refused += call.asks_for_less
            if call.status != 200 or call.content_type != "text/event-stream":
                answer = f"{call.status} {call.content_type}"
                raise UpstreamProtocol(f"{request.path}: the upstream answered {answer} to a continuation")
            account.began = True
            tags = (self.settings.think_open, self.settings.think_close)
            events = api.new_events()
            reply = pieces(through(call), account, events, tags=tags, prefill=request.prefill, opened=request.opened)
            async with aclosing(reply):
                yield reply, account

    async def ask(
        self, thought: str, thought_tokens: int, *, whole: bool = False, max_tokens: int | None = None
    ) -> TrialReply:
        """Read the reply to a probe, or a `whole` finish of at most `max_tokens`. Raise UpstreamError."""
        method, probe = self.second_call, self.probe
        if method is None:
            raise UpstreamProtocol("this upstream offers no way to ask for a trial answer")
        purpose: Purpose = "continuation" if whole else "probe"
        timeout_s, max_tokens = (FINISH_TIMEOUT_S, max_tokens) if whole else (probe.timeout_s, probe.max_tokens)
        try:
            async with asyncio.timeout(timeout_s):
                request = await self.prepare(method, thought, purpose=purpose, max_tokens=max_tokens)
                async with self.open(request, thought_tokens=thought_tokens, purpose="probe") as (reply, account):
                    return TrialReply(request, [piece async for piece in reply], account.completion_tokens)
        except TimeoutError:
            raise UpstreamTimeout(f"a trial answer took longer than {timeout_s:g} s") from None


class Prober:
    def __init__(self, continuer: Continuer, scorer: Scorer) -> None:
        self._continuer = continuer
        self._scorer = scorer
        self._ledger = continuer.ledger

    def ready(self) -> bool:
        """Return whether there is a way to probe and another call is allowed; otherwise the step has no answer."""
        if self._continuer.second_call is None:
            return False
        may_call = self._continuer.may_call(keep=KEPT_CALLS)
        reason = self._continuer.client.extra_refusal() if may_call else "max_extra_calls"
        if reason is not None:
            self._ledger.extra.skipped[reason] += 1
        return reason is None

    async def ask(self, point: Checkpoint) -> Step:
        reply = await self._fetch_reply(point.prefix, point.tokens_used)
        if reply is None:
            return missing_step(point)
        firsts = [piece.tokens[0] for piece in reply.pieces if piece.tokens]
        entropy = next((known for first in firsts if (known := entropy_of(first.top)) is not None), None)
        return Step(
            index=point.index,
            tokens=point.tokens,
            answer=self._read(reply),
            answer_source="probe",
            logprobs=tuple(token.logprob for token in reply.tokens),
            entropy=entropy,
            margin=margin_of(firsts[0]) if firsts else None,
            # After words of ours the answer's first token is not the first after the closed thought.
            closed_entropy=None if reply.request.answer_prefix else entropy,
            end_margin=point.end_margin,
            text=point.text,
            probe_tokens=reply.n_tokens,
        )

    async def answer_to(self, thought: str, tokens: int) -> str | None:
        """Return the normalised answer after a finished thought of `tokens` tokens; None if there is none."""
        reply = await self._fetch_reply(thought, tokens)
        return None if reply is None else self._read(reply)

    def _read(self, reply: TrialReply) -> str | None:
        """Return the answer of a reply; one that was cut is no call and no JSON."""
        if reply.is_cut and self._ledger.request.form != "text":
            return None
        return self._ledger.extract(self._scorer, reply.text, reply.calls)

    async def finish_at(self, step: int, thought: str, tokens: int, *, max_tokens: int | None) -> None:
        """Request a whole finish after a step, for the record: what a stop there would have delivered."""
        if not self._continuer.may_call(keep=0):
            return
        reply = await self._fetch_reply(thought, tokens, whole=True, max_tokens=max_tokens)
        if reply is not None:
            self._ledger.audit.finish_step = step
            self._ledger.audit.finish_answer = self._read(reply)

    async def _fetch_reply(
        self, thought: str, tokens: int, *, whole: bool = False, max_tokens: int | None = None
    ) -> TrialReply | None:
        if self._continuer.second_call is None:
            return None
        try:
            return await self._continuer.ask(thought, tokens, whole=whole, max_tokens=max_tokens)
        except UpstreamBusy as busy:  # other requests took the room while this one was prepared
            self._ledger.extra.skipped[busy.reason] += 1
        except UpstreamError:
            self._ledger.fail_open("probe")
        return None


async def ask_paired_call(
    continuer: Continuer, scorer: Scorer, body: Mapping[str, Any], *, api: ApiFormat, arm: str, propensity: float
) -> None:
    """In an audit, send the client's question once more with an arm's fields, for the record only.

    arm  "effort=low", "budget_tokens=512"; "full": no field is added

    If an upstream's thought cannot be cut, only effort or budget can be chosen, and no single run shows what they lose.
    The client has its full answer by then; the call is sent now or not at all. A call that was sent and failed is
    recorded without an answer, which counts against the arm. As nobody waits, it is made with the upstream's
    `paired_fields`. Where that fails, it is made once more without them; the first attempt counts for its cost alone.
    """
    ledger, client = continuer.ledger, continuer.client
    audit = ledger.audit
    n_before = len(ledger.calls)
    whole = None
    try:
        if client.sends_paired_fields and continuer.may_call(keep=1):
            try:
                whole = await _ask_whole(continuer, {**body, **client.settings.paired_fields}, api, of_tier=True)
            except (UpstreamProtocol, UpstreamDown, UpstreamTimeout, TimeoutError) as error:
                client.note_paired_fields_failed(str(error) or f"no answer in {PAIR_TIMEOUT_S:g} s")
                ledger.calls[-1].discarded = True
                n_before = len(ledger.calls)
        if whole is None:
            whole = await _ask_whole(continuer, body, api)
        audit.pair_answer = ledger.extract(scorer, whole.text, whole.calls)
    except UpstreamBusy as busy:
        ledger.extra.skipped[busy.reason] += 1
    except (UpstreamError, TimeoutError):
        ledger.fail_open("probe")
    finally:
        if len(ledger.calls) > n_before:  # it was sent
            audit.pair_call = ledger.calls[n_before]
            audit.pair_arm = arm
            audit.pair_propensity = propensity


async def _ask_whole(
    continuer: Continuer, body: Mapping[str, Any], api: ApiFormat, *, of_tier: bool = False
) -> TrialReply:
    settings = continuer.settings
    opened = settings.think_opened and not thinking_is_off(body)
    request = Continuation(path=api.path, body=dict(body), opened=opened)
    price_share = settings.paired_price if of_tier else None
    call = continuer.open(request, thought_tokens=0, purpose="probe", api=api, price_share=price_share)
    async with asyncio.timeout(PAIR_TIMEOUT_S), call as (reply, _):
        return TrialReply(request, [piece async for piece in reply], 0)


class HeldCall(Call):
    """A reply that is read from the upstream once and again from memory."""

    def __init__(self, call: Call) -> None:
        self.status = call.status
        self.content_type = call.content_type
        self.is_encoded = call.is_encoded
        self.headers = call.headers
        self.limit_headers = call.limit_headers
        self.asks_for_less = call.asks_for_less
        self._source: Call | None = call
        self._parts: deque[bytes] = deque()

    @property
    def at_end(self) -> bool:
        return self._source.at_end if self._source is not None else not self._parts

    async def read(self, on_arrival: ArrivalCallback | None = None) -> bytes:  # noqa: ARG002
        if self._source is None:
            return self._parts.popleft() if self._parts else b""
        data = await self._source.read()
        self._parts.append(data)
        return data

    def rewind(self) -> None:
        """Read from memory from now on."""
        self._source = None

    def close(self) -> None:
        if self._source is not None:
            self._source.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectors:
    embedder: Embedder
    ledger: Ledger
    max_calls: int  # extra calls of the run, those of other kinds included
    keep: int = 0  # calls to leave for what may have to follow

    async def of(self, text: str) -> tuple[float, ...]:
        """Return the vector of a draft; () if there is none, in which case words are compared."""
        if not text.strip():
            return ()
        try:
            return self.embedder.recall(text) or await self._embed(text)
        except Exception:  # noqa: BLE001 - a broken embedder costs a vector, never an answer
            self.ledger.fail_open(SITE)
            return ()

    async def add_to(self, step: Step) -> Step:
        """Return the step with the vector of its text, or of its answer if it has no text."""
        vector = await self.of(step.text or step.answer or "")
        return replace(step, vector=vector) if vector else step

    async def _embed(self, text: str) -> tuple[float, ...]:
        if self.embedder.rests:
            self.ledger.extra.skipped["embedder_down"] += 1
            self.ledger.fail_open(SITE)
            return ()
        if self.ledger.n_extra_calls + self.keep >= self.max_calls:
            self.ledger.extra.skipped["max_extra_calls"] += 1
            return ()
        self.ledger.extra.n_embeddings += 1
        vector = await self.embedder.embed(text)
        if vector is None:
            self.ledger.fail_open(SITE)
        return vector or ()


# --------------------------------------------------------------------------- reading replies


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    text: str
    tokens: tuple[TokenLogprob, ...] = ()  # those in `text`; (): unknown
    finish_reason: str | None = None
    calls_delta: list[Any] = field(default_factory=list)  # parts of tool calls that came with it
    calls: list[Any] = field(default_factory=list)  # of the last piece: all calls, put together


def entropy_of(rivals: tuple[tuple[str, float], ...]) -> float | None:
    """Return the entropy in nats of the listed rivals, the missing mass counted as one more; None if none is listed."""
    if not rivals:
        return None
    listed = [(exp(value), value) for _, value in rivals if value > -700]
    rest = max(0.0, 1.0 - sum(p for p, _ in listed))
    tail = 0.0 if rest < 1e-12 else -rest * log(rest)
    return max(0.0, tail - sum(p * value for p, value in listed))


def margin_of(token: TokenLogprob) -> float | None:
    """Return p(token) minus p(its strongest listed rival), in [0, 1]; None if no rival is listed or one is stronger."""
    rivals = [value for text, value in token.top if text != token.token]
    if not rivals or not max(rivals) <= token.logprob <= 1e-3:
        return None
    return min(1.0, exp(token.logprob)) - exp(max(rivals))


async def chunks(
    call: Call, account: CallAccount, events: ChatEvents, *, inside: str
) -> AsyncGenerator[tuple[Chunk, bytes], None]:
    """Yield each chunk and its bytes up to the end. Raise UpstreamError, naming what is `inside`, if it breaks off."""
    splitter, n_events = wire.SseSplitter(), 0
    while data := await call.read():
        frames = splitter.feed(data)
        n_events += len(frames)
        if n_events > MOST_EVENTS:
            raise UpstreamProtocol(f"the upstream sent more than {MOST_EVENTS} events inside a {inside}")
        for frame in frames:
            if frame.data is None:
                continue
            chunk = events.read(frame)
            if chunk is None:
                return
            if wire.is_given(chunk.error):
                raise UpstreamProtocol(f"the upstream reported an error inside a {inside}")
            account.note_usage(chunk.usage)
            yield chunk, frame.data
            if events.is_over:
                return


async def pieces(
    call: Call,
    account: CallAccount,
    events: ChatEvents,
    *,
    tags: tuple[str, str],
    prefill: str = "",
    opened: bool = False,
) -> AsyncGenerator[Piece, None]:
    """Yield a reply's pieces without its thought, in which it begins if `opened`, and without a repeated `prefill`.

    Raise UpstreamError if the stream breaks off.
    """
    answer = AnswerOnly(prefill, tags, opened=opened)
    finished = False
    n_chars = 0
    async with aclosing(chunks(call, account, events, inside="continuation")) as stream:
        async for chunk, _ in stream:
            choice = first_choice(chunk)
            if choice is None:
                continue
            piece = answer.read(choice, account)
            finished = finished or choice.finish_reason is not None
            n_chars += len(piece.text) + len(piece.tokens)  # calls have a limit of their own
            if n_chars > MOST_ANSWER_CHARS:
                raise UpstreamProtocol(f"the upstream continued with more than {MOST_ANSWER_CHARS} characters")
            if piece.text or piece.calls_delta or piece.finish_reason:
                yield piece
    if not finished:
        raise UpstreamProtocol("the upstream ended a continuation without a finish reason")
    account.cancelled = False
    await call.settle()


class AnswerOnly:
    """Keeps only the answer of a reply: removes a repeated prefill, a thought and a second closing tag."""

    def __init__(self, prefill: str, tags: tuple[str, str], *, opened: bool) -> None:
        self._prefill, self._closing = PrefillStripper(prefill), PrefillStripper(tags[1])
        self._opened = opened
        self._tags, self._think = tags, ThinkTag(*tags, opened=opened)
        self._calls: CallParts | None = None

    def read(self, choice: Choice, account: CallAccount) -> Piece:
        text = choice.text or (choice.delta.content if choice.delta else None) or ""
        thought = wire.reasoning_of(choice.delta)[0] if choice.delta else ""
        if thought and self._opened:  # the server separates it, so no content begins inside it
            self._think, self._opened = ThinkTag(*self._tags), False
        tokens = wire.logprobs_of(choice)
        fresh, was_inside = self._prefill.feed(text), self._think.inside
        answer = self._answer_in(self._think.feed(fresh)) if fresh else ""
        hidden = bool(thought) or (bool(fresh) and (was_inside or self._think.inside))
        calls_delta = self._read_calls(choice)
        if fresh or thought or calls_delta:  # what repeats the prefill was read, not generated
            account.received_tokens += len(tokens) or 1
        if hidden:
            account.reasoning_tokens += len(tokens) or 1
        if choice.finish_reason is not None:
            answer += self._close()
        is_last = choice.finish_reason is not None and self._calls is not None
        return Piece(
            text=answer,
            tokens=() if hidden else tokens,
            finish_reason=choice.finish_reason,
            calls_delta=calls_delta,
            calls=self._calls.calls if is_last and self._calls is not None else [],
        )

    def _read_calls(self, choice: Choice) -> list[Any]:
        if choice.delta is None or not choice.delta.calls_tool:
            return []
        self._calls = self._calls or CallParts(MOST_ANSWER_CHARS)
        return self._calls.add(choice.delta)

    def _answer_in(self, parts: list[ChannelText]) -> str:
        return self._closing.feed("".join(text for channel, text in parts if channel == "answer"))

    def _close(self) -> str:
        left = self._prefill.close()
        parts = self._think.feed(left) if left else []
        return self._answer_in([*parts, *self._think.close()]) + self._closing.close()


class PrefillStripper:
    """Removes the prefill from the start of a reply: llama.cpp repeats it, vLLM does not."""

    def __init__(self, prefill: str) -> None:
        self._prefill = prefill
        self._held = ""
        self._done = not prefill

    def feed(self, text: str) -> str:
        """Return the new part of `text`. Text is held back only while it may still be the prefill."""
        if self._done:
            return text
        self._held += text
        if not self._held.startswith(self._prefill) and self._prefill.startswith(self._held):
            return ""
        self._done = True
        return self._held.removeprefix(self._prefill)

    def close(self) -> str:
        held, self._held = ("" if self._done else self._held), ""
        return held
