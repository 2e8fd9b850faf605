"""Which requests leave rows in the log, how many requests each row stands for, and the sample-ratio test.

Always kept: runs in full, which are the evidence; runs with an arm of an experiment or a rollout; and failures. Other
live runs are sampled before the first step, by declared class alone, independently for each turn of a conversation, and
the gateway counts the rest (`store.rows.events`). The rate comes from earlier requests and is written into the row, so
weights of 1/rate give unbiased sums under changing rates (Horvitz and Thompson 1952, JASA 47(260)).
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
LEAST_LIVE: Final = 0.1  # of the configured rate: live runs are kept at no less, however many audits there are
LEAST_CLASS: Final = 0.25  # of the rate of all live runs: the least for a class
PRIOR_RUNS: Final = 50.0  # weight of the overall variance in that of a class, in runs


# --------------------------------------------------------------------------- what has rows, and its weight


def is_certain(request: Request) -> bool:
    """Whether the request keeps its rows whatever its end."""
    return request.ungoverned is None and (request.audit or _is_kept(request))


def _is_kept(request: Request) -> bool:
    return request.ungoverned is None and (request.mode != "enforce" or bool(request.arms))


def ended_badly(outcome: Outcome) -> bool:
    return outcome.end_reason in BAD_ENDS or bool(outcome.degraded)


def p_kept(request: Request, outcome: Outcome) -> float:
    """P(a run like this one that is no audit has rows), in (0, 1]."""
    return 1.0 if _is_kept(request) or ended_badly(outcome) else request.keep_rate


def weight_of(request: Request, outcome: Outcome) -> float:
    return 1.0 if is_certain(request) else 1 / p_kept(request, outcome)


def assignment_of(request: Request) -> tuple[bool, float] | None:
    """The audit assignment and its probability among kept requests; None: the row was kept because of its end."""
    if request.kept_by == "end":
        return None
    rate = 1.0 if _is_kept(request) else request.keep_rate
    kept = request.propensity if request.audit else request.propensity * rate
    other = (1 - request.propensity) * (rate if request.audit else 1.0)
    return request.audit, kept / (kept + other)


def worth(weights: Sequence[float]) -> float:
    """Effective sample size (sum of w)^2 / sum of w^2 (Kish 1965); 0 without weights."""
    squares = sum(weight * weight for weight in weights)
    return sum(weights) ** 2 / squares if squares else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class UnloggedRequests:
    """Requests of one class, version and tenant that ended without rows: all governed, or ungoverned for one reason."""

    query_class: str  # "": none
    version: str  # of the policy, with its level
    ungoverned: str  # why they passed through; "": governed
    n: int
    ends: tuple[tuple[EndReason, int], ...]
    n_stopped: int = 0
    n_counted: int = 0  # with known tokens
    prompt_tokens: int = 0  # of the clients, each prompt once
    completion_tokens: int = 0  # of delivered runs
    cached_tokens: int = 0  # part of `prompt_tokens` that a prefix cache served
    probe_tokens: int = 0
    extra_prompt_tokens: int = 0  # prompts sent again
    cached_prompt_tokens: int = 0  # part of `extra_prompt_tokens` that a prefix cache served
    discarded_tokens: int = 0  # generated, paid for, not delivered
    saved_tokens: int = 0  # `saving.saved_tokens`
    n_priced: int = 0  # with a known cost
    cost_usd: float = 0.0
    overhead_usd: float = 0.0
    saved_usd: float = 0.0  # `saving.saved_usd`
    duration_s: float = 0.0
    tenant: str = ""  # of their API keys; "": none


# --------------------------------------------------------------------------- rates


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Rates of kept live requests, each in (0, 1]."""

    other: float  # of classes not in `by_class`
    by_class: tuple[tuple[str, float], ...] = ()  # sorted by class

    def of(self, query_class: str) -> float:
        return dict(self.by_class).get(query_class, self.other)


def live_rate(sample_rate: float, audit_share: float) -> float:
    """The rate of live requests with which `sample_rate` of all requests have rows; at least a tenth of it."""
    left = (sample_rate - audit_share) / (1 - audit_share) if audit_share < 1 else 0.0
    return max(left, LEAST_LIVE * sample_rate)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stratum:
    query_class: str
    n_requests: float  # live, kept or not
    n_runs: float = 0.0  # kept, with known tokens
    tokens: float = 0.0  # their sum
    squares: float = 0.0  # the sum of their squares
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
        """Per kept run: larger where fewer of them are labelled."""
        if not self.n_labelled:
            return 0.0
        right = min(1.0, self.n_right / self.n_labelled)
        return right * (1 - right) * max(1.0, self.n_runs / max(1.0, self.n_labelled))


def allocate(strata: Sequence[Stratum], *, rate: float) -> Rates:
    """Spread a rate in (0, 1] over classes for the smallest variance of the overall EM and tokens (Neyman 1934).

    Rates are in proportion to standard deviations, with equal weight for both measures; classes with few runs are
    shrunk to the mean. No class gets under a quarter of the rate or above 1; the others make up the difference. Rates
    have two digits.
    """
    known = [one for one in strata if one.n_requests > 0]
    if len(known) < 2:
        return Rates(other=_two_digits(rate))
    sizes, spreads = [one.n_requests for one in known], _spreads(known)

    def rates_at(scale: float) -> list[float]:
        return [min(1.0, max(LEAST_CLASS * rate, scale * spread)) for spread in spreads]

    wanted = rate * sum(sizes)
    low, high = 0.0, 1 / min(spread for spread in spreads if spread > 0) if any(spreads) else 1.0
    for _ in range(60):
        middle = (low + high) / 2
        total = sum(size * one for size, one in zip(sizes, rates_at(middle), strict=True))
        low, high = (middle, high) if total < wanted else (low, middle)
    of_class = {one.query_class: _two_digits(own) for one, own in zip(known, rates_at(high), strict=True)}
    return Rates(other=_two_digits(rate), by_class=tuple(sorted(of_class.items())))


