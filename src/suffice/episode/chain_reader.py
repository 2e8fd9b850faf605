"""Reads one chain of thought: separates thought and answer, counts tokens, and cuts the thought into steps.

Steps grow by a constant factor, so that probing a long thought costs a bounded share of it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from suffice.episode.checkpoints import Checkpoint, CheckpointGate
from suffice.episode.ledger import CallAccount, Ledger
from suffice.errors import ConfigError, name_hint
from suffice.scoring.scorer import Scorer
from suffice.settings import Steps
from suffice.upstream.assemble import CallParts
from suffice.upstream.pattern import ARGUMENTS
from suffice.upstream.wire import Choice, Chunk, logprobs_of, reasoning_of

ANSWER_LIMIT_CHARS = 256 * 1024  # kept of an answer to score it
THOUGHT_LIMIT_CHARS = 2**20  # a longer thought passes on unwatched, so that memory is bounded
BUDGET_SLACK_TOKENS = 32  # an engine that exceeds its budget by more ignores budgets
MOST_CUT_CHARS = 64
MOST_SPACE_CHARS = 4_096  # held back at the start: after more, no tag opens a thought
_FLAG_HALVES = "".join(chr(code) for code in range(0x1F1E6, 0x1F200))
Phase = Literal["start", "thinking", "answering"]
ChannelText: TypeAlias = tuple[Literal["reasoning", "answer"], str]


class Segmenter:
    """Cuts a thought into steps, whose texts joined are the thought. A subclass with its own `end_in` is a boundary."""

    def __init__(self, settings: Steps) -> None:
        self._growth = settings.growth
        self._mark = {"line": "\n", "paragraph": "\n\n"}.get(settings.boundary, "")
        self._need = float(settings.min_tokens)
        self._limit = settings.min_tokens if settings.boundary == "tokens" else settings.max_tokens
        self._done = ""  # the thought up to the last checkpoint
        self._text = ""  # the thought since then
        self._tokens = 0  # … and its tokens
        self._used = 0
        self._index = 0

    @property
    def thought(self) -> str:
        return self._done + self._text

    def feed(self, text: str, tokens: int) -> Checkpoint | None:
        """Add text of `tokens` tokens; return the checkpoint that it completes, if any.

        A step ends after its line or paragraph, or before a word; the tokens of text after the end count for it.
        """
        too_long = self._tokens >= self._limit and self._tokens >= self._need
        if too_long and (earlier := self._end_before(text)):
            point = self._cut(earlier)
            self._text += text
            self._tokens = tokens
            return point
        before = len(self._text)
        whole, self._text = self._text, ""  # referenced by one name only, it grows in place
        whole += text
        self._text = whole
        self._tokens += tokens
        if self._tokens < self._need:
            return None
        end = self.end_in(self._text, before)
        return None if end is None else self._cut(end)

    def close(self) -> Checkpoint | None:
        """Return the last step when the model closed its thought; None if nothing is left."""
        if not self._tokens and self._index:
            return None
        return self._cut(len(self._text))

    def _end_before(self, text: str) -> int:
        if not self._text:
            return 0
        if text[:1].isspace() or self._text[-1].isspace():
            return len(self._text)
        return self._end_between_characters(text) if self._tokens >= 2 * max(self._need, self._limit) else 0

    def _end_between_characters(self, following: str) -> int:
        start = max(0, len(self._text) - MOST_CUT_CHARS)
        tail, end = self._text[start:], -1
        shorter = len(safe_cut(tail, following))
        while shorter != end:
            end = shorter
            shorter = len(safe_cut(tail[:end], tail[end:] or following))
        return start + end

    def end_in(self, text: str, before: int) -> int | None:
        """Return the end of the last line or paragraph completed after `before`; None if there is none."""
        mark = self._mark
        if not mark:
            return None
        at = text.rfind(mark, max(0, before - len(mark) + 1))
        return None if at < 0 else at + len(mark)

    def _cut(self, end: int) -> Checkpoint:
        self._index += 1
        self._used += self._tokens
        done, self._text = self._text[:end], self._text[end:]
        self._done += done
        point = Checkpoint(index=self._index, tokens=self._tokens, tokens_used=self._used, text=done, prefix=self._done)
        self._tokens = 0
        self._need *= self._growth
        return point


# Other packages add theirs, see `suffice.plugins`.
SEGMENTERS: dict[str, Callable[[Steps], Segmenter]] = dict.fromkeys(("line", "paragraph", "tokens"), Segmenter)


def build_segmenter(steps: Steps) -> Segmenter:
    """Build the cutter that the settings name. Raise ConfigError for an unknown boundary."""
    if steps.boundary in SEGMENTERS:
        return SEGMENTERS[steps.boundary](steps)
    raise ConfigError(f"steps.boundary: unknown name {steps.boundary!r:.100}; {name_hint(steps.boundary, SEGMENTERS)}")


def safe_cut(text: str, following: str = "") -> str:
    """Shorten `text` by at most MOST_CUT_CHARS until it ends between two characters as a reader sees them.

    It removes from the end: lone surrogates, joiners (ZWJ), signs that join the next letter (viramas), half a flag,
    and, if `following` is known, a letter whose accents lie after the cut.
    """
    kept, end = text[:-MOST_CUT_CHARS], text[-MOST_CUT_CHARS:]
    if following and not end.endswith("\u200d") and _is_combining(following[0]):
        while end and _is_combining(end[-1]):
            end = end[:-1]
        end = end[:-1]
    while end and _ends_mid_character(end):
        end = end[:-1]
    return kept + end


def _is_combining(char: str) -> bool:
    """Return whether this character is drawn as part of the one before it (accent, joiner, variation, skin tone)."""
    return char == "\u200d" or "\U0001f3fb" <= char <= "\U0001f3ff" or unicodedata.category(char).startswith("M")


def _ends_mid_character(text: str) -> bool:
    last = text[-1]
    if "\ud800" <= last <= "\udfff" or last == "\u200d" or unicodedata.combining(last) == 9:
        return True
    return (len(text) - len(text.rstrip(_FLAG_HALVES))) % 2 == 1


def first_choice(chunk: Chunk) -> Choice | None:
    return next((c for c in chunk.choices or () if c.index == 0), None)


def n_tokens(choice: Choice) -> int:
    """Return the tokens in a choice that carries text: the number of its log-probabilities, or 1 without any."""
    return len(logprobs_of(choice)) or 1


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


# Tags that models write calls between, in their thoughts too: Hermes and Qwen, Llama and GLM, Kimi, DeepSeek.
_CALL_TAGS = (
    ("<tool_call>", "</tool_call>"),
    ("<function=", "</function>"),
    ("<|tool_call_begin|>", "<|tool_call_end|>"),
    ("<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"),
)


def _opens_call(thought: str) -> bool:
    return any(
        thought.rfind(opening) > thought.rfind(closing) or _overlap(thought, opening) > 0
        for opening, closing in _CALL_TAGS
    )


def holds_call(text: str) -> bool:
    """Return whether the text begins a call between tags, which the server has not parsed."""
    return any(opening in text for opening, _ in _CALL_TAGS)


# ---- a stop that tore the run: the model wrote on with its thought where its answer should be

SAME_CHARS = 48  # an answer that begins with so many characters of the thought's own continuation is no answer
_QUOTES = frozenset("`'\"")


def split_at_close(text: str, close_tag: str) -> tuple[str, str] | None:
    """Return the rest of a thought and the answer behind its closing tag; None if no tag is in the text.

    A tag between quotation marks is one that the answer speaks of.
    """
    rest, tag, answer = text.partition(close_tag)
    if not tag or rest[-1:] in _QUOTES or answer[:1] in _QUOTES:
        return None
    return rest, answer


def goes_on(answer: str, rest_of_thought: str) -> bool:
    """Return whether an answer is how the run's own thought went on."""
    rest = rest_of_thought.strip()[:SAME_CHARS]
    return len(rest) == SAME_CHARS and answer.strip().startswith(rest)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineBudget:
    """The thought tokens after which the engine was instructed to close the thought by itself."""

    tokens: int
    is_policy: bool = False  # the policy has no other rule to stop
    closing: str = ""  # text of ours with which the engine closes the thought, and which is part of it


