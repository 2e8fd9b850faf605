"""Audits folded by conversation, prompt and caller, and the claims that have to hold together."""

from __future__ import annotations

from functools import partial

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from suffice.arrays import Floats, Ints, Small
from suffice.assurance.certify import Window, Windows, certified_level, weighted_log_wealth, window_audits
from suffice.assurance.clusters import (
    UNKNOWN,
    audits_per_cluster,
    cluster_key,
    count_clusters,
    describe_clusters,
    fold_clusters,
    log_wealth_by_cluster,
    missing_clustered_audits,
    number_clusters,
    own_clusters,
)
from suffice.types import EvidenceSummary

EPS = 0.02
AUDITS = st.integers(1, 40).flatmap(
    lambda n: st.tuples(
        arrays.arrays(np.int8, (n, 3), elements=st.integers(-1, 1)),
        arrays.arrays(np.float64, n, elements=st.floats(0.01, 1.0)),
        arrays.arrays(np.int64, (n, 3), elements=st.integers(UNKNOWN, 5)),
    )
)


@given(AUDITS)
def test_a_cluster_counts_its_weighted_mean_with_at_most_the_weight_of_one_request(
    audits: tuple[Small, Floats, Ints],
) -> None:
    z, weight, clusters = audits
    keys = clusters[:, 0]
    folded = fold_clusters(z, weight, keys)
    names = [f"own {at}" if key == UNKNOWN else str(key) for at, key in enumerate(keys.tolist())]
    expected = sorted(
        (
            *np.average(z[those], axis=0, weights=weight[those]).round(9).tolist(),
            round(min(1.0, weight[those].sum()), 9),
        )
        for those in ([at for at, one in enumerate(names) if one == name] for name in set(names))
    )
    rows = np.column_stack([folded.z, folded.weight]).round(9).tolist()
    np.testing.assert_allclose(sorted(rows), expected, atol=1e-8)


@given(AUDITS)
def test_clusters_never_prove_more_than_the_audits_and_single_requests_prove_the_same(
    audits: tuple[Small, Floats, Ints],
) -> None:
    z, weight, clusters = audits
    alone = weighted_log_wealth(z, weight, max_em_drop=EPS)
    assert (log_wealth_by_cluster(z, weight, clusters, max_em_drop=EPS) <= alone).all()
    assert (log_wealth_by_cluster(z, weight, own_clusters(len(z)), max_em_drop=EPS) == alone).all()
    distinct = np.arange(1, 3 * len(z) + 1).reshape(-1, 3)
    assert (log_wealth_by_cluster(z, weight, distinct, max_em_drop=EPS) == alone).all()


@given(AUDITS, st.integers(0, 2**32))
def test_the_order_of_the_audits_changes_nothing(audits: tuple[Small, Floats, Ints], seed: int) -> None:
    z, weight, clusters = audits
    order = np.random.default_rng(seed).permutation(len(z))
    before = log_wealth_by_cluster(z, weight, clusters, max_em_drop=EPS)
    after = log_wealth_by_cluster(z[order], weight[order], clusters[order], max_em_drop=EPS)
    np.testing.assert_allclose(after, before, atol=1e-9)


def test_sixty_conversations_of_twenty_turns_cannot_prove_two_points() -> None:
    z, weight = np.zeros((1_200, 2), np.int8), np.ones(1_200)
    clusters = own_clusters(1_200)
    assert certified_level(log_wealth_by_cluster(z, weight, clusters, max_em_drop=EPS), delta=0.05) == 1
    clusters[:, 0] = 1 + np.arange(1_200) // 20
    wealth = log_wealth_by_cluster(z, weight, clusters, max_em_drop=EPS)
    assert certified_level(wealth, delta=0.05) == 0
    missing = missing_clustered_audits(z, weight, clusters, 1, max_em_drop=EPS, delta=0.05)
    assert missing is not None
    assert missing % 20 == 0, "as many as whole conversations bring"
    n = 1_200 + missing
    longer = own_clusters(n)
    longer[:, 0] = 1 + np.arange(n) // 20
    wealth = log_wealth_by_cluster(np.zeros((n, 2), np.int8), np.ones(n), longer, max_em_drop=EPS)
    assert certified_level(wealth, delta=0.05) == 1


def test_a_window_of_whole_conversations_takes_more_audits_and_one_of_spread_ones_does_not() -> None:
    """Else a route that runs in full until it is certified would never gather enough conversations."""
    n, wanted = 6_000, window_audits(EPS)
    clusters, at, share = own_clusters(n), np.arange(1.0, n + 1), np.ones(n)
    windows = Windows([Window(start=1.0, share=1.0)])
    for size, start in ((1, n - 1.5 * wanted + 1), (20, 1.0)):
        clusters[:, 0] = 1 + np.arange(n) // size
        assert audits_per_cluster(clusters, np.ones(n, np.bool_)) == size
        chosen = windows.chosen(at, share, wanted=wanted, size_of=partial(audits_per_cluster, clusters))
        assert chosen is not None
        assert chosen.start == start
    clusters[:, 0] = 1
    assert audits_per_cluster(clusters, np.ones(n, np.bool_)) == 20, "however long, memory is bounded"
    assert audits_per_cluster(clusters, np.zeros(n, np.bool_)) == 1


def test_callers_count_only_where_they_are_as_many_as_the_audits_of_a_window() -> None:
    """Three callers prove nothing about callers, and could not be asked to."""
    many = window_audits(EPS)
    z, weight = np.zeros((2 * many, 2), np.int8), np.ones(2 * many)
    clusters = own_clusters(2 * many)
    alone = log_wealth_by_cluster(z, weight, clusters, max_em_drop=EPS)
    clusters[:, 2] = 1 + np.arange(2 * many) % (many - 1)
    assert (log_wealth_by_cluster(z, weight, clusters, max_em_drop=EPS) == alone).all()
    clusters[:, 2] = 1 + np.arange(2 * many) % many
    assert (log_wealth_by_cluster(z, weight, clusters, max_em_drop=EPS)[1] < alone[1]).all()


def test_an_unknown_cluster_is_one_of_its_own() -> None:
    assert cluster_key("") == UNKNOWN != cluster_key("a") != cluster_key("b") != UNKNOWN
    numbers, n = number_clusters(np.array([UNKNOWN, 7, UNKNOWN, 7, -3]))
    assert n == 4 == len(set(numbers.tolist()))
    assert numbers[1] == numbers[3]
    clusters = np.array([[UNKNOWN, 1, UNKNOWN], [UNKNOWN, 1, 4], [5, 2, 4]])
    assert count_clusters(clusters) == (3, 2, 1)


def test_clusters_are_named_beside_the_audits_and_few_callers_as_few() -> None:
    known = EvidenceSummary(n_audits=1_200, n_conversations=60, n_prompts=1_150, n_callers=3, max_em_drop=EPS)
    assert describe_clusters(known) == "60 conversations, 1,150 prompts, 3 callers (too few to speak for others)"
    assert describe_clusters(EvidenceSummary(n_conversations=1, n_prompts=1, n_callers=0)) == "1 conversation, 1 prompt"
    assert not describe_clusters(EvidenceSummary(n_audits=1_200))
