"""Audits with their labels, as rows that a certificate counts.

Signals are computed by the observer that serves live traffic (`learn.dataset`). An unknown result counts against a
stop: an abandoned audit at every level, and a run with a checkpoint that lacks its answer from there on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import numpy as np

from suffice.assurance.clusters import UNITS, cluster_key
from suffice.assurance.labels import JUDGE, TRUSTED, TrustedLabel, rank_of, resolve_labels
from suffice.assurance.money import undrawn_tokens
from suffice.assurance.runs import NO_ANSWER_ENDS, Match, SequencedLabel, is_audit, is_right
from suffice.learn.audits import AuditRuns, SampleOrders, concatenate_audits, draw_orders
from suffice.learn.dataset import Fate, build_dataset, fate
from suffice.learn.features import FeatureSelection
from suffice.learn.rows import audit_runs
from suffice.learn.version import N_FOLDS
from suffice.policy.folded_version import prompt_fold
from suffice.signals.query import class_of
from suffice.store.database.views import EpisodeWithLabels, StoredLabel
from suffice.types import Episode, Feedback, LabelRequest, Outcome, Query, Request
from suffice.upstream.drivers import CHAT_PATH

_NEVER: Final = np.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """A run that nothing could stop, with its labels."""

    seq: int  # position of its outcome in the log
    at: int  # number of the request when it began, among those of its route
    ended_at_s: float  # Unix time; informative, and for deadlines of labels
    episode: Episode
    labels: tuple[StoredLabel, ...] = ()  # oldest first
    label_at: float = _NEVER  # requests of the route when the label arrived; infinite: there is none
    only_drawn: bool = False  # see `Route.sees_only_drawn`

    @property
    def id(self) -> str:
        return self.episode.request.episode_id

    @property
    def outcome(self) -> Outcome:
        return self.episode.outcome

    @property
    def share(self) -> float:
        return audited_at(self.episode.request, probes=self.only_drawn)

    @property
    def query(self) -> Query:
        return self.episode.request.query or Query()

    @property
    def query_class(self) -> str:
        return class_of(self.episode.request.query)

    @property
    def differs(self) -> bool:
        return any(step.answer != self.outcome.answer for step in self.outcome.steps)

    @property
    def gap(self) -> int | None:
        """The first checkpoint, from 0, that lacks its answer."""
        return next((at for at, step in enumerate(self.outcome.steps) if step.missing), None)

    @property
    def is_lost(self) -> bool:
        """Whether nothing can be judged: abandoned, shed, killed, or broken by our own fault."""
        outcome = self.outcome
        if outcome.stopped or not outcome.is_finished:
            return True
        unseen = not outcome.steps and bool(outcome.degraded)
        return unseen or (self.fate == "unprobed" and self.gap is not None)

    @property
    def fate(self) -> Fate:
        return fate(self.episode.request, self.outcome)

    @property
    def is_replayable(self) -> bool:
        return self.fate == "full" and len(self.outcome.steps) > 1

    def label_request(
        self, *, level: int, would_answer: str | None, why: str, deadline_s: float | None = None
    ) -> LabelRequest:
        return LabelRequest(
            episode_id=self.id,
            route=self.episode.request.route,
            level=level,
            would_answer=would_answer,
            answer=self.outcome.answer,
            why=why,
            deadline_s=deadline_s,
        )

    def kept(self, at: int, epoch_at: int) -> Audit:
        """The same audit in a later epoch, whose label, if any, counts from the beginning of that epoch."""
        label_at = self.label_at if self.label_at == _NEVER else min(self.label_at, float(epoch_at))
        return replace(self, at=at, label_at=label_at)

    def with_labels(self, labels: Sequence[StoredLabel], at: int) -> Audit:
        """Add labels that arrived at request `at` of the route."""
        if not labels:
            return self
        return replace(self, labels=tuple(sorted((*self.labels, *labels), key=lambda one: one.seq)), label_at=float(at))


Verdicts: TypeAlias = Mapping[str, Feedback]  # by episode: the label that counts


def recorded_audit(item: EpisodeWithLabels, at: int = 0) -> Audit:
    return Audit(seq=item.seq, at=at, ended_at_s=0.0, episode=item.episode).with_labels(item.labels, at)


def audited_at(request: Request, *, probes: bool) -> float:
    """P(a request like this is an audit) when it was drawn, in [0, 1]; with `probes`, only drawn runs are probed."""
    if request.mode == "observe" and not probes:
        return 1.0
    return request.propensity if request.audit else 1.0 - request.propensity


def cluster_names(request: Request) -> tuple[str, str, str]:
    """The names of its clusters by the units of `assurance.clusters`; "": it is one of its own."""
    return request.conversation, request.question_key, request.sender


def is_evidence(request: Request, outcome: Outcome, *, probes: bool) -> bool:
    """Whether this run is an audit with a full run to compare with, or one that counts as lost."""
    return is_audit(request, probes=probes) and outcome.end_reason not in NO_ANSWER_ENDS


# --------------------------------------------------------------------------- labels that count


def verdicts(
    audits: Iterable[Audit],
    match: Match,
    *,
    callers: Collection[str] = (),
    accepts: Callable[[Feedback], bool] = lambda _: False,
) -> Verdicts:
    """Return the label that counts for each audit (`assurance.labels`).

    audits   of the window whose answers differ at an eligible level: labels of others change nothing
    match    compares an answer with a reference; references that judge an audit alike are one verdict
    callers  senders whose keys also use the model: users, whatever source they name
    accepts  whether this label of a judge model counts; the caller charges its errors (`control.loop.safety_checks`)
    """
    by_id, given = {audit.id: audit for audit in audits}, dict[TrustedLabel, Feedback]()
    for audit in by_id.values():
        for label in audit.labels:
            one = label.feedback
            tells, is_judge = one.correct is not None or one.gold is not None, one.source == JUDGE
            if not tells or (is_judge and not accepts(one)):
                continue
            # A judge's errors are charged to the budget; a cap would only discard its labels.
            key = f"{JUDGE} {audit.id}" if is_judge else _key(one, callers)
            given[trusted_label(audit.id, label, _meaning(audit, one, match), callers, key=key)] = one
    decided = resolve_labels(given, differing=by_id)
    return {
        label.audit: given[label]
        for label in sorted(given, key=lambda label: label.seq)
        if label.audit in decided and decided[label.audit] == label.verdict
    }


def trusted_label(
    audit: str, label: SequencedLabel, verdict: Hashable, callers: Collection[str], *, key: str | None = None
) -> TrustedLabel:
    given = label.feedback
    return TrustedLabel(
        audit=audit,
        seq=label.seq,
        source=given.source,
        key=given.sender if key is None else key,
        trust=rank_of(given, callers),
        verdict=verdict,
    )


def changed_verdicts(before: Verdicts, after: Verdicts) -> set[str]:
    return {name for name in {*before, *after} if before.get(name) != after.get(name)}


def _key(given: Feedback, callers: Collection[str]) -> str:
    """The labelling person or key: trusted people who share a key, such as a labelling tool's, count one by one."""
    is_person = given.user and rank_of(given, callers) >= TRUSTED
    return f"{given.sender} {given.user}" if is_person else given.sender


