"""Mixtures of levels by query class, each tested as one more level on the audits of a certificate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from suffice.arrays import Floats
from suffice.assurance.certify import certified_level
from suffice.assurance.clusters import log_wealth_by_cluster
from suffice.certification.certificate import Certificate

LevelsOf: TypeAlias = Callable[[str, int], Sequence[int]]  # that a class may get, at a level of the route


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MixtureTest:
    """A mixture loses Z_t(level of its class). Where a class may get several levels, it counts what the worst loses."""

    certificate: Certificate
    classes: Sequence[str | None]  # of the certificate's returned audits, in its order; None: such requests run in full

    def level(self, levels_of: LevelsOf) -> int:
        """The highest level of the route up to which the mixtures pass, in order."""
        counted = self.certificate.counted.copy()
        names = np.array(self.classes, dtype=np.object_)
        for name in dict.fromkeys(self.classes):
            rows = np.flatnonzero(names == name)
            own = self.certificate.counted[rows]
            for level in range(1, counted.shape[1]):
                levels = (0,) if name is None else levels_of(name, level)
                counted[rows, level] = own[:, list(levels)].max(axis=1)
        return self._passes(counted)

    def any_level(self) -> int:
        """The highest level of the route at which any mixture passes, whoever chooses it, and from whatever it knows.

        An audit counts what the worst of the levels up to this one loses, and gains nothing.
        """
        return self._passes(np.maximum.accumulate(self.certificate.counted, axis=1))

    def _passes(self, counted: Floats) -> int:
        known = self.certificate
        wealth = log_wealth_by_cluster(counted, known.weight, known.clusters, max_em_drop=known.budget)
        return certified_level(wealth, delta=known.delta)
