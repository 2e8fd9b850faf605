"""Which labels are worth asking for: of audits that disagree at a level in play, and of no others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from suffice.control.evidence.audits import Audit
from suffice.control.loop.live_certifier import LiveKeeper
from suffice.episode import vote
from suffice.types import LabelRequest


def wanted(
    route: str, keeper: LiveKeeper, audits: Sequence[Audit], asked: set[str], timeout_s: float
) -> list[LabelRequest]:
    """Ask for each label once.

    audits     as the keeper has them, and perhaps more
    asked      episodes whose label was asked for; grows
    timeout_s  seconds behind a run's end after which its label is late; 0: it counts as a loss from the start
    """
    found = list[LabelRequest]()
    for place in np.flatnonzero(keeper.disagreeing()).tolist():
        audit = audits[place]
        if audit.labels or audit.id in asked or audit.fate != "full":
            continue
        asked.add(audit.id)
        level = keeper.first_disagreement(place)
        found.append(
            LabelRequest(
                episode_id=audit.id,
                route=route,
                level=level,
                would_answer=_answer_at(audit, keeper.row_at(place, level)),
                answer=audit.episode.outcome.answer,
                why=f"a stop at level {level} would have answered otherwise",
                deadline_s=audit.ended_at_s + timeout_s if timeout_s else None,
            )
        )
    return found


def _answer_at(audit: Audit, row: int) -> str | None:
    """The answer that a stop after a checkpoint, from 0, would have delivered."""
    answers = [step.answer for step in audit.episode.outcome.steps[: row + 1]]
    if audit.episode.request.kind == "samples":
        return vote.count_votes(answers).answer
    return answers[-1] if answers else None
