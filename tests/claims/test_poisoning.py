"""What lying labels do to a certificate (F33): one key is held to its share, many keys are not.

`python -m pytest -q -s tests/claims/test_poisoning.py` prints the table of bench/assurance.md.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from math import floor, log
from typing import Final, TypeAlias

import numpy as np
import pytest
from numpy.typing import NDArray

from suffice.assurance.certify import Counts, count_outcomes, log_wealth
from suffice.assurance.labels import MAX_SHARE, TrustedLabel, count_losses, harden, resolve_labels

N_WINDOWS: Final = 300
AGREES: Final = 9  # in place of Z where the two answers are the same
N_AUDITS: Final = 800
MAX_EM_DROP: Final = 0.02
GAINED, HARMLESS = 0.01, 0.02  # parts of the audits; with 3 % of losses 6 % disagree

Outcomes: TypeAlias = NDArray[np.int8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """Which part of the labels lies, and behind how many keys."""

    part: float
    one_key: bool
    max_share: float


def labels_of(truth: Outcomes, attack: Attack, rng: np.random.Generator, *, n_users: int = 60) -> list[TrustedLabel]:
    """A label on every audit that disagrees: honest ones of many keys, lies where the stop lost: "it gained"."""
    differing = np.flatnonzero(truth != AGREES)
    n_lies = round(attack.part * len(differing))
    lost = differing[truth[differing] == 1]
    lied = set(rng.permutation(lost)[:n_lies].tolist())
    words = []
    for seq, audit in enumerate(rng.permutation(differing).tolist()):
        lies = audit in lied
        key = ("liar" if attack.one_key else f"liar {audit}") if lies else f"user {rng.integers(n_users)}"
        verdict = -1 if lies else int(truth[audit])
        words.append(TrustedLabel(audit=str(audit), seq=seq, source="user", key=key, trust=0, verdict=verdict))
    return words


def differing_of(truth: Outcomes) -> frozenset[str]:
    """The audits on which a label says anything."""
    return frozenset(map(str, np.flatnonzero(truth != AGREES).tolist()))


def counts_of(truth: Outcomes, standing: Mapping[str, Hashable]) -> Counts:
    """What the certificate sees with the verdicts that stand: level 0, and the level in question."""
    z = np.zeros((N_AUDITS, 2), dtype=np.int8)
    labelled = np.zeros(N_AUDITS, dtype=np.bool_)
    for audit, verdict in standing.items():
        assert isinstance(verdict, int)
        z[int(audit), 1], labelled[int(audit)] = verdict, True
    disagrees = np.stack([np.zeros(N_AUDITS, dtype=np.bool_), truth != AGREES], axis=1)
    abandoned = np.zeros(N_AUDITS, dtype=np.bool_)
    return count_outcomes(count_losses(z, disagrees, labelled=labelled, abandoned=abandoned))


def windows(lost: float, seed: int) -> Outcomes:
    """Z of N_AUDITS audits in each of N_WINDOWS windows."""
    parts = [GAINED, HARMLESS, lost, 1 - GAINED - HARMLESS - lost]
    return np.random.default_rng(seed).choice(
        np.array([-1, 0, 1, AGREES], dtype=np.int8), p=parts, size=(N_WINDOWS, N_AUDITS)
    )


def certified_share(attack: Attack, lost: float) -> float:
    """How often a level that loses `lost` and gains 1 % is certified at 5 %, at one look at a full window."""
    rng, n_certified = np.random.default_rng(5), 0
    for truth in windows(lost, seed=4):
        standing = resolve_labels(
            labels_of(truth, attack, rng), differing=differing_of(truth), max_share=attack.max_share
        )
        n_certified += float(log_wealth(counts_of(truth, standing), max_em_drop=MAX_EM_DROP)[1]) >= log(20)
    return n_certified / N_WINDOWS


KINDS: Final = {"one key, cap 5 %": (True, 0.05), "one key, no cap": (True, 1.0), "many keys, cap 5 %": (False, 0.05)}


@pytest.mark.slow
def test_what_lies_do_to_a_certificate() -> None:
    table = {}
    for kind, (one_key, cap) in KINDS.items():
        for part in (0.0, 0.01, 0.05, 0.20):
            table[kind, part] = certified_share(Attack(part=part, one_key=one_key, max_share=cap), lost=0.03)
            print(f"{kind:20} {part:4.0%} lie: certified in {table[kind, part]:.1%} of the windows")
    honest = table["one key, no cap", 0.0]
    assert honest <= 0.05
    # Two of about fifty labels are what the cap leaves to one key, however many it sends.
    assert table["one key, cap 5 %", 0.20] <= max(table["one key, no cap", 0.05], 0.05)
    assert table["one key, no cap", 0.20] > 0.25, "the cap is what holds it"
    assert table["many keys, cap 5 %", 0.20] > 0.25, "and many keys walk around it"


def test_hardened_counts_of_a_poisoned_window_prove_less_than_its_truth() -> None:
    rng, n_moved = np.random.default_rng(6), 0
    attack = Attack(part=0.20, one_key=True, max_share=0.05)
    for truth in windows(0.03, seed=7)[:100]:
        standing = resolve_labels(labels_of(truth, attack, rng), differing=differing_of(truth))
        report = counts_of(truth, standing)
        true = count_outcomes(np.where(truth == AGREES, 0, truth)[:, np.newaxis].repeat(2, axis=1).astype(np.int8))
        seen = (report, harden(report, max(1, floor(MAX_SHARE * len(differing_of(truth))))), true)
        wealth = [float(log_wealth(counts, max_em_drop=MAX_EM_DROP)[1]) for counts in seen]
        n_moved += wealth[0] > wealth[2]
        assert wealth[1] <= wealth[2]
    assert n_moved > 50, "the lies do make a difference"


def test_what_the_cap_costs_where_nobody_lies() -> None:
    honest, rng, heard = Attack(part=0.0, one_key=True, max_share=0.05), np.random.default_rng(8), {}
    for n_users in (5, 20, 60, 200):
        n_words = n_heard = 0
        for truth in windows(0.03, seed=9)[:100]:
            words = labels_of(truth, honest, rng, n_users=n_users)
            n_words += len(words)
            n_heard += len(resolve_labels(words, differing=differing_of(truth)))  # one label for each
        heard[n_users] = n_heard / n_words
        print(f"{n_users:4} honest keys: {heard[n_users]:.0%} of their labels count")
    assert heard[5] < 0.5, "with few keys, trust them"
    assert heard[200] > 0.95
