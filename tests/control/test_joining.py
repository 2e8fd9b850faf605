"""Labels find their run in any order of arrival, name nobody where two could be meant, and are late as labels are."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from suffice.assurance.certify import Windows
from suffice.assurance.drift import BATCH, REFERENCE
from suffice.control.evidence import run_join
from suffice.control.evidence.drift_features import N_COLUMNS, DriftFeatures
from suffice.control.evidence.run_join import LabelDelay, LabelJoin, UnreturnedAudits
from suffice.store.database.views import StoredLabel
from suffice.types import Episode, Feedback, Outcome
from tests.control.made import run


def ended(name: str, response: str | None) -> Outcome:
    return Outcome(episode_id=name, end_reason="done", status=200, answer="4", response_id=response, usage=None)


def stored_label(seq: int, episode_id: str | None = None, response_id: str | None = None) -> StoredLabel:
    return StoredLabel(seq, Feedback(feedback_id=str(seq), episode_id=episode_id, response_id=response_id))


def test_a_run_and_its_labels_meet_whichever_comes_first() -> None:
    labels = [stored_label(1, episode_id="e"), stored_label(2, response_id="r"), stored_label(3, episode_id="e")]
    things: list[Outcome | StoredLabel] = [ended("e", "r"), *labels]
    for order in permutations(things):
        joined, heard = LabelJoin(), set[int]()
        for thing in order:
            if isinstance(thing, Outcome):
                heard |= {one.seq for one in joined.ended(thing)}
            elif joined.find_episode(thing) == "e":
                heard.add(thing.seq)
        assert heard == {1, 2, 3}, order


def test_a_response_id_that_two_runs_share_names_neither() -> None:
    joined = LabelJoin()
    joined.ended(ended("a", "same"))
    joined.ended(ended("b", "same"))
    assert joined.find_episode(stored_label(1, response_id="same")) is None
    assert joined.ended(ended("c", "same")) == []
    assert joined.find_episode(stored_label(2, episode_id="a")) == "a"


def test_a_run_that_is_seen_again_is_the_same_run() -> None:
    joined = LabelJoin()
    joined.ended(ended("a", "r"))
    joined.ended(ended("a", "r"))
    assert joined.find_episode(stored_label(1, response_id="r")) == "a"


def test_what_waits_for_nobody_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_join, "MOST_WAITING", 10)
    joined = LabelJoin()
    for seq in range(100):
        assert joined.find_episode(stored_label(seq, episode_id=f"nobody-{seq}")) is None
    assert len(joined._waiting) == 10
    assert [one.seq for one in joined.ended(ended("nobody-99", None))] == [99]
    assert joined.ended(ended("nobody-0", None)) == []


def test_a_run_that_is_forgotten_joins_nothing() -> None:
    joined = LabelJoin(most=2)
    for name in "abc":
        joined.ended(ended(name, f"r{name}"))
    assert [joined.find_episode(stored_label(1, response_id=f"r{name}")) for name in "abc"] == [None, "b", "c"]
    assert joined.find_episode(stored_label(2, episode_id="a")) is None


def test_lateness_is_what_the_owner_says_or_what_labels_took() -> None:
    learnt, fixed = LabelDelay(), LabelDelay(fixed_s=50.0)
    for n in range(100, 1_001, 100):
        for one in (learnt, fixed):
            one.note_look(float(n), n)
    assert (learnt.timeout_s, learnt.timeout_requests(since=0)) == (0.0, 0.0)
    assert (fixed.timeout_s, fixed.timeout_requests(since=0)) == (50.0, 100.0)
    for delay_s in np.linspace(0, 200, 101):
        learnt.note_label(float(delay_s))
    assert learnt.timeout_s == pytest.approx(1.25 * 190)
    assert learnt.timeout_requests(since=0) == 300.0
    learnt.note_label(-5.0)
    assert LabelDelay(fixed_s=1e9)._at_s == []
    fixed.note_look(10.0, 1_100)  # the clock steps back
    assert fixed.timeout_requests(since=0) == 200.0


def test_a_time_out_longer_than_the_epoch_waits_for_its_beginning() -> None:
    late = LabelDelay(fixed_s=1e6)
    assert late.timeout_requests(since=40) == 0.0
    late.note_look(1.0, 100)
    assert late.timeout_requests(since=40) == 60.0


def test_early_signals_come_in_batches_and_what_never_moved_says_nothing() -> None:
    rng, features, runs = random.Random(1), DriftFeatures(), list[Episode]()
    for number in range(BATCH * (REFERENCE + 1) + 20):
        request, outcome = run(number, rng)
        if number >= BATCH * REFERENCE:  # has_answer has always been 1 in the reference
            outcome = replace(outcome, steps=(replace(outcome.steps[0], answer=None), *outcome.steps[1:]))
        runs.append(Episode(request=request, outcome=outcome))
    whole = list(features.batches(runs))
    batches = [batch.mean(axis=0) for batch in whole]
    assert {batch.shape for batch in whole} == {(BATCH, N_COLUMNS)}
    assert len(batches) == REFERENCE + 1
    assert batches[-1][1] == batches[0][1] == 1.0
    assert batches[-1][0] != batches[0][0], "tokens move, and are shown"
    assert list(features.batches([])) == []


def test_an_audit_beyond_the_most_that_are_awaited_stays_lost() -> None:
    audits, windows = UnreturnedAudits(most=3), Windows()
    begun = [run(n, random.Random(n), propensity=0.5)[0] for n in range(5)]
    for n, request in enumerate(begun):
        audits.began(request, n, probes=False, windows=windows)
    assert [number for number, _ in audits.pairs()] == [0, 1, 2, 3, 4], "none is forgotten"
    for request in begun:
        audits.ended(request.episode_id)
    assert [number for number, _ in audits.pairs()] == [0, 1], "which could return no more"


def test_a_share_that_doubt_raised_begins_no_window() -> None:
    audits, windows = UnreturnedAudits(), Windows()
    for number, share in enumerate([0.05] * 20 + [0.5] * 20 + [0.05] * 20):
        request = run(number, random.Random(number), propensity=share)[0]
        audits.began(request, number, probes=False, windows=windows, most=0.05)
    assert windows.plain() == ((0.0, 0.05, None),)
