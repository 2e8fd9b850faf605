"""The demonstration against the fake upstream: a saving, a certificate, a swap, and what is said where nothing is."""

from __future__ import annotations

import io
import json
import math
import urllib.request
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from suffice.assurance.certify import log_bets, mixed
from suffice.types import Mode
from suffice.wiring.files import load_settings
from suffice_demo import show, story
from suffice_demo.local.tasks import TaskQuestion
from suffice_demo.program import ALIASES, LineScreen, LiveScreen, demo_servers, followed, lines
from suffice_demo.story import (
    BUDGETS,
    ROUTE,
    CourseRun,
    DemoPlan,
    DemoReport,
    DemoServer,
    Snapshot,
    generate_traffic,
    name_of,
    story_settings,
)
from suffice_testing import FakeUpstream, Reply
from suffice_testing.reply import FakeRequest
from tests.control.made import run as made
from tests.control.made import sample
from tests.local.cached import cached

POOL = tuple(
    TaskQuestion(
        id=f"q{i}",
        task="t",
        messages=({"role": "user", "content": f"question {i:02d} please"},),
        gold="four",
        scorer="text",
        max_tokens=50,
        temperature=0.5,
    )
    for i in range(40)
)
PLAN = DemoPlan(n_observed=20, certify_s=1e9, n_certified=40, n_swapped=10, confidence=0.9, period_s=0.2)


class Model:
    """Answers in an order of its own for every prompt, under a name that can change."""

    def __init__(self, answers: Sequence[str]) -> None:
        self.answers, self.name = answers, "first"

    def __call__(self, seen: FakeRequest) -> Reply:
        """The next answer, at three tokens."""
        answer = self.answers[seen.nth_same % len(self.answers)]
        return Reply(answer=("it ", "is ", answer), extra={"model": self.name})

    def swap(self) -> None:
        """Another model, as far as anybody can see."""
        self.name = "second"


class Notes:
    """Keeps what a screen would have shown."""

    def __init__(self) -> None:
        self.sentences: list[str] = []
        self.seen: list[Snapshot] = []

    def say(self, sentence: str) -> None:
        self.sentences.append(sentence)

    def look(self, now: Snapshot) -> None:
        self.seen.append(now)


async def report_of(folder: Path, model: Model, plan: DemoPlan) -> tuple[DemoReport, Notes]:
    notes = Notes()
    pool = [replace(one, gold="it is four") for one in POOL]
    async with FakeUpstream(model) as fake:
        server = DemoServer(url=fake.url, driver="llama.cpp", slots=8, swap=model.swap)
        return await story.run_story(plan, server, folder, pool, notes, first_s=0.0), notes


def of(report: DemoReport, period: story.Period) -> list[CourseRun]:
    return [run for run in report.runs if run.period == period]


@pytest.mark.slow
async def test_a_route_goes_from_full_runs_to_a_certificate_and_back_when_the_model_changes(tmp_path: Path) -> None:
    """Eight samples that agree: stopping cannot lose, is certified, acts, and ends with the first answer of another."""
    report, notes = await report_of(tmp_path, Model(["four"]), PLAN)
    assert not report.errors
    assert report.certified is not None
    assert report.certified.level > 0
    figures = story.all_figures(report.runs, sure=True)
    assert report.budget.max_em_drop == BUDGETS[0], "there is time for any number of audits"
    assert figures["observed"].n == PLAN.n_observed
    assert figures["proving"].n >= 40, "a certificate takes audits"
    assert figures["observed"].n_stopped == figures["proving"].n_stopped == 0
    assert figures["certified"].n_stopped > PLAN.n_certified / 2
    assert (figures["certified"].saved or 0) > 0.2
    assert (figures["proving"].em, figures["certified"].em) == (1.0, 1.0)
    first = story.first_saving(of(report, "observed"))
    assert (first.n_lost, first.n_gained) == (0, 0)
    assert first.saved == pytest.approx(0.5), "two of the four samples after which eight equal ones are decided"
    swapped = of(report, "swapped")
    assert len(swapped) == PLAN.n_swapped
    later = swapped[2 * PLAN.n_at_once :]  # those that were on their way may still stop
    assert not any(run.episode.outcome.stopped for run in later), "all run in full"
    assert {run.episode.outcome.model for run in swapped} == {"second"}
    assert report.held.alarm is not None, notes.sentences
    assert report.held.alarm.cause == "change"
    assert report.held.level == 0
    assert story.n_reconciled(report.runs) == len(report.runs)
    # What is seen on the way is the same story: it stands in the sentences, in order.
    order = [
        next(n for n, output in enumerate(notes.sentences) if word in output)
        for word in ("measured on 20 full runs", "smallest budget", "certified:", "the swap", "alarm, change")
    ]
    assert order == sorted(order)
    _reads_well(report, notes, tmp_path)


