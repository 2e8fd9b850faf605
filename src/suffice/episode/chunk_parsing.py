"""Parse stream chunks into text, tokens, log-probabilities and usage. All calls share it, so all count alike."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from math import exp, log
from typing import Literal, TypeAlias

from suffice.episode.ledger import CallAccount
from suffice.errors import UpstreamProtocol
from suffice.upstream.client import Call
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

MOST_EVENTS = 250_000  # of a reply that is read whole before it is used
MOST_ANSWER_CHARS = 2**20  # of a continuation: far beyond any model's answer
MOST_SPACE_CHARS = 4_096  # held back at the start: after more, no tag opens a thought
ChannelText: TypeAlias = tuple[Literal["reasoning", "answer"], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    text: str
    tokens: tuple[TokenLogprob, ...] = ()  # those in `text`; (): unknown
    finish_reason: str | None = None


def first_choice(chunk: Chunk) -> Choice | None:
    return next((c for c in chunk.choices or () if c.index == 0), None)


def n_tokens(choice: Choice) -> int:
    """Return the tokens in a choice that carries text: the number of its log-probabilities, or 1 without any."""
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
            note_usage(account, chunk.usage)
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


class ThinkTag:
    """Separates an inline thought from the answer in text that arrives cut anywhere.

    Only a tag at the very start (after white space, which is dropped) opens a thought, unless the chat template has
    `opened` it. After it closes, or if the text began without one, everything is answer text, tags included.
    """

    __slots__ = ("_close_tag", "_held", "_open_tag", "_space", "_state")

    def __init__(self, open_tag: str = "<think>", close_tag: str = "</think>", *, opened: bool = False) -> None:
        if not open_tag or not close_tag:
            raise ValueError(f"ThinkTag: got {open_tag=} {close_tag=}; both need at least one character")
        self._open_tag, self._close_tag = open_tag, close_tag
        self._state: Literal["start", "opened", "inside", "after"] = "opened" if opened else "start"
        self._space = ""  # white space at the start, until its channel is known
        self._held = ""  # possibly the beginning of a tag

    @property
    def inside(self) -> bool:
        return self._state in ("opened", "inside")

    @property
    def decided(self) -> bool:
        return self._state == "after"

    def feed(self, text: str) -> list[ChannelText]:
        """Add text; return the parts whose channel is certain, none of them empty."""
        text, self._held = self._held + text, ""
        pieces: list[ChannelText] = []
        if self._state in ("start", "opened"):
            text = self._begin(text)
        if self._state == "inside":
            thought, text = self._split(text)
            if thought:
                pieces.append(("reasoning", thought))
        if self._state == "after" and text:
            pieces.append(("answer", text))
        return pieces

    def close(self) -> list[ChannelText]:
        """End the text: return what was held back, under the open channel."""
        text = self._space + self._held
        self._space = self._held = ""
        return [("reasoning" if self.inside else "answer", text)] if text else []

    def _begin(self, text: str) -> str:
        if not text:
            return ""
        tail = text.lstrip()
        self._space += text[: len(text) - len(tail)]
        if tail.startswith(self._open_tag):
            self._space, self._state = "", "inside"
            return tail[len(self._open_tag) :]
        if self._open_tag.startswith(tail) and len(self._space) <= MOST_SPACE_CHARS:
            self._held = tail
            return ""
        self._state = "inside" if self._state == "opened" else "after"
        text, self._space = self._space + tail, ""
        return text

    def _split(self, text: str) -> tuple[str, str]:
        thought, tag, rest = text.partition(self._close_tag)
        if tag:
            self._state = "after"
        elif n_held := _overlap(text, self._close_tag):
            thought, self._held = text[:-n_held], text[-n_held:]
        return thought, rest


def _overlap(text: str, tag: str) -> int:
    longest = min(len(tag) - 1, len(text))
    if tag[0] not in text[len(text) - longest :]:
        return 0
    return next((n for n in range(longest, 0, -1) if text.endswith(tag[:n])), 0)


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
