"""Steps and folds in few words, for the tests of this room."""

from __future__ import annotations

from collections.abc import Sequence

from suffice.signals.base import check_need
from suffice.signals.fold import Known
from suffice.types import Step


def step(
    index: int = 1,
    answer: str | None = "a",
    *,
    text: str = "",
    tokens: int = 1,
    confidence: float | None = None,
    entropy: float | None = None,
    closed_entropy: float | None = None,
    vector: tuple[float, ...] = (),
) -> Step:
    """A step with what one fold looks at."""
    return Step(
        index=index,
        tokens=tokens,
        answer=answer,
        answer_source=None,
        text=text,
        confidence=confidence,
        entropy=entropy,
        closed_entropy=closed_entropy,
        vector=vector,
    )


def seen(need: str, steps: Sequence[Step]) -> list[tuple[Known, ...]]:
    """The values of one fold after each step."""
    fold, rows = check_need(need).build(), []
    for one in steps:
        fold.update(one)
        rows.append(tuple(fold.values().values()))
    return rows
