"""What people's ratings say of stopping on one route, read from the log.

    ends of runs, ratings ──▶ Ratings ──▶ why the next safer level is due, or None

Only runs that the lottery could have made the other kind, and in which a certified level asked for a stop: audits went
on from there, the others stopped, where nothing failed. Both are alike in all but that, for what picks them lies before
it; how a run ended lies behind, and picks nothing. Turns of one conversation drew one lot and are one witness, by its
first rating. A key that may ask for answers speaks for a share of the runs at most, as `assurance.label_precedence` has
it.

Knows records of the log; refuses to know levels. Whoever rates can only make a route safer, never bolder.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import floor
from typing import Final

from suffice.assurance.label_precedence import INFERENCE_KEY, MAX_SHARE
from suffice.assurance.sampling import weight_of
from suffice.assurance.satisfaction import RatedRun, SatisfactionTest, SatisfactionVerdict, satisfaction_of
from suffice.settings import Route
from suffice.types import Episode, Feedback

MOST_RUNS: Final = 50_000  # that wait for a rating


@dataclass(slots=True, kw_only=True)
class Ratings:
    """Ratings since the level was last lowered, or since the epoch began.

    floor  as in the settings; None: ratings do not steer, and nothing is kept
    delta  in (0, 1): how likely stopping that changes nothing may ever be held to change something
    """

    floor: float | None
    delta: float
    _seen: SatisfactionTest | None = field(init=False)
    _runs: dict[str, tuple[bool, float]] = field(default_factory=dict)  # audit, runs that it stands for
    _n_runs: int = 0
    _spoken: Counter[str] = field(default_factory=Counter)  # ratings that counted, by capped key

    def __post_init__(self) -> None:
        """Begin with no rating."""
        self.begin_anew()

    @classmethod
    def of(cls, route: Route) -> Ratings:
        """What a route's owner asks of ratings."""
        return cls(floor=route.min_satisfaction, delta=1 - route.confidence)

    @property
    def asks(self) -> str | None:
        """Why the next safer level is due."""
        return None if self._seen is None else self._seen.asks

    @property
    def verdict(self) -> SatisfactionVerdict | None:
        """What the ratings so far say; None: nobody has asked."""
        return None if self._seen is None else self._seen.verdict()

    def begin_anew(self) -> None:
        """Forget all: what people liked less was another level's."""
        self._runs.clear()
        self._n_runs = 0
        self._spoken.clear()
        self._seen = None if self.floor is None else SatisfactionTest(min_satisfaction=self.floor, delta=self.delta)

    def ended(self, episode: Episode) -> None:
        """Take the end of a run in."""
        request, outcome = episode.request, episode.outcome
        proved = request.certified or request.promise == "budgeted"
        drawn = request.mode == "enforce" and proved and 0 < request.propensity < 1 and request.delivery == 1
        if self._seen is None or not drawn or outcome.stop_step is None:
            return
        self._n_runs += 1
        self._runs[request.episode_id] = request.audit, weight_of(request, outcome)
        if len(self._runs) > MOST_RUNS:
            del self._runs[next(iter(self._runs))]

    def said(self, episode_id: str, given: Feedback) -> None:
        """Take what somebody said of a run in; only the first rating counts."""
        satisfaction = satisfaction_of(given)
        if self._seen is None or satisfaction is None or episode_id not in self._runs:
            return
        if given.door == INFERENCE_KEY:
            if self._spoken[given.sender] >= max(1, floor(MAX_SHARE * self._n_runs)):
                return
            self._spoken[given.sender] += 1
        audit, stands_for = self._runs.pop(episode_id)
        self._seen.add(RatedRun(audit=audit, satisfaction=satisfaction, stands_for=stands_for))
