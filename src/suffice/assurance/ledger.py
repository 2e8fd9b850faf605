"""The ledger: per route, class and version, EM, tokens and saving of full and stopped runs.

    entries, oldest first ──▶ accounts: EM of full and stopped runs, EM drop, tokens, saving, each with its interval
    counts by level       ──▶ how many audits the next level still takes

Every interval is a confidence sequence (`sequence`): it may be read at any moment, also under drift and while
levels change, and speaks of the average so far. It is wide, and it reports; what steers is the certificate. `estimate`
measures a stretch of log once, in money too, with a bootstrap; this is what may be watched. ASSURANCE.md §3.4.

Knows runs boiled down (`runs.RunNumbers`) and counts; refuses to know storage, clocks and how numbers are shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from suffice.assurance.bounds import Interval
from suffice.assurance.certify import Counts, audits_to_certify, certified_level, log_wealth
from suffice.assurance.estimate import IntervalEstimate
from suffice.assurance.guarantee import KNOWN_AUDITS
from suffice.assurance.runs import RunNumbers
from suffice.assurance.sequence import mean_above, mean_below, ratio_between, watch, watch_pairs, weighted_between

Floats = NDArray[np.float64]

METHOD: Final = "valid at every look, empirical Bernstein"


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    route: str
    query_class: str  # "": none
    version: str  # of the policy that was pinned for it
    run: RunNumbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What is known of one route, or of one class or version in it. None: nothing to measure it on."""

    route: str
    query_class: str | None  # None: all of them together
    version: str | None  # None: all of them together
    n_runs: int  # those whose rows are not kept included, as the kept ones stand for them
    n_audits: int  # full runs that show what the stop would have answered
    n_pending: int  # of them: it would have answered otherwise, and no label says what that cost
    n_cut: int  # runs with more tokens than the cap, counted as the cap
    em_full: IntervalEstimate | None
    em_stopped: IntervalEstimate | None  # stopped runs are the easy ones: not to be compared with `em_full`
    em_drop: IntervalEstimate | None  # over audits, at the level deployed at each
    tokens_full: IntervalEstimate | None  # spent a run
    tokens_live: IntervalEstimate | None  # … of runs that are no audits, stopped or not
    saving: IntervalEstimate | None  # of tokens, on the same audits: 1 - with the stop made / in full

    @property
    def known(self) -> bool:
        return self.n_audits >= KNOWN_AUDITS


