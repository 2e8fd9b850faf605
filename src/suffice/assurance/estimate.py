"""Estimates for the report of a route, from the sums over its runs. What was not measured is None.

    full runs     run to their end by design: everything in observe, audits in enforce
    stopped runs  ended early by the policy; easier than average, so not comparable with full runs
    live runs     everything in enforce that is no audit, stopped or not; the random assignment makes
                  them comparable with audits
    spent tokens  generated: delivered, in probes, or discarded; prompts are counted separately
    money         everything, prompts included, at the prices of the time of the request

Where only some requests have rows in the log (`sampling`), each run is weighted, and the gateway's counters of the
others complete counts, tokens and money.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from math import sqrt
from statistics import NormalDist
from typing import Final

import numpy as np

from suffice.arrays import Floats
from suffice.assurance.bounds import (
    difference_between,
    mean_above,
    mean_below,
    mean_interval,
    ratio_between,
    watch,
    watch_pairs,
    weighted_between,
)
from suffice.assurance.guarantee import KNOWN_AUDITS
from suffice.assurance.runs import (
    ENFORCED_DROP,
    OBSERVED_DROP,
    SAVED,
    SAVED_USD,
    CallerAudits,
    RunNumbers,
    Tally,
    TokenTotals,
)

Statistic = Callable[[Floats], Floats]

SUMMED: Final = "sum over the enforced runs; interval of all runs against audits"
SHADOW: Final = "shadow, paired"
DECIDED: Final = "samples not drawn, at the mean tokens of those drawn"
MIN_AUDITS = 20  # below it, a saving gets a note instead of an interval
MIN_GROUPS = 10  # of questions (`runs.N_GROUPS`) for a jackknife interval


@dataclass(frozen=True, slots=True, kw_only=True)
class IntervalEstimate:
    value: float
    low: float | None  # ends of the interval; None: could not be computed
    high: float | None
    n: int  # observations
    method: str  # of the interval
    note: str | None = None  # a reason not to trust it


@dataclass(frozen=True, slots=True, kw_only=True)
class MoneyTotals:
    governed_usd: float  # cost of governed requests
    overhead_usd: float  # part of `governed_usd` that the runs alone would not have cost
    ungoverned_usd: float  # requests that passed through untouched
    n_known: int  # requests behind these sums
    n_unknown: int  # requests without prices or token counts


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportEstimates:
    em_full: IntervalEstimate | None
    em_stopped: IntervalEstimate | None
    em_live: IntervalEstimate | None
    tokens_full: IntervalEstimate | None  # spent per request, without probes and second calls
    tokens_stopped: IntervalEstimate | None
    saving: IntervalEstimate | None  # enforce: see `saving_of`
    gross_saving: float | None  # enforce: the same before probes, second calls and discarded tokens
    # Savings are against full runs; for a vote that was decided early, against all its samples, estimated from those
    # drawn (`money`).
    decided_saving: IntervalEstimate | None  # full runs: share of tokens not spent because votes were decided
    would_save: IntervalEstimate | None  # observe: the same, plus the tokens after the shadow stops
    cost_full: IntervalEstimate | None  # US dollars per request
    cost_stopped: IntervalEstimate | None
    cost_reduction: IntervalEstimate | None  # enforce: `saving` in money, prompts included
    saved_usd: IntervalEstimate | None  # enforce: all money saved so far, audits and their probes counted as spent
    would_save_usd: IntervalEstimate | None  # observe: saving of the shadow stops, net of their hand-over
    disagreement: IntervalEstimate | None  # full runs: the stop's answer would have differed
    em_drop: IntervalEstimate | None  # see `em_drop_of`
    n_lost: int | None  # pairs of `em_drop` that the stop made wrong
    n_gained: int | None  # pairs of `em_drop` that the stop made right
    saved_tokens: IntervalEstimate | None  # enforce: the sum of what each run saved (`saving.saved_tokens`)
    saved_certified_tokens: float | None  # part of `saved_tokens` under certified policies


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteReport:
    route: str
    kinds: tuple[str, ...]
    modes: tuple[str, ...]  # seen, oldest first
    certified: bool  # every governed request ran under a certified policy
    n_requests: int  # with an outcome
    n_governed: int
    ungoverned: Mapping[str, int]  # reason: requests that passed through untouched
    end_reasons: Mapping[str, int]
    n_audits: int
    n_abandoned_audits: int  # left by their clients and not read to their end: counted as losses
    leavers: tuple[CallerAudits, ...]  # callers that left audits, the most first
    n_telling_audits: int  # whose stop's answer can be compared
    n_audit_disagreements: int  # of `n_telling_audits`
    audits_at_s: tuple[float, ...]  # times of the latest audits, Unix time, oldest first
    n_stopped: int
    n_labelled: int  # governed requests with a label that says right or wrong
    n_would_stop: int  # full runs in which the policy would have stopped
    n_trials: int  # probes of a thought that were answered
    n_trials_read: int  # with an answer that the scorer could read
    measured: ReportEstimates
    tokens: TokenTotals
    money: MoneyTotals
    degraded: Mapping[str, int]  # place: requests that failed open there

    @property
    def governed_share(self) -> float | None:
        return self.n_governed / self.n_requests if self.n_requests else None


# Fields of `RouteReport` that `Tally.counts` holds under shorter names.
_COUNTS: Final = {
    "n_governed": "governed",
    "n_audits": "audits",
    "n_abandoned_audits": "abandoned",
    "n_telling_audits": "telling",
    "n_audit_disagreements": "disagreeing",
    "n_stopped": "stopped",
    "n_labelled": "labelled",
    "n_would_stop": "would_stop",
    "n_trials": "trials",
    "n_trials_read": "trials_read",
}


def report_of(tally: Tally, *, route: str, confidence: float = 0.95) -> RouteReport:
    count, usd = tally.counts.get, tally.money.get
    return RouteReport(
        route=route,
        kinds=tuple(tally.kinds),
        modes=tuple(tally.modes),
        certified=bool(tally.modes) and tally.certified,
        n_requests=sum(tally.ends.values()),
        ungoverned=dict(tally.ungoverned),
        end_reasons=dict(tally.ends),
        audits_at_s=tuple(tally.audits_at_s),
        leavers=leavers_of(tally),
        tokens=tally.tokens,
        money=MoneyTotals(
            governed_usd=usd("governed_usd", 0.0),
            overhead_usd=usd("overhead_usd", 0.0),
            ungoverned_usd=usd("ungoverned_usd", 0.0),
            n_known=count("priced", 0),
            n_unknown=count("unpriced", 0),
        ),
        degraded=dict(tally.degraded),
        measured=_measured(tally, confidence),
        **{field: count(name, 0) for field, name in _COUNTS.items()},
    )


def leavers_of(tally: Tally) -> tuple[CallerAudits, ...]:
    left = [one for one in tally.callers.values() if one.n_left]
    return tuple(sorted(left, key=lambda one: (-one.n_left, one.caller)))


def saving_of(tally: Tally, confidence: float = 0.95) -> IntervalEstimate | None:
    """The share of its tokens that a route has saved; every figure called a saving is this one.

    saved / (saved + spent), over every enforced request: what each saved (`saving.saved_tokens`), and all that was
    generated: delivered, in probes and discarded, audits included. It can be negative. The interval holds the one by
    audits: 1 - spent / full, where full is the number of these requests times the mean of the audits, each weighted by
    1/P(audit), without probes. None: nothing was enforced.
    """
    balance = token_saving_of(tally)
    if balance is None:
        return None
    return with_audits(balance.share, *_by_audits(tally, "saving", _saving, confidence), n_unknown=balance.n_unknown)


def with_audits(
    value: float, ends: tuple[float, float] | None, n_audits: int, *, n_unknown: float = 0.0
) -> IntervalEstimate:
    """A saving with an interval that holds both it and the one by audits; without `ends` those were too few."""
    notes = [] if ends else [f"not enough audits: {n_audits} of {MIN_AUDITS}"]
    if ends is None and n_audits >= MIN_AUDITS:
        notes = ["audits of too few questions or routes for an interval"]
    if n_unknown > 0.5:
        notes.append(f"{round(n_unknown):,} stopped runs without an estimate count as 0")
    return IntervalEstimate(
        value=value,
        low=min(value, ends[0]) if ends else None,
        high=max(value, ends[1]) if ends else None,
        n=n_audits,
        method=SUMMED,
        note="; ".join(notes) or None,
    )


def em_drop_of(tally: Tally, confidence: float = 0.95) -> IntervalEstimate | None:
    """EM(full) - EM(as served) over all enforced requests; without any, what stops would have lost of observed runs."""
    return paired_drop(*_drop_sums(tally)[1:6], confidence=confidence)


def _drop_sums(tally: Tally) -> list[float]:
    sums = tally.rates.get(ENFORCED_DROP, [0.0] * 9)
    return sums if sums[0] > 0.5 else tally.rates.get(OBSERVED_DROP, [0.0] * 9)


def paired_drop(
    weight: float, squares: float, lost: float, gained: float, pending: float, *, confidence: float = 0.95
) -> IntervalEstimate | None:
    """The mean drop from sums over audits of their weights, 1/P(audit): of all, squared, lost, gained, unlabelled.

    An unlabelled difference counts as lost, and as gained for the lower end. Weighted audits count as their effective
    sample size (Kish 1965). None: there is none.
    """
    if weight < 0.5 or squares <= 0:
        return None
    n = max(1.0, weight * weight / squares)
    least_lost, most_lost, least_gained, most_gained = (
        min(1.0, max(0.0, sums / weight)) for sums in (lost, lost + pending, gained, gained + pending)
    )
    return IntervalEstimate(
        value=most_lost - least_gained,
        low=difference_between(least_lost, most_gained, n, confidence).low,
        high=difference_between(most_lost, least_gained, n, confidence).high,
        n=round(n),
        method="audits weighted by 1/P(audit), for one look",
        note="differences without a label count as lost" if pending > 1e-9 * weight else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBalance:
    """What the enforced requests of a route spent and saved since the log began."""

    spent: float
    saved: float
    overhead: float  # part of `spent`: probes, second calls and discarded tokens
    saved_certified: float  # part of `saved` under certified policies
    n_unknown: float  # stopped runs without an estimate, which count as if they had saved nothing

    @property
    def share(self) -> float:
        return self.saved / (self.saved + self.spent)

    @property
    def gross_share(self) -> float:
        return (self.saved + self.overhead) / (self.saved + self.spent)


def token_saving_of(tally: Tally) -> TokenBalance | None:
    spent, saved, overhead, certified, n_unknown = tally.rates.get(SAVED, (0.0,) * 5)
    if not (spent > 0 and spent + saved > 0):
        return None
    return TokenBalance(spent=spent, saved=saved, overhead=overhead, saved_certified=certified, n_unknown=n_unknown)


def _measured(tally: Tally, confidence: float) -> ReportEstimates:
    em_drop = em_drop_of(tally, confidence)
    drops = _drop_sums(tally)
    saved = token_saving_of(tally)
    spent_usd, saved_usd = tally.rates.get(SAVED_USD, (0.0, 0.0))
    is_priced = spent_usd > 0 and spent_usd + saved_usd > 0
    by_audits = partial(_by_audits, tally, confidence=confidence)
    is_decided = any(sums[1] for sums in tally.groups.get("decided", {}).values())

    def grouped(name: str, statistic: Statistic, what: str, times: int | None = None) -> IntervalEstimate | None:
        return _grouped(tally, name, statistic, what, confidence, times=times)

    return ReportEstimates(
        **{name: _rate(tally, name, confidence) for name in ("em_full", "em_stopped", "em_live", "disagreement")},
        **{
            name: grouped(name, _mean, "mean")
            for name in ("tokens_full", "tokens_stopped", "cost_full", "cost_stopped")
        },
        saving=saving_of(tally, confidence),
        gross_saving=None if saved is None else saved.gross_share,
        decided_saving=grouped("decided", _mean, DECIDED) if is_decided else None,
        would_save=grouped("would_save", lambda sums: 1 - _mean(sums), SHADOW),
        cost_reduction=with_audits(saved_usd / (saved_usd + spent_usd), *by_audits("saving_usd", _saving))
        if is_priced
        else None,
        saved_usd=with_audits(saved_usd, *by_audits("saving_usd", _saved_each, times=2)) if is_priced else None,
        would_save_usd=grouped("would_save_usd", _mean, SHADOW, times=2),
        em_drop=em_drop,
        n_lost=None if em_drop is None else round(drops[6]),
        n_gained=None if em_drop is None else round(drops[7]),
        saved_tokens=None
        if saved is None
        else with_audits(saved.saved, *by_audits("saving", _saved_each, times=2), n_unknown=saved.n_unknown),
        saved_certified_tokens=None if saved is None else saved.saved_certified,
    )


def _rate(tally: Tally, name: str, confidence: float) -> IntervalEstimate | None:
    """Share of true marks. Weighted runs count as their effective sample size (Kish 1965)."""
    n, weights, true, squares = tally.rates.get(name, (0.0, 0.0, 0.0, 0.0))
    if n < 0.5:
        return None
    value = min(1.0, max(0.0, true / weights))
    return _anytime(value, round(n), confidence, worth=weights * weights / squares)


def _anytime(value: float, n: int, confidence: float, *, worth: float) -> IntervalEstimate:
    """`worth` is the effective sample size of values in [0, 1]."""
    alike = abs(worth - n) < 1e-6 * n
    interval = mean_interval(value, n if alike else max(1, int(worth)), confidence)
    return IntervalEstimate(
        value=value,
        low=interval.low,
        high=interval.high,
        n=n,
        method="anytime-valid, normal mixture" + ("" if alike else f", weighted runs as {worth:,.0f} equal ones"),
    )


def _sums_by_group(tally: Tally, name: str) -> Floats:
    """Shape (groups, sums), the number of runs first."""
    return np.array(list(tally.groups.get(name, {0: [0.0] * 6}).values()), dtype=np.float64)


def _grouped(
    tally: Tally, name: str, statistic: Statistic, what: str, confidence: float, *, times: int | None = None
) -> IntervalEstimate | None:
    """An interval needs enough questions. `times` is the column whose sum multiplies the statistic."""
    if not tally.groups.get(name):
        return None
    parts = _sums_by_group(tally, name)
    sums = parts.sum(axis=0)
    scale = 1.0 if times is None else float(sums[times])
    value = scale * float(statistic(sums))
    if not np.isfinite(value):
        return None
    note = None
    low = None
    high = None
    if len(parts) < MIN_GROUPS:
        note = "not enough different questions for an interval"
    else:
        radius = scale * _jackknife(statistic(sums - parts), confidence)
        low, high = value - radius, value + radius
    method = f"{what}; jackknife over groups of questions"
    return IntervalEstimate(value=value, low=low, high=high, n=round(sums[0]), method=method, note=note)


def _by_audits(
    tally: Tally, name: str, statistic: Statistic, confidence: float, *, times: int | None = None
) -> tuple[tuple[float, float] | None, int]:
    """The interval of all enforced runs against audits, None without enough of them, and their number."""
    parts = _sums_by_group(tally, name)
    sums, n_audits = parts.sum(axis=0), round(sum(parts[:, -1].tolist()))
    if n_audits < MIN_AUDITS or np.count_nonzero(parts[:, -1]) < MIN_GROUPS:
        return None, n_audits
    scale = 1.0 if times is None else float(sums[times])
    value, radius = scale * float(statistic(sums)), scale * _jackknife(statistic(sums - parts), confidence)
    return (value - radius, value + radius) if np.isfinite(value) else None, n_audits


def _jackknife(without: Floats, confidence: float) -> float:
    """Half the width of an interval, from the statistic without each group (Kott 2001)."""
    n = len(without)
    away = without - without.sum() / n
    deviation = sqrt((n - 1) / n * float(away @ away))
    return _student(confidence, n - 1) * deviation


@lru_cache(maxsize=1_024)
def _student(confidence: float, freedom: int) -> float:
    """Two-sided quantile of Student's t, within 0.1 % from 9 degrees of freedom on (Fisher and Cornish 1960)."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    terms = ((z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return float(z + sum(term / freedom**power for power, term in enumerate(terms, 1)))


