"""The status of each route, read from the event log alone, and how `suffice status` prints it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from suffice.assurance.estimate import (
    IntervalEstimate,
    MoneyTotals,
    ReportEstimates,
    RouteReport,
    TokenTotals,
    report_of,
)
from suffice.assurance.forecast import Outlook
from suffice.assurance.guarantee import MIN_SHARE, AuditEvidence, evidence
from suffice.assurance.money import usd
from suffice.assurance.runs import Match, Tally
from suffice.cli.inspect.route_report import (
    PairStatus,
    RouteHoldings,
    arm_lines,
    held_lines,
    last_words,
    outlook_lines,
    pair_lines,
    phase_lines,
    proposal_lines,
    read_held,
    read_pairs,
    summarize_effect,
    wait,
)
from suffice.cli.shell import fail, print_json
from suffice.control.evidence.scorers import matching
from suffice.errors import ConfigError, StoreError, SufficeError
from suffice.formatting import format_estimate
from suffice.review.route_guarantee import RouteGuarantee
from suffice.sanitize import plural, printable
from suffice.scoring.base import scorer_label
from suffice.settings import Route, Settings
from suffice.store.database.decisions import is_attended
from suffice.store.database.presence import switch_reason
from suffice.store.database.sqlite import database_path
from suffice.store.database.views import LogReader, newest_request, open_reader
from suffice.store.people.promises import Promises, newest_switching, read_promises
from suffice.store.routes.in_force import NOTHING
from suffice.store.routes.phases import Phase, phase_of, read_phases
from suffice.store.routes.rollups import read_to
from suffice.store.routes.tallies import RouteScorer, snapshot, tallies_now
from suffice.store.routes.windows import newest_arm, newest_outlook, newest_proposal
from suffice.store.rows.records import ArmWorth, ProposedVersion
from suffice.types import Request
from suffice.wiring.files import condition, load_settings, require_log
from suffice.wiring.keys import kill_file

EXACT = "exact string equality (no --config, so no route scorers)"
# How a line begins that a reader must not overlook.
LOUD = ("UNCERTIFIED", "NONE", "PAUSED", "NOT RUNNING", "ALERT", "WAITS")
MANY_ROWS = 50_000  # that no worker has summed up: reading them takes seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteStatus:
    report: RouteReport
    mode: str  # of the newest request
    policy_version: str  # of the newest request
    n_without_outcome: int
    scorer: str
    confidence: float  # of every interval
    max_em_drop: float  # fraction: what a certificate would have to promise
    evidence: AuditEvidence  # what is missing for it
    refused: str | None  # why the settings' "enforce" is not obeyed; None: it is, or was not asked for
    certifies: bool | None  # does a control loop certify what acts here? None: the settings are not known
    control: Phase | None = None  # where it stands with its certificate; None: no control loop is meant for it
    outlook: Outlook | None = None  # the latest look of the job `monitor`; None: nobody has looked
    proposal: ProposedVersion | None = None  # the newest of the job `retrain`
    tuner: ArmWorth | None = None  # the latest proposal of the job `tune`
    promise: str = ""  # in one sentence, with all that it depends on
    promise_state: str = ""  # … and in one word, as /metrics has it
    pairs: PairStatus | None = None  # of an effort or a budget that is proved by asking twice
    held: RouteHoldings | None = None  # what people hold on it, and what waits for them; None: nothing


def show_statuses(config: Path | None, db: Path | None, route: str | None, *, as_json: bool) -> None:
    """Print what the log says of every route, or of `route` alone; where it cannot be read, what was in force last."""
    settings = None
    first: tuple[str, ...] = ()
    try:
        settings, database = _sources(config, db)
        if settings is not None and db is None:
            require_log(settings, config or "suffice.toml")
            first = condition(settings).sentences
        _warn_of_rows(database)
        statuses = read_statuses(database, settings, route)
    except (SufficeError, OSError) as error:
        sentences = [printable(one) for one in first]
        fail("\n".join([str(error), *sentences, *_last_words(error, settings if db is None else None, route)]))
    show_first(first, err=as_json)
    if as_json:
        _print_json(statuses)
        return
    if not statuses:
        click.echo(f"{database}: no requests yet")
    for one in statuses:
        _print_route(one)


def show_first(sentences: Sequence[str], *, err: bool) -> None:
    for sentence in sentences:
        click.secho(printable(sentence), bold=True, fg="red", err=err)


def read_statuses(database: Path, settings: Settings | None, route: str | None) -> list[RouteStatus]:
    """Read the log and report on every route that it has seen, or on `route` alone, by name.

    settings  for the routes' scorers and confidence; None: strings are compared, at 95 %

    Raises StoreError when the log cannot be read, and ConfigError when it has no such route and for an unknown scorer.
    """
    with open_reader(database) as connection:
        return statuses_of(connection, database, settings, route)


def statuses_of(
    connection: LogReader, database: Path, settings: Settings | None, route: str | None
) -> list[RouteStatus]:
    """The same, by a connection to the log.

    Everything that concerns all routes is read once. What the job `rollup` has summed up is not read again, so it
    takes as long as the rows behind that do.
    """
    now_s = time.time()
    with ExitStack() as stack:
        stack.enter_context(snapshot(connection))
        scorers = _Scorers(settings, stack)
        tallies = tallies_now(connection, scorers.of)
        newest = {name: request for name in tallies if (request := newest_request(connection, name)) is not None}
        if route is not None and route not in newest:
            names = ", ".join(name or '""' for name in newest) or "none yet"
            raise ConfigError(f"--route: no request of route {route!r} in {database}; routes seen: {names}")
        promises = read_promises(connection, now_s=now_s, killed=_is_killed(settings, connection))
        phases = read_phases(connection, promises.decided, attended=is_attended(connection, database))
        held = read_held(connection, promises.holds, now_s=now_s)
        return [
            _status(
                _Seen(connection, name, settings, tallies[name], request, scorers.of(name)),
                promises,
                phases.get(name),
                held.get(name),
            )
            for name, request in newest.items()
            if route in (None, name)
        ]


def _warn_of_rows(database: Path) -> None:
    with open_reader(database) as connection:
        n_behind = read_to(connection).n_behind
    if n_behind > MANY_ROWS:
        click.echo(
            f"suffice status: reads {n_behind:,} rows that no worker has summed up yet; suffice worker --once rollup"
            " does that once for all",
            err=True,
        )


def _is_killed(settings: Settings | None, connection: LogReader) -> bool:
    if settings is not None:
        return switch_reason(kill_file(settings)) is not None
    newest = newest_switching(connection)
    return newest is not None and newest.on


class _Scorers:
    def __init__(self, settings: Settings | None, stack: ExitStack) -> None:
        self._settings, self._stack = settings, stack
        self._known: dict[str, RouteScorer] = {}

    def of(self, name: str) -> RouteScorer:
        if name not in self._known:
            configured = self._settings.routes.get(name) if self._settings is not None else None
            self._known[name] = self._make(configured)
        return self._known[name]

    def _make(self, configured: Route | None) -> RouteScorer:
        if configured is None:
            return RouteScorer("", lambda answer, gold: answer == gold)
        opened: list[Match] = []  # a judge of formulas starts processes, and most logs need none

        def match(answer: str | None, gold: str) -> bool:
            if not opened:
                opened.append(self._stack.enter_context(matching(configured)))
            return opened[0](answer, gold)

        return RouteScorer(scorer_label(configured.scorer), match)


def _last_words(error: Exception, settings: Settings | None, route: str | None) -> list[str]:
    return last_words(settings, route) if settings is not None and isinstance(error, StoreError | OSError) else []


def _sources(config: Path | None, db: Path | None) -> tuple[Settings | None, Path]:
    default = Path("suffice.toml")
    if config is None and db is not None:
        return None, db
    if config is None and not default.is_file():
        raise ConfigError("no suffice.toml in this folder; name a file with --config, or a log with --db")
    settings = load_settings(str(config or default))
    return settings, db or database_path(settings.store.url)


@dataclass(frozen=True, slots=True)
class _Seen:
    connection: LogReader
    name: str
    settings: Settings | None
    tally: Tally
    newest: Request
    scoring: RouteScorer

    @property
    def configured(self) -> Route | None:
        """The route's settings; None: they are not known."""
        return self.settings.routes.get(self.name) if self.settings is not None else None