def accounts(entries: Iterable[LedgerEntry], *, cap_tokens: float, confidence: float = 0.95) -> tuple[Account, ...]:
    """Book runs by route, by class, by version, and by class and version, each group with all of its numbers.

    entries     in the log's own order; intervals depend on it, sums do not
    cap_tokens  that a run can spend: the upstream's or the client's limit. A bound needs one, known beforehand
    confidence  of each interval by itself, in (0, 1)
    """
    groups: dict[tuple[str, str | None, str | None], list[RunNumbers]] = {}
    for entry in entries:
        for query_class in (None, entry.query_class):
            for version in (None, entry.version):
                groups.setdefault((entry.route, query_class, version), []).append(entry.run)
    teller = _Teller(cap_tokens=cap_tokens, confidence=confidence)
    order = sorted(groups, key=lambda at: (at[0], at[1] is not None, at[1] or "", at[2] is not None, at[2] or ""))
    return tuple(teller.account(*at, groups[at]) for at in order)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Teller:
    cap_tokens: float
    confidence: float

    def account(self, route: str, query_class: str | None, version: str | None, runs: Sequence[RunNumbers]) -> Account:
        full = [run for run in runs if run.full]
        telling = [run for run in full if run.disagrees is not None]
        spent = [run.spent for run in runs if run.spent is not None]
        return Account(
            route=route,
            query_class=query_class,
            version=version,
            n_runs=round(sum(run.stands_for for run in runs)),
            n_audits=len(telling),
            n_pending=sum(_is_pending(run) for run in telling),
            n_cut=sum(tokens > self.cap_tokens for tokens in spent),
            em_full=self._em(full),
            em_stopped=self._em([run for run in runs if run.stopped]),
            em_drop=self._drop(telling),
            tokens_full=self._tokens(full),
            tokens_live=self._tokens([run for run in runs if run.enforce and not run.audit]),
            saving=self._saving(full),
        )

    def _em(self, runs: Sequence[RunNumbers]) -> IntervalEstimate | None:
        marked = [run for run in runs if run.correct is not None]
        if not marked:
            return None
        marks = np.array([run.correct for run in marked], dtype=np.float64)
        mean, interval = self._between(marks, marked, high=1.0)
        n_left_out = len(runs) - len(marked)
        return IntervalEstimate(
            value=mean,
            low=interval.low,
            high=interval.high,
            n=len(marked),
            method=METHOD,
            note=f"{n_left_out} runs without a label are left out" if n_left_out else None,
        )

    def _drop(self, audits: Sequence[RunNumbers]) -> IntervalEstimate | None:
        """Unlabelled disagreement counts as lost, and at the lower end as gained: the truth lies between."""
        if not audits:
            return None
        worst = np.array([_drop_of(run, pending=1) for run in audits], dtype=np.float64)
        best = np.array([_drop_of(run, pending=-1) for run in audits], dtype=np.float64)
        n_pending, alpha = int((worst != best).sum()), (1 - self.confidence) / 2
        return IntervalEstimate(
            value=float(worst.mean()),
            n=len(audits),
            method=METHOD,
            low=mean_above(watch(best, low=-1), alpha, low=-1),
            high=mean_below(watch(worst, low=-1), alpha, low=-1),
            note=f"{n_pending} audits without a label count as lost" if n_pending else None,
        )

    def _tokens(self, runs: Sequence[RunNumbers]) -> IntervalEstimate | None:
        counted = [run for run in runs if run.spent is not None]
        if not counted:
            return None
        spent = self._cut([run.spent for run in counted if run.spent is not None])
        mean, interval = self._between(spent, counted, high=self.cap_tokens)
        return IntervalEstimate(value=mean, low=interval.low, high=interval.high, n=len(counted), method=METHOD)

    def _between(self, values: Floats, runs: Sequence[RunNumbers], *, high: float) -> tuple[float, Interval]:
        """Mean of a value of each run, by what the runs stand for, and its interval."""
        weights = np.array([run.stands_for for run in runs], dtype=np.float64)
        # Rates have a floor that stands in the settings, so the largest weight was known beforehand.
        return weighted_between(values, weights, self.confidence, most_weight=float(weights.max()), high=high)

    def _saving(self, full: Sequence[RunNumbers]) -> IntervalEstimate | None:
        pairs = [
            (run.would_spend, run.baseline_tokens)
            for run in full
            if run.would_spend is not None and run.baseline_tokens is not None
        ]
        whole = self._cut([delivered for _, delivered in pairs])
        if not whole.sum():
            return None
        part = self._cut([would_spend for would_spend, _ in pairs])
        interval = ratio_between(watch_pairs(part, whole, cap=self.cap_tokens), self.confidence)
        return IntervalEstimate(
            value=1 - float(part.sum() / whole.sum()),
            low=1 - interval.high,
            high=1 - interval.low,
            n=len(pairs),
            method=METHOD,
        )

    def _cut(self, tokens: Sequence[float]) -> Floats:
        return np.minimum(np.array(tokens, dtype=np.float64), self.cap_tokens)


def _is_pending(run: RunNumbers) -> bool:
    return run.drop is None and run.disagrees is True


def _drop_of(run: RunNumbers, *, pending: int) -> int:
    """Z of an audit. An answer that agrees loses nothing, with or without a label."""
    if run.drop is not None:
        return run.drop
    return pending if run.disagrees else 0


# --------------------------------------------------------------------------- what the next level still takes


@dataclass(frozen=True, slots=True, kw_only=True)
class NextLevel:
    """The first level that the certificate does not allow yet, and what it takes."""

    level: int
    drop: float | None  # seen at it, a fraction; None: no audits
    n_audits: int
    n_missing: int | None  # audits, if they go on as they have; None: so many do not fit into the window
    reason: str


def next_level(counts: Counts, *, max_em_drop: float, delta: float, window: int) -> NextLevel | None:
    """How many audits the next level still takes, from the counts alone; None: all levels are certified.

    The number at which audits in the proportions seen so far pass (`certify.audits_to_certify`). Real ones come by
    chance, so this is a middle and no promise.

    counts       of the window, at M levels
    max_em_drop  eps that the certificate tests, a fraction in (0, 1)
    delta        in (0, 1)
    window       most audits that a certificate looks at
    """
    certified = certified_level(log_wealth(counts, max_em_drop=max_em_drop), delta=delta)
    level = certified + 1
    if level >= len(counts.same):
        return None
    n = int(counts.n[level])
    drop = float(counts.drop[level]) if n else None
    gained = float(counts.gained[level]) / n if n else 0.0
    try:
        needed = audits_to_certify(drop or 0.0, max_em_drop=max_em_drop, delta=delta, gained=gained)
    except ValueError:
        return NextLevel(
            level=level,
            drop=drop,
            n_audits=n,
            n_missing=None,
            reason=f"level {level} loses {drop:.2%} so far, too near to the {max_em_drop:.2%} allowed, or more",
        )
    if needed > window:
        return NextLevel(
            level=level,
            drop=drop,
            n_audits=n,
            n_missing=None,
            reason=f"level {level} would take {needed:,} audits like those so far; the window holds {window:,}",
        )
    missing = max(1, needed - n)
    return NextLevel(
        level=level,
        drop=drop,
        n_audits=n,
        n_missing=missing,
        reason=f"level {level} passes after about {missing:,} more audits like those so far",
    )