def moved(before: Rates, after: Rates, *, by: float) -> bool:
    names = {name for name, _ in (*before.by_class, *after.by_class)}
    pairs = [(before.other, after.other), *((before.of(name), after.of(name)) for name in names)]
    return any(abs(new - old) > by * old for old, new in pairs)


def _spreads(known: Sequence[Stratum]) -> list[float]:
    variances = [_relative(known, [(one.token_variance, one.n_runs) for one in known])]
    if any(one.n_labelled for one in known):
        variances.append(_relative(known, [(one.label_variance, one.n_labelled) for one in known]))
    return [sqrt(sum(of_class) / len(variances)) for of_class in zip(*variances, strict=True)]


def _relative(known: Sequence[Stratum], variances: Sequence[tuple[float, float]]) -> list[float]:
    """Each (variance, runs) over the mean variance, shrunk to 1 with few runs; 1 where nothing varies."""
    measured = [(one.n_requests, variance) for one, (variance, n) in zip(known, variances, strict=True) if n]
    total = sum(n for n, _ in measured)
    mean = sum(n * variance for n, variance in measured) / total if total else 0.0
    if not mean:
        return [1.0] * len(known)
    return [(n * variance / mean + PRIOR_RUNS) / (n + PRIOR_RUNS) for variance, n in variances]


def _two_digits(rate: float) -> float:
    """Merge rates that hardly differ: every distinct share weakens the sample-ratio test."""
    return float(f"{rate:.2g}") or rate


# --------------------------------------------------------------------------- sample-ratio test
#
# Certificates require that audits are a random sample. Under the null hypothesis every request is audited with its
# logged probability; the alternative at a share is a Beta law around it. The beta-binomial e-value is valid at every
# look and a function of counts, so replicas add up in any order. The e-values of all shares are
# multiplied, so that a fault of all shares is noticed sooner. A healthy share lowers the logarithm by about half of
# log(1 + n/100), so count anew in each epoch. If every request has its own share, there is no evidence.

WEIGHT: Final = 100.0  # of the alternative, in requests: at 5 % it looks for shares of 2 to 10 %
LOG_ALARM: Final = log(1_000)  # correct assignments ever reach it with probability of at most 1/1000
_DIGITS: Final = 9  # shares that agree to nine digits are one share: 1 - (1 - 0.05) is not 0.05


@dataclass(frozen=True, slots=True)
class Draws:
    by_share: tuple[tuple[float, int, int], ...] = ()  # (share, requests, audits among them), shares rising

    def __add__(self, other: Draws) -> Draws:
        sums: dict[float, tuple[int, int]] = {}
        for share, n, n_audits in (*self.by_share, *other.by_share):
            so_far = sums.get(share, (0, 0))
            sums[share] = so_far[0] + n, so_far[1] + n_audits
        return Draws(tuple((share, *sums[share]) for share in sorted(sums)))


def count_draws(audit: NDArray[np.bool_], propensity: NDArray[np.float64]) -> Draws:
    """Count audit draws, shape (n,), by share. Raise ValueError for a logged probability outside (0, 1]."""
    if not ((propensity > 0) & (propensity <= 1)).all():
        raise ValueError("propensity: need a probability above 0 and at most 1 for every request")
    shares, at = np.unique(np.round(np.where(audit, propensity, 1 - propensity), _DIGITS), return_inverse=True)
    n = np.bincount(at, minlength=len(shares))
    won = np.bincount(at, weights=audit, minlength=len(shares)).astype(np.int64)
    return Draws(tuple(zip(shares.tolist(), n.tolist(), won.tolist(), strict=True)))


def log_sample_ratio(draws: Draws, *, weight: float = WEIGHT) -> float:
    """Natural logarithm of the e-value against "every audit was drawn at its logged share".

    For one share rho with k audits in n: B(a + k, b + n - k) / (B(a, b) rho^k (1 - rho)^(n - k)), a = weight rho, b =
    weight (1 - rho); summed over shares. At a share of 0 or 1 a single exception makes it infinite. `weight`, above 0,
    is in requests: a smaller one looks further from the share.
    """
    return sum((_log_e(share, n, n_audits, weight) for share, n, n_audits in draws.by_share), 0.0)


def find_sample_ratio_mismatch(draws: Draws) -> str | None:
    """Why audits are not a random sample, as a sentence; None: no evidence against it."""
    log_e = log_sample_ratio(draws)
    if log_e < LOG_ALARM:
        return None
    n = sum(n for _, n, _ in draws.by_share)
    expected = sum(share * n for share, n, _ in draws.by_share)
    seen = sum(n_audits for _, _, n_audits in draws.by_share)
    return f"{seen} audits in {n} requests where {expected:.0f} were expected: not a sample at the logged shares"


def _log_e(share: float, n: int, n_audits: int, weight: float) -> float:
    if share in (0.0, 1.0):
        return 0.0 if n_audits == share * n else inf
    a, b = weight * share, weight * (1 - share)
    mixture = _log_beta(a + n_audits, b + n - n_audits) - _log_beta(a, b)
    return mixture - n_audits * log(share) - (n - n_audits) * log(1 - share)


def _log_beta(a: float, b: float) -> float:
    return lgamma(a) + lgamma(b) - lgamma(a + b)
