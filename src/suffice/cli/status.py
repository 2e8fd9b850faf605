"""`suffice status`: what each route did, from the event log alone.

Knows how a report is shown to a person or a program; refuses to compute one (`assurance.estimate`)
and to change anything. Heavy imports stand inside the command, so `suffice --help` stays quick.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from suffice.assurance.estimate import Estimate, Measured, MoneyTotals, RouteReport, TokenTotals
    from suffice.assurance.evidence import Evidence
    from suffice.assurance.outlook import Outlook
    from suffice.cli.held import Held
    from suffice.cli.pairs import PairStatus
    from suffice.settings import Route, Settings
    from suffice.store.advice_events import ArmWorth, Proposed
    from suffice.store.phases import Phase
    from suffice.store.views import RouteCounts

EXACT = "exact string equality (no --config, so no route scorers)"
LOUD = ("UNCERTIFIED", "PAUSED", "NOT RUNNING", "ALERT", "WAITS")  # how a line begins that a reader must not overlook
SEED = 20_240_229  # of the bootstrap: the same log gives the same report


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteStatus:
    """One route's report with what a reader needs beside it."""

    report: RouteReport
    mode: str             # of the newest request
    policy_version: str   # of the newest request
    n_without_outcome: int
    scorer: str
    confidence: float     # of every interval
    max_em_drop: float    # fraction: what a certificate would have to promise
    evidence: Evidence    # what is missing for it
    refused: str | None   # why the settings' "enforce" is not obeyed; None: it is, or was not asked for
    control: Phase | None = None  # where it stands with its certificate; None: no control loop is meant for it
    outlook: Outlook | None = None  # the latest look of the job `monitor`; None: nobody has looked
    proposal: Proposed | None = None  # the newest of the job `retrain`
    tuner: ArmWorth | None = None  # the latest proposal of the job `tune`
    promise: str = ""     # in one sentence, with all that it hangs on
    pairs: PairStatus | None = None  # of an effort or a budget that is proved by asking twice
    held: Held | None = None  # what people hold on it, and what waits for them; None: nothing


