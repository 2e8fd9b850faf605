"""The made-up month of the console's demonstration: its log is a real one, and its pages show it."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from suffice.console.render import format_difference
from suffice.control.jobs.base import Worker
from suffice.control.jobs.proposals import Advance
from suffice.edge.math import open_match
from suffice.episode.vote import count_votes, deciding_sample
from suffice.settings import Settings
from suffice.store.database.decisions import Decisions
from suffice.store.database.views import open_reader, read_episodes
from suffice.store.database.writer import LogWriter
from suffice.store.routes import rollups
from suffice.store.routes.deployments import RouteDeployment
from suffice.store.routes.experiments import read_experiments
from suffice.store.routes.rollouts import read_rollouts
from suffice.store.rows.events import Event, FeedbackEvent
from suffice.types import Publication
from suffice.wiring.keys import deployment_salt
from suffice.wiring.routes import setup_of
from suffice_demo.month import DAY_S, DAYS, ROUTE, Clock, live, month, settings_for
from suffice_demo.month_traffic import MATH, N_SAMPLES, QUIZ, SUPPORT, QuestionKind, full_run, make_feedback
from suffice_demo.month_trials import MonthTrials
from tests.console.visitor import Visitor, people_of, site

N = 120


@pytest.mark.slow
def test_a_short_month_is_a_log_like_any_other_and_all_of_it_is_summed_up(tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "console.db")
    now_s = time.time()
    began_s = now_s - DAYS * DAY_S
    seen: list[int] = []
    with month(
        settings,
        tmp_path / "console.db",
        begin_s=began_s,
        seed=1,
        secret=deployment_salt(settings),
        monotonic_s=time.monotonic,
    ) as made:
        live(made, n=N, until_s=now_s, on_step=lambda n, _held: seen.append(n))
        assert made.route.active.in_burst, "so few runs certify nothing"
    assert seen == [60, 120]
    runs = list(read_episodes(tmp_path / "console.db", ROUTE))
    assert len(runs) == N
    assert all(one.episode.request.audit for one in runs), "the burst runs in full"
    with open_reader(tmp_path / "console.db") as connection:
        days = rollups.read_rollups(connection, ("day",), route=ROUTE)
        total = rollups.read_rollups(connection, ())[()]
        kinds = {str(key[0]) for key in rollups.read_rollups(connection, ("query_class",))}
    assert len(days) > DAYS - 3, "they are spread over the month"
    n_loops = -(-N // 40)
    assert (total.n_requests, total.n_governed) == (2 * N + N // 3 + N // 20 + n_loops, 2 * N + N // 3 + n_loops)
    assert kinds >= {one.name for one in (*MATH, *SUPPORT)}
    with site(settings) as app:
        visitor = Visitor(app)
        assert visitor.login(people_of(settings).reset("admin")).status == 303
        page = visitor.get("/console?days=all").text
        assert f"{total.n_requests:,} requests" in page
        assert "cold start" in page
        report = visitor.get("/api/alerts").json["lines"]
        assert {one["kind"] for one in report} == {"kill_switch", "incident", "rollback"}
        assert {one["kind"] for one in report if one["over"] is None} == {"incident"}, "one incident waits for a person"
        assert all(len(one["taken"]) == 2 for one in report if one["at_s"] < now_s - DAY_S), "both sinks took them"
        assert len(visitor.get("/api/incidents").json["open"]) == len(visitor.get("/api/incidents").json["closed"]) == 1
        form = {"csrf": visitor.token(), "back": "/console/review"}
        assert visitor.post("/console/review/next", form).status == 303
        hand = visitor.get("/api/review").json["in_hand"]
        assert (hand["item"]["full_answer"], hand["item"]["early_answer"]) == ("2004", "1566")
        assert hand["question"].startswith("In which year")
        assert [step["read"] != [] for step in hand["loop"]["steps"]] == [True, True, True, False]


@pytest.mark.parametrize("kinds", [MATH, SUPPORT, QUIZ], ids=["math", "support", "quiz"])
def test_a_vote_ends_once_it_is_decided(kinds: Sequence[QuestionKind]) -> None:
    rng, lengths = random.Random(5), Counter[int]()
    for number in range(200):
        request, outcome, _ = full_run(number, kinds, rng, route="r", share=0.5, at_s=1e9)
        answers = [step.answer for step in outcome.steps]
        assert deciding_sample(answers, request.n_samples) == len(answers), "neither earlier nor later"
        assert (outcome.answer, outcome.vote) == (count_votes(answers).answer, count_votes(answers).counts)
        assert outcome.usage is not None
        assert outcome.usage.completion_tokens == sum(step.tokens for step in outcome.steps)
        lengths[len(answers)] += 1
    assert min(lengths) == N_SAMPLES // 2
    assert sum(n for length, n in lengths.items() if length < N_SAMPLES) > 150


@pytest.mark.slow
def test_the_route_that_certifies_itself_is_served_as_its_gateway_would(tmp_path: Path) -> None:
    """Shares of audits, levels and versions are those of the control loop's own publications."""
    settings, path = settings_for(tmp_path / "console.db"), tmp_path / "console.db"
    now_s, made_so_far = time.time(), list[Publication]()

    def note(_: int, held: RouteDeployment) -> None:
        if held.publication is not None:
            made_so_far.append(held.publication)

    with month(
        settings,
        path,
        begin_s=now_s - DAYS * DAY_S,
        seed=7,
        secret=deployment_salt(settings),
        monotonic_s=time.monotonic,
    ) as made:
        live(made, n=720, until_s=now_s, on_step=note)
        level = made.route.active.level
    assert level > 0, "the month certifies"
    runs = [one.episode for one in read_episodes(path, ROUTE)]
    shares = {1.0} | {one.share for one in made_so_far}
    assert {run.request.propensity for run in runs if run.request.audit} <= shares
    acting = [run for run in runs if run.request.certified]
    assert {run.request.policy_version for run in acting} <= {one.fit for one in made_so_far}
    assert {run.request.setup for run in runs} == {setup_of(settings, ROUTE)}
    stopped = [run for run in runs if run.outcome.stopped]
    assert 100 < len(stopped) < len(acting)
    assert all(run.request.certified and not run.request.audit for run in stopped)
    for run in runs:
        answers = [step.answer for step in run.outcome.steps]
        is_decided = deciding_sample(answers, run.request.n_samples) is not None
        assert is_decided != run.outcome.stopped, "a run ends by its vote or by its policy"