def _reads_well(report: DemoReport, notes: Notes, folder: Path) -> None:
    """Without a terminal there is no control character, with one the rows stay in place; the table fits into 80."""
    page = io.StringIO()
    console = Console(file=page, width=80)
    with followed(console) as screen:
        assert isinstance(screen, LineScreen)
        for output, now in zip(notes.sentences, notes.seen, strict=False):
            screen.say(output)
            screen.look(now)
    figures = show.print_story(console, report)
    assert all(line.isprintable() for line in page.getvalue().splitlines())
    assert "\r" not in page.getvalue()
    terminal = Console(file=io.StringIO(), width=80, force_terminal=True)
    with followed(terminal) as screen:
        assert isinstance(screen, LiveScreen)
        screen.say(notes.sentences[0])
        screen.look(notes.seen[-1])
    assert notes.sentences[0][:40] in str(terminal.file.getvalue())  # type: ignore[attr-defined]
    alone = Console(file=io.StringIO(), width=80, record=True)
    alone.print(show.format_story_table(figures))
    text = alone.export_text()
    assert all(period in text for period in story.PERIODS)
    assert max(len(line) for line in show.CAPTION.splitlines()) <= 80
    assert "…" not in text.replace(" … ", ""), "a column was cut"
    last = dict(lines(notes.seen[-1]))
    assert "saved" in last["tokens"]
    assert "stopped runs" in last["EM"]
    show.write_story_report(report, figures, folder / "r.json")
    assert json.loads((folder / "r.json").read_text())["certificate"]["certified"] is True


@pytest.mark.slow
async def test_where_every_early_stop_loses_nothing_is_certified_and_nothing_is_claimed(tmp_path: Path) -> None:
    """Votes for a wrong answer come first and the majority for the right one later: each early stop is wrong."""
    plan = replace(PLAN, certify_s=1e-9, patience=1.0)  # the largest budget
    report, notes = await report_of(tmp_path, Model(["five"] * 4 + ["four"] * 5), replace(plan, n_samples=9))
    assert report.budget.max_em_drop == BUDGETS[-1]
    assert report.certified is None
    assert not any(run.episode.outcome.stopped for run in report.runs)
    assert not of(report, "swapped"), "there is nothing to fall back from"
    figures = story.all_figures(report.runs)
    assert figures["proving"].em > 0.9
    assert figures["proving"].em_first < 0.1
    assert "Nothing was certified within" in show.story_verdict(report, figures)
    assert dict(lines(notes.seen[-1]))["certified"] == "nothing yet"
    first = story.first_saving(of(report, "observed"))
    assert first.n_gained == 0
    assert first.n_lost >= 12, "the first saving says what it would have cost"


@given(st.integers(0, 2_000))
def test_the_budget_is_the_smallest_that_the_audits_prove(n: int) -> None:
    made = story.provable_budget(n, confidence=0.95)
    more = story.provable_budget(n + 1, confidence=0.95)
    assert made.max_em_drop in BUDGETS
    assert more.max_em_drop <= made.max_em_drop
    assert made.n_audits <= n or made.max_em_drop == BUDGETS[-1]
    drop = story.USUAL_PART * made.max_em_drop
    log_wealth = log_bets(np.array([0.0]), np.array([1 - drop]), np.array([drop]), made.max_em_drop)
    assert mixed(made.n_audits * log_wealth)[0] >= math.log(20), "such audits pass the test of the certificate"


def test_a_saving_counts_whole_waves_and_pairs_answers() -> None:
    """A stop at the first of two samples drawn at once saves neither; a run without one costs what it cost."""
    steps = tuple(sample(n, 10, "4") for n in range(1, 5))
    full = _run(1, "observed", 40, correct=True, stop_correct=False)
    early = replace(full.episode.outcome, stop_step=1, steps=steps)
    stopped = replace(full, episode=replace(full.episode, outcome=early), wave=2)
    through = _run(2, "observed", 40, correct=True)
    none = replace(through.episode.outcome, stop_step=None)
    through = replace(through, episode=replace(through.episode, outcome=none))
    result = story.first_saving([stopped, through])
    assert result.saved == pytest.approx(20 / 80)
    assert (result.n, result.n_stops, result.n_lost, result.n_gained) == (2, 1, 1, 0)
    assert result.em_change == -0.5


