"""How soon drift that only audits show is noticed, what it costs until then, and how often an alarm is false.

Simulated audits at the level in force; the base rates are those of a level that 800 audits certified. The detectors
that came before run on the same drifts as the rejected design: a likelihood ratio over the latest 150 audits whose
reference every refit took from the latest 800. `python -m tests.claims.test_detection 200` prints the tables of the
docs.
"""

from __future__ import annotations

import random
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import log, log1p
from statistics import mean, median
from typing import Final

import numpy as np
import pytest

from suffice.assurance.bounds import exact_binomial
from suffice.assurance.drift import (
    BATCH,
    AuditWatch,
    Cusum,
    Reference,
    ShiryaevRoberts,
    detection_law,
    share_in_doubt,
)
from suffice.assurance.strata import post_stratify
from suffice.control.evidence.drift_features import N_COLUMNS, DriftFeatures
from suffice.control.evidence.run_join import StartOrder
from suffice.types import Episode, Query
from tests.control.made import run

BUDGET, SHARE, CAP, N_CERTIFYING = 0.02, 0.05, 0.5, 800
QUIET_REQUESTS: Final = 2_000  # before the drift
HORIZON: Final = 20_000  # requests after its beginning
Drift = Callable[[int], float]

DRIFTS: Final[dict[str, Drift]] = {
    "silent 6 %": lambda t: 0.06,
    "ramp to 8 % in 4,000": lambda t: min(0.08, 0.08 * t / 4_000),
    "0 and 8 %, period 4,000": lambda t: 0.08 if t % 4_000 < 2_000 else 0.0,
}


@dataclass(frozen=True, slots=True)
class Level:
    """True rates of the level in force while nothing drifts."""

    disagrees: float = 0.01
    lost: float = 0.004

    def reference(self, rng: random.Random) -> Reference:
        """What certifying audits happen to show."""
        n_disagreeing = sum(rng.random() < self.disagrees for _ in range(N_CERTIFYING))
        n_lost = sum(rng.random() < self.lost / self.disagrees for _ in range(n_disagreeing))
        return Reference(n_disagreeing=n_disagreeing, n_lost=n_lost, n=N_CERTIFYING)


BASE: Final = Level()
BASES: Final = (BASE, Level(0.04, 0.004), Level(0.001, 0.0004))


class NewBrake:
    """`AuditWatch` with doubt."""

    def __init__(self, reference: Reference) -> None:
        self._watch = AuditWatch(max_em_drop=BUDGET, reference=reference)

    @property
    def share(self) -> float:
        return share_in_doubt(SHARE, CAP) if self._watch.in_doubt else SHARE

    def add(self, z: int | None, disagrees: bool) -> bool:
        return self._watch.add(z, disagrees) is not None

    def refit(self) -> None:
        """The reference stays."""


class OldBrake:
    """What came before: `ShiryaevRoberts` on outcomes and a windowed ratio that refits re-base."""

    share = SHARE

    def __init__(self, reference: Reference, *, rebased: bool = True) -> None:
        self._rebased, self._outcomes = rebased, ShiryaevRoberts(BUDGET)
        seen = [True] * reference.n_disagreeing + [False] * (reference.n - reference.n_disagreeing)
        random.Random(0).shuffle(seen)
        self._certifying, self._recent = deque(seen, maxlen=N_CERTIFYING), deque[bool](maxlen=150)
        self._rate = mean(seen)

    def add(self, z: int | None, disagrees: bool) -> bool:
        self._certifying.append(disagrees)
        self._recent.append(disagrees)
        n, k, before = len(self._recent), sum(self._recent), max(self._rate, 1 / 800)
        same = (n - k) * log((n - k) / n / (1 - before)) if k < n else 0.0
        ratio = k * log(k / n / before) + same if k > n * before else 0.0
        return (z is not None and self._outcomes.add(z)) or ratio >= log(4_000)

    def refit(self) -> None:
        """The latest audits are the new normal."""
        if self._rebased:
            self._rate = mean(self._certifying)
            self._recent.clear()


Brake = NewBrake | OldBrake


def noticed(brake: Brake, drift: Drift, level: Level, rng: random.Random, *, labels: bool) -> tuple[int, float]:
    """Requests from the drift's beginning to the alarm, and served loss above the budget in points x requests."""
    loss = 0.0
    for t in range(-QUIET_REQUESTS, HORIZON):
        more = drift(t) if t >= 0 else 0.0
        if t % 1_000 == 0:
            brake.refit()
        if rng.random() >= brake.share:
            loss += 100 * max(0.0, level.lost + more - BUDGET)
            continue
        outcome = rng.random()
        z = int(outcome < level.lost + more) if labels else None
        if brake.add(z, outcome < level.disagrees + more) and t >= 0:
            return t + 1, loss
    return HORIZON, loss


