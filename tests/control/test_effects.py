"""What a verdict changed is counted as the certificate counts, on a log that is certified."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from suffice.control.evidence.label_effects import verdict_effect
from suffice.review.agreement import LabelEffect, VerdictEffect
from suffice.review.items import VerdictForm
from suffice.review.queue import Submission
from suffice.settings import Route
from suffice.store.database.decisions import Decisions
from suffice.store.database.views import label_requests, open_reader, read_events
from suffice.store.people.deciding import lease_next, read_reviews, submit_verdict
from suffice.store.routes.deployments import read_decided
from suffice.types import Outcome
from suffice.wiring.worker import open_worker
from tests.control.made import CONTROL, ROUTE, WINDOW, traffic
from tests.control.test_reviewing import Clock, Straight, job
from tests.control.test_worker import fill, settings_for
from tests.review.made import item


def match(answer: str | None, gold: str) -> bool:
    return answer == gold


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a log of 180 full runs without a label, certified as far as it goes, and a queue."""
    folder = tmp_path_factory.mktemp("certified")
    fill(folder, traffic(180, p_right=0.55))
    with open_worker(settings_for(folder)) as here:
        assert here.once("certify")
    review, writer = job(folder, Clock(), per_day=400, control_share=0.1)
    with writer:
        review.run(Straight(writer))
    return folder


@pytest.fixture
def folder(certified: Path, tmp_path: Path) -> Path:
    shutil.copy(certified / "log.db", tmp_path / "log.db")
    return tmp_path


OWN = msgspec.structs.replace(ROUTE, policy={"policy": "never"})


def changed(folder: Path, name: str, route: Route = ROUTE) -> VerdictEffect:
    effect = verdict_effect(folder / "log.db", name, route, match, window=WINDOW)
    assert effect is not None
    return effect


def submitted(writer: Decisions, form: VerdictForm) -> Submission:
    submission = submit_verdict(writer, form, now_s=Clock().now_s + 5)
    assert isinstance(submission, Submission), submission
    return submission


def test_a_verdict_on_a_disagreement_takes_a_pending_loss_away(folder: Path) -> None:
    with open_reader(folder / "log.db") as connection:
        assert set(label_requests(connection, "r"))
    with Decisions(folder / "log.db", now=Clock(), monotonic_s=lambda: 0.0) as writer:
        lease = lease_next(writer, "ann", now_s=Clock().now_s)
        assert lease is not None
        before = changed(folder, lease.item)
        assert (before.label, before.sentence) == (None, "it has no label yet, so nothing has changed")
        assert before.before == before.after
        submitted(writer, VerdictForm(item=lease.item, reviewer="ann", word="early"))
    after = changed(folder, lease.item)
    assert after.label is not None
    assert after.before == before.after
    assert after.after.n_pending == before.after.n_pending - 1
    assert after.after.n_audits == before.after.n_audits > 0
    assert after.after.level >= after.before.level
    if after.before.n_missing is not None and after.after.n_missing is not None:
        assert after.after.n_missing <= after.before.n_missing
    assert "disagreements without a label, each of which counts as lost" in after.sentence
    assert after.in_window
    assert "picked on purpose, so the estimate of EM does not read it" in after.sentence


def test_what_is_counted_is_what_the_worker_then_finds(folder: Path) -> None:
    """All pending labels say that the early answer was right: the level counted here is the one that is published."""
    gold = {e.event.episode_id: e.event for e in read_events(folder / "log.db") if isinstance(e.event, Outcome)}
    names = [name for name, place in read_reviews(folder / "log.db").queue.places.items() if place.item.shows == "both"]
    assert len(names) > 3
    with Decisions(folder / "log.db", now=Clock(), monotonic_s=lambda: 0.0) as writer:
        for name in names:
            submitted(writer, VerdictForm(item=name, reviewer="ann", word="both"))
    counted = changed(folder, names[-1])
    fill(folder, traffic(CONTROL.tick_requests, seed=9, first=10_000, sure=True))
    with open_worker(settings_for(folder)) as here:
        assert here.once("certify")
    made = read_decided(folder / "log.db").of("r").publication
    assert made is not None
    assert gold[names[0]].answer is not None
    assert counted.after.n_pending == 0
    assert np.abs(made.level - counted.after.level) <= 2, "twenty more audits may move it a little"
    assert counted.after.level >= counted.active_level


def test_a_verdict_on_a_random_item_moves_the_estimate_of_em(folder: Path) -> None:
    queue = read_reviews(folder / "log.db").queue
    (drawing,) = queue.drawings["r"]
    with Decisions(folder / "log.db", now=Clock(), monotonic_s=lambda: 0.0) as writer:
        for number, name in enumerate(drawing.drawn):
            two = queue.places[name].item.shows == "both"
            words = ("full", "neither") if two else ("right", "wrong")
            last = submitted(writer, VerdictForm(item=name, reviewer="ann", word=words[number % 2]))
            assert last.label is not None
    effect = changed(folder, drawing.drawn[-1])
    assert effect.is_drawn
    assert (effect.before.em, effect.after.em is not None) == (None, True)
    assert "EM of delivered answers is" in effect.sentence


def test_a_run_that_nobody_was_asked_about_has_no_effect(folder: Path) -> None:
    assert verdict_effect(folder / "log.db", "ep_nobody", ROUTE, match, window=10) is None


def test_a_route_with_its_owners_policy_counts_what_that_asked_for(tmp_path: Path) -> None:
    stops: dict[str, Any] = {"stop_step": 2, "would_answer": "77", "audit": True}
    fill(tmp_path, traffic(40, **stops))
    with Decisions(tmp_path / "log.db", now=Clock(), monotonic_s=lambda: 0.0) as writer:
        writer.write_new(item("ep_00003"))
        before = changed(tmp_path, "ep_00003", OWN)
        submitted(writer, VerdictForm(item="ep_00003", reviewer="ann", word="neither"))
    after = changed(tmp_path, "ep_00003", OWN)
    assert changed(tmp_path, "ep_00003").waits, "a route that learns has learned nothing here"
    assert not after.waits
    assert (before.after.n_pending, after.after.n_pending) == (40, 39)
    assert after.after.level == 0


def test_an_effect_in_words() -> None:
    look = LabelEffect(n_audits=10, n_pending=3, level=1, n_missing=None, em=None)
    same = VerdictEffect(
        item="a", route="r", label=None, before=look, after=look, active_level=1, is_drawn=False, in_window=True
    )
    assert same.sentence == "it has no label yet, so nothing has changed"
