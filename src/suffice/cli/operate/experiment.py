"""`suffice experiment`: lists, shows, starts and stops experiments."""

from __future__ import annotations

import textwrap
from pathlib import Path

import click
import msgspec

from suffice.cli.shell import (
    AUTHOR,
    CONFIG,
    JSON,
    REASON,
    CommandGroup,
    fail,
    log_of,
    option,
    print_json,
    print_line,
    refused,
    say,
    who,
)
from suffice.control.compare.experiments import read_experiment
from suffice.errors import ConfigError
from suffice.formatting import format_time
from suffice.rollout.results import (
    HOLDS,
    ArmComparison,
    ArmResult,
    ClassEffect,
    ExperimentResult,
    metric_of,
    summarize_arm,
)
from suffice.settings import Experiment, Settings
from suffice.store.database.sqlite import database_path
from suffice.store.routes import experiments
from suffice.store.routes.experiments import ExperimentRun, read_experiments
from suffice.wiring.files import load_deployment
from suffice.wiring.routes import check_experiment

_WIDTH = 100


@click.group(cls=CommandGroup)
def experiment() -> None:
    """Compare ways to serve the same requests."""


@experiment.command("list")
@CONFIG
@JSON
def list_(path: str, *, as_json: bool) -> None:
    """List experiments and which of them run.

    Those of the settings, and those of the log that are not there any more.
    """
    settings, _, held = _opened(path)
    latest = {one.experiment.name: one for one in held}
    names = list(dict.fromkeys((*settings.experiments, *latest)))
    if as_json:
        rows = [{"name": name, **_listed(name, settings, latest)} for name in names]
        print_json({"experiments": rows})
        return
    if not names:
        click.echo("no experiment: write one as [experiments.NAME] in the settings")
    for name in names:
        row = _listed(name, settings, latest)
        sentence = f"{row['state']}" + (f", {row['since']} by {row['author']}: {row['reason']}" if row["since"] else "")
        print_line(f"{name}: {sentence}")
        click.echo(f"  {row['arms']}; decides: {row['primary']}; layer {row['layer']}, {row['share']:.1%} of it")


@experiment.command()
@click.argument("name")
@CONFIG
@option("--run", type=click.IntRange(min=1), help="Which start of that name. [default: the latest]")
@JSON
def show(name: str, path: str, run: int | None, *, as_json: bool) -> None:
    """Show what experiment NAME tells so far.

    Look as often as you like: every interval holds at every look.
    """
    settings, database, held = _opened(path)
    mine = [one for one in held if one.experiment.name == name and run in (None, one.experiment.run)]
    if not mine:
        known = ", ".join(dict.fromkeys(one.experiment.name for one in held)) or "none was ever started"
        fail(f"no run of experiment {name!r} in {database}; started: {known}")
    one = mine[-1]
    result = read_experiment(database, one, settings)
    if as_json:
        values = {arm.arm: summarize_arm(result, arm) for arm in result.arms}
        entries = {**_state(one), "result": msgspec.to_builtins(result), "reading": values}
        print_json(entries)
        return
    _print(one, result)


@experiment.command()
@click.argument("name")
@CONFIG
@REASON
@AUTHOR
@JSON
def start(name: str, path: str, reason: str, author: str | None, *, as_json: bool) -> None:
    """Start experiment NAME, or change its weights.

    It runs as the settings have it now. One that runs already gets its new weights and share.
    """
    with log_of(path) as (settings, writer):
        written = _of_settings(settings, name)
        check_experiment(settings, name)
        result = experiments.start_experiment(writer, name, written, author=who(author), reason=reason)
    if isinstance(result, str):
        refused(f"experiment {name} {result}")
    odds = ", ".join(f"{arm} {share:.1%}" for arm, share in result.experiment.odds().items())
    verb = "started" if result.revision == 0 else "changed"
    text = f"experiment {name}: {verb}, run {result.experiment.run}: {odds}; running gateways follow within a second"
    say(result, as_json=as_json, text=text)


@experiment.command()
@click.argument("name")
@CONFIG
@REASON
@AUTHOR
@JSON
def stop(name: str, path: str, reason: str, author: str | None, *, as_json: bool) -> None:
    """Stop experiment NAME.

    Its requests are served as the route says again. What it showed is kept beside the reason.
    """
    with log_of(path) as (settings, writer):
        held = experiments.read_experiments(writer.path)
        now = next((one for one in held if one.runs and one.experiment.name == name), None)
        parts = () if now is None else _said(now, settings, writer.path)
        result = experiments.stop_experiment(writer, name, author=who(author), reason=reason, said=parts)
    if isinstance(result, str):
        refused(f"experiment {name} {result}")
    say(result, as_json=as_json, text=f"experiment {name}: stopped, run {result.run}")
    for sentence in () if as_json else result.said:
        _wrapped(sentence, "  ")


# --------------------------------------------------------------------------- what is read


def _opened(path: str) -> tuple[Settings, Path, tuple[ExperimentRun, ...]]:
    settings = load_deployment(path)
    database = database_path(settings.store.url)
    return settings, database, read_experiments(database)


