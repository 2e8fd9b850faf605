"""Gathers an experiment's evidence from the log: draws, runs and feedback, as values by unit and arm.

A unit counts once for each metric, by its first value under the weights with which it first took part. Audits run in
full whatever their arm, so they count for no arm live; other runs count however they ended.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from math import floor, log1p

import numpy as np

from suffice.assurance.labels import INFERENCE_KEY, MAX_SHARE, covariates, label_weights, unexplained_group
from suffice.assurance.runs import ENDED, Match, measure_run
from suffice.assurance.satisfaction import satisfaction_of_people, scaled
from suffice.assurance.saving import spent_tokens
from suffice.control.compare.counterfactual import AuditReplay
from suffice.control.evidence.audits import Audit, is_evidence, recorded_audit
from suffice.control.evidence.versions import loader, published_on
from suffice.edge.math import open_match
from suffice.errors import ConfigError
from suffice.rollout.analysis import analyse
from suffice.rollout.experiment import RunningExperiment
from suffice.rollout.results import (
    EM,
    LATENCY,
    METRICS,
    SATISFACTION,
    TOKENS,
    ArmEvidence,
    AuditAnswers,
    ExperimentData,
    ExperimentResult,
    MetricValue,
    UnitAssignment,
)
from suffice.settings import Metric, Settings
from suffice.signals.query import class_of
from suffice.store.database.views import EpisodeWithLabels, LogReader, LogSource, open_reader
from suffice.store.routes.experiments import ExperimentRun, read_draws, read_runs
from suffice.types import ArmDraw


def read_experiment(path_or_connection: LogSource, held: ExperimentRun, settings: Settings) -> ExperimentResult:
    """Analyse a run of an experiment. Raises ConfigError for a route not in the settings, and StoreError."""
    with open_reader(path_or_connection) as log:
        return replace(analyse(held.experiment, gather(log, held, settings)), ended=not held.runs)


def gather(log: LogReader, held: ExperimentRun, settings: Settings) -> ExperimentData:
    experiment = held.experiment
    for route in experiment.routes:
        if route not in settings.routes:
            raise ConfigError(f"experiment {experiment.name}: route {route!r} is not in the settings any more")
    units = _Units(experiment, {name: metric for name, metric in settings.metrics.items() if metric.type != "category"})
    for seq, draw, query in read_draws(log, held):
        units.draw(seq, draw.unit, UnitAssignment(arm=draw.arm, odds=_odds(draw), query_class=class_of(query)))
    with ExitStack() as stack:
        routes = {
            name: AuditReplay(
                route=settings.routes[name],
                match=stack.enter_context(open_match(settings.routes[name])),
                published=published_on(log, name),
                load=loader(log),
            )
            for name in experiment.routes
        }
        for item in read_runs(log, held):
            # An audit counts if it ended while the experiment ran, whichever units took part.
            late = held.end_seq is not None and item.seq > held.end_seq
            replay = routes[item.episode.request.route]
            units.add(item, replay.match, probes=replay.route.probe is not None, late=late)
        return units.data(routes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _UnitValue:
    seq: int
    unit: str
    capped: str | None  # a key that also uses the model, capped at a share of the units; None: not capped
    value: MetricValue


def _within_share(values: Sequence[_UnitValue]) -> list[_UnitValue]:
    allowed = max(1, floor(MAX_SHARE * len(values)))
    n_by_key = Counter[str]()
    kept = list[_UnitValue]()
    for one in values:
        if one.capped is not None:
            n_by_key[one.capped] += 1
            if n_by_key[one.capped] > allowed:
                continue
        kept.append(one)
    return kept


def measured_values(
    item: EpisodeWithLabels, match: Match, declared: Mapping[str, Metric]
) -> Iterator[tuple[str, int, float, str | None]]:
    """Yield each value of a run: its metric, its place in the log, the value, and the key that is capped."""
    outcome = item.episode.outcome
    if outcome.usage is not None:
        yield TOKENS, item.seq, float(spent_tokens(outcome.usage, outcome.overhead)), None
    if outcome.end_reason in ENDED:
        yield LATENCY, item.seq, outcome.duration_s, None
    right = measure_run(item, match).correct if item.labels else None
    if right is not None:
        seqs = [x.seq for x in item.labels if x.feedback.correct is not None or x.feedback.gold is not None]
        yield EM, max(seqs), float(right), None
    for label in item.labels:
        given = label.feedback
        capped = f"{given.sender} {given.user}" if given.door == INFERENCE_KEY else None
        satisfaction = satisfaction_of_people(given)
        if satisfaction is not None:
            yield SATISFACTION, label.seq, satisfaction, capped
        for name, value in given.metrics:
            if name in declared and name not in METRICS and not isinstance(value, str):
                yield name, label.seq, scaled(float(value), declared[name]), capped


@dataclass(frozen=True, slots=True)
class _UnitRun:
    """What is known of a unit's first run when its label may come."""

    arm: str
    query_class: str
    known: tuple[float, ...]  # before the first token
    later: tuple[float, ...]  # length of the answer, stopped, without an answer


