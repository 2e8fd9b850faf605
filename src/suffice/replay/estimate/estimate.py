"""What early stopping would be worth on the traffic of a log: saving, audits, days, each with an interval. Pure.

It knows counts and chances and refuses to promise: a certificate comes from audits of live traffic
alone. Every quantity is drawn many times from what the log allows, and the middle and the ends of
those draws are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from suffice.replay.estimate.runs import LevelOutcomes
from suffice.replay.logs.formats import LoggedCall

N_DRAWS = 1_000
INTERVAL = 0.9  # of every interval that is printed
BETS = (0.25, 0.45, 0.65, 0.85)
MOST_AUDITS = 2.0**23  # more are out of reach
# In simulations of stopped runs the EM drop was this part of the disagreement with the full run.
DROP_PER_DISAGREEMENT = (0.25, 0.45)
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantityInterval:
    """A quantity with the interval that holds it with the printed confidence."""

    middle: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelEstimate:
    """One level of the ladder on the runs of the log."""

    name: str
    stopped: float  # share of runs that it stops
    saving: QuantityInterval  # share of the full runs' generated tokens, probes paid
    disagreement: QuantityInterval  # share of runs that it answers otherwise
    audits: float | None  # full runs that a certificate takes at the middle disagreement; None: out of reach


@dataclass(frozen=True, slots=True, kw_only=True)
class CertifiableLevel:
    """What can be certified in one way of judging a stop."""

    judged_by: str  # "agreement" or "labels"
    p_any: float  # chance that any level at all is certified with the audits allowed
    level: str | None  # the level certified most often among the draws; None: none
    saving: QuantityInterval  # of a request that is no audit; 0 where nothing is certified
    audits: QuantityInterval | None  # that the certificate takes, where there is one
    days: QuantityInterval | None  # to gather them; None: no certificate, or no times in the log
    audit_cost: QuantityInterval  # share of tokens: what audits forgo, and their probes
    net_saving: QuantityInterval  # of all traffic, audits counted
    net_saving_of_all_tokens: QuantityInterval | None  # prompts counted as well; None: the log has no prompt counts


@dataclass(frozen=True, slots=True, kw_only=True)
class LogTraffic:
    """How much there is. None: the log does not say."""

    n_calls: int
    n_requests: int  # full runs that they stand for
    span_s: float | None  # from the first call to the last
    requests_per_day: QuantityInterval | None
    completion_share: float | None  # generated tokens among all tokens
    n_counted: int  # calls with their tokens counted


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEstimate:
    """Everything that is said of a log."""

    max_em_drop: float
    confidence: float
    audit_share: float
    most_audits: int
    n_runs: int
    n_questions: int
    ladder: str
    traffic: LogTraffic
    levels: tuple[LevelEstimate, ...]
    promises: tuple[CertifiableLevel, ...]
    drop_per_disagreement: QuantityInterval
    assumed: tuple[str, ...]


def expected_audits(risk: NDArray[np.float64], *, max_em_drop: float, confidence: float) -> NDArray[np.float64]:
    """Audits after which a count e-process is expected to certify a level; infinite where it never does.

    risk  true share of runs that the stop loses, in [0, 1]; any shape

    The e-process is a mean over four constant bets, wealth (1 + v e) for an audit that agrees and
    (1 + v (e - 1)) for one that is lost, v = f / (1 - e), f = .25, .45, .65, .85; by Ville's inequality it
    passes 1 / (1 - confidence) with at most that chance when the risk is e or more (Waudby-Smith and Ramdas
    2024, JRSS B 86(1), arXiv:2010.09686, for betting on bounded means). Here the logarithm of each wealth
    grows by its mean. A test that is looked at after every audit passes a little earlier in most runs, because
    luck on the way counts; a run without luck takes longer.
    """
    if not 0 < max_em_drop < 1 or not 0 < confidence < 1:
        raise ValueError(f"need 0 < max_em_drop < 1 and 0 < confidence < 1; got {max_em_drop=} {confidence=}")
    bets = np.array(BETS) / (1 - max_em_drop)
    kept, lost = np.log1p(bets * max_em_drop), np.log1p(bets * (max_em_drop - 1))
    growth = np.asarray(risk)[..., None] * (lost - kept) + kept
    wanted = -np.log(1 - confidence)

    def wealth(n: NDArray[np.float64]) -> NDArray[np.float64]:
        logs = n[..., None] * growth
        most = logs.max(axis=-1)
        return np.asarray(most + np.log(np.exp(logs - most[..., None]).mean(axis=-1)))

    reachable = growth.max(axis=-1) > 1e-9
    low = np.zeros(reachable.shape)
    high = np.where(reachable, 1.0, 0.0)
    while (short := reachable & (wealth(high) < wanted) & (high < MOST_AUDITS)).any():
        high = np.where(short, 2 * high, high)
    for _ in range(26):  # from 2^23 down to an eighth of an audit
        middle = (low + high) / 2
        enough = wealth(middle) >= wanted
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return np.where(reachable & (high < MOST_AUDITS), np.ceil(high - 0.125), np.inf)


def estimate_levels(
    evidence: LevelOutcomes,
    traffic: LogTraffic,
    *,
    max_em_drop: float,
    confidence: float,
    audit_share: float,
    most_audits: int,
    rng: np.random.Generator,
    assumed: Sequence[str] = (),
) -> LogEstimate:
    """Estimate from what the levels did with the runs of a log.

    max_em_drop  fraction; audit_share  fraction of requests that run in full for good
    most_audits  a certificate may rest on: older ones are forgotten

    Runs are drawn by the Bayesian bootstrap (Rubin 1981, Annals of Statistics 9(1)) over questions, with half
    a disagreement and half an agreement added, so that no disagreement seen does not mean none there is; and
    likewise half a run that every level stops and half a run that none does.
    """
    weights, extra = _weights(evidence.question, rng)
    total = weights @ evidence.full_tokens
    n = weights.sum(axis=1) + extra.sum(axis=1)
    disagreement = (weights @ evidence.differs + extra[:, :1]) / n[:, None]
    probing = (weights @ evidence.probe_tokens) / total
    per_disagreement, said = _per_disagreement(evidence, weights, rng)
    rate = _rates(traffic, rng)
    saving = _savings(evidence, weights, rng)

    def promise(judged_by: str, risk: NDArray[np.float64]) -> CertifiableLevel:
        audits = expected_audits(risk, max_em_drop=max_em_drop, confidence=confidence)
        certified = _last_of_unbroken_run(audits <= most_audits)
        return _promise(
            judged_by, certified, audits, saving, probing, rate, evidence.levels, audit_share, traffic.completion_share
        )

    return LogEstimate(
        max_em_drop=max_em_drop,
        confidence=confidence,
        audit_share=audit_share,
        most_audits=most_audits,
        n_runs=evidence.n_runs,
        n_questions=len(set(evidence.question)),
        ladder=evidence.ladder,
        traffic=traffic,
        levels=_levels(evidence, saving, disagreement, max_em_drop, confidence),
        promises=(
            promise("agreement", disagreement),
            promise("labels", disagreement * per_disagreement[:, None]),
        ),
        drop_per_disagreement=_range(per_disagreement),
        assumed=(*assumed, said),
    )


def _weights(questions: Sequence[str], rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights of runs (draws x runs), equal within a question; and of half a disagreement and half an agreement."""
    names = {question: place for place, question in enumerate(dict.fromkeys(questions))}
    each = rng.gamma(1.0, size=(N_DRAWS, len(names)))
    extra = rng.gamma(0.5, size=(N_DRAWS, 2))
    place = np.array([names[q] for q in questions])
    return each[:, place], extra


