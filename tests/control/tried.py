"""A learned route with something in force, and versions that a refit has proposed for it: by hand, so all is known."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from suffice.assurance.runs import Match
from suffice.control.compare.assessment import Assessment, standing_of
from suffice.control.jobs.proposals import Advance
from suffice.model.artefact import StopModel, TrainingRecord, canonical
from suffice.model.ensemble import Ensemble, Linear
from suffice.policy.folded_version import FoldedVersion
from suffice.rollout.evidence import Rules
from suffice.settings import Control, Route, Settings
from suffice.store.database.decisions import Decisions
from suffice.store.database.views import LogReader, open_reader
from suffice.store.routes import rollouts
from suffice.store.routes.rollouts import RolloutCandidate, RolloutRun, learned_candidate, lineage_of, read_rollouts
from suffice.store.rows.events import Event, ProposedVersion
from suffice.types import Epoch, EvidenceSummary, Publication
from tests.control.made import label, one_round, run

SECRET = "the deployment's own"
ROUTE = Route(
    upstream="up", kind="samples", samples=8, scorer="number", mode="enforce", max_em_drop=0.08, confidence=0.9
)
CONTROL = Control(window_audits=400)
RULES = Rules(
    least_stage_s=0.0,
    warmup_requests=0,
    warmup_s=0.0,
    least_audits=60,
    least_class_audits=60,
    em_margin=0.05,
    class_em_margin=0.05,
    required=(),
)
# P(as good) rises with the streak: a risk of 0.27 is five equal answers, 0.74 three, 0.89 two.
STREAKS = StopModel(
    features=("answer_streak",),
    suffices=Ensemble((Linear((1.0,), -4.0),)),
    trained=TrainingRecord(n_episodes=1, n_questions=1, digest="by hand", target="as-good", seed=0),
)
FIVE = FoldedVersion(models=(STREAKS,) * 5, levels=((0.27, 0.74),) * 5)  # in force at level 1: after five answers
BOLDER = FoldedVersion(models=(STREAKS,) * 5, levels=((0.74, 0.89),) * 5)  # after three, two
TIMID = FoldedVersion(models=(STREAKS,) * 5, levels=((0.06, 0.13),) * 5)  # after seven, six: it saves less


@contextmanager
def matches(_: Route) -> Any:
    match: Match = lambda answer, gold: answer == gold
    yield match


def proposed(version: FoldedVersion = BOLDER, *, read_to_seq: int = 1, verdict: str = "better") -> ProposedVersion:
    return ProposedVersion(
        route="r",
        read_to_seq=read_to_seq,
        address=version.address,
        parent=FIVE.address,
        reason="schedule",
        verdict=verdict,
        why="saves more",
        n_runs=400,
        saving=None,
        drop=None,
        lineage={},
        card=None,
        author="w",
    )


def published(models: FoldedVersion = FIVE, *, number: int = 1, epoch: int = 1, **changes: Any) -> Publication:
    known: dict[str, Any] = {
        "route": "r",
        "number": number,
        "epoch": epoch,
        "at": 10,
        "version": f"{models.address}@1",
        "fit": models.address,
        "level": 1,
        "n_levels": models.n_levels,
        "certified": True,
        "share": 0.1,
        "reason": "x",
        "author": "w",
        "evidence": EvidenceSummary(max_em_drop=0.08, confidence=0.9),
        "setup": "s1",
        "upstream": (("m", "m", "fp"),),
    }
    return Publication(**(known | changes))


def began(number: int = 1, since_seq: int = 0) -> Epoch:
    return Epoch(
        route="r",
        number=number,
        at=0,
        since_seq=since_seq,
        reason="another world",
        author="w",
        max_em_drop=0.08,
        confidence=0.9,
    )


class Trial:
    """A log, a clock that stands still, and the job."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writer = Decisions(path, now=lambda: 1_000.0, monotonic_s=lambda: 0.0)
        self.n = 0
        self.write(began(), published())

    def write(self, *events: Event) -> None:
        kept = {one.address: canonical(one.plain()).decode() for one in (FIVE, BOLDER, TIMID)}
        self.writer.write(None, events, kept)

    def candidate(self, version: FoldedVersion = BOLDER, route: Route = ROUTE) -> RolloutCandidate | str:
        with open_reader(self.path) as connection:
            return learned_candidate(
                connection,
                "r",
                route,
                version.address,
                lineage_of("person:ann", "x", 1_000.0),
            )

    def begin(self, version: FoldedVersion = BOLDER, rules: Rules = RULES) -> RolloutRun:
        self.write(proposed(version))
        one = self.candidate(version)
        assert not isinstance(one, str), one
        started = rollouts.start_candidate(
            self.writer, one, author="ann", reason="x", name=f"r-{self.n}", rules=rules, secret=SECRET
        )
        assert not isinstance(started, str), started
        return started

    def audits(self, n: int, *, labels: bool = True, **options: Any) -> None:
        """Full runs, each with a word that the full run was right."""
        events, rng = list[Event](), random.Random(self.n)
        for number in range(self.n, self.n + n):
            request, outcome = run(number, rng, **{"sure": True, **options})
            events += [request, outcome]
            events += [label(number, correct=True)] if labels else []
        self.n += n
        self.write(*events)

    def wrong(self, n: int, *, labels: bool = True) -> None:
        """Full runs whose first four answers are equal and wrong: whoever stops after so few loses them."""
        events, rng = list[Event](), random.Random(self.n)
        for number in range(self.n, self.n + n):
            request, outcome = run(number, rng, sure=True)
            steps = tuple(replace(one, answer="77" if one.index <= 4 else one.answer) for one in outcome.steps)
            events += [request, replace(outcome, steps=steps)]
            events += [label(number, correct=True)] if labels else []
        self.n += n
        self.write(*events)

    def step(self, name: str) -> None:
        moved = rollouts.step(self.writer, "r", name, author="ann", reason="go")
        assert not isinstance(moved, str), moved

    @property
    def held(self) -> RolloutRun:
        return read_rollouts(self.path)[-1]

    def standing(self, connection: LogReader, route: Route = ROUTE) -> Assessment:
        """What whoever asks is told."""
        settings = Settings(routes={"r": route}, control=CONTROL)
        return standing_of(connection, self.held, settings, matches, secret=SECRET, now_s=1_000.0)

    def assess(self) -> Assessment:
        with open_reader(self.path) as connection:
            return self.standing(connection)

    def look(self) -> Sequence[str]:
        """One round of the worker, which knows nothing but the log; what it said."""
        job = Advance(
            settings=Settings(routes={"r": ROUTE}, control=CONTROL),
            path=self.path,
            author="w",
            matches=matches,
            secret=SECRET,
            now=lambda: 1_000.0,
            monotonic_s=lambda: 0.0,
        )
        return one_round(self.path, job)
