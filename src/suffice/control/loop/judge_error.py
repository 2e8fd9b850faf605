"""What a judge model's labels cost a route that uses them, measured on its own audits at every look.

    audits with a person's word and a grade ──▶ how often is the judge wrong?  ─┐
    audits whose label is the judge's alone ──▶ how many rest on it?           ─┴─▶ charge, or: they do not count

Both rates are bounded at every look at once (`assurance.fidelity.bound_fidelity`), and 2 x one x other is taken off the
budget before anything is tested (`assurance.judge`). A judge that nobody measured, or that would eat more than half of
the budget, is not heard: a difference then counts as lost until a person says otherwise. Only trusted voices measure
it, or whoever lies about answers could lie about the judge. Knows audits; refuses to know levels.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

from suffice.assurance.fidelity import bound_fidelity
from suffice.assurance.judge import CHARGE_CONFIDENCE, JUDGE
from suffice.assurance.label_precedence import TRUSTED, rank_of
from suffice.assurance.runs import Match
from suffice.control.evidence.audits import Audit
from suffice.control.evidence.grades import graded, pair_grades, parse_grade, persons_word
from suffice.settings import Route
from suffice.types import Feedback

MOST_SHARE: Final = 0.5  # of the budget


@dataclass(slots=True, kw_only=True)
class JudgeCharge:
    """The judge of one route.

    model  as the settings name it; None: the route has none, and no judge is heard
    """

    model: str | None
    match: Match
    charge: float = 0.0  # fraction of EM; 0 where it is not heard
    heard: bool = False
    _known: tuple[int, int, int, int] | None = None  # counts at the last look: the bounds are functions of them
    _compared: dict[str, tuple[int, list[bool]]] = field(default_factory=dict)  # by audit: labels then, wrong grades

    @classmethod
    def of(cls, route: Route, match: Match) -> JudgeCharge:
        """The judge that a route's owner names."""
        return cls(model=None if route.judge is None else route.judge.model, match=match)

    def look(self, audits: Sequence[Audit], max_em_drop: float, callers: Collection[str]) -> None:
        """Measure the judge on all audits that count now.

        callers  senders that are users whatever they call themselves, see `assurance.label_precedence.rank_of`
        """
        if self.model is None:
            return
        wrong, n_alone = list[bool](), 0
        here = {audit.id for audit in audits}
        self._compared = {name: found for name, found in self._compared.items() if name in here}
        for audit in audits:
            if not any(said.feedback.source == JUDGE for said in audit.labels):
                continue
            found = self._of(audit, self.model, callers)
            wrong += found
            n_alone += not found
        counts = len(wrong), sum(wrong), n_alone, len(audits)
        if counts != self._known:
            self._known = counts
            self.charge = _charge(*counts)
            self.heard = bool(wrong) and self.charge <= MOST_SHARE * max_em_drop
            self.charge = self.charge if self.heard else 0.0

    def hears(self, said: Feedback) -> bool:
        """Does this word of a judge count?"""
        return self.heard and self.model is not None and parse_grade(said, self.model) is not None

    def _of(self, audit: Audit, model: str, callers: Collection[str]) -> list[bool]:
        """Was each grade of the audit wrong that a trusted person's word stands beside? [] where there is none."""
        known = self._compared.get(audit.id)
        if known is not None and known[0] == len(audit.labels):
            return known[1]
        trusted = [said for said in audit.labels if rank_of(said.feedback, callers) >= TRUSTED]
        pairs = pair_grades(audit.episode.outcome, persons_word(trusted), graded(audit.labels, model), self.match)
        found = [(grade > 0) != right for grade, right in pairs]
        self._compared[audit.id] = len(audit.labels), found
        return found


def _charge(n: int, n_wrong: int, n_alone: int, n_audits: int) -> float:
    """2 x upper bound on the judge's error x upper bound on the part of audits that rest on it; 1 where unmeasured."""
    error = bound_fidelity(n_wrong, n, confidence=CHARGE_CONFIDENCE)
    share = bound_fidelity(n_alone, n_audits, confidence=CHARGE_CONFIDENCE)
    return 1.0 if error is None or share is None else min(1.0, 2 * error.upper * share.upper)
