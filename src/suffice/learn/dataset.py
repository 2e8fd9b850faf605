"""Builds the rows that models are fitted on from episodes in the log. An outcome is known or unknown, never guessed:

    run                          rows up to the stop    later rows    the full run's answer
    full by design               known                  known         known
    live, not stopped            known                  none          known
    live, stopped                known                  hidden        hidden

"Full by design" is everything in `observe`, and audits in `enforce`. A stop of a live run is known to be as good as the
full run only where its answer was right, so stopped runs are left out: models would learn that all stops are good. Full
runs are weighted by 1/P(seen in full): the audit share where the policy stops, else 1 (Horvitz and Thompson 1952, JASA
47; Seaman and White 2013, SMMR 22). Unweighted, live runs that were not stopped, the hard ones, would dominate.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, Protocol, TypeAlias

import numpy as np

from suffice.arrays import Bools, Floats, Ints, Small
from suffice.assurance.money import undrawn_tokens
from suffice.assurance.runs import (
    LabelledEpisode,
    Match,
    SequencedLabel,
    current_label,
    is_abandoned,
    is_right,
)
from suffice.assurance.sampling import p_kept
from suffice.assurance.thoughts import thought_costs
from suffice.errors import ConfigError, SufficeError
from suffice.learn.audits import RaggedRuns
from suffice.learn.features import FeatureSelection, choose_features
from suffice.learn.version import MOST_AUDITS, N_FOLDS
from suffice.policy.folded_version import place_of, prompt_fold
from suffice.signals.base import resolve_needs
from suffice.signals.features import FeatureSet
from suffice.signals.observe import SignalColumns, observe_columns
from suffice.types import Feedback, Kind, Outcome, Query, Request, Step, StepRecord

Fate: TypeAlias = Literal[
    "full",  # ran to its own end, by design or because the policy did not stop it
    "stopped",  # stopped by the policy
    "abandoned",  # an audit that its client left: a loss wherever it would have been stopped
    "ungoverned",  # nothing was observed
    "unprobed",  # ran to its end without a trial answer
    "by failure",  # live, and not stopped because of a failure
    "broken",  # no usable end, or a repeated delivery
]


def fate(request: Request, outcome: Outcome) -> Fate:
    if request.ungoverned is not None:
        return "ungoverned"
    if request.delivery > 1:
        return "broken"
    if outcome.stopped:
        return "stopped" if outcome.end_reason == "stopped" and outcome.stop_step is not None else "broken"
    if request.audit and is_abandoned(outcome):
        return "abandoned"
    if not outcome.is_finished or not outcome.steps:
        return "broken"
    if request.kind != "samples" and len(outcome.steps) > 1 and all(step.answer is None for step in outcome.steps[:-1]):
        return "unprobed"
    if not by_design(request) and (outcome.stop_step is not None or outcome.degraded):
        return "by failure"
    return "full"


def by_design(request: Request) -> bool:
    """Whether the request runs in full under any policy."""
    return request.mode == "observe" or request.audit


def p_full(request: Request, outcome: Outcome, *, live_share: float = 1.0) -> float:
    """P(such a run is kept in full), in (0, 1], for fates `full` and `abandoned`, if `live_share` of others is kept."""
    if request.mode == "observe":
        return 1.0
    audit_share = request.propensity if request.audit else 1.0 - request.propensity
    live_share *= p_kept(request, outcome)  # those without rows in the log cannot be kept
    return audit_share + (1.0 - audit_share) * (live_share if outcome.stop_step is None else 0.0)


LabelOf: TypeAlias = Callable[[Sequence[SequencedLabel]], Feedback | None]

WAVE: Final = 4  # samples that are launched together
MOST_LIVE: Final = 1_000  # live runs that were not stopped; more only cost time
_MOST_UNPROBED: Final = 0.1  # of live runs that were not stopped; above it they are left out
UNPROBED: Final = "live, unprobed"  # a reason of `left_out`, as the next
MOST_ARE_UNPROBED: Final = "live, not stopped, most of them unprobed"
# Recorded, for the log has no text.
_OF_THE_TEXT: Final = ("hedges", "hedge_rate", "loop_share", "draft_distance", "known_words", "pattern_code")
_KEPT: Final = tuple({f.name for f in fields(Step)} & {f.name for f in fields(StepRecord)} - {"action"})


class RecordedRun(LabelledEpisode, Protocol):
    @property
    def seq(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dataset(RaggedRuns):
    """N runs of one route, full or abandoned, with T checkpoints; run i has the rows starts[i] … starts[i + 1] - 1."""

    kind: Kind
    chosen: FeatureSelection
    x: Floats  # (T, P + E): features, in the order of `chosen.names`, then of `also`
    starts: Ints  # (N + 1,)
    same: Bools  # (T,): the answer after the row is the full run's; False in an abandoned run
    right: Small  # (T,): the answer after the row is right (1), wrong (0) or unknown (-1)
    may_stop: Bools  # (T,): there is an answer to deliver
    cost: Floats  # (T,): tokens if stopped after the row, including probes and the written answer
    per_step: Floats  # (T,): mean tokens per step so far, at least 1
    full: Bools  # (N,): ran to its own end
    abandoned: Bools  # (N,): an audit that its client left
    by_design: Bools  # (N,): runs in full under any policy; only these may certify
    p_full: Floats  # (N,): P(such a run is seen in full)
    stop: Ints  # (N,): row where the policy would have stopped; -1: none
    full_right: Small  # (N,): as `right`, of the full run's answer
    full_tokens: Floats  # (N,): of the full run alone, or of a vote over all samples
    age: Floats  # (N,): later runs by design
    seq: Ints  # (N,): place in the log, rising
    at_s: Floats  # (N,): receipt, Unix time; informative
    fold: Small  # (N,): of its prompt, the same in every version
    key: tuple[str, ...]  # (N,): hash of the prompt
    query_class: tuple[str, ...]  # (N,): "" for none
    also: tuple[str, ...]  # E further features, for other versions
    last_seq: int  # last row of the log that was used, labels included
    left_out: Mapping[str, int]  # reason: unusable runs

    def __len__(self) -> int:
        return len(self.full)

    @property
    def own(self) -> Floats:
        return self.x[:, : len(self.chosen.names)]

    def columns(self, names: Sequence[str]) -> Floats:
        """Shape (T, names), in order. Raise ConfigError for a missing one."""
        place = {name: at for at, name in enumerate((*self.chosen.names, *self.also))}
        missing = [name for name in names if name not in place]
        if missing:
            raise ConfigError(f"dataset: does not have the feature {missing[0]!r:.80}; build it with also=…")
        return self.x[:, [place[name] for name in names]]

    @property
    def labelled(self) -> Bools:
        """Shape (N,): the full run's answer is known to be right or wrong."""
        return np.asarray(self.full_right >= 0)

    def digest(self) -> str:
        parts = hashlib.blake2b(digest_size=12)
        parts.update(json.dumps([self.kind, self.chosen.names, self.also, self.key, self.query_class]).encode())
        for column in fields(self):
            value = getattr(self, column.name)
            if isinstance(value, np.ndarray):
                parts.update(value.tobytes())
        return parts.hexdigest()


