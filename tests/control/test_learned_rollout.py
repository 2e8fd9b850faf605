"""What a refit proposes reaches traffic by a rollout, on a log that the real jobs keep: tried, brought, taken back."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from suffice.cli.main import main
from suffice.control.evidence.versions import read_back, written
from suffice.control.jobs.base import Worker
from suffice.policy.folded_version import FoldedVersion
from suffice.settings import Rollout, Settings
from suffice.store.database.decisions import Decisions, read_artefact
from suffice.store.database.views import newest_event, open_reader
from suffice.store.routes.deployments import RouteDeployment, decisions_of, read_decided
from suffice.store.routes.rollouts import RolloutRun, read_rollouts
from suffice.store.rows.events import Event, ProposedVersion
from suffice.types import Publication
from suffice.wiring.worker import open_worker
from tests.control.made import label, run, traffic
from tests.control.test_worker import fill, settings_for

N = 400
RULES = Rollout(
    least_stage_s=0.0,
    warmup_requests=0,
    warmup_s=0.0,
    least_audits=100,
    least_class_audits=60,
    em_margin=0.05,
    class_em_margin=0.05,
    required=(),
    cool_down_s=0.0,
)


def settings_of(folder: Path, **rules: Any) -> Settings:
    made = settings_for(folder)
    route = msgspec.structs.replace(made.routes["r"], rollout=msgspec.structs.replace(RULES, **rules))
    return msgspec.structs.replace(made, routes={"r": route})


def once(here: Worker, name: str) -> str:
    next(job for job in here.jobs if job.name == name).forget()
    reports = here.once(name)
    assert reports is not None
    return "; ".join(report.summary for report in reports)


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the log of a route that is certified, and has a first proposal."""
    folder = tmp_path_factory.mktemp("certified")
    fill(folder, traffic(N))
    with open_worker(settings_of(folder)) as here:
        once(here, "certify")
        once(here, "retrain")
    return folder


