"""B-PAC (Yu et al. 2026, "Anytime Safe PAC Efficient Reasoning", arXiv:2601.22446) on the ladders that ours learns.

Each level has one betting supermartingale, from the first request on, against "what is served loses the budget": a
request that ran in full contributes its loss, divided by the probability with which it did. A request that the level
in force does not stop runs in full anyway; of those that it would stop, EXPLORED do. The paper decides before
generation between two models; here a level decides when to stop, which changes nothing in the test.

Left open there and chosen here: levels are learned as ours are, first when one could pass and then as often; each
request is judged by models of other folds, and the wealth is counted anew for the new levels, from the first request
on. The loss is the net drop Z, gains included, where the authors count losses alone. Levels are looked at every PERIOD
requests. In their warm-up of 200 requests 70 % of those below the threshold run in full; here all do, as nothing passes
so early.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log
from typing import Final

import numpy as np
from bench.page.store import Line
from bench.page.streams import STREAMS, OpenSet, late_half, risk_at

from suffice.arrays import Floats, Ints, Small
from suffice.assurance.certify import certified_level
from suffice.certification.plan import Plan
from suffice.learn.version import Learner, fit_served
from suffice.replay.online.drift import draw_order
from suffice.replay.online.stream import PERIOD, RecordedTraffic, learner_of

EXPLORED: Final = 0.05  # of the requests that would be stopped; rho
LARGEST_BET: Final = 0.9  # of the bet that could go bankrupt
REFIT: Final = int(Plan().refit_every)


def largest_bet(budget: float) -> float:
    return LARGEST_BET / max(budget, (1 - EXPLORED) / EXPLORED - budget)


def least_requests(budget: float) -> int:
    """Requests before which no level can pass, whatever it loses: the largest bet on no loss at all."""
    return ceil(log(1 / risk_at(budget)) / log(1 + largest_bet(budget) * budget))


@dataclass(slots=True, eq=False)
class Wealth:
    """The supermartingales of M levels, as logarithms; bets follow the mean so far, as the authors' code has it."""

    budget: float
    logarithm: Floats  # (M,)
    total: Floats  # (M,): of the gains so far
    squares: Floats

    @classmethod
    def of(cls, budget: float, n_levels: int) -> Wealth:
        return cls(budget, *np.zeros((3, n_levels)))

    def add(self, z: Small | Floats, weight: Floats) -> None:
        """Losses of some requests at each level, (n, M), and 1 / P(ran in full), 0 for those that did not, (n,)."""
        gain = self.budget - (1 - EXPLORED) * weight[:, np.newaxis] * z
        total, squares = self.total + gain.cumsum(axis=0), self.squares + (gain**2).cumsum(axis=0)
        bet = np.clip((total - gain) / (squares - gain**2 + 1), 0, largest_bet(self.budget))
        self.logarithm = self.logarithm + np.log1p(bet * gain).sum(axis=0)
        self.total, self.squares = total[-1], squares[-1]


def serve(opened: OpenSet, stream: str, budget: float, seed: int) -> Line:
    rng = np.random.default_rng(seed)
    requests = opened.traffic.take(draw_order(opened.traffic, rng, resample=STREAMS[stream]).which)
    row = served_rows(requests, learner_of(requests.chosen, seed=seed), rng, budget)
    return late_half(requests, row, np.ones(len(requests), dtype=bool))  # it reads the score of every request


def served_rows(traffic: RecordedTraffic, learner: Learner, rng: np.random.Generator, budget: float) -> Ints:
    """Serve the requests in their order: the row where each ends, shape (N,)."""
    runs, n, delta = traffic.runs, len(traffic), risk_at(budget)
    row, weight, level = runs.last.copy(), np.ones(n), 0
    teaches = np.ones(n, dtype=bool)  # drawn whatever the request is
    refit_at, wealth, rows = least_requests(budget) // PERIOD * PERIOD, None, np.empty((n, 0), np.int64)
    for begin in range(0, n, PERIOD):
        if begin >= refit_at:
            refit_at = begin + REFIT
            learned = runs.take(np.flatnonzero(teaches[:begin]))
            served = fit_served(learned, learner, now=float(begin), max_em_drop=budget)
            if served is not None:
                rows, wealth = served.rows(runs), Wealth.of(budget, served.n_levels)
                wealth.add(runs.z[rows[:begin]], weight[:begin])
                level = certified_level(wealth.logarithm, delta=delta)
        if wealth is None:
            continue
        block = np.arange(begin, min(begin + PERIOD, n))
        if level:
            drawn = rng.random(len(block)) < EXPLORED
            stops = rows[block, level] < runs.last[block]
            teaches[block] = drawn
            weight[block] = np.where(stops, drawn / EXPLORED, 1.0)
            row[block] = np.where(drawn, runs.last[block], rows[block, level])
        wealth.add(runs.z[rows[block]], weight[block])
        level = certified_level(wealth.logarithm, delta=delta)
    return row
