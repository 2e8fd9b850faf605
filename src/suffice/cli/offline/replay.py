"""`suffice replay`: stopping policies on recorded runs, paired with the full runs, or as traffic (--online)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console
from rich.progress import MofNCompleteColumn

from suffice.cli.offline import TRACES, WORKERS, command_line, split_names, study_options, trace_files, trace_progress
from suffice.cli.shell import FILE, Command, option, read_policy, stacked
from suffice.episode.checkpoints import Proposer
from suffice.errors import ConfigError
from suffice.executor import Executor, build_executor
from suffice.plugins import load_plugins
from suffice.policy.base import build_policy
from suffice.replay.online.drift import parse_drift
from suffice.replay.online.protocol import OnlineOptions, OnlineReport, print_online, replay_online, write_courses
from suffice.replay.report.page import write_report
from suffice.replay.report.text import WIDTH, dump_lines, print_report
from suffice.replay.study.sets import SetReport, replay_set
from suffice.replay.study.study import ReplayOptions
from suffice.replay.traces.read import Survey, survey

Selector = Callable[[Sequence[Path]], list[Survey]]

OFFLINE = stacked(
    option(
        "--fit",
        "fit_files",
        multiple=True,
        type=FILE,
        metavar="FILE",
        help="Fit models and pick points on these files, and freeze both; may be given several times.",
    ),
    option(
        "--policy",
        "written",
        multiple=True,
        metavar="JSON",
        help="""Also a policy of yours, such as '{"policy": "beta", "threshold": 0.97}'.""",
    ),
    study_options(policies="Only these rules of the grid", margin="a frozen point keeps from the target"),
)
_SHARE, _SURE = click.FloatRange(0, 1), click.FloatRange(0.5, 1, max_open=True)
ONLINE = stacked(
    option("--confidence", type=_SURE, default=0.95, metavar="C", help="Online: how sure the promise must be."),
    option(
        "--seeds",
        "n_seeds",
        type=click.IntRange(1, 10_000),
        default=20,
        metavar="N",
        help="Online: streams, each in an order of its own.",
    ),
    option(
        "--warm-up",
        type=click.IntRange(0),
        metavar="N",
        help="Online: full runs at the start. [default: as in `serve`, 24/budget, at most 8,000]",
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
        type=_SHARE,
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
    option(
        "--by-share",
        "ramps",
        is_flag=True,
        help="Online: begin with a published rule on the share of requests for which it is proved, not with full runs.",
    ),
    option("--label-free", is_flag=True, help="Online: certify by disagreement, without labels."),
)


def _flags(options: Callable[[Any], Any]) -> dict[str, str]:
    return {str(one.name): one.opts[0] for one in click.command()(options(lambda: None)).params}


@click.command(cls=Command)
@TRACES
@OFFLINE
@WORKERS
@option("--seed", type=int, default=0, help="Of splits, bootstrap and trees.")
@option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Where the report goes. [default: replay-report]",
)
@option(
    "--propose",
    metavar="JSON",
    help="Probe chains only where this policy over text and margins would stop, as `probe.propose` of a route.",
)
@option(
    "--propose-every",
    type=click.IntRange(0, 1_000_000),
    default=0,
    metavar="N",
    help="Probe also each checkpoint that comes N after the last; 0: none.",
)
@option("--no-report", is_flag=True, help="Write no report.")
@option("--json", "as_json", is_flag=True, help="Print one JSON line for each set and policy, and nothing else.")
@option("--online", is_flag=True, help="Replay as traffic: observe, certify, enforce, watch; many seeds.")
@ONLINE
@click.pass_context
def replay(
    context: click.Context,
    /,
    files: tuple[str, ...],
    where: str | None,
    min_run_em: float | None,
    out: Path | None,
    *,
    propose: str | None,
    propose_every: int,
    online: bool,
    no_report: bool,
    as_json: bool,
    workers: int | None,
    ray: str | None,
    **given: Any,
) -> None:
    """Replay stopping policies over recorded runs (Parquet or JSON lines).

    Prints the frontier table: full runs, ours and the published rules, each with its operating point chosen on other
    questions (frozen) and in hindsight, and the oracles; writes a report with plots. With --online the runs come as
    traffic: a cold start, random audits, the certified level, alarms; the figure shows the course.
    """
    others = _flags(OFFLINE if online else ONLINE)
    by_hand = [name for name in others if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if by_hand:
        why = "not with --online, which fits and certifies by itself" if online else "only with --online"
        raise click.UsageError(f"{', '.join(sorted(others[name] for name in by_hand))}: {why}")
    load_plugins()
    own = {name: value for name, value in given.items() if name not in others}
    folder = None if no_report or (as_json and out is None) else out or Path("replay-report")
    proposer = None
    if propose is not None or propose_every:
        proposer = partial(Proposer, build_policy(read_policy(propose or "never")), every=propose_every)
    executor = build_executor(workers, ray)
    select = partial(survey, where=where, min_run_em=min_run_em, proposer=proposer, executor=executor)
    run = _replay_online if online else _replay
    run(select, trace_files(files), folder, as_json=as_json, executor=executor, **own)


def _console(width: int) -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=width)


def _replay_options(policies: str | None, written: Sequence[str], **given: Any) -> ReplayOptions:
    specs = dict[str, dict[str, Any]]()
    for text in written:
        spec = read_policy(text)
        parameters = " ".join(f"{key}={value}" for key, value in spec.items() if key != "policy")
        specs[f"{spec.get('policy')} {parameters}".strip()] = spec
    return ReplayOptions(families=split_names(policies), policies=specs, **given)


def _replay(
    select: Selector,
    files: Sequence[Path],
    folder: Path | None,
    *,
    fit_files: Sequence[Path],
    as_json: bool,
    executor: Executor,
    **given: Any,
) -> None:
    options, reports = _replay_options(**given), list[SetReport]()
    with trace_progress(quiet=as_json) as progress:
        task = progress.add_task("looking at the files", total=None)
        sets, fits = select(files), select(fit_files) if fit_files else []
        for data in sets:

            def tick(what: str, name: str = data.set) -> None:
                progress.update(task, description=f"{name}: {what}", advance=1)

            reports.append(replay_set(data, options, fit=_fits_for(data, fits), executor=executor, tick=tick))
    if as_json:
        click.echo(dump_lines(reports), nl=False)
    else:
        console = _console(WIDTH)
        for report in reports:
            print_report(report, console)
    if folder is not None:
        files_written = write_report(reports, folder, command=command_line())
        if not as_json:
            click.echo(f"report: {files_written[0]}")


def _fits_for(data: Survey, fits: Sequence[Survey]) -> list[Survey]:
    same = [fit for fit in fits if fit.set == data.set] or [fit for fit in fits if fit.kind == data.kind]
    if fits and not same:
        kinds = ", ".join(sorted({fit.kind for fit in fits}))
        raise ConfigError(f"--fit: the files hold {kinds}, and {data.set} holds {data.kind}; need the same kind of run")
    return same


def _online_options(max_em_drop: float, label_delay: str, drift: str | None, **given: Any) -> OnlineOptions:
    if not 0 < max_em_drop < 1:
        raise ConfigError(f"--max-em-drop: got {max_em_drop:g}; with --online above 0 and below 1: nothing proves 0")
    streams = {"resample": given["resample"], "disjoint": given["disjoint"], "drift": drift}
    ways = [f"--{name}" for name, value in streams.items() if value]
    if len(ways) > 1:
        raise ConfigError(f"{' and '.join(ways)}: choose one")
    match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", label_delay, re.ASCII)
    least, most = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if least > most:
        allowed = "requests as 500, or least to most as 200-800"
        raise ConfigError(f"--label-delay: got {label_delay!r:.60}; allowed: {allowed}")
    return OnlineOptions(
        max_em_drop=max_em_drop, label_delay=(least, most), drift=parse_drift(drift) if drift else None, **given
    )


def _replay_online(
    select: Selector, files: Sequence[Path], folder: Path | None, *, as_json: bool, executor: Executor, **given: Any
) -> None:
    options = _online_options(**given)
    sets, drift = select(files), options.drift
    later = survey([drift.file])[0] if drift is not None and drift.file is not None else None
    reports = list[OnlineReport]()
    with trace_progress(MofNCompleteColumn(), quiet=as_json) as progress:
        for data in sets:
            task = progress.add_task(data.set, total=options.n_seeds)
            reports.append(
                replay_online(data, options, later=later, executor=executor, tick=partial(progress.advance, task))
            )
    if as_json:
        for report in reports:
            click.echo(json.dumps(report.plain(), allow_nan=False))
    else:
        print_online(reports, _console(WIDTH + 10))
    if folder is not None:
        courses = write_courses(reports, folder)
        if not as_json:
            click.echo("course: " + ", ".join(str(path) for path in courses if path.suffix == ".png"))
