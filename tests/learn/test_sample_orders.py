"""The other orders of a vote's samples: equally likely, decided alike, and worth audits without a further sample."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.assurance.certify import is_order_refuted, weighted_log_wealth
from suffice.certification.certificate import Certificate
from suffice.certification.certifier import Certifier
from suffice.certification.evidence import Evidence
from suffice.certification.plan import Plan
from suffice.control.evidence.audits import Audit, Verdicts, audits_to_rows, rows_in_all_orders
from suffice.control.evidence.versions import FIXED, fixed_policy_rows
from suffice.episode.vote import count_votes, deciding_sample
from suffice.learn.audits import MOST_ORDERS, AuditRuns, LevelEnds, concatenate_audits, draw_orders
from suffice.learn.features import DENSE, FeatureSelection
from suffice.policy.base import build_policy
from suffice.store.database.views import StoredLabel
from suffice.types import Episode, Feedback
from tests.control.made import run
from tests.drawn import examples
from tests.learn.runs_made import believing

votes = st.lists(st.sampled_from([None, "a", "b", "c"]), min_size=1, max_size=12)


def equal(answer: str | None, gold: str) -> bool:
    return answer == gold


CHOSEN = FeatureSelection(DENSE["samples"], ())


def decided(answers: list[str | None], n_samples: int) -> list[str | None]:
    return answers[: deciding_sample(answers, n_samples)]


def same_end(answers: list[str | None], n_samples: int) -> list[tuple[int, ...]]:
    """Every order that is decided at its last sample, for the same winner."""
    winner = count_votes(answers).answer
    orders = []
    for order in itertools.permutations(range(len(answers))):
        moved = [answers[i] for i in order]
        if deciding_sample(moved, n_samples) == len(answers) and count_votes(moved).answer == winner:
            orders.append(order)
    return orders


@settings(max_examples=examples(150))
@given(votes, st.integers(0, 4), st.text(max_size=4))
def test_an_order_is_decided_at_its_last_sample_for_the_same_winner(
    answers: list[str | None], n_more: int, key: str
) -> None:
    n_samples = len(answers) + n_more
    drawn = decided(answers, n_samples) if deciding_sample(answers, n_samples) else answers
    orders = draw_orders(drawn, n_samples, key=key)
    assert orders == draw_orders(drawn, n_samples, key=key), "a replay draws the same ones"
    assert len(orders) <= MOST_ORDERS
    assert not orders or (len(set(drawn)) > 1 and deciding_sample(drawn, n_samples) == len(drawn))
    for order in orders:
        moved = [drawn[i] for i in order]
        assert sorted(order) == list(range(len(drawn)))
        assert deciding_sample(moved, n_samples) == len(drawn)
        assert count_votes(moved).answer == count_votes(drawn).answer


def test_orders_are_uniform_over_those_that_end_alike() -> None:
    answers = decided(["a", "b", "a", "c", "a", "a"], 6)
    allowed = same_end(answers, 6)
    seen = Counter(tuple(order) for key in range(1_500) for order in draw_orders(answers, 6, key=str(key)))
    assert set(seen) <= set(allowed)
    expected = seen.total() / len(allowed)
    chi2 = sum((seen[order] - expected) ** 2 / expected for order in allowed)
    assert abs(chi2 - (len(allowed) - 1)) < 4 * (2 * (len(allowed) - 1)) ** 0.5


def test_own_order_and_others_lose_alike_on_independent_samples() -> None:
    """Over many votes the mean drop of a stop after two samples is the same in own and in other orders."""
    rng, own, others = random.Random(5), list[float](), list[float]()
    for number in range(4_000):
        p = rng.choice([0.45, 0.6, 0.8])
        drawn = decided(["right" if rng.random() < p else rng.choice("xy") for _ in range(8)], 8)
        full = count_votes(drawn).answer == "right"

        def lost(order: list[int], drawn: list[str | None] = drawn, full: bool = full) -> int:
            return int(full) - int(count_votes([drawn[i] for i in order[:2]]).answer == "right")

        mine = list(range(len(drawn)))
        orders = [mine, *draw_orders(drawn, 8, key=str(number))]
        own.append(lost(mine))
        others.append(float(np.mean([lost(order) for order in orders])))
    gap = np.array(own) - np.array(others)
    assert abs(gap.mean()) < 3 * gap.std() / len(gap) ** 0.5
    assert np.var(others) < 0.75 * np.var(own), "and the mean over orders varies less"


# --------------------------------------------------------------------------- audits of the log


def audits(n: int, **changes: Any) -> list[Audit]:
    """Votes of eight samples as the gateway ends them: each at its deciding sample."""
    rng, made = random.Random(3), list[Audit]()
    for number in range(n):
        request, outcome = run(number, rng, p_right=0.6)
        request = replace(request, **changes)
        steps = outcome.steps[: deciding_sample([step.answer for step in outcome.steps], request.n_samples)]
        answer = count_votes([step.answer for step in steps]).answer
        outcome = replace(outcome, steps=steps, answer=answer)
        made.append(Audit(seq=number, at=number, ended_at_s=0.0, episode=Episode(request=request, outcome=outcome)))
    return made


def rows_of(of: list[Audit]) -> AuditRuns:
    return rows_in_all_orders(of, {}, learned_rows)


def learned_rows(of: Sequence[Audit], counts: Verdicts) -> AuditRuns:
    return audits_to_rows(of, chosen=CHOSEN, match=equal, wave=4, counts=counts)


def first_step(runs: AuditRuns) -> LevelEnds:
    """Level 1 stops after the first sample."""
    assert runs.orders is not None
    own, other = runs, runs.orders.runs
    return LevelEnds(np.column_stack([own.last, own.starts[:-1]]), np.column_stack([other.last, other.starts[:-1]]))


def test_own_rows_do_not_change_with_the_orders() -> None:
    made = audits(60)
    plain = audits_to_rows(made, chosen=CHOSEN, match=equal, wave=4, counts={})
    runs = rows_of(made)
    for name in ("x", "starts", "z", "d", "may_stop", "cost", "full", "fold", "at", "share"):
        assert np.array_equal(getattr(plain, name), getattr(runs, name)), name
    assert runs.orders is not None
    assert len(runs.orders.runs) == runs.orders.starts[-1] > 0


def test_the_mean_is_over_own_and_other_orders_by_hand() -> None:
    runs = rows_of(audits(60))
    assert runs.orders is not None
    mean = runs.mean_losses(first_step(runs), np.arange(len(runs)))
    for i in range(len(runs)):
        own = float(runs.d[runs.starts[i]])
        other = runs.orders.runs.d[runs.orders.runs.starts[runs.orders.starts[i] : runs.orders.starts[i + 1]]]
        assert mean[i, 0] == 0
        assert mean[i, 1] == pytest.approx((own + other.sum()) / (1 + len(other)))


def test_selecting_and_joining_keep_the_orders_of_each_audit() -> None:
    runs = rows_of(audits(40))
    mean = runs.mean_losses(first_step(runs), np.arange(40))
    which = np.array([31, 4, 4, 17])
    taken = runs.take(which)
    assert np.array_equal(taken.mean_losses(first_step(taken), np.arange(4)), mean[which])
    joined = concatenate_audits([runs.take(np.arange(25)), runs.without_orders().take(np.arange(25, 26)), taken])
    again = joined.mean_losses(first_step(joined), np.arange(len(joined)))
    assert np.array_equal(again[:25], mean[:25])
    assert np.array_equal(again[26:], mean[which])


@pytest.mark.parametrize("changes", [{"seeded": True}, {"endpoint": "library"}, {"endpoint": "/v1/decide"}])
def test_where_the_order_is_not_random_it_stays(changes: dict[str, Any]) -> None:
    assert rows_of(audits(40, **changes)).orders is None


def test_a_vote_with_a_failed_sample_keeps_its_order() -> None:
    def broken(audit: Audit) -> Audit:
        steps = audit.outcome.steps
        steps = (replace(steps[0], answer=None, missing=True), *steps[1:])
        return replace(audit, episode=replace(audit.episode, outcome=replace(audit.outcome, steps=steps)))

    assert rows_of([broken(audit) for audit in audits(40)]).orders is None


def test_a_label_counts_in_every_order() -> None:
    made = audits(60)
    gold = {
        audit.id: Feedback(feedback_id=audit.id, episode_id=audit.id, gold=audit.outcome.answer, source="exact-match")
        for audit in made
    }
    labelled = [audit.with_labels([StoredLabel(1, gold[audit.id], 0.0)], audit.at) for audit in made]
    runs = rows_in_all_orders(labelled, gold, learned_rows)
    assert runs.orders is not None
    assert np.array_equal(runs.orders.runs.z == 1, runs.orders.runs.d), "the full run is right: what differs is lost"


def one_sample_rows(of: Sequence[Audit], counts: Verdicts) -> AuditRuns:
    policy = build_policy({"policy": "fixed-rounds", "max_steps": 1})
    return fixed_policy_rows(of, policy=policy, kind="samples", match=equal, wave=4, counts=counts)


def test_a_written_policy_is_judged_in_every_order() -> None:
    """A policy that stops after one sample loses where the first sample of an order is none of the winner's."""
    made = audits(800)
    runs = rows_in_all_orders(made, {}, one_sample_rows)
    assert runs.orders is not None
    own = runs.losses(FIXED.rows(runs))[:, 1]
    mean = runs.mean_losses(FIXED.ends(runs), np.arange(800))[:, 1]
    assert 0 < mean.sum() < 800
    assert np.var(mean) < np.var(own)
    assert abs(mean.mean() - own.mean()) < 4 * np.std(own - mean) / 800**0.5