def _meaning(audit: Audit, given: Feedback, match: Match) -> Hashable:
    answers = sorted({step.answer for step in audit.outcome.steps if step.answer is not None})
    full = is_right(audit.outcome.answer, audit.outcome.answer, given, match)
    others = () if given.gold is None else tuple(answer for answer in answers if match(answer, given.gold))
    return full, others


# --------------------------------------------------------------------------- rows


RowsOf: TypeAlias = Callable[[Sequence[Audit], Verdicts], AuditRuns]  # given the labels that count


def rows_in_all_orders(audits: Sequence[Audit], counts: Verdicts, rows_of: RowsOf) -> AuditRuns:
    """The rows of audits, with the other orders that the samples of each vote could have had."""
    others = [_reorder(audit) for audit in audits]
    both = *audits, *(one for each in others for one in each)
    if len(both) == len(audits):
        return rows_of(audits, counts)
    names = [(audit.id, one.id) for audit, each in zip(audits, others, strict=True) for one in each]
    runs = rows_of(both, {**counts, **{moved: counts[name] for name, moved in names if name in counts}})
    own, moved = (runs.take(np.arange(*ends)) for ends in ((0, len(audits)), (len(audits), len(both))))
    return replace(own, orders=SampleOrders(moved, np.cumsum([0, *map(len, others)])))


