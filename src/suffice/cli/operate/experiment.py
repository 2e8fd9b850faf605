"""`suffice experiment`: lists, shows, starts and stops experiments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import click

from suffice.assurance.bounds import Interval
from suffice.cli import shell
from suffice.cli.operations import command_of
from suffice.control.compare.experiments import read_experiment
from suffice.formatting import format_time
from suffice.operations.experiments import start_named_experiment, stop_named_experiment
from suffice.rollout.results import HOLDS, ArmResult, ExperimentResult, metric_of, summarize_arm
from suffice.settings import Experiment, Settings
from suffice.store.database.location import log_location
from suffice.store.routes.experiments import ExperimentRun, read_experiments


@click.group(cls=shell.CommandGroup)
def experiment() -> None:
    """Compare ways to serve the same requests."""


@experiment.command("list")
@shell.report()
def list_(settings: Settings) -> shell.CommandReply:
    """List experiments, and which of them run, with those of the log that the settings no longer have."""
    latest = {one.experiment.name: one for one in read_experiments(log_location(settings.store))}
    names = dict.fromkeys((*settings.experiments, *latest))
    rows = [{"name": name, **_summary(name, settings, latest.get(name))} for name in names]
    lines = [line for row in rows for line in _summary_lines(row)]
    empty = "no experiment: write one as [experiments.NAME] in the settings"
    return shell.CommandReply({"experiments": rows}, lines or empty)


@experiment.command()
@click.argument("name")
@shell.option("--run", type=click.IntRange(min=1), help="Which start of that name. [default: the latest]")
@shell.report()
def show(settings: Settings, name: str, run: int | None) -> shell.CommandReply:
    """Show the results of experiment NAME so far; every interval holds at every look."""
    database = log_location(settings.store)
    held = read_experiments(database)
    mine = [one for one in held if one.experiment.name == name and run in (None, one.experiment.run)]
    if not mine:
        known = ", ".join(dict.fromkeys(one.experiment.name for one in held)) or "none was ever started"
        shell.fail(f"no run of experiment {name!r} in {database}; started: {known}")
    result = read_experiment(database, mine[-1], settings)
    values = {arm.arm: summarize_arm(result, arm) for arm in result.arms}
    return shell.CommandReply(
        {**_state(mine[-1]), "result": result, "reading": values}, _result_lines(mine[-1], result, values)
    )


experiment.add_command(command_of(start_named_experiment))
experiment.add_command(command_of(stop_named_experiment))


def _state(one: ExperimentRun) -> dict[str, object]:
    ended = one.ended
    return {
        "experiment": one.experiment.name,
        "run": one.experiment.run,
        "state": "running" if one.runs else "stopped",
        "started_at_s": one.started_at_s,
        "author": one.author,
        "reason": one.reason,
        "revision": one.revision,
        "ended_at_s": one.ended_at_s,
        "ended_by": ended.author if ended else None,
        "ended_because": ended.reason if ended else None,
    }


def _summary(name: str, settings: Settings, held: ExperimentRun | None) -> dict[str, object]:
    written = settings.experiments.get(name)
    table = held.experiment if held is not None and (held.runs or written is None) else written
    assert table is not None
    if isinstance(table, Experiment):
        total = sum(arm.weight for arm in table.arms.values())
        arms = {arm: one.weight / total for arm, one in table.arms.items()}
    else:
        arms = table.odds()
    at_s = None if held is None else held.started_at_s if held.runs else held.ended_at_s
    signed = None if held is None else held.ended or held
    return {
        "state": "never started" if held is None else "running" if held.runs else "stopped",
        "run": held.experiment.run if held else None,
        "since": format_time(at_s) if at_s else None,
        "author": signed.author if signed else None,
        "reason": signed.reason if signed else None,
        "arms": ", ".join(f"{arm} {part:.1%}" for arm, part in arms.items()),
        "primary": table.primary,
        "layer": table.layer,
        "share": table.share,
    }


def _summary_lines(row: dict[str, object]) -> tuple[str, str]:
    since = f", {row['since']} by {row['author']}: {row['reason']}" if row["since"] else ""
    return (
        f"{row['name']}: {row['state']}{since}",
        f"  {row['arms']}; decides: {row['primary']}; layer {row['layer']}, {row['share']:.1%} of it",
    )


def _result_lines(
    one: ExperimentRun, result: ExperimentResult, sentences: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    what = one.experiment
    since = format_time(one.started_at_s)
    yield f"experiment {what.name}, run {what.run}: started {since} by {one.author}: {one.reason}"
    if one.ended is not None and one.ended_at_s is not None:
        yield f"  stopped {format_time(one.ended_at_s)} by {one.ended.author}: {one.ended.reason}"
    layer = f"layer {what.layer}, {what.share:.1%} of it"
    yield f"  routes {', '.join(what.routes)}; unit {what.unit}; {layer}; decides: {what.primary}"
    parts = ", ".join(f"{arm} {share:.1%} ({result.n_by_arm.get(arm, 0):,})" for arm, share in what.odds().items())
    yield f"  {result.n_requests:,} requests of {result.n_units:,} units: {parts}"
    for arm in result.arms:
        yield ""
        yield f"{arm.arm} against {result.control}: {arm.verdict.upper()}"
        for sentence in sentences[arm.arm]:
            yield from shell.wrapped(sentence, "  ", width=shell.WIDTH).splitlines()
        yield ""
        yield from _table_lines(arm)
    yield ""
    yield from shell.wrapped(HOLDS, width=shell.WIDTH).splitlines()


def _table_lines(arm: ArmResult) -> Iterator[str]:
    rows: list[tuple[str, ...]] = [("", "difference", "between", "allowed", "verdict", "based on")]
    for one in arm.comparisons:
        metric = metric_of(one.metric)
        name = one.metric if metric.margin == one.metric else f"{one.metric}, {metric.margin}"
        allowed = "" if one.margin is None else metric.size(one.margin)
        difference, notes = ("-", "-"), one.why
        if one.effect is not None and one.between is not None:
            difference = _number(one.metric, one.effect), _ends(one.metric, one.between)
            counts = [f"{one.n:,} {'full runs' if one.paired else 'units'}"]
            counts += [f"{one.n_pending:,} without a label"] if one.n_pending else []
            counts += [f"{one.n_cut:,} above the cap"] if one.n_cut else []
            notes = ", ".join(counts)
        rows.append((name, *difference, allowed, one.verdict, notes))
        for part in one.classes:
            difference = _number(one.metric, part.effect), _ends(one.metric, part.between)
            rows.append((f"  class {part.query_class or 'none'}", *difference, "", part.verdict, f"{part.n:,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _number(metric: str, value: float) -> str:
    one = metric_of(metric)
    return f"{value * one.times + 0.0:+,.{one.digits}f}"  # turns -0.0 into 0


def _ends(metric: str, between: Interval) -> str:
    return f"{_number(metric, between.low)} to {_number(metric, between.high)}"
