"""The ledger books every run where it belongs, hides no missing label, and prints the promise in full."""

from __future__ import annotations

from dataclasses import replace

import pytest

from suffice.assurance.estimate import Account, LedgerEntry, accounts
from suffice.assurance.guarantee import KNOWN_AUDITS, Guarantee, sentence
from suffice.assurance.runs import RunNumbers

AUDIT = RunNumbers(
    group="q",
    full=True,
    enforce=True,
    audit=True,
    weight=10.0,
    stopped=False,
    would_stop=True,
    baseline_tokens=1_000.0,
    spent=1_010.0,
    would_spend=600.0,
    cost_usd=None,
    baseline_usd=None,
    would_cost_usd=None,
    correct=True,
    disagrees=False,
    drop=0,
    abandoned_audit=False,
)
STOPPED = replace(
    AUDIT,
    full=False,
    audit=False,
    stopped=True,
    would_stop=False,
    spent=620.0,
    would_spend=None,
    disagrees=None,
    drop=None,
)
LOST = replace(AUDIT, disagrees=True, drop=1)
PENDING = replace(AUDIT, disagrees=True, drop=None, correct=None)
UNLABELLED = replace(AUDIT, drop=None, correct=None)


def entries(*runs: RunNumbers, query_class: str = "code", version: str = "v1") -> list[LedgerEntry]:
    return [LedgerEntry(query_class=query_class, version=version, run=run) for run in runs]


def total(*runs: RunNumbers) -> Account:
    return accounts("r", entries(*runs), cap_tokens=4_000)[0]


def test_every_group_is_booked_once_and_adds_up() -> None:
    booked = accounts(
        "r",
        [
            *entries(*[AUDIT] * 30),
            *entries(*[LOST] * 10, query_class="law", version="v2"),
            *entries(*[STOPPED] * 60, version="v2"),
        ],
        cap_tokens=4_000,
    )
    assert [(at.route, at.query_class, at.version, at.n_runs) for at in booked] == [
        ("r", None, None, 100),
        ("r", None, "v1", 30),
        ("r", None, "v2", 70),
        ("r", "code", None, 90),
        ("r", "code", "v1", 30),
        ("r", "code", "v2", 60),
        ("r", "law", None, 10),
        ("r", "law", "v2", 10),
    ]


def test_each_number_stands_on_the_runs_that_may_tell_it() -> None:
    wrong = replace(STOPPED, correct=False)
    account = total(*[AUDIT] * 290, *[LOST] * 10, *[STOPPED] * 450, *[wrong] * 50)
    assert account.em_full is not None
    assert account.em_stopped is not None
    assert account.em_drop is not None
    assert account.tokens_full is not None
    assert account.tokens_live is not None
    assert account.saving is not None
    assert (account.n_audits, account.known, account.n_pending) == (300, True, 0)
    assert (account.em_full.value, account.em_full.n) == (1.0, 300)
    assert (account.em_stopped.value, account.em_stopped.n) == (0.9, 500)
    assert account.em_drop.value == pytest.approx(10 / 300)
    assert (account.tokens_full.value, account.tokens_live.value) == (1_010, 620)
    assert account.saving.value == pytest.approx(0.4)
    for estimate in (account.em_full, account.em_stopped, account.em_drop, account.tokens_full, account.saving):
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.low < estimate.high
        assert estimate.low <= estimate.value <= estimate.high
        assert estimate.note is None


def test_what_was_never_measured_is_none_and_not_zero() -> None:
    account = total(replace(STOPPED, correct=None, spent=None))
    assert (account.em_full, account.em_stopped, account.em_drop, account.saving) == (None,) * 4
    assert (account.tokens_full, account.tokens_live, account.known) == (None, None, False)
    assert total(replace(AUDIT, would_spend=0.0, baseline_tokens=0.0)).saving is None


def test_agreement_needs_no_label_and_a_missing_one_widens_the_interval_both_ways() -> None:
    labelled = total(*[AUDIT] * 500).em_drop
    unlabelled = total(*[UNLABELLED] * 500).em_drop
    assert labelled == unlabelled
    pending = total(*[AUDIT] * 490, *[PENDING] * 10)
    lost, gained = total(*[AUDIT] * 490, *[LOST] * 10), total(*[AUDIT] * 490, *[replace(LOST, drop=-1)] * 10)
    assert pending.n_pending == 10
    assert pending.em_drop is not None
    assert lost.em_drop is not None
    assert gained.em_drop is not None
    assert (pending.em_drop.value, pending.em_drop.high) == (lost.em_drop.value, lost.em_drop.high)
    assert pending.em_drop.low == gained.em_drop.low
    assert pending.em_drop.note == "10 audits without a label count as lost"


def test_unlabelled_runs_are_left_out_of_em_and_it_says_so() -> None:
    em = total(*[AUDIT] * 30, *[UNLABELLED] * 12).em_full
    assert em is not None
    assert (em.n, em.note) == (30, "12 runs without a label are left out")


def test_a_run_beyond_the_cap_is_counted_as_the_cap_and_shows() -> None:
    account = total(*[AUDIT] * 10, replace(AUDIT, spent=9_000.0, baseline_tokens=9_000.0))
    assert account.n_cut == 1
    assert account.tokens_full is not None
    assert account.tokens_full.value == pytest.approx((10 * 1_010 + 4_000) / 11)


def test_an_abandoned_audit_is_a_loss() -> None:
    drop = total(*[AUDIT] * 9, replace(AUDIT, abandoned_audit=True, disagrees=True, drop=1, correct=None)).em_drop
    assert drop is not None
    assert drop.value == pytest.approx(0.1)


# --------------------------------------------------------------------------- the sentence

CLAIM = Guarantee(
    route="gpqa",
    scorer="choice",
    max_em_drop=0.02,
    confidence=0.95,
    n_window=800,
    requests=(1_201, 17_200),
    labels="labelled",
    detection="a silent loss of 3 points would be noticed within about 710 requests",
    classes={"physics": 650, "law": KNOWN_AUDITS - 1, "": 12},
)


def test_the_sentence_names_everything_that_the_promise_hangs_on() -> None:
    text = sentence(CLAIM)
    for output in (
        "'gpqa'",
        "'choice'",
        "would have lost less than 2 points of EM",
        "95 % confidence",
        "all requests from number 1,201 to 17,200",
        "shown by 800 audits with labels",
        "over all classes",
        "a silent loss of 3 points would be noticed within about 710 requests",
        "unknown, with under 200 audits: no class, law",
    ):
        assert output in text, output
    assert "physics" not in text


def test_what_is_not_known_or_has_no_labels_is_said() -> None:
    text = sentence(replace(CLAIM, requests=None, detection="", labels="label-free", max_em_drop=0.01, classes={}))
    for output in ("1 point of EM", "all requests of the window", "is not known", "without labels"):
        assert output in text, output
    assert "unknown, with" not in text
