"""The numbers of one run in a report, and their sums over runs; `estimate` makes means and intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, Protocol, TypeVar
from zlib import crc32

import msgspec

from suffice.assurance.guarantee import RECENT_AUDITS, WINDOW_RUNS
from suffice.assurance.labels import JUDGE, rank_of
from suffice.assurance.money import undrawn_factor, undrawn_tokens
from suffice.assurance.sampling import UnloggedRequests, weight_of
from suffice.assurance.saving import saved_tokens, saved_usd, spent_tokens
from suffice.types import FINISHED_ENDS, Episode, Feedback, Outcome, Overhead, Request, Usage

DEATH_ENDS = ("shutdown", "lost")  # of every run that a gateway had open when it ended
UNKNOWN_ENDS = ("rejected", *DEATH_ENDS)  # the model was not called, or its reply is unknown
ABANDONED_ENDS = ("client_left", "asked")  # audits with these ends count as losses
# Ends without an answer, because the upstream gave none within its limits or was not called. The full run is wrong
# then, so no stop loses anything against it: leaving the audit out is the safe side.
NO_ANSWER_ENDS = ("upstream_error", "timeout", "rejected")
ENDED = (*FINISHED_ENDS, "stopped", "asked")  # runs that ended by themselves, by a stop or because a person asked
# Values of `Feedback.request_reason` whose labels represent the average run: unsolicited, or a random draw. Labels that
# were requested because a run was doubtful are biased.
REPRESENTATIVE = ("", "control")


def is_audit(request: Request, *, probes: bool) -> bool:
    """Whether this request is an audit, whatever its end; known when it begins."""
    drawn = request.audit or (request.mode == "observe" and not probes)
    return request.ungoverned is None and request.delivery == 1 and drawn


def is_abandoned(outcome: Outcome) -> bool:
    """Whether an audit that ended so counts as a loss, because nobody knows how it would have ended."""
    return outcome.end_reason in ABANDONED_ENDS and not outcome.finished_unread


def describe_left(request: Request, outcome: Outcome) -> Literal["finished", "lost"] | None:
    """How an audit of `enforce` counts whose caller left it or asked for its answer; None: it is no such audit."""
    if not is_audit(request, probes=True) or outcome.end_reason not in ABANDONED_ENDS:
        return None
    return "lost" if is_abandoned(outcome) else "finished"


Match = Callable[[str | None, str], bool]
K = TypeVar("K")


class SequencedLabel(Protocol):
    @property
    def seq(self) -> int: ...

    @property
    def feedback(self) -> Feedback: ...


class LabelledEpisode(Protocol):
    @property
    def episode(self) -> Episode: ...

    @property
    def labels(self) -> Sequence[SequencedLabel]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RunNumbers:
    group: str  # the question: its runs are dependent
    full: bool
    enforce: bool
    audit: bool
    weight: float  # 1/P(assignment): makes the arms comparable when the audit share changed
    stopped: bool
    would_stop: bool
    spent: float | None  # tokens: delivered, in probes, and discarded
    # Of the run alone; for a vote that was decided early, of all its samples (`money`).
    baseline_tokens: float | None
    would_spend: float | None
    cost_usd: float | None  # total, at the prices of its time; None: unknown
    baseline_usd: float | None  # cost of `baseline_tokens`
    would_cost_usd: float | None  # with the shadow stop made
    correct: bool | None  # None: no representative label, or the reply is unknown
    disagrees: bool | None  # None: unknown
    drop: int | None  # -1, 0, +1; None: unknown
    abandoned_audit: bool  # counted as a loss, labelled or not
    undrawn_tokens: float = 0.0  # estimate, for the samples that a decided vote did not draw
    undrawn_usd: float = 0.0  # their cost; 0 where prices are unknown
    sampling_weight: float = 1.0  # `sampling.weight_of`
    saved: int | None = None  # `saving.saved_tokens`
    saved_usd: float | None = None  # `saving.saved_usd`

    @property
    def would_save_usd(self) -> float | None:
        if self.cost_usd is None or self.would_cost_usd is None:
            return None
        return self.cost_usd + self.undrawn_usd - self.would_cost_usd


def current_label(labels: Sequence[SequencedLabel]) -> Feedback | None:
    """The label with a verdict or a reference answer that counts: of the most trusted source, the last one.

    One of a judge model counts only without any other.
    """
    telling = [x for x in labels if x.feedback.correct is not None or x.feedback.gold is not None]
    best = max(telling, key=lambda x: (x.feedback.source != JUDGE, rank_of(x.feedback), x.seq), default=None)
    return None if best is None else best.feedback


def measure_run(item: LabelledEpisode, match: Match) -> RunNumbers:
    """`match` is never called for a missing answer. A repeated delivery is not stopped, and is never evidence."""
    request, outcome = item.episode.request, item.episode.outcome
    full = (request.mode == "observe" or request.audit) and request.delivery == 1
    if request.delivery > 1:
        outcome = replace(outcome, stop_step=None)
    label = current_label(item.labels)
    counts = label is not None and label.request_reason in REPRESENTATIVE
    counts = counts and outcome.end_reason not in (*UNKNOWN_ENDS, "asked")
    spent = baseline = would_spend = None
    undrawn, factor = undrawn_tokens(request, outcome), undrawn_factor(request, outcome)
    alone_usd = None if outcome.cost_usd is None else outcome.cost_usd - (outcome.overhead_usd or 0.0)
    finished = outcome.is_finished
    would_cost = outcome.cost_usd if outcome.stop_step is None else outcome.would_cost_usd
    disagrees, drop = _compare(request, outcome, label, match) if full else (None, None)
    if outcome.usage is not None:
        completion = outcome.usage.completion_tokens
        spent, baseline = spent_tokens(outcome.usage, outcome.overhead), completion + undrawn
        would_spend = _would_spend(outcome, completion) if finished else None
    return RunNumbers(
        group=request.question_key or f"episode {request.episode_id}",
        full=full,
        enforce=request.mode == "enforce",
        audit=request.audit,
        weight=1 / request.propensity,
        stopped=outcome.stopped,
        would_stop=outcome.stop_step is not None and not outcome.stopped,
        spent=spent,
        saved=saved_tokens(request, outcome),
        saved_usd=saved_usd(request, outcome),
        baseline_tokens=baseline,
        would_spend=would_spend,
        cost_usd=outcome.cost_usd,
        baseline_usd=None if alone_usd is None else alone_usd * factor,
        would_cost_usd=would_cost if finished else None,
        correct=is_right(outcome.answer, outcome.answer, label, match) if counts else None,
        disagrees=disagrees,
        drop=drop,
        abandoned_audit=full and request.audit and is_abandoned(outcome),
        undrawn_tokens=undrawn,
        undrawn_usd=(alone_usd or 0.0) * (factor - 1),
        sampling_weight=weight_of(request, outcome),
    )


def _would_spend(outcome: Outcome, delivered: int) -> int:
    stop = outcome.stop_step
    later = 0 if stop is None else sum(step.tokens for step in outcome.steps if step.index > stop)
    probes = sum(step.probe_tokens for step in outcome.steps if stop is None or step.index <= stop)
    return max(0, delivered - later) + probes


def is_right(answer: str | None, delivered: str | None, label: Feedback | None, match: Match) -> bool | None:
    """Return None if the label does not tell."""
    if label is None:
        return None
    if answer == delivered and label.correct is not None:
        return label.correct
    if label.gold is not None:
        return answer is not None and match(answer, label.gold)
    # Without a reference, an answer that differs from a right one is wrong, and any other is unknown.
    return False if label.correct or answer is None else None


def _compare(
    request: Request, outcome: Outcome, label: Feedback | None, match: Match
) -> tuple[bool | None, int | None]:
    """Whether the stop of a full run changes the answer, and Z: +1 it loses the right answer, -1 it gains it."""
    if request.audit and is_abandoned(outcome):
        return True, 1
    if not outcome.is_finished:
        return None, None
    if outcome.stop_step is None or outcome.would_answer == outcome.answer:
        return False, None if label is None else 0
    if label is None:
        return True, None
    # An answer that no label tells of is never a gain.
    right, stop_right = (is_right(one, outcome.answer, label, match) for one in (outcome.answer, outcome.would_answer))
    return True, int(right or False) - int(stop_right or False)


# --------------------------------------------------------------------------- sums over runs
#
# Sums are kept in `N_GROUPS` random groups of questions, so that leaving one group out at a time gives an interval that
# respects repeated questions without keeping the runs (the delete-a-group jackknife: Kott 2001, Journal of Official
# Statistics 17(4)). Tallies are additive: a run is added when it ends, and a later label replaces its marks.

ENFORCED_DROP: Final = "drop"
OBSERVED_DROP: Final = "would_drop"
SAVED: Final = "saved"
SAVED_USD: Final = "saved_usd"
MOST_CALLERS: Final = 200  # whose audits are counted
N_GROUPS: Final = 32  # of questions, by hash of their key


class TokenTotals(msgspec.Struct, kw_only=True):
    client_prompt: int = 0  # the clients' prompts, each once
    client_completion: int = 0  # everything generated for delivered runs
    client_cached: int = 0  # part of `client_prompt` that a prefix cache served
    probe: int = 0  # generated by probes
    extra_prompt: int = 0  # prompts sent again: probes, samples, continuations
    cached_prompt: int = 0  # part of `extra_prompt` that a prefix cache served
    discarded: int = 0  # generated, paid for, not delivered
    n_unknown: int = 0  # governed requests that ended without usage

    def add(self, usage: Usage | UnloggedRequests, overhead: Overhead | UnloggedRequests) -> None:
        self.client_prompt += usage.prompt_tokens
        self.client_completion += usage.completion_tokens
        self.client_cached += usage.cached_tokens
        self.probe += overhead.probe_tokens
        self.extra_prompt += overhead.extra_prompt_tokens
        self.cached_prompt += overhead.cached_prompt_tokens
        self.discarded += overhead.discarded_tokens


class CallerAudits(msgspec.Struct, kw_only=True):
    caller: str  # "": no key is required
    n_audits: int = 0
    n_left: int = 0  # by their client, or because it asked for the answer at once
    n_finished_unread: int = 0  # of `n_left`
    n_lost: int = 0  # of `n_left`: counted as losses


class Tally(msgspec.Struct, kw_only=True):
    scorer: str = ""  # that compared answers with labels
    n_begun: int = 0  # requests, ended or not
    certified: bool = True  # every governed request ran under a certified policy
    kinds: list[str] = []  # oldest first
    modes: list[str] = []
    ends: dict[str, int] = {}
    degraded: dict[str, int] = {}
    ungoverned: dict[str, int] = {}
    tokens: TokenTotals = msgspec.field(default_factory=TokenTotals)
    money: dict[str, float] = {}  # by field of `MoneyTotals`
    counts: dict[str, int] = {}  # of governed runs, by name
    audits_at_s: list[float] = []  # of the latest, oldest first
    callers: dict[str, CallerAudits] = {}  # by name; see `_add_audit`
    extracted: str = ""  # of the latest full runs, oldest first: "1" if the scorer could read the answer, else "0"
    rates: dict[str, list[float]] = {}  # by name: marked runs, sums of weights, of true weights, of squared weights
    # … but for drops: pairs, weights, their squares, weights of lost, gained and pending ones, and their numbers;
    # for `SAVED`, of enforced runs: tokens spent, saved, in probes or discarded, saved under certified policies, and
    # stopped runs without an estimate, which count as if they had saved nothing; for `SAVED_USD`: spent and saved.
    groups: dict[str, dict[int, list[float]]] = {}  # by name and group of questions: runs, then sums

    def add(self, request: Request, outcome: Outcome, run: RunNumbers | None) -> None:
        """`run` is None if the request passed through."""
        _count(self.ends, outcome.end_reason)
        for place in outcome.degraded:
            _count(self.degraded, place)
        known = outcome.cost_usd is not None
        governed = request.ungoverned is None
        self._pay(int(known), int(not known), outcome.cost_usd or 0.0, outcome.overhead_usd or 0.0, governed=governed)
        if run is None:
            _count(self.ungoverned, request.ungoverned or "")
            return
        self.certified = self.certified and request.certified
        for values, value in ((self.kinds, request.kind), (self.modes, request.mode)):
            if value not in values:
                values.append(value)
        if request.audit:
            self.audits_at_s = sorted((*self.audits_at_s, request.received_at_s))[-RECENT_AUDITS:]
            self._add_audit(request.sender, describe_left(request, outcome))
        self._add_counts(request, outcome, run)
        self.tokens.add(outcome.usage or Usage(prompt_tokens=0, completion_tokens=0), outcome.overhead)
        self.tokens.n_unknown += outcome.usage is None
        self._add_rate("disagreement", run.disagrees if run.full else None, run.sampling_weight)
        self._add_marks(run)
        self._add_spent(run)
        if run.enforce and run.spent is not None:
            w = run.sampling_weight
            saved = run.saved or 0
            spent = outcome.overhead
            own = w * (spent.probe_tokens + spent.discarded_tokens)
            sums = (w * run.spent, saved, own, w * saved * request.certified, w * (run.saved is None))
            _add_sums(self.rates, SAVED, sums)
        if run.enforce and run.cost_usd is not None:
            _add_sums(self.rates, SAVED_USD, (run.sampling_weight * run.cost_usd, run.saved_usd or 0.0))

    def relabel(self, before: RunNumbers, after: RunNumbers) -> None:
        self._add_marks(before, sign=-1)
        self._add_marks(after)

    def add_unkept(self, cell: UnloggedRequests) -> None:
        self.n_begun += cell.n
        for end, n in cell.ends:
            _count(self.ends, end, n)
        governed = not cell.ungoverned
        self._pay(cell.n_priced, cell.n - cell.n_priced, cell.cost_usd, cell.overhead_usd, governed=governed)
        if not governed:
            _count(self.ungoverned, cell.ungoverned, cell.n)
            return
        _count(self.counts, "governed", cell.n)
        _count(self.counts, "stopped", cell.n_stopped)
        _add_sums(self.rates, SAVED, (0.0, cell.saved_tokens, 0.0, 0.0, 0.0))
        _add_sums(self.rates, SAVED_USD, (0.0, cell.saved_usd))
        self.tokens.add(cell, cell)
        self.tokens.n_unknown += cell.n - cell.n_counted

    def _add_audit(self, caller: str, left: Literal["finished", "lost"] | None) -> None:
        """Where the callers are too many, one that leaves takes the place of one that never did."""
        if caller not in self.callers and len(self.callers) >= MOST_CALLERS:
            stayed = [one for one in self.callers.values() if not one.n_left]
            if left is None or not stayed:
                return
            del self.callers[min(stayed, key=lambda one: one.n_audits).caller]
        one = self.callers.setdefault(caller, CallerAudits(caller=caller))
        one.n_audits += 1
        one.n_left += left is not None
        one.n_finished_unread += left == "finished"
        one.n_lost += left == "lost"

    def _add_counts(self, request: Request, outcome: Outcome, run: RunNumbers) -> None:
        for name, holds in (
            ("governed", True),
            ("stopped", outcome.stopped),
            ("audits", run.audit),
            ("abandoned", run.abandoned_audit),
            ("telling", run.audit and run.disagrees is not None),
            ("disagreeing", run.audit and run.disagrees is True),
            ("would_stop", run.full and run.would_stop),
        ):
            _count(self.counts, name, int(holds))
        whole = outcome.is_finished and not outcome.stopped
        if whole and (request.mode != "enforce" or request.audit):
            self.extracted = f"{self.extracted}{int(outcome.answer is not None)}"[-WINDOW_RUNS:]
        if request.kind == "reasoning":  # elsewhere a missing answer has no source
            # A probe that was not sent or failed has no source either.
            trials = [step.answer for step in outcome.steps if step.answer_source == "probe"]
            _count(self.counts, "trials", len(trials))
            _count(self.counts, "trials_read", len(trials) - trials.count(None))

    def _pay(self, n_priced: int, n_unpriced: int, cost_usd: float, overhead_usd: float, *, governed: bool) -> None:
        _count(self.counts, "priced", n_priced)
        _count(self.counts, "unpriced", n_unpriced)
        if not n_priced:
            return
        sums = {"governed_usd": cost_usd, "overhead_usd": overhead_usd} if governed else {"ungoverned_usd": cost_usd}
        for name, usd in sums.items():
            self.money[name] = self.money.get(name, 0.0) + usd

    def _add_marks(self, run: RunNumbers, *, sign: int = 1) -> None:
        correct = run.correct
        _count(self.counts, "labelled", sign * (correct is not None))
        for name, holds in (
            ("em_full", run.full),
            ("em_stopped", run.stopped),
            ("em_live", run.enforce and not run.audit),
        ):
            if holds:
                self._add_rate(name, correct, run.sampling_weight, sign=sign)
        if run.full and run.disagrees is not None:
            w = run.weight if run.enforce else 1.0
            lost = run.drop == 1
            gained = run.drop == -1
            pending = run.disagrees and run.drop is None
            sums = (1.0, w, w * w, w * lost, w * gained, w * pending, float(lost), float(gained), float(pending))
            _add_sums(self.rates, ENFORCED_DROP if run.enforce else OBSERVED_DROP, sums, sign)

    def _add_rate(self, name: str, mark: bool | None, weight: float, *, sign: int = 1) -> None:
        if mark is not None:
            _add_sums(self.rates, name, (1.0, weight, weight * mark, weight * weight), sign)

    def _add_spent(self, run: RunNumbers) -> None:
        w = run.sampling_weight
        for name, holds, cost in (
            ("tokens_full", run.full, run.baseline_tokens),
            ("tokens_stopped", run.stopped, run.spent),
            ("cost_full", run.full, run.baseline_usd),
            ("cost_stopped", run.stopped, run.cost_usd),
        ):
            if holds and cost is not None:
                self._add_group(name, run, w * cost, w)
        if run.enforce:
            for name, cost, alone in (
                ("saving", run.spent, run.baseline_tokens),
                ("saving_usd", run.cost_usd, run.baseline_usd),
            ):
                if cost is not None and alone is not None:
                    drawn = run.weight if run.audit else 0.0
                    self._add_group(name, run, w * cost, w, drawn * alone, drawn, float(run.audit))
        if run.full and run.baseline_tokens is not None:
            self._add_group("decided", run, w * run.undrawn_tokens, w * run.baseline_tokens)
            if not run.enforce and run.would_spend is not None:
                self._add_group("would_save", run, run.would_spend, run.baseline_tokens)
        if run.full and not run.enforce and run.would_save_usd is not None:
            self._add_group("would_save_usd", run, run.would_save_usd, 1.0)

    def _add_group(self, name: str, run: RunNumbers, *values: float) -> None:
        _add_sums(self.groups.setdefault(name, {}), crc32(run.group.encode()) % N_GROUPS, (1.0, *values))


def _add_sums(table: dict[K, list[float]], key: K, values: Sequence[float], sign: int = 1) -> None:
    sums = table.setdefault(key, [0.0] * len(values))
    for at, one in enumerate(values):
        sums[at] += sign * one


def _count(counts: dict[str, int], name: str, n: int = 1) -> None:
    if n:
        counts[name] = counts.get(name, 0) + n
