"""Estimates what early stopping would be worth on a log's traffic: saving, audits and days, each with an interval.

Levels are replayed as live and judged by agreement with the full run, without references, so this is no certificate.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from suffice.arrays import Bools, Floats
from suffice.assurance.certify import BETS, mixed
from suffice.episode import vote
from suffice.episode.chain_reader import Segmenter
from suffice.episode.checkpoints import visible_step
from suffice.policy.base import build_policy
from suffice.replay.logs import LoggedCall
from suffice.replay.study.runs import answer_tokens
from suffice.replay.traces.columns import Batch
from suffice.scoring.scorer import Scorer
from suffice.settings import Probe, Steps
from suffice.signals.observe import Observer
from suffice.types import Kind, Step

WAVE = 4  # samples drawn at once; a stop inside a wave is charged the whole wave
LEAST_SAMPLES = 3  # answers to one prompt that make a vote
MOST_SAMPLES = 64
CHARS_A_TOKEN = 4.0  # for reasoning without a token count

# Safe first. Certification tests in this order and ends at the first level that fails.
LADDERS: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "votes": tuple({"policy": "beta", "threshold": t} for t in (0.999, 0.995, 0.99, 0.975, 0.95, 0.9, 0.8, 0.7)),
    "visible answers": tuple({"policy": "stable-answer", "streak": n} for n in (8, 6, 5, 4, 3, 2, 1)),
    "trial answers": tuple(
        {"policy": "confidence-threshold", "threshold": t} for t in (0.999, 0.995, 0.99, 0.98, 0.95, 0.9, 0.8)
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRun:
    question: str  # groups runs of the same question
    steps: tuple[Step, ...]
    full_answer: str | None
    full_tokens: int  # generated
    answer_tokens: int = 0  # of these, after the reasoning; a stopped run generates them too
    gold: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelOutcomes:
    """The outcome of each level on each run: R runs, L levels from the safe end."""

    ladder: str
    levels: tuple[str, ...]  # display names
    question: tuple[str, ...]  # R
    full_tokens: Floats  # R
    tokens: Floats  # R x L, probes included
    differs: Bools  # R x L: no answer, or not that of the full run
    stopped: Bools  # R x L
    probe_tokens: Floats  # R: for an audit, which probes at every step
    drop: Floats | None  # R x L: correct in full minus correct when stopped; None: no references

    @property
    def n_runs(self) -> int:
        return len(self.question)


@dataclass(slots=True)
class LogRuns:
    runs: list[LogRun] = field(default_factory=list)
    kind: Kind | None = None
    n_unfit: int = 0  # calls or prompts with too little data to replay


def runs_of_calls(calls: Sequence[LoggedCall], scorer: Scorer) -> LogRuns:
    """Reasoning runs if most calls contain reasoning, otherwise votes over the calls of one prompt."""
    if 2 * sum(any(call.thoughts) for call in calls) >= len(calls) > 0:
        thoughts = [run for call in calls for run in _thought_runs(call, scorer)]
        return LogRuns(runs=thoughts, kind="reasoning", n_unfit=sum(len(c.texts) for c in calls) - len(thoughts))
    by_prompt: dict[str, list[LoggedCall]] = defaultdict(list)
    for call in calls:
        by_prompt[call.prompt or f"call {len(by_prompt)}"].append(call)
    votes = [run for prompt, group in by_prompt.items() if (run := _vote_run(prompt, group, scorer)) is not None]
    return LogRuns(runs=votes, kind="samples" if votes else None, n_unfit=len(by_prompt) - len(votes))


def _vote_run(prompt: str, calls: Sequence[LoggedCall], scorer: Scorer) -> LogRun | None:
    texts = [
        (text, (call.completion_tokens or 0) / len(call.texts) or len(text) / CHARS_A_TOKEN)
        for call in sorted(calls, key=lambda c: c.at_s or 0.0)
        for text in call.texts
    ]
    if len(texts) < LEAST_SAMPLES:
        return None
    steps = tuple(
        Step(index=index, tokens=max(1, round(tokens)), answer=scorer.extract(text), answer_source="sample")
        for index, (text, tokens) in enumerate(texts[:MOST_SAMPLES], 1)
    )
    return LogRun(
        question=prompt,
        steps=steps,
        full_answer=vote.count_votes([s.answer for s in steps]).answer,
        full_tokens=sum(s.tokens for s in steps),
    )


def _thought_runs(call: LoggedCall, scorer: Scorer) -> Iterator[LogRun]:
    n = len(call.texts)
    for text, thought in zip(call.texts, call.thoughts, strict=True):
        if not thought:
            continue
        length = max(1, len(thought) + len(text))
        full = (call.completion_tokens or 0) / n or length / CHARS_A_TOKEN
        share = len(thought) / length
        thinking = full * share if call.reasoning_tokens is None else min(full, call.reasoning_tokens / n)
        steps = tuple(_visible_steps(thought, thinking, scorer))
        yield LogRun(
            question=call.prompt or text[:200],
            steps=steps,
            full_answer=scorer.extract(text),
            full_tokens=max(1, round(full)),
            answer_tokens=max(0, round(full - thinking)),
        )


def _visible_steps(thought: str, tokens: float, scorer: Scorer) -> Iterator[Step]:
    segmenter, before = Segmenter(Steps()), None
    spread = n_chars = 0
    for line in thought.splitlines(keepends=True):
        n_chars += len(line)
        reached = round(tokens * n_chars / len(thought))
        point = segmenter.feed(line, reached - spread)
        spread = reached
        if point is not None:
            step = visible_step(point, scorer.extract(point.text), before)
            before = step.answer
            yield step


def runs_of_traces(batches: Iterable[Batch]) -> LogRuns:
    """The runs of recorded traces, restricted to the kind of the first batch."""
    recorded = LogRuns()
    for batch in batches:
        recorded.kind = recorded.kind or batch.kind
        if batch.kind != recorded.kind:
            recorded.n_unfit += len(batch)
            continue
        for i in range(len(batch)):
            steps = tuple(batch.steps(i))
            # The last step of a chain contains the final answer, so stopping there saves nothing.
            tail = 0 if batch.kind == "samples" else int(answer_tokens(batch.meta[i]))
            recorded.runs.append(
                LogRun(
                    question=batch.question_id[i],
                    steps=steps if batch.kind == "samples" else steps[:-1],
                    full_answer=batch.full_answer[i],
                    full_tokens=int(batch.full_tokens[i]),
                    answer_tokens=tail,
                    gold=batch.gold[i],
                )
            )
    return recorded


def replay_ladder(recorded: LogRuns, scorer: Scorer) -> LevelOutcomes:
    """Replay every level on every run; at least one run."""
    assert recorded.kind is not None, "there is a run"
    runs = recorded.runs
    kind = recorded.kind
    name = _ladder_for(recorded)
    ladder = [build_policy(dict(spec)) for spec in LADDERS[name]]
    needs = tuple(dict.fromkeys(need for policy in ladder for need in policy.needs))
    has_gold = all(run.gold is not None for run in runs)
    shape = (len(runs), len(ladder))
    tokens, drop = np.zeros(shape), np.zeros(shape)
    differs, stopped = np.zeros(shape, dtype=np.bool_), np.zeros(shape, dtype=np.bool_)
    for i, run in enumerate(runs):
        tokens[i] = run.full_tokens + sum(s.probe_tokens for s in run.steps)  # for levels that never stop
        right = has_gold and _is_right(run.full_answer, run, scorer)
        observer = Observer(needs, kind)
        # After the last sample nothing is left to stop.
        for place, step in enumerate(run.steps[:-1] if kind == "samples" else run.steps):
            signals = observer.observe(step)
            for level in np.flatnonzero(~stopped[i]).tolist():
                if ladder[level].decide(signals).action == "stop":
                    stopped[i, level] = True
                    tokens[i, level] = min(_count_spent_tokens(run, place, kind), 2 * run.full_tokens)
                    differs[i, level] = signals.answer is None or signals.answer != run.full_answer
                    if has_gold:
                        drop[i, level] = float(right) - float(_is_right(signals.answer, run, scorer))
            if stopped[i].all():
                break
    return LevelOutcomes(
        ladder=name,
        levels=tuple(
            " ".join([str(spec["policy"]), *(f"{v:g}" for k, v in spec.items() if k != "policy")])
            for spec in LADDERS[name]
        ),
        question=tuple(run.question for run in runs),
        full_tokens=np.array([run.full_tokens for run in runs], dtype=np.float64),
        tokens=tokens,
        differs=differs,
        stopped=stopped,
        probe_tokens=np.array([_count_probe_tokens(run, kind) for run in runs], dtype=np.float64),
        drop=drop if has_gold else None,
    )


def _ladder_for(recorded: LogRuns) -> str:
    if recorded.kind == "samples":
        return "votes"
    probed = sum(any(s.logprobs or s.confidence is not None for s in run.steps) for run in recorded.runs)
    return "trial answers" if 2 * probed >= len(recorded.runs) else "visible answers"


def _count_spent_tokens(run: LogRun, place: int, kind: Kind) -> int:
    if kind == "samples":
        drawn = min(len(run.steps), -(-(place + 1) // WAVE) * WAVE)
        return sum(s.tokens for s in run.steps[:drawn])
    seen = run.steps[: place + 1]
    return sum(s.tokens + s.ctx_tokens + s.probe_tokens for s in seen) + run.answer_tokens


def _count_probe_tokens(run: LogRun, kind: Kind) -> int:
    if kind != "reasoning":
        return 0
    recorded = sum(s.probe_tokens for s in run.steps)
    return recorded or len(run.steps) * Probe().max_tokens


def _is_right(answer: str | None, run: LogRun, scorer: Scorer) -> bool:
    gold = run.gold or ""
    return scorer.match(answer, scorer.normalise(gold) or gold)


N_DRAWS = 1_000
INTERVAL = 0.9  # coverage of every printed interval
MOST_AUDITS = 2.0**23  # more count as unreachable
# EM drop over disagreement with the full run, as seen in simulations of stopped runs.
DROP_PER_DISAGREEMENT = (0.25, 0.45)
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantityInterval:
    middle: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelEstimate:
    name: str
    stopped: float  # share of runs
    saving: QuantityInterval  # share of the full runs' generated tokens, net of probes
    disagreement: QuantityInterval  # share of runs with another answer than the full run
    audits: float | None  # audits to a certificate at the median disagreement; None: unreachable


@dataclass(frozen=True, slots=True, kw_only=True)
class CertifiableLevel:
    judged_by: str  # "agreement" or "labels"
    p_any: float  # probability that any level is certified with the allowed audits
    level: str | None  # the level certified most often among the draws; None: none
    saving: QuantityInterval  # per unaudited request; 0 where nothing is certified
    audits: QuantityInterval | None  # audits to the certificate; None: no certificate
    days: QuantityInterval | None  # to collect these audits; None: no certificate, or no times in the log
    audit_cost: QuantityInterval  # share of tokens: the saving that audits forgo, and their probes
    net_saving: QuantityInterval  # of all traffic, audits included
    net_saving_of_all_tokens: QuantityInterval | None  # prompt tokens included; None: the log has no prompt counts


@dataclass(frozen=True, slots=True, kw_only=True)
class LogTraffic:
    n_calls: int
    n_requests: int  # full runs that the calls represent
    span_s: float | None  # from the first call to the last
    requests_per_day: QuantityInterval | None
    completion_share: float | None  # generated tokens among all tokens
    n_counted: int  # calls with their tokens counted


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEstimate:
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


def expected_audits(risk: Floats, *, max_em_drop: float, confidence: float) -> Floats:
    """Audits after which the e-process of `certify.log_wealth` is expected to certify a level; infinite if it never is.

    risk  true share of runs that the stop loses, in [0, 1]; any shape

    Here the logarithm of each wealth grows by its mean; most real runs certify a little earlier, because chance helps a
    test that is evaluated after every audit.
    """
    bets = np.array(BETS).reshape(-1, *[1] * np.ndim(risk)) / (1 - max_em_drop)
    kept, lost = np.log1p(bets * max_em_drop), np.log1p(bets * (max_em_drop - 1))
    growth = risk * (lost - kept) + kept
    wanted = -np.log(1 - confidence)
    reachable = growth.max(axis=0) > 1e-9
    low = np.zeros(reachable.shape)
    high = np.where(reachable, 1.0, 0.0)
    while (short := reachable & (mixed(high * growth) < wanted) & (high < MOST_AUDITS)).any():
        high = np.where(short, 2 * high, high)
    for _ in range(26):  # from 2^23 down to an eighth of an audit
        middle = (low + high) / 2
        enough = mixed(middle * growth) >= wanted
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
    """Estimate saving, audits and days from the outcomes of the levels.

    max_em_drop  fraction
    audit_share  fraction of requests that always run in full
    most_audits  the number of newest audits that a certificate may use

    Runs are drawn by the Bayesian bootstrap (Rubin 1981, Annals of Statistics 9(1)) over questions. Half a disagreement
    and half an agreement are added, so that zero observed disagreements do not imply zero risk; likewise half a run
    that every level stops and half a run that none does.
    """
    weights, extra = _draw_weights(evidence.question, rng)
    n = weights.sum(axis=1) + extra.sum(axis=1)
    disagreement = (weights @ evidence.differs + extra[:, :1]) / n[:, None]
    probing = (weights @ evidence.probe_tokens) / (weights @ evidence.full_tokens)
    per_disagreement, assumption = _draw_drops(evidence, weights, rng)
    rate = None
    if traffic.requests_per_day is not None and traffic.span_s is not None:
        rate = _draw_rate(traffic.n_requests, traffic.span_s, rng)
    drawn = _Draws(evidence.levels, _draw_savings(evidence, weights, rng), probing, rate, audit_share, traffic)

    def promise(judged_by: str, risk: Floats) -> CertifiableLevel:
        audits = expected_audits(risk, max_em_drop=max_em_drop, confidence=confidence)
        return drawn.promise(judged_by, audits, most_audits)

    middle_audits = expected_audits(np.median(disagreement, axis=0), max_em_drop=max_em_drop, confidence=confidence)
    levels = tuple(
        LevelEstimate(
            name=name,
            stopped=float(evidence.stopped[:, j].mean()),
            saving=_interval(drawn.saving[:, j]),
            disagreement=_interval(disagreement[:, j]),
            audits=float(middle_audits[j]) if np.isfinite(middle_audits[j]) else None,
        )
        for j, name in enumerate(evidence.levels)
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
        levels=levels,
        promises=(promise("agreement", disagreement), promise("labels", disagreement * per_disagreement[:, None])),
        drop_per_disagreement=_interval(per_disagreement),
        assumed=(*assumed, assumption),
    )


@dataclass(frozen=True, slots=True)
class _Draws:
    levels: tuple[str, ...]
    saving: Floats  # draws x levels
    probing: Floats  # draws: the share of tokens spent on probes of audits
    rate: Floats | None  # draws: requests per day; None: unknown
    audit_share: float
    traffic: LogTraffic

    def promise(self, judged_by: str, audits: Floats, most_audits: int) -> CertifiableLevel:
        # The last level of the unbroken run of passes from the safe end; -1: the first level fails.
        certified = np.cumprod(audits <= most_audits, axis=1).sum(axis=1) - 1
        has = certified >= 0
        place = np.maximum(certified, 0)
        draws = np.arange(N_DRAWS)
        saved = np.where(has, np.maximum(self.saving[draws, place], 0.0), 0.0)
        cost = self.audit_share * (saved + self.probing)
        net, needed = saved - cost, audits[draws, place][has]
        rate, share = self.rate, self.traffic.completion_share
        return CertifiableLevel(
            judged_by=judged_by,
            p_any=float(has.mean()),
            level=self.levels[int(np.bincount(certified[has]).argmax())] if has.any() else None,
            saving=_interval(saved),
            audits=_interval(needed) if has.any() else None,
            days=None if rate is None or not has.any() else _interval(needed / (self.audit_share * rate[has])),
            audit_cost=_interval(cost),
            net_saving=_interval(net),
            net_saving_of_all_tokens=None if share is None else _interval(net * share),
        )


def _draw_weights(questions: Sequence[str], rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Weights of runs (draws x runs), equal within a question; and of half a disagreement and half an agreement."""
    names = {question: place for place, question in enumerate(dict.fromkeys(questions))}
    each = rng.gamma(1.0, size=(N_DRAWS, len(names)))
    return each[:, [names[q] for q in questions]], rng.gamma(0.5, size=(N_DRAWS, 2))


