"""Traffic of a made-up `samples` route, as rows of the log: how sure its votes are is known, and what is right."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from suffice.control.evidence.versions import read_back
from suffice.control.jobs.base import Job, Worker
from suffice.control.loop.epoch import Resolution, RouteContext
from suffice.control.loop.learned import LearnedEvidence
from suffice.control.loop.route_loop import RouteLoop
from suffice.learn.version import ServedVersion
from suffice.settings import Control, Route
from suffice.store.database.decisions import Decisions
from suffice.store.database.log import StoredEvent
from suffice.store.routes.deployments import RouteDeployment
from suffice.store.rows.events import Event, FeedbackEvent
from suffice.types import Epoch, Feedback, Outcome, Publication, Query, Request, StepRecord, Usage
from tests.records import plain_step

BURST = 160
WINDOW = 400
CONTROL = Control(tick_requests=20, burst_requests=BURST, refit_requests=160, window_audits=WINDOW)
ROUTE = Route(
    upstream="up", kind="samples", samples=8, scorer="number", mode="enforce", max_em_drop=0.08, confidence=0.9
)


def sample(index: int, tokens: int, answer: str) -> StepRecord:
    """One sample of a run."""
    return plain_step(index, tokens=tokens, answer=answer, answer_source="sample")


def run(
    number: int, rng: random.Random, *, p_right: float = 0.9, sure: bool | None = None, model: str = "m", **changes: Any
) -> tuple[Request, Outcome]:
    """One full run of eight samples: an easy question's samples agree, a hard one's do not.

    p_right  of each sample of a hard question
    """
    sure = rng.random() < 0.8 if sure is None else sure
    right = str(rng.randrange(1, 9))
    answers = [right if sure or rng.random() < p_right else str(rng.randrange(10, 99)) for _ in range(8)]
    leader = Counter(answers).most_common(1)[0][0]
    name = f"ep_{number:05}"
    known: dict[str, Any] = {
        "episode_id": name,
        "route": "r",
        "kind": "samples",
        "mode": "enforce",
        "model": "m",
        "stream": False,
        "n_samples": 8,
        "audit": True,
        "propensity": 1.0,
        "policy_version": "",
        "certified": False,
        "question_key": f"q{number}",
        "ungoverned": None,
        "received_at_s": 0.0,
        "unit": f"u{number}",
        "setup": "s1",
        "delivery": 1,
        "conversation": "",
        "query": Query(planned_steps=8, n_words=rng.randrange(5, 40)),
    }
    steps = tuple(sample(at, rng.randrange(20, 60), answer) for at, answer in enumerate(answers, 1))
    outcome = Outcome(
        episode_id=name,
        end_reason="done",
        status=200,
        answer=leader,
        response_id=f"r-{name}",
        usage=Usage(prompt_tokens=5, completion_tokens=sum(step.tokens for step in steps)),
        steps=steps,
        model=model,
        system_fingerprint="fp",
    )
    ends = {key: changes.pop(key) for key in list(changes) if key not in known}
    return Request(**(known | changes)), replace(outcome, **ends)


def rows(events: Iterable[Event], *, first: int = 1, second_s: float = 1.0) -> list[StoredEvent]:
    """The events as a log keeps them, one a second."""
    return [StoredEvent(seq=seq, at_s=seq * second_s, event=event) for seq, event in enumerate(events, first)]


def traffic(n: int, seed: int = 0, *, first: int = 0, **options: Any) -> list[Event]:
    """Full runs, one after the other."""
    rng, events = random.Random(seed), list[Event]()
    for number in range(first, first + n):
        request, outcome = run(number, rng, **options)
        events += [request, outcome]
    return events


def label(number: int, **given: Any) -> FeedbackEvent:
    """A reviewer's word on a run."""
    fields = {"feedback_id": f"f{number}-{len(given)}-{given.get('gold')}", "source": "reviewer", **given}
    return FeedbackEvent(Feedback(episode_id=given.pop("episode_id", f"ep_{number:05}"), **fields))


def began(route: Route = ROUTE, **changes: Any) -> RouteDeployment:
    """A cold start at the beginning of the log."""
    known: dict[str, Any] = {
        "route": "r",
        "number": 1,
        "at": 0,
        "since_seq": 0,
        "reason": "cold start",
        "author": "w",
        "burst": CONTROL.burst_requests,
        "max_em_drop": route.max_em_drop,
        "confidence": route.confidence,
    }
    epoch = Epoch(**(known | changes))
    return RouteDeployment(epoch=epoch, n_epochs=epoch.number)


@dataclass
class Story:
    """A loop, what it was fed and what it decided."""

    loop: RouteLoop
    artefacts: dict[str, str]
    decided: list[Event]

    @property
    def published(self) -> list[Publication]:
        return [event for event in self.decided if isinstance(event, Publication)]

    def feed(self, stored: Iterable[StoredEvent]) -> Story:
        for one in stored:
            self._take(self.loop.feed(one))
        return self

    def settle(self) -> Story:
        self._take(self.loop.settle())
        return self

    def _take(self, resolution: Resolution | None) -> None:
        if resolution is not None:
            self.decided += resolution.events
            self.artefacts.update(resolution.artefacts)


def learned(loop: RouteLoop) -> LearnedEvidence:
    """The source of evidence of a loop that learns levels, or replays a fixed policy."""
    assert isinstance(loop.source, LearnedEvidence)
    return loop.source


def story(
    route: Route = ROUTE,
    *,
    control: Control = CONTROL,
    held: RouteDeployment | None = None,
    expected: Sequence[Publication] = (),
    artefacts: dict[str, str] | None = None,
    **options: Any,
) -> Story:
    """A loop at the beginning of its epoch."""
    kept = dict(artefacts or {})
    load: Callable[[str], ServedVersion] = lambda address: read_back(address, kept.get(address))
    context = RouteContext(
        name="r", route=route, control=control, match=lambda answer, gold: answer == gold, load=load, author="w"
    )
    held = replace(held or began(route), n_publications=len(expected))
    loop = RouteLoop(context, held, expected=expected, **options)
    return Story(loop, kept, [])


def one_round(database: Path, job: Job) -> Sequence[str]:
    """One round of a worker with one job, which knows nothing but the log; what it said."""
    with Decisions(database, now=lambda: 1_000.0, monotonic_s=lambda: 0.0) as writer:
        worker = Worker(
            decisions=writer,
            jobs=(job,),
            author="w",
            now=lambda: 0.0,
            monotonic_s=lambda: 0.0,
            new_id=lambda: uuid4().hex,
        )
        return [report.summary for report in worker.once(job.name) or ()]