class EmptyDataset(SufficeError, ValueError):
    """No run of a route can be learned from."""


def build_dataset(
    episodes: Iterable[RecordedRun],
    *,
    match: Match,
    chosen: FeatureSelection | None = None,
    also: Sequence[str] = (),
    wave: int = WAVE,
    most_audits: int = MOST_AUDITS,
    most_live: int = MOST_LIVE,
    label_of: LabelOf = current_label,
) -> Dataset:
    """Build columns from the episodes of one route, in any order. Raise EmptyDataset without a usable run.

    chosen          features; None: the default ones of the kind
    also            further features: those of the active version, for comparison
    wave            samples launched together: a stop inside a wave pays for all of it
    most_audits     latest runs in full by design that are kept, with everything since the first of them
    most_live       most live runs that were not stopped; of more, a random part represents all
    label_of        selects the label of a run; None where no label is valid
    """
    kept, left = _sort_out(episodes, label_of)
    last_seq = max((run.label_seq for run in kept), default=0)
    kept, live_share = _window(kept, most_audits, most_live, left)
    if not kept:
        reasons = ", ".join(f"{n} {why}" for why, n in (+left).items()) or "none at all"
        raise EmptyDataset(f"no run to learn from; left out: {reasons}")
    kind, queries = kept[-1].request.kind, [run.request.query or Query() for run in kept]
    chosen = chosen or choose_features(kind, queries)
    also = tuple(name for name in also if name not in chosen.names)
    features = FeatureSet((*chosen.names, *also))
    columns = recorded_columns(features.needs, kind, [(q, run.steps) for q, run in zip(queries, kept, strict=True)])
    same, right = _judged(kept, columns, match)
    return Dataset(
        kind=kind,
        chosen=chosen,
        x=np.round(features.matrix(columns, queries), 10),
        starts=columns.starts,
        same=same,
        right=right,
        may_stop=~np.isnan(columns.answer),
        cost=np.concatenate([_costs(run, wave) for run in kept]),
        per_step=np.maximum(1.0, columns.values["tokens_used"] / np.maximum(1.0, columns.values["step"])),
        query_class=tuple(query.query_class for query in queries),
        also=also,
        last_seq=last_seq,
        left_out=dict(+left),
        **_by_run(kept, columns.starts, match, live_share=live_share),
    )


