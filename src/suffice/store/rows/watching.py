"""Rows of gateways about the watchers of their routes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchLapse:
    """What is certified on a route does not act any more at a gateway, because nobody watches it; or acts again."""

    route: str
    gateway: str  # drawn for each process
    number: int  # of this gateway's rows, from 1
    lapsed: bool  # False: it acts again
    reason: str
    n_requests: int  # that this gateway has served as certified since the last look that it saw
