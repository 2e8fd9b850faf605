"""Generates one reply token by token, with caps, stop words and thoughts that are cut short. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Literal

from suffice_testing.dialects import is_thinking_off
from suffice_testing.prompt import (
    THINK_CLOSE,
    THINK_OPEN,
    Prefix,
    restated_thought,
    same_beginning,
    without_beginning,
)
from suffice_testing.reply import AnswerTokens, FakeRefusal, FakeRequest, Reply

_RETHOUGHT_LOGPROB = -0.5
_NO_PREFIX = Prefix("", closed=False, answer="", text="")


class NotMyThought(FakeRefusal):
    """The request carries a thought that this reply never had: requests were mixed up or torn."""

    code = "not_my_thought"


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    channel: Literal["reasoning", "tag", "answer", "tool"]
    text: str
    logprob: float
    call: int = -1  # position of its tool call
    opens_call: bool = False


class Completion:
    """One choice of a completion; `budget_tokens` closes its thought.

    Raises NotMyThought for another thought's prefix.
    """

    def __init__(self, reply: Reply, request: FakeRequest, *, index: int, budget_tokens: int | None) -> None:
        self.index = index
        self.reply = reply
        self.calls = () if request.is_raw else reply.tool_calls
        self.shown: list[Token] = []  # tokens with text, as the client gets them
        self.n_tokens = 0
        self.n_reasoning_tokens = 0
        self.finish_reason: str | None = None
        self.cut_by: str | None = None  # "control", "budget": why the thought was closed
        self._request = request
        self._budget = budget_tokens
        self._max_tokens = _cap(request)
        stop = request.body.get("stop", request.body.get("stop_sequences"))
        words = [stop] if isinstance(stop, str) else stop if isinstance(stop, list) else []
        self._stops = [word for word in words if isinstance(word, str) and word]
        self._text = ""  # searched for stop words
        self._thought, self._answer = self._plan(request.prefix or _NO_PREFIX, carried=bool(request.prefix))

    def _plan(self, prefix: Prefix, *, carried: bool) -> tuple[deque[Token] | None, deque[Token]]:
        """Return what is left to generate: (thought or None if it is closed, answer)."""
        reply = self.reply
        self._thought_text = prefix.reasoning
        if reply.reasoning and not same_beginning("".join(reply.reasoning), prefix.reasoning):
            raise NotMyThought("the request continues a thought that this reply does not have")
        answer = self._spoken(AnswerTokens(reply.answer, reply.answer_logprobs))
        restated = None if carried else restated_thought(self._request.messages, "".join(reply.reasoning))
        if restated is not None:
            self._thought_text = restated
            off = is_thinking_off(self._request.body)
            again = () if off else reply.rethinks
            thought = deque(Token(channel="reasoning", text=text, logprob=_RETHOUGHT_LOGPROB) for text in again)
            # A thought that the template has opened is at least closed.
            opened = reply.reasoning_field == "inline-opened" and not off
            return thought if again or opened else None, self._closed_answer("")
        if prefix.closed or is_thinking_off(self._request.body):
            return None, self._closed_answer(prefix.answer)
        if not reply.reasoning:
            return None, answer
        left = without_beginning(reply.reasoning, prefix.reasoning) if carried else reply.reasoning
        skipped = len(reply.reasoning) - len(left)
        thought = deque(
            Token(channel="reasoning", text=text, logprob=_at(reply.reasoning_logprobs, skipped + n))
            for n, text in enumerate(left)
        )
        if reply.reasoning_field == "inline" and not carried and not self._request.is_raw:
            thought.appendleft(Token(channel="tag", text=THINK_OPEN, logprob=-0.001))
        return thought, answer

    def _closed_answer(self, begun: str) -> deque[Token]:
        spoken = AnswerTokens(self.reply.answer, self.reply.answer_logprobs)
        if self.reply.answer_after is not None:
            spoken = self.reply.answer_after(self._thought_text)
        if begun.strip() and same_beginning("".join(spoken.tokens), begun):
            left = without_beginning(spoken.tokens, begun)
            spoken = AnswerTokens(left, spoken.logprobs[len(spoken.tokens) - len(left) :])
        return self._spoken(spoken)

    def _spoken(self, spoken: AnswerTokens) -> deque[Token]:
        tokens = deque(
            Token(channel="answer", text=text, logprob=_at(spoken.logprobs, n)) for n, text in enumerate(spoken.tokens)
        )
        if self.reply.calls_after is not None and not self._request.is_raw:
            self.calls = self.reply.calls_after(self._thought_text)
        for n, call in enumerate(self.calls):
            for position, text in enumerate(call.arguments or ("",)):
                opens = position == 0
                tokens.append(Token(channel="tool", text=text, logprob=-0.1, call=n, opens_call=opens))
        return tokens

    def end_reasoning(self, by: str = "control") -> bool:
        """Close the thought before the next token; return False if it is closed already."""
        if self._thought is None or self.finish_reason is not None:
            return False
        self.cut_by = by
        self._answer = self._closed_answer("")
        self._close_thought()
        return True

    def _close_thought(self) -> None:
        self._thought = None
        # If the model itself opens the thought, one that never began needs no closing tag.
        is_raw, field = self._request.is_raw, self.reply.reasoning_field
        tagged, began = is_raw or field.startswith("inline"), is_raw or field != "inline" or self.n_reasoning_tokens
        if tagged and began:
            self._answer.appendleft(Token(channel="tag", text=THINK_CLOSE, logprob=-0.001))

    def next(self) -> Token | None:
        """Generate one token; return None if the run is over and `finish_reason` is set."""
        if self.finish_reason is not None:
            return None
        if self._max_tokens is not None and self.n_tokens >= self._max_tokens:
            self.finish_reason = "length"
            return None
        if self._thought is not None and self.n_reasoning_tokens == self._budget:
            self.end_reasoning("budget")
        if self._thought is not None and not self._thought:
            if self.reply.calls_after is not None:
                self._answer = self._closed_answer("")
            self._close_thought()
        source = self._answer if self._thought is None else self._thought
        if not source:
            calls = self.calls and self.reply.finish_reason == "stop"
            self.finish_reason = "tool_calls" if calls else self.reply.finish_reason
            return None
        return self._say(source.popleft())

    def _say(self, token: Token) -> Token:
        self.n_tokens += 1
        if token.channel in ("reasoning", "tag"):
            self.n_reasoning_tokens += 1
        if token.channel == "reasoning":
            self._thought_text += token.text
        token = self._until_stop(token)
        if token.text or token.channel == "tool":
            self.shown.append(token)
        return token

    def _until_stop(self, token: Token) -> Token:
        if token.channel == "tool" or (token.channel != "answer" and not self._request.is_raw):
            return token
        start = len(self._text)
        self._text += token.text
        places = [self._text.find(stop, max(0, start - len(stop) + 1)) for stop in self._stops]
        known = [place for place in places if place >= 0]
        if not known:
            return token
        self.finish_reason = "stop"
        return replace(token, text=token.text[: max(0, min(known) - start)])


def _at(logprobs: tuple[float, ...], position: int) -> float:
    return logprobs[position] if position < len(logprobs) else _RETHOUGHT_LOGPROB


def _cap(request: FakeRequest) -> int | None:
    values = (count_in(request, name) for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"))
    return next((value for value in values if value is not None and value > 0), None)


def count_in(request: FakeRequest, name: str) -> int | None:
    value = request.body.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
