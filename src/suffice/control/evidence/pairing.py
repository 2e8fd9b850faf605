"""Audits that were asked twice, as pairs: what they lost by the labels that count, and when they count.

    audits with labels ──▶ AuditPairs.pairs ──▶ learn.effort.certify_arms

The two answers are two draws, so a pair says nothing by itself of a stop; `assurance.paired` says what it is evidence
of. What nobody saw counts against the arm: an audit that its client left, and a second call that failed. Knows records
of the log; refuses to know levels, epochs and who is served.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from suffice.assurance.judge import JUDGE
from suffice.assurance.label_precedence import TrustedLabel, rank_of, stand
from suffice.assurance.runs import ABANDONED_ENDS, Match
from suffice.assurance.windows import Window
from suffice.control.evidence.audits import Audit
from suffice.learn.effort import PairedAudit, judge_pair
from suffice.types import Feedback, Outcome, Request

FULL: Final = "full"  # how outcomes name a second full run
MOST_MATCHES: Final = 20_000  # verdicts of the route's scorer that are remembered


def is_pair(request: Request, outcome: Outcome, arms: Sequence[str]) -> bool:
    """Was this audit asked a second time with one of these arms, or in full, or left before that could be?"""
    if request.ungoverned is not None or not request.audit or request.delivery > 1:
        return False
    return outcome.pair_arm in (FULL, *arms) or outcome.end_reason in ABANDONED_ENDS


@dataclass(slots=True, kw_only=True)
class AuditPairs:
    """Turns audits of one route into pairs.

    match  does an answer equal a reference? The route's scorer
    """

    match: Match
    _matched: dict[tuple[str, str], bool] = field(default_factory=dict)

    def pairs(
        self, audits: Sequence[Audit], *, timeout: float, callers: Collection[str] = (), window: Window | None = None
    ) -> list[PairedAudit]:
        """The audits as pairs, in their order.

        window   of the certificate, which says what each audit weighs; None: each weighs 1
        timeout  requests of the route after which a label is late
        callers  senders that are users whatever they call themselves, see `assurance.label_precedence.rank_of`
        """
        lost = self._verdicts(audits, callers)
        weights = np.ones(len(audits)) if window is None else window.weights(np.array([one.share for one in audits]))
        return [
            replace(_pair(audit, lost.get(audit.id), due=audit.at + timeout), weight=weight)
            for audit, weight in zip(audits, weights.tolist(), strict=True)
        ]

    def _verdicts(self, audits: Sequence[Audit], callers: Collection[str]) -> dict[str, int]:
        """What each pair that differs has lost, where words that count say so."""
        differing = {audit.id: audit for audit in audits if _differs(audit.episode.outcome)}
        words = [
            TrustedLabel(
                audit=name,
                seq=said.seq,
                source=said.feedback.source,
                key=said.feedback.sender,
                trust=rank_of(said.feedback, callers),
                verdict=z,
            )
            for name, audit in differing.items()
            for said in audit.labels
            if (z := self._lost(audit.episode.outcome, said.feedback)) is not None
        ]
        found = stand(words, differing=differing)
        return {name: z for name, z in found.verdicts.items() if isinstance(z, int)}

    def _lost(self, outcome: Outcome, said: Feedback) -> int | None:
        """Z as a label has it; None: it says nothing of right and wrong, or a judge does, whom no pair has measured."""
        if said.source == JUDGE:
            return None
        if said.gold is not None:
            return judge_pair(outcome.answer, outcome.pair_answer, said.gold, self._equal)[1]
        # A word on the full run alone: where it is right the other answer is not, else that may be wrong as well.
        return None if said.correct is None else int(said.correct)

    def _equal(self, answer: str | None, gold: str) -> bool:
        if answer is None:
            return False
        known = self._matched.get((answer, gold))
        if known is None:
            if len(self._matched) >= MOST_MATCHES:
                self._matched.clear()
            known = self._matched[answer, gold] = self.match(answer, gold)
        return known


def _differs(outcome: Outcome) -> bool:
    return outcome.pair_arm is not None and outcome.answer != outcome.pair_answer


def _pair(audit: Audit, z: int | None, *, due: float) -> PairedAudit:
    outcome = audit.episode.outcome
    if outcome.pair_arm is None:  # left before it was asked twice: as good as lost, whatever arm it would have met
        return PairedAudit(arm=1, disagrees=True, z=1, due=due)
    disagrees = _differs(outcome)
    return PairedAudit(
        arm=0 if outcome.pair_arm == FULL else 1,
        disagrees=disagrees,
        z=z if disagrees else 0,
        due=due,
        full_tokens=outcome.usage.completion_tokens if outcome.usage is not None else 0,
        arm_tokens=outcome.pair_tokens or 0,
    )