def _reorder(audit: Audit) -> list[Audit]:
    """The audit with its samples in other orders, where their order is random: see `learn.audits`.

    A caller's own loop may pass samples on in the order of their ends, and a client's seed fixes each sample's noise.
    """
    request, outcome = audit.episode.request, audit.outcome
    random = request.kind == "samples" and request.endpoint == CHAT_PATH and not request.seeded
    if not random or not audit.is_replayable or audit.gap is not None:
        return []
    steps, moved = outcome.steps, list[Audit]()
    orders = draw_orders([step.answer for step in steps], request.n_samples, key=audit.id)
    for number, order in enumerate(orders, 1):
        again = tuple(replace(steps[place], index=step.index) for place, step in zip(order, steps, strict=True))
        name = f"{audit.id} order {number}"
        episode = Episode(
            request=replace(request, episode_id=name), outcome=replace(outcome, episode_id=name, steps=again)
        )
        moved.append(replace(audit, episode=episode))
    return moved


def audits_to_rows(
    audits: Sequence[Audit], *, chosen: FeatureSelection, match: Match, wave: int, counts: Verdicts
) -> AuditRuns:
    """Audits as rows, in their order. wave: samples launched together."""
    replayable = np.array([audit.is_replayable for audit in audits], dtype=np.bool_)
    order = np.concatenate([np.flatnonzero(replayable), np.flatnonzero(~replayable)])
    whole = [audit for audit in audits if audit.is_replayable]
    parts = [_single_rows([audit for audit in audits if not audit.is_replayable], len(chosen.names))]
    if whole:
        parts.insert(0, _replayed_rows(whole, chosen=chosen, match=match, wave=wave, counts=counts))
    return concatenate_audits(parts).take(np.argsort(order))


def _replayed_rows(
    audits: Sequence[Audit], *, chosen: FeatureSelection, match: Match, wave: int, counts: Verdicts
) -> AuditRuns:
    recorded = [
        EpisodeWithLabels(
            seq=n,
            episode=audit.episode,
            labels=(StoredLabel(seq=audit.seq, feedback=counts[audit.id]),) if audit.id in counts else (),
        )
        for n, audit in enumerate(audits)
    ]
    data = build_dataset(recorded, match=match, chosen=chosen, wave=wave, most_audits=len(recorded) + 1)
    assert len(data) == len(audits), "a full run was left out of its evidence"
    runs = audit_runs(data)
    z = runs.z.copy()
    d = runs.d.copy()
    may_stop = runs.may_stop.copy()
    for audit, start, end in zip(audits, runs.starts[:-1], runs.starts[1:], strict=True):
        if audit.gap is not None:  # a stop might have needed the missing answer
            gap = slice(start + audit.gap, end)
            z[gap] = 1
            d[gap] = True
            may_stop[gap] = True
    z[runs.last], d[runs.last] = 0, False  # a stop at the end is the full run
    label_at = np.array([audit.label_at if audit.id in counts else _NEVER for audit in audits])
    return replace(runs, z=z, d=d, may_stop=may_stop, label_at=label_at, **_assignments(audits))


def _single_rows(audits: Sequence[Audit], n_features: int) -> AuditRuns:
    """Runs of one row: nothing could stop them before their end, or they count as lost wherever they are stopped."""
    n, usages = len(audits), [audit.outcome.usage for audit in audits]
    tokens = np.array([0 if usage is None else usage.completion_tokens for usage in usages], dtype=np.float64)
    undrawn = np.array([undrawn_tokens(audit.episode.request, audit.outcome) for audit in audits])
    return AuditRuns(
        x=np.zeros((n, n_features)),
        starts=np.arange(n + 1),
        z=np.zeros(n, np.int8),
        d=np.zeros(n, bool),
        may_stop=np.zeros(n, bool),
        cost=tokens,
        per_step=np.maximum(1.0, tokens),
        full=tokens + undrawn,
        label_at=np.full(n, _NEVER),
        query_class=np.zeros(n, np.int64),
        abandoned=np.array([audit.is_lost for audit in audits], dtype=np.bool_),
        **_assignments(audits),
    )


def _assignments(audits: Sequence[Audit]) -> dict[str, Any]:
    """The columns of `AuditRuns` that are known before a run begins."""
    requests = [audit.episode.request for audit in audits]
    folds = [prompt_fold(request.question_key, N_FOLDS) for request in requests]
    clusters = [list(map(cluster_key, cluster_names(request))) for request in requests]
    return {
        "clusters": np.array(clusters, dtype=np.int64).reshape(-1, len(UNITS)),
        "fold": np.array(folds, dtype=np.int8),
        "at": np.array([audit.at for audit in audits], dtype=np.float64),
        "share": np.array([audit.share for audit in audits], dtype=np.float64),
    }
