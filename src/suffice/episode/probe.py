"""Extra calls beside a run: trial answers, an audit's paired call, vectors. A failed probe never stops a run."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from suffice.episode.answer_forcing import Continuer
from suffice.episode.chain_reader import Checkpoint, missing_step, visible_step
from suffice.episode.chunk_parsing import Piece, entropy_of, margin_of, pieces
from suffice.episode.ledger import CallAccount, Ledger
from suffice.episode.stream_relay import StreamRelay
from suffice.errors import UpstreamBusy, UpstreamError, UpstreamProtocol
from suffice.scoring.base import Scorer
from suffice.signals.folds.wording import Embedder
from suffice.types import Step
from suffice.upstream.client import Headers, UpstreamClient, governed_headers
from suffice.upstream.continuation import Continuation, cut_at
from suffice.upstream.drivers import CHAT_PATH, merge_fields, thinking_is_off
from suffice.upstream.wire import encode_json

FINISH_TIMEOUT_S = 60.0  # of a whole finish that is requested for the record only
PAIR_TIMEOUT_S = 600.0  # of a whole second run
KEPT_CALLS = 2  # of the request's extra calls: one to continue after a stop, one to run again if that fails
SITE = "embedder"  # the degraded site of a run whose drafts were compared by words because vectors were missing


@dataclass(frozen=True, slots=True)
class _Reply:
    request: Continuation
    pieces: list[Piece]
    n_tokens: int  # generated for this reply

    @property
    def text(self) -> str:
        text = "".join(piece.text for piece in self.pieces)
        return self.request.answer_prefix + cut_at(text, self.request.stop)


class Prober:
    def __init__(self, continuer: Continuer, scorer: Scorer, ledger: Ledger) -> None:
        self._continuer, self._scorer, self._ledger = continuer, scorer, ledger

    def ready(self) -> bool:
        """Return whether there is a way to probe and another call is allowed; otherwise the step has no answer."""
        if self._continuer.second_call is None:
            return False
        reason = self._continuer.probe_refusal(keep=KEPT_CALLS)
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
            answer=self._scorer.extract(reply.text),
            answer_source="probe",
            logprobs=tuple(token.logprob for piece in reply.pieces for token in piece.tokens),
            entropy=entropy,
            margin=margin_of(firsts[0]) if firsts else None,
            # After words of ours the answer's first token is not the first after the closed thought.
            closed_entropy=None if reply.request.answer_prefix else entropy,
            text=point.text,
            probe_tokens=reply.n_tokens,
        )

    async def answer_to(self, thought: str, tokens: int) -> str | None:
        """Return the normalised answer after a finished thought of `tokens` tokens; None if there is none."""
        reply = await self._fetch_reply(thought, tokens)
        return None if reply is None else self._ledger.extract(self._scorer, reply.text)

    async def finish_at(self, step: int, thought: str, tokens: int, *, max_tokens: int | None) -> None:
        """Request a whole finish after a step, for the record: what a stop there would have delivered."""
        if not self._continuer.may_call(keep=0):
            return
        reply = await self._fetch_reply(thought, tokens, whole=True, timeout_s=FINISH_TIMEOUT_S, max_tokens=max_tokens)
        if reply is not None:
            self._ledger.audit.finish_step = step
            self._ledger.audit.finish_answer = self._scorer.extract(reply.text)

    async def _fetch_reply(
        self,
        thought: str,
        thought_tokens: int,
        *,
        whole: bool = False,
        timeout_s: float | None = None,
        max_tokens: int | None = None,
    ) -> _Reply | None:
        method, probe = self._continuer.second_call, self._continuer.probe
        if method is None:
            return None
        if not whole:
            timeout_s, max_tokens = probe.timeout_s, probe.max_tokens
        try:
            async with asyncio.timeout(timeout_s):
                request = await self._continuer.prepare(
                    method, thought, purpose="continuation" if whole else "probe", max_tokens=max_tokens
                )
                opened = self._continuer.open(request, thought_tokens=thought_tokens, purpose="probe")
                async with opened as (reply, account):
                    return _Reply(request, [piece async for piece in reply], account.completion_tokens)
        except UpstreamBusy as busy:  # other requests took the room while this one was prepared
            self._ledger.extra.skipped[busy.reason] += 1
        except (UpstreamError, TimeoutError):
            self._ledger.fail_open("probe")
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallArm:
    name: str  # "effort=low", "budget_tokens=512"; "full": no change
    fields: Mapping[str, Any]  # upstream fields added to the client's own
    propensity: float


async def ask_paired_call(
    client: UpstreamClient, ledger: Ledger, scorer: Scorer, arm: CallArm, *, body: Mapping[str, Any], headers: Headers
) -> None:
    """In an audit, send the client's question once more with an arm, for the record only.

    If an upstream's thought cannot be cut, only effort or budget can be chosen, and no single run shows what they lose.
    The client has its full answer by then; the call is sent now or not at all. A call that was sent and failed is
    recorded without an answer, which counts against the arm.
    """
    account = CallAccount("probe")
    text: str | None = None
    try:
        async with asyncio.timeout(PAIR_TIMEOUT_S):
            with client.extra_call(lambda: account.fresh_tokens, may_be_refused=True):
                ledger.calls.append(account)
                audit = ledger.audit
                audit.pair_call, audit.pair_arm, audit.pair_propensity = account, arm.name, arm.propensity
                text = await _whole_answer(client, ledger, account, merge_fields(body, arm.fields), headers)
    except UpstreamBusy as busy:
        ledger.extra.skipped[busy.reason] += 1
        return
    except (UpstreamError, TimeoutError):
        ledger.fail_open("probe")
    ledger.audit.pair_answer = None if text is None else scorer.extract(text)


async def _whole_answer(
    client: UpstreamClient, ledger: Ledger, account: CallAccount, body: Mapping[str, Any], headers: Headers
) -> str:
    own, settings = governed_headers(headers, nth=len(ledger.calls)), client.settings
    async with client.open(CHAT_PATH, encode_json(body), own, extra=True) as call:
        ledger.extra.n_refused += call.asks_for_less
        if call.status != 200 or call.content_type != "text/event-stream":
            raise UpstreamProtocol(f"the upstream answered {call.status} {call.content_type} to a second call")
        account.began = True
        opened = settings.think_opened and not thinking_is_off(body)
        async with aclosing(
            pieces(call, account, tags=(settings.think_open, settings.think_close), opened=opened)
        ) as reply:
            return "".join([piece.text async for piece in reply])


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
        (vector,) = await self.embedder.embed([text])
        if vector is None:
            self.ledger.fail_open(SITE)
        return vector or ()


class ReasoningRun:
    """Yields the steps of one chain of thought while relaying it, and schedules their probes.

    prober  None: no step is probed, and a step's answer is read from its text
    drain   every scheduled step is probed, even after the end, as in an audit
    """

    def __init__(
        self, relay: StreamRelay, *, prober: Prober | None = None, vectors: Vectors | None = None, drain: bool = False
    ) -> None:
        self.relay, self.reader = relay, relay.reader
        self._prober, self._vectors, self._drain = prober, vectors, drain
        self._prober_failed = False
        self._visible: str | None = None

    async def steps(self) -> AsyncGenerator[Step, None]:
        state = self.reader.state
        waiting: deque[Checkpoint] = deque()
        point: Checkpoint | None = None
        probing: asyncio.Task[Step] | None = None
        try:
            # A probe already sent is paid for, so it may finish; the client no longer waits for it.
            while not state.ended or probing or (self._drain and waiting):
                if probing is None and waiting and not (state.ended and not self._drain):
                    point = waiting.popleft()
                    probing = self._begin_probe(point)
                    if probing is None:
                        yield self._build_unprobed_step(point)
                        continue
                if probing is None or point is None:
                    waiting.extend(await self.relay.advance(to_step=True))
                    continue
                await self._wait_for_probe_or_read(probing, waiting)
                if probing.done():
                    step, probing = self._read_probe(probing, point), None
                    yield step
            for left in waiting:
                yield self._build_unprobed_step(left)  # the run ended before they could be probed
        finally:
            if probing is not None:
                probing.cancel()
                await asyncio.gather(probing, return_exceptions=True)

    def _begin_probe(self, point: Checkpoint) -> asyncio.Task[Step] | None:
        prober = self._ready_prober()
        if prober is None and self._vectors is None:
            return None
        return asyncio.create_task(self._probe(point, prober))

    async def _probe(self, point: Checkpoint, prober: Prober | None) -> Step:
        step = self._build_unprobed_step(point) if prober is None else await prober.ask(point)
        return step if self._vectors is None else await self._vectors.add_to(step)

    def _ready_prober(self) -> Prober | None:
        try:
            usable = self._prober is not None and not self._prober_failed and self._prober.ready()
        except Exception:  # noqa: BLE001 - as for the probe itself
            self._disable_probes()
            return None
        return self._prober if usable else None

    def _disable_probes(self) -> None:
        self.reader.ledger.fail_open("probe")
        self._prober_failed = True

    def _build_unprobed_step(self, point: Checkpoint) -> Step:
        if self._prober is not None:
            return missing_step(point)
        step = visible_step(point, self.reader.extract(point.text), self._visible)
        self._visible = step.answer
        return step

    def _read_probe(self, probing: asyncio.Task[Step], point: Checkpoint) -> Step:
        """Return the probed step; a probe that raises leaves it without an answer and is the last one."""
        try:
            return probing.result()
        except Exception:  # noqa: BLE001 - a broken probe costs tokens, never an answer
            self._disable_probes()
            return missing_step(point)

    async def _wait_for_probe_or_read(self, probing: asyncio.Task[Step], waiting: deque[Checkpoint]) -> None:
        tasks: set[asyncio.Task[Any]] = {probing}
        if not self.reader.state.ended:
            tasks.add(self.relay.begin_read())
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if self.relay.has_read:
            waiting.extend(await self.relay.advance())