def drifts(
    make: Callable[[Reference], Brake], drift: Drift, level: Level, *, labels: bool, n: int
) -> list[tuple[int, float]]:
    """The same drift with so many seeds."""
    result = []
    for seed in range(n):
        rng = random.Random(seed)
        result.append(noticed(make(level.reference(rng)), drift, level, rng, labels=labels))
    return result


def false_alarms(level: Level, n_requests: int, *, labels: bool, seed: int = 0) -> tuple[int, float]:
    """Alarms of the watch on steady traffic, each followed by a new epoch; and the mean audit share."""
    rng, at, n_alarms, n_audits = random.Random(seed), 0, 0, 0
    brake = NewBrake(level.reference(rng))
    while at < n_requests:
        at += 1 + int(log(1 - rng.random()) / log1p(-brake.share))
        n_audits += 1
        outcome = rng.random()
        if brake.add(int(outcome < level.lost) if labels else None, outcome < level.disagrees):
            n_alarms, brake = n_alarms + 1, NewBrake(level.reference(rng))
    return n_alarms, n_audits / at


# --------------------------------------------------------------------------- audits


@pytest.mark.slow(keep=2)
@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("name", DRIFTS)
def test_a_loss_that_no_signal_shows_costs_a_fifth_of_what_it_did(name: str, labels: bool) -> None:
    new = drifts(NewBrake, DRIFTS[name], BASE, labels=labels, n=40)
    old = drifts(OldBrake, DRIFTS[name], BASE, labels=labels, n=40)
    costs = [mean(loss for _, loss in runs) for runs in (new, old)]
    delay = median(at for at, _ in new)
    print(f"{name}, labels {labels}: {delay:.0f} requests, {costs[0]:.0f} against {costs[1]:.0f} points x requests")
    assert 5 * costs[0] <= costs[1]
    if name == "silent 6 %":
        assert delay <= 1_500


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("level", BASES)
def test_a_silent_loss_is_noticed_within_1500_requests_whatever_the_level_disagreed(level: Level, labels: bool) -> None:
    assert median(at for at, _ in drifts(NewBrake, DRIFTS["silent 6 %"], level, labels=labels, n=40)) <= 1_500


@pytest.mark.slow(keep=2)
@pytest.mark.parametrize("level", BASES)
def test_steady_audits_make_less_than_one_false_alarm_in_20000_requests(level: Level) -> None:
    n_alarms, share = false_alarms(level, 1_000_000, labels=True)
    print(f"{level}: {n_alarms} in 1,000,000 requests, {share:.1%} audited")
    assert exact_binomial(n_alarms, 1_000_000, 0.95).high <= 1 / 20_000
    assert share <= 1.6 * SHARE, "doubt is not free, and must be rare"


@pytest.mark.slow(keep=2)
@pytest.mark.parametrize(("drop", "labels"), [(0.03, True), (0.06, True), (0.06, False), (0.1, False)])
def test_the_law_says_how_soon(drop: float, labels: bool) -> None:
    law = detection_law(
        drop,
        max_em_drop=BUDGET,
        reference=Reference(n_disagreeing=8, n_lost=3, n=800),
        audit_share=SHARE,
        cap=CAP,
        labels=labels,
    )
    result = []
    for seed in range(200):
        brake = NewBrake(Reference(n_disagreeing=8, n_lost=3, n=800))
        result.append(noticed(brake, lambda t: drop, Level(0.01, 3 / 800), random.Random(seed), labels=labels)[0])
    assert law.median_requests == pytest.approx(median(result), rel=0.25)


# --------------------------------------------------------------------------- signals of all traffic


def pool(n: int = 400) -> list[Episode]:
    """Full runs that differ in all that is watched but their class."""
    rng = random.Random(7)
    made = (run(number, rng, audit=False) for number in range(n))
    return [Episode(request=request, outcome=outcome) for request, outcome in made]


def of_class(runs: list[Episode], name: str) -> list[Episode]:
    query = Query(planned_steps=8, n_words=10, query_class=name)
    return [replace(one, request=replace(one.request, query=query)) for one in runs]


