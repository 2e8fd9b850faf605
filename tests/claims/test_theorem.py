"""The certificate against sequences that are fixed before anything is drawn, and against one who watches the draws.

Nothing here is random but the draws of the audits: a level loses at the requests at which the sequence says so, and at
some time its wealth passes while the mean drop over *all* requests so far is at the budget or above it. That happens in
at most delta of the sets of draws (VALIDITY, theorem), and designs that leave out one of its conditions break it.

`python -m pytest -q -s tests/claims/test_theorem.py` prints the figures of docs/reference/assurance.md.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import Final

import numpy as np
import pytest

from suffice.arrays import Floats, Ints, Small
from suffice.assurance.bounds import exact_binomial
from suffice.assurance.certify import BETS, certified_level, log_bets, mixed, weighted_log_wealth

EPS: Final = 0.02
DELTA: Final = 0.05
LIMIT: Final = log(1 / DELTA)
N: Final = 4_000
N_LOST: Final = round(EPS * N)
N_SETS: Final = 1_000  # of draws


def losing(*at: int | Ints) -> Small:
    """A sequence that loses at these requests and nowhere else, shape (N,)."""
    z = np.zeros(N, dtype=np.int8)
    for one in at:
        z[one] = 1
    return z


SEQUENCES: Final[dict[str, Small]] = {
    "losses first": losing(np.arange(N_LOST)),
    "losses last": losing(np.arange(N - N_LOST, N)),
    "random": losing(np.random.default_rng(1).permutation(N)[:N_LOST]),
    "every 50th": losing(np.arange(49, N, 50)),
    "one client": losing(np.random.default_rng(2).permutation(np.arange(1_500, 2_500))[:N_LOST]),
    "lost, then gained back": losing(np.arange(2 * N_LOST)) - losing(np.arange(N // 2, N // 2 + N_LOST)),
}
SHARES: Final[dict[str, Callable[[Small], Floats]]] = {
    "10 %": lambda _: np.full(N, 0.1),
    "all, then 5 %": lambda _: np.where(np.arange(N) < 600, 1.0, 0.05),
    "losses seldom": lambda z: np.where(z == 1, 0.05, 0.4),
    "losses often": lambda z: np.where(z == 1, 0.4, 0.05),
}


def grown(z: Small, weight: Floats) -> Floats:
    """Log of what each request would make of each bet, were it audited, shape (bets, n)."""
    result = np.zeros((len(BETS), len(z)))
    for value in (-1, 0, 1):
        for one in np.unique(weight).tolist():
            here = (z == value) & (weight == one)
            gained, same, lost = (np.array([int(value == outcome)]) for outcome in (-1, 0, 1))
            result[:, here] = log_bets(gained, same, lost, EPS, bets=BETS, weight=one)
    return result


def passes_wrongly(z: Small, share: Floats, weight: Floats, *, seed: int, n_sets: int = N_SETS) -> int:
    """Sets of draws in which the level passes at some request at which the mean drop so far is EPS or more."""
    audited = np.random.default_rng(seed).random((n_sets, len(z))) < share
    bets = np.stack([(audited * one).cumsum(axis=1) for one in grown(z, weight)])
    passes = mixed(bets.reshape(len(BETS), -1)).reshape(audited.shape) >= LIMIT
    n_lost = z.cumsum(dtype=np.int64)
    broken = n_lost >= EPS * np.arange(1, len(z) + 1) - 1e-9
    return int((passes & broken).any(axis=1).sum())


def report_of(what: str, n_wrong: int, n_sets: int = N_SETS) -> float:
    """Print a rate; the upper end of its exact interval."""
    upper = exact_binomial(n_wrong, n_sets, 0.95).high
    print(f"{what}: {n_wrong / n_sets:.1%} of {n_sets:,} sets of draws (at most {upper:.1%})")
    return upper


# --------------------------------------------------------------------------- one level


def test_the_wealth_of_this_page_is_that_of_the_certificate() -> None:
    z, share = SEQUENCES["random"], SHARES["losses often"](SEQUENCES["random"])
    weight = share.min() / share
    audited = np.random.default_rng(0).random(N) < share
    running = mixed((audited * grown(z, weight)).cumsum(axis=1))
    for until in (1, 40, 900, N):
        seen = audited[:until]
        wealth = weighted_log_wealth(z[:until][seen][:, np.newaxis], weight[:until][seen], max_em_drop=EPS)
        assert running[until - 1] == pytest.approx(float(wealth[0]), abs=1e-9)


@pytest.mark.slow(keep=2)
@pytest.mark.parametrize("how", SHARES)
@pytest.mark.parametrize("name", SEQUENCES)
def test_no_sequence_makes_a_level_at_the_budget_pass_in_more_than_delta(name: str, how: str) -> None:
    z = SEQUENCES[name]
    share = SHARES[how](z)
    assert z.sum() == N_LOST == EPS * N
    n_wrong = passes_wrongly(z, share, share.min() / share, seed=1)
    assert report_of(f"{name}, {how}", n_wrong) <= DELTA


@pytest.mark.parametrize(("name", "how"), [("losses last", "all, then 5 %"), ("random", "losses seldom")])
def test_without_weights_the_same_sequences_pass_far_too_often(name: str, how: str) -> None:
    z = SEQUENCES[name]
    n_wrong = passes_wrongly(z, SHARES[how](z), np.ones(N), seed=1)
    report_of(f"{name}, {how}, every audit alike", n_wrong)
    assert n_wrong > 4 * DELTA * N_SETS


def passes_while_climbing(z: Small, *, seed: int, alike: bool = False) -> int:
    """Sets in which the level passes wrongly where half of all are audited while outcomes speak for it, else 5 %."""
    rng, weight = np.random.default_rng(seed), {share: 1.0 if alike else 0.05 / share for share in (0.05, 0.5)}
    factors = {share: grown(z, np.full(N, one)) for share, one in weight.items()}
    wealth, n_lost = np.zeros((len(BETS), N_SETS)), z.cumsum(dtype=np.int64)
    climbs, wrong = np.zeros(N_SETS, dtype=bool), np.zeros(N_SETS, dtype=bool)
    for at in range(N):
        audited = rng.random(N_SETS) < np.where(climbs, 0.5, 0.05)
        wealth += audited * np.where(climbs, factors[0.5][:, at, np.newaxis], factors[0.05][:, at, np.newaxis])
        now = mixed(wealth)
        wrong |= (now >= LIMIT) & (n_lost[at] >= EPS * (at + 1) - 1e-9)
        climbs = (now > 0) & (now < LIMIT)
    return int(wrong.sum())


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_share_that_climbs_on_outcomes_inside_a_window_costs_none_of_delta(name: str) -> None:
    assert report_of(f"{name}, climbing share", passes_while_climbing(SEQUENCES[name], seed=5)) <= DELTA


@pytest.mark.parametrize("name", ["losses first", "one client"])
def test_audits_of_a_climbing_share_that_count_alike_pass_too_often(name: str) -> None:
    n_wrong = passes_while_climbing(SEQUENCES[name], seed=5, alike=True)
    report_of(f"{name}, climbing share, every audit alike", n_wrong)
    assert n_wrong > 2 * DELTA * N_SETS


def test_one_draw_for_a_conversation_breaks_what_one_for_each_request_holds() -> None:
    """Conversations of 20 turns, four of which lose their last 20 turns: the draw falls on all of it or none."""
    z = losing(*(np.arange(20) + 20 * (1 + 50 * number) for number in range(4)))
    alike, rng = np.full(N, 0.1), np.random.default_rng(2)
    assert report_of("a draw for each request", passes_wrongly(z, alike, np.ones(N), seed=2)) <= DELTA
    of_conversation = rng.random((N_SETS, N // 20)) < 0.1
    audited = np.repeat(of_conversation, 20, axis=1)
    bets = np.stack([(audited * one).cumsum(axis=1)[:, -1] for one in grown(z, np.ones(N))])
    n_wrong = int((mixed(bets) >= LIMIT).sum())
    report_of("a draw for each conversation", n_wrong)
    assert n_wrong > 4 * DELTA * N_SETS


def test_who_sees_the_draws_and_loses_once_the_level_has_passed_gains_nothing() -> None:
    """The adversary waits until the wealth is at its goal, then loses at every request until the budget is broken."""
    same, lost = grown(np.array([0, 1], dtype=np.int8), np.ones(2)).T
    for goal in (LIMIT, LIMIT + 1, LIMIT + 2):
        rng = np.random.default_rng(3)
        bets, n_lost = np.zeros((len(BETS), N_SETS)), np.zeros(N_SETS)
        turned, wrong = np.zeros(N_SETS, dtype=bool), np.zeros(N_SETS, dtype=bool)
        for t in range(1, N + 1):
            turned |= mixed(bets) >= goal
            loses = turned & (n_lost < EPS * t)
            n_lost += loses
            bets += (rng.random(N_SETS) < 0.1) * np.where(loses, lost[:, np.newaxis], same[:, np.newaxis])
            wrong |= (mixed(bets) >= LIMIT) & (n_lost >= EPS * t)
        assert turned.mean() > 0.9
        assert report_of(f"turned at wealth {np.exp(goal):.0f}", int(wrong.sum())) <= DELTA


# --------------------------------------------------------------------------- levels whose means cross the budget

N_LEVELS: Final = 41  # level 0 never stops


def spread(mean: Floats, rng: np.random.Generator) -> Small:
    """Losses whose running mean is this one, shape (N, levels): one falls where the level's sum reaches the next whole.

    mean  at each request, shape (N, levels)
    """
    sums = np.maximum.accumulate(mean * np.arange(1, len(mean) + 1)[:, np.newaxis], axis=0) + rng.random(mean.shape[1])
    return np.diff(np.floor(sums), axis=0, prepend=0.0).clip(0, 1).astype(np.int8)


def crossing(*, n_waves: float, swing: float, together: bool) -> Callable[[np.random.Generator], Small]:
    """Levels at the budget on average, each above and below it in turn, all at once or one behind the other."""

    def made(rng: np.random.Generator) -> Small:
        phase = np.zeros(N_LEVELS) if together else np.linspace(0, 2 * np.pi, N_LEVELS)
        at = 2 * np.pi * n_waves * np.log(np.arange(1, N + 1) / 100.0).clip(0)[:, np.newaxis] / np.log(N / 100.0)
        return spread(EPS * (1 + swing * np.sin(at + phase)), rng)

    return made


def relay(n_first: int, factor: float) -> Callable[[np.random.Generator], Small]:
    """Level j is just at the budget at its own moment, and loses nothing afterwards, so that the next one is first."""

    def made(rng: np.random.Generator) -> Small:
        until = np.minimum(n_first * factor ** np.arange(N_LEVELS), N)
        t = np.arange(1, N + 1)[:, np.newaxis]
        return spread(1.001 * EPS * np.minimum(1.0, until / t), rng)

    return made


def constant(rng: np.random.Generator) -> Small:
    """The usual order: each level loses a little more than the one before, and the middle one what is allowed."""
    return spread(np.broadcast_to(np.linspace(0, 2 * EPS, N_LEVELS), (N, N_LEVELS)), rng)


LEVELS: Final[dict[str, tuple[float, Callable[[np.random.Generator], Small]]]] = {
    "constant": (0.1, constant),
    "all cross together": (0.1, crossing(n_waves=3, swing=0.3, together=True)),
    "one behind the other": (0.1, crossing(n_waves=3, swing=0.3, together=False)),
    "one behind the other, often audited": (0.5, crossing(n_waves=3, swing=0.3, together=False)),
    "relay": (0.5, relay(250, 1.07)),
    "relay, wide": (0.5, relay(250, 2.0)),
    "slow relay": (0.1, relay(1_000, 1.03)),
}


def serves_wrongly(z: Small, share: float, *, seed: int, n_sets: int) -> int:
    """Sets of draws in which the served level's mean drop so far is EPS or more at some request."""
    rng = np.random.default_rng(seed)
    z = z.copy()
    z[:, 0] = 0
    broken = z.cumsum(axis=0, dtype=np.int64) >= EPS * np.arange(1, N + 1)[:, np.newaxis] - 1e-9
    each = np.stack([grown(column, np.ones(N)) for column in z.T], axis=2)  # (bets, N, levels)
    n_wrong = 0
    for _ in range(n_sets):
        at = np.flatnonzero(rng.random(N) < share)
        wealth = mixed(each[:, at].cumsum(axis=1).reshape(len(BETS), -1)).reshape(len(at), -1)
        passes = wealth >= LIMIT
        passes[:, 0] = True
        served = np.where(passes.all(axis=1), N_LEVELS, passes.argmin(axis=1)) - 1
        level = np.zeros(N, dtype=np.int64)
        level[at[0] :] = np.repeat(served, np.diff(np.append(at, N)))
        n_wrong += bool(broken[np.arange(N), level][level > 0].any())
    return n_wrong


def test_the_served_level_of_this_page_is_that_of_the_certificate() -> None:
    wealth = np.array([[0.0, LIMIT, 9.0, 1.0, 9.0], [0.0, 9.0, 9.0, 9.0, 9.0], [0.0, 0.0, 9.0, 9.0, 9.0]])
    passes = wealth >= LIMIT
    passes[:, 0] = True
    served = np.where(passes.all(axis=1), wealth.shape[1], passes.argmin(axis=1)) - 1
    assert served.tolist() == [certified_level(row, delta=DELTA) for row in wealth] == [2, 4, 0]


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("name", LEVELS)
def test_no_order_of_levels_is_served_wrongly_in_more_than_delta(name: str) -> None:
    share, made = LEVELS[name]
    n_wrong, n_sequences = 0, 4
    for seed in range(n_sequences):
        z = made(np.random.default_rng([4, seed]))
        n_wrong += serves_wrongly(z, share, seed=seed, n_sets=N_SETS // n_sequences)
    assert report_of(f"{N_LEVELS - 1} levels, {name}", n_wrong) <= DELTA