@click.command()
@click.option("--config", type=click.Path(path_type=Path), help="Configuration file. [default: suffice.toml]")
@click.option("--db", type=click.Path(path_type=Path), help="Read this log; alone: no route scorers.")
@click.option("--route", help="Show only this route.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def status(config: Path | None, db: Path | None, route: str | None, as_json: bool) -> None:
    """Show Exact Match, tokens, saving and governed share of every route."""
    from suffice.errors import SufficeError

    try:
        settings, database = _sources(config, db)
        statuses = read_statuses(database, settings, route)
    except (SufficeError, OSError) as error:
        click.echo(f"status: {error}", err=True)
        raise SystemExit(2) from None
    if as_json:
        _print_json(statuses)
        return
    if not statuses:
        click.echo(f"{database}: no requests yet")
    for one in statuses:
        _print_route(one)


def read_statuses(database: Path, settings: Settings | None, route: str | None) -> list[RouteStatus]:
    """Read the log and report on every route that it has seen, or on `route` alone, by name.

    settings  for the routes' scorers and confidence; None: strings are compared, at 95 %

    Raises StoreError when the log cannot be read or has no such route, and ConfigError for an
    unknown scorer.
    """
    import numpy as np

    from suffice.assurance.estimate import estimate_route
    from suffice.cli.held import read_held
    from suffice.cli.pairs import read_pairs
    from suffice.errors import StoreError
    from suffice.store.advice import newest_arm, newest_outlook, newest_proposal
    from suffice.store.in_force import NOTHING
    from suffice.store.phases import phase_of, promise, read_phases
    from suffice.store.views import read_episodes, route_counts

    counts, phases, held = route_counts(database), read_phases(database), read_held(database, now_s=time.time())
    if route is not None and route not in (known := [one.route for one in counts]):
        names = ", ".join(name or '""' for name in known) or "none yet"
        raise StoreError(f"--route: no request of route {route!r} in {database}; routes seen: {names}")
    statuses = []
    for one in counts:
        if route is not None and one.route != route:
            continue
        configured = settings.routes.get(one.route) if settings is not None else None
        confidence = configured.confidence if configured is not None else 0.95
        max_em_drop = configured.max_em_drop if configured is not None else 0.02
        with _match(configured) as (scorer, match):
            report = estimate_route(
                read_episodes(database, one.route),
                route=one.route, match=match, rng=np.random.default_rng(SEED), confidence=confidence,
            )
            pairs = None if configured is None else read_pairs(database, one.route, configured, match)
        refused = _refused(database, settings, one.route)
        control = phases.get(one.route)
        if control is None and configured is not None and configured.certifies_itself:
            control = phase_of(NOTHING)
        outlook, labelled = newest_outlook(database, one.route), report.n_labelled > 0
        promised = promise(one.route, configured, control, outlook, scorer=scorer, labelled=labelled)
        found = _status(report, one, scorer, confidence, max_em_drop, refused)
        proposal = newest_proposal(database, one.route)
        statuses.append(replace(
            found, control=control, outlook=outlook, proposal=proposal, tuner=newest_arm(database, one.route),
            promise=promised, pairs=pairs, held=held.get(one.route),
        ))  # fmt: skip
    return statuses


def _sources(config: Path | None, db: Path | None) -> tuple[Settings | None, Path]:
    """The settings, if a configuration is to be used, and the log's file."""
    from suffice.errors import ConfigError

    default = Path("suffice.toml")
    if config is None and db is not None:
        return None, db
    if config is None and not default.is_file():
        raise ConfigError("no suffice.toml in this folder; name a file with --config, or a log with --db")
    from suffice.store.sqlite import database_path
    from suffice.wiring import load_settings

    settings = load_settings(str(config or default))
    return settings, db or database_path(settings.store.url)


def _refused(database: Path, settings: Settings | None, route: str) -> str | None:
    """Why a route that is set to `enforce` behaves as `observe` all the same, by what its log says."""
    from suffice.wiring import build_route, read_evidence

    configured = settings.routes.get(route) if settings is not None else None
    if settings is None or configured is None or configured.mode != "enforce":
        return None
    return build_route(route, configured, read_evidence(settings, database)).refused


@contextlib.contextmanager
def _match(configured: Route | None) -> Iterator[tuple[str, Callable[[str | None, str], bool]]]:
    """The name of the yardstick and the yardstick itself, with its judge of formulas if it asks one."""
    if configured is None:
        yield EXACT, lambda answer, gold: answer == gold
        return
    from suffice.edge.yardstick import yardstick
    from suffice.scoring.base import scorer_label

    with yardstick(configured.scorer) as scorer:

        def match(answer: str | None, gold: str) -> bool:
            reference = scorer.normalise(gold)  # labels come as people write them
            return reference is not None and scorer.match(answer, reference)

        yield scorer_label(configured.scorer), match


def _status(
    report: RouteReport, counts: RouteCounts, scorer: str, confidence: float, max_em_drop: float,
    refused: str | None,
) -> RouteStatus:
    from suffice.assurance.evidence import evidence

    latest = counts.latest.request
    return RouteStatus(
        # One uncertified newest request is enough to say so, even before it has ended.
        report=replace(report, certified=report.certified and latest.certified),
        mode=latest.mode,
        policy_version=latest.policy_version,
        n_without_outcome=counts.n_requests - counts.n_outcomes,
        scorer=scorer,
        confidence=confidence,
        max_em_drop=max_em_drop,
        evidence=evidence(
            max_em_drop=max_em_drop, confidence=confidence, n_audits=report.n_telling_audits,
            n_disagreements=report.n_audit_disagreements, audits_at_s=report.audits_at_s,
        ),
        refused=refused,
    )  # fmt: skip


def _print_json(statuses: list[RouteStatus]) -> None:
    import msgspec

    for one in statuses:
        plain = msgspec.to_builtins(one)
        report = plain.pop("report")
        report.pop("audits_at_s")
        share = {"governed_share": one.report.governed_share}
        plain["evidence"] |= {"n_missing": one.evidence.n_missing, "wait_s": one.evidence.wait_s}
        click.echo(msgspec.json.encode({**report, **share, **plain}).decode())


def _print_route(one: RouteStatus) -> None:
    name = one.report.route or "(no route matched)"
    if not sys.stdout.isatty():
        click.echo(f"route {name}")
        for what, value in _lines(one):
            click.echo(f"  {what:<22} {value}")
        click.echo()
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(f"route {name}"), show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for what, value in _lines(one):
        # Text, not str: a model's name or a reason may look like markup.
        table.add_row(what, Text(value, style="bold red" if value.startswith(LOUD) else ""))
    Console().print(table)


def _lines(one: RouteStatus) -> list[tuple[str, str]]:
    """What a reader sees, in the order in which it is asked."""
    from suffice.cli.held import held_lines
    from suffice.cli.liking import headline
    from suffice.cli.outlook import arm_lines, outlook_lines, proposal_lines

    report, measured = one.report, one.report.measured
    sure = f"{one.confidence:.0%}"
    earlier = [mode for mode in report.modes if mode != one.mode]
    running = f" ({one.n_without_outcome:,} without an outcome yet)" if one.n_without_outcome else ""
    n_abandoned = report.n_abandoned_audits
    abandoned = f" ({n_abandoned:,} abandoned, counted as losses)" if n_abandoned else ""
    lines = [] if one.refused is None else [("behaves as observe", one.refused)]
    lines += [
        ("mode", one.mode + (f" (earlier: {', '.join(earlier)})" if earlier else "")),
        ("policy", one.policy_version or "none"),
        *_control(one),
        *held_lines(one.held),
        ("requests", f"{report.n_requests + one.n_without_outcome:,}{running}"),
        ("governed", _share(report.governed_share) + _reasons(", untouched: ", report.ungoverned)),
        ("ended", _reasons("", report.end_reasons) or "none yet"),
        ("stopped early", f"{report.n_stopped:,} (would have stopped in full runs: {report.n_would_stop:,})"),
        ("audits", f"{report.n_audits:,}{abandoned}"),
        *([("audits missing", _missing(one, sure))] if one.control is None else []),
        ("labels", f"{report.n_labelled:,} requests, scored by {one.scorer}"),
        ("EM, full runs", _rate(measured.em_full, sure)),
        ("EM, live runs", _rate(measured.em_live, sure)),
        ("EM, stopped runs", _rate(measured.em_stopped, sure)),
        ("EM drop, paired", _drop(measured.em_drop, measured.n_lost, measured.n_gained, sure)),
        ("satisfaction, effect", headline(one.outlook)),
        ("disagreement", _rate(measured.disagreement, sure)),
        ("tokens, full run", _tokens(measured.tokens_full, sure)),
        ("tokens, stopped run", _tokens(measured.tokens_stopped, sure)),
        ("token reduction", _saving(measured.token_reduction, sure)),
        ("  audits as spent", _saving(measured.token_reduction_overall, sure)),
        ("  prompts included", _saving(measured.token_reduction_with_prompts, sure)),
        ("would have saved", _saving(measured.would_save, sure)),
        ("tokens, all", _totals(report.tokens)),
        *_money(report.money, measured, sure),
        ("failed open", _reasons("", report.degraded) or "never"),
        *outlook_lines(one.outlook),
        *proposal_lines(one.proposal),
        *arm_lines(one.tuner),
        ("promise", one.promise),
    ]
    if report.n_dropped is not None:
        lines.append(("dropped events", f"{report.n_dropped:,}"))
    return lines


def _control(one: RouteStatus) -> list[tuple[str, str]]:
    from suffice.cli.pairs import pair_lines
    from suffice.cli.phase import phase_lines

    if one.control is None:
        return [("certified", _certified(one.report))]
    if one.pairs is not None:
        return pair_lines(one.pairs, one.control, acts=one.mode == "enforce")
    return phase_lines(one.control, per_s=one.evidence.audits_per_s, acts=one.mode == "enforce")


def _missing(one: RouteStatus, sure: str) -> str:
    if not one.report.n_governed:
        return "nothing was governed yet"
    return audits_missing(one.evidence, max_em_drop=one.max_em_drop, sure=sure)


def audits_missing(evidence: Evidence, *, max_em_drop: float, sure: str) -> str:
    """How far a route is from its first certificate, as a sentence for its owner."""
    goal = f"an EM drop of at most {100 * max_em_drop:g} points at {sure}"
    if evidence.n_missing is None:
        return f"no number of audits certifies {goal}"
    seen = f"{evidence.n_disagreements:,} of {evidence.n_audits:,} disagree so far"
    if evidence.n_missing == 0:
        return f"none: {evidence.n_audits:,} are enough for {goal} ({seen})"
    when = "no rate is known yet" if evidence.wait_s is None else f"in {wait(evidence.wait_s)} at the present rate"
    return f"{evidence.n_missing:,} more, {when}, if none of them disagrees, for {goal} ({seen})"


def wait(wait_s: float) -> str:
    """A time to wait in the unit that reads best."""
    for unit, unit_s in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if wait_s >= 2 * unit_s:
            return f"{wait_s / unit_s:,.0f} {unit}"
    return f"{wait_s:,.0f} s"


def _certified(report: RouteReport) -> str:
    if not report.n_governed:
        return "nothing was governed yet"
    return "yes" if report.certified else "UNCERTIFIED: no test vouches for this policy here"


def _totals(tokens: TokenTotals) -> str:
    unknown = f"; unknown for {tokens.n_unknown:,} requests" if tokens.n_unknown else ""
    return (
        f"client {tokens.client_prompt:,} prompt ({tokens.client_cached:,} cached) + "
        f"{tokens.client_completion:,} completion, probes {tokens.probe:,}, "
        f"extra prompts {tokens.extra_prompt:,} ({tokens.cached_prompt:,} cached), "
        f"discarded {tokens.discarded:,}{unknown}"
    )


def _money(money: MoneyTotals, measured: Measured, sure: str) -> list[tuple[str, str]]:
    """What was paid and what was saved; one line where nobody knows the prices."""
    if not money.n_known:
        return [("cost", "unknown: no prices are set ([upstreams.NAME.prices])")]
    from suffice.assurance.money import usd

    paid = f"{usd(money.governed_usd + money.ungoverned_usd)} for {money.n_known:,} requests"
    if money.ungoverned_usd:
        paid += f", {usd(money.ungoverned_usd)} of it untouched"
    if money.overhead_usd:
        paid += f", {usd(money.overhead_usd)} for probes, thoughts read again and tokens thrown away"
    if money.n_unknown:
        paid += f"; unknown for {money.n_unknown:,} requests"
    return [
        ("cost, full run", _shown(measured.cost_full, usd, sure)),
        ("cost, stopped run", _shown(measured.cost_stopped, usd, sure)),
        ("cost reduction", _saving(measured.cost_reduction, sure)),
        ("saved so far", _shown(measured.saved_usd, usd, sure)),
        ("would have saved, USD", _shown(measured.would_save_usd, usd, sure)),
        ("cost, all", paid),
    ]


def _share(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.1%}"


def _reasons(before: str, counts: Mapping[str, int]) -> str:
    """Counts by reason, the largest first; "" when there are none."""
    largest = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return before + ", ".join(f"{reason} {n:,}" for reason, n in largest) if counts else ""


def _rate(estimate: Estimate | None, sure: str) -> str:
    return _shown(estimate, lambda number: f"{number:.1%}", sure)


def _tokens(estimate: Estimate | None, sure: str) -> str:
    return _shown(estimate, lambda number: f"{number:,.1f}", sure)


def _saving(estimate: Estimate | None, sure: str) -> str:
    shown = _shown(estimate, lambda number: f"{number:.1%}", sure)
    return shown if estimate is None else f"{shown}, {estimate.method}"


def _drop(estimate: Estimate | None, n_lost: int | None, n_gained: int | None, sure: str) -> str:
    shown = _shown(estimate, lambda number: f"{100 * number:+.1f} points", sure)
    return shown if estimate is None else f"{shown}, lost {n_lost:,}, gained {n_gained:,}"


def _shown(estimate: Estimate | None, show: Callable[[float], str], sure: str) -> str:
    if estimate is None:
        return "not measured"
    text = show(estimate.value)
    if estimate.low is not None and estimate.high is not None:
        text += f" [{show(estimate.low)}, {show(estimate.high)}] at {sure}"
    text += f", n={estimate.n:,}"
    return text + (f" ({estimate.note})" if estimate.note else "")