@dataclass(slots=True)
class StreamState:
    phase: Phase = "start"
    inline: bool = False  # the thought is in `content`, between tags
    field: str = "reasoning_content"
    id: str | None = None
    model: str | None = None
    created: int | None = None
    finish_reason: str | None = None
    failed: bool = False  # the upstream sent an error frame
    done: bool = False  # [DONE] was seen
    ended: bool = False  # nothing more will come


class ChainReader:
    """Folds the choices of one stream. `opened`: the chat template has opened the thought."""

    def __init__(
        self,
        account: CallAccount,
        ledger: Ledger,
        *,
        segmenter: Segmenter,
        scorer: Scorer,
        tags: tuple[str, str],
        opened: bool = False,
        budget: EngineBudget | None = None,
        gate: CheckpointGate | None = None,
    ) -> None:
        self.account = account
        self.ledger = ledger
        self.budget = budget
        self.state = StreamState()
        self.close_tag = tags[1]
        self.close_at_tokens: int | None = None  # generated, after which an open thought is closed; None: never
        self._segmenter = segmenter
        self._scorer = scorer
        self._gate = gate
        self._think = ThinkTag(*tags, opened=opened)
        self._has_stopped_reading = False
        self._unplaced_tokens = 0  # of an inline thought, whose text is held back for now
        self._tail = ""  # end of an inline thought: may hold half of its closing tag
        self._answer: list[str] = []
        self._calls: CallParts | None = None  # None: no tool was called
        self._answer_chars = self._thought_chars = 0
        self.is_thought_off = False  # the effort "none" was requested
        self._cuts: dict[int, tuple[int, int]] = {}  # step → characters and tokens of the thought up to its end

    @property
    def is_in_thought(self) -> bool:
        """Whether the thought can be closed here: not in an answer, a tool call or a closing tag, nor after the end."""
        if self.state.phase == "answering" or self.state.ended:
            return False
        return not any(self._tail.endswith(self.close_tag[:n]) for n in range(1, len(self.close_tag)))

    def close_now(self) -> None:
        """Have the thought closed at the next place that is neither in a call nor in a tag."""
        self.close_at_tokens = 0

    @property
    def must_close(self) -> bool:
        limit = self.close_at_tokens
        if limit is None or self.account.received_tokens < limit or self.state.phase != "thinking":
            return False
        return self.is_in_thought and not _opens_call(self.thought)

    def can_cut_at(self, step: int) -> bool:
        """Return whether the thought is open and holds no beginning of a call, neither at the end of a step nor now."""
        return self.is_in_thought and not any(_opens_call(text) for text in (self.thought_at(step)[0], self.thought))

    @property
    def is_over_budget(self) -> bool:
        budget = self.budget
        if budget is None:
            return False
        return self.account.reasoning_tokens > budget.tokens + BUDGET_SLACK_TOKENS + len(budget.closing)

    @property
    def has_calls(self) -> bool:
        return self._calls is not None

    @property
    def leaves_stop_to_engine(self) -> bool:
        """Whether the engine was given the policy's own budget and appears to keep it."""
        return self.budget is not None and self.budget.is_policy and not self.is_over_budget

    @property
    def thought(self) -> str:
        return self._segmenter.thought

    @property
    def answer_text(self) -> str:
        text = "".join(self._answer)
        # If the template opened the thought, only the closing tag is in the text.
        return text if self.state.inline else text.rpartition(self.close_tag)[2]

    def thought_at(self, step: int) -> tuple[str, int]:
        """Return the reasoning text up to the end of a step, and its tokens; all of it if the step is unknown."""
        if step not in self._cuts:
            return self.thought, self.account.reasoning_tokens
        n_chars, n_thought_tokens = self._cuts[step]
        return self.thought[:n_chars], n_thought_tokens

    def extract(self, text: str, calls: Sequence[Mapping[str, Any]] = ()) -> str | None:
        return self.ledger.extract(self._scorer, text, calls)

    def note_reply(self, text: str, calls: Sequence[Mapping[str, Any]]) -> None:
        self.ledger.note_reply(self._scorer, text, calls)

    def extract_from_thought(self, text: str) -> str | None:
        """Return the answer in a part of the thought, which announces no call and is under no schema."""
        return None if self.ledger.request.form != "text" else self.extract(text)

    # ---- folding

    def fold(self, choice: Choice, points: list[Checkpoint]) -> str | None:
        """Classify and count the text of a choice; return its answer text, or None after the reader has failed."""
        if self._has_stopped_reading:
            return None
        try:
            return self._fold(choice, points)
        except Exception:  # noqa: BLE001 - an error in signals costs tokens, never an answer
            self._stop_reading()
            return None

    def fold_repeated(self, field: str, call: int, texts: Sequence[str], points: list[Checkpoint]) -> None:
        if self._has_stopped_reading:
            return
        n = len(texts)
        self.account.received_tokens += n
        try:
            if field == "content":
                self._take_answer("".join(texts))
                return
            if field == ARGUMENTS and self._calls is not None:
                self._calls.add_arguments(call, "".join(texts))
                return
            self.state.field = field
            self.account.reasoning_tokens += n
            self._take_thought(texts, 1, points)
        except Exception:  # noqa: BLE001 - as above
            self._stop_reading()

    def finish(self) -> None:
        state, reply = self.state, self.ledger.reply
        for channel, text in self._think.close():
            if channel == "answer":
                self._take_answer(text)
        self.account.cancelled = state.failed
        reply.finish_reason = state.finish_reason
        reply.unclosed = state.phase == "thinking"
        # Text in an open thought is not an answer, and a missing answer counts as wrong.
        calls = [] if self._calls is None else self._calls.calls
        reply.answer = None
        if not reply.unclosed:
            self.note_reply(self.answer_text, calls)
        # The engine ended the thought, and the model wrote on with it.
        if self.ledger.stop.acted and split_at_close("".join(self._answer), self.close_tag) is not None:
            self.ledger.fail_open("torn")

    def note_ignored_effort(self) -> None:
        if self.is_thought_off and self.account.reasoning_tokens:
            self.ledger.report_effort("effort: the model thought all the same, so 'none' was ignored")

    def note_engine_budget(self) -> None:
        """Record, at the finish reason, whether the engine closed the thought because of its budget."""
        budget, stop = self.budget, self.ledger.stop
        if budget is None or self.account.reasoning_tokens < budget.tokens or stop.acted:
            return
        if self.is_over_budget:
            self.ledger.fail_open("budget")  # it was given a budget and exceeded it
            return
        stop.acted = True
        stop.reason = "budget"
        stop.finish_method = "budget"
        stop.decision = stop.decision or f"budget of {budget.tokens} tokens, enforced by the engine"

    def _stop_reading(self) -> None:
        self._has_stopped_reading = True
        self.state.phase = "answering"  # nothing can be stopped from here on
        self.ledger.fail_open("segment")

    def _fold(self, choice: Choice, points: list[Checkpoint]) -> str:
        delta, state = choice.delta, self.state
        if delta is None:
            return ""
        thought, field = reasoning_of(delta)
        has_text = thought or delta.content or delta.refusal or delta.calls_tool
        logprobs = logprobs_of(choice) if has_text else ()
        tokens = len(logprobs) or int(bool(has_text))
        if self._gate is not None and state.phase != "answering":
            self._add(self._gate.read(logprobs), points)
        self.account.received_tokens += tokens
        if thought:
            state.field = field
            self.account.reasoning_tokens += tokens
            self._take_thought((thought,), tokens, points)
        if delta.calls_tool or delta.refusal:
            state.phase = "answering"
        if delta.calls_tool:
            self._calls = self._calls or CallParts(ANSWER_LIMIT_CHARS)
            self._calls.add(delta)
        if not delta.content:
            return ""
        if state.inline or (state.phase == "start" and not self._think.decided):
            return self._fold_inline(delta.content, tokens, points)
        self._take_answer(delta.content)
        return delta.content

    def _fold_inline(self, content: str, tokens: int, points: list[Checkpoint]) -> str:
        think = self._think
        was_inside = self._think.inside
        answer = ""
        pieces = think.feed(content)
        if was_inside or think.inside:
            self.state.inline = True
            self.account.reasoning_tokens += tokens
            self._unplaced_tokens += tokens
        for channel, text in pieces:
            if channel == "reasoning":
                placed, self._unplaced_tokens = self._unplaced_tokens, 0
                self._take_thought((text,), placed, points)
            else:
                self._take_answer(text)
                answer += text
        if self.state.inline and not think.inside:
            self.state.phase = "answering"  # the closing tag has arrived, even if no answer text has
        self._tail = (self._tail + content)[1 - len(self.close_tag) :] if think.inside else ""
        return answer

    def _take_thought(self, texts: Sequence[str], tokens: int, points: list[Checkpoint]) -> None:
        if self.state.phase == "answering":
            return
        self.state.phase = "thinking"
        feed = self._segmenter.feed
        for text in texts:
            self._thought_chars += len(text)
            if (point := feed(text, tokens)) is not None:
                self._add(point if self._gate is None else self._gate.offer(point), points)
        if self._thought_chars > THOUGHT_LIMIT_CHARS:
            self._stop_reading()

    def _add(self, point: Checkpoint | None, points: list[Checkpoint]) -> None:
        if point is not None:
            self._cuts[point.index] = len(point.prefix), point.tokens_used
            points.append(point)

    def _take_answer(self, text: str) -> None:
        # White space before everything means nothing; after a thought it means that the thought is over.
        if text.strip() or self.state.phase == "thinking":
            self.state.phase = "answering"
        if self._answer_chars < ANSWER_LIMIT_CHARS:
            self._answer.append(text)
            self._answer_chars += len(text)