def _status(seen: _Seen, promises: Promises, control: Phase | None, held: RouteHoldings | None) -> RouteStatus:
    configured, newest = seen.configured, seen.newest
    confidence = configured.confidence if configured is not None else 0.95
    max_em_drop = configured.max_em_drop if configured is not None else 0.02
    certifies = None if configured is None else configured.certifies_itself
    report = report_of(seen.tally, route=seen.name, confidence=confidence)
    if certifies is False or (certifies is None and control is not None and not control.epoch):
        control = None  # people may have paused it all the same: that is no control loop
    elif control is None and certifies:
        control = phase_of(NOTHING)
    outlook, refused = newest_outlook(seen.connection, seen.name), None
    if configured is not None and configured.mode == "enforce":
        refused = promises.refusal(seen.connection, seen.name, configured, seen.tally)
    promise = _promise(seen, promises, outlook, refused)
    return RouteStatus(
        # One uncertified newest request is enough to say so, even before it has ended.
        report=replace(report, certified=report.certified and newest.certified),
        mode=newest.mode,
        policy_version=newest.policy_version,
        n_without_outcome=seen.tally.n_asked - report.n_requests,
        scorer=seen.scoring.name or EXACT,
        confidence=confidence,
        max_em_drop=max_em_drop,
        evidence=evidence(
            max_em_drop=max_em_drop,
            confidence=confidence,
            n_audits=report.n_telling_audits,
            n_disagreements=report.n_audit_disagreements,
            audits_at_s=report.audits_at_s,
        ),
        refused=refused,
        certifies=certifies,
        control=control,
        outlook=outlook,
        proposal=newest_proposal(seen.connection, seen.name),
        tuner=newest_arm(seen.connection, seen.name),
        promise=promise.sentence,
        promise_state=promise.state,
        pairs=None
        if configured is None
        else read_pairs(seen.connection, seen.name, configured, seen.scoring.match, promises.decided.of(seen.name)),
        held=held,
    )


