"""Rows of what people arrange for themselves and each other: saved views, alert rules, and mutes of alerts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

RuleMeasure: TypeAlias = Literal["em_drop", "saved", "stopped", "fail_open", "errors", "requests"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedView:
    person: str
    name: str
    number: int  # of this person's changes of views, from 1
    query: str  # of the page of runs, as in its address; "": removed


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertRule:
    rule: str  # its name
    revision: int  # from 1
    route: str  # "": each route
    measure: RuleMeasure
    side: Literal["above", "below"]  # on which it raises an alert
    limit: float  # of the measure: requests in the window, else a fraction
    window_hours: int
    least_requests: int  # in the window; below it nothing is said, except about the requests themselves
    enabled: bool
    author: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleAlert:
    """A rule is broken on a route, or no longer."""

    rule: str
    revision: int
    route: str
    number: int  # of the rule's alerts on the route, from 1
    broken: bool  # False: it is kept again
    value: float | None  # of the measure; None: unknown
    n_requests: int  # in the window
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertMute:
    """No sink is told of such alerts until a time; they are listed all the same."""

    number: int  # of the log's mutes, from 1
    kind: str  # of alert; "": of every kind
    route: str  # "": all routes
    until_s: float  # Unix time; in the past: the mute ends
    author: str
    reason: str
