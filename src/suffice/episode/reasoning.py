"""Schedules the probes of one chain of thought, and yields its steps while the chain is relayed."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any

from suffice.episode.probe import Prober, Vectors
from suffice.episode.segment import Checkpoint, missing_step, visible_step
from suffice.episode.stream_relay import StreamRelay
from suffice.types import Step


class ReasoningRun:
    """The run that the client is watching.

    prober   None: nobody is asked, and a step's answer is read off its text
    vectors  None: the steps get no vectors
    drain    every scheduled step is probed, even after the end, as in an audit
    """

    def __init__(
        self, relay: StreamRelay, *, prober: Prober | None = None, vectors: Vectors | None = None, drain: bool = False
    ) -> None:
        self.relay, self.reader = relay, relay.reader
        self._prober, self._vectors, self._drain = prober, vectors, drain
        self._prober_broke = False
        self._visible: str | None = None

    async def steps(self) -> AsyncGenerator[Step, None]:
        """Yield the run's steps while relaying it, each with what a prober and an embedder say of it."""
        state = self.reader.state
        waiting: deque[Checkpoint] = deque()
        asked: Checkpoint | None = None
        probing: asyncio.Task[Step] | None = None
        try:
            # A probe on its way is paid for: it is let finish, which the client no longer waits for.
            while not state.ended or probing or (self._drain and waiting):
                if probing is None and waiting and not (state.ended and not self._drain):
                    asked = waiting.popleft()
                    probing = self._ask(asked)
                    if probing is None:
                        yield self._unprobed(asked)
                        continue
                if probing is None or asked is None:
                    waiting.extend(await self.relay.advance(to_step=True))
                    continue
                await self._either(probing, waiting)
                if probing.done():
                    step, probing = self._probed(probing, asked), None
                    yield step
            for point in waiting:
                yield self._unprobed(point)  # the run was over before anybody could ask
        finally:
            if probing is not None:
                probing.cancel()
                await asyncio.gather(probing, return_exceptions=True)

    def _ask(self, point: Checkpoint) -> asyncio.Task[Step] | None:
        """Begin to ask for what the step does not show by itself; None: nobody is to be asked."""
        prober = self._ready_prober()
        if prober is None and self._vectors is None:
            return None
        return asyncio.create_task(self._asked(point, prober))

    async def _asked(self, point: Checkpoint, prober: Prober | None) -> Step:
        step = self._unprobed(point) if prober is None else await prober.ask(point)
        return step if self._vectors is None else await self._vectors.put_in(step)

    def _ready_prober(self) -> Prober | None:
        try:
            usable = self._prober is not None and not self._prober_broke and self._prober.ready()
        except Exception:  # noqa: BLE001 - as for the probe itself
            self._give_up_probes()
            return None
        return self._prober if usable else None

    def _give_up_probes(self) -> None:
        self.reader.ledger.fail_open("probe")
        self._prober_broke = True

    def _unprobed(self, point: Checkpoint) -> Step:
        """A step that no probe looks at: what its text shows, or missing where one should have looked."""
        if self._prober is not None:
            return missing_step(point)
        step = visible_step(point, self.reader.extract(point.text), self._visible)
        self._visible = step.answer
        return step

    def _probed(self, probing: asyncio.Task[Step], asked: Checkpoint) -> Step:
        """The probed step; a probe that is itself broken leaves it without an answer, and is the last."""
        try:
            return probing.result()
        except Exception:  # noqa: BLE001 - a broken probe costs tokens, never an answer
            self._give_up_probes()
            return missing_step(asked)

    async def _either(self, probing: asyncio.Task[Step], waiting: deque[Checkpoint]) -> None:
        """Wait for the probe or for the next bytes, and pass bytes on at once."""
        tasks: set[asyncio.Task[Any]] = {probing}
        if not self.reader.state.ended:
            tasks.add(self.relay.begin_read())
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if self.relay.has_read:
            waiting.extend(await self.relay.advance())