def _said(one: ExperimentRun, settings: Settings, database: Path) -> tuple[str, ...]:
    try:
        result = read_experiment(database, one, settings)
    except Exception as error:  # noqa: BLE001 - what is computed must not keep a person from stopping it
        click.echo(f"suffice experiment stop: what it showed could not be read: {error}", err=True)
        return ()
    return tuple(sentence for arm in result.arms for sentence in summarize_arm(result, arm))


def _of_settings(settings: Settings, name: str) -> Experiment:
    if name not in settings.experiments:
        known = ", ".join(sorted(settings.experiments)) or "none is configured"
        raise ConfigError(f"unknown experiment {name!r}; known: {known}")
    return settings.experiments[name]


# --------------------------------------------------------------------------- how it looks


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


def _listed(name: str, settings: Settings, latest: dict[str, ExperimentRun]) -> dict[str, object]:
    held, written = latest.get(name), settings.experiments.get(name)
    if held is not None and (held.runs or written is None):
        one = held.experiment
        arms, primary, layer, share = one.odds(), one.primary, one.layer, one.share
    else:
        assert written is not None
        total = sum(arm.weight for arm in written.arms.values())
        arms = {arm: table.weight / total for arm, table in written.arms.items()}
        primary, layer, share = written.primary, written.layer, written.share
    state = "never started" if held is None else "running" if held.runs else "stopped"
    ended = held.ended if held is not None else None
    at_s = None if held is None else held.started_at_s if held.runs else held.ended_at_s
    by = (ended.author, ended.reason) if ended else (held.author, held.reason) if held else (None, None)
    return {
        "state": state,
        "run": held.experiment.run if held else None,
        "since": format_time(at_s) if at_s else None,
        "author": by[0],
        "reason": by[1],
        "arms": ", ".join(f"{arm} {part:.1%}" for arm, part in arms.items()),
        "primary": primary,
        "layer": layer,
        "share": share,
    }


def _print(one: ExperimentRun, result: ExperimentResult) -> None:
    what = one.experiment
    since = format_time(one.started_at_s)
    print_line(f"experiment {what.name}, run {what.run}: started {since} by {one.author}: {one.reason}")
    if one.ended is not None and one.ended_at_s is not None:
        print_line(f"  stopped {format_time(one.ended_at_s)} by {one.ended.author}: {one.ended.reason}")
    click.echo(
        f"  routes {', '.join(what.routes)}; unit {what.unit}; layer {what.layer}, {what.share:.1%} of it;"
        f" decides: {what.primary}"
    )
    parts = ", ".join(f"{arm} {share:.1%} ({result.n_by_arm.get(arm, 0):,})" for arm, share in what.odds().items())
    click.echo(f"  {result.n_requests:,} requests of {result.n_units:,} units: {parts}")
    for arm in result.arms:
        click.echo(f"\n{arm.arm} against {result.control}: {arm.verdict.upper()}")
        for sentence in summarize_arm(result, arm):
            _wrapped(sentence, "  ")
        _table(arm)
    click.echo()
    _wrapped(HOLDS, "")


def _table(arm: ArmResult) -> None:
    rows: list[tuple[str, ...]] = [("", "difference", "between", "allowed", "verdict", "stands on")]
    for one in arm.comparisons:
        rows.append(_row(one))
        rows += [_class_row(one, part) for part in one.classes]
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    click.echo()
    for row in rows:
        click.echo("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _row(one: ArmComparison) -> tuple[str, ...]:
    if one.effect is None or one.between is None:
        return (_named(one.metric), "-", "-", _allowed(one), one.verdict, one.why)
    stands = f"{one.n:,} {'full runs' if one.paired else 'units'}"
    notes = [f"{one.n_pending:,} without a label"] if one.n_pending else []
    notes += [f"{one.n_cut:,} above the cap"] if one.n_cut else []
    return (
        _named(one.metric),
        _number(one.metric, one.effect),
        _ends(one.metric, one.between.low, one.between.high),
        _allowed(one),
        one.verdict,
        ", ".join([stands, *notes]),
    )


def _class_row(one: ArmComparison, part: ClassEffect) -> tuple[str, ...]:
    return (
        f"  class {part.query_class or 'none'}",
        _number(one.metric, part.effect),
        _ends(one.metric, part.between.low, part.between.high),
        "",
        part.verdict,
        f"{part.n:,}",
    )


def _named(metric: str) -> str:
    unit = metric_of(metric).margin
    return metric if unit == metric else f"{metric}, {unit}"


def _allowed(one: ArmComparison) -> str:
    return "" if one.margin is None else metric_of(one.metric).size(one.margin)


def _number(metric: str, value: float) -> str:
    one = metric_of(metric)
    return f"{value * one.times + 0.0:+,.{one.digits}f}"  # a minus zero is a zero


def _ends(metric: str, low: float, high: float) -> str:
    return f"{_number(metric, low)} to {_number(metric, high)}"


def _wrapped(text: str, indent: str) -> None:
    click.echo(textwrap.fill(text, _WIDTH, initial_indent=indent, subsequent_indent=indent))
