"""Runs one chain of thought: relays it, yields its steps, and schedules their probes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from suffice.episode.checkpoints import Checkpoint, missing_step, visible_step
from suffice.episode.extra_calls import Prober, Vectors
from suffice.episode.line_signals import LineSignals
from suffice.episode.stream_relay import StreamRelay
from suffice.types import Step


class ReasoningRun:
    """Yields the steps of one chain of thought while relaying it, and schedules their probes.

    prober     None: no step is probed, and a step's answer is read from its text
    additions  made to each step, in this order
    drain      every scheduled step is probed, even after the end, as in an audit
    """

    def __init__(
        self,
        relay: StreamRelay,
        *,
        prober: Prober | None = None,
        additions: Sequence[LineSignals | Vectors] = (),
        drain: bool = False,
    ) -> None:
        self.relay, self.reader = relay, relay.reader
        self._prober = prober
        self._additions = additions
        self._drain = drain
        self._probes_are_off = prober is None
        self._visible: str | None = None  # the answer in the text so far

    async def steps(self) -> AsyncGenerator[Step, None]:
        state = self.reader.state
        waiting: deque[Checkpoint] = deque()
        probing: asyncio.Task[Step] | None = None
        try:
            # A probe already sent is paid for, so it may finish; the client no longer waits for it.
            while not state.ended or probing or (self._drain and waiting):
                if self.reader.must_close:
                    break
                if probing is None and waiting and (self._drain or not state.ended):
                    point = waiting.popleft()
                    probing = self._begin_probe(point)
                    if probing is None:
                        yield self._build_unprobed_step(point)
                elif probing is None:
                    waiting.extend(await self.relay.advance(to_step=True))
                else:
                    await self._wait_for_probe_or_read(probing, waiting)
                    if probing.done():
                        step, probing = probing.result(), None
                        yield step
            for left in waiting:
                yield self._build_unprobed_step(left)  # the run ended before they could be probed
        finally:
            if probing is not None:
                probing.cancel()
                await asyncio.gather(probing, return_exceptions=True)

    def _begin_probe(self, point: Checkpoint) -> asyncio.Task[Step] | None:
        prober = None if self._probes_are_off else self._prober
        try:
            prober = prober if prober is not None and prober.ready() else None
        except Exception:  # noqa: BLE001 - as for the probe itself
            self._disable_probes()
            prober = None
        if prober is None and not self._additions:
            return None
        return asyncio.create_task(self._probe(point, prober))

    async def _probe(self, point: Checkpoint, prober: Prober | None) -> Step:
        """Return the probed step; a probe that raises leaves it without an answer and is the last one."""
        try:
            step = self._build_unprobed_step(point) if prober is None else await prober.ask(point)
            for addition in self._additions:
                step = await addition.add_to(step)
            return step
        except Exception:  # noqa: BLE001 - a broken probe costs tokens, never an answer
            self._disable_probes()
            return missing_step(point)

    def _disable_probes(self) -> None:
        self.reader.ledger.fail_open("probe")
        self._probes_are_off = True

    def _build_unprobed_step(self, point: Checkpoint) -> Step:
        if self._prober is not None:
            return missing_step(point)
        step = visible_step(point, self.reader.extract_from_thought(point.text), self._visible)
        self._visible = step.answer
        return step

    async def _wait_for_probe_or_read(self, probing: asyncio.Task[Step], waiting: deque[Checkpoint]) -> None:
        tasks: set[asyncio.Task[Any]] = {probing}
        if not self.reader.state.ended:
            tasks.add(self.relay.begin_read())
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if self.relay.has_read:
            waiting.extend(await self.relay.advance())
