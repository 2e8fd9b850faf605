"""`suffice replay`: stopping policies on recorded runs, paired with the full runs, or as traffic (--online)."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial, wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import click
from click.core import ParameterSource
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from suffice.cli.offline import FILES, MAX_EM_DROP, MIN_RUN_EM, PROBE_TOKENS, WHERE, split_names
from suffice.cli.shell import FILE, Command, option, read_policy
from suffice.errors import ConfigError
from suffice.plugins import load_plugins
from suffice.replay.online.drift import parse_drift
from suffice.replay.online.protocol import OnlineOptions, replay_online
from suffice.replay.online.summary import OnlineReport, print_online, write_courses
from suffice.replay.report.page import write_report
from suffice.replay.report.text import WIDTH, dump_lines, print_report
from suffice.replay.study.result import SetReport
from suffice.replay.study.sets import replay_set
from suffice.replay.study.study import ReplayOptions
from suffice.replay.study.sums import MARGIN
from suffice.replay.traces.read import Survey, survey

F = TypeVar("F", bound=Callable[..., Any])

OPTIONS = (
    option("--online", is_flag=True, help="Replay as traffic: observe, certify, enforce, watch; many seeds."),
    option(
        "--confidence",
        type=click.FloatRange(0.5, 1, max_open=True),
        default=0.95,
        metavar="C",
        help="Online: how sure the promise must be.",
    ),
    option(
        "--seeds",
        type=click.IntRange(1, 10_000),
        default=20,
        metavar="N",
        help="Online: streams, each in an order of its own.",
    ),
    option(
        "--warm-up",
        type=click.IntRange(0),
        metavar="N",
        help="Online: full runs at the start. [default: 24/budget, at most 35 % of the stream]",
    ),
    option(
        "--run-time",
        type=click.IntRange(0),
        default=0,
        metavar="N",
        help="Online: requests that begin while a full run goes on, on average; more tokens take longer.",
    ),
    option(
        "--label-delay",
        default="0",
        metavar="N|A-B",
        help="Online: requests between the end of a run and its label; A-B: evenly from A to B.",
    ),
    option(
        "--audit-share",
        type=click.FloatRange(0, 1),
        default=0.05,
        metavar="S",
        help="Online: share of the requests that is audited once there is evidence.",
    ),
    option(
        "--resample",
        type=click.IntRange(100),
        metavar="N",
        help="Online: draw N requests, whole questions with replacement.",
    ),
    option(
        "--disjoint", is_flag=True, help="Online: fit and certify on one half of the questions, measure on the other."
    ),
    option(
        "--drift",
        metavar="SPEC",
        help="Online: what changes and when: em=0.5@0.5, model=A*>B*@0.5, class=C:0.8@0.5, mix=A>B:0.8@0.5,"
        " relabel=0.1@0.5, silent=0.06@0.5, ramp=0.08@0.5, oscillate=0.08@0.5, turns=5:0.06,"
        " set=FILE@0.5.",
    ),
    option(
        "--promise",
        type=click.Choice(("certified", "budgeted")),
        default="certified",
        help="Online: budgeted keeps the drop on average over audits, with no confidence in any level.",
    ),
    option("--label-free", is_flag=True, help="Online: certify by disagreement, without labels."),
)

_ONLINE = frozenset(
    {
        "confidence",
        "seeds",
        "warm_up",
        "run_time",
        "label_delay",
        "audit_share",
        "resample",
        "disjoint",
        "drift",
        "label_free",
        "promise",
    }
)
_OFFLINE = {"fit_files": "fit", "policies": "policies", "given": "policy", "classes": "classes", "margin": "margin"}


def online_options(command: F) -> F:
    """The options of `--online`, in the order of the table; what would be ignored is refused."""
    inner = command

    @wraps(inner)
    def checked(*args: Any, **options: Any) -> Any:
        _refuse(click.get_current_context(), online=options["online"])
        return inner(*args, **options)

    command = cast("F", checked)
    for add in reversed(OPTIONS):
        command = add(command)
    return command


def _refuse(context: click.Context, *, online: bool) -> None:
    """Raises click.UsageError where an option of one of the two ways was given to the other."""
    written = [name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if online:
        lost = [_OFFLINE[name] for name in written if name in _OFFLINE]
    else:
        lost = [name.replace("_", "-") for name in written if name in _ONLINE]
    if lost:
        names = ", ".join(f"--{name}" for name in sorted(lost))
        why = "not with --online, which fits and certifies by itself" if online else "only with --online"
        raise click.UsageError(f"{names}: {why}")


def run_online(
    files: Sequence[Path],
    *,
    where: str | None,
    min_run_em: float | None,
    max_em_drop: float,
    probe_tokens: int | None,
    seed: int,
    out: Path | None,
    no_report: bool,
    as_json: bool,
    given: dict[str, Any],
) -> None:
    """Replay files as traffic and show what came of it. Raises ConfigError and TraceError.

    given  the options of the table, by name
    """
    asked = _asked(max_em_drop, probe_tokens, seed, given)
    sets = survey(files, where=where, min_run_em=min_run_em)
    later = survey([asked.drift.file])[0] if asked.drift is not None and asked.drift.file is not None else None
    reports = _replayed(sets, later, asked, quiet=as_json)
    if as_json:
        for report in reports:
            click.echo(json.dumps(report.plain(), allow_nan=False))
    else:
        screen = Console()
        print_online(reports, screen if screen.is_terminal else Console(width=WIDTH + 10))
    if no_report or (as_json and out is None):
        return
    written = write_courses(reports, out or Path("replay-report"))
    if not as_json:
        click.echo("course: " + ", ".join(str(path) for path in written if path.suffix == ".png"))


def _asked(max_em_drop: float, probe_tokens: int | None, seed: int, given: dict[str, Any]) -> OnlineOptions:
    if not 0 < max_em_drop < 1:
        raise ConfigError(f"--max-em-drop: got {max_em_drop:g}; with --online above 0 and below 1: nothing proves 0")
    ways = [f"--{name}" for name in ("resample", "disjoint", "drift") if given[name]]
    if len(ways) > 1:
        raise ConfigError(f"{' and '.join(ways)}: choose one")
    least, most = _label_delay(given["label_delay"])
    return OnlineOptions(
        max_em_drop=max_em_drop,
        confidence=given["confidence"],
        n_seeds=given["seeds"],
        warm_up=given["warm_up"],
        run_time=given["run_time"],
        label_delay=least,
        label_delay_most=most,
        audit_share=given["audit_share"],
        resample=given["resample"],
        disjoint=given["disjoint"],
        drift=parse_drift(given["drift"]) if given["drift"] else None,
        label_free=given["label_free"],
        promise=given["promise"],
        probe_tokens=probe_tokens,
        seed=seed,
    )


def _label_delay(text: str) -> tuple[int, int]:
    """Least and most requests between a run and its label. Raises ConfigError with what is allowed."""
    match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", text, re.ASCII)
    least, most = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if least > most:
        raise ConfigError(f"--label-delay: got {text!r:.60}; allowed: requests as 500, or least to most as 200-800")
    return least, most


def _replayed(sets: Sequence[Any], later: Any, asked: OnlineOptions, *, quiet: bool) -> list[OnlineReport]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    progress = Progress(*columns, console=console)
    with progress if console.is_terminal and not quiet else nullcontext():
        reports = []
        for data in sets:
            task = progress.add_task(data.set, total=asked.n_seeds)
            reports.append(replay_online(data, asked, later=later, tick=partial(progress.advance, task)))
    return reports


@click.command(cls=Command)
@FILES
@option(
    "--fit",
    "fit_files",
    multiple=True,
    type=FILE,
    metavar="FILE",
    help="Fit models and pick points on these files, and freeze both; may be given several times.",
)
@WHERE
@MIN_RUN_EM
@MAX_EM_DROP
@PROBE_TOKENS
@option(
    "--policies",
    metavar="NAMES",
    help="Only these rules of the grid, comma-separated; 'learned' stands for the learned scores.",
)
@option(
    "--policy",
    "given",
    multiple=True,
    metavar="JSON",
    help="""Also a policy of yours, such as '{"policy": "beta", "threshold": 0.97}'.""",
)
@option(
    "--classes",
    type=click.IntRange(2, 64),
    metavar="N",
    help="Also ours with a level for each of at most N classes that are found in the data.",
)
@option(
    "--margin",
    type=click.FloatRange(0, 10),
    metavar="Z",
    help="Standard errors that a frozen point keeps from the target. [default: 1]",
)
@option("--seed", type=int, default=0, help="Of splits, bootstrap and trees.")
@option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Where the report goes. [default: replay-report]",
)
@option("--no-report", is_flag=True, help="Write no report.")
@option("--json", "as_json", is_flag=True, help="Print one JSON line for each set and policy, and nothing else.")
@online_options
def replay(
    files: tuple[Path, ...],
    fit_files: tuple[Path, ...],
    where: str | None,
    min_run_em: float | None,
    max_em_drop: float,
    probe_tokens: int | None,
    policies: str | None,
    given: tuple[str, ...],
    classes: int | None,
    margin: float | None,
    seed: int,
    out: Path | None,
    *,
    no_report: bool,
    as_json: bool,
    **traffic: Any,
) -> None:
    """Replay stopping policies over recorded runs (Parquet or JSON lines).

    Prints the frontier table: full runs, ours and the published rules, each with its point picked on other
    questions (frozen) and in hindsight, and the oracles; writes a report with plots. With --online the runs come as
    traffic instead: a cold start, audits by lot, the certified level, alarms; the figure shows the course.
    """
    load_plugins()
    if traffic.pop("online"):
        run_online(
            files,
            where=where,
            min_run_em=min_run_em,
            max_em_drop=max_em_drop,
            probe_tokens=probe_tokens,
            seed=seed,
            out=out,
            no_report=no_report,
            as_json=as_json,
            given=traffic,
        )
        return
    asked = _replay_asked(max_em_drop, probe_tokens, policies, given, classes, margin, seed)
    reports = _replay(files, fit_files, where, min_run_em, asked, quiet=as_json)
    _show(reports, out, no_report=no_report, as_json=as_json)


def _replay_asked(
    max_em_drop: float,
    probe_tokens: int | None,
    policies: str | None,
    given: Sequence[str],
    classes: int | None,
    margin: float | None,
    seed: int,
) -> ReplayOptions:
    specs = [read_policy(text) for text in given]
    return ReplayOptions(
        max_em_drop=max_em_drop,
        probe_tokens=probe_tokens,
        margin=MARGIN if margin is None else margin,
        families=split_names(policies),
        policies={_label(spec): spec for spec in specs},
        classes=classes or 0,
        seed=seed,
    )


def _label(spec: dict[str, Any]) -> str:
    written = " ".join(f"{key}={value}" for key, value in spec.items() if key != "policy")
    return f"{spec.get('policy')} {written}".strip()


def _replay(
    files: Sequence[Path],
    fit_files: Sequence[Path],
    where: str | None,
    min_run_em: float | None,
    asked: ReplayOptions,
    *,
    quiet: bool,
) -> list[SetReport]:
    console = Console(stderr=True)
    shown = console.is_terminal and not quiet
    progress = Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console)
    with progress if shown else nullcontext():
        task = progress.add_task("looking at the files", total=None)
        sets = survey(files, where=where, min_run_em=min_run_em)
        fits = survey(fit_files, where=where, min_run_em=min_run_em) if fit_files else []
        reports = []
        for data in sets:

            def tick(what: str, name: str = data.set) -> None:
                progress.update(task, description=f"{name}: {what}", advance=1)

            reports.append(replay_set(data, asked, fit=_fits_for(data, fits), tick=tick))
    return reports


def _fits_for(data: Survey, fits: Sequence[Survey]) -> list[Survey]:
    same = [fit for fit in fits if fit.set == data.set] or [fit for fit in fits if fit.kind == data.kind]
    if fits and not same:
        kinds = ", ".join(sorted({fit.kind for fit in fits}))
        raise ConfigError(f"--fit: the files hold {kinds}, and {data.set} holds {data.kind}; need the same kind of run")
    return same


def _show(reports: list[SetReport], out: Path | None, *, no_report: bool, as_json: bool) -> None:
    if as_json:
        click.echo(dump_lines(reports), nl=False)
    else:
        screen = Console()
        for report in reports:
            print_report(report, screen if screen.is_terminal else Console(width=WIDTH))
    if no_report or (as_json and out is None):
        return
    folder = out or Path("replay-report")
    written = write_report(reports, folder, command=shlex.join(["suffice", *sys.argv[1:]]))
    if not as_json:
        click.echo(f"report: {written[0]}")