def certificate(made: list[Audit], labelled: Callable[[Audit], bool]) -> Certificate:
    """Of a stop after one sample, where the reference of some audits is known."""
    counts = {
        audit.id: Feedback(feedback_id=audit.id, episode_id=audit.id, gold=audit.outcome.answer, source="exact-match")
        for audit in made
        if labelled(audit)
    }
    known = [
        audit.with_labels([StoredLabel(1, counts[audit.id], 0.0)], audit.at) if audit.id in counts else audit
        for audit in made
    ]
    certifier = Certifier(Plan(warm_up=0, max_em_drop=0.3, label_timeout=0.0), believing, fit=lambda *_, **__: None)
    certifier.adopt(FIXED, rows_in_all_orders(known, counts, one_sample_rows))
    certifier.look(Evidence(at=1_000.0))
    assert certifier.epoch.certificate is not None
    return certifier.epoch.certificate


def test_a_label_can_matter_in_another_order_only() -> None:
    runs = rows_in_all_orders(audits(200), {}, one_sample_rows)
    certifier = Certifier(Plan(warm_up=0, max_em_drop=0.3), believing, fit=lambda *_, **__: None)
    certifier.adopt(FIXED, runs)
    certifier.look(Evidence(at=1_000.0))
    assert certifier.level == 1
    ends, orders = FIXED.ends(runs), runs.orders
    assert orders is not None
    by_hand = [
        bool(runs.d[ends.rows[i, 1]])
        or bool(orders.runs.d[ends.order_rows[orders.starts[i] : orders.starts[i + 1], 1]].any())
        for i in range(200)
    ]
    assert certifier.epoch.disagreeing().tolist() == by_hand
    assert sum(by_hand) > (certifier.epoch.first_disagreements() > 0).sum() > 0


