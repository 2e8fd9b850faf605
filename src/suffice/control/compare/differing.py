"""Which labels are worth asking for in a rollout: where its versions differ, and where a certificate waits for one.

Knows what was replayed; refuses to know who is asked and how many a day (`review.select`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from suffice.control.compare.candidate_certificate import CandidateEvidence
from suffice.control.compare.rollout_evidence import EvidenceFold
from suffice.control.compare.shown import OfRoute
from suffice.types import LabelRequest


def worth_a_label(
    gathering: EvidenceFold,
    asked: Collection[str],
    of_route: OfRoute | None = None,
    trying: CandidateEvidence | None = None,
) -> Iterator[LabelRequest]:
    """Each audit that nobody has said anything of, once.

    asked     episodes whose label was asked for
    of_route  with `trying`: how audits are replayed at one of its levels
    trying    a learned candidate's own certificate; None: it is a policy and has none
    """
    route, named = gathering.held.state.route, set(asked)
    for audit, both in gathering.unjudged():
        if audit.id in named:
            continue
        named.add(audit.id)
        answer = audit.episode.outcome.answer
        other = both.candidate.answer if both.candidate.answer != answer else both.in_force.answer
        yield LabelRequest(
            episode_id=audit.id,
            route=route,
            level=1,
            would_answer=other,
            answer=answer,
            why="the version that is tried would have answered otherwise than the one in force",
        )
    if of_route is None or trying is None:
        return
    for audit, level in trying.unjudged(gathering.watched):
        if audit.id in named:
            continue
        (shown,) = of_route.at_level(trying.version, level, [audit])
        yield LabelRequest(
            episode_id=audit.id,
            route=route,
            level=level,
            would_answer=shown.answer,
            answer=audit.episode.outcome.answer,
            why=f"level {level} of the version that is tried would have answered otherwise than the full run",
        )
