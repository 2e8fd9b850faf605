"""Experiments in the log: definitions and ends, first assignments of units, and runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from suffice.rollout.experiment import RunningExperiment, allot, define, exclude_each_other, same_question
from suffice.settings import Experiment as Written
from suffice.store.database.decisions import Decisions
from suffice.store.database.log import StoredEvent
from suffice.store.database.views import EpisodeWithLabels, LogSource, open_reader, read_episodes, read_kinds
from suffice.store.rows.events import ExperimentEnd, ExperimentRevision, ExperimentStart, WorseArm
from suffice.types import ArmDraw, Query

_AT_ONCE: Final = "was decided on by somebody else at the same time; check it and try again"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentRun:
    experiment: RunningExperiment  # with its latest weights
    revision: int
    seq: int  # of its start
    started_at_s: float  # Unix time; informative
    author: str
    reason: str
    ended: ExperimentEnd | None = None  # None: running
    end_seq: int | None = None
    ended_at_s: float | None = None

    @property
    def runs(self) -> bool:
        return self.ended is None

    def end(self, end: ExperimentEnd, stored: StoredEvent) -> ExperimentRun:
        return replace(self, ended=end, end_seq=stored.seq, ended_at_s=stored.at_s)


def read_experiments(source: LogSource) -> tuple[ExperimentRun, ...]:
    runs: dict[tuple[str, int], ExperimentRun] = {}
    for stored in read_kinds(source, "experiment_started", "experiment_changed", "experiment_stopped"):
        event = stored.event
        if isinstance(event, ExperimentRevision):
            at = _at(event.experiment)
            if runs[at].runs:
                fits = _rival(event.experiment, runs.values()) is None
                experiment = event.experiment if fits else runs[at].experiment
                runs[at] = replace(runs[at], revision=event.revision, experiment=experiment)
        elif isinstance(event, ExperimentStart):
            runs[_at(event.experiment)] = _started(event, stored, _rival(event.experiment, runs.values()))
        elif isinstance(event, ExperimentEnd):
            at = event.experiment, event.run
            if runs[at].runs:
                runs[at] = runs[at].end(event, stored)
    return tuple(runs.values())


def _started(event: ExperimentStart, stored: StoredEvent, rival: str | None) -> ExperimentRun:
    run = ExperimentRun(
        experiment=event.experiment,
        revision=event.revision,
        seq=stored.seq,
        started_at_s=stored.at_s,
        author=event.author,
        reason=event.reason,
    )
    if rival is None:
        return run
    (name, number), why = _at(event.experiment), f"{rival} had taken its part of the layer at the same moment"
    end = ExperimentEnd(experiment=name, run=number, author=event.author, reason=f"never ran: {why}")
    return run.end(end, stored)


def _at(one: RunningExperiment) -> tuple[str, int]:
    return one.name, one.run


def _rival(wanted: RunningExperiment, held: Iterable[ExperimentRun]) -> str | None:
    for one in read_running_experiments(held):
        overlap = any(a < d and c < b for a, b in one.slots for c, d in wanted.slots)
        if overlap and exclude_each_other(one, wanted) and _at(one) != _at(wanted):
            return one.name
    return None


def read_running_experiments(held: Iterable[ExperimentRun]) -> tuple[RunningExperiment, ...]:
    return tuple(one.experiment for one in held if one.runs)


def read_worse_arms(source: LogSource, route: str) -> tuple[WorseArm, ...]:
    """Return the arms of running experiments on a route that are proved worse than their control."""
    running = {_at(one) for one in read_running_experiments(read_experiments(source)) if route in one.routes}
    events = (stored.event for stored in read_kinds(source, "arm_worse"))
    return tuple(one for one in events if isinstance(one, WorseArm) and (one.experiment, one.run) in running)


def read_draws(source: LogSource, one: ExperimentRun) -> Iterator[tuple[int, ArmDraw, Query | None]]:
    """Yield each draw with its place in the log and what is known of its question."""
    wanted = {"since": one.seq, "until": one.end_seq, "name": one.experiment.name, "run": one.experiment.run}
    with open_reader(source) as connection:
        for seq, draw, query in connection.stream("draws_of_experiment", wanted):
            known = None if query is None else msgspec.json.decode(query, type=Query)
            yield seq, msgspec.json.decode(draw, type=ArmDraw), known


def read_runs(source: LogSource, one: ExperimentRun) -> Iterator[EpisodeWithLabels]:
    """Yield full episodes of its routes that began while it ran, by route, as they ended. Raise StoreError."""
    with open_reader(source) as connection:
        for route in one.experiment.routes:
            yield from read_episodes(connection, route, one.seq, ended_after=one.seq)


# --------------------------------------------------------------------------- what people decide


def start_experiment(
    writer: Decisions, name: str, written: Written, *, author: str, reason: str
) -> ExperimentStart | str:
    """Start an experiment, or change a running one's weights and share; return why it is refused, if it is.

    Raise ConfigError if its layer has no room, and StoreError.
    """
    held = read_experiments(writer.path)
    now = _running(held, name)
    mates = [one for one in read_running_experiments(held) if exclude_each_other(one, written) and one.name != name]
    for mate in mates:
        if mate.unit != written.unit:
            where = f"{mate.name}, which runs in its layer on the same route"
            return f"has the unit {written.unit!r}, and {where}, has {mate.unit!r}"
    own = now.experiment.slots if now is not None else ()
    slots = allot(written.share, own=own, taken={mate.name: mate.slots for mate in mates})
    if now is None:
        run = 1 + sum(one.experiment.name == name for one in held)
        begun = ExperimentStart(
            experiment=define(name, written, run=run, slots=slots), revision=0, author=author, reason=reason
        )
    else:
        wanted = define(name, written, run=now.experiment.run, slots=slots)
        if not now.experiment.planned_units:
            wanted = replace(wanted, planned_units=0)
        if wanted == now.experiment:
            return f"runs already, started by {now.author}: {now.reason}"
        if not same_question(wanted, now.experiment):
            return "runs as it was defined at its start; stop it before anything but weights and share changes"
        begun = ExperimentRevision(experiment=wanted, revision=now.revision + 1, author=author, reason=reason)
    # Another experiment may have taken slots of the layer in the same moment: then new weights take no effect.
    took = writer.write_new(begun)
    if took and not writer.rehearses:
        took = any(one.experiment == begun.experiment for one in read_experiments(writer.path))
    return begun if took else _AT_ONCE


def stop_experiment(
    writer: Decisions, name: str, *, author: str, reason: str, summary: tuple[str, ...] = ()
) -> ExperimentEnd | str:
    now = _running(read_experiments(writer.path), name)
    if now is None:
        return "is not running"
    ended = ExperimentEnd(experiment=name, run=now.experiment.run, author=author, reason=reason, summary=summary)
    return ended if writer.write_new(ended) else _AT_ONCE


def _running(held: Iterable[ExperimentRun], name: str) -> ExperimentRun | None:
    return next((one for one in held if one.runs and one.experiment.name == name), None)
