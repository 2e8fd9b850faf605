"""`suffice tune`: searches for a policy on recorded runs and estimates its performance on unseen questions."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from suffice.cli.offline import TRACES, command_line, split_names, study_options, trace_files, trace_progress
from suffice.cli.shell import Command, option
from suffice.errors import ConfigError
from suffice.plugins import load_plugins
from suffice.replay.report.text import as_plain, describe_percent, describe_points, dump_json
from suffice.replay.study.scores import PolicyProposal, build_proposal, format_toml, title_of, write_proposal
from suffice.replay.study.search import Bench, IntervalValue, TunedSet, TuneOptions, make_bench, tune_runs
from suffice.replay.study.sums import N_FOLDS
from suffice.replay.traces.read import Survey, survey
from suffice.sanitize import printable


@click.command(cls=Command)
@TRACES
@option("--trials", type=click.IntRange(1, 100_000), default=200, metavar="N", help="Of each of the six searches.")
@option(
    "--time-limit",
    "time_limit_s",
    type=click.FloatRange(0, min_open=True),
    metavar="S",
    help="Seconds for all searches together; results then depend on the machine. [default: none]",
)
@study_options(policies="Search among these alone", margin="a drop keeps from the target in the search")
@option(
    "--classes",
    type=click.IntRange(2, 64),
    metavar="N",
    help="Learned scores may have a level for each of at most N classes that are found in the data.",
)
@option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, help="Of the searches, the models and the bootstrap.")
@option("--route", default="tuned", metavar="NAME", help="Name of the route that is written.")
@option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Where policy.toml and stop-model.json go. [default: tuned]",
)
@option("--json", "as_json", is_flag=True, help="Print one JSON object; write files only with --out.")
def tune(
    files: tuple[str, ...],
    where: str | None,
    min_run_em: float | None,
    policies: str | None,
    classes: int | None,
    out: Path | None,
    route: str,
    *,
    as_json: bool,
    **given: Any,
) -> None:
    """Search all policies and their parameters on recorded runs (Parquet or JSON lines) of one set.

    The search is repeated five times, each time without a fifth of the questions, and the winner is evaluated on those:
    expect this result, not the one of the search. Writes what a route needs to run the policy.
    """
    load_plugins()
    options = TuneOptions(policies=split_names(policies), classes=classes or 0, **given)
    sets = survey(trace_files(files), where=where, min_run_em=min_run_em)
    if len(sets) != 1:
        names = ", ".join(data.set for data in sets)
        raise ConfigError(f"the files hold {len(sets)} sets ({names}); a policy is tuned for one at a time")
    tuned, bench = _tune(sets[0], options, quiet=as_json)
    written, proposal = _write(tuned, bench, route, Path("tuned") if out is None and not as_json else out)
    if not as_json:
        _show(tuned, proposal, written)
        return
    model = None if proposal.model is None else proposal.model.address
    added = {"winners": tuned.winners, "policy": proposal.spec, "model": model, "written": list(map(str, written))}
    click.echo(dump_json(as_plain(tuned) | added))


def _tune(data: Survey, options: TuneOptions, *, quiet: bool) -> tuple[TunedSet, Bench]:
    with trace_progress(quiet=quiet) as progress:
        n_searches = N_FOLDS + 1 + (N_FOLDS if options.classes else 0)
        task = progress.add_task("looking at the files", total=n_searches * options.trials)

        def tick(what: str) -> None:
            progress.update(task, description=what, advance=1 if what.startswith("searching") else 0)

        bench = make_bench(data, options, tick)
        return tune_runs(bench, clock=time.monotonic, tick=tick), bench


def _write(tuned: TunedSet, bench: Bench, route: str, folder: Path | None) -> tuple[list[Path], PolicyProposal]:
    proposal = build_proposal(tuned.proposal, bench.scores, classes=bench.classes(None).classes)
    if folder is None:
        return [], proposal
    seen = tuned.optimism
    head = (
        f"{command_line()}\n"
        f"On questions that the search had not seen: {100 * seen.token_reduction_unseen.value:.1f} % of the tokens"
        f" saved, EM drop {100 * seen.em_drop_unseen.value:.2f} points.\n"
        "The route still needs an upstream, unless you run its loop, and the scorer of the traces."
    )
    settings: dict[str, Any] = {"kind": tuned.kind}
    if tuned.kind == "samples":
        settings["samples"] = int(bench.runs.n_steps.max())
        settings["max_extra_calls"] = max(32, settings["samples"] - 1)
    return write_proposal(proposal, folder, route=route, settings=settings, head=head), proposal


def _show(tuned: TunedSet, proposal: PolicyProposal, written: list[Path]) -> None:
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(
        f"{printable(tuned.set)}, {tuned.kind}: {tuned.n_episodes:,} runs of {tuned.n_questions:,} questions,"
        f" full EM {describe_percent(tuned.full_em)} %"
    )
    if tuned.share < 1:
        console.print(
            f"the set is too long for memory: searched on {describe_percent(tuned.share)} % of its questions,"
            " chosen by hash"
        )
    console.print(
        f"target: EM drop at most {describe_points(tuned.max_em_drop)}, kept by {tuned.margin:g} × its standard error;"
        f" {tuned.n_trials_in_all:,} trials in {tuned.n_searches} searches, seed {tuned.seed}\n"
    )
    _show_folds(tuned, console)
    _show_optimism(tuned, console)
    seen = tuned.proposal_in_search
    console.print(
        f"\nproposal, searched on all questions ({describe_percent(seen.token_reduction)} % saved, drop"
        f" {describe_percent(seen.em_drop, 2)} there):\n  policy = {format_toml(proposal.spec)}"
    )
    if tuned.proposal is None:
        console.print("Nothing saves tokens and keeps the target here, so the proposal is to stop nothing.")
    if written:
        console.print(f"written: {', '.join(map(str, written))}")


def _show_folds(tuned: TunedSet, console: Console) -> None:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("fold")
    table.add_column("winner of the search without it", overflow="fold")
    for head in ("saved %: searched", "unseen", "drop: searched", "unseen"):
        table.add_column(head, justify="right", no_wrap=True)
    for fold in tuned.folds:
        seen, unseen = fold.in_search, fold.unseen
        table.add_row(
            f"{fold.fold + 1} ({fold.n_questions})",
            title_of(fold.spec),
            describe_percent(seen.token_reduction),
            describe_percent(unseen.token_reduction),
            describe_percent(seen.em_drop, 2),
            describe_percent(unseen.em_drop, 2),
        )
    console.print(table)


def _show_optimism(tuned: TunedSet, console: Console) -> None:
    def ranged(of: IntervalValue) -> str:
        low, high = describe_percent(of.interval.low, 2), describe_percent(of.interval.high, 2)
        return f"{describe_percent(of.value, 2)} [{low}, {high}]"

    optimism = tuned.optimism
    console.print(f"\n{'':<10} {'tokens saved, %':>24} {'EM drop, points':>24}")
    for name, saved, drop in (
        ("in search", optimism.token_reduction_in_search, optimism.em_drop_in_search),
        ("unseen", optimism.token_reduction_unseen, optimism.em_drop_unseen),
        ("optimism", optimism.token_reduction, optimism.em_drop),
    ):
        console.print(f"{name:<10} {ranged(saved):>24} {ranged(drop):>24}")
    n_folds = len(tuned.folds)
    if (by := tuned.by_class) is not None:
        gained, low, high = map(describe_percent, (by.saved, by.saved_interval.low, by.saved_interval.high))
        ends = by.drop_interval
        dropped, least, most = (describe_percent(x, 2) for x in (by.drop, ends.low, ends.high))
        console.print(
            f"levels by class against as many trials without them, unseen: saved {gained} points ({low} to {high}),"
            f" drop {dropped} ({least} to {most})"
        )
    console.print("winners: " + ", ".join(f"{name} ({n} of {n_folds} folds)" for name, n in tuned.winners.items()))