def write_tries(settings: Settings, path: Path, *, n: int) -> None:
    """Write the log of a month in which so many questions were asked of what was tried, and the worker looked on."""
    secret, clock = deployment_salt(settings), Clock(time.time() - DAYS * DAY_S)
    log = LogWriter(settings.store, now=time.time)
    with Decisions(path, now=clock, monotonic_s=clock) as writer:
        made = MonthTrials(settings=settings, writer=writer, secret=secret, salt="s", rng=random.Random(9))
        advance = Advance(
            settings=settings, path=path, author="w", matches=open_match, secret=secret, now=clock, monotonic_s=clock
        )
        ids = iter(range(10**6))
        worker = Worker(
            decisions=writer,
            jobs=(advance,),
            author="w",
            now=clock,
            monotonic_s=clock,
            new_id=lambda: f"jr_{next(ids)}",
        )
        for number in range(n):
            clock.at_s += DAYS * DAY_S / n
            made.pass_time(number / n)
            request, outcome, right = made.ask(number, at_s=clock.at_s)
            rows: list[Event] = [request, outcome]
            rows += [FeedbackEvent(one) for one in make_feedback(outcome, right, made.rng)]
            for row in rows:
                assert log.append(row)
            if number % 60 == 59:
                assert log.drain(20)
                worker.round()
                made.follow()
        advance.close()
    log.close()


@pytest.mark.slow
def test_what_was_tried_is_there_as_if_the_commands_had_begun_it_and_the_pages_show_it(tmp_path: Path) -> None:
    settings, path = settings_for(tmp_path / "console.db"), tmp_path / "console.db"
    write_tries(settings, path, n=900)
    hasty, sober = read_rollouts(path)
    assert (hasty.state.stage, hasty.moves[-1].by) == ("rolled_back", "evidence"), "it loses EM, and not by a word"
    assert "surely lower" in hasty.moves[-1].reason
    assert sober.moves[0].by == "evidence"
    assert sober.state.stage in ("canary", "ramp", "full")
    first, second = read_experiments(path)
    assert (first.runs, second.runs) == (False, True)
    assert first.ended is not None
    assert "fewer tokens" in first.ended.summary[0]
    with site(settings) as app:
        visitor = Visitor(app)
        assert visitor.login(people_of(settings).reset("admin")).status == 303
        page = visitor.get("/console/policies").text
        for move in (*hasty.moves, *sober.moves):
            assert move.reason in page, "each step with what it stood on"
        displayed, numbers = (
            visitor.get(f"/{endpoint}/experiments/result?name=brisk") for endpoint in ("console", "api")
        )
        for one in numbers.json["result"]["arms"][0]["comparisons"]:
            assert format_difference(one["effect"], one["metric"]) in displayed.text, "in the metric's own unit"
            for part in one["classes"]:
                assert format_difference(part["between"]["low"], one["metric"]) in displayed.text, "and by class"
        report = {one["route"]: one["activated"] for one in visitor.get("/api/policies").json["routes"]}
        assert report["quiz"] == (sober.state.candidate if sober.serves_all else "")
        assert report["research"] == ""
        assert "its owner decides" in visitor.get("/console/routes").text
        page = visitor.get("/console/changes?kind=experiment_started").text
        assert "patience, run 1: five 50%, six 50% on quiz, 100% of layer quiz; tokens decides" in page
        page = visitor.get("/console/experiments").text
        assert "brisk" in page
        assert "patience" in page
