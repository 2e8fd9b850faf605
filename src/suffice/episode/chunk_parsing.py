"""What one chunk of a stream says: text, tokens, log-probabilities, usage, the end.

Shared by the run, the probes, the samples and the continuation, so that a token is counted the
same way everywhere.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from math import exp, log
from typing import Literal

from suffice.episode.ledger import CallAccount
from suffice.errors import UpstreamProtocol
from suffice.upstream.client import Call
from suffice.upstream.continuation import PrefillStripper
from suffice.upstream.thought import ThinkTag
from suffice.upstream.wire import (
    DONE_DATA,
    Choice,
    Chunk,
    SseSplitter,
    TokenLogprob,
    WireUsage,
    decode_chunk,
    is_given,
    logprobs_of,
    reasoning_of,
)

MOST_EVENTS = 250_000  # of an answer that nobody sees before its end
ANSWER_LIMIT_CHARS = 2**20  # of a continuation: far beyond what a model can answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    text: str
    logprobs: tuple[float, ...] = ()  # natural log, of the tokens in `text`
    entropy: float | None = None  # nats, of the first token's listed rivals
    finish_reason: str | None = None
    tokens: tuple[TokenLogprob, ...] = ()  # with their listed rivals; (): unknown


def first_choice(chunk: Chunk) -> Choice | None:
    """The choice with index 0: a governed request has no other."""
    return next((c for c in chunk.choices or () if c.index == 0), None)


def n_tokens(choice: Choice) -> int:
    """Tokens in a choice that carries text: as many as it has log-probabilities, otherwise one."""
    return len(logprobs_of(choice)) or 1


def note_usage(account: CallAccount, usage: WireUsage | None) -> None:
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


def margin_of(token: TokenLogprob) -> float | None:
    """Probability of a token minus that of its strongest listed rival, [0, 1]; None: no rival, or a stronger one."""
    rivals = [value for text, value in token.top if text != token.token]
    if not rivals or not max(rivals) <= token.logprob <= 1e-3:
        return None
    return min(1.0, exp(token.logprob)) - exp(max(rivals))


async def chunks(call: Call, account: CallAccount, *, inside: str) -> AsyncGenerator[tuple[Chunk, bytes], None]:
    """Read a stream up to its [DONE]: each chunk, and its bytes. Usage is noted in the account.

    inside  what is being read, for the message of an error
    Raises UpstreamError when it breaks off or the upstream reports an error in it.
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
            note_usage(account, chunk.usage)
            yield chunk, frame.data


async def pieces(
    call: Call,
    account: CallAccount,
    *,
    prefill: str = "",
    tags: tuple[str, str] = ("<think>", "</think>"),
    opened: bool = False,
) -> AsyncGenerator[Piece, None]:
    """Read a continuation's stream, chat or raw shape. Raises UpstreamError when it breaks off.

    A thought in the reply, in a field of its own or between tags, is counted and left out.

    prefill  text that the engine may repeat at the start
    opened   the reply begins inside a thought
    """
    answer, finished, n_chars = AnswerOnly(prefill, tags, opened=opened), False, 0
    async with aclosing(chunks(call, account, inside="continuation")) as read:
        async for chunk, _ in read:
            choice = first_choice(chunk)
            if choice is None:
                continue
            piece = answer.read(choice, account)
            finished = finished or choice.finish_reason is not None
            n_chars += len(piece.text) + len(piece.tokens)
            if n_chars > ANSWER_LIMIT_CHARS:
                raise UpstreamProtocol(f"the upstream continued with more than {ANSWER_LIMIT_CHARS} characters")
            if piece.text or piece.finish_reason:
                yield piece
    if not finished:
        raise UpstreamProtocol("the upstream ended a continuation without a finish reason")
    account.cancelled = False
    await call.settle()


class AnswerOnly:
    """Leaves of a reply what answers: no repeated prefill, no thought, no second closing tag."""

    def __init__(self, prefill: str, tags: tuple[str, str], *, opened: bool) -> None:
        self._prefill, self._again = PrefillStripper(prefill), PrefillStripper(tags[1])
        self._think = ThinkTag(*tags, opened=opened)

    def read(self, choice: Choice, account: CallAccount) -> Piece:
        """One chunk's part of the answer; all of its tokens are counted."""
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
        shown = () if hidden else tokens
        return Piece(
            text=answer,
            logprobs=tuple(t.logprob for t in shown),
            entropy=entropy_of(shown[0].top) if shown else None,
            finish_reason=choice.finish_reason,
            tokens=shown,
        )

    def _answer_in(self, parts: list[tuple[Literal["reasoning", "answer"], str]]) -> str:
        return self._again.feed("".join(text for channel, text in parts if channel == "answer"))

    def _close(self) -> str:
        left = self._prefill.close()
        return self._answer_in([*(self._think.feed(left) if left else ()), *self._think.close()]) + self._again.close()
