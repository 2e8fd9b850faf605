"""One run's access to an embedder: vectors for its drafts, within its extra calls, and words where there is none.

A vector is asked for before its step is observed. It knows drafts and the account of their calls; it refuses
to know servers, and what a distance between two vectors means.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from suffice.episode.ledger import Ledger
from suffice.signals.folds.drafts import Embedder
from suffice.types import Step

SITE = "embedder"  # under which a run says that its drafts were compared by words for want of vectors


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectors:
    """Asks for the vectors of one run."""

    embedder: Embedder
    ledger: Ledger
    max_calls: int  # extra calls of the run, those of other kinds included
    keep: int = 0  # of them left over for what may have to follow

    async def of(self, text: str) -> tuple[float, ...]:
        """The vector of a draft; () where there is none, for whatever reason: then words are compared."""
        if not text.strip():
            return ()
        try:
            kept = self.embedder.recall(text)
            return kept or await self._asked(text)
        except Exception:  # noqa: BLE001 - a broken embedder costs a vector, never an answer
            self.ledger.fail_open(SITE)
            return ()

    async def put_in(self, step: Step) -> Step:
        """The step with the vector of its text, or of its answer where it has no text."""
        vector = await self.of(step.text or step.answer or "")
        return replace(step, vector=vector) if vector else step

    async def _asked(self, text: str) -> tuple[float, ...]:
        if self.embedder.rests:
            self.ledger.skipped["embedder_down"] += 1
            self.ledger.fail_open(SITE)
            return ()
        if self.ledger.n_extra_calls + self.keep >= self.max_calls:
            self.ledger.skipped["max_extra_calls"] += 1
            return ()
        self.ledger.n_embeddings += 1
        (vector,) = await self.embedder.embed([text])
        if vector is None:
            self.ledger.fail_open(SITE)
        return vector or ()
