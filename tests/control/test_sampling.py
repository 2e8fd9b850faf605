"""What reads a log that keeps a part of its rows: counts are whole, and a run counts for those that it stands for."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from suffice.assurance.sampling import LEAST_CLASS, UnloggedRequests
from suffice.assurance.satisfaction import SATISFACTION, estimate_satisfaction
from suffice.control.evidence.drift_features import DriftFeatures
from suffice.control.evidence.feedback import feedback_of, measures
from suffice.control.loop.safety_checks import CriticalEM
from suffice.settings import Settings, parse_settings
from suffice.store.database.sqlite import SqliteConnection
from suffice.store.database.views import (
    StoredLabel,
    counted_cells,
    counts_since,
    drawn_runs,
    newest_event,
    open_reader,
    read_episodes,
    requests_since,
)
from suffice.store.routes import rollups
from suffice.store.routes.rollups import RouteScorer, tallies_now
from suffice.store.rows.events import Event, FeedbackEvent, RequestCount, RowRates
from suffice.types import Episode, Feedback, Query
from suffice.wiring.worker import open_worker
from tests.assurance.reports import RatedRun, estimate_route, judge_satisfaction
from tests.control.made import BURST, rows, run, story, traffic
from tests.control.test_worker import fill
from tests.records import plain_step


def settings_for(folder: Path, **route: Any) -> Settings:
    owned = {"mode": "enforce", "policy": {"policy": "stable-answer"}, "uncertified": True, "audit_share": 0.1}
    return parse_settings(
        {
            "upstreams": {"up": {"url": "http://127.0.0.1:1"}},
            "routes": {"r": {"upstream": "up", "kind": "samples", "samples": 8, **owned, "sample_rate": 0.2, **route}},
            "store": {"url": f"sqlite:///{folder / 'log.db'}"},
        }
    )


def write(folder: Path, events: Sequence[Event]) -> Path:
    fill(folder, events, at_s=7_200.0)
    return folder / "log.db"


def live(number: int, name: str = "", *, rate: float = 0.1, **changes: Any) -> Episode:
    """A live run that was drawn to have rows."""
    known: dict[str, Any] = {"audit": False, "propensity": 0.9} | changes
    request, outcome = run(number, random.Random(number), **known)
    drawn = replace(request, keep_rate=rate, kept_by="lot", query=Query(query_class=name))
    return Episode(request=drawn, outcome=outcome)


def logged(*episodes: Episode) -> list[Event]:
    return [event for one in episodes for event in (one.request, one.outcome)]


def label(one: Episode, correct: bool, **fields: Any) -> FeedbackEvent:
    name = one.request.episode_id
    return FeedbackEvent(
        Feedback(feedback_id=f"f-{name}-{fields}", episode_id=name, correct=correct, source="reviewer", **fields)
    )


def counted(n: int, *, name: str = "", senders: tuple[str, ...] = (), number: int = 1) -> RequestCount:
    cell = UnloggedRequests(
        query_class=name,
        version="",
        ungoverned="",
        n=n,
        ends=(("stopped", n),),
        n_stopped=n,
        n_counted=n,
        prompt_tokens=5 * n,
        completion_tokens=100 * n,
        probe_tokens=2 * n,
        n_priced=n,
        cost_usd=0.5 * n,
    )
    return RequestCount(
        count_id=f"c{number}",
        route="r",
        n_requests=n,
        n_governed=n,
        cells=(cell,),
        senders=senders,
    )


# --------------------------------------------------------------------------- counts


def test_every_reader_of_a_number_of_requests_counts_those_without_rows(tmp_path: Path) -> None:
    database = write(tmp_path, [*logged(live(1), live(2)), counted(98)])
    with open_reader(database) as connection:
        assert requests_since(connection, "r", 0) == 100
        assert counts_since(connection, "r", 0) == (100, 0)
        tally = tallies_now(connection, lambda _route: RouteScorer("", lambda answer, gold: answer == gold))["r"]
    assert (tally.n_begun, sum(tally.ends.values())) == (100, 100)


def test_a_report_and_the_sums_of_pages_hold_all_requests_tokens_and_money(tmp_path: Path) -> None:
    episodes = [replace(one, outcome=replace(one.outcome, cost_usd=0.5)) for one in (live(1), live(2))]
    database = write(tmp_path, [*logged(*episodes), counted(98)])
    tokens = sum(one.outcome.usage.completion_tokens for one in episodes if one.outcome.usage)
    report = estimate_route(
        read_episodes(database, "r"),
        route="r",
        match=lambda a, b: a == b,
        unkept=counted_cells(database, "r"),
    )
    assert (report.n_requests, report.n_governed, report.n_stopped) == (100, 100, 98)
    assert report.end_reasons == {"done": 2, "stopped": 98}
    assert report.tokens.client_completion == tokens + 9_800
    assert (report.money.governed_usd, report.money.n_known) == (50.0, 100)
    with open_worker(settings_for(tmp_path), learning=False) as here:
        assert here.once("rollup") is not None
    with open_reader(database) as connection:
        sums = rollups.read_rollups(connection, ())[()]
    assert (sums.n_requests, sums.n_governed, sums.n_stopped) == (100, 100, 98)
    assert (sums.completion_tokens, sums.cost_usd, sums.overhead_tokens) == (tokens + 9_800, 50.0, 196)


def test_the_control_loop_counts_them_and_looks_when_they_come() -> None:
    events = traffic(BURST)
    history = story().feed(rows([*events, counted(1_000, senders=("key",))]))
    assert history.loop.n == BURST + 1_000
    assert history.loop.state.epoch.number == 1
    assert "key" in history.loop.state.traffic.callers, (
        "whoever asks the model is a user, though none of his requests has rows"
    )
    again = story().feed(rows([*events, counted(1_000, senders=("key",))]))
    assert again.published == history.published, "the same log, the same decisions"
    assert history.published, "the evidence was there, and the next look came with the count"


def test_a_look_reads_what_is_new_however_long_the_log_is(tmp_path: Path) -> None:
    steps = []
    for n in (300, 1_500):
        folder = tmp_path / str(n)
        folder.mkdir()
        database = write(folder, logged(*(live(number) for number in range(n))))
        n_steps = 0

        def step() -> int:
            nonlocal n_steps
            n_steps += 1
            return 0

        with open_reader(database) as connection:
            last = int(connection.execute("SELECT max(seq) FROM events").fetchone()[0])
            assert isinstance(connection, SqliteConnection)
            connection.set_progress_handler(step, 10)
            runs_read = list(drawn_runs(connection, "r", last - 40, last))
        assert [one.episode.request.episode_id for one in runs_read] == [f"ep_{k:05}" for k in range(n - 20, n)]
        steps.append(n_steps)
    assert steps[1] < 1.2 * steps[0]


# --------------------------------------------------------------------------- weights


def test_classes_kept_at_different_rates_are_one_mean_again(tmp_path: Path) -> None:
    # Easy questions, nine of ten, are all right and kept at one in twenty; hard ones are wrong and kept at one half.
    easy = [live(n, "easy", rate=0.05, stopped=True, end_reason="stopped") for n in range(45)]
    hard = [live(100 + n, "hard", rate=0.5, stopped=True, end_reason="stopped") for n in range(50)]
    labels = [label(one, True) for one in easy] + [label(one, False) for one in hard]
    database = write(tmp_path, [*logged(*easy, *hard), *labels])
    report = estimate_route(read_episodes(database, "r"), route="r", match=lambda a, b: a == b)
    for estimate in (report.measured.em_live, report.measured.em_stopped):
        assert estimate is not None
        assert estimate.value == pytest.approx(0.9)
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.low < 0.9 < estimate.high
        assert estimate.n == 95
    with open_worker(settings_for(tmp_path), learning=False) as here:
        assert here.once("rollup") is not None
    with open_reader(database) as connection:
        sums = rollups.read_rollups(connection, ())[()]
    right, marked = sums.stopped_marks
    assert right / marked == pytest.approx(0.9, abs=0.02)
    assert marked < 95, "unequal weights tell less than so many equal ones"
    assert sums.n_live_right / sums.n_live_marked == pytest.approx(0.9)


def test_satisfaction_is_that_of_all_answers() -> None:
    runs = []
    for number in range(95):
        one = live(number, rate=0.05 if number < 45 else 0.5, stopped=True, certified=True)
        rating = Feedback(feedback_id=f"f{number}", episode_id="x", rating=5 if number < 45 else 1, source="user")
        runs.append(feedback_of(one, [StoredLabel(number, rating)], {}, uncertified=False))
    estimate = next(one for one in estimate_satisfaction(runs, measures({})) if one.measure == SATISFACTION)
    assert estimate.stopped is not None
    assert estimate.stopped.value == pytest.approx(0.9)


def test_ratings_that_steer_are_those_of_all_answers() -> None:
    # Stopped runs: many that stand for few and are liked less, few that stand for many and are liked as audits are.
    def ratings(*, weighed: bool) -> list[RatedRun]:
        rng, rated = random.Random(0), list[RatedRun]()
        for _ in range(400):
            rated.append(RatedRun(audit=True, satisfaction=0.5 + 0.1 * rng.random()))
            rated += [RatedRun(audit=False, satisfaction=0.2, weight=1.0) for _ in range(3)]
            rated.append(RatedRun(audit=False, satisfaction=0.55, weight=60.0 if weighed else 1.0))
        return rated

    assert judge_satisfaction(ratings(weighed=False), min_satisfaction=0.5, delta=0.05).step_down_reason
    judged = judge_satisfaction(ratings(weighed=True), min_satisfaction=0.5, delta=0.05)
    assert judged.step_down_reason is None
    assert judged.stopped == pytest.approx(0.53, abs=0.03)


def test_the_critical_em_is_that_of_all_answers_and_rare_labels_do_not_outvote_them() -> None:
    wrong = CriticalEM(critical=0.7, delta=0.05)
    for number in range(200):
        wrong.note(f"a{number}", right=True)
        wrong.note(f"b{number}", right=number % 2 == 0, weight=20.0)
    below = wrong.below()
    assert below is not None, "nine of ten requests are right half of the time"
    assert "52.4%" in below
    few = CriticalEM(critical=0.7, delta=0.05)
    for number in range(200):
        few.note(f"a{number}", right=True, weight=20.0)
        few.note(f"b{number}", right=number % 2 == 0)
    assert few.below() is None
    few.verdicts.clear()
    assert few.below() is None


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_signals_of_all_traffic_do_not_move_when_rates_do(rate: float) -> None:
    rng = np.random.default_rng(1)

    def episode(number: int, of: float) -> Episode:
        one = live(number, rate=of)
        name, first = ("short", 20) if rng.random() < 0.8 * of / (0.8 * of + 0.2 * rate) else ("long", 400)
        steps = (plain_step(1, tokens=first, answer="a", answer_source="text", confidence=0.9),)
        request = replace(one.request, keep_rate=of if name == "short" else rate, query=Query(query_class=name))
        return Episode(request=request, outcome=replace(one.outcome, steps=steps))

    means = []
    for of in (0.05, 0.3):
        runs = (episode(number, of) for number in range(3_000))
        means.append(np.mean([batch.mean(axis=0)[0] for batch in DriftFeatures().batches(runs)]))
    truth = 0.8 * np.log1p(20) + 0.2 * np.log1p(400)
    assert means == pytest.approx([truth, truth], abs=0.12)


# --------------------------------------------------------------------------- rates


def test_the_job_gives_more_rows_to_the_class_of_which_less_is_known(tmp_path: Path) -> None:
    rng, events = random.Random(0), list[Event]()
    for number in range(300):
        name = "even" if number % 2 else "wild"
        tokens = 100 if name == "even" else rng.choice((10, 1_000))
        one = live(number, name)
        usage = one.outcome.usage
        assert usage is not None
        events += logged(replace(one, outcome=replace(one.outcome, usage=replace(usage, completion_tokens=tokens))))
    database = write(tmp_path, [*events, counted(1_350, name="even"), counted(1_350, name="wild", number=2)])
    with open_worker(settings_for(tmp_path), learning=False) as here:
        assert here.once("sampling") is not None
        first = newest_event(database, RowRates, route="r")
        assert here.once("sampling") is not None
    assert first is not None
    rates = dict(first.after)
    share = (0.2 - 0.1) / 0.9  # of live runs, where audits take a tenth of all
    assert rates["wild"] > 1.5 * rates["even"] >= 1.5 * LEAST_CLASS * share
    assert (rates["wild"] + rates["even"]) / 2 == pytest.approx(share, rel=0.05)
    assert first.sample_rate == 0.2
    assert newest_event(database, RowRates, route="r") == first, "nothing is new, so nothing is set"


@pytest.mark.parametrize("route", [{"sample_rate": 1.0}, {"mode": "observe"}])
def test_a_route_that_keeps_everything_has_no_rates(tmp_path: Path, route: dict[str, Any]) -> None:
    database = write(tmp_path, [*logged(*(live(n, "a") for n in range(50))), counted(2_000)])
    with open_worker(settings_for(tmp_path, **route), learning=False) as here:
        assert here.once("sampling") is not None
    assert newest_event(database, RowRates, route="r") is None
