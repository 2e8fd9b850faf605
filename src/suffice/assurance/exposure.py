"""Exposure by proof: a level may act on a share of the requests before it is proved for all of them.

A level that stops each request with probability s loses s times its own drop. So it keeps the budget eps on the share s
exactly where its drop is below eps/s, which takes fewer audits to prove, and the requests on which it does not act are
audits. Each share has a part of delta, so that all of their claims hold together (a union bound), and the pair of level
and share that saves most among those proved acts. Proof: docs/reference/assurance.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from suffice.arrays import Floats

MOST_DROP: Final = 0.99  # that is tested: every level keeps a larger one, almost
LOOK_PERIOD: Final = 20  # requests between two looks at a start by share, at most
WHILE_LEARNING: Final = 0.5  # share of the requests, at most, until there are as many audits as in a burst


@dataclass(frozen=True, slots=True)
class Exposure:
    share: float  # of the requests on which a level acts, (0, 1]; 1: on all but the usual audits
    delta_part: float  # of delta for the claims at this share, (0, 1]

    def budget(self, max_em_drop: float | Floats, charge: float | Floats) -> Floats:
        """The drop to refute, for all levels or for each; 0 or less: none can be."""
        return np.asarray(np.minimum(MOST_DROP, max_em_drop / self.share - charge))

    def audit_share(self, usual: float) -> float:
        return max(usual, 1 - self.share)


def describe_part(share: float) -> str:
    """A share of the requests on which a level acts, as words: half of the requests."""
    return f"{_PARTS.get(share, f'{100 * share:g} %')} of the requests"


_PARTS: Final = {0.25: "a quarter", 0.5: "half", 0.75: "three quarters"}
ON_ALL: Final = Exposure(1.0, 1.0)  # the only one of a route that begins with a burst of full runs
EXPOSURES: Final = (Exposure(0.25, 0.1), Exposure(0.5, 0.1), Exposure(0.75, 0.1), Exposure(1.0, 0.7))
