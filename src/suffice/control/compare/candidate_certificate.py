"""A learned candidate's own certificate: which of its levels keep the EM budget against the full run.

The models were fixed before the first of these audits, so no cross-fitting is needed (Guarantee C of assurance).
`spent_delta` divides delta among the route's versions; its own is the first. An unlabelled disagreement counts as lost
at any age, and a judge model's label does not count, so there is no charge for late labels or for a judge.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import log
from typing import Final

import numpy as np

from suffice.assurance.certify import (
    BETS,
    certified_level,
    count_outcomes,
    log_bets,
    missing_audits,
    mixed,
    spent_delta,
    weighted_log_wealth,
)
from suffice.assurance.labels import find_first_disagreements
from suffice.assurance.runs import Match
from suffice.assurance.windows import Windows
from suffice.control.evidence.audits import Audit, Verdicts, audits_to_rows, verdicts
from suffice.control.evidence.versions import ServedVersion
from suffice.learn.audits import Bools, Floats, Small
from suffice.learn.certificate import PendingAudits
from suffice.learn.version import as_served

MOST_KEPT: Final = 4_000  # audits that are remembered


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateCertificate:
    level: int  # the highest that passes; 0: none
    n: int  # audits that counted
    n_lost: int  # of them, at `level`, or at the first level if none passes
    n_gained: int
    n_missing: int | None  # audits to the next level, at the rates observed; None: not known, or there is no next level
    max_em_drop: float  # the budget tested
    delta: float
    surely_over: bool = False  # the safest level significantly breaks the budget: further audits will not certify it

    @property
    def sentence(self) -> str:
        if self.surely_over:
            return (
                f"even its safest level surely loses more than {self.max_em_drop:.2%}: of {self.n:,} audits against the"
                f" full run {self.n_lost} are lost and {self.n_gained} gained"
            )
        at = f"level {self.level}" if self.level else "no level"
        return (
            f"{at} passes on {self.n:,} audits against the full run, {self.n_lost} lost and {self.n_gained} gained,"
            f" within {self.max_em_drop:.2%} at {1 - self.delta:.2%}"
        )


@dataclass(slots=True)
class _JudgedAudit:
    audit: Audit
    disagrees: Bools  # (M,)
    z: Small  # (M,): EM drop as it counts now
    is_labelled: bool  # a label names the right answer


@dataclass(slots=True, kw_only=True, eq=False)
class CandidateEvidence:
    """The `number`-th version that the route tries in rollouts, and the audits that count for it."""

    version: ServedVersion
    match: Match
    wave: int
    number: int
    window: int
    _judged: dict[str, _JudgedAudit] = field(default_factory=dict)  # by episode, oldest first
    _counts: Verdicts = field(default_factory=dict)
    _level: int = 0  # that passed in the last test

    def add(self, audits: Sequence[Audit]) -> set[str]:
        """Add new audits; return the episodes whose label can change the result."""
        if audits:
            self._judge(audits, {})
        while len(self._judged) > MOST_KEPT:
            del self._judged[next(iter(self._judged))]
        return {audit.id for audit in audits if audit.id in self._judged and self._judged[audit.id].disagrees.any()}

    def note_labels(self, audits: Mapping[str, Audit], callers: Collection[str]) -> None:
        """Judge again the audits whose label has changed."""
        differing = [audits[name] for name, one in self._judged.items() if one.disagrees.any() and name in audits]
        before, self._counts = self._counts, verdicts(differing, self.match, callers=callers)
        changed = [audit for audit in differing if before.get(audit.id) != self._counts.get(audit.id)]
        if changed:
            self._judge(changed, self._counts)

    def certificate(
        self, *, pending: PendingAudits, windows: Windows, max_em_drop: float, confidence: float, harm_confidence: float
    ) -> CandidateCertificate:
        """Test the levels on a budget net of charges; pending audits count as lost."""
        judged = list(self._judged.values())
        certificate = certify_candidate(
            np.stack([one.z for one in judged]) if judged else np.zeros((0, self.version.n_levels), np.int8),
            np.array([one.audit.at for one in judged], dtype=np.float64),
            np.array([one.audit.share for one in judged]),
            np.array([one.is_labelled for one in judged], dtype=np.bool_),
            pending,
            windows,
            window=self.window,
            max_em_drop=max_em_drop,
            delta=spent_delta(1 - confidence, 1 + self.number),
            harm_delta=1 - harm_confidence,
        )
        self._level = certificate.level
        return certificate

    def unjudged(self, audits: Mapping[str, Audit]) -> list[tuple[Audit, int]]:
        """Unlabelled audits, each with the first eligible level at which it disagrees."""
        unjudged = list[tuple[Audit, int]]()
        for name, one in self._judged.items():
            (level,) = find_first_disagreements(one.disagrees[np.newaxis], deployed=self._level).tolist()
            if level and name in audits and not audits[name].labels and audits[name].fate == "full":
                unjudged.append((audits[name], level))
        return unjudged

    def _judge(self, audits: Sequence[Audit], counts: Verdicts) -> None:
        """Judge audits at each level by the labels that count; no label changes a run that broke off."""
        version = self.version
        rows = audits_to_rows(audits, chosen=version.features, match=self.match, wave=self.wave, counts=counts)
        rows = as_served(rows, version.version)
        at = version.rows(rows)
        disagrees = rows.d[at] & ~rows.abandoned[:, np.newaxis]
        disagrees[:, 0] = False
        for audit, losses, apart in zip(audits, rows.losses(at), disagrees, strict=True):
            self._judged[audit.id] = _JudgedAudit(audit, apart, losses, audit.id in counts)


def certify_candidate(
    z: Small,
    at: Floats,
    share: Floats,
    is_labelled: Bools,
    pending: PendingAudits,
    windows: Windows,
    *,
    window: int,
    max_em_drop: float,
    delta: float,
    harm_delta: float,
) -> CandidateCertificate:
    """Test a candidate's levels on audits.

    z           EM drop of each audit at each level as it counts now, in the order of their returns, shape (n, M)
    at, share   number of each request, and the audit share when it was drawn, shape (n,)
    is_labelled whether a label names the right answer, shape (n,): only such audits are evidence of harm
    harm_delta  probability of giving up a candidate that keeps the budget at its safest level
    """
    known = z
    z, at = np.concatenate([z, pending.lost(z.shape[1])]), np.concatenate([at, pending.at])
    share = np.concatenate([share, pending.share])
    chosen = windows.chosen(at, share, wanted=window)
    if chosen is None or not len(known):
        return CandidateCertificate(
            level=0, n=0, n_lost=0, n_gained=0, n_missing=None, max_em_drop=max_em_drop, delta=delta
        )
    inside = chosen.holds(at)
    wealth = weighted_log_wealth(z[inside], chosen.weights(share[inside]), max_em_drop=max_em_drop)
    level = certified_level(wealth, delta=delta)
    over = not level and _surely_over(np.where(is_labelled, known[:, 1], 0), max_em_drop, harm_delta)
    reported, z = max(1, level), known if over else z[inside]
    return CandidateCertificate(
        level=level,
        n=len(z),
        n_lost=int((z[:, reported] > 0).sum()),
        n_gained=int((z[:, reported] < 0).sum()),
        n_missing=missing_audits(z, level + 1, max_em_drop=max_em_drop, delta=delta),
        max_em_drop=max_em_drop,
        delta=delta,
        surely_over=over,
    )


def _surely_over(z: Small, max_em_drop: float, delta: float) -> bool:
    """The reversed test: whether the hypothesis "it loses no more than the budget" is rejected on all audits kept."""
    counts = count_outcomes(z[:, np.newaxis])
    wealth = mixed(log_bets(counts.lost, counts.same, counts.gained, -max_em_drop, bets=BETS))
    return float(wealth[0]) >= log(1 / delta)
