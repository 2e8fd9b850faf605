"""Recorded chains as they would have been probed behind a cheap proposer, as the gateway joins checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from suffice.episode.proposer import Proposer
from suffice.errors import TraceError
from suffice.replay.traces.columns import Batch
from suffice.replay.traces.rows import STEP_COLUMNS


def join_unproposed(batch: Batch, build_proposer: Callable[[], Proposer]) -> Batch:
    """Join each step that is not proposed with the next one; the last step of a run, its end, stays.

    Raise TraceError for runs that are no chains, whose steps nobody probes.
    """
    if batch.kind != "reasoning":
        raise TraceError(f"has {batch.kind}; a probe can be proposed in chains only", file=batch.file)
    keep = np.zeros(len(batch.tokens), dtype=bool)
    for run, (start, end) in enumerate(zip(batch.offset[:-1], batch.offset[1:], strict=True)):
        keep[start:end] = list(map(build_proposer().wants, batch.steps(run)))
    keep[batch.offset[1:] - 1] = True
    kept = np.flatnonzero(keep)
    first = np.concatenate([[0], kept[:-1] + 1])  # where each joined step begins
    steps: dict[str, Any] = {}
    for name in (*STEP_COLUMNS, "answer_code"):
        column = getattr(batch, name)
        steps[name] = column[kept] if isinstance(column, np.ndarray) else [column[at] for at in kept.tolist()]
    for name in ("tokens", "ctx_tokens"):
        steps[name] = np.add.reduceat(getattr(batch, name), first)
    parts = [[text for text in batch.text[a : b + 1] if text is not None] for a, b in zip(first, kept, strict=True)]
    steps["text"] = ["".join(texts) if texts else None for texts in parts]
    return replace(batch, offset=np.concatenate([[0], np.cumsum(keep)])[batch.offset], **steps)
