"""The ledger: EM, tokens and saving of full and stopped runs, per route, class and version.

Every interval is a confidence sequence (`bounds`) for the average so far, wider than those of `estimate`, which are for
one look. It only reports; the certificate decides.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from suffice.assurance.bounds import mean_above, mean_below, ratio_between, watch, watch_pairs, weighted_between
from suffice.assurance.estimate import IntervalEstimate
from suffice.assurance.guarantee import KNOWN_AUDITS
from suffice.assurance.runs import RunNumbers

METHOD: Final = "valid at every look, empirical Bernstein"


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    query_class: str  # "": none
    version: str  # of the policy
    run: RunNumbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    route: str
    query_class: str | None  # None: all classes
    version: str | None  # None: all versions
    n_runs: int  # including those without rows, by the weights of the others
    n_audits: int  # full runs whose stop's answer is known
    n_pending: int  # of them: disagreements without a label
    n_cut: int  # runs counted with the cap instead of their tokens
    em_full: IntervalEstimate | None
    em_stopped: IntervalEstimate | None  # not comparable with `em_full`: stopped runs are easier
    em_drop: IntervalEstimate | None  # over audits, each at the level deployed at its time
    tokens_full: IntervalEstimate | None  # spent per run
    tokens_live: IntervalEstimate | None  # per enforced run that is no audit, stopped or not
    saving: IntervalEstimate | None  # 1 - tokens with the stop / tokens in full, over the same audits

    @property
    def known(self) -> bool:
        return self.n_audits >= KNOWN_AUDITS


def accounts(
    route: str, entries: Iterable[LedgerEntry], *, cap_tokens: float, confidence: float = 0.95
) -> tuple[Account, ...]:
    """Book a route's runs as a whole, by version, by class, and by class and version.

    entries     in the log's order; intervals depend on it
    cap_tokens  most that a run can spend: the limit of the upstream or the client, known beforehand
    confidence  of each interval by itself, in (0, 1)
    """
    groups = defaultdict[tuple[str | None, str | None], list[RunNumbers]](list)
    for entry in entries:
        for query_class in (None, entry.query_class):
            for version in (None, entry.version):
                groups[query_class, version].append(entry.run)
    order = sorted(groups, key=lambda at: (at[0] is not None, at[0] or "", at[1] is not None, at[1] or ""))
    return tuple(_account(route, *at, groups[at], cap_tokens, confidence) for at in order)


def _account(
    route: str,
    query_class: str | None,
    version: str | None,
    runs: Sequence[RunNumbers],
    cap_tokens: float,
    confidence: float,
) -> Account:
    full = [run for run in runs if run.full]
    stopped = [run for run in runs if run.stopped]
    telling = [run for run in full if run.disagrees is not None]
    live = [run for run in runs if run.enforce and not run.audit]
    return Account(
        route=route,
        query_class=query_class,
        version=version,
        n_runs=round(sum(run.sampling_weight for run in runs)),
        n_audits=len(telling),
        n_pending=sum(run.drop is None and run.disagrees is True for run in telling),
        n_cut=sum(run.spent is not None and run.spent > cap_tokens for run in runs),
        em_full=_em(full, confidence),
        em_stopped=_em(stopped, confidence),
        em_drop=_drop(telling, confidence),
        tokens_full=_tokens(full, cap_tokens, confidence),
        tokens_live=_tokens(live, cap_tokens, confidence),
        saving=_saving(full, cap_tokens, confidence),
    )


def _em(runs: Sequence[RunNumbers], confidence: float) -> IntervalEstimate | None:
    marked = [(run, float(run.correct)) for run in runs if run.correct is not None]
    n_left_out = len(runs) - len(marked)
    note = f"{n_left_out} runs without a label are left out" if n_left_out else None
    return _mean(marked, confidence, high=1.0, note=note)


def _tokens(runs: Sequence[RunNumbers], cap_tokens: float, confidence: float) -> IntervalEstimate | None:
    counted = [(run, min(float(run.spent), cap_tokens)) for run in runs if run.spent is not None]
    return _mean(counted, confidence, high=cap_tokens)


def _mean(
    values: Sequence[tuple[RunNumbers, float]], confidence: float, *, high: float, note: str | None = None
) -> IntervalEstimate | None:
    if not values:
        return None
    weights = np.array([run.sampling_weight for run, _ in values], dtype=np.float64)
    # The settings put a floor under the rates, so the largest weight is known beforehand.
    mean, interval = weighted_between(
        np.array([value for _, value in values]), weights, confidence, most_weight=float(weights.max()), high=high
    )
    return IntervalEstimate(value=mean, low=interval.low, high=interval.high, n=len(values), method=METHOD, note=note)


def _drop(audits: Sequence[RunNumbers], confidence: float) -> IntervalEstimate | None:
    """Count an unlabelled disagreement as lost, and as gained for the lower end."""
    if not audits:
        return None
    worst, best = (
        np.array([run.drop if run.drop is not None else pending * bool(run.disagrees) for run in audits], np.float64)
        for pending in (1, -1)
    )
    n_pending, alpha = int((worst != best).sum()), (1 - confidence) / 2
    return IntervalEstimate(
        value=float(worst.mean()),
        n=len(audits),
        method=METHOD,
        low=mean_above(watch(best, low=-1), alpha, low=-1),
        high=mean_below(watch(worst, low=-1), alpha, low=-1),
        note=f"{n_pending} audits without a label count as lost" if n_pending else None,
    )


def _saving(full: Sequence[RunNumbers], cap_tokens: float, confidence: float) -> IntervalEstimate | None:
    pairs = [
        (run.would_spend, run.baseline_tokens)
        for run in full
        if run.would_spend is not None and run.baseline_tokens is not None
    ]
    part, whole = np.minimum(np.array(pairs, dtype=np.float64).reshape(-1, 2), cap_tokens).T
    if not whole.sum():
        return None
    interval = ratio_between(watch_pairs(part, whole, cap=cap_tokens), confidence)
    return IntervalEstimate(
        value=1 - float(part.sum() / whole.sum()),
        low=1 - interval.high,
        high=1 - interval.low,
        n=len(pairs),
        method=METHOD,
    )
