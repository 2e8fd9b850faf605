"""A request that is running now, as its client sees it, and what a person may ask of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from suffice.episode.chain_reader import ChainReader
from suffice.episode.ledger import Ledger
from suffice.types import Wish


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveRunView:
    """A run as its client sees it."""

    id: str  # of the episode, as `x-suffice-episode-id` of its response
    route: str
    model: str
    mode: str
    kind: str
    began_at_s: float  # Unix time
    tokens: int  # generated so far: as relayed, of a vote's samples, or as the caller's loop reports
    state: str  # "thinking", "answering", "sampling", "looping" or, where there is nothing to cut, "running"
    wish: str | None  # what was asked of it: "answer_now" or "think_more"


@dataclass(slots=True)
class LiveRun:
    """A request that is running now, and what a person may ask of it: the answer at once, or no stop.

    What a person asks of a run is evidence of nothing but that: the run ends as "asked", whatever its route and its
    draw, and an audit that ends so counts as lost at every level, like one whose client left. So nobody can improve a
    certificate by asking, and the caller, who cannot know which runs are audits, gets the same reply and stream in all.
    """

    ledger: Ledger
    reader: ChainReader | None = None  # of the thought that is relayed; None: there is none
    cut: Callable[[], None] | None = None  # ends the thought, the vote or the loop; None: there is no way to

    @property
    def state(self) -> str:
        """As its client can see it."""
        if self.reader is not None:
            is_over = self.reader.state.phase == "answering" or self.reader.state.ended
            return "answering" if is_over else "thinking"
        if self.cut is None:
            return "running"
        return "sampling" if self.ledger.request.kind == "samples" else "looping"

    @property
    def _n_tokens(self) -> int:
        ledger, usage = self.ledger, self.ledger.reply.caller_usage
        if self.reader is not None:
            return self.reader.account.received_tokens
        return sum(c.completion_tokens for c in ledger.calls) if usage is None else usage.completion_tokens

    def view(self) -> LiveRunView:
        request = self.ledger.request
        return LiveRunView(
            id=request.episode_id,
            route=request.route,
            model=request.model,
            mode=request.mode,
            kind=request.kind,
            began_at_s=request.received_at_s,
            tokens=self._n_tokens,
            state=self.state,
            wish=self.ledger.stop.wish,
        )

    def ask(self, wish: Wish) -> str | None:
        """Take a person's wish; return why that cannot be done, or None. The same wish again changes nothing."""
        before = self.ledger.stop.wish
        if before == wish:
            return None
        if before is not None:
            return f"this run was asked for something else before: {before.replace('_', ' ')}"
        if self.state == "running":
            return "it passes through, or its vote is over: there is nothing to cut or to prolong"
        if self.state == "answering":
            return "its answer has begun"
        if wish == "answer_now" and self.cut is None:
            return "its upstream has no way to close a thought; see suffice doctor"
        self.ledger.stop.wish, self.ledger.end_reason = wish, "asked"
        if wish == "answer_now" and self.cut is not None:
            self.cut()
        return None
