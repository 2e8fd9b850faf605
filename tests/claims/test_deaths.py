"""A death of a gateway at the worst moment, chosen with knowledge of everything: what may be left out, and what not."""

from __future__ import annotations

from math import log

import numpy as np

from suffice.arrays import Bools, Floats

EPS, DELTA, RHO, NU = 0.02, 0.05, 0.2, 0.6
N, OPEN, STREAMS = 4_000, 60, 1_000  # requests, those that are open at any time, and draws of the audits
LOSSES = (np.arange(N) % 50 == 0).astype(float)  # the mean up to any request is the budget or more


def growth(audited: Bools) -> Floats:
    return np.where(audited, np.log1p(NU * (EPS - LOSSES)), 0.0)


def passes(each: Floats) -> bool:
    return bool(len(each)) and float(each.cumsum().max()) >= log(1 / DELTA)


def ended(audited: Bools) -> tuple[int, int]:
    """The first request that died and the latest one: the gateway ends at the height of the wealth, before a loss."""
    wealth = np.concatenate([[0.0], growth(audited).cumsum()])
    seen = np.flatnonzero(audited & (LOSSES > 0))
    first = int(seen[np.argmax(wealth[seen])])
    return first, min(N, first + OPEN)


def test_an_attacker_that_ends_the_gateway_when_it_likes_certifies_no_bad_level() -> None:
    rng, kept, left_out = np.random.default_rng(5), 0, 0
    for _ in range(STREAMS):
        audited = rng.random(N) < RHO
        first, last = ended(audited)
        each = growth(audited)
        kept += passes(each[:first]) or passes(each[last:])
        left_out += passes(np.where(LOSSES > 0, 0.0, each))  # each audit that shows a loss dies
    assert kept / STREAMS <= 2 * DELTA, "two windows, each with all of delta"
    assert left_out == STREAMS, "leaving out what died would certify it in every stream"