# --------------------------------------------------------------------------- which runs


@dataclass(frozen=True, slots=True)
class _Run:
    request: Request
    outcome: Outcome
    label: Feedback | None
    fate: Fate
    seq: int
    label_seq: int  # of its last label, or its own

    @property
    def steps(self) -> tuple[StepRecord, ...]:
        return self.outcome.steps

    @property
    def is_full(self) -> bool:
        return self.fate == "full"

    @property
    def is_live(self) -> bool:
        return self.is_full and not by_design(self.request)

    @property
    def key(self) -> str:
        return self.request.question_key or f"episode {self.request.episode_id}"


def _sort_out(episodes: Iterable[RecordedRun], label_of: LabelOf) -> tuple[list[_Run], Counter[str]]:
    kept, left = list[_Run](), Counter[str]()
    for item in episodes:
        request, outcome = item.episode.request, item.episode.outcome
        what = fate(request, outcome)
        if what in ("full", "abandoned") and outcome.steps:
            label_seq = max([item.seq, *(one.seq for one in item.labels)])
            kept.append(_Run(request, outcome, label_of(item.labels), what, item.seq, label_seq))
        elif what == "stopped":
            left["stopped, without a label by design"] += 1
        else:
            left[what if by_design(request) or what == "ungoverned" else f"live, {what}"] += 1
    return sorted(kept, key=lambda run: run.seq), left


def _window(runs: list[_Run], most_audits: int, most_live: int, left: Counter[str]) -> tuple[list[_Run], float]:
    """Apply the windows of audits and live runs; the share of live runs is 0 if most were unprobed."""
    if not runs:
        return [], 0.0
    latest = runs[-1].request
    of_kind = [run for run in runs if (run.request.kind, run.request.setup) == (latest.kind, latest.setup)]
    audits = [run.seq for run in of_kind if by_design(run.request)]
    first = audits[-most_audits] if len(audits) > most_audits else 0
    recent = [run for run in of_kind if run.seq >= first]
    n_live = sum(run.is_live for run in recent)
    is_probed = left[UNPROBED] <= _MOST_UNPROBED * (n_live + left[UNPROBED])
    share = min(1.0, most_live / n_live) if n_live and is_probed else 0.0
    kept = [run for run in recent if not run.is_live or place_of(run.request.episode_id, purpose="live") < share]
    left.update({"other settings": len(runs) - len(of_kind), "too old": len(of_kind) - len(recent)})
    left["live, not stopped, enough others are there" if share else MOST_ARE_UNPROBED] += len(recent) - len(kept)
    return kept, share


# --------------------------------------------------------------------------- signals


def early_features(episodes: Iterable[RecordedRun], names: Sequence[str]) -> Floats:
    """After the first step of every governed run, stopped or not, shape (runs, names)."""
    features = FeatureSet(names)
    governed = [item.episode for item in episodes if item.episode.request.ungoverned is None]
    firsts = [(one.request.query or Query(), one.outcome.steps[:1]) for one in governed if one.outcome.steps]
    if not firsts:
        return np.empty((0, len(names)))
    columns = recorded_columns(features.needs, governed[0].request.kind, firsts)
    return features.matrix(columns, [query for query, _ in firsts])


def as_step(record: StepRecord) -> Step:
    kept: dict[str, Any] = {name: getattr(record, name) for name in _KEPT}  # each field has its own type
    return Step(**kept, action=record.caller_action)


