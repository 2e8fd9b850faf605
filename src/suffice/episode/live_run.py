"""A request that is running now, and what a person may ask of it: the answer at once, or no stop.

What a person asks of a run is evidence of nothing but that: the run ends as "asked", whatever its route and its draw,
and an audit that ends so counts as lost at every level, like one whose client left. So nobody can improve a certificate
by asking, and the caller, who cannot know which runs are audits, gets the same reply and the same stream in all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from suffice.episode.chain_reader import ChainReader
from suffice.episode.ledger import Ledger

Wish: TypeAlias = Literal["answer_now", "think_more"]


@dataclass(slots=True)
class LiveRun:
    ledger: Ledger
    reader: ChainReader | None = None  # of the thought that is relayed; None: there is none to cut
    can_finish: bool = False  # there is a way to close the thought
    wish: Wish | None = None  # the first that was asked; a second is refused

    @property
    def state(self) -> str:
        """As its client can see it."""
        if self.reader is None:
            return "running"
        phase = self.reader.state.phase
        return "answering" if phase == "answering" or self.reader.state.ended else "thinking"

    def ask(self, wish: Wish) -> str | None:
        """Take a person's wish; return why that cannot be done, or None. The same wish again changes nothing."""
        if self.wish == wish:
            return None
        if self.wish is not None:
            return f"this run was asked for something else before: {self.wish.replace('_', ' ')}"
        if self.reader is None:
            return "only a chain of thought can be asked for its answer, or for more thought"
        if self.state == "answering":
            return "its answer has begun"
        if wish == "answer_now" and not self.can_finish:
            return "its upstream has no way to close a thought; see suffice doctor"
        self.wish, self.ledger.end_reason = wish, "asked"
        if wish == "answer_now":
            self.reader.close_at_tokens = 0  # at the next place that is neither in a call nor in a tag
        return None
