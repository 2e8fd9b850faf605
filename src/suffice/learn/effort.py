"""Effort and thinking budgets where the upstream cannot be cut: certified by asking twice on audits.

    audit ──▶ rollout.effects ──▶ one more call: an arm, or a second full run ──▶ Pair ──▶ certify_arms ──▶ arm in force

The audit's client gets the full answer; both calls are paid for. Arms stand in order from the safe end and are accepted
in this order until one fails, by the e-process of `assurance.paired`.

Knows pairs and arms; refuses to know calls, clocks and stores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from suffice.assurance.certify import Counts, certified_level, count_outcomes, weighted_log_wealth
from suffice.assurance.paired import BETS, PairedView, Repeats, pairs_to_certify, upper_drop

WINDOW: Final = 2_000  # latest pairs of an arm that count


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedAudit:
    """One audit that was asked twice."""

    arm: int  # of the second call; 0: a second full run
    disagrees: bool  # do the two answers differ?
    z: int | None  # full right - arm right; None: they differ, and no label says who is right
    due: float  # when a label that is still missing counts as a loss, in any unit of time
    weight: float = 1.0  # c/rho of its audit, see `assurance.windows`
    full_tokens: int = 0
    arm_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CertifiedArms:
    """What is proved of a route's arms."""

    in_force: int  # the most aggressive arm that is certified; 0: the full run
    views: tuple[PairedView, ...]  # one for each arm behind the full run
    log_e: tuple[float, ...]  # evidence against "loses the budget or more", likewise
    repeats: Repeats


def judge_pair(
    full: str | None, arm: str | None, gold: str | None, match: Callable[[str | None, str], bool]
) -> tuple[bool, int | None]:
    """Do the two answers differ, and what did the arm lose? Answers as the scorer normalises them.

    Two equal answers lose nothing, whatever is right; so do two that are missing. None is no answer and is wrong.
    gold  None: nobody knows; then the loss is None where the answers differ
    """
    if full == arm:
        return False, 0
    if gold is None:
        return True, None
    return True, int(full is not None and match(full, gold)) - int(arm is not None and match(arm, gold))


def certify_arms(
    pairs: Sequence[PairedAudit], *, n_arms: int, max_em_drop: float, delta: float, now: float, window: int = WINDOW
) -> CertifiedArms:
    """What the pairs prove, in any order of arms; the latest `window` of each arm count.

    A pair counts once its label is due, whether it differs or not: to count the equal ones at once and wait for the
    others would be optimistic. One that differs and has no label by then is a loss.

    pairs  oldest first
    delta  probability of ever accepting an arm that breaks the budget, in (0, 1)
    now    in the unit of `PairedAudit.due`
    """
    due = [pair for pair in pairs if pair.due <= now]
    of_arm = [[pair for pair in due if pair.arm == arm][-window:] for arm in range(n_arms)]
    repeats = Repeats(
        n=len(of_arm[0]),
        n_disagree=sum(pair.disagrees for pair in of_arm[0]),
        n_flips=sum(pair.z not in (0, None) for pair in of_arm[0]),
    )
    counts = _counts([[_loss(pair) for pair in some] for some in of_arm])
    wealth = np.array([_wealth(some, max_em_drop) for some in of_arm])
    highs = upper_drop(counts, delta=delta)
    return CertifiedArms(
        in_force=certified_level(wealth, delta=delta),
        views=tuple(_view(of_arm[arm], float(highs[arm]), repeats) for arm in range(1, n_arms)),
        log_e=tuple(wealth[1:].tolist()),
        repeats=repeats,
    )


def pairs_missing(found: CertifiedArms, *, max_em_drop: float, delta: float) -> int | None:
    """Pairs until the next arm is certified, if they go on to show what those so far have shown.

    0 where the last arm is certified; None where no number would do, or there is no pair to go by.
    """
    if found.in_force >= len(found.views):
        return 0
    view = found.views[found.in_force]
    if not view.n:
        return None
    try:
        needed = pairs_to_certify(view.drop, view.n_gained / view.n, max_em_drop=max_em_drop, delta=delta)
    except ValueError:
        return None
    return max(1, needed - view.n)


def _loss(pair: PairedAudit) -> int:
    return 1 if pair.z is None else pair.z


def _wealth(pairs: Sequence[PairedAudit], max_em_drop: float) -> float:
    z = np.array([_loss(pair) for pair in pairs], dtype=np.int8).reshape(-1, 1)
    weight = np.array([pair.weight for pair in pairs])
    return float(weighted_log_wealth(z, weight, max_em_drop=max_em_drop, bets=BETS)[0])


def _counts(z: Sequence[Sequence[int]]) -> Counts:
    each = [count_outcomes(np.array(some, dtype=np.int8).reshape(-1, 1)) for some in z]
    return Counts(*(np.concatenate([getattr(one, name) for one in each]) for name in ("gained", "same", "lost")))


def _view(pairs: Sequence[PairedAudit], high: float, repeats: Repeats) -> PairedView:
    n, full = len(pairs), sum(pair.full_tokens for pair in pairs)
    return PairedView(
        n=n,
        drop=sum(_loss(pair) for pair in pairs) / n if n else float("nan"),
        drop_high=high,
        disagreement=sum(pair.disagrees for pair in pairs) / n if n else float("nan"),
        repeats=repeats,
        saved_share=1 - sum(pair.arm_tokens for pair in pairs) / full if full else None,
        n_disagree=sum(pair.disagrees for pair in pairs),
        n_gained=sum(_loss(pair) < 0 for pair in pairs),
        n_lost=sum(_loss(pair) > 0 for pair in pairs),
    )
