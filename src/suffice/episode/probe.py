"""Trial answers: what would the model say if its thought were closed here?

A probe never touches the run: it is a call of its own that continues a copy of the thought. When it
fails, the checkpoint has no answer, which is the safe side: an unknown answer stops nothing.
"""

from __future__ import annotations

import asyncio

from suffice.episode.finish import Continuer
from suffice.episode.ledger import Ledger
from suffice.episode.segment import Checkpoint
from suffice.errors import UpstreamBusy, UpstreamError
from suffice.scoring.base import Scorer
from suffice.types import Step

TIMEOUT_S = 30.0  # a probe that takes longer is of no use to a running thought
KEPT_CALLS = 2  # of the request's extra calls: one to continue after a stop, one to run again if that fails


class Prober:
    """Asks for the trial answer at a checkpoint."""

    def __init__(self, continuer: Continuer, scorer: Scorer, ledger: Ledger) -> None:
        self._continuer, self._scorer, self._ledger = continuer, scorer, ledger

    def ready(self) -> bool:
        """Is there a way to ask, and may another call be made now? Otherwise the step stays without answer."""
        if self._continuer.second_call is None:
            return False
        reason = self._continuer.why_no_probe(keep=KEPT_CALLS)
        if reason is not None:
            self._ledger.skipped[reason] += 1
        return reason is None

    async def ask(self, point: Checkpoint) -> Step:
        """The step that ends at `point`, with the answer that a stop there would deliver."""
        method = self._continuer.second_call
        if method is None:
            return missing(point)
        text, logprobs, entropy = "", list[float](), None
        spent = 0
        try:
            async with asyncio.timeout(TIMEOUT_S):
                request = await self._continuer.prepare(
                    method, point.prefix, purpose="probe", max_tokens=self._continuer.trial_tokens
                )
                async with self._continuer.open(
                    request, thought_tokens=point.tokens_used, purpose="probe"
                ) as (reply, account):
                    async for piece in reply:
                        text += piece.text
                        logprobs.extend(piece.logprobs)
                        entropy = piece.entropy if entropy is None else entropy
                    spent = account.completion_tokens
        except UpstreamBusy as busy:  # others were quicker while the request was being written
            self._ledger.skipped[busy.reason] += 1
            return missing(point)
        except (UpstreamError, TimeoutError):
            self._ledger.fail_open("probe")
            return missing(point)
        return Step(
            index=point.index,
            tokens=point.tokens,
            answer=self._scorer.extract(self._continuer.answer_prefix + text),
            answer_source="probe",
            logprobs=tuple(logprobs),
            entropy=entropy,
            text=point.text,
            probe_tokens=spent,
        )


def missing(point: Checkpoint) -> Step:
    """A step whose trial answer is unknown."""
    return Step(index=point.index, tokens=point.tokens, answer=None, answer_source=None, text=point.text)


def visible(point: Checkpoint, found: str | None, before: str | None) -> Step:
    """A step whose trial answer is read off the thought itself, at no cost: the last one it wrote.

    found   the answer in the step's own text
    before  the visible answer at the checkpoint before; it stands until the text gives another
    """
    answer = before if found is None else found
    return Step(
        index=point.index, tokens=point.tokens, answer=answer,
        answer_source=None if answer is None else "text", text=point.text,
    )  # fmt: skip
