"""Reads one chain of thought: sorts text into thought and answer, counts tokens, and finds the checkpoints.

From the first byte of an answer or a tool call on, nothing can be stopped any more. If our own code fails here, the
reader goes blind: the stream passes on unwatched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from suffice.episode.chunk_parsing import n_tokens
from suffice.episode.ledger import CallAccount, Ledger
from suffice.episode.segment import Checkpoint, Phase, StepCutter
from suffice.scoring.base import Scorer
from suffice.upstream.thought import ThinkTag
from suffice.upstream.wire import Choice, Delta, reasoning_of

ANSWER_LIMIT_CHARS = 256 * 1024  # what is kept of an answer to score it
THOUGHT_LIMIT_CHARS = 2**20  # a longer thought passes on unwatched: what is kept of it has an end
BUDGET_SLACK_TOKENS = 32  # an engine that is this far beyond its budget does not know budgets


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineBudget:
    """Thought tokens after which the engine was told to close the thought by itself."""

    tokens: int
    is_policy: bool = False  # the policy waits for nothing else
    slack_tokens: int = BUDGET_SLACK_TOKENS


@dataclass(frozen=True, slots=True)
class StepEnd:
    """The thought up to the end of a step."""

    n_chars: int
    n_tokens: int


@dataclass(slots=True)
class StreamState:
    phase: Phase = "start"
    inline: bool = False  # the thought stands in `content`, between tags
    field: str = "reasoning_content"
    id: str | None = None
    model: str | None = None
    created: int | None = None
    finish_reason: str | None = None
    failed: bool = False  # the upstream sent an error frame
    done: bool = False  # [DONE] was seen
    ended: bool = False  # nothing more will come


class ChainReader:
    """Folds the choices of one stream.

    opened  the chat template has opened the thought
    budget  that the engine was given; None: none
    """

    def __init__(
        self,
        account: CallAccount,
        ledger: Ledger,
        *,
        segmenter: StepCutter,
        scorer: Scorer,
        tags: tuple[str, str],
        opened: bool = False,
        budget: EngineBudget | None = None,
    ) -> None:
        self.account, self.ledger, self.budget = account, ledger, budget
        self.state = StreamState()
        self.close_tag = tags[1]
        self._segmenter, self._scorer = segmenter, scorer
        self._think = ThinkTag(*tags, opened=opened)
        self._is_blind = False
        self._unplaced_tokens = 0  # of an inline thought, whose text is held back for now
        self._tail = ""  # end of an inline thought: may hold half of its closing tag
        self._answer: list[str] = []
        self._answer_chars = self._thought_chars = 0
        self._cuts: dict[int, StepEnd] = {}  # by step

    @property
    def is_in_thought(self) -> bool:
        """Can the thought be closed here? Never in an answer, a tool call or a closing tag, nor after the end."""
        if self.state.phase == "answering" or self.state.ended:
            return False
        return not any(self._tail.endswith(self.close_tag[:n]) for n in range(1, len(self.close_tag)))

    @property
    def is_over_budget(self) -> bool:
        budget = self.budget
        return budget is not None and self.account.reasoning_tokens > budget.tokens + budget.slack_tokens

    @property
    def leaves_stop_to_engine(self) -> bool:
        """Was the engine given the policy's own budget, and does it seem to keep it?"""
        return self.budget is not None and self.budget.is_policy and not self.is_over_budget

    @property
    def thought(self) -> str:
        return self._segmenter.thought

    @property
    def answer_text(self) -> str:
        text = "".join(self._answer)
        # A template that opened the thought itself leaves only the closing tag to be seen.
        return text if self.state.inline else text.rpartition(self.close_tag)[2]

    def thought_at(self, step: int) -> tuple[str, int]:
        """The reasoning text up to the end of a step and its tokens; all of it when the step is unknown."""
        cut = self._cuts.get(step)
        if cut is None:
            return self.thought, self.account.reasoning_tokens
        return self.thought[: cut.n_chars], cut.n_tokens

    def extract(self, text: str) -> str | None:
        """The normalised answer in `text`, by the route's scorer; None when the scorer fails."""
        try:
            return self._scorer.extract(text)
        except Exception:  # noqa: BLE001 - a broken yardstick costs a measurement, never an answer
            self.ledger.fail_open("scorer")
            return None

    # ---- folding

    def fold(self, choice: Choice, points: list[Checkpoint]) -> str | None:
        """Sort the text of a choice and count it; return the answer text in it, None once the reader is blind."""
        if self._is_blind:
            return None
        try:
            return self._fold(choice, points)
        except Exception:  # noqa: BLE001 - an error in signals costs tokens, never an answer
            self._go_blind()
            return None

    def fold_repeated(self, field: str, texts: Sequence[str], points: list[Checkpoint]) -> None:
        """Fold what repeated chunks add to one field, exactly as `fold` would."""
        if self._is_blind:
            return
        n = len(texts)
        self.account.received_tokens += n
        try:
            if field == "content":
                self._take_answer("".join(texts))
                return
            self.state.field = field
            self.account.reasoning_tokens += n
            self._take_thought(texts, 1, points)
        except Exception:  # noqa: BLE001 - as above
            self._go_blind()

    def finish(self) -> None:
        state, ledger = self.state, self.ledger
        for channel, text in self._think.close():
            if channel == "answer":
                self._take_answer(text)
        self.account.cancelled = state.failed
        ledger.truncated = state.finish_reason == "length"
        ledger.unclosed = state.phase == "thinking"
        # What stands in an open thought is no answer, and no answer is a wrong one.
        ledger.answer = None if ledger.unclosed else self.extract(self.answer_text)

    def note_engine_budget(self) -> None:
        """The finish reason has come: did the engine close the thought because of its budget?"""
        budget, ledger = self.budget, self.ledger
        if budget is None or self.account.reasoning_tokens < budget.tokens or ledger.stopped:
            return
        if self.is_over_budget:
            ledger.fail_open("budget")  # it was told, and went on
            return
        ledger.stopped, ledger.stop_reason, ledger.finish_method = True, "budget", "budget"
        ledger.decision = ledger.decision or f"budget of {budget.tokens} tokens, kept by the engine"

    def _go_blind(self) -> None:
        self._is_blind = True
        self.state.phase = "answering"  # nothing can be stopped from here on
        self.ledger.fail_open("segment")

    def _fold(self, choice: Choice, points: list[Checkpoint]) -> str:
        delta, state = choice.delta, self.state
        if delta is None:
            return ""
        thought, field = reasoning_of(delta)
        tokens = n_tokens(choice) if thought or _has_text(delta) else 0
        self.account.received_tokens += tokens
        if thought:
            state.field = field
            self.account.reasoning_tokens += tokens
            self._take_thought((thought,), tokens, points)
        if delta.calls_tool or delta.refusal:
            state.phase = "answering"
        if not delta.content:
            return ""
        if state.inline or (state.phase == "start" and not self._think.decided):
            return self._fold_inline(delta.content, tokens, points)
        self._take_answer(delta.content)
        return delta.content

    def _fold_inline(self, content: str, tokens: int, points: list[Checkpoint]) -> str:
        """Content that may hold a thought between tags; returns the answer text in it."""
        think, was_inside, answer = self._think, self._think.inside, ""
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
            self.state.phase = "answering"  # the closing tag is out, even if no word of the answer is yet
        self._tail = (self._tail + content)[1 - len(self.close_tag) :] if think.inside else ""
        return answer

    def _take_thought(self, texts: Sequence[str], tokens: int, points: list[Checkpoint]) -> None:
        """Take thought in; each of `texts` has so many tokens."""
        if self.state.phase == "answering":
            return
        self.state.phase = "thinking"
        feed = self._segmenter.feed
        for text in texts:
            self._thought_chars += len(text)
            if (point := feed(text, tokens)) is not None:
                self._cuts[point.index] = StepEnd(len(point.prefix), point.tokens_used)
                points.append(point)
        if self._thought_chars > THOUGHT_LIMIT_CHARS:
            self._go_blind()

    def _take_answer(self, text: str) -> None:
        # White space before everything says nothing; behind a thought it says that the thought is over.
        if text.strip() or self.state.phase == "thinking":
            self.state.phase = "answering"
        if self._answer_chars < ANSWER_LIMIT_CHARS:
            self._answer.append(text)
            self._answer_chars += len(text)


def _has_text(delta: Delta) -> bool:
    """Does it carry generated text outside of a thought?"""
    return bool(delta.content or delta.refusal or delta.calls_tool)
