"""The observable signals of simulated runs, and the cost and result of a stop at any step.

Features are those of ASSURANCE §3.1, from noisy confidence and answers; the story of a run stays hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from suffice.arrays import Bools, Floats, Ints, Small
from tests.simulators.traffic_worlds.stories import (
    LED_AWAY,
    LONGEST,
    PLATEAU,
    RIGHT,
    SETTLED,
    Rows,
    Stories,
    draw_stories,
    unfold,
)
from tests.simulators.traffic_worlds.worlds import Blend, ClassWorld, blended

STEP_TOKENS: Final = 120.0  # median per step
PROBE_TOKENS: Final = 6.0  # per trial answer
ANSWER_TOKENS: Final = 30.0  # the final answer, stopped or not
N_KINDS: Final = 4  # distinguished by features
FEATURES: Final = (
    "confidence",
    "entropy",
    "log_streak",
    "agreement",
    "step_share",
    "same_as_last",
    "difficulty",
    "streak_share",
    "confidence_x_log_streak",
    "confidence_x_step_share",
    "kind_1",
    "kind_2",
    "kind_3",
    "confidence_x_kind_1",
    "confidence_x_kind_2",
    "confidence_x_kind_3",
)
EARLY: Final = ("confidence", "entropy", "same_as_last", "difficulty")
EARLY_STEP: Final = 2  # every run has it


@dataclass(frozen=True, slots=True, eq=False)
class SimulatedTraffic:
    """n full runs in order of arrival, T steps in all; run i has the rows starts[i] … starts[i + 1] - 1."""

    x: Floats  # (T, P): features after the step, named in FEATURES
    starts: Ints  # (n + 1,)
    z: Small  # (T,): EM drop if stopped after the step, -1, 0 or +1
    d: Bools  # (T,): the answer differs from the full run's
    cost: Floats  # (T,): tokens if stopped after the step, with its answer and all probes so far
    full: Floats  # (n,): tokens of the full run without probes
    right: Bools  # (n,): the full run's answer is correct
    query_class: Ints  # (n,)
    early: Floats  # (n, 4): EARLY at the second step, for drift detectors on all traffic

    def __len__(self) -> int:
        return len(self.full)

    @property
    def n_steps(self) -> Ints:
        """Natural length of each run, shape (n,)."""
        return np.diff(self.starts)

    @property
    def run(self) -> Ints:
        """The run of each row, shape (T,)."""
        return np.repeat(np.arange(len(self)), self.n_steps)

    @property
    def step(self) -> Ints:
        """The step of each row in its run, from 1, shape (T,)."""
        return np.arange(len(self.z)) - np.repeat(self.starts[:-1], self.n_steps) + 1


def draw_traffic(before: ClassWorld, after: ClassWorld, share: Floats, rng: np.random.Generator) -> SimulatedTraffic:
    """One run per request between two regimes; `share` is its distance from the old one, 0 … 1, shape (n,)."""
    classes = _classes(before, after, share, rng)
    of = blended(before, after, share, classes)
    stories = draw_stories(of, rng)
    rows = unfold(stories, of("p_lucky"), rng)
    kinds = np.array([c.kind for c in before.classes])[classes]
    x = _features(stories, rows, of, kinds, rng)
    last = stories.starts[1:] - 1
    right = rows.answer == RIGHT
    thought = _within(STEP_TOKENS * rng.lognormal(0.0, 0.2, len(rows.run)), stories.starts, rows.run)
    early = stories.starts[:-1] + EARLY_STEP - 1
    return SimulatedTraffic(
        x=x,
        starts=stories.starts,
        z=right[last].astype(np.int8)[rows.run] - right.astype(np.int8),
        d=rows.answer != rows.answer[last][rows.run],
        cost=thought + PROBE_TOKENS * rows.step + ANSWER_TOKENS,
        full=thought[last] + ANSWER_TOKENS,
        right=right[last],
        query_class=classes,
        early=x[early][:, [FEATURES.index(name) for name in EARLY]],
    )


def _classes(before: ClassWorld, after: ClassWorld, share: Floats, rng: np.random.Generator) -> Ints:
    if [c.kind for c in before.classes] != [c.kind for c in after.classes]:
        raise ValueError(f"worlds: {len(before.classes)} and {len(after.classes)} classes; the same ones in both")
    n, n_classes = len(share), len(before.classes)
    old = rng.choice(n_classes, n, p=before.table()["share"])
    new = rng.choice(n_classes, n, p=after.table()["share"])
    return np.where(rng.random(n) < share, new, old)


def _features(stories: Stories, rows: Rows, of: Blend, kinds: Ints, rng: np.random.Generator) -> Floats:
    n = len(stories)
    confidence = _confidence(stories, rows, of, rng)
    entropy = -0.8 * confidence + rng.normal(0, 0.5, len(rows.run))
    difficulty = (np.array([6.0, 9.0, 12.5, 11.0])[kinds] - 9) / 3 + rng.normal(0, 0.6, n)
    same = _same_as_last(rows)
    streak = _streak(same)
    at = rows.step / LONGEST  # a live route has this cap
    report = [kinds[rows.run] == kind for kind in range(1, N_KINDS)]
    columns = [
        confidence,
        entropy,
        np.log(streak),
        _agreement(rows),
        at,
        same,
        difficulty[rows.run],
        streak / rows.step,
        confidence * np.log(streak),
        confidence * at,
        *report,
        *(confidence * t for t in report),
    ]
    return np.column_stack(columns)


def _confidence(stories: Stories, rows: Rows, of: Blend, rng: np.random.Generator) -> Floats:
    """The model's confidence as a logit: by phase, with a bias of the run, a bias of its class, and noise."""
    run, phase = rows.run, rows.phase
    output = (of("searching") + of("false_boldness"))[run]
    output = np.where(phase == PLATEAU, of("on_plateau")[run], output)
    firmness = 1.7 + 0.18 * np.clip(rows.step - stories.settles[run], 0, 6)
    output = np.where(phase >= SETTLED, firmness - 0.6 * (phase == LED_AWAY), output)
    bias = of("boldness") + of("shift") + rng.normal(0, 0.7, len(stories))
    return np.asarray(output + bias[run] + rng.normal(0, 0.6, len(run)))


def _same_as_last(rows: Rows) -> Bools:
    same = np.zeros(len(rows.answer), dtype=bool)
    same[1:] = (rows.answer[1:] == rows.answer[:-1]) & (rows.step[1:] > 1)
    return same


def _streak(same: Bools) -> Ints:
    at = np.arange(len(same))
    return at - np.maximum.accumulate(np.where(same, 0, at)) + 1


def _agreement(rows: Rows) -> Floats:
    """Share of the earlier steps that gave this answer, shape (T,); 1 at the first."""
    # A stable sort groups the rows of one run and answer, so the position within a group counts them.
    key = rows.run * 16 + rows.answer
    order = np.argsort(key, kind="stable")
    at = np.arange(len(key))
    first = np.concatenate([[True], np.diff(key[order]) != 0])
    earlier = np.empty(len(key), dtype=np.int64)
    earlier[order] = at - np.maximum.accumulate(np.where(first, at, 0))
    return np.asarray(np.where(rows.step == 1, 1.0, earlier / np.maximum(rows.step - 1, 1)))


def _within(values: Floats, starts: Ints, run: Ints) -> Floats:
    """Cumulative sums within each run, shape (T,)."""
    total = np.cumsum(values)
    before = np.concatenate([[0.0], total])[starts[:-1]]
    return np.asarray(total - before[run])
