"""`suffice replay`: stopping policies on recorded runs, paired with the full runs, every token counted."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from suffice.cli.offline.replay_online import online_options, run_online
from suffice.cli.shell import fail
from suffice.errors import ConfigError, SufficeError
from suffice.plugins import load_plugins
from suffice.replay.report.lines import json_lines
from suffice.replay.report.report import write_report
from suffice.replay.report.table import WIDTH, print_report
from suffice.replay.study.points import MARGIN
from suffice.replay.study.result import SetReport
from suffice.replay.study.sets import ReplayOptions, replay_set
from suffice.replay.traces.survey import Survey, survey


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--fit",
    "fit_files",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Fit models and pick points on these files, and freeze both; may be given several times.",
)
@click.option("--where", metavar="CONDITIONS", help="Take only some runs: 'task=mmlu_pro,model!=gpt*'.")
@click.option(
    "--min-run-em",
    type=click.FloatRange(0, 1, max_open=True),
    metavar="EM",
    help="Leave out a model's run whose full EM over the set is not above this.",
)
@click.option(
    "--max-em-drop",
    type=click.FloatRange(0, 1),
    default=0.01,
    show_default=True,
    metavar="E",
    help="The target: a fraction, 0.01 is one point.",
)
@click.option(
    "--probe-tokens",
    type=click.IntRange(0, 100_000),
    metavar="T",
    help="Charged for each probe. [default: as recorded, else 15 for reasoning and 0 elsewhere]",
)
@click.option(
    "--policies",
    metavar="NAMES",
    help="Only these rules of the grid, comma-separated; 'learned' stands for the learned scores.",
)
@click.option(
    "--policy",
    "given",
    multiple=True,
    metavar="JSON",
    help="""Also a policy of yours, such as '{"policy": "beta", "threshold": 0.97}'.""",
)
@click.option(
    "--classes",
    type=click.IntRange(2, 64),
    metavar="N",
    help="Also ours with a level for each of at most N classes that are found in the data.",
)
@click.option(
    "--margin",
    type=click.FloatRange(0, 10),
    metavar="Z",
    help="Standard errors that a frozen point keeps from the target. [default: 1]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of splits, bootstrap and trees.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Where the report goes. [default: replay-report]",
)
@click.option("--no-report", is_flag=True, help="Write no report.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line for each set and policy, and nothing else.")
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
    try:
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
        asked = _asked(max_em_drop, probe_tokens, policies, given, classes, margin, seed)
        reports = _replay(files, fit_files, where, min_run_em, asked, quiet=as_json)
        _show(reports, out, no_report=no_report, as_json=as_json)
    except SufficeError as error:
        fail("replay", error)


def _asked(
    max_em_drop: float,
    probe_tokens: int | None,
    policies: str | None,
    given: Sequence[str],
    classes: int | None,
    margin: float | None,
    seed: int,
) -> ReplayOptions:
    specs = [_spec(text) for text in given]
    return ReplayOptions(
        max_em_drop=max_em_drop,
        probe_tokens=probe_tokens,
        margin=MARGIN if margin is None else margin,
        families=tuple(name.strip() for name in policies.split(",")) if policies else (),
        policies={_label(spec): spec for spec in specs},
        classes=classes or 0,
        seed=seed,
    )


def _spec(text: str) -> dict[str, Any]:
    if not text.lstrip().startswith("{"):
        return {"policy": text.strip()}
    try:
        spec = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"--policy: is no JSON ({error}); write a name or a JSON object") from None
    if not isinstance(spec, dict):
        raise ConfigError(f"--policy: got a {type(spec).__name__}; write a name or a JSON object")
    return spec


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
        click.echo(json_lines(reports), nl=False)
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
