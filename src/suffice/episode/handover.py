"""The stop, carried out: the run leaves its thought and the client reads on without a seam.

    native          the engine closes the thought in the same stream
    with a free slot  the continuation is opened first, the original is held back and dropped at
                      the continuation's first token (the overlap is spent, and counted)
    with one slot     the original is closed first

If the continuation fails or takes longer than `handover_ms`, the original goes on; if it is gone,
one full run follows with its thought hidden; if that fails too, the client gets an error frame.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass

from suffice.episode.finish import Continuer
from suffice.episode.ledger import CallAccount, Ledger
from suffice.episode.reading import Piece
from suffice.episode.reasoning import DONE_FRAME, ReasoningRun
from suffice.episode.report import suffice_object, usage_json
from suffice.errors import UpstreamError, UpstreamTimeout
from suffice.settings import FinishMethod
from suffice.upstream.wire import Frame

Rerun = Callable[[], AbstractAsyncContextManager[ReasoningRun]]
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class HandOver:
    """Everything a stop needs."""

    run: ReasoningRun
    continuer: Continuer
    ledger: Ledger
    rerun: Rerun              # opens the client's request once more; the caller owns its call
    max_tokens: int | None    # the client's cap on all generated tokens; None: none
    handover_ms: int
    buffer_bytes: int
    monotonic_s: Clock

    async def carry_out(self, thought: str) -> None:
        """Close the thought after `thought` and deliver the answer; the original goes on if all fails."""
        for method in self.continuer.methods:
            if not self.run.may_stop():
                break  # the answer began while we were asking: a late stop is no stop
            if method == "native":
                if await self._native():
                    return
            elif await self._continue_by(method, thought):
                return
        await self.run.rest()

    async def _native(self) -> bool:
        start = self.monotonic_s()
        try:
            closed = self.run.seen.id is not None and await self.continuer.end_reasoning(self.run.seen.id)
        except UpstreamError:
            closed = False
        if not closed:
            self.ledger.fail_open("native")
            return False
        self._stopped("native", start)
        await self.run.rest()
        return True

    def _stopped(self, method: FinishMethod, start_s: float) -> None:
        self.ledger.stopped, self.ledger.finish_method = True, method
        self.ledger.handover_ms = (self.monotonic_s() - start_s) * 1e3

    async def _continue_by(self, method: FinishMethod, thought: str) -> bool:
        """Answer from a second call. False: it failed, and the original is still running."""
        overlap = self.continuer.settings.slots > 1
        start = self.monotonic_s()
        async with AsyncExitStack() as stack:
            if overlap:
                self.run.held = []
            else:
                await self._drop_original()
            try:
                first, reply, account = await self._first_piece(stack, method, thought, overlap)
            except UpstreamError:
                self.ledger.fail_open("handover")
                self._discard_last()
                if overlap:
                    await self.run.release()
                    return self.run.seen.ended
                await self._rerun()
                return True
            if self.run.held is not None and self.run.seen.ended:
                account.discarded = True  # the model closed its thought meanwhile: its own end is better
                await self.run.release()
                return True
            await self._drop_original()
            self._stopped(method, start)
            await self._deliver(first, reply, account)
        return True

    async def _first_piece(
        self, stack: AsyncExitStack, method: FinishMethod, thought: str, overlap: bool
    ) -> tuple[Piece, AsyncGenerator[Piece, None], CallAccount]:
        """Open the continuation and wait for its first text, holding the original back meanwhile."""
        holding = asyncio.create_task(self._hold()) if overlap else None
        try:
            async with asyncio.timeout(self.handover_ms / 1e3):
                reply, account = await stack.enter_async_context(
                    self.continuer.open(method, thought, purpose="continuation", max_tokens=self._left())
                )
                async for piece in reply:
                    if piece.text.strip():
                        return piece, reply, account
            raise UpstreamError("the continuation gave no answer")
        except TimeoutError:
            raise UpstreamTimeout(f"the continuation took longer than {self.handover_ms} ms") from None
        finally:
            if holding is not None:
                holding.cancel()
                await asyncio.gather(holding, return_exceptions=True)

    async def _hold(self) -> None:
        """Keep reading the original, up to the buffer's size; then its socket waits."""
        while not self.run.seen.ended and self.run.held_bytes < self.buffer_bytes:
            await self.run.relay(await self.run.next_bytes())

    async def _drop_original(self) -> None:
        """Close the original. What it sent is spent; its prompt is counted where an engine can count."""
        if not self.run.seen.ended:
            self.run.abandon()
        self.run.held = None
        if self.run.account.prompt_tokens is None:
            try:
                prompt = await self.continuer.prompt()
            except UpstreamError:
                return
            if prompt is not None:
                self.run.account.prompt_tokens = prompt.n_tokens

    def _left(self) -> int | None:
        """Tokens that the client's cap leaves for the answer; at least one."""
        if self.max_tokens is None:
            return None
        return max(1, self.max_tokens - self.run.account.received_tokens)

    def _discard_last(self) -> None:
        last = self.ledger.calls[-1]
        if last.purpose == "continuation":
            last.discarded = True

    async def _deliver(self, first: Piece, reply: AsyncGenerator[Piece, None], account: CallAccount) -> None:
        """Write the continuation into the client's stream as if the first call had gone on."""
        run, text = self.run, self.continuer.answer_prefix
        opening = self.continuer.settings.think_close if run.seen.inline else ""
        finish: str | None = None
        async for piece in _chain(first, reply):
            finish = piece.finish_reason or finish
            text += piece.text
            if piece.text:
                shown = opening + (self.continuer.answer_prefix if piece is first else "") + piece.text
                opening = ""
                await run.delivery.frames([run.frame_of({"content": shown})])
        run.seen.phase, run.seen.ended = "answering", True
        self.ledger.answer = run.extract(text)
        self.ledger.truncated = False
        await run.delivery.frames(self._closing_frames(finish or "stop"))
        await run.delivery.end()

    def _closing_frames(self, finish: str) -> list[Frame]:
        run = self.run
        frames = [run.frame_of({}, finish, suffice=suffice_object(self.ledger))]
        usage = self.ledger.usage()
        if run.wants.usage and usage is not None:
            frames.append(run.usage_frame(usage_json(usage)))
        return [*frames, DONE_FRAME]

    async def _rerun(self) -> None:
        """The original is gone and its continuation failed: run once more, the thought hidden."""
        self.run.account.discarded = True
        async with self.rerun() as again:
            again.alias = self.run.seen
            await again.rest()


async def _chain(first: Piece, rest: AsyncGenerator[Piece, None]) -> AsyncIterator[Piece]:
    yield first
    async for piece in rest:
        yield piece
