"""What a route looks like at one look: its accounts, where its EM drop and its EM are heading, and which alerts stand.

    ledger.Account, forecast.Forecast ──▶ Outlook ──▶ status, metrics
                                          Alert   ──▶ somebody who may do something before the breach

Plain data, written by the job `monitor`. It steers nothing and certifies nothing. Knows numbers with their intervals;
refuses to know how they came about and how they are shown.
"""

from __future__ import annotations

from dataclasses import dataclass

from suffice.assurance.forecast import Forecast, Of
from suffice.assurance.ledger import Account
from suffice.assurance.satisfaction_effect import SATISFACTION, SatisfactionEffect


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """One route at one look."""

    route: str
    at: int  # requests of the route so far
    epoch: int  # 0: no control loop has begun with it
    since: int  # requests of the route when the accounts began
    confidence: float  # of each interval by itself, in (0, 1)
    cap_tokens: float | None  # that a run can count with in the accounts; None: they have not begun
    accounts: tuple[Account, ...] = ()
    drop: Forecast | None = None  # of the EM drop at the deployed level; None: too little is known
    em: Forecast | None = None  # of the EM of delivered answers; None: no critical EM, or too little is known
    alerts: tuple[Of, ...] = ()  # that stand
    author: str = ""
    likings: tuple[
        SatisfactionEffect, ...
    ] = ()  # what people say of the same runs, by measure; (): nobody said anything

    @property
    def whole(self) -> Account | None:
        """The account of the whole route; None: it has not begun."""
        return next((one for one in self.accounts if one.query_class is None and one.version is None), None)

    @property
    def satisfaction(self) -> SatisfactionEffect | None:
        """What people say of the whole route: ratings, thumbs and surveys; None: nobody said anything."""
        return next((one for one in self.whole_likings if one.measure == SATISFACTION), None)

    @property
    def whole_likings(self) -> tuple[SatisfactionEffect, ...]:
        """Each measure of the whole route."""
        return tuple(one for one in self.likings if one.query_class is None and one.version is None)

    @property
    def classes(self) -> tuple[Account, ...]:
        """The accounts by class, all versions together; () where there is but one."""
        found = tuple(one for one in self.accounts if one.query_class is not None and one.version is None)
        return found if len(found) > 1 else ()

    @property
    def versions(self) -> tuple[Account, ...]:
        """The accounts by version, all classes together."""
        return tuple(one for one in self.accounts if one.query_class is None and one.version is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """A limit will be crossed within 3,000 requests, as far as the forecast can tell."""

    route: str
    epoch: int
    at: int  # requests of the route when it was raised
    of: Of
    limit: float  # a fraction: the budget, or the critical EM
    expected: int | None  # number of the request at which the forecast crosses; None: only its worse end does
    reason: str  # the forecast's sentence
    author: str = ""
