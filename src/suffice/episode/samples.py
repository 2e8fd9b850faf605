"""Draw samples of one question in waves, read in launch order so that live runs, audits and replays vote alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import msgspec

from suffice.episode import vote
from suffice.episode.apis.events import ChatEvents
from suffice.episode.chain_reader import first_choice, n_tokens
from suffice.episode.extra_calls import chunks
from suffice.episode.ledger import CallAccount, Ledger
from suffice.errors import UpstreamError, UpstreamProtocol
from suffice.scoring.scorer import Scorer
from suffice.types import Step
from suffice.upstream.assemble import LIMIT_BYTES, Assembler, calls_of, first_message
from suffice.upstream.client import Call, Headers, UpstreamClient, governed_headers
from suffice.upstream.drivers import CHAT_PATH
from suffice.upstream.wire import REASONING_FIELDS, Choice, encode_frame, encode_json, logprobs_of, reasoning_of

ANSWER_LIMIT_CHARS = 256 * 1024  # of a sample's end, which is scored


class SampleRefusal(UpstreamError):
    """The upstream answered with an error of its own, which is relayed unchanged."""

    def __init__(self, http_status: int, content_type: str, body: bytes, headers: Headers = ()) -> None:
        super().__init__(f"the upstream answered {http_status}")
        self.http_status = http_status
        self.content_type = content_type
        self.body = body
        self.headers = [(k, v) for k, v in headers if k.lower() not in ("content-type", "content-length")]


@dataclass(slots=True)
class Sample:
    index: int  # launch index, from 1
    body: dict[str, Any] | None  # the completion as one body; None: it failed
    answer: str | None
    tokens: int
    failure: UpstreamError | None = None


@dataclass(slots=True)
class SampleRun:
    client: UpstreamClient
    body: Mapping[str, Any]  # the client's body, as sent upstream
    headers: Headers
    ledger: Ledger
    scorer: Scorer
    n_samples: int
    wave: int
    max_bytes: int = LIMIT_BYTES  # in memory, of each sample
    first_alone: bool = False  # the first wave is one sample, which may be enough
    continues_after_failure: bool = False  # observe and audits: more samples are drawn after a failed one
    seen: list[Sample] = field(default_factory=list)  # in launch order
    _encoded: bytes = b""  # one body for all samples, if there is no seed
    _running: list[asyncio.Task[Sample]] = field(default_factory=list)
    _n_good: int = 0  # samples that ended well, read or not
    _is_cut: bool = False  # a person asked for the answer

    def is_decided(self) -> bool:
        return vote.deciding_sample([sample.answer for sample in self.seen], self.n_samples) is not None

    def cut(self) -> None:
        """End the vote with the samples that there are, or with the first to come."""
        self._is_cut = True
        for task in self._running if self._n_good else ():
            if task is not asyncio.current_task():
                task.cancel()

    async def steps(self) -> AsyncGenerator[Step, None]:
        """Yield one step per sample until the vote is decided. Closing the generator cancels the running samples."""
        try:
            while not self.is_decided() and not (self._is_cut and self._n_good):
                first = len(self.seen) + 1
                last = self._wave_end(first)
                if last == first:
                    return
                self._running = [asyncio.create_task(self._draw(i)) for i in range(first, last)]
                for task in self._running:
                    await asyncio.wait((task,))
                    if task.cancelled():
                        continue  # by `cut`
                    self.seen.append(sample := task.result())
                    yield Step(
                        index=len(self.seen),
                        tokens=sample.tokens,
                        answer=sample.answer,
                        answer_source="sample",
                        logprob=mean_logprob(sample.body) if self.first_alone and sample.body is not None else None,
                        missing=sample.failure is not None,
                    )
                    if self.is_decided():
                        break
                if all(s.failure is not None for s in self.seen):
                    return  # only failures: the first one is returned
                if any(s.failure is not None for s in self.seen[first - 1 :]):
                    self.ledger.fail_open("sample")
                    if not self.continues_after_failure:
                        return  # do not send more calls to a struggling upstream; vote on the samples received
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    def _wave_end(self, first: int) -> int:
        """Return the index after the wave from `first`, or `first` for none: while paused, only sample 1 is drawn."""
        if not self.client.is_paused:
            wave = 1 if first == 1 and self.first_alone else self.wave
            return min(first + wave, self.n_samples + 1)
        last = 2 if first == 1 else first
        self.ledger.extra.skipped["paused"] += self.n_samples + 1 - last
        self.ledger.fail_open("sample")
        return last

    async def _draw(self, index: int) -> Sample:
        account = self.ledger.open_call("sample")
        try:
            body = await self._read(index, account)
        except UpstreamError as error:
            # Its traceback would hold on to everything that was read.
            return Sample(index, None, None, account.completion_tokens, failure=error.with_traceback(None))
        account.cancelled = False
        self._n_good += 1
        if self._is_cut:
            self.cut()
        answer = self.ledger.extract(
            self.scorer, completion_text(body)[-ANSWER_LIMIT_CHARS:], calls_of(first_message(body))
        )
        return Sample(index, body, answer, account.completion_tokens)

    async def _read(self, index: int, account: CallAccount) -> dict[str, Any]:
        headers, extra = governed_headers(self.headers, nth=index), index > 1
        async with self.client.open(CHAT_PATH, self._encode(index), headers, extra=extra) as call:
            self.ledger.extra.n_refused += extra and call.asks_for_less
            if call.status != 200 or call.content_type != "text/event-stream":
                raise await sample_refusal(call)
            account.began = True
            return await _assemble(call, account, self.max_bytes)

    def _encode(self, index: int) -> bytes:
        """Encode the request body; each sample gets a seed of its own, because equal seeds would draw equal samples."""
        seed = self.body.get("seed")
        if isinstance(seed, int) and not isinstance(seed, bool):
            return encode_json({**self.body, "seed": seed + index - 1})
        self._encoded = self._encoded or encode_json(self.body)
        return self._encoded

    def result(self) -> dict[str, Any]:
        """Return the winning completion, verbatim except for its usage. Raise the first failure if all failed."""
        good = [s for s in self.seen if s.body is not None]
        if not good:
            failures = [s.failure for s in self.seen if s.failure is not None]
            raise failures[0] if failures else UpstreamProtocol("the upstream returned no sample")
        result = vote.count_votes([s.answer for s in good])
        winner = good[result.winner - 1]
        body, reply = dict(winner.body or {}), self.ledger.reply
        self.ledger.note_reply(self.scorer, completion_text(body), calls_of(first_message(body)))
        reply.vote = result.counts
        reply.answer = result.answer
        reply.response_id = body.get("id")
        reply.note_upstream(body.get("model"), body.get("system_fingerprint"))
        choices = body.get("choices") or [{}]
        reply.finish_reason = choices[0].get("finish_reason")
        return body


async def _assemble(call: Call, account: CallAccount, max_bytes: int) -> dict[str, Any]:
    assembler = Assembler(max_bytes)
    async with aclosing(chunks(call, account, ChatEvents(), inside="sample")) as read:
        async for chunk, data in read:
            choice = first_choice(chunk)
            if choice is not None and choice.delta is not None:
                thought, _ = reasoning_of(choice.delta)
                if thought or choice.delta.content or choice.delta.calls_tool:
                    account.received_tokens += n_tokens(choice)
                    account.reasoning_tokens += n_tokens(choice) if thought else 0
            assembler.add(data)
    body = assembler.result()
    await call.settle()
    return body


async def sample_refusal(call: Call) -> UpstreamError:
    if 400 <= call.status < 600:
        return SampleRefusal(call.status, call.content_type, await call.read_all(), call.headers)
    if call.status != 200:
        return UpstreamProtocol(f"the upstream answered {call.status}; redirects are not followed")
    return UpstreamProtocol(f"the upstream answered {call.content_type!r} instead of the requested stream")


def mean_logprob(body: Mapping[str, Any]) -> float | None:
    """Return the mean log-probability of a completion's tokens; None if they were not listed."""
    choice = (body.get("choices") or [{}])[0]
    listed = choice.get("logprobs") if isinstance(choice, dict) else None
    return mean_of([token.logprob for token in logprobs_of(Choice(logprobs=msgspec.Raw(encode_json(listed))))])