def test_orders_count_where_drops_are_as_well_known_in_them() -> None:
    """On request, only audits get a label whose own first sample is none of the winner's."""
    made = audits(400)

    def differs(audit: Audit) -> bool:
        return audit.outcome.steps[0].answer != audit.outcome.answer

    nobody, everybody, on_request = (certificate(made, who) for who in (lambda _: False, lambda _: True, differs))
    assert nobody.in_all_orders
    assert everybody.in_all_orders
    assert not on_request.in_all_orders
    assert np.array_equal(on_request.counted, on_request.z)
    assert not np.array_equal(everybody.counted, everybody.z)


# --------------------------------------------------------------------------- what a certificate counts


def test_a_mean_enters_the_wealth_as_one_bet() -> None:
    z = np.array([[0.0, 0.25], [0.0, 1.0], [0.0, 0.0], [-1.0, -0.125]])
    weight = np.array([1.0, 0.5, 0.5, 0.25])
    bets = np.array([0.25, 0.45, 0.65, 0.85]) / 0.98
    by_hand = np.log(np.prod(1 + bets[:, None, None] * weight[:, None] * (0.02 - z), axis=1).mean(axis=0))
    assert weighted_log_wealth(z, weight, max_em_drop=0.02) == pytest.approx(by_hand)
    whole = np.rint(z)
    counts = weighted_log_wealth(whole.astype(np.int8), weight, max_em_drop=0.02)
    assert np.array_equal(weighted_log_wealth(whole, weight, max_em_drop=0.02), counts), "to the last bit"


def test_an_order_that_loses_more_than_others_is_found_out() -> None:
    z = np.zeros((400, 3), dtype=np.int8)
    z[::4, 1:] = 1  # a quarter loses, and the same votes would hardly have lost in other orders
    mean = np.asarray(z * 0.1, dtype=np.float64)
    weight = np.ones(len(z))
    assert is_order_refuted(z, mean, weight, delta=0.05)
    fair = np.full(z.shape, 0.25)
    fair[:, 0] = 0
    assert not is_order_refuted(z, fair, weight, delta=0.05)


def test_random_orders_are_refuted_at_most_at_the_risk() -> None:
    rng, refuted = np.random.default_rng(8), 0
    for _ in range(400):
        share = rng.choice([0.0, 0.1, 0.4], (300, 1), p=[0.7, 0.2, 0.1])
        p = np.array(share * np.array([0.0, 0.5, 1.0]), dtype=np.float64)
        z = (rng.random(p.shape) < p).astype(np.int8)
        refuted += is_order_refuted(z, p, np.ones(len(z)), delta=0.05)
    assert refuted <= 0.05 * 400
