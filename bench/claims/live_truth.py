"""Items of the live simulation as full runs, and what each version of the loop would lose and save on them.

A version evaluates the items as it evaluates audits, once per fold, so the drop of every request at every level is a
table lookup.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from bench.claims.live_scenarios import COURSES, PROFILES, TURNS

from suffice.arrays import Floats, Ints
from suffice.assurance.runs import SequencedLabel
from suffice.learn.audits import AuditRuns
from suffice.learn.dataset import build_dataset
from suffice.learn.features import FeatureSelection
from suffice.learn.rows import audit_runs
from suffice.learn.version import N_FOLDS, ServedVersion
from suffice.types import Episode, Feedback, Outcome, Query, Request, StepRecord, Usage


@dataclass(frozen=True, slots=True)
class _Recorded:
    """An item as `learn.dataset` reads runs."""

    seq: int
    episode: Episode
    labels: tuple[SequencedLabel, ...]


@dataclass(frozen=True, slots=True)
class _Said:
    seq: int
    feedback: Feedback


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A run as it goes in full."""

    query: Query
    steps: tuple[StepRecord, ...]
    answer: str
    usage: Usage
    differs: bool  # does it give another answer on the way?
    by_turns: bool = False  # steps are turns with trial answers, not samples

    def outcome(self, name: str, *, model: str, stop: int | None = None) -> Outcome:
        """How a request with this item ends: in full, or stopped after a step (from 0)."""
        if stop is None:
            return Outcome(
                episode_id=name,
                end_reason="done",
                status=200,
                answer=self.answer,
                response_id=None,
                usage=self.usage,
                steps=self.steps,
                model=model,
                system_fingerprint="fp",
            )
        kept = self.steps[: stop + 1]
        usage = Usage(prompt_tokens=5, completion_tokens=sum(step.tokens for step in kept))
        leader = Counter(step.answer for step in kept).most_common(1)[0][0]  # of equals the first
        if self.by_turns:
            leader = kept[-1].answer
        return Outcome(
            episode_id=name,
            end_reason="stopped",
            status=200,
            answer=leader,
            response_id=None,
            usage=usage,
            steps=kept,
            model=model,
            system_fingerprint="fp",
            stopped=True,
            stop_reason="suffices",
            stop_step=stop + 1,
            would_answer=leader,
        )


@cache
def items(classes: tuple[str, ...], *, by_turns: bool = False) -> tuple[Item, ...]:
    """Every item of these classes: class, profile, course, the last running fastest."""
    rng, made = np.random.default_rng(0), list[Item]()
    tokens = [[20 + 4 * profile + int(rng.integers(8)) for _ in COURSES[0]] for profile in range(PROFILES)]
    for name in classes:
        for profile in range(PROFILES):
            query = Query(query_class=name, planned_steps=len(COURSES[0]), n_words=10 + (7 * profile) % PROFILES)
            for course in TURNS if by_turns else COURSES:
                steps = tuple(
                    StepRecord(
                        index=at + 1,
                        tokens=tokens[profile][at],
                        answer=answer,
                        answer_source="probe" if by_turns else "sample",
                        confidence=None,
                        entropy=None,
                        probe_tokens=0,
                        action="continue",
                        reason="",
                    )
                    for at, answer in enumerate(course)
                )
                usage = Usage(prompt_tokens=5, completion_tokens=sum(tokens[profile]))
                made.append(
                    Item(
                        query=query,
                        steps=steps,
                        answer=course[-1],
                        usage=usage,
                        differs=len(set(course)) > 1,
                        by_turns=by_turns,
                    )
                )
    return tuple(made)


def request_of(number: int, item: Item, **changes: Any) -> Request:
    """The request of arrival `number`."""
    known: dict[str, Any] = {
        "episode_id": f"ep_{number:06}",
        "route": "r",
        "kind": "rounds" if item.by_turns else "samples",
        "mode": "enforce",
        "model": "m",
        "stream": False,
        "n_samples": 1 if item.by_turns else len(COURSES[0]),
        "audit": True,
        "propensity": 1.0,
        "policy_version": "",
        "certified": False,
        "question_key": f"q{number}",
        "ungoverned": None,
        "received_at_s": float(number),
        "query": item.query,
        "setup": "s1",
    }
    return Request(**(known | changes))


@dataclass(slots=True)
class Truth:
    """What each version would lose and save at each level, by fold of the prompt and item."""

    pool: tuple[Item, ...]
    load: Callable[[str], ServedVersion]
    _runs: dict[tuple[str, ...], AuditRuns] = field(default_factory=dict)
    _tables: dict[str, tuple[Ints, Ints, Floats]] = field(default_factory=dict)

    def tables(self, address: str) -> tuple[Ints, Ints, Floats]:
        """Z, the step of the stop (from 0) and tokens of a version, shape (folds, items, levels) each."""
        if address not in self._tables:
            version = self.load(address)
            runs = self._of(version.version.models[0].features)
            rows = version.rows(runs)
            shape = N_FOLDS, len(self.pool), rows.shape[1]
            z = np.where(rows == runs.last[:, None], 0, runs.z[rows])
            steps = rows - runs.starts[:-1, None]
            self._tables[address] = (
                z.reshape(shape).astype(np.int64),
                steps.reshape(shape),
                runs.cost[rows].reshape(shape),
            )
        return self._tables[address]

    def _of(self, features: tuple[str, ...]) -> AuditRuns:
        """The items of the pool once for each fold, with these features."""
        if features not in self._runs:
            label = Feedback(feedback_id="f", gold="R", source="reviewer")
            recorded = [
                _Recorded(
                    at,
                    Episode(request=request_of(at, item), outcome=item.outcome(f"ep_{at:06}", model="m")),
                    (_Said(at, label),),
                )
                for at, item in enumerate(self.pool)
            ]
            data = build_dataset(
                recorded, match=right, chosen=FeatureSelection(features, ()), wave=1, most_audits=len(self.pool) + 1
            )
            runs = audit_runs(data).take(np.tile(np.arange(len(data)), N_FOLDS))
            runs.fold[:] = np.repeat(np.arange(N_FOLDS), len(self.pool))
            self._runs[features] = runs
        return self._runs[features]


def right(answer: str | None, gold: str) -> bool:
    """Does an answer equal the reference?"""
    return answer == gold
