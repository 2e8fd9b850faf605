"""Which level a frontier is read at: the last of an unbroken run from the safe end that keeps a target with a margin.

Knows outcomes by level; refuses to know models. A pick is no certificate.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]


def pick_level(z: Floats, weight: Floats, target: float) -> int:
    """Number of the last level, counted from the safe end, whose drop is a standard error below the target.

    A level that has hurt nobody yet has an error, too: as if one of its runs had been lost.

    z       EM drop of each run at each level, level 0 never stops, shape (n, M)
    weight  what each run stands for, shape (n,)
    target  EM drop, a fraction
    """
    if not len(z) or not weight.sum() > 0:
        return 0
    drop = weight @ z / weight.sum()
    error = np.sqrt(((weight[:, None] * (z - drop)) ** 2).sum(axis=0)) / weight.sum()
    least = np.sqrt((weight**2).sum()) / weight.sum() / np.sqrt(len(z))
    failed = np.flatnonzero(drop[1:] + np.maximum(error[1:], least) > target)
    return int(failed[0]) if len(failed) else z.shape[1] - 1
