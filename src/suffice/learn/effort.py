"""Arms: settings that a recorded audit cannot replay, since they change what the model does; from paired calls.

Arms are ordered from the safe end; arm 0 is the full run. They are accepted in order until one fails, by the e-process
of `assurance.paired`. The audit's client gets the full answer; both calls are paid for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from suffice.assurance.certify import Counts, certified_level, count_outcomes, weighted_log_wealth
from suffice.assurance.paired import BETS, PairedView, Repeats, pairs_to_certify, upper_drop
from suffice.learn.audits import Small

WINDOW: Final = 2_000  # latest pairs of an arm that count


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedAudit:
    arm: int  # of the second call; 0: a second full run
    disagrees: bool  # the answers differ
    z: int | None  # full right - arm right; None: they differ without a label
    due: float  # when a missing label counts as a loss, in any unit of time
    weight: float = 1.0  # c/rho of its audit, see `assurance.windows`
    full_tokens: int = 0
    arm_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CertifiedArms:
    active: int  # the most aggressive certified arm; 0: the full run
    views: tuple[PairedView, ...]  # for each arm after the full run
    log_e: tuple[float, ...]  # against "loses the budget or more", likewise
    repeats: Repeats


def judge_pair(
    full: str | None, arm: str | None, gold: str | None, match: Callable[[str | None, str], bool]
) -> tuple[bool, int | None]:
    """Do the normalised answers differ, and what did the arm lose (None: unknown)? No answer is wrong."""
    if full == arm:
        return False, 0
    if gold is None:
        return True, None
    return True, int(full is not None and match(full, gold)) - int(arm is not None and match(arm, gold))


def certify_arms(
    pairs: Sequence[PairedAudit], *, n_arms: int, max_em_drop: float, delta: float, now: float, window: int = WINDOW
) -> CertifiedArms:
    """Certify arms from pairs, oldest first; the latest `window` of each arm count.

    A pair counts once its label is due, whether it differs or not; a difference without a label by then is a loss.
    """
    due = [pair for pair in pairs if pair.due <= now]
    of_arm = [[pair for pair in due if pair.arm == arm][-window:] for arm in range(n_arms)]
    z_of_arm = [
        np.array([1 if pair.z is None else pair.z for pair in some], dtype=np.int8).reshape(-1, 1) for some in of_arm
    ]
    repeats = Repeats(n=len(of_arm[0]), n_disagree=sum(pair.disagrees for pair in of_arm[0]))
    each = [count_outcomes(z) for z in z_of_arm]
    counts = Counts(*(np.concatenate([getattr(one, name) for one in each]) for name in ("gained", "same", "lost")))
    weights = [np.array([pair.weight for pair in some]) for some in of_arm]
    wealth = np.concatenate(
        [
            weighted_log_wealth(z, weight, max_em_drop=max_em_drop, bets=BETS)
            for z, weight in zip(z_of_arm, weights, strict=True)
        ]
    )
    highs = upper_drop(counts, delta=delta).tolist()
    return CertifiedArms(
        active=certified_level(wealth, delta=delta),
        views=tuple(_view(of_arm[arm], z_of_arm[arm], highs[arm], repeats) for arm in range(1, n_arms)),
        log_e=tuple(wealth[1:].tolist()),
        repeats=repeats,
    )


def pairs_missing(certified: CertifiedArms, *, max_em_drop: float, delta: float) -> int | None:
    """In the proportions so far; 0: all arms are certified; None: unknown."""
    if certified.active >= len(certified.views):
        return 0
    view = certified.views[certified.active]
    if not view.n:
        return None
    try:
        needed = pairs_to_certify(view.drop, view.n_gained / view.n, max_em_drop=max_em_drop, delta=delta)
    except ValueError:
        return None
    return max(1, needed - view.n)


def _view(pairs: Sequence[PairedAudit], z: Small, high: float, repeats: Repeats) -> PairedView:
    n, full, n_disagree = len(pairs), sum(pair.full_tokens for pair in pairs), sum(pair.disagrees for pair in pairs)
    return PairedView(
        n=n,
        drop=int(z.sum()) / n if n else float("nan"),
        drop_high=high,
        disagreement=n_disagree / n if n else float("nan"),
        repeats=repeats,
        saved_share=1 - sum(pair.arm_tokens for pair in pairs) / full if full else None,
        n_disagree=n_disagree,
        n_gained=int((z < 0).sum()),
        n_lost=int((z > 0).sum()),
    )