def mean_of(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def completion_text(body: Mapping[str, Any]) -> str:
    return str(first_message(body).get("content") or "")


def as_chunks(body: dict[str, Any], *, wants_usage: bool) -> list[bytes]:
    head: dict[str, Any] = {k: body[k] for k in ("id", "created", "model", "system_fingerprint") if k in body}
    head["object"] = "chat.completion.chunk"
    choice = body["choices"][0]
    message = dict(choice["message"])
    if message.get("tool_calls"):
        message["tool_calls"] = [{"index": n, **call} for n, call in enumerate(message["tool_calls"])]
    # The thought precedes the answer: clients may show parts in the order of arrival.
    parts = sorted(message.items(), key=lambda item: item[0] not in REASONING_FIELDS)
    deltas: list[dict[str, Any]] = [{"role": message.get("role", "assistant"), "content": ""}]
    deltas += [{k: v} for k, v in parts if k != "role" and v not in (None, "")]
    choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    if "logprobs" in choice:
        choices[-1]["logprobs"] = choice["logprobs"]
    frames = [head | {"choices": [one]} for one in choices]
    last = head | {"choices": [{"index": 0, "delta": {}, "finish_reason": choice.get("finish_reason")}]}
    if "suffice" in body:
        last["suffice"] = body["suffice"]
    frames.append(last)
    if wants_usage:
        frames.append(head | {"choices": [], "usage": body.get("usage")})
    return [encode_frame(f) for f in frames]
