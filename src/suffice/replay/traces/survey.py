"""A first look at files of recorded runs: how many there are, how good each run was, which of them to take.

Only counts are kept, so that a file of any length is surveyed in little memory. What is too long to be held
whole is thinned to whole questions, by their hash.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from suffice.errors import TraceError
from suffice.replay.traces.batch import Batch
from suffice.replay.traces.columns import TraceColumns
from suffice.replay.traces.read import read_traces, set_name
from suffice.types import Kind

MOST_STEPS = 500_000  # that are held in memory at once; more are sampled for fitting and picking

Keep = Callable[[TraceColumns], NDArray[np.bool_]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """One set as a first pass over its files saw it."""

    set: str
    files: tuple[Path, ...]
    where: str | None
    kind: Kind
    n_runs: int
    n_steps: int
    longest: int  # steps of the longest run: the cap that a live route would declare
    good_runs: frozenset[tuple[str, str]] | None  # (model, run) whose EM is high enough; None: all
    most_steps: int = MOST_STEPS  # that may be held in memory

    @property
    def share(self) -> float:
        """Share of the questions that fit into memory, in (0, 1]."""
        return min(1.0, self.most_steps / max(1, self.n_steps))

    def batches(self, *, share: float = 1.0) -> Iterator[Batch]:
        """Read the set again: all of it, or that share of its questions."""
        return read_traces(self.files, where=self.where, keep=self._keep(share))

    def _keep(self, share: float) -> Keep | None:
        if share >= 1 and self.good_runs is None:
            return None

        def keep(columns: TraceColumns) -> NDArray[np.bool_]:
            kept = np.ones(len(columns), dtype=bool)
            if self.good_runs is not None:
                pairs = zip(columns.names("model"), columns.names("run"), strict=True)
                kept &= np.fromiter((pair in self.good_runs for pair in pairs), bool, len(columns))
            if share < 1:
                questions = columns.names("question_id")
                kept &= np.fromiter((_place(question) < share for question in questions), bool, len(columns))
            return kept

        return keep


def survey(
    files: Sequence[str | Path],
    *,
    where: str | None = None,
    min_run_em: float | None = None,
    most_steps: int = MOST_STEPS,
) -> list[Survey]:
    """Look at all files; one entry for each set, in the order in which they come.

    min_run_em  leave out a (model, run) whose full EM over the set is not above it, in [0, 1)
    most_steps  of a set that may be held in memory at once, at least 1

    Raises TraceError as `read_traces` does, for a set of several kinds, and when no run is left.
    """
    by_set: dict[str, list[Path]] = {}
    for file in files:
        by_set.setdefault(set_name(file), []).append(Path(file))
    return [replace(_survey(name, paths, where, min_run_em), most_steps=most_steps) for name, paths in by_set.items()]


def _survey(name: str, files: Sequence[Path], where: str | None, min_run_em: float | None) -> Survey:
    kinds: set[Kind] = set()
    n_runs = n_steps = longest = 0
    right: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for batch in read_traces(files, where=where):
        kinds.add(batch.kind)
        n_runs += len(batch)
        n_steps += len(batch.tokens)
        longest = max(longest, int(np.diff(batch.offset).max(initial=0)))
        if min_run_em is not None:
            for pair, ok in zip(zip(batch.model, batch.run, strict=True), batch.full_em.tolist(), strict=True):
                right[pair][0] += ok
                right[pair][1] += 1
    if len(kinds) != 1:
        what = ", ".join(sorted(kinds)) or "no run at all"
        raise TraceError(f"holds {what}; a set has runs of one kind", file=", ".join(map(str, files)))
    good = None
    if min_run_em is not None:
        good = frozenset(pair for pair, (ok, n) in right.items() if ok / n > min_run_em)
        if not good:
            raise TraceError(f"no run has an EM above {min_run_em:g}", file=", ".join(map(str, files)))
        n_steps = round(n_steps * sum(right[pair][1] for pair in good) / max(1, n_runs))
        n_runs = sum(right[pair][1] for pair in good)
    return Survey(
        set=name,
        files=tuple(files),
        where=where,
        kind=kinds.pop(),
        n_runs=n_runs,
        n_steps=n_steps,
        longest=longest,
        good_runs=good,
    )


def _place(question: str) -> float:
    """A question's place in [0, 1), unrelated to the folds."""
    digest = hashlib.blake2b(question.encode("utf-8", "surrogatepass"), digest_size=8, person=b"survey").digest()
    return int.from_bytes(digest, "big") / 2**64