def signal_alarms(runs: Iterator[Episode]) -> Iterator[int]:
    """Requests at which `Cusum` alarms; each begins an epoch."""
    features, cusum, starts = DriftFeatures(), Cusum(N_COLUMNS), StartOrder(keeps_ended=True)
    for n, one in enumerate(runs, start=1):
        starts.began(one.request, n)
        starts.ended(one.outcome)
        if n % BATCH == 0 and any(cusum.add(signals) for signals in features.batches(starts.take_ended(n))):
            features, cusum, starts = DriftFeatures(), Cusum(N_COLUMNS), StartOrder(keeps_ended=True)
            yield n


def mixed(classes: list[list[Episode]], share: Callable[[int], float], n: int, seed: int) -> Iterator[Episode]:
    """Requests of the first class with probability `share`, of the second otherwise."""
    rng = random.Random(seed)
    return (rng.choice(classes[rng.random() >= share(t)]) for t in range(n))


@pytest.fixture(scope="module")
def classes() -> list[list[Episode]]:
    runs = pool()
    return [of_class(runs, "law"), of_class(runs, "sums")]


def swaps(classes: list[list[Episode]], n_seeds: int) -> list[int]:
    """Requests until a swap of 80/20 to 20/80 is noticed."""
    at, result = 2_000, []
    for seed in range(n_seeds):
        alarms = signal_alarms(mixed(classes, lambda t: 0.8 if t < at else 0.2, at + 2_000, seed))
        result.append(next((alarm - at for alarm in alarms if alarm > at), HORIZON))
    return result


@pytest.mark.slow
def test_a_swap_of_the_class_mix_is_noticed_within_500_requests(classes: list[list[Episode]]) -> None:
    assert Counter(delay <= 500 for delay in swaps(classes, 20))[True] >= 19


@pytest.mark.slow
def test_a_steady_mix_makes_no_alarm(classes: list[list[Episode]]) -> None:
    alarms = list(signal_alarms(mixed(classes, lambda t: 0.8, 60_000, 3)))
    assert exact_binomial(len(alarms), 60_000, 0.5).high <= 1 / 20_000


def test_a_mix_with_more_of_the_harmed_class_is_seen_before_its_audits_are(classes: list[list[Episode]]) -> None:
    rng = random.Random(5)
    result, calm = 0, 0
    for _ in range(200):
        n_lost = sum(rng.random() < 0.08 for _ in range(160))
        audits = {
            name: (np.arange(n) < lost).astype(np.int8) for name, n, lost in (("law", 640, 2), ("sums", 160, n_lost))
        }
        result += post_stratify(audits, {"law": 0.2, "sums": 0.8}).alarm(BUDGET) is not None
        calm += post_stratify(audits, {"law": 0.8, "sums": 0.2}).alarm(BUDGET) is None
    assert result >= 150, "160 audits of the class know its drop of 8 % to 2 points"
    assert calm >= 190


# --------------------------------------------------------------------------- tables


def main(n: int) -> None:
    """Print what the docs show."""
    for level in BASES:
        for labels in (True, False):
            n_alarms, share = false_alarms(level, 4_000_000, labels=labels)
            known = exact_binomial(n_alarms, 4_000_000, 0.95)
            print(f"{level} labels {labels}: {n_alarms} false alarms in 4,000,000 requests, one in", end=" ")
            print(f"{1 / known.high:,.0f} to {1 / known.low if known.low else float('inf'):,.0f}; {share:.1%} audited")
            for name, drift in DRIFTS.items():
                new = drifts(NewBrake, drift, level, labels=labels, n=n)
                line = f"{name}: {median(at for at, _ in new):.0f} requests, "
                line += f"{mean(loss for _, loss in new):.0f} points x requests"
                for rebased in (True, False):
                    old = drifts(lambda r: OldBrake(r, rebased=rebased), drift, level, labels=labels, n=n)  # noqa: B023
                    line += f"; before (re-based {rebased}) {median(at for at, _ in old):.0f}"
                    line += f", {mean(loss for _, loss in old):.0f}"
                print("   ", line, flush=True)
    runs = pool()
    both = [of_class(runs, "law"), of_class(runs, "sums")]
    delays = swaps(both, n)
    print(f"swap of classes: {sum(delay <= 500 for delay in delays)} of {n} within 500, median {median(delays):.0f}")
    alarms = sum(len(list(signal_alarms(mixed(both, lambda t: 0.8, 20_000, seed)))) for seed in range(n))
    known = exact_binomial(alarms, 20_000 * n, 0.95)
    print(f"steady mix: {alarms} false alarms in {20_000 * n:,} requests, at most one in {1 / known.high:,.0f}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