# Statistics of the sums (runs, their cost, their number), followed against audits by (cost of the drawn full runs
# without probes, their number, audits).


def _mean(sums: Floats) -> Floats:
    return _ratio(sums[..., 1], sums[..., 2])


def _saving(sums: Floats) -> Floats:
    return 1 - _ratio(_mean(sums), _ratio(sums[..., 3], sums[..., 4]))


def _saved_each(sums: Floats) -> Floats:
    return _ratio(sums[..., 3], sums[..., 4]) - _mean(sums)


def _ratio(part: Floats, whole: Floats) -> Floats:
    nowhere = np.full(np.shape(whole), np.nan)
    return np.asarray(np.divide(part, whole, out=nowhere, where=np.asarray(whole) > 0))


# --------------------------------------------------------------------------- the ledger
#
# EM, tokens and saving of full and stopped runs, per route, class and version. Every interval is a confidence sequence
# (`bounds`) for the average so far, wider than those above, which are for one look. It only reports; the certificate
# decides.

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
        saving=_saving_so_far(full, cap_tokens, confidence),
    )


def _em(runs: Sequence[RunNumbers], confidence: float) -> IntervalEstimate | None:
    marked = [(run, float(run.correct)) for run in runs if run.correct is not None]
    n_left_out = len(runs) - len(marked)
    note = f"{n_left_out} runs without a label are left out" if n_left_out else None
    return _mean_so_far(marked, confidence, high=1.0, note=note)


def _tokens(runs: Sequence[RunNumbers], cap_tokens: float, confidence: float) -> IntervalEstimate | None:
    counted = [(run, min(float(run.spent), cap_tokens)) for run in runs if run.spent is not None]
    return _mean_so_far(counted, confidence, high=cap_tokens)


def _mean_so_far(
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


def _saving_so_far(full: Sequence[RunNumbers], cap_tokens: float, confidence: float) -> IntervalEstimate | None:
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
