"""What the tuner is told and what it says: its bounds, the draws it hands out, and the proposals it makes.

Records without logic, apart from what makes no sense together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from suffice.learn.arms import TunedArm, check_arms
from suffice.learn.gain import GainComparison
from suffice.learn.price import PriceBounds

OFF_BELOW_REQUESTS: Final = 20_000  # measured: with 10,000 the evidence costs what it brings (docs/reference/tuner.md)

Refusal = Literal[
    "cooling_down",  # too soon after the last proposal
    "day_is_full",  # as many proposals as a day may have
    "none_better",  # no certified arm is worth more than those in force
    "not_shown",  # off-policy evaluation does not say that the change is one for the better
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningBounds:
    """The bounds within which a route's arms are tuned."""

    arms: tuple[TunedArm, ...]  # 0 is the full run, the others in order from the safe end
    classes: tuple[str, ...]  # query classes that may have an arm of their own; others run in full
    max_em_drop: float = 0.02  # of every class, a fraction
    confidence: float = 0.95  # that no class loses more
    expected_requests: int = 0  # over which a change is expected to last; below OFF_BELOW_REQUESTS: off
    burst_share: float = 1.0  # of requests that are audits while evidence pays
    watch_share: float = 0.03  # of requests that are audits while it does not
    price: PriceBounds = field(default_factory=PriceBounds)
    latency_price: float = 0.0  # EM that a second is worth, a fraction
    explore_floor: float = 0.02  # least share of live requests of an arm in play
    explore_ceiling: float = 0.15  # largest share of live requests that do not get the arm in force
    explore_sharpness: float = 4.0  # how much better arms are preferred in exploring; 0: all alike
    least_kept: float = 0.1  # arms that keep a smaller part of the tokens are never shown to a client
    largest_step: float = 0.6  # part of a class's full runs' tokens that one proposal may take off it
    least_gain: float = 0.002  # EM value that a change of arm must promise, a fraction
    window: int = 1_500  # audits of a class and arm that count
    half_life: float = 4_000.0  # draws after which a cost counts half
    least_audits: int = 200  # of a class and arm before it may be in play
    key_cap: float = 0.05  # part of the labels that one untrusted key may account for
    cool_down_s: float = 3_600.0  # between two proposals
    proposals_a_day: int = 6

    def __post_init__(self) -> None:
        check_arms(self.arms)
        if not self.classes or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes: got {self.classes}; one or more, each once")
        for name in ("max_em_drop", "confidence"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}; above 0 and below 1")
        if not 0 <= self.explore_floor <= self.explore_ceiling < 1 or self.explore_sharpness < 0:
            raise ValueError("need 0 <= explore_floor <= explore_ceiling < 1, explore_sharpness >= 0")
        if not 0 <= self.least_kept < 1 or not 0 < self.largest_step <= 1 or not 0 <= self.key_cap <= 1:
            raise ValueError("need 0 <= least_kept < 1, 0 < largest_step <= 1, 0 <= key_cap <= 1")
        if min(self.window, self.least_audits, self.proposals_a_day) < 1:
            raise ValueError("window, least_audits, proposals_a_day: need 1 or more")
        if self.half_life <= 0 or min(self.cool_down_s, self.expected_requests, self.least_gain) < 0:
            raise ValueError("need half_life > 0, and cool_down_s, expected_requests and least_gain of 0 or more")
        if not 0 <= self.watch_share <= self.burst_share <= 1:
            raise ValueError("watch_share, burst_share: need 0 <= watch <= burst <= 1")

    @property
    def lasting_requests(self) -> int:
        """Requests over which evidence may pay back; 0: too few for it ever to, so the tuner is off."""
        return self.expected_requests if self.expected_requests >= OFF_BELOW_REQUESTS else 0

    @property
    def cell_delta(self) -> float:
        """Chance of a false certificate that one class and arm may take: all of them together keep 1 - confidence."""
        return (1 - self.confidence) / (len(self.classes) * (len(self.arms) - 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningDraw:
    """Which arm a request gets, with the odds under which it was drawn."""

    query_class: str
    arm: int
    odds: tuple[float, ...]  # of every arm; they sum to 1

    @property
    def propensity(self) -> float:
        """P(this arm), in (0, 1]."""
        return self.odds[self.arm]


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningProposal:
    """A change that the tuner would make. It is in force only after somebody accepted it."""

    number: int  # of this tuner's proposals, from 1
    before: Mapping[str, int]  # arm in force by class: what this follows, and is void without
    after: Mapping[str, int]
    log_e: Mapping[str, float]  # of each changed class: evidence that its arm keeps the budget
    n_audits: Mapping[str, int]  # behind it
    change: GainComparison  # what it is worth by off-policy evaluation
    price: float  # EM that the tokens of a mean full run were worth
    epoch: int  # how often evidence had been forgotten; another one voids this
    at_s: float
    reason: str  # one sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdrawal:
    """An arm that was in force and lost its certificate: its class fell back to a safer one at once."""

    query_class: str
    arm: int
    to: int
    at_s: float
    reason: str  # one sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """What one look at the evidence came to."""

    proposal: TuningProposal | None = None
    refusal: Refusal | None = None  # why there is none
    withdrawn: tuple[Withdrawal, ...] = ()
    in_play: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # arms that clients may get, by class
