"""Claims about the requests to come, whose unit is the cluster: a conversation, a distinct prompt, or a caller.

The claim of a window (`assurance.certify`) is about its own requests, and at a share of 1 it is no inference at all. If
losses come in clusters, a window of few clusters says little about the next one. So each cluster is one observation
here: with the mean drop Y of its audits and the weight W, their sum of c/rho and at most 1, the product of
1 + nu W (eps - Y) over clusters, in the order in which they began, is a non-negative supermartingale whenever each
cluster is expected to lose eps or more given those before it, as is so of exchangeable ones with that mean. The product
of constant bets needs no order. Where every cluster is one request, it is the wealth of the audits themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from math import ceil
from typing import Final, NamedTuple

import numpy as np

from suffice.arrays import Bools, Floats, Ints, Small
from suffice.assurance.certify import missing_audits, weighted_log_wealth, window_audits
from suffice.sanitize import plural
from suffice.types import EvidenceSummary

UNITS: Final = ("conversation", "prompt", "caller")
MOST_PER_CLUSTER: Final = 20.0  # by which a window of audits grows at most
UNKNOWN: Final = 0  # the key of a request that is a cluster of its own


class Observations(NamedTuple):
    z: Small | Floats  # (K, M): mean drops
    weight: Floats  # (K,)


class ClusterCounts(NamedTuple):
    conversations: int  # a request without one is one of its own …
    prompts: int  # … and one whose prompt is unknown, too
    callers: int  # that are known


def cluster_key(name: str) -> int:
    """A key for the cluster of this name; "": the request is a cluster of its own."""
    if not name:
        return UNKNOWN
    digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True) or 1


def own_clusters(n: int) -> Ints:
    """The keys of n requests that have nothing in common, shape (n, units)."""
    return np.full((n, len(UNITS)), UNKNOWN, dtype=np.int64)


def number_clusters(keys: Ints) -> tuple[Ints, int]:
    """The number of each request's cluster, from 0, shape (n,), and how many there are; `keys` are of one unit."""
    known, cluster = np.unique(keys, return_inverse=True)
    own = np.flatnonzero(keys == UNKNOWN)
    if len(own):  # the first of them keeps the number of UNKNOWN
        cluster[own[1:]] = len(known) + np.arange(len(own) - 1)
    return cluster.astype(np.int64), len(known) + max(0, len(own) - 1)


def audits_per_cluster(clusters: Ints, inside: Bools) -> float:
    """How many of these audits are one observation at the units that always count, at most `MOST_PER_CLUSTER`."""
    conversations, prompts, _ = clusters[inside].T
    fewest = min(number_clusters(conversations)[1], number_clusters(prompts)[1])
    return min(MOST_PER_CLUSTER, len(prompts) / max(1, fewest)) or 1.0


def count_clusters(clusters: Ints) -> ClusterCounts:
    conversations, prompts, callers = clusters.T
    known = np.unique(callers[callers != UNKNOWN])
    return ClusterCounts(number_clusters(conversations)[1], number_clusters(prompts)[1], len(known))


def fold_clusters(z: Small | Floats, weight: Floats, keys: Ints) -> Observations:
    """One observation for each cluster of audits, z of shape (n, M); `keys` are of one unit."""
    cluster, n_clusters = number_clusters(keys)
    if n_clusters == len(z):
        return Observations(z, weight)
    order = np.argsort(cluster, kind="stable")
    starts = np.searchsorted(cluster[order], np.arange(n_clusters))
    total = np.add.reduceat(weight[order], starts)
    lost = np.add.reduceat((weight[:, np.newaxis] * z)[order], starts, axis=0)
    return Observations(lost / total[:, np.newaxis], np.minimum(1.0, total))


def log_wealth_by_cluster(z: Small | Floats, weight: Floats, clusters: Ints, *, max_em_drop: float | Floats) -> Floats:
    """The least log wealth of each level, shape (M,), among that of the audits and that of their clusters by each unit.

    A level acts only while all of these claims hold, each at delta. `clusters` are the keys of audits, (n, units).
    """
    tested = tested_observations(z, weight, clusters, max_em_drop=float(np.max(max_em_drop)))
    wealth = [weighted_log_wealth(one.z, one.weight, max_em_drop=max_em_drop) for one in tested]
    return np.asarray(np.minimum.reduce(wealth))


def tested_observations(
    z: Small | Floats, weight: Floats, clusters: Ints, *, max_em_drop: float
) -> Iterator[Observations]:
    """The observations of each claim that has to hold: of the audits, and of their clusters by each unit.

    Callers count where they are as many as the audits of a window, at which a level that loses half of the budget is
    almost surely certified. Fewer would hold a level by their number, whatever they lose.
    """
    yield Observations(z, weight)
    for unit, keys in zip(UNITS, clusters.T, strict=True):
        one = fold_clusters(z, weight, keys)
        is_many = unit != "caller" or (max_em_drop > 0 and len(one.z) >= window_audits(max_em_drop))
        if len(one.z) < len(z) and is_many:
            yield one


def missing_clustered_audits(
    z: Small | Floats,
    weight: Floats,
    clusters: Ints,
    level: int,
    *,
    max_em_drop: float,
    delta: float,
    most: int | None = None,
) -> int | None:
    """Further audits until a level passes if outcomes and clusters' sizes go on; None: never, or over `most` in all."""
    known = [
        (missing_audits(one.z, level, max_em_drop=max_em_drop, delta=delta), len(z) / max(1, len(one.z)))
        for one in tested_observations(z, weight, clusters, max_em_drop=max_em_drop)
    ]
    each = [ceil(n * size) for n, size in known if n is not None]
    if len(each) < len(known) or (most is not None and len(z) + max(each) > most):
        return None
    return max(each)


def describe_clusters(evidence: EvidenceSummary) -> str:
    """How many clusters the audits of a certificate come from; "": they were not counted."""
    if evidence.n_conversations is None or evidence.n_prompts is None:
        return ""
    parts = [plural(evidence.n_conversations, "conversation"), plural(evidence.n_prompts, "prompt")]
    if evidence.n_callers:
        least = window_audits(evidence.max_em_drop) if evidence.max_em_drop else 0
        few = " (too few to speak for others)" if evidence.n_callers < least else ""
        parts.append(plural(evidence.n_callers, "caller") + few)
    return ", ".join(parts)
