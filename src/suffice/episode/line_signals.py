"""Signals that a processor in the engine reads from its logits at the ends of lines, see contrib/suffice-vllm.

They cost no probe, and no log-probabilities in the stream.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

import msgspec

from suffice.episode.extra_calls import Continuer
from suffice.errors import UpstreamError
from suffice.types import Step
from suffice.upstream.drivers import CONTROL_PATH
from suffice.upstream.prompts import ask_field

TIMEOUT_S = 1.0
WAITS_S = (0.0, 0.02, 0.05, 0.1, 0.2)  # the engine reads a line's end with the token after it


@dataclass(slots=True)
class LineSignals:
    """Signals that a processor in the engine reads from its logits at the ends of lines, see contrib/suffice-vllm.

    They need no log-probabilities in the stream.
    """

    continuer: Continuer
    _n_tokens: int = 0  # generated up to the end of the last step
    _n_read: int = 0  # … up to the last line end that was read
    _is_off: bool = False

    async def add_to(self, step: Step) -> Step:
        """Return the step with the margin at its last line end and the mean log-probability of its lines' tokens."""
        self._n_tokens += step.tokens
        if self._is_off or "\n" not in step.text:
            return step
        try:
            rows = await self._new_rows()
        except (UpstreamError, msgspec.ValidationError):
            self._is_off = True  # what it would tell is unknown from here on
            self.continuer.ledger.fail_open("signals")
            return step
        if not rows:
            return step
        starts = [self._n_read, *(end for end, _, _ in rows)]
        self._n_read = starts[-1]
        spans = zip(starts, rows, strict=False)
        known = [(end - start, logprob) for start, (end, _, logprob) in spans if logprob is not None]
        n_known = sum(n for n, _ in known)
        mean = sum(n * logprob for n, logprob in known) / n_known if n_known else None
        return replace(step, end_margin=max(0.0, rows[-1][1]), logprob=mean)

    async def _new_rows(self) -> list[tuple[int, float, float | None]]:
        """Return tokens, margin and mean log-probability of the line ends of the last step; [] if none was read."""
        fields = {"id": self.continuer.ledger.request.episode_id, "action": "signals", "after": self._n_read}
        for wait_s in WAITS_S:
            await asyncio.sleep(wait_s)
            client, headers = self.continuer.client, self.continuer.headers
            answer = await ask_field(client, CONTROL_PATH, fields, "signals", headers, TIMEOUT_S)
            rows = msgspec.convert(answer, list[tuple[int, float, float | None]])
            if rows := [row for row in rows if row[0] <= self._n_tokens]:
                return rows
        return []
