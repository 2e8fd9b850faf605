"""What a publication says of a certifier's level: its evidence, the saving that is expected, and why it is that one."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor
from typing import Final

import numpy as np

from suffice.arrays import Floats
from suffice.assurance.certify import e_value_of
from suffice.assurance.clusters import count_clusters, missing_clustered_audits
from suffice.certification.certificate import Certificate
from suffice.certification.certifier import Certifier
from suffice.certification.evidence import Change
from suffice.types import EvidenceSummary, Publication

IDLE: Final = "a level passes, and none saves anything once probes and hand-overs are paid"


def budget_at(certificate: Certificate, level: int) -> float:
    """The drop that a level is tested against, net of charges."""
    return float(np.broadcast_to(certificate.budget, certificate.log_e.shape)[level])


def expected_saving(certifier: Certifier, shares: Floats) -> float | None:
    """The share of all requests' tokens that is expected to be saved, net; None: unknown.

    shares  P(a request is served at each level), for each of the last certificate's audits, shape (n, M)
    """
    epoch, cost = certifier.epoch, certifier.latest.live_cost
    if epoch.certificate is None:
        return None
    inside = np.flatnonzero(epoch.certificate.inside)
    saved = float((shares * cost.saved(epoch.runs, epoch.rows, inside)).sum())
    return cost.of_all(saved, float(epoch.runs.full[inside].sum()), certifier.share)


def summarize_evidence(certifier: Certifier, *, most: int | None = None) -> EvidenceSummary:
    """The evidence for the level that passes, or for `most` where no higher one is allowed; without a saving."""
    plan = certifier.plan
    epoch = certifier.epoch
    certificate = certifier.epoch.certificate
    if certificate is None:
        return EvidenceSummary(n_audits=epoch.n_audits, max_em_drop=plan.max_em_drop, confidence=plan.confidence)
    level = certifier.level if most is None else min(certifier.level, most)
    at, window = certificate.z[:, level], certificate.window
    n_missing = None
    if level == certifier.level != certifier.latest.cap and level + 1 < certificate.z.shape[1]:
        budget = budget_at(certificate, level + 1)
        n_missing = missing_clustered_audits(
            certificate.counted,
            certificate.weight,
            certificate.clusters,
            level + 1,
            max_em_drop=budget,
            delta=certificate.delta,
        )
    clusters = count_clusters(certificate.clusters)
    return EvidenceSummary(
        n_audits=len(at),
        n_conversations=clusters.conversations,
        n_prompts=clusters.prompts,
        n_callers=clusters.callers,
        n_gained=int((at < 0).sum()),
        n_lost=int((at > 0).sum()),
        n_pending=certificate.n_pending,
        n_disagreeing=int(epoch.runs.d[epoch.rows[certificate.inside, level]].sum()),
        e_value=e_value_of(float(certificate.log_e[level])) if level else None,
        n_missing=n_missing,
        max_em_drop=budget_at(certificate, max(1, level)) * certificate.exposure.share,
        confidence=plan.confidence,
        window_start=None if window is None else window.start,
        window_end=None if window is None else float(min(window.end, floor(certificate.until) + 1)),
        window_share=None if window is None else window.share,
    )


def explain_level(
    certifier: Certifier,
    changes: Sequence[Change],
    before: Publication | None,
    *,
    level: int,
    most: int | None,
    fit: str,
) -> str:
    """Explain why a level is published; `most` is the highest level that ratings allow, None: no limit."""
    reasons = [change.reason for change in changes] + [IDLE] * certifier.idle
    if most is not None and most < certifier.level:
        reasons.append(f"ratings allow level {most} at most")
    if reasons:
        return "; ".join(reasons)
    if before is not None and before.level == level:
        more = certifier.share > before.share
        return "audits look worse than before: more are drawn" if more else "audits look as they did before"
    n_audits = certifier.epoch.n_audits
    if level:
        return f"level {level} passes on {n_audits} audits"
    return f"no level passes on {n_audits} audits" if fit else f"{n_audits} audits are too few to learn from"
