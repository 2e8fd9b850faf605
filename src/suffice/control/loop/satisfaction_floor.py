"""Lowers the level, as a whole or of single query classes, to where ratings are estimated to meet the owner's floor.

A move down needs proof that stopped runs are rated worse than audits, and goes straight to the estimated level; a move
up needs proof that they are rated above the floor. Ceilings end with the epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from suffice.assurance.satisfaction import Floats
from suffice.control.evidence.audits import Audit
from suffice.control.evidence.feedback import Ratings
from suffice.learn.audits import Bools
from suffice.learn.certifier import Certifier
from suffice.types import Publication


@dataclass(slots=True)
class SatisfactionFloor:
    """The ceilings that ratings put on the levels of one epoch.

    ceiling  the highest level of the route; None: no limit
    classes  the highest level of a query class, for those held below the route
    """

    ratings: Ratings
    ceiling: int | None = None
    classes: dict[str, int] = field(default_factory=dict)

    def follow(self, made: Publication) -> None:
        """Take the ceilings from a publication of the log: they depend on a floor that the owner may have changed."""
        if (made.ceiling, made.class_ceilings) != (self.ceiling, self.published):
            self._set(made.ceiling, dict(made.class_ceilings))

    @property
    def published(self) -> tuple[tuple[str, int], ...]:
        return tuple(sorted(self.classes.items()))

    def lift(self) -> str:
        """Drop all ceilings, because the owner has no floor any more; return the reason, or ""."""
        if self.ceiling is None and not self.classes:
            return ""
        self._set(None, {})
        return "ratings no longer limit the level"

    def look(self, level: int, held: Mapping[str, int], certifier: Certifier, audits: Sequence[Audit]) -> str:
        """Move the ceilings where ratings require or allow it; return the reason, or "".

        level  active, of the route
        held   active levels of the classes below it
        """
        outcomes = certifier.outcomes()
        if not level or outcomes is None or not self.ratings.is_conclusive:
            return ""
        names = np.array([audit.query_class for audit in audits])[outcomes[0]]
        n_lost = _LostAudits(names, outcomes[1][outcomes[0]] > 0)
        return self._lower(level, held, n_lost) or self._rise(level, held, n_lost)

    def _lower(self, level: int, held: Mapping[str, int], n_lost: _LostAudits) -> str:
        pooled, by_class = self.ratings.test, self.ratings.by_class
        asking = {name: test.step_down_reason for name, test in by_class.items() if test.step_down_reason is not None}
        now = {name: held.get(name, level) for name in by_class}
        ceiling, targets = self.ceiling, dict[str, int]()
        for name, test in by_class.items():
            most = max(0, now[name] - (name in asking))
            if test.is_telling or name in asking:
                targets[name] = min(most, test.satisfactory_level(n_lost.of(name), served=now[name], most=now[name]))
        if pooled is None or pooled.step_down_reason is None:
            lowered = {name: targets[name] for name in asking if targets[name] < now[name]}
        else:
            most = min(level - 1, pooled.satisfactory_level(n_lost.pooled, served=level, most=level))
            targets = {name: targets.get(name, min(most, now[name])) for name in by_class}
            lowered = {name: to for name, to in targets.items() if to < now[name]}
            if not lowered or len(lowered) == len(targets):  # no class may keep its level
                ceiling = max([most, *lowered.values()])
        if ceiling == self.ceiling and not lowered:
            return ""
        why = self.ratings.asks or "; ".join(f"class {name or 'none'}: {asking[name]}" for name in lowered)
        self._set(ceiling, self.classes | {name: to for name, to in lowered.items() if ceiling is None or to < ceiling})
        return f"{why}: {self._sentence}"

    def _rise(self, level: int, held: Mapping[str, int], n_lost: _LostAudits) -> str:
        """Raise what is proved to be rated above the floor half of the way to its estimated level.

        The estimate is made when ratings happen to look good, so the whole way would often be too far.
        """
        pooled, ceiling, classes = self.ratings.test, self.ceiling, dict(self.classes)
        if pooled is not None and pooled.may_rise and ceiling == level:
            most = min(n_lost.n_levels - 1, 2 * level)
            ceiling = _halfway(level, pooled.satisfactory_level(n_lost.pooled, served=level, most=most))
        for name, now in self.classes.items():
            test = self.ratings.by_class.get(name)
            if test is not None and test.may_rise and held.get(name, level) == now:
                highest = min(level, 2 * now)
                classes[name] = _halfway(now, test.satisfactory_level(n_lost.of(name), served=now, most=highest))
        if (ceiling, classes) == (self.ceiling, self.classes):
            return ""
        self._set(ceiling, classes)
        return f"stopped runs are proved to be rated above the floor: {self._sentence}"

    @property
    def _sentence(self) -> str:
        parts = [f"class {name or 'none'} level {to}" for name, to in self.published]
        return f"{', '.join([*([] if self.ceiling is None else [f'level {self.ceiling}']), *parts])} at most"

    def _set(self, ceiling: int | None, classes: dict[str, int]) -> None:
        moved = {name for name, to in classes.items() if self.classes.get(name) != to}
        self.ratings.restart(moved if ceiling == self.ceiling else None)
        self.ceiling, self.classes = ceiling, classes


def _halfway(now: int, estimate: int) -> int:
    return max(now, (now + estimate + 1) // 2)


@dataclass(frozen=True, slots=True, eq=False)
class _LostAudits:
    """The audits whose right answer each level loses."""

    names: NDArray[np.str_]  # class of each audit, shape (N,)
    lost: Bools  # (N, M)

    @property
    def n_levels(self) -> int:
        return int(self.lost.shape[1])

    @property
    def pooled(self) -> Floats:
        return np.asarray(self.lost.sum(axis=0), dtype=np.float64)

    def of(self, query_class: str) -> Floats:
        return np.asarray(self.lost[self.names == query_class].sum(axis=0), dtype=np.float64)
