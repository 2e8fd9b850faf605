"""One verdict for each audit, whatever the order of words, and no key that decides more than its share."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from math import log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.assurance.certify import Counts, log_wealth
from suffice.assurance.labels import RANKS, TRUSTED, TrustedLabel, harden, resolve_labels
from tests.drawn import examples

WINDOW = frozenset(f"a{i}" for i in range(12))


def word(
    audit: str, seq: int, verdict: object = True, *, source: str = "user", key: str = "k1", trust: int | None = None
) -> TrustedLabel:
    rank = RANKS.get(source, 0) if trust is None else trust
    return TrustedLabel(audit=audit, seq=seq, source=source, key=key, trust=rank, verdict=str(verdict))


@st.composite
def logs(draw: st.DrawFn) -> list[TrustedLabel]:
    """What a log may hold: any words on any audits, some about none of ours; places in the log are unique."""
    output = draw(
        st.lists(
            st.tuples(
                st.integers(0, 14),
                st.sampled_from(["user", "reviewer", "exact-match", "judge", "odd"]),
                st.sampled_from(["k1", "k2", "k3"]),
                st.sampled_from(["right", "wrong", "odd"]),
            ),
            max_size=60,
        )
    )
    return [
        word(f"a{audit}", seq, verdict, source=source, key=key)
        for seq, (audit, source, key, verdict) in enumerate(output)
    ]


shares = st.sampled_from([0.0, 0.05, 0.2, 0.5, 1.0])


def stood(*labels: TrustedLabel, max_share: float = 1.0) -> dict[str, Hashable]:
    return resolve_labels(labels, differing=WINDOW, max_share=max_share)


# --------------------------------------------------------------------------- any order (F25, F27, F28)


@given(log=logs(), max_share=shares, data=st.data())
@settings(max_examples=examples(100))
def test_doubled_late_and_reordered_words_leave_the_same_state(
    log: list[TrustedLabel], max_share: float, data: st.DataObject
) -> None:
    state = resolve_labels(log, differing=WINDOW, max_share=max_share)
    shuffled = data.draw(st.permutations(log))
    doubled = [*shuffled, *data.draw(st.lists(st.sampled_from(log), max_size=20) if log else st.just([]))]
    assert resolve_labels(doubled, differing=WINDOW, max_share=max_share) == state


def test_who_changes_his_mind_is_taken_at_his_last_word_received() -> None:
    first, second = word("a1", 1, "right"), word("a1", 2, "wrong")
    assert stood(second, first) == {"a1": "wrong"}


def test_words_about_other_audits_are_ignored() -> None:
    assert stood(word("elsewhere", 1)) == stood()
    assert stood() == {}


# --------------------------------------------------------------------------- who is believed


def test_higher_trust_wins_whenever_it_came() -> None:
    early, late = word("a1", 1, "right", source="reviewer"), word("a1", 9, "wrong", source="user", key="k2")
    assert stood(early, late) == {"a1": "right"}
    assert RANKS["reviewer"] > RANKS["exact-match"] > RANKS["judge"] > 0


def test_voices_of_equal_trust_that_contradict_each_other_leave_no_verdict() -> None:
    one, other = word("a1", 1, "right", key="k1"), word("a1", 2, "wrong", key="k2")
    state = stood(one, other, word("a2", 3))
    assert state == {"a2": "True"}, "the last word of another voice is no change of mind"
    settled = stood(one, other, word("a1", 4, "wrong", source="reviewer", key="k3"))
    assert settled == {"a1": "wrong"}
    assert stood(one, other, word("a1", 5, "wrong", key="k1")) == {"a1": "wrong"}, "or one of them gives in"


@given(log=logs(), max_share=shares)
@settings(max_examples=examples(100))
def test_a_verdict_is_what_somebody_of_the_highest_trust_heard_said_last(
    log: list[TrustedLabel], max_share: float
) -> None:
    state = resolve_labels(log, differing=WINDOW, max_share=max_share)
    last = {(label.audit, label.source, label.key): label for label in log}
    for audit, verdict in state.items():
        assert audit in WINDOW
        assert any(label.verdict == verdict for label in last.values() if label.audit == audit)
    sure = [label for label in last.values() if label.trust >= TRUSTED and label.audit in WINDOW]
    for label in sure:
        voices = [other for other in sure if other.audit == label.audit]
        top = {other.verdict for other in voices if other.trust == max(voice.trust for voice in voices)}
        assert state.get(label.audit) == (top.pop() if len(top) == 1 else None), "the cap never silences trust"


# --------------------------------------------------------------------------- no key beyond its share (F33)


@st.composite
def attacks(draw: st.DrawFn) -> tuple[list[TrustedLabel], list[TrustedLabel]]:
    """Honest words of many keys, and what liars say of any audit, at any time, as any source that is capped."""
    honest = draw(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 40)), max_size=40))
    lies = draw(
        st.lists(
            st.tuples(
                st.integers(0, 11),
                st.sampled_from(["user", "judge"]),
                st.sampled_from(["x", "y"]),
                st.sampled_from(["gained", "same"]),
            ),
            max_size=40,
        )
    )
    places = draw(st.permutations(range(len(honest) + len(lies))))
    return (
        [word(f"a{audit}", seq, "truth", key=f"h{key}") for seq, (audit, key) in zip(places, honest, strict=False)],
        [
            word(f"a{audit}", seq, verdict, source=source, key=key)
            for seq, (audit, source, key, verdict) in zip(places[len(honest) :], lies, strict=True)
        ],
    )


@pytest.mark.no_cover
@given(attack=attacks(), max_share=shares)
@settings(max_examples=examples(120))
def test_a_liar_decides_at_most_its_share_and_two_liars_twice_that(
    attack: tuple[list[TrustedLabel], list[TrustedLabel]], max_share: float
) -> None:
    honest, lies = attack
    state = stood(*honest, *lies, max_share=max_share)
    allowed = max(1, int(max_share * len(WINDOW)))
    assert sum(verdict != "truth" for verdict in state.values()) <= 2 * allowed
    alone = stood(*honest, *(label for label in lies if label.key == "x"), max_share=max_share)
    assert sum(verdict != "truth" for verdict in alone.values()) <= allowed


def test_a_key_that_floods_is_heard_to_its_share_and_what_it_said_first_counts() -> None:
    honest = [word(f"a{i}", i, "right", key=f"h{i}") for i in range(9)]
    flood = [word(f"a{i}", 100 + i, "wrong", key="flood") for i in (9, 10, 11)]
    state = stood(*honest, *flood, max_share=0.1)
    assert [audit for audit, verdict in state.items() if verdict == "wrong"] == ["a9"]
    assert len(state) == 10, "two of its three words are beyond its share"


def test_a_key_beyond_its_share_cannot_contest_either() -> None:
    honest = [word(f"a{i}", i, "right", key=f"h{i}") for i in range(12)]
    flood = [word(f"a{i}", 100 + i, "wrong", key="flood") for i in range(12)]
    state = stood(*honest, *flood, max_share=0.1)
    assert len(state) == 11, "one is contested"
    assert set(state.values()) == {"right"}


def test_a_single_key_alone_counts_for_little_until_it_is_trusted() -> None:
    alone = [word(f"a{i}", i) for i in range(12)]
    assert stood(*alone, max_share=0.05) == {"a0": "True"}
    assert len(stood(*(replace(label, trust=TRUSTED) for label in alone), max_share=0.05)) == 12


def test_a_key_with_several_sources_has_one_share() -> None:
    two_faced = [
        word(f"a{i}", 2 * i + (source == "judge"), source=source, key="k")
        for i in range(12)
        for source in ("user", "judge")
    ]
    assert len(stood(*two_faced, max_share=0.25)) == 3


three = st.integers(0, 40)


@given(gained=three, same=three, lost=three, raised=st.lists(st.sampled_from([(-1, 0), (-1, 1), (0, 1)]), max_size=6))
@settings(max_examples=examples(100))
def test_hardened_counts_prove_nothing_that_the_truth_does_not(
    gained: int, same: int, lost: int, raised: list[tuple[int, int]]
) -> None:
    report = {-1: gained, 0: same, 1: lost}
    truth = dict(report)
    for output, was in raised:
        if truth[output]:
            truth[output], truth[was] = truth[output] - 1, truth[was] + 1

    def wealth(counts: Counts) -> float:
        return float(log_wealth(counts, max_em_drop=0.02)[0])

    def counts_of(numbers: dict[int, int]) -> Counts:
        return Counts(*(np.array([numbers[z]]) for z in (-1, 0, 1)))

    hard = harden(counts_of(report), len(raised))
    assert wealth(hard) <= wealth(counts_of(truth)) + 1e-9
    assert hard.n == gained + same + lost
    assert wealth(harden(counts_of(report), 0)) == wealth(counts_of(report))


def test_what_it_costs_to_allow_for_two_lies() -> None:
    def passes(n: int) -> bool:
        without_loss = Counts(np.array([0]), np.array([n]), np.array([0]))
        return float(log_wealth(harden(without_loss, 2), max_em_drop=0.02)[0]) >= log(20)

    assert next(n for n in range(2, 1_000) if passes(n)) == 422, "without lies 227 audits without a loss are enough"


@pytest.mark.parametrize(
    "bad",
    [
        lambda: stood(max_share=1.1),
        lambda: stood(max_share=-0.1),
        lambda: harden(Counts(*[np.zeros(1, dtype=np.int64)] * 3), -1),
    ],
)
def test_what_has_no_meaning_is_refused(bad: object) -> None:
    assert callable(bad)
    with pytest.raises(ValueError, match="got"):
        bad()
