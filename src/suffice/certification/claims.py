"""What the audits of an epoch prove at a look: claims about its requests, and the choice among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from suffice.arrays import Bools, Ints
from suffice.assurance.certify import Window, certified_level
from suffice.assurance.clusters import audits_per_cluster, log_wealth_by_cluster, own_clusters
from suffice.certification.certificate import Certificate
from suffice.certification.certifier_epoch import CertifierEpoch
from suffice.certification.evidence import Evidence
from suffice.certification.plan import Plan
from suffice.learn.audits import LevelEnds, mean_over_orders


def certify_audits(epoch: CertifierEpoch, ends: LevelEnds, evidence: Evidence, plan: Plan) -> Certificate:
    """The better of two claims: about all requests so far, or about those old enough to have returned.

    The test holds at all times at once, so both are valid. Their one window is chosen by draws and times alone.
    `ends` are where the levels of a version end the audits.
    """
    clusters = np.concatenate([epoch.runs.clusters, own_clusters(len(evidence.pending.at))])
    age = evidence.run_timeout if plan.label_free else plan.label_age(evidence.run_timeout)
    at = np.concatenate([epoch.runs.at, evidence.pending.at])
    share = np.concatenate([epoch.runs.share, evidence.pending.share])
    old, window = np.zeros(len(at), dtype=bool), None
    for least_age in (age, evidence.run_timeout):  # with slow labels, too few audits may reach that age
        if window is None or window.n_audits(at[old], share[old]) < plan.window:
            old = at <= evidence.at - least_age
            size_of = partial(audits_per_cluster, clusters[old])
            window = epoch.windows.chosen(at[old], share[old], wanted=plan.window, size_of=size_of)
    untils = sorted({evidence.at - age, evidence.at})
    claims = [_claim_until(epoch, ends, evidence, plan, until=until, window=window) for until in untils]
    best, last = best_claim(claims), epoch.certificate
    if last is None or best.level >= epoch.swings.level or plan.promise != "certified":
        return best
    # A later audit does not take back what was true of the requests up to the last pass.
    earlier = _claim_until(epoch, ends, evidence, plan, until=last.until, window=best.window)
    return hold_level(epoch.swings.level, earlier, claims) or best


def _claim_until(
    epoch: CertifierEpoch, ends: LevelEnds, evidence: Evidence, plan: Plan, *, until: float, window: Window | None
) -> Certificate:
    """Certify from the audits of a window that began by `until`; those that have not returned count as lost."""
    runs, pending = epoch.runs, evidence.pending
    inside, late = np.zeros(len(runs), dtype=bool), np.zeros(len(pending.at), dtype=bool)
    weight = np.zeros(0)
    if window is not None:
        inside, late = (runs.at <= until) & window.holds(runs.at), (pending.at <= until) & window.holds(pending.at)
        if plan.split == "half":
            inside &= runs.fold % 2 == 1
        weight = window.weights(np.concatenate([runs.share[inside], pending.share[late]]))
    which = np.flatnonzero(inside)
    z = runs.losses(ends.rows[which], which, now=evidence.at, label_free=plan.label_free)
    mean = mean_over_orders(
        runs, ends, which, weight[: len(which)], now=evidence.at, label_free=plan.label_free, delta=plan.delta
    )
    counted = z.astype(np.float64) if mean is None else mean
    lost = pending.lost(z.shape[1])[late]
    counted, z = np.concatenate([counted, lost]), np.concatenate([z, lost])
    clusters = np.concatenate([runs.clusters[which], own_clusters(len(lost))])
    wealth = log_wealth_by_cluster(counted, weight, clusters, max_em_drop=plan.max_em_drop - epoch.charge)
    return Certificate(
        level=certified_level(wealth, delta=plan.delta * epoch.delta_share),
        log_e=wealth,
        z=z,
        counted=counted,
        in_all_orders=mean is not None,
        weight=weight,
        clusters=clusters,
        inside=inside,
        window=window,
        until=until,
    )


def best_claim(claims: Sequence[Certificate]) -> Certificate:
    return max(claims, key=lambda one: (one.level, float(one.log_e[one.level])))


def hold_level(active: int, earlier: Certificate, claims: Sequence[Certificate]) -> Certificate | None:
    """Return the earlier claim if the active level, or a lower one, stays on it; None: a later claim does as well.

    It is true whatever later audits show, but does not speak of the requests since. A level is held on it only while
    all audits so far still speak for that level: its wealth is at least 1.
    """
    supported = max(certified_level(one.log_e, delta=1.0) for one in claims)
    held = min(earlier.level, active, supported)
    return replace(earlier, held=held) if held > max(one.level for one in claims) else None


def improves(epoch: CertifierEpoch, ends: LevelEnds, evidence: Evidence, plan: Plan) -> bool:
    """Whether another version's certified level saves more, and does not lower the level again so soon."""
    ours = epoch.ends
    now, then = certify_audits(epoch, ours, evidence, plan), certify_audits(epoch, ends, evidence, plan)
    if epoch.swings.delays(then.allowed, evidence.at):
        return False

    def saved(rows: Ints, inside: Bools, level: int) -> float:
        """Tokens per audit that a level saves, if it were live: net, and none at level 0."""
        which = np.flatnonzero(inside)
        saved = evidence.live_cost.saved(epoch.runs, rows[:, : level + 1], which)
        return float(saved[:, level].sum() / max(1, len(which)))

    return saved(ends.rows, then.inside, then.allowed) > saved(ours.rows, now.inside, now.allowed)