def _promise(seen: _Seen, promises: Promises, outlook: Outlook | None, refused: str | None) -> RouteGuarantee:
    if seen.configured is not None:
        return promises.of(
            seen.name, seen.configured, outlook, setup=seen.newest.setup or None, unreadable=refused is not None
        )
    mode, decided = seen.newest.mode, promises.decided.of(seen.name)
    if mode == "off":
        return RouteGuarantee(state="off")
    if promises.killed:
        return RouteGuarantee(state="killed")
    if mode == "observe":
        return RouteGuarantee(state="observe")
    if decided.pause is not None:
        return RouteGuarantee(state="paused")
    return RouteGuarantee(state="unknown" if decided.epoch is not None else "uncertified")


def _print_json(statuses: list[RouteStatus]) -> None:
    for one in statuses:
        plain = msgspec.to_builtins(one)
        report = plain.pop("report")
        report.pop("audits_at_s")
        share = {"governed_share": one.report.governed_share}
        plain["evidence"] |= {"n_missing": one.evidence.n_missing, "wait_s": one.evidence.wait_s}
        print_json({**report, **share, **plain})


def _print_route(one: RouteStatus) -> None:
    name = one.report.route or "(no route matched)"
    if not sys.stdout.isatty():
        click.echo(f"route {name}")
        lines = [line for part in _parts(one) for line in part]
        width = max(22, *(len(what) for what, _ in lines))
        for what, value in lines:
            click.echo(f"  {what:<{width}} {value}")
        click.echo()
        return
    table = Table(title=Text(f"route {name}"), show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for part in _parts(one):
        for what, value in part:
            # Text, not str: a model's name or a reason may look like markup.
            table.add_row(what, Text(value, style="bold red" if value.startswith(LOUD) else ""))
        table.add_section()
    Console().print(table)


def _parts(one: RouteStatus) -> tuple[list[tuple[str, str]], ...]:
    """What a reader sees, in the order in which it is asked: standing, traffic, EM, tokens and money, outlook."""
    report, measured = one.report, one.report.measured
    sure = f"{one.confidence:.0%}"
    earlier = [mode for mode in report.modes if mode != one.mode]
    running = f" ({one.n_without_outcome:,} without an outcome yet)" if one.n_without_outcome else ""
    n_abandoned = report.n_abandoned_audits
    abandoned = f" ({n_abandoned:,} abandoned, counted as losses)" if n_abandoned else ""
    stands = [
        *([] if one.refused is None else [("behaves as observe", one.refused)]),
        ("mode", one.mode + (f" (earlier: {', '.join(earlier)})" if earlier else "")),
        ("policy", one.policy_version or "none"),
        *_control(one),
        ("promise", one.promise),
        *held_lines(one.held),
    ]
    traffic = [
        ("requests", f"{report.n_requests + one.n_without_outcome:,}{running}"),
        ("governed", _share(report.governed_share) + _reasons(", untouched: ", report.ungoverned)),
        ("ended", _reasons("", report.end_reasons) or "none yet"),
        ("stopped early", f"{report.n_stopped:,} (would have stopped in full runs: {report.n_would_stop:,})"),
        *_trials(report),
        ("audits", f"{report.n_audits:,}{abandoned}"),
        *([("audits missing", _missing(one, sure))] if one.control is None and one.mode != "off" else []),
        ("labels", f"{plural(report.n_labelled, 'request')}, scored by {one.scorer}"),
        ("failed open", _reasons("", report.degraded) or "never"),
        *([] if report.n_dropped is None else [("dropped events", f"{report.n_dropped:,}")]),
    ]
    exact_match = [
        ("EM, full runs", _rate(measured.em_full, sure)),
        ("EM, live runs", _rate(measured.em_live, sure)),
        ("EM, stopped runs", _rate(measured.em_stopped, sure)),
        ("EM drop, paired", _drop(measured.em_drop, measured.n_lost, measured.n_gained, sure)),
        ("satisfaction, effect", summarize_effect(one.outlook)),
        ("disagreement", _rate(measured.disagreement, sure)),
    ]
    tokens = [
        ("tokens, full run", _tokens(measured.tokens_full, sure)),
        ("tokens, stopped run", _tokens(measured.tokens_stopped, sure)),
        ("saving", _saving(measured.saving, sure)),
        *([] if measured.decided_saving is None else [("decided votes", _saving(measured.decided_saving, sure))]),
        ("would have saved", _saving(measured.would_save, sure)),
        ("tokens, all", _totals(report.tokens)),
        *_money(report.money, measured, sure),
    ]
    if not report.n_governed and one.control is None:  # what nothing was governed of has no EM, and nothing was saved
        return stands, traffic, [("tokens, all", _totals(report.tokens)), ("cost, all", _paid(report.money))]
    outlook = [*outlook_lines(one.outlook), *proposal_lines(one.proposal), *arm_lines(one.tuner)]
    return stands, traffic, exact_match, tokens, outlook


def _trials(report: RouteReport) -> list[tuple[str, str]]:
    if not report.n_trials:
        return []
    shown = f"{report.n_trials_read:,} of {report.n_trials:,}"
    if report.n_trials_read < MIN_SHARE * report.n_trials:
        shown += (
            f", fewer than {MIN_SHARE:.0%}, and what the scorer cannot read stops nothing: end [routes.NAME.probe]"
            " answer_prefix where the model would go on with the answer"
        )
    return [("trial answers read", shown)]


def _control(one: RouteStatus) -> list[tuple[str, str]]:
    if one.control is None:
        return [("certified", _certified(one.report))]
    if one.pairs is not None:
        return pair_lines(one.pairs, one.control, promise_state=one.promise_state)
    acts = one.promise_state in ("certified", "budgeted")
    return phase_lines(one.control, per_s=one.evidence.audits_per_s, acts=acts)


def _missing(one: RouteStatus, sure: str) -> str:
    if one.certifies is False:
        return "none are counted: no control loop certifies this route's policy, whatever its audits say"
    if not one.report.n_governed:
        return "nothing was governed yet"
    return audits_missing(one.evidence, max_em_drop=one.max_em_drop, sure=sure)


def audits_missing(evidence: AuditEvidence, *, max_em_drop: float, sure: str) -> str:
    goal = f"an EM drop of at most {100 * max_em_drop:g} points at {sure}"
    if evidence.n_missing is None:
        return f"no number of audits certifies {goal}"
    seen = f"{evidence.n_disagreements:,} of {evidence.n_audits:,} disagree so far"
    if evidence.n_missing == 0:
        return f"none: {evidence.n_audits:,} are enough for {goal} ({seen})"
    when = "no rate is known yet" if evidence.wait_s is None else f"in {wait(evidence.wait_s)} at the present rate"
    return f"{evidence.n_missing:,} more, {when}, if none of them disagrees, for {goal} ({seen})"


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


def _money(money: MoneyTotals, measured: ReportEstimates, sure: str) -> list[tuple[str, str]]:
    if not money.n_known:
        return [("cost", _paid(money))]
    return [
        ("cost, full run", format_estimate(measured.cost_full, usd, sure)),
        ("cost, stopped run", format_estimate(measured.cost_stopped, usd, sure)),
        ("cost reduction", _saving(measured.cost_reduction, sure)),
        ("saved so far", format_estimate(measured.saved_usd, usd, sure)),
        ("would have saved, USD", format_estimate(measured.would_save_usd, usd, sure)),
        ("cost, all", _paid(money)),
    ]


def _paid(money: MoneyTotals) -> str:
    if not money.n_known:
        return "unknown: no prices are set ([upstreams.NAME.prices])"
    paid = f"{usd(money.governed_usd + money.ungoverned_usd)} for {plural(money.n_known, 'request')}"
    if money.ungoverned_usd:
        paid += f", {usd(money.ungoverned_usd)} of it untouched"
    if money.overhead_usd:
        paid += f", {usd(money.overhead_usd)} for probes, thoughts read again and tokens thrown away"
    if money.n_unknown:
        paid += f"; unknown for {plural(money.n_unknown, 'request')}"
    return paid


def _share(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.1%}"


def _reasons(before: str, counts: Mapping[str, int]) -> str:
    largest = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return before + ", ".join(f"{reason} {n:,}" for reason, n in largest) if counts else ""


def _rate(estimate: IntervalEstimate | None, sure: str) -> str:
    return format_estimate(estimate, lambda number: f"{number:.1%}", sure)


def _tokens(estimate: IntervalEstimate | None, sure: str) -> str:
    return format_estimate(estimate, lambda number: f"{number:,.1f}", sure)


def _saving(estimate: IntervalEstimate | None, sure: str) -> str:
    shown = format_estimate(estimate, lambda number: f"{number:.1%}", sure)
    return shown if estimate is None else f"{shown}, {estimate.method}"


def _drop(estimate: IntervalEstimate | None, n_lost: int | None, n_gained: int | None, sure: str) -> str:
    shown = format_estimate(estimate, lambda number: f"{100 * number:+.1f} points", sure)
    return shown if estimate is None else f"{shown}, lost {n_lost:,}, gained {n_gained:,}"
