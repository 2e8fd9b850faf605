"""Trial answers: what would the model say if its thought were closed here?

A probe never touches the run: it is a call of its own that continues a copy of the thought. When it
fails, the checkpoint has no answer, which is the safe side: an unknown answer stops nothing.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from suffice.episode.answer_forcing import Continuer
from suffice.episode.chunk_parsing import margin_of
from suffice.episode.ledger import Ledger
from suffice.episode.segment import Checkpoint
from suffice.errors import UpstreamBusy, UpstreamError
from suffice.scoring.base import Scorer
from suffice.types import Step
from suffice.upstream.continuation import cut_at

FINISH_TIMEOUT_S = 60.0  # of a whole finish that is asked for the record alone
KEPT_CALLS = 2  # of the request's extra calls: one to continue after a stop, one to run again if that fails


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialAnswer:
    """What the model said when its thought was closed."""

    text: str
    logprobs: tuple[float, ...]  # natural log, of the answer's tokens
    entropy: float | None  # nats, of the first token
    margin: float | None  # of the first token over its strongest rival, [0, 1]
    closed_entropy: float | None  # nats, of the first token behind the closed thought; None: words of ours are
    tokens: int  # generated for it


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
        trial = await self._try(point.prefix, point.tokens_used)
        if trial is None:
            return missing_step(point)
        return Step(
            index=point.index,
            tokens=point.tokens,
            answer=self._scorer.extract(trial.text),
            answer_source="probe",
            logprobs=trial.logprobs,
            entropy=trial.entropy,
            margin=trial.margin,
            closed_entropy=trial.closed_entropy,
            text=point.text,
            probe_tokens=trial.tokens,
        )

    async def answer_to(self, thought: str, tokens: int) -> str | None:
        """The normalised answer behind a thought that nobody can close any more; None: there is none.

        tokens  of the thought
        """
        trial = await self._try(thought, tokens)
        if trial is None:
            return None
        try:
            return self._scorer.extract(trial.text)
        except Exception:  # noqa: BLE001 - a broken yardstick costs a measurement, never an answer
            self._ledger.fail_open("scorer")
            return None

    async def finish_at(self, step: int, thought: str, tokens: int, *, max_tokens: int | None) -> None:
        """Ask for a whole finish behind a step, for the record: what a stop there would have delivered.

        It is written as a stop's continuation is, and sent as a probe is: now or not at all.

        tokens      of the thought
        max_tokens  of the answer; None: no cap
        """
        method, text = self._continuer.second_call, ""
        if method is None or not self._continuer.may_call(keep=0):
            return
        try:
            async with asyncio.timeout(FINISH_TIMEOUT_S):
                request = await self._continuer.prepare(method, thought, purpose="continuation", max_tokens=max_tokens)
                async with self._continuer.open(request, thought_tokens=tokens, purpose="probe") as (reply, _):
                    async for piece in reply:
                        text += piece.text
        except UpstreamBusy as busy:
            self._ledger.skipped[busy.reason] += 1
            return
        except (UpstreamError, TimeoutError):
            self._ledger.fail_open("probe")
            return
        answer = self._scorer.extract(request.answer_prefix + text)
        self._ledger.finish_step, self._ledger.finish_answer = step, answer

    async def _try(self, thought: str, thought_tokens: int) -> TrialAnswer | None:
        """Ask once; None: no way to ask, or the upstream failed or was too slow."""
        method = self._continuer.second_call
        if method is None:
            return None
        text, logprobs, entropy, first = "", list[float](), None, None
        try:
            async with asyncio.timeout(self._continuer.timeout_s):
                request = await self._continuer.prepare(
                    method, thought, purpose="probe", max_tokens=self._continuer.trial_tokens
                )
                async with self._continuer.open(request, thought_tokens=thought_tokens, purpose="probe") as (
                    reply,
                    account,
                ):
                    async for piece in reply:
                        text += piece.text
                        logprobs.extend(piece.logprobs)
                        entropy = piece.entropy if entropy is None else entropy
                        first = piece.tokens[0] if first is None and piece.tokens else first
                    spent = account.completion_tokens
        except UpstreamBusy as busy:  # others were quicker while the request was being written
            self._ledger.skipped[busy.reason] += 1
            return None
        except (UpstreamError, TimeoutError):
            self._ledger.fail_open("probe")
            return None
        said = request.answer_prefix + cut_at(text, request.stop)
        margin = None if first is None else margin_of(first)
        # Behind words of ours the answer's first token is not the first behind the closed thought.
        closed = None if request.answer_prefix else entropy
        return TrialAnswer(
            text=said, logprobs=tuple(logprobs), entropy=entropy, margin=margin, closed_entropy=closed, tokens=spent
        )


def missing_step(point: Checkpoint) -> Step:
    """A step whose trial answer is unknown."""
    return Step(index=point.index, tokens=point.tokens, answer=None, answer_source=None, text=point.text, missing=True)


def visible(point: Checkpoint, found: str | None, before: str | None) -> Step:
    """A step whose trial answer is read off the thought itself, at no cost: the last one it wrote.

    found   the answer in the step's own text
    before  the visible answer at the checkpoint before; it stands until the text gives another
    """
    answer = before if found is None else found
    return Step(
        index=point.index,
        tokens=point.tokens,
        answer=answer,
        answer_source=None if answer is None else "text",
        text=point.text,
    )
