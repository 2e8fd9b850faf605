"""What one chunk of a stream says: text, tokens, log-probabilities, usage, the end.

Shared by the run, the probes, the samples and the continuation, so that a token is counted the
same way everywhere.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from math import exp, log

from suffice.episode.ledger import CallAccount
from suffice.errors import UpstreamProtocol
from suffice.upstream.client import Call
from suffice.upstream.continuation import PrefillStripper
from suffice.upstream.wire import (
    DONE_DATA,
    Choice,
    Chunk,
    SseSplitter,
    WireUsage,
    decode_chunk,
    is_given,
    logprobs_of,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One piece of a continuation's reply."""

    text: str
    logprobs: tuple[float, ...] = ()   # natural log, of the tokens in `text`
    entropy: float | None = None       # nats, of the first token's listed rivals
    finish_reason: str | None = None


def first_choice(chunk: Chunk) -> Choice | None:
    """The choice with index 0: a governed request has no other."""
    return next((c for c in chunk.choices or () if c.index == 0), None)


def n_tokens(choice: Choice) -> int:
    """Tokens in a choice that carries text: as many as it has log-probabilities, otherwise one."""
    return len(logprobs_of(choice)) or 1


def note_usage(account: CallAccount, usage: WireUsage | None) -> None:
    """Take over what the upstream says of a call; the last word counts, an empty one does not."""
    if usage is None or not (usage.prompt_tokens or usage.completion_tokens):
        return
    account.prompt_tokens = usage.prompt_tokens
    account.reported_tokens = usage.completion_tokens
    account.cached_tokens = usage.cached_tokens
    if usage.reasoning_tokens is not None:
        account.reasoning_tokens = usage.reasoning_tokens


def entropy_of(rivals: tuple[tuple[str, float], ...]) -> float | None:
    """Entropy in nats of the listed rivals, what is missing counted as one more; None: none listed."""
    if not rivals:
        return None
    listed = [(exp(value), value) for _, value in rivals if value > -700]
    rest = max(0.0, 1.0 - sum(p for p, _ in listed))
    tail = 0.0 if rest < 1e-12 else -rest * log(rest)
    return max(0.0, tail - sum(p * value for p, value in listed))


async def chunks(
    call: Call, account: CallAccount, *, inside: str
) -> AsyncGenerator[tuple[Chunk, bytes], None]:
    """Read a stream up to its [DONE]: each chunk, and its bytes. Usage is noted in the account.

    inside  what is being read, for the message of an error
    Raises UpstreamError when it breaks off or the upstream reports an error in it.
    """
    splitter = SseSplitter()
    while data := await call.read():
        for frame in splitter.feed(data):
            if frame.data == DONE_DATA:
                return
            if frame.data is None:
                continue
            chunk = decode_chunk(frame.data)
            if is_given(chunk.error):
                raise UpstreamProtocol(f"the upstream reported an error inside a {inside}")
            note_usage(account, chunk.usage)
            yield chunk, frame.data


async def pieces(call: Call, account: CallAccount, *, prefill: str = "") -> AsyncGenerator[Piece, None]:
    """Read a continuation's stream, chat or raw shape. Raises UpstreamError when it breaks off."""
    strip, finished = PrefillStripper(prefill), False
    async with aclosing(chunks(call, account, inside="continuation")) as read:
        async for chunk, _ in read:
            choice = first_choice(chunk)
            if choice is None:
                continue
            piece = _piece(choice, account, strip)
            finished = finished or choice.finish_reason is not None
            if piece.text or piece.finish_reason:
                yield piece
    if not finished:
        raise UpstreamProtocol("the upstream ended a continuation without a finish reason")
    account.cancelled = False
    await call.settle()


def _piece(choice: Choice, account: CallAccount, strip: PrefillStripper) -> Piece:
    text = choice.text or (choice.delta.content if choice.delta else None) or ""
    tokens = logprobs_of(choice)
    fresh = strip.feed(text)
    if fresh:  # what repeats the prefill was read, not generated
        account.received_tokens += len(tokens) or 1
    if choice.finish_reason is not None:
        fresh += strip.close()
    return Piece(
        text=fresh,
        logprobs=tuple(t.logprob for t in tokens),
        entropy=entropy_of(tokens[0].top) if tokens else None,
        finish_reason=choice.finish_reason,
    )
