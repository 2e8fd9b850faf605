"""What becomes of requests whose rows are not kept, as rows of the log (`assurance.sampling`).

    RequestsCounted   what such requests of one route come to, within a minute of one gateway
    RatesSet          at which rates a route's live requests keep their rows from here on

Knows the shape of a row; refuses to know who draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from suffice.assurance.sampling import UnloggedRequests
from suffice.store.rows.route_event import OfNoEpisode


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestCount:
    """What one gateway counted on one route since it last said so."""

    count_id: str
    route: str  # "" when no route matched
    n_requests: int
    n_governed: int
    cells: tuple[UnloggedRequests, ...]
    senders: tuple[str, ...] = ()  # keyed hashes of API keys that were not among those told before
    audit_share: float | None = None  # the lowest at which a governed one of them was drawn; None: none was governed


@dataclass(frozen=True, slots=True)
class RequestsCounted(OfNoEpisode):
    """Requests ended of which no rows are kept."""

    kind: ClassVar[Literal["requests_counted"]] = "requests_counted"
    counted: RequestCount

    @property
    def key(self) -> str:
        """What may exist once: the count."""
        return self.counted.count_id

    @property
    def route(self) -> str | None:
        """The route's name."""
        return self.counted.route


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRates:
    """Rates, and what they were before; each a fraction, by class."""

    route: str
    number: int  # of the route's settings of rates: 1 is the first
    sample_rate: float  # the owner's, which they keep to; where it is another now they are void
    read_to_seq: int  # place in the log up to which it was read for them
    other: float  # of classes that are not named
    after: tuple[tuple[str, float], ...]  # sorted by class
    before: tuple[tuple[str, float], ...]
    reason: str
    author: str


@dataclass(frozen=True, slots=True)
class RatesSet(OfNoEpisode):
    """At which rates a route's live requests keep their rows from here on."""

    kind: ClassVar[Literal["rates_set"]] = "rates_set"
    rates: RowRates

    @property
    def key(self) -> str:
        """What may exist once: a route's rates of that number. Sorted by text they are in order."""
        return f"{self.rates.route}:{self.rates.number:09}"

    @property
    def route(self) -> str | None:
        """The route's name."""
        return self.rates.route
