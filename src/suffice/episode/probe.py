"""Calls beside a run: trial answers, an audit's second call, and vectors of its drafts.

A probe asks what the model would say if its thought were closed here. It never touches the run: it continues a copy of
the thought. When it fails, the checkpoint has no answer, which is the safe side: an unknown answer stops nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from suffice.episode.answer_forcing import Continuer
from suffice.episode.chunk_parsing import margin_of, pieces
from suffice.episode.ledger import CallAccount, Ledger
from suffice.episode.segment import Checkpoint, missing_step
from suffice.errors import UpstreamBusy, UpstreamError, UpstreamProtocol
from suffice.scoring.base import Scorer
from suffice.signals.folds.drafts import Embedder
from suffice.types import Step
from suffice.upstream.client import Headers, UpstreamClient, governed_headers
from suffice.upstream.continuation import cut_at
from suffice.upstream.drivers import CHAT_PATH, merge_fields, thinking_is_off
from suffice.upstream.wire import encode_json

FINISH_TIMEOUT_S = 60.0  # of a whole finish that is asked for the record alone
KEPT_CALLS = 2  # of the request's extra calls: one to continue after a stop, one to run again if that fails


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialAnswer:
    text: str
    logprobs: tuple[float, ...]  # natural log, of the answer's tokens
    entropy: float | None  # nats, of the first token
    margin: float | None  # of the first token over its strongest rival, [0, 1]
    closed_entropy: float | None  # nats, of the first token behind the closed thought; None: words of ours are
    tokens: int  # generated for it


class Prober:
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
            async with asyncio.timeout(self._continuer.probe.timeout_s):
                request = await self._continuer.prepare(
                    method, thought, purpose="probe", max_tokens=self._continuer.probe.max_tokens
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
        answer = request.answer_prefix + cut_at(text, request.stop)
        margin = None if first is None else margin_of(first)
        # Behind words of ours the answer's first token is not the first behind the closed thought.
        closed = None if request.answer_prefix else entropy
        return TrialAnswer(
            text=answer, logprobs=tuple(logprobs), entropy=entropy, margin=margin, closed_entropy=closed, tokens=spent
        )


PAIR_TIMEOUT_S = 600.0  # of a whole second run


@dataclass(frozen=True, slots=True, kw_only=True)
class CallArm:
    name: str  # "effort=low", "budget_tokens=512"; "full": nothing else
    fields: Mapping[str, Any]  # of the upstream, added to the client's own
    propensity: float


async def ask_paired_call(
    client: UpstreamClient, ledger: Ledger, scorer: Scorer, arm: CallArm, *, body: Mapping[str, Any], headers: Headers
) -> None:
    """In an audit, ask the client's question once more with an arm, for the record alone.

    Where an upstream's thought cannot be cut, only effort or budget can be chosen, and what they lose is seen in no
    single run. The client has its full answer by then; the call is an extra one, sent now or not at all.
    A call that was sent and came to nothing is on record without an answer, which counts against the arm.

    body  the client's, as it was sent for the full run
    """
    account, asked = CallAccount("probe"), merge_fields(body, arm.fields)
    text: str | None = None
    try:
        async with asyncio.timeout(PAIR_TIMEOUT_S):
            with client.extra_call(lambda: account.fresh_tokens, may_be_refused=True):
                ledger.calls.append(account)
                ledger.pair_call, ledger.pair_arm, ledger.pair_propensity = account, arm.name, arm.propensity
                text = await _whole_answer(client, ledger, account, asked, headers)
    except UpstreamBusy as busy:
        ledger.skipped[busy.reason] += 1
        return
    except (UpstreamError, TimeoutError):
        ledger.fail_open("probe")
    ledger.pair_answer = None if text is None else scorer.extract(text)


async def _whole_answer(
    client: UpstreamClient, ledger: Ledger, account: CallAccount, body: Mapping[str, Any], headers: Headers
) -> str:
    own, settings, text = governed_headers(headers, nth=len(ledger.calls)), client.settings, ""
    async with client.open(CHAT_PATH, encode_json(body), own, extra=True) as call:
        ledger.n_refused += call.asks_for_less
        if call.status != 200 or call.content_type != "text/event-stream":
            raise UpstreamProtocol(f"the upstream answered {call.status} {call.content_type} to a second call")
        account.began = True
        opened = settings.think_opened and not thinking_is_off(body)
        read = pieces(call, account, tags=(settings.think_open, settings.think_close), opened=opened)
        async with aclosing(read) as reply:
            async for piece in reply:
                text += piece.text
    return text


SITE = "embedder"  # under which a run says that its drafts were compared by words for want of vectors


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectors:
    embedder: Embedder
    ledger: Ledger
    max_calls: int  # extra calls of the run, those of other kinds included
    keep: int = 0  # of them left over for what may have to follow

    async def of(self, text: str) -> tuple[float, ...]:
        """The vector of a draft; () where there is none, for whatever reason: then words are compared."""
        if not text.strip():
            return ()
        try:
            kept = self.embedder.recall(text)
            return kept or await self._asked(text)
        except Exception:  # noqa: BLE001 - a broken embedder costs a vector, never an answer
            self.ledger.fail_open(SITE)
            return ()

    async def put_in(self, step: Step) -> Step:
        """The step with the vector of its text, or of its answer where it has no text."""
        vector = await self.of(step.text or step.answer or "")
        return replace(step, vector=vector) if vector else step

    async def _asked(self, text: str) -> tuple[float, ...]:
        if self.embedder.rests:
            self.ledger.skipped["embedder_down"] += 1
            self.ledger.fail_open(SITE)
            return ()
        if self.ledger.n_extra_calls + self.keep >= self.max_calls:
            self.ledger.skipped["max_extra_calls"] += 1
            return ()
        self.ledger.n_embeddings += 1
        (vector,) = await self.embedder.embed([text])
        if vector is None:
            self.ledger.fail_open(SITE)
        return vector or ()