class Route:
    """One route's log, its settings as a file, and the jobs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.n = folder, N
        self.settings = settings_of(folder)
        raw = {
            "upstreams": {"up": {"url": "http://127.0.0.1:1"}},
            "control": msgspec.to_builtins(self.settings.control),
            "routes": {"r": msgspec.to_builtins(self.settings.routes["r"])},
            "store": {"url": f"sqlite:///{folder / 'log.db'}"},
        }
        self.file = folder / "suffice.yaml"
        self.file.write_bytes(msgspec.json.encode(raw))  # which is YAML, too

    @property
    def log(self) -> Path:
        return self.folder / "log.db"

    @property
    def held(self) -> RouteDeployment:
        return read_decided(self.log).of("r")

    @property
    def rollout(self) -> RolloutRun:
        return read_rollouts(self.log)[-1]

    @property
    def proposal(self) -> ProposedVersion:
        newest = newest_event(self.log, ProposedVersion, route="r")
        assert newest is not None
        return newest

    def says(self, *words: str) -> str:
        result = CliRunner().invoke(main, ["policy", *words, "--config", str(self.file)])
        assert result.exit_code == 0, result.output
        return result.output

    def decides(self, *words: str) -> str:
        return self.says(*words, "--reason", "because", "--author", "ann")

    def runs(self, *names: str) -> str:
        with open_worker(self.settings) as here:
            return "; ".join(once(here, name) for name in names)

    def audits(self, n: int, **options: Any) -> None:
        """Full runs of questions that are easy, each called right."""
        rng, events = random.Random(self.n), list[Event]()
        for number in range(self.n, self.n + n):
            request, outcome = run(number, rng, **{"sure": True, **options})
            events += [request, outcome, label(number, correct=True)]
        self.n += n
        fill(self.folder, events)

    def publications(self) -> list[Publication]:
        with open_reader(self.log) as connection:
            rows = decisions_of(connection, "r", 100)
        return [one.event for one in rows if isinstance(one.event, Publication)]


@pytest.fixture
def route(certified: Path, tmp_path: Path) -> Route:
    shutil.copy(certified / "log.db", tmp_path / "log.db")
    return Route(tmp_path)


@pytest.mark.slow
def test_a_proposal_is_tried_certified_brought_by_the_loop_and_taken_back(route: Route) -> None:
    before, address = route.held.publication, route.proposal.address
    assert before is not None
    assert "is now being tried in shadow" in route.decides("propose", "r", address)
    assert (route.rollout.state.fit, route.rollout.state.active) == (address, before.fit)
    route.audits(200)
    summaries = route.runs("certify", "advance")
    assert "may act: level" in summaries
    held = route.held.publication
    assert held is not None
    assert held.fit == before.fit, "while one is tried, the loop fits nothing else"
    route.audits(160)
    assert "promote, canary" in route.runs("certify", "advance")
    for _ in range(3):
        route.decides("promote", "r")
    assert route.rollout.state.stage == "full"
    assert address in route.says("show", "r")
    route.audits(40)
    route.runs("certify")
    made = route.held.publication
    assert made is not None
    assert (made.fit, made.certified) == (address, True), "the loop has taken it over, and certifies it itself"
    assert f"rollout {route.rollout.state.rollout} activated {address}" in made.reason
    assert made.version in route.says("list")
    route.audits(200)
    route.runs("certify")
    stays = route.held.publication
    assert stays is not None
    assert stays.fit == address, "and nothing of its own replaces what a rollout has brought"
    assert "serves again" in route.decides("rollback", "r")
    route.audits(40)
    route.runs("certify")
    back = route.held.publication
    assert back is not None
    assert back.fit == before.fit
    assert "ann undid rollout" in back.reason
    assert "body" in route.says("diff", before.fit, address)


@pytest.mark.slow
def test_whoever_reads_the_log_again_comes_to_the_same_decisions(route: Route) -> None:
    route.decides("propose", "r", route.proposal.address)
    route.audits(60)
    route.runs("certify")
    for _ in range(4):
        route.decides("promote", "r")
    route.audits(60)
    route.runs("certify")
    made = route.publications()
    assert made[0].fit == route.proposal.address, "the latest first"
    with open_worker(route.settings) as here:  # a loop built anew follows the log, or it would begin a new epoch
        assert once(here, "certify") == ""
    assert route.publications() == made
    assert route.held.n_epochs == 1


def test_an_uncertified_one_reaches_nobody_even_where_a_person_promotes_it(route: Route) -> None:
    reckless = reckless_of(route)
    write(route, reckless)
    route.decides("propose", "r", reckless.address)
    route.runs("advance")
    assert route.rollout.state.level == 0
    for _ in range(4):  # before audits say that it loses too much: then it goes back by itself
        route.decides("promote", "r")
    route.audits(60, sure=False, p_right=0.6)
    route.runs("certify")
    made = route.held.publication
    assert made is None or made.fit != reckless.address or made.level == 0, "the loop certifies it, or lets it rest"


def reckless_of(route: Route) -> FoldedVersion:
    """The same models at levels so wide that they would stop whoever is served by them at the first sample."""
    with open_reader(route.log) as connection:
        version = read_back(route.proposal.address, read_artefact(connection, route.proposal.address)).version
    return msgspec.structs.replace(version, levels=tuple(tuple(900.0 for _ in one) for one in version.levels))


def write(route: Route, version: FoldedVersion) -> None:
    """As if a refit had proposed it."""
    with Decisions(route.log, now=lambda: 2.0, monotonic_s=lambda: 0.0) as writer:
        proposal = replace(route.proposal, address=version.address, read_to_seq=route.proposal.read_to_seq + 1)
        writer.write(None, [proposal], {version.address: written(version)})


@pytest.mark.slow
def test_a_job_tries_what_is_better_only_where_its_owner_lets_it(certified: Path, tmp_path: Path) -> None:
    for folder, automatic in ((tmp_path / "by-hand", False), (tmp_path / "by-itself", True)):
        folder.mkdir()
        shutil.copy(certified / "log.db", folder / "log.db")
        fill(folder, traffic(200, first=N))
        with open_worker(settings_of(folder, automatic=automatic)) as here:
            reports = once(here, "retrain")
        begun = read_rollouts(folder / "log.db")
        verdict = newest_event(folder / "log.db", ProposedVersion, route="r")
        assert verdict is not None
        assert bool(begun) == (automatic and verdict.verdict == "better"), reports