def _run(number: int, period: story.Period, tokens: int, *, correct: bool, **changes: object) -> CourseRun:
    import random

    from suffice.types import Episode, Usage

    request, outcome = made(number, random.Random(number), usage=Usage(prompt_tokens=1, completion_tokens=tokens))
    stop = changes.pop("stop_correct", None)
    assert stop is None or isinstance(stop, bool)
    episode = Episode(request=replace(request, **changes), outcome=outcome)  # type: ignore[arg-type]
    return CourseRun(period=period, question=f"q{number % 7}", episode=episode, correct=correct, stop_correct=stop)


def test_savings_compare_mean_tokens_with_the_full_runs_before() -> None:
    full = [_run(n, "proving", 80 + n % 2 * 40, correct=n % 4 > 0) for n in range(40)]  # mean 100, EM 0.75
    under = [_run(n, "certified", 60, correct=n % 2 > 0) for n in range(20)]  # EM 0.5
    after = [_run(n, "swapped", 90, correct=True) for n in range(5)]  # in full: by chance shorter
    result = story.all_figures([*full, *under, *after], sure=True)
    assert result["proving"].saved is result["swapped"].saved is None, "no saving is claimed of runs in full"
    assert result["certified"].saved == pytest.approx(0.4)
    assert result["certified"].em_change == pytest.approx(-0.25)
    interval = result["certified"].saved_interval
    assert interval is not None
    assert interval.low <= 0.4 <= interval.high


def test_only_audits_by_lot_under_the_certificate_speak_for_it() -> None:
    """A burst's audits are there by design, and a run that was no audit shows no full run."""
    assignment = {"audit": True, "propensity": 0.1}
    runs = [
        _run(1, "certified", 9, correct=True, stop_correct=False, **assignment),
        _run(2, "certified", 9, correct=False, stop_correct=True, **assignment),
        _run(3, "certified", 9, correct=True, **assignment),
        _run(4, "certified", 9, correct=True, audit=False, propensity=0.9),
        _run(5, "proving", 9, correct=True, stop_correct=False, audit=True, propensity=1.0),
    ]
    assert story.audited(runs) == story.AuditTally(n=3, n_stops=2, n_lost=1, n_gained=1)


def test_traffic_is_the_same_for_the_same_seed_and_every_request_has_an_id_of_its_own() -> None:
    first, again, other = (list(islice(generate_traffic(POOL, seed=seed), 300)) for seed in (1, 1, 2))
    assert first == again != other
    assert len({one.id for one in first}) == 300
    assert {name_of(one) for one in first} == {one.id for one in POOL}, "every question comes, again and again"


@pytest.mark.parametrize("mode", ["observe", "enforce"])
def test_the_settings_that_are_written_are_those_that_serve(mode: Mode, tmp_path: Path) -> None:
    about = {"upstream": "http://127.0.0.1:9", "driver": "llama.cpp", "slots": 2, "database": tmp_path / "x.db"}
    (tmp_path / "s.toml").write_text(story_settings(PLAN, mode, max_em_drop=0.07, **about))  # type: ignore[arg-type]
    route = load_settings(tmp_path / "s.toml").routes[ROUTE]
    assert (route.mode, route.uncertified, route.samples) == (mode, False, PLAN.n_samples)
    assert (route.max_em_drop, route.confidence) == (0.07, PLAN.confidence)
    assert route.is_owned == (mode == "enforce"), "the written policy is certified before it acts"


@pytest.mark.model
def test_the_swap_of_the_local_model_keeps_its_address_and_changes_its_name(tmp_path: Path) -> None:
    cached("smol")

    def named(url: str) -> str:
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2})
        request = urllib.request.Request(
            f"{url}/v1/chat/completions", body.encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request) as reply:
            return str(json.load(reply)["model"])

    with demo_servers(Console(file=io.StringIO()), tmp_path) as server:
        before = named(server.url)
        server.swap()
        assert (before, named(server.url)) == ALIASES
