"""What the audits of an epoch prove at a look: claims about its requests, and the choice among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import numpy as np

from suffice.assurance.certify import Window, certified_level, count_outcomes
from suffice.assurance.clusters import audits_per_cluster, log_wealth_by_cluster, own_clusters
from suffice.assurance.exposure import WHILE_LEARNING, Exposure
from suffice.certification.certificate import Certificate, affordable_level
from suffice.certification.certifier_epoch import CertifierEpoch
from suffice.certification.evidence import Evidence
from suffice.certification.plan import Plan
from suffice.learn.audits import LevelEnds, mean_over_orders

NEARLY_ALL: Final = 0.95  # of what the best affordable level would save: then nothing is left to climb for


def certify_audits(epoch: CertifierEpoch, ends: LevelEnds, evidence: Evidence, plan: Plan) -> Certificate:
    """The certificate that acts: of those of each share of the requests, the one that saves most."""
    certificates = certify_shares(epoch, ends, evidence, plan)
    return certificates[0] if len(certificates) == 1 else _choose(certificates, epoch, ends, evidence, plan)


def certify_shares(epoch: CertifierEpoch, ends: LevelEnds, evidence: Evidence, plan: Plan) -> list[Certificate]:
    """A certificate for each share of the requests on which a level may act.

    It is the better of two claims: about all requests so far, or about those old enough to have returned. The test
    holds at all times at once, so both are valid. Their one window is chosen by draws and times alone. `ends` are where
    the levels of a version end the audits.
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
    gather = partial(_gather_audits, epoch, ends, evidence, plan, window=window)
    audits = [gather(until=until) for until in sorted({evidence.at - age, evidence.at})]
    last, active = epoch.certificate, epoch.swings.level
    certificates = list[Certificate]()
    for exposure in plan.exposures:
        claims = [_certify(one, exposure, epoch, plan) for one in audits]
        best = best_claim(claims)
        if last and exposure == last.exposure and best.level < active and plan.promise == "certified":
            # A later audit does not take back what was true of the requests up to the last pass.
            earlier = _certify(gather(until=last.until), exposure, epoch, plan)
            best = hold_level(active, earlier, claims) or best
        certificates.append(best)
    return certificates


def _gather_audits(
    epoch: CertifierEpoch, ends: LevelEnds, evidence: Evidence, plan: Plan, *, until: float, window: Window | None
) -> Certificate:
    """What a claim is made of: the audits of a window that began by `until`; those not returned count as lost."""
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
    return Certificate(
        level=0,
        log_e=np.zeros(z.shape[1]),
        z=np.concatenate([z, lost]),
        counted=np.concatenate([counted, lost]),
        in_all_orders=mean is not None,
        weight=weight,
        clusters=np.concatenate([runs.clusters[which], own_clusters(len(lost))]),
        inside=inside,
        window=window,
        until=until,
        exposure=plan.exposures[-1],
        budget=np.zeros(()),
        delta=plan.delta,
    )


def _certify(audits: Certificate, exposure: Exposure, epoch: CertifierEpoch, plan: Plan) -> Certificate:
    budget, delta = exposure.budget(plan.max_em_drop, epoch.charge), plan.delta * epoch.delta_share
    wealth = log_wealth_by_cluster(audits.counted, audits.weight, audits.clusters, max_em_drop=budget)
    delta *= exposure.delta_part
    level = certified_level(wealth, delta=delta)
    return replace(audits, level=level, log_e=wealth, exposure=exposure, budget=budget, delta=delta)


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


# ---- the share of the requests


def _choose(
    certificates: Sequence[Certificate], epoch: CertifierEpoch, ends: LevelEnds, evidence: Evidence, plan: Plan
) -> Certificate:
    """The certificate that saves most per request, the smallest share first.

    The more requests a timid level stops, the fewer audits are left to prove a bolder one. So as long as there are
    fewer audits than a burst has, a level acts on half of the requests at most, unless no affordable one saves much
    more.
    """
    saved = [net_tokens(one, epoch, ends, evidence, plan) for one in certificates]
    best = int(np.argmax(saved))
    if certificates[best].exposure.share <= WHILE_LEARNING or epoch.n_audits >= plan.burst:
        return certificates[best]
    bold = certificates[-1]
    reach = affordable_level(count_outcomes(bold.z), max_em_drop=float(np.max(bold.budget)))
    if saved[best] >= NEARLY_ALL * net_tokens(bold, epoch, ends, evidence, plan, level=reach):
        return certificates[best]
    timid = [at for at, one in enumerate(certificates) if one.exposure.share <= WHILE_LEARNING]
    return certificates[max(timid, key=saved.__getitem__)]


def net_tokens(
    certificate: Certificate,
    epoch: CertifierEpoch,
    ends: LevelEnds,
    evidence: Evidence,
    plan: Plan,
    *,
    level: int | None = None,
) -> float:
    """Tokens per request that a level saves, net of audits, if it were live; None: the level that is allowed."""
    level = certificate.allowed if level is None else level
    which, runs = np.flatnonzero(certificate.inside), epoch.runs
    if not len(which):
        return 0.0
    full = float(runs.full[which].sum())
    of_audits = full - float(runs.cost[runs.last[which]].sum())  # of a vote that is decided before its last sample
    if evidence.live_cost.audit_overhead:
        of_audits = min(of_audits, -full * evidence.live_cost.audit_overhead)
    if not level:
        return max(0.0, of_audits) / len(which)
    saved = float(evidence.live_cost.saved(runs, ends.rows[:, : level + 1], which)[:, level].sum())
    share = certificate.exposure.audit_share(plan.share)
    return (saved * (1 - share) + of_audits * share) / len(which)


def improves(epoch: CertifierEpoch, ends: LevelEnds, evidence: Evidence, plan: Plan) -> bool:
    """Whether another version's certified level saves more, and does not lower the level again so soon."""
    now, then = (
        [(one, net_tokens(one, epoch, rows, evidence, plan)) for one in certify_shares(epoch, rows, evidence, plan)]
        for rows in (epoch.ends, ends)
    )
    if not plan.ramps and epoch.swings.delays(then[-1][0].allowed, evidence.at):
        return False
    return sum(saved for _, saved in then) > sum(saved for _, saved in now)
