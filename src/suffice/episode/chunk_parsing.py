"""Reads the replies of extra calls into text, tokens, log-probabilities and usage, so that all of them count alike."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from math import exp, log

from suffice.episode.chain_reader import ChannelText, ThinkTag, first_choice
from suffice.episode.ledger import CallAccount
from suffice.errors import UpstreamProtocol
from suffice.upstream.client import Call
from suffice.upstream.wire import (
    DONE_DATA,
    Choice,
    Chunk,
    SseSplitter,
    TokenLogprob,
    decode_chunk,
    is_given,
    logprobs_of,
    reasoning_of,
)

MOST_EVENTS = 250_000  # of a reply that is read whole before it is used
MOST_ANSWER_CHARS = 2**20  # of a continuation: far beyond any model's answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    text: str
    tokens: tuple[TokenLogprob, ...] = ()  # those in `text`; (): unknown
    finish_reason: str | None = None


def entropy_of(rivals: tuple[tuple[str, float], ...]) -> float | None:
    """Return the entropy in nats of the listed rivals, the missing mass counted as one more; None if none is listed."""
    if not rivals:
        return None
    listed = [(exp(value), value) for _, value in rivals if value > -700]
    rest = max(0.0, 1.0 - sum(p for p, _ in listed))
    tail = 0.0 if rest < 1e-12 else -rest * log(rest)
    return max(0.0, tail - sum(p * value for p, value in listed))


def margin_of(token: TokenLogprob) -> float | None:
    """Return p(token) minus p(its strongest listed rival), in [0, 1]; None if no rival is listed or one is stronger."""
    rivals = [value for text, value in token.top if text != token.token]
    if not rivals or not max(rivals) <= token.logprob <= 1e-3:
        return None
    return min(1.0, exp(token.logprob)) - exp(max(rivals))


async def chunks(call: Call, account: CallAccount, *, inside: str) -> AsyncGenerator[tuple[Chunk, bytes], None]:
    """Yield each chunk and its bytes up to [DONE].

    Raise UpstreamError, which names what is `inside`, if it breaks off.
    """
    splitter, n_events = SseSplitter(), 0
    while data := await call.read():
        frames = splitter.feed(data)
        n_events += len(frames)
        if n_events > MOST_EVENTS:
            raise UpstreamProtocol(f"the upstream sent more than {MOST_EVENTS} events inside a {inside}")
        for frame in frames:
            if frame.data == DONE_DATA:
                return
            if frame.data is None:
                continue
            chunk = decode_chunk(frame.data)
            if is_given(chunk.error):
                raise UpstreamProtocol(f"the upstream reported an error inside a {inside}")
            account.note_usage(chunk.usage)
            yield chunk, frame.data


async def pieces(
    call: Call, account: CallAccount, *, tags: tuple[str, str], prefill: str = "", opened: bool = False
) -> AsyncGenerator[Piece, None]:
    """Yield a reply's pieces without its thought, in which it begins if `opened`, and without a repeated `prefill`.

    Raise UpstreamError if the stream breaks off.
    """
    answer, finished, n_chars = AnswerOnly(prefill, tags, opened=opened), False, 0
    async with aclosing(chunks(call, account, inside="continuation")) as stream:
        async for chunk, _ in stream:
            choice = first_choice(chunk)
            if choice is None:
                continue
            piece = answer.read(choice, account)
            finished = finished or choice.finish_reason is not None
            n_chars += len(piece.text) + len(piece.tokens)
            if n_chars > MOST_ANSWER_CHARS:
                raise UpstreamProtocol(f"the upstream continued with more than {MOST_ANSWER_CHARS} characters")
            if piece.text or piece.finish_reason:
                yield piece
    if not finished:
        raise UpstreamProtocol("the upstream ended a continuation without a finish reason")
    account.cancelled = False
    await call.settle()


class AnswerOnly:
    """Keeps only the answer of a reply: removes a repeated prefill, a thought and a second closing tag."""

    def __init__(self, prefill: str, tags: tuple[str, str], *, opened: bool) -> None:
        self._prefill, self._closing = PrefillStripper(prefill), PrefillStripper(tags[1])
        self._think = ThinkTag(*tags, opened=opened)

    def read(self, choice: Choice, account: CallAccount) -> Piece:
        text = choice.text or (choice.delta.content if choice.delta else None) or ""
        thought = reasoning_of(choice.delta)[0] if choice.delta else ""
        tokens = logprobs_of(choice)
        fresh, was_inside = self._prefill.feed(text), self._think.inside
        answer = self._answer_in(self._think.feed(fresh)) if fresh else ""
        hidden = bool(thought) or (bool(fresh) and (was_inside or self._think.inside))
        if fresh or thought:  # what repeats the prefill was read, not generated
            account.received_tokens += len(tokens) or 1
        if hidden:
            account.reasoning_tokens += len(tokens) or 1
        if choice.finish_reason is not None:
            answer += self._close()
        return Piece(text=answer, tokens=() if hidden else tokens, finish_reason=choice.finish_reason)

    def _answer_in(self, parts: list[ChannelText]) -> str:
        return self._closing.feed("".join(text for channel, text in parts if channel == "answer"))

    def _close(self) -> str:
        left = self._prefill.close()
        parts = self._think.feed(left) if left else []
        return self._answer_in([*parts, *self._think.close()]) + self._closing.close()


class PrefillStripper:
    """Removes the prefill from the start of a reply: llama.cpp repeats it, vLLM does not."""

    def __init__(self, prefill: str) -> None:
        self._prefill = prefill
        self._held = ""
        self._done = not prefill

    def feed(self, text: str) -> str:
        """Return the new part of `text`. Text is held back only while it may still be the prefill."""
        if self._done:
            return text
        self._held += text
        if not self._held.startswith(self._prefill) and self._prefill.startswith(self._held):
            return ""
        self._done = True
        return self._held.removeprefix(self._prefill)

    def close(self) -> str:
        held, self._held = ("" if self._done else self._held), ""
        return held