def _savings(evidence: LevelOutcomes, weights: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Share of the full runs' tokens that each level saves, drawn (draws x levels).

    A safe level stops few runs, and its interval must not rest on those alone. So half a run is added that every
    level stops as the boldest does, and half a run that none stops, both of mean length.
    """
    full, bold = evidence.full_tokens, evidence.stopped[:, -1]
    kept = 1 + evidence.probe_tokens.sum() / full.sum()
    cut = evidence.tokens[bold, -1].sum() / full[bold].sum() if bold.any() else kept
    extra = rng.gamma(0.5, size=(N_DRAWS, 2)) * full.mean()
    spent = weights @ evidence.tokens + (extra @ np.array([cut, kept]))[:, None]
    return np.asarray(1 - spent / (weights @ full + extra.sum(axis=1))[:, None])


def _per_disagreement(
    evidence: LevelOutcomes, weights: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.float64], str]:
    """EM drop per disagreement, drawn (draws); and what is assumed of it."""
    low, high = DROP_PER_DISAGREEMENT
    if evidence.drop is None or evidence.differs.sum() < 5:
        return rng.uniform(low, high, N_DRAWS), (
            f"an answer that differs from the full run's costs {low:g} to {high:g} of an Exact Match on average, as in"
            " simulations: nothing in this log says how often the full run is right"
        )
    lost = (weights @ evidence.drop).sum(axis=1)
    differing = (weights @ evidence.differs).sum(axis=1)
    share = np.clip(np.divide(lost, differing, out=np.zeros_like(lost), where=differing > 0), 0.05, 1.0)
    return share, "what a differing answer costs in Exact Match is as in the traces named by --like"


def _rates(traffic: LogTraffic, rng: np.random.Generator) -> NDArray[np.float64] | None:
    """Requests a day, drawn: Gamma with the count's own spread."""
    if traffic.requests_per_day is None or traffic.span_s is None:
        return None
    return np.asarray(rng.gamma(max(1.0, traffic.n_requests - 1.0), size=N_DRAWS)) / (traffic.span_s / DAY_S)


def _last_of_unbroken_run(passes: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Place of the last level of the unbroken run of passes from the safe end; -1: the first fails already."""
    return np.asarray(np.cumprod(passes, axis=1).sum(axis=1) - 1, dtype=np.int64)


def _promise(
    judged_by: str,
    certified: NDArray[np.int64],
    audits: NDArray[np.float64],
    saving: NDArray[np.float64],
    probing: NDArray[np.float64],
    rate: NDArray[np.float64] | None,
    levels: Sequence[str],
    audit_share: float,
    completion_share: float | None,
) -> CertifiableLevel:
    draws = np.arange(len(certified))
    has = certified >= 0
    place = np.maximum(certified, 0)
    saved = np.where(has, np.maximum(saving[draws, place], 0.0), 0.0)
    cost = audit_share * (saved + probing)
    net = saved - cost
    needed = audits[draws, place][has]
    counts = np.bincount(certified[has], minlength=len(levels)) if has.any() else None
    return CertifiableLevel(
        judged_by=judged_by,
        p_any=float(has.mean()),
        level=None if counts is None else levels[int(counts.argmax())],
        saving=_range(saved),
        audits=_range(needed) if has.any() else None,
        days=None if rate is None or not has.any() else _range(needed / (audit_share * rate[has])),
        audit_cost=_range(cost),
        net_saving=_range(net),
        net_saving_of_all_tokens=None if completion_share is None else _range(net * completion_share),
    )


def _levels(
    evidence: LevelOutcomes,
    saving: NDArray[np.float64],
    disagreement: NDArray[np.float64],
    max_em_drop: float,
    confidence: float,
) -> tuple[LevelEstimate, ...]:
    middles = np.median(disagreement, axis=0)
    audits = expected_audits(middles, max_em_drop=max_em_drop, confidence=confidence)
    return tuple(
        LevelEstimate(
            name=name,
            stopped=float(evidence.stopped[:, j].mean()),
            saving=_range(saving[:, j]),
            disagreement=_range(disagreement[:, j]),
            audits=float(audits[j]) if np.isfinite(audits[j]) else None,
        )
        for j, name in enumerate(evidence.levels)
    )


def _range(values: NDArray[np.float64]) -> QuantityInterval:
    ends = np.quantile(values, [(1 - INTERVAL) / 2, 0.5, (1 + INTERVAL) / 2])
    low, middle, high = ends.round(12) + 0.0  # sums of weights leave a trace of -0
    return QuantityInterval(middle=float(middle), low=float(low), high=float(high))


def traffic_of(calls: Sequence[LoggedCall], n_requests: int, rng: np.random.Generator) -> LogTraffic:
    """How many requests a day, and which share of the tokens is generated.

    n_requests  full runs that the calls stand for: a vote's calls are one request
    """
    times = sorted(call.at_s for call in calls if call.at_s is not None)
    span = times[-1] - times[0] if len(times) > 1 and times[-1] > times[0] else None
    counted = [c for c in calls if c.completion_tokens is not None and c.prompt_tokens is not None]
    completed = sum(c.completion_tokens or 0 for c in counted)
    read = sum(c.prompt_tokens or 0 for c in counted)
    per_day = None
    if span is not None:
        per_day = _range(np.asarray(rng.gamma(max(1.0, n_requests - 1.0), size=N_DRAWS)) / (span / DAY_S))
    return LogTraffic(
        n_calls=len(calls),
        n_requests=n_requests,
        span_s=span,
        requests_per_day=per_day,
        completion_share=completed / (completed + read) if completed + read else None,
        n_counted=len(counted),
    )
