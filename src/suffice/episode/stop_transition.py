"""Carries out a stop: the run leaves its thought, and the client reads on without a seam.

    native            the engine closes the thought in the same stream
    with a free slot  the continuation is opened first; the original is held back and dropped at the continuation's
                      first token (the overlap is spent, and counted)
    without           the original is closed first, unless that recently gave its slot to a waiting request

A slot is free while fewer completions of all requests through this gateway are open on the upstream than it serves at
once. If the continuation fails or takes longer than `handover_ms`, the original goes on. If the original is gone, one
full run follows with its thought hidden; if that fails too, the client gets an error frame. If the model closes its
thought before the continuation begins, its own end is delivered and nothing was stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from suffice.episode.chain_reader import StreamState, goes_on, split_at_close
from suffice.episode.extra_calls import Continuer, Piece
from suffice.episode.ledger import CallAccount, Ledger, suffice_object
from suffice.episode.stream_relay import StreamRelay
from suffice.errors import UpstreamError, UpstreamProtocol, UpstreamTimeout
from suffice.settings import FinishMethod, Route
from suffice.upstream.continuation import Continuation
from suffice.upstream.wire import Frame

SLOT_TOKENS, SLOT_S = 4.0, 0.25  # most time for an engine to see a cancelled call: in tokens' time, in seconds

Rerun = Callable[[StreamState], AbstractAsyncContextManager[StreamRelay]]  # given the run that the client knows
OpenContinuation: TypeAlias = tuple[AsyncIterator[Piece], CallAccount]  # the first piece is more than white space


@dataclass(slots=True, kw_only=True)
class StopTransition:
    relay: StreamRelay
    continuer: Continuer
    rerun: Rerun  # opens the client's request once more; the caller owns its call
    max_tokens: int | None  # the client's cap on all generated tokens; None: none
    route: Route  # its settings
    monotonic_s: Callable[[], float]
    began_s: float  # when the original was opened
    cut_at: Callable[[int], None] = lambda _: None  # told the length of the thought when the original is dropped
    _is_stop: bool = True  # False: the thought would leave no room for an answer
    _n_thought_chars: int = 0  # of the thought that the continuation sees
    _overlaps: bool = False  # the original runs on beside the continuation that is being opened

    @property
    def ledger(self) -> Ledger:
        return self.relay.reader.ledger

    @property
    def _original_has_closed(self) -> bool:
        """Whether the original closed its thought by itself while it was held back."""
        is_over = self._overlaps and self.relay.failure is None and not self.relay.reader.is_in_thought
        return is_over and not self.ledger.reply.unclosed  # the cap may have ended it inside its thought

    async def carry_out(self, thought: str, thought_tokens: int, *, is_stop: bool = True) -> None:
        """Close the thought after `thought` and deliver the answer; the original goes on if all methods fail.

        is_stop  a policy stopped the run; otherwise only the cap on its tokens is near
        """
        self._is_stop, self._n_thought_chars = is_stop, len(thought)
        for method in self.continuer.methods:
            if not self.relay.reader.is_in_thought:
                break  # the answer began during preparation: too late to stop
            if method == "native":
                if self.continuer.facts.control is not None and await self._stop_natively():
                    return
            elif await self._continue_with(method, thought, thought_tokens):
                return
        await self.relay.rest()

    async def _stop_natively(self) -> bool:
        start_s = self.monotonic_s()
        own_end = self.relay.own_end
        completion_id = self.relay.reader.state.id
        try:
            within_s = self.route.handover_ms / 1e3
            closed = completion_id is not None and await self.continuer.end_reasoning(completion_id, within_s)
        except UpstreamError:
            closed = False
        if not closed:
            self.ledger.fail_open("native")
            return False
        self._note_stop("native", start_s)
        own_end.wanted = True
        await self.relay.rest()
        if own_end.kept is not None:  # the thought was closed, and no answer followed
            await self.finish_unclosed(self._tokens_left())
        return True

    async def _await_slot_release(self) -> None:
        """Give llama.cpp a moment to free the cancelled call's slot; an earlier request would read the prompt anew."""
        if self.continuer.facts.caches_by_slot:
            a_token_s = (self.monotonic_s() - self.began_s) / max(1, self.relay.reader.account.received_tokens)
            await asyncio.sleep(min(SLOT_TOKENS * a_token_s, SLOT_S))

    def _note_stop(self, method: FinishMethod, start_s: float) -> None:
        stop = self.ledger.stop
        if self._is_stop:
            self.cut_at(self.relay.reader.account.reasoning_tokens)
        stop.acted, stop.finish_method = self._is_stop, method
        stop.handover_ms = (self.monotonic_s() - start_s) * 1e3
        if self.ledger.trace is not None:
            self.ledger.trace.note("suffice.stop_transition", method=method, pause_ms=round(stop.handover_ms))

    async def _continue_with(self, method: FinishMethod, thought: str, thought_tokens: int) -> bool:
        """Answer from a second call; return False if that failed and the original is still running."""
        relay, start_s = self.relay, self.monotonic_s()
        request = await self._prepare(method, thought, self._tokens_left())
        if request is None or not self._may_begin():
            return False
        async with AsyncExitStack() as stack:
            if self._overlaps:
                relay.hold()
            else:
                relay.abandon()
                await self._await_slot_release()
            try:
                reply, account = await self._open(stack, request, thought_tokens)
            except UpstreamError as error:
                await self._discard_last(stack)
                return await self._recover(error)
            if self._original_has_closed:
                account.discarded = True
                await stack.aclose()
                await relay.release()
                return False
            relay.abandon()
            self.ledger.reply.unclosed, relay.own_end.kept = False, None
            self._note_stop(method, start_s)
            try:
                await self._deliver(reply)
            except UpstreamError as error:
                self.ledger.fail_open("handover")
                if not relay.delivery.can_rerun():
                    raise
                self.ledger.forget_run("handover")
                await stack.aclose()
                await self._deliver_rerun(error)
        return True

    def _may_begin(self) -> bool:
        client = self.continuer.client
        self._overlaps = client.n_open < client.slots
        # If the original has to go first, a full run must remain possible after it.
        if not self.continuer.may_call(keep=0 if self._overlaps else 1):
            return False
        # Its continuation must not queue behind others.
        why = "paused" if client.is_paused else "crowded" if not self._overlaps and client.is_crowded else None
        if why is not None:
            self.ledger.extra.skipped[why] += 1
            self.ledger.fail_open("slots")
        return why is None

    async def _prepare(self, method: FinishMethod, thought: str, max_tokens: int | None) -> Continuation | None:
        if not self.continuer.may_call(keep=0):
            return None
        try:
            return await self.continuer.prepare(method, thought, purpose="continuation", max_tokens=max_tokens)
        except UpstreamError:
            self.ledger.fail_open("handover")
            return None

    async def finish_unclosed(self, max_tokens: int | None) -> None:
        """Answer a run that ended inside its thought; deliver its own end if it closed it, or if that fails."""
        if not self.ledger.reply.unclosed:
            await self.relay.own_end.deliver(self.relay.delivery)
            return
        relay = self.relay
        stop = self.ledger.stop
        start_s = self.monotonic_s()
        self._n_thought_chars = len(relay.reader.thought)
        method = next((way for way in self.continuer.methods if way != "native"), None)
        before = stop.finish_method, stop.handover_ms
        request = None if method is None else await self._prepare(method, relay.reader.thought, max_tokens)
        if request is None:
            await relay.own_end.deliver(relay.delivery)
            return
        async with AsyncExitStack() as stack:
            try:
                reply, _ = await self._open(stack, request, relay.reader.account.reasoning_tokens)
                await relay.own_end.make_room(relay.delivery)
                stop.finish_method, stop.handover_ms = method, (self.monotonic_s() - start_s) * 1e3
                await self._deliver(reply)
            except UpstreamError:
                self.ledger.fail_open("handover")
                await self._discard_last(stack)
                stop.finish_method, stop.handover_ms = before
                await relay.own_end.deliver(relay.delivery)
            else:
                relay.own_end.kept = None

    async def _recover(self, error: UpstreamError) -> bool:
        """Recover from a failed continuation; return False if the original goes on, True if a rerun was delivered."""
        if not self._original_has_closed:
            self.ledger.fail_open("handover")
        if self._overlaps and self.relay.failure is None:
            await self.relay.release()
            return False
        if not self._overlaps and isinstance(error, UpstreamTimeout):
            self.continuer.client.note_lost_slot()
        await self._deliver_rerun(error)
        return True

    async def _open(self, stack: AsyncExitStack, request: Continuation, thought_tokens: int) -> OpenContinuation:
        holding: asyncio.Task[None] | None = None
        before = request.answer_prefix
        try:
            async with asyncio.timeout(self.route.handover_ms / 1e3) as deadline:
                if self._overlaps:
                    holding = asyncio.create_task(self._hold(deadline))
                reply, account = await stack.enter_async_context(
                    self.continuer.open(request, thought_tokens=thought_tokens, purpose="continuation")
                )
                async for piece in reply:
                    before += piece.text
                    if piece.text.strip() or piece.calls_delta:
                        return _chain(replace(piece, text=before), reply), account
            raise UpstreamProtocol("the continuation gave no answer")
        except TimeoutError:
            raise UpstreamTimeout(f"the continuation took longer than {self.route.handover_ms} ms") from None
        finally:
            if holding is not None:
                holding.cancel()
                await asyncio.gather(holding, return_exceptions=True)

    async def _hold(self, deadline: asyncio.Timeout) -> None:
        """Keep reading the original, up to the buffer's size. If it closes its thought, end the wait."""
        with contextlib.suppress(UpstreamError):  # remembered in `relay.failure`
            while self.relay.reader.is_in_thought and self.relay.held_bytes < self.route.handover_buffer_bytes:
                await self.relay.advance()
        if self._original_has_closed:
            deadline.reschedule(0.0)

    def _tokens_left(self) -> int | None:
        if self.max_tokens is None:
            return None
        reserve = 1 if self._is_stop else min(self.continuer.probe.max_tokens, self.max_tokens // 2)
        return max(reserve, self.max_tokens - self.relay.reader.account.received_tokens)

    async def _discard_last(self, stack: AsyncExitStack) -> None:
        await stack.aclose()
        last = self.ledger.calls[-1]
        if last.purpose == "continuation":
            last.discarded = True

    async def _deliver(self, reply: AsyncIterator[Piece]) -> None:
        relay = self.relay
        state = self.relay.reader.state
        text = ""
        finish = "stop"
        calls = list[Any]()
        # A body is sent only when it is whole, so a torn answer can still be repaired.
        is_body, held = relay.delivery.can_rerun(), list[Frame]()
        opening = self.continuer.settings.think_close if state.inline else ""
        async for piece in reply:
            finish = piece.finish_reason or finish
            text, calls = text + piece.text, piece.calls or calls
            frames = relay.events.calls(state, piece.calls_delta) if piece.calls_delta else []
            if is_body:
                held += frames
                continue
            if piece.text or (opening and frames):
                await relay.delivery.frames(relay.events.text(state, opening + piece.text))
                opening = ""
            if frames:
                await relay.delivery.frames(frames)
        rest, answer = self._check_answer(text, is_body=is_body)
        if is_body and (text or held):
            unclosed = rest if state.inline else ""  # elsewhere the rest of the thought is left out
            await relay.delivery.frames([*relay.events.text(state, unclosed + opening + answer), *held])
        state.phase = "answering"
        self.ledger.reply.finish_reason = finish
        await self._count_original()
        relay.reader.note_reply(answer, calls)
        await relay.delivery.frames(self._closing_frames(finish))
        await relay.delivery.end()

    def _check_answer(self, text: str, *, is_body: bool) -> tuple[str, str]:
        """Return the rest of the thought in an answer, if any, and the answer; a torn one that was sent is noted."""
        torn = split_at_close(text, self.continuer.settings.think_close)
        rest, answer = torn or ("", text)
        continued = self.relay.reader.thought[self._n_thought_chars :]
        if (torn is not None and not is_body) or goes_on(answer, continued):
            self.ledger.fail_open("torn")
        return rest, answer

    async def _count_original(self) -> None:
        account = self.relay.reader.account
        if account.prompt_tokens is None:
            with contextlib.suppress(UpstreamError):  # otherwise it is estimated from the other calls
                prompt = await self.continuer.prompt(text=False)
                account.prompt_tokens = None if prompt is None else prompt.n_tokens

    def _closing_frames(self, finish: str) -> list[Frame]:
        relay, view = self.relay, self.relay.view
        report = suffice_object(self.ledger) if self.ledger.tells_stop or view.object else None
        usage = self.ledger.usage() if view.usage else None
        return relay.events.closing(relay.reader.state, finish, usage=usage, report=report)

    async def _deliver_rerun(self, error: UpstreamError) -> None:
        if not self.continuer.may_call(keep=0):
            raise error
        self.relay.reader.account.discarded = True
        async with self.rerun(self.relay.reader.state) as again:
            await again.rest()


async def _chain(first: Piece, rest: AsyncGenerator[Piece, None]) -> AsyncIterator[Piece]:
    yield first
    async for piece in rest:
        yield piece
