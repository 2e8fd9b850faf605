"""Which requests leave rows in the log, how many requests each row stands for, and the sample-ratio test.

    request ──▶ is_certain? ──▶ else a keyed lot at the rate of its class ──▶ rows, or a place in the counts
    rows    ──▶ weight_of ──▶ every sum and mean over runs
    classes ──▶ allocate: a rate each, for requests to come

What the promise rests on is never sampled away. Kept for certain: runs in full, because they are the evidence; whatever
drew an arm of an experiment or a rollout; runs that ended by a failure or in which Suffice failed open; and every row
that is no request. Of live runs that are not kept the gateway counts ends, tokens and money (`store.rows.records`).

The draw is made before the first step, for the unit of the request, by its declared class alone; each turn of a
conversation has its own, because the test of audit draws needs kept requests to be independent. The rate is made of
earlier requests, and written into the row. So each kept run stands for 1/rate runs, and sums with these weights have
the right expectation, however the rates move (Horvitz and Thompson 1952, JASA 47(260)).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, lgamma, log, sqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray

from suffice.types import EndReason, Outcome, Request

BAD_ENDS: Final = frozenset({"upstream_error", "timeout", "internal_error"})
LEAST_LIVE: Final = 0.1  # of the rate that was asked for: live runs keep that much, however many audits there are
LEAST_CLASS: Final = 0.25  # of the rate of all live runs: no class is kept at less, whatever the others need
PRIOR_RUNS: Final = 50.0  # a class is held to be as uncertain as all of them, until so many of its runs say otherwise


# --------------------------------------------------------------------------- what has rows, and its weight


def is_certain(request: Request) -> bool:
    """Does this request keep its rows whatever its end will be?"""
    return request.ungoverned is None and (request.mode != "enforce" or request.audit or bool(request.arms))


def ended_badly(outcome: Outcome) -> bool:
    return outcome.end_reason in BAD_ENDS or bool(outcome.degraded)


def p_kept(request: Request, outcome: Outcome) -> float:
    """P(a run that goes as this one, and is no audit, has rows), in (0, 1]."""
    return 1.0 if ended_badly(outcome) else _rate(request)


def weight_of(request: Request, outcome: Outcome) -> float:
    """How many requests a run that has rows stands for, at least 1."""
    return 1.0 if is_certain(request) else 1 / p_kept(request, outcome)


def lot_of(request: Request) -> tuple[bool, float] | None:
    """An audit or none, and P(that) among requests whose rows were not kept because of their end; None: it was.

    Audits are kept for certain, others by lot: among kept rows audits are more frequent than they were drawn.
    """
    if request.kept_by == "end":
        return None
    kept = request.propensity if request.audit else request.propensity * _rate(request)
    other = (1 - request.propensity) * (_rate(request) if request.audit else 1.0)
    return request.audit, kept / (kept + other)


def _rate(request: Request) -> float:
    """At which a request like it is kept that is no audit."""
    whole = request.ungoverned is None and (request.mode != "enforce" or request.arms)
    return 1.0 if whole else request.keep_rate


def worth(weights: Sequence[float]) -> float:
    """How many equally weighted runs tell as much as these: (sum of w)^2 / sum of w^2 (Kish 1965). 0 without any."""
    squares = sum(weight * weight for weight in weights)
    return sum(weights) ** 2 / squares if squares else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class UnloggedRequests:
    """The requests of one class and version that ended without rows, all of them governed or all for one reason not."""

    query_class: str  # "": none
    version: str  # of the policy, with its level
    ungoverned: str  # why they passed through; "": they were governed, and could be stopped
    n: int
    ends: tuple[tuple[EndReason, int], ...]
    n_stopped: int = 0
    n_counted: int = 0  # whose tokens are known
    prompt_tokens: int = 0  # of the clients, each prompt once
    completion_tokens: int = 0  # of delivered runs
    cached_tokens: int = 0  # part of `prompt_tokens` that a prefix cache served
    probe_tokens: int = 0
    extra_prompt_tokens: int = 0  # prompts sent again
    cached_prompt_tokens: int = 0  # part of them that a prefix cache served
    discarded_tokens: int = 0  # generated, paid for, not delivered
    saved_tokens: int = 0  # estimated, over stopped runs
    n_priced: int = 0  # whose cost is known
    cost_usd: float = 0.0
    overhead_usd: float = 0.0
    saved_usd: float = 0.0  # estimated, over stopped runs
    duration_s: float = 0.0


# --------------------------------------------------------------------------- rates


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """At which rates live requests of one route are kept, each in (0, 1]."""

    other: float  # of classes that are not named
    by_class: tuple[tuple[str, float], ...] = ()  # sorted by class

    def of(self, query_class: str) -> float:
        """The rate of a class; "": of requests without one."""
        return dict(self.by_class).get(query_class, self.other)


def live_rate(sample_rate: float, audit_share: float) -> float:
    """The rate of live requests at which a part `sample_rate` of all requests has rows; at least a tenth of it."""
    if not (0 < sample_rate <= 1 and 0 <= audit_share <= 1):
        raise ValueError(f"need 0 < sample_rate <= 1 and 0 <= audit_share <= 1; got {sample_rate=} {audit_share=}")
    left = (sample_rate - audit_share) / (1 - audit_share) if audit_share < 1 else 0.0
    return max(left, LEAST_LIVE * sample_rate)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stratum:
    """What kept live runs of one class have shown."""

    query_class: str
    n_requests: float  # live ones of the class, kept or not
    n_runs: float = 0.0  # kept ones with known tokens …
    tokens: float = 0.0  # … their sum
    squares: float = 0.0  # … and the sum of their squares
    n_labelled: float = 0.0
    n_right: float = 0.0

    @property
    def token_variance(self) -> float:
        if not self.n_runs:
            return 0.0
        mean = self.tokens / self.n_runs
        return max(0.0, self.squares / self.n_runs - mean * mean)

    @property
    def label_variance(self) -> float:
        """Of right or wrong, for each kept run: where fewer are labelled, each kept one says less."""
        if not self.n_labelled:
            return 0.0
        right = min(1.0, self.n_right / self.n_labelled)
        return right * (1 - right) * max(1.0, self.n_runs / max(1.0, self.n_labelled))


def allocate(strata: Sequence[Stratum], *, rate: float) -> Rates:
    """Spread a rate over classes so that EM and tokens of all live runs together are known best (Neyman 1934).

    A class is kept in proportion to its spread, the root of its variance; both measures count alike, each relative to
    its mean over classes. A class of which little is known is drawn towards the others. No class falls below a
    quarter of the rate, and none is kept at more than 1; what a limit takes or gives, the other classes share. The
    rate of all, in (0, 1], is kept to where limits allow, and two digits of a rate are given.
    """
    if not 0 < rate <= 1:
        raise ValueError(f"need 0 < rate <= 1; got {rate=}")
    known = [one for one in strata if one.n_requests > 0]
    if len(known) < 2:
        return Rates(other=_two_digits(rate))
    spreads = _spreads(known)
    n = [one.n_requests for one in known]
    least = LEAST_CLASS * rate
    shared = _scale(spreads, n, rate=rate, least=least)
    rates = {
        one.query_class: _two_digits(min(1.0, max(least, shared * spread)))
        for one, spread in zip(known, spreads, strict=True)
    }
    return Rates(other=_two_digits(rate), by_class=tuple(sorted(rates.items())))


def moved(before: Rates, after: Rates, *, by: float) -> bool:
    """Does any rate differ by more than this part of it?"""
    names = {name for name, _ in (*before.by_class, *after.by_class)}
    pairs = [(before.other, after.other), *((before.of(name), after.of(name)) for name in names)]
    return any(abs(new - old) > by * old for old, new in pairs)


def _spreads(known: Sequence[Stratum]) -> list[float]:
    """The spread of each class, relative: 1 is that of all of them."""
    variances = [_relative(known, [(one.token_variance, one.n_runs) for one in known])]
    if any(one.n_labelled for one in known):
        variances.append(_relative(known, [(one.label_variance, one.n_labelled) for one in known]))
    return [sqrt(sum(of_class) / len(variances)) for of_class in zip(*variances, strict=True)]


def _relative(known: Sequence[Stratum], variances: Sequence[tuple[float, float]]) -> list[float]:
    """Each variance, of so many runs, over their mean, drawn towards it where few runs say it; 1 where none varies."""
    measured = [(one.n_requests, variance) for one, (variance, n) in zip(known, variances, strict=True) if n]
    total = sum(n for n, _ in measured)
    mean = sum(n * variance for n, variance in measured) / total if total else 0.0
    if not mean:
        return [1.0] * len(known)
    return [(n * variance / mean + PRIOR_RUNS) / (n + PRIOR_RUNS) for variance, n in variances]


def _scale(spreads: Sequence[float], n: Sequence[float], *, rate: float, least: float) -> float:
    """By what spreads are multiplied so that the whole comes to `rate`, limits kept: bisection."""
    wanted = rate * sum(n)
    low, high = 0.0, 1 / min(spread for spread in spreads if spread > 0) if any(spreads) else 1.0
    for _ in range(60):
        middle = (low + high) / 2
        total = sum(size * min(1.0, max(least, middle * spread)) for size, spread in zip(n, spreads, strict=True))
        low, high = (middle, high) if total < wanted else (low, middle)
    return high


def _two_digits(rate: float) -> float:
    """Rates that hardly differ are one: each odd share of its own weakens the test of the audit lottery."""
    return float(f"{rate:.2g}") or rate


# --------------------------------------------------------------------------- sample-ratio test
#
# Everything that is certified rests on audits being a random sample. Under the null hypothesis every request is audited
# with the probability that was logged for it; the alternative at a share is a Beta law around it, so the e-value is a
# beta-binomial one. It may be watched after every request, and is a function of counts alone: replicas add up, in any
# order. ASSURANCE.md §3.7. Where the share changed, the e-values of all shares are multiplied: a fault that touches all
# is seen sooner than in any single one. A share that went well for long lowers the product by about a half of
# log(1 + n/100), so count anew in each epoch. With a share of its own for every request there is no evidence at all.

WEIGHT: Final = 100.0  # requests that the alternative is worth: at 5 % it looks for shares of 2 to 10 %
LOG_ALARM: Final = log(1_000)  # a healthy lottery ever reaches it with probability at most 1/1000
_DIGITS: Final = 9  # 1 - (1 - 0.05) is not 0.05; shares that are equal to nine digits are one share


@dataclass(frozen=True, slots=True)
class Draws:
    """How often the lottery was drawn at each share, and how often an audit came out."""

    by_share: tuple[tuple[float, int, int], ...] = ()  # (share, requests, audits among them), shares rising

    def __add__(self, other: Draws) -> Draws:
        sums: dict[float, tuple[int, int]] = {}
        for share, n, n_audits in (*self.by_share, *other.by_share):
            so_far = sums.get(share, (0, 0))
            sums[share] = so_far[0] + n, so_far[1] + n_audits
        return Draws(tuple((share, *sums[share]) for share in sorted(sums)))


def count_draws(audit: NDArray[np.bool_], propensity: NDArray[np.float64]) -> Draws:
    """Count audit draws, shape (n,), by the logged P(this value of `audit`): mostly 1 - share.

    Raises ValueError for odds out of (0, 1].
    """
    if not ((propensity > 0) & (propensity <= 1)).all():
        raise ValueError("propensity: need odds above 0 and at most 1 for every lot")
    shares, at = np.unique(np.round(np.where(audit, propensity, 1 - propensity), _DIGITS), return_inverse=True)
    n = np.bincount(at, minlength=len(shares))
    won = np.bincount(at, weights=audit, minlength=len(shares)).astype(np.int64)
    return Draws(tuple(zip(shares.tolist(), n.tolist(), won.tolist(), strict=True)))


def log_sample_ratio(draws: Draws, *, weight: float = WEIGHT) -> float:
    """Natural logarithm of the e-value against "every audit was drawn at its logged share".

    For one share rho with k audits in n: B(a + k, b + n - k) / (B(a, b) rho^k (1 - rho)^(n - k)), a = weight rho,
    b = weight (1 - rho); summed over shares. At a share of 0 or 1 a single exception is proof, and the result infinite.
    The alternative is worth `weight` requests, above 0: the fewer, the further from the share it looks.
    """
    return sum((_log_e(share, n, n_audits, weight) for share, n, n_audits in draws.by_share), 0.0)


def broken(draws: Draws) -> str | None:
    """Why audits cannot be believed, as a sentence; None: nothing speaks against them."""
    log_e = log_sample_ratio(draws)
    if log_e < LOG_ALARM:
        return None
    n = sum(n for _, n, _ in draws.by_share)
    expected = sum(share * n for share, n, _ in draws.by_share)
    seen = sum(n_audits for _, _, n_audits in draws.by_share)
    return f"{seen} audits in {n} requests where {expected:.0f} were expected: not the lottery that was logged"


def _log_e(share: float, n: int, n_audits: int, weight: float) -> float:
    if share in (0.0, 1.0):
        return 0.0 if n_audits == share * n else inf
    a, b = weight * share, weight * (1 - share)
    mixture = _log_beta(a + n_audits, b + n - n_audits) - _log_beta(a, b)
    return mixture - n_audits * log(share) - (n - n_audits) * log(1 - share)


def _log_beta(a: float, b: float) -> float:
    return lgamma(a) + lgamma(b) - lgamma(a + b)