def _draw_savings(evidence: LevelOutcomes, weights: Floats, rng: np.random.Generator) -> Floats:
    """Share of the full runs' tokens that each level saves (draws x levels).

    A safe level stops few runs. To widen its interval, add half a run of mean length that every level stops as the most
    aggressive one does, and half a run that none stops.
    """
    full, bold = evidence.full_tokens, evidence.stopped[:, -1]
    kept = 1 + evidence.probe_tokens.sum() / full.sum()
    cut = evidence.tokens[bold, -1].sum() / full[bold].sum() if bold.any() else kept
    extra = rng.gamma(0.5, size=(N_DRAWS, 2)) * full.mean()
    spent = weights @ evidence.tokens + (extra @ np.array([cut, kept]))[:, None]
    return np.asarray(1 - spent / (weights @ full + extra.sum(axis=1))[:, None])


def _draw_drops(evidence: LevelOutcomes, weights: Floats, rng: np.random.Generator) -> tuple[Floats, str]:
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


def _draw_rate(n_requests: int, span_s: float, rng: np.random.Generator) -> Floats:
    return np.asarray(rng.gamma(max(1.0, n_requests - 1.0), size=N_DRAWS)) / (span_s / DAY_S)


def _interval(values: Floats) -> QuantityInterval:
    ends = np.quantile(values, [(1 - INTERVAL) / 2, 0.5, (1 + INTERVAL) / 2])
    low, middle, high = ends.round(12) + 0.0  # removes -0
    return QuantityInterval(middle=float(middle), low=float(low), high=float(high))


def traffic_of(calls: Sequence[LoggedCall], n_requests: int, rng: np.random.Generator) -> LogTraffic:
    """Requests per day, and the generated share of tokens; all calls of a vote count as one of `n_requests`."""
    times = sorted(call.at_s for call in calls if call.at_s is not None)
    span = times[-1] - times[0] if len(times) > 1 and times[-1] > times[0] else None
    counted = [c for c in calls if c.completion_tokens is not None and c.prompt_tokens is not None]
    completed = sum(c.completion_tokens or 0 for c in counted)
    read = sum(c.prompt_tokens or 0 for c in counted)
    return LogTraffic(
        n_calls=len(calls),
        n_requests=n_requests,
        span_s=span,
        requests_per_day=None if span is None else _interval(_draw_rate(n_requests, span, rng)),
        completion_share=completed / (completed + read) if completed + read else None,
        n_counted=len(counted),
    )
