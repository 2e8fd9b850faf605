"""Experiments: which are written down, which run, and what one of them shows so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from suffice.console.auth import Principal
from suffice.console.exchange import ConsoleRequest
from suffice.console.view_context import NotThere, ViewContext
from suffice.rollout.results import ExperimentResult, metric_of, summarize_arm
from suffice.store.routes.experiments import ExperimentRun, read_experiments

Analyse = Callable[[ExperimentRun], ExperimentResult]  # what a run of an experiment shows now; it takes a while


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentRow:
    """One experiment."""

    name: str
    state: str  # "runs", "ended", "not started"
    routes: tuple[str, ...]
    odds: Mapping[str, float]  # of each arm
    primary: str
    control: str
    layer: str
    share: float  # of the layer's units
    run: int  # 0: it was never started
    started_at_s: float | None
    author: str
    reason: str
    ended: str  # why and by whom; "": it runs, or never did
    said: tuple[str, ...]  # what it showed when it was ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiments:
    """All experiments, those that run first."""

    lines: tuple[ExperimentRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentView:
    """What an experiment shows at this look. Every interval holds at every look."""

    result: ExperimentResult
    reading: Mapping[str, tuple[str, ...]]  # by arm: in sentences
    units: Mapping[str, str]  # by metric: what its numbers are in


def experiments(look: ViewContext, _asked: ConsoleRequest, _visitor: Principal) -> Experiments:
    """All experiments of the settings and of the log. Raises StoreError."""
    latest = {one.experiment.name: one for one in read_experiments(look.connection)}
    lines = [_held(one) for one in latest.values()]
    lines += [
        ExperimentRow(
            name=name,
            state="not started",
            routes=written.routes,
            odds={
                arm: table.weight / sum(one.weight for one in written.arms.values())
                for arm, table in written.arms.items()
            },
            primary=written.primary,
            control=written.control,
            layer=written.layer,
            share=written.share,
            run=0,
            started_at_s=None,
            author="",
            reason="",
            ended="",
            said=(),
        )
        for name, written in look.settings.experiments.items()
        if name not in latest
    ]
    order = {"runs": 0, "not started": 1, "ended": 2}
    return Experiments(lines=tuple(sorted(lines, key=lambda one: (order[one.state], one.name))))


def _held(one: ExperimentRun) -> ExperimentRow:
    experiment, ended = one.experiment, one.ended
    return ExperimentRow(
        name=experiment.name,
        state="runs" if one.runs else "ended",
        routes=experiment.routes,
        odds=experiment.odds(),
        primary=experiment.primary,
        control=experiment.control,
        layer=experiment.layer,
        share=experiment.share,
        run=experiment.run,
        started_at_s=one.started_at_s,
        author=one.author,
        reason=one.reason,
        ended="" if ended is None else f"{ended.author}: {ended.reason}",
        said=() if ended is None else ended.said,
    )


def view_experiment(analyse: Analyse) -> Callable[[ViewContext, ConsoleRequest, Principal], ExperimentView]:
    """The view of one experiment's result, by `name`."""

    def view(look: ViewContext, asked: ConsoleRequest, _visitor: Principal) -> ExperimentView:
        name = asked.query.get("name", "")
        mine = [one for one in read_experiments(look.connection) if one.experiment.name == name]
        if not mine:
            raise NotThere(f"experiment: no run of {name[:80]!r} was ever started")
        result = analyse(mine[-1])
        metrics = {comparison.metric for arm in result.arms for comparison in arm.comparisons}
        return ExperimentView(
            result=result,
            reading={arm.arm: summarize_arm(result, arm) for arm in result.arms},
            units={metric: metric_of(metric).margin for metric in sorted(metrics)},
        )

    return view
