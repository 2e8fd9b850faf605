"""The certificate of one look, which level stays active on an earlier one, and how fast a level may move."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Final

import numpy as np

from suffice.arrays import Bools, Floats, Small
from suffice.assurance.certify import Window, certified_level

SWING: Final = 5  # levels; a larger change is a swing, and …
CALM: Final = 5_000  # requests after one, a rise has at most SWING levels at a look


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PendingAudits:
    at: Floats  # (K,): start, in the unit of `AuditRuns.at`
    share: Floats  # (K,): P(audit) at the draw

    def lost(self, n_levels: int) -> Small:
        """Z, shape (K, M): lost at every level but 0."""
        z = np.ones((len(self.at), n_levels), dtype=np.int8)
        z[:, :1] = 0
        return z


def pending_audits(began: Iterable[tuple[int, float]]) -> PendingAudits:
    """Build from (number of the request, share at its draw) pairs."""
    at, share = np.array(list(began), dtype=np.float64).reshape(-1, 2).T
    return PendingAudits(at=at, share=share)


NO_PENDING: Final = pending_audits(())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Certificate:
    level: int  # last of the unbroken run of levels that pass
    log_e: Floats  # (M,): log wealth of each level
    z: Small  # (n, M): of each audit, including pending ones
    counted: Floats  # (n, M): what the wealth counts: `z`, or its mean over the orders of a vote's samples
    in_all_orders: bool  # it is that mean
    weight: Floats  # (n,): c/rho
    inside: Bools  # (N,): which audits of the epoch these are; pending ones follow them in `z`
    window: Window | None  # None: no audit yet
    until: float  # the claim covers requests of the window that began before
    held: int | None = None  # level that stays active on an earlier claim; None: the claim is the latest

    @property
    def allowed(self) -> int:
        return self.level if self.held is None else self.held

    @property
    def n_pending(self) -> int:
        return len(self.z) - int(self.inside.sum())


def best_claim(claims: Sequence[Certificate]) -> Certificate:
    return max(claims, key=lambda one: (one.level, float(one.log_e[one.level])))


def hold_level(active: int, earlier: Certificate, claims: Sequence[Certificate]) -> Certificate | None:
    """Return the earlier claim if the active level, or a lower one, stays on it; None: a later claim does as well.

    It is true whatever later audits show, but does not speak of the requests since. A level is held on it only while
    all audits so far still speak for that level: its wealth is at least 1.
    """
    supported = max(certified_level(one.log_e, delta=1.0) for one in claims)
    held = min(earlier.level, active, supported)
    return replace(earlier, held=held) if held > max(one.level for one in claims) else None


@dataclass(slots=True)
class Swings:
    """Moderates rises of the level, whatever a forecast caps it to. A fall is never delayed."""

    last_at: float = -inf  # request of the latest change of more than SWING levels
    level: int = 0  # the last moderated one

    def moderate(self, certified: int, now: float) -> int:
        """The level to activate: soon after a swing it rises by SWING at most."""
        if certified > self.level + SWING and now < self.last_at + CALM:
            certified = self.level + SWING
        elif abs(certified - self.level) > SWING:
            self.last_at = now
        self.level = certified
        return certified

    def delays(self, other: int, now: float) -> bool:
        """Whether a refit would lower the level by a swing too soon after another one."""
        return other < self.level - SWING and now < self.last_at + CALM