@dataclass(slots=True)
class _Units:
    experiment: RunningExperiment
    declared: Mapping[str, Metric]
    n_requests: int = 0
    _first: dict[str, UnitAssignment] = field(default_factory=dict)  # by unit
    _seqs: list[int] = field(default_factory=list)  # of each unit's first draw, ascending
    _warm: set[str] = field(default_factory=set)  # the first units
    _values: dict[str, list[_UnitValue]] = field(default_factory=dict)  # by metric
    _runs: dict[str, _UnitRun] = field(default_factory=dict)  # the first of each unit
    _callers: set[str] = field(default_factory=set)  # senders that use the model
    _audits: list[Audit] = field(default_factory=list)

    def draw(self, seq: int, unit: str, drawn: UnitAssignment) -> None:
        self.n_requests += 1
        if unit not in self._first:
            self._first[unit] = drawn
            self._seqs.append(seq)
            if len(self._first) <= self.experiment.warmup_units:
                self._warm.add(unit)

    def add(self, item: EpisodeWithLabels, match: Match, *, probes: bool, late: bool) -> None:
        request = item.episode.request
        self._callers.add(request.sender)
        if not late and is_evidence(request, item.episode.outcome, probes=probes):
            self._audits.append(recorded_audit(item))
        draw, query = self._draw_of(item), request.query
        if draw is None:
            return
        # Covariates of the question, known before the first token: its length, its numbers, its operators.
        known = (None, None, None) if query is None else (query.n_words, query.n_numbers, query.n_operators)
        on_route = tuple(float(request.route == name) for name in self.experiment.routes[1:])
        outcome, known_numbers = item.episode.outcome, (*(log1p(n or 0) for n in known), *on_route)
        spent = 0 if outcome.usage is None else outcome.usage.completion_tokens
        later = (log1p(spent), float(outcome.stopped), float(outcome.answer is None))
        self._runs.setdefault(draw.unit, _UnitRun(draw.arm, class_of(query), known_numbers, later))
        for metric, seq, value, capped in measured_values(item, match, self.declared):
            result = MetricValue(
                arm=draw.arm,
                odds=_odds(draw),
                query_class=class_of(query),
                value=value,
                known=known_numbers,
                groups=(request.tenant or request.sender, request.conversation, request.question_key),
                warmup=draw.unit in self._warm,
            )
            value_of_unit = _UnitValue(seq=seq, unit=draw.unit, capped=capped, value=result)
            self._values.setdefault(metric, []).append(value_of_unit)

    def data(self, routes: Mapping[str, AuditReplay]) -> ExperimentData:
        """All values, the first known one of each unit, by metric.

        They are in the order of assignment. Values may become known in an order that depends on the arm, such as
        ratings that a file lists arm by arm; guesses from earlier values would then favour the arm that comes first.
        """
        values, unexplained = dict[str, list[MetricValue]](), dict[str, str]()
        place = {unit: n for n, unit in enumerate(self._first)}
        for metric, all_values in self._values.items():
            first: dict[str, _UnitValue] = {}
            for one in sorted(all_values, key=lambda one: one.seq):
                first.setdefault(one.unit, one)
            kept = sorted(_within_share(list(first.values())), key=lambda one: place[one.unit])
            weights: Mapping[str, float] = {}
            if metric not in (TOKENS, LATENCY):
                weights, why = self._weigh_labels(metric, {one.unit for one in kept})
                unexplained |= {metric: why} if why else {}
            values[metric] = [
                replace(one.value, label_weight=weights.get(one.unit), place=place[one.unit]) for one in kept
            ]
        arms = self.experiment.arms
        paired = frozenset(arm.name for arm in arms if all(route.replayable(arm) for route in routes.values()))
        return ExperimentData(
            n_requests=self.n_requests,
            drawn=list(self._first.values()),
            values=values,
            audits=self._replayed(routes, paired),
            paired=paired,
            unexplained=unexplained,
        )

    def _weigh_labels(self, metric: str, labelled: set[str]) -> tuple[Mapping[str, float], str]:
        """Return the weights of units with a value, and why they must not be compared; "": they may be."""
        runs, names = self._runs, list(dict.fromkeys(run.arm for run in self._runs.values()))
        arms = np.array([names.index(run.arm) for run in runs.values()])
        has_label = np.array([unit in labelled for unit in runs])
        classes = [run.query_class for run in runs.values()]
        numbers = np.array([(*run.known, *run.later) for run in runs.values()], dtype=np.float64)
        weights, why = label_weights(covariates(classes, numbers), has_label, arms), ""
        known = np.array([run.known for run in runs.values()], dtype=np.float64)
        other = unexplained_group(covariates(classes, known), has_label, arms)
        if other is not None:
            shares = ", ".join(f"{name} {has_label[arms == at].mean():.1%}" for at, name in enumerate(names))
            why = f"units with a value of {metric} are {shares}, further apart than their questions explain"
        return dict(zip(runs, weights.tolist(), strict=True)), why

    def _replayed(self, routes: Mapping[str, AuditReplay], paired: frozenset[str]) -> list[AuditAnswers]:
        answers: dict[str, dict[str, ArmEvidence]] = {audit.id: {} for audit in self._audits}
        for name, route in routes.items():
            mine = [audit for audit in self._audits if audit.episode.request.route == name]
            for arm in self.experiment.arms:
                if arm.name in paired:
                    for audit, evidence in zip(mine, route.arm(arm, mine), strict=True):
                        if evidence is not None:
                            answers[audit.id][arm.name] = evidence
            answers.update(route.judged(mine, answers, self._callers - {""}))
        return [
            AuditAnswers(
                query_class=audit.query_class,
                arms=answers[audit.id],
                place=bisect_left(self._seqs, audit.seq),
            )
            for audit in sorted(self._audits, key=lambda audit: audit.seq)
        ]

    def _draw_of(self, item: EpisodeWithLabels) -> ArmDraw | None:
        """The arm for which a run counts; None also for a unit from before a change of weights, as some have moved."""
        request = item.episode.request
        if request.ungoverned is not None or request.audit:
            return None
        for draw in request.arms:
            if (draw.experiment, draw.run) == (self.experiment.name, self.experiment.run):
                first = self._first.get(draw.unit)
                return draw if first is not None and first.odds == _odds(draw) else None
        return None


def _odds(draw: ArmDraw) -> dict[str, float]:
    return {draw.arm: draw.propensity, **dict(draw.others)}