def recorded_columns(
    needs: Sequence[str], kind: Kind, runs: Sequence[tuple[Query | None, Sequence[StepRecord]]]
) -> SignalColumns:
    """Signals with recorded values for those of the text; `draft_patience` follows from the recorded distances."""
    columns = observe_columns(needs, kind, ((query, [as_step(step) for step in steps]) for query, steps in runs))
    recorded = [step for _, steps in runs for step in steps]
    values = dict(columns.values)
    for name in _OF_THE_TEXT:
        if name in values:
            values[name] = np.array([getattr(step, name) for step in recorded], dtype=np.float64)
    if "draft_patience" in values:
        (threshold,) = (float(spec.parameters[0][1]) for spec in resolve_needs(tuple(needs)) if spec.name == "drafts")
        small = (values["draft_distance"] <= threshold).tolist()
        starts, patience = set(columns.starts.tolist()), 0
        for row, is_small in enumerate(small):
            patience = patience + 1 if is_small and row not in starts else 0
            values["draft_patience"][row] = patience
    return SignalColumns(values=values, answer=columns.answer, answers=columns.answers, starts=columns.starts)


# --------------------------------------------------------------------------- outcomes


def _judged(runs: Sequence[_Run], columns: SignalColumns, match: Match) -> tuple[Bools, Small]:
    same = np.zeros(len(columns.answer), dtype=bool)
    right = np.full(len(columns.answer), -1, dtype=np.int8)
    for run, start, end in zip(runs, columns.starts[:-1], columns.starts[1:], strict=True):
        known: dict[str | None, int] = {}
        for row in range(start, end):
            code = columns.answer[row]
            answer = None if np.isnan(code) else columns.answers[int(code)]
            same[row] = run.is_full and answer is not None and answer == run.outcome.answer
            if answer not in known:
                known[answer] = _is_right(answer, run, match)
            right[row] = known[answer]
        if run.is_full:  # a stop at the last row is the full run
            same[end - 1], right[end - 1] = True, _is_right(run.outcome.answer, run, match)
    return same, right


def _is_right(answer: str | None, run: _Run, match: Match) -> int:
    right = None if run.fate == "abandoned" else is_right(answer, run.outcome.answer, run.label, match)
    return -1 if right is None else int(right)


def _by_run(runs: Sequence[_Run], starts: Ints, match: Match, *, live_share: float) -> dict[str, Any]:
    full = np.array([run.is_full for run in runs])
    design = np.array([by_design(run.request) for run in runs])
    right = [_is_right(run.outcome.answer, run, match) if run.is_full else -1 for run in runs]
    keys = tuple(run.key for run in runs)
    return {
        "full": full,
        "abandoned": np.array([run.fate == "abandoned" for run in runs]),
        "by_design": design,
        # Abandoned live runs are never kept.
        "p_full": np.array([p_full(run.request, run.outcome, live_share=live_share * run.is_full) for run in runs]),
        "stop": np.array([_stop_row(run, start) for run, start in zip(runs, starts, strict=False)], dtype=np.int64),
        "full_right": np.array(right, dtype=np.int8),
        "full_tokens": np.array([_generated(run) + undrawn_tokens(run.request, run.outcome) for run in runs]),
        "age": (np.cumsum(design[::-1])[::-1] - design).astype(np.float64),
        "seq": np.array([run.seq for run in runs], dtype=np.int64),
        "at_s": np.array([run.request.received_at_s for run in runs]),
        "fold": np.array([prompt_fold(key, N_FOLDS) for key in keys], dtype=np.int8),
        "key": keys,
    }


def _stop_row(run: _Run, start: int) -> int:
    stop = run.outcome.stop_step
    if stop is None:
        return -1
    return int(start) + next((i for i, step in enumerate(run.steps) if step.index >= stop), len(run.steps) - 1)


def _generated(run: _Run) -> float:
    """Tokens of the run alone, with context read again, without probes."""
    usage, context = run.outcome.usage, sum(step.ctx_tokens for step in run.steps)
    generated = usage.completion_tokens if usage is not None else sum(step.tokens for step in run.steps)
    return float(generated + context)


def _costs(run: _Run, wave: int) -> Floats:
    """Shape (steps,): tokens if the run were stopped after each step."""
    if run.request.kind == "reasoning":
        return thought_costs(run.outcome)
    spent = np.cumsum([step.tokens + step.ctx_tokens for step in run.steps], dtype=np.float64)
    probes = np.cumsum([step.probe_tokens for step in run.steps], dtype=np.float64)
    launched = np.arange(1, len(spent) + 1)
    if run.request.kind == "samples":
        launched = np.minimum(-(-launched // wave) * wave, len(spent))
        spent = spent[launched - 1]
    # The rest of the last wave of a decided vote was cancelled, so only what was generated counts.
    spent[launched == len(spent)] = _generated(run)
    return spent + probes
