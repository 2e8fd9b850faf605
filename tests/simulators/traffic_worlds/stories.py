"""The hidden course of each run, as a few step numbers and answers.

    1 ──── searching ────┬─ on a plateau ─┬──── settled ────┬─ led away ── n_steps
                         plateau_from     settles           leads_away

Answers are small integers; 0 is correct. A phase that a run does not have begins after its end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from suffice.arrays import Floats, Ints
from tests.simulators.traffic_worlds.worlds import Blend

SHORTEST: Final = 3
LONGEST: Final = 16
SEARCHING, PLATEAU, SETTLED, LED_AWAY = range(4)
RIGHT: Final = 0
N_DISTRACTORS: Final = 5  # wrong answers of a search, numbered from 1
HELD: Final = 6  # the wrong answer of a plateau
AWAY: Final = 7  # the wrong answer after a settled one
P_MOVES_ON: Final = 0.55  # P(a searching run drops its answer at a step)
SPREAD_OF_LENGTHS: Final = 0.33  # standard deviation of the logarithm
P_REPAIRED: Final = 0.30  # P(a run led away from a wrong answer reaches the correct one)


@dataclass(frozen=True, slots=True)
class Stories:
    """n runs; step numbers count from 1."""

    n_steps: Ints  # natural length, 3 … 16
    settles: Ints  # first step with the settled answer
    plateau_from: Ints  # first step of a false plateau, which ends at `settles`
    leads_away: Ints  # first step without the settled answer
    settled: Ints  # the settled answer
    away: Ints  # the answer after it

    def __len__(self) -> int:
        return len(self.n_steps)

    @property
    def starts(self) -> Ints:
        """First row of each run, and the total number of rows, shape (n + 1,)."""
        return np.concatenate([[0], np.cumsum(self.n_steps)])


def draw_stories(of: Blend, rng: np.random.Generator) -> Stories:
    """Draw one story per request; `of` returns parameters by name, see `worlds.blended`."""
    n = len(of("steps"))
    drawn = of("steps") * rng.lognormal(-(SPREAD_OF_LENGTHS**2) / 2, SPREAD_OF_LENGTHS, n)
    n_steps = np.clip(np.rint(drawn), SHORTEST, LONGEST).astype(np.int64)
    settles = 1 + np.floor((n_steps - 1) * rng.beta(of("settle_a"), of("settle_b"))).astype(np.int64)
    settled = np.where(rng.random(n) < of("p_right"), RIGHT, rng.integers(1, 4, n))

    plateau = rng.random(n) < of("p_plateau")
    settles = np.where(plateau, np.maximum(settles, np.ceil(0.75 * n_steps).astype(np.int64)), settles)
    begins = np.maximum(1, np.rint(settles * rng.uniform(0.15, 0.45, n))).astype(np.int64)

    room = n_steps - settles
    overthinks = (rng.random(n) < of("p_overthink")) & (room >= 3)
    after = np.maximum(2, np.rint(room * rng.uniform(0.4, 0.95, n))).astype(np.int64)
    repaired = (settled != RIGHT) & (rng.random(n) < P_REPAIRED)
    return Stories(
        n_steps=n_steps,
        settles=settles,
        plateau_from=np.where(plateau, begins, n_steps + 1),
        leads_away=np.where(overthinks, settles + after, n_steps + 1),
        settled=settled,
        away=np.where(repaired, RIGHT, AWAY),
    )


@dataclass(frozen=True, slots=True)
class Rows:
    """The steps of n runs, one row each, T in all."""

    run: Ints  # T
    step: Ints  # T, from 1
    phase: Ints  # T: SEARCHING, PLATEAU, SETTLED or LED_AWAY
    answer: Ints  # T


def unfold(stories: Stories, p_lucky: Floats, rng: np.random.Generator) -> Rows:
    """Every step of every story with its phase and answer.

    p_lucky  P(an answer drawn while searching is the settled one), shape (n,)
    """
    run = np.repeat(np.arange(len(stories)), stories.n_steps)
    step = np.arange(len(run)) - stories.starts[run] + 1
    phase = np.where(step >= stories.settles[run], SETTLED, SEARCHING)
    phase[(step >= stories.plateau_from[run]) & (phase == SEARCHING)] = PLATEAU
    phase[step >= stories.leads_away[run]] = LED_AWAY

    result = np.where(
        rng.random(len(run)) < p_lucky[run], stories.settled[run], rng.integers(1, N_DISTRACTORS + 1, len(run))
    )
    new = (step == 1) | (rng.random(len(run)) < P_MOVES_ON)
    # A searching run keeps the answer of its last draw.
    kept = result[np.maximum.accumulate(np.where(new, np.arange(len(run)), 0))]
    answer = np.choose(phase, [kept, np.full(len(run), HELD), stories.settled[run], stories.away[run]])
    return Rows(run, step, phase, answer)
