"""How `suffice doctor` shows what it found: a table for a person, plain lines for a file, one object for a program.

It knows the terminal. It refuses to know how anything was found.
"""

from __future__ import annotations

import math
import shutil
import sys
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from suffice.cli.inspect.status import RouteStatus
    from suffice.doctor.advise import Advice
    from suffice.doctor.route import FullRunCounts
    from suffice.settings import Route
    from suffice.types import Findings

STYLES = {"yes": "green", "no": "red", "ignored": "yellow", "unclear": "dim"}
VERIFIED = ("yes", "no", "ignored")  # verdicts that this server itself gave; after "unclear" nothing is verified
_WIDTH = 120  # of plain lines


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteDiagnosis:
    """Everything that is shown about a route."""

    name: str
    route: Route
    status: RouteStatus | None  # None: the log has no request of the route
    logged: FullRunCounts
    live: FullRunCounts | None  # None: no questions were run
    refused: str | None  # why the route is not enforced


# --------------------------------------------------------------------------- an upstream


def show_upstream(found: Findings, advice: Advice, *, url: str, n_calls: int, kept: str, as_json: bool) -> None:
    """Print findings and what follows from them."""
    if as_json:
        _print_json(found, advice, url=url, kept=kept)
        return
    head = f"{url}, model {found.model}: {len(found.findings)} experiments, {n_calls} calls, made against this server"
    if sys.stdout.isatty():
        _print_table(found, head)
    else:
        _print_lines(found, head)
    _print_advice(advice, kept)


def _print_json(found: Findings, advice: Advice, *, url: str, kept: str) -> None:
    import msgspec

    from suffice.doctor.advise import not_verified

    plain = msgspec.to_builtins(found) | {"url": url, "advice": msgspec.to_builtins(advice), "kept": kept}
    for one in plain["findings"]:
        one["verified"] = one["verdict"] in VERIFIED
    plain["not_verified"] = list(not_verified())
    click.echo(msgspec.json.encode(plain).decode())


def _print_table(found: Findings, head: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from suffice.upstream.findings import EXPERIMENTS

    table = Table(title=Text(head), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("experiment", no_wrap=True, style="bold")
    table.add_column("verdict", no_wrap=True)
    table.add_column("verified\nhere", no_wrap=True)
    table.add_column("evidence", overflow="fold")
    for one in found.findings:
        # Text, not str: a server's words may look like markup.
        said = Text(EXPERIMENTS[one.experiment].replace("`", "") + "\n", style="dim").append(
            Text(one.evidence, style="default not dim")
        )
        table.add_row(one.experiment, Text(one.verdict, style=STYLES[one.verdict]), _verified(one.verdict), said)
    Console().print(table)


def _print_lines(found: Findings, head: str) -> None:
    click.echo(head)
    click.echo(f"{'experiment':<22} {'verdict':<8} {'verified':<9} evidence")
    for one in found.findings:
        click.echo(f"{one.experiment:<22} {one.verdict:<8} {_verified(one.verdict):<9} {one.evidence}")
    click.echo()


def _verified(verdict: str) -> str:
    return "verified" if verdict in VERIFIED else "not"


def _print_advice(advice: Advice, kept: str) -> None:
    from suffice.doctor.advise import not_verified

    _say("What Suffice will use here", [*advice.sentences, kept])
    click.echo("For suffice.toml:\n")
    click.echo(textwrap.indent(advice.settings, "    "))
    _say("Known from documentation only, not verified against a live server", list(not_verified()))


def _say(title: str, sentences: list[str]) -> None:
    """A heading and its sentences, folded to the terminal."""
    width = min(_WIDTH, shutil.get_terminal_size((_WIDTH, 24)).columns)
    click.echo(click.style(title, bold=True) if sys.stdout.isatty() else title)
    for sentence in sentences:
        click.echo(textwrap.fill(sentence, width, initial_indent="  - ", subsequent_indent="    "))
    click.echo()


# --------------------------------------------------------------------------- a route


def show_route(report: RouteDiagnosis, *, as_json: bool) -> None:
    """Print what is known about a route."""
    if as_json:
        _print_route_json(report)
        return
    lines = _route_lines(report)
    if not sys.stdout.isatty():
        click.echo(f"route {report.name}")
        for what, value in lines:
            click.echo(f"  {what:<20} {value}")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(f"route {report.name}"), show_header=False, title_justify="left", box=None)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for what, value in lines:
        table.add_row(what, Text(value, style="bold red" if value.startswith("REFUSED") else ""))
    Console().print(table)


def _route_lines(report: RouteDiagnosis) -> list[tuple[str, str]]:
    from suffice.cli.inspect.status import audits_missing
    from suffice.scoring.base import scorer_label

    status, route = report.status, report.route
    sure = f"{route.confidence:.0%}"
    lines = [("mode", f"{route.mode}, scorer {scorer_label(route.scorer)}")]
    if status is None:
        lines.append(("governed", "no request of this route is in the log yet"))
    else:
        whole = status.report
        reasons = sorted(whole.ungoverned.items(), key=lambda item: (-item[1], item[0]))
        because = "; untouched: " + ", ".join(f"{why} {n:,}" for why, n in reasons) if reasons else ""
        share = "unknown" if whole.governed_share is None else f"{whole.governed_share:.1%}"
        lines.append(("governed", f"{share} of {whole.n_requests:,} requests{because}"))
    for where, runs in (("log", report.logged), ("live", report.live)):
        if runs is not None and (runs.n_runs or runs.n_failed):
            lines += _runs_lines(where, runs)
    lines.append(("enforcement", _enforcement(report)))
    if status is not None:
        missing = audits_missing(status.evidence, max_em_drop=route.max_em_drop, sure=sure)
        lines.append(("audits missing", missing))
    lines.append(("  estimate by", _formula(route)))
    return lines


def _runs_lines(where: str, runs: FullRunCounts) -> list[tuple[str, str]]:
    failed = f"; {runs.n_failed:,} more were not answered in time" if runs.n_failed else ""
    lines = [(f"readable, {where}", f"{_part(runs.n_extractable, runs.n_runs)} of full runs{failed}")]
    if runs.n_repeats:
        ceiling = "a stop can hardly agree more often with a full run than two full runs with each other"
        lines.append((f"agreement, {where}", f"{_part(runs.n_agreeing, runs.n_repeats)} of repeats; {ceiling}"))
    else:
        lines.append((f"agreement, {where}", "no question was run twice"))
    return lines


def _part(n: int, of: int) -> str:
    return f"{n / of:.1%} ({n:,} of {of:,})" if of else "none yet"


def _enforcement(report: RouteDiagnosis) -> str:
    from suffice.assurance.guarantee import MIN_RUNS, MIN_SHARE

    if report.refused is not None:
        return f"REFUSED: {report.refused}"
    n_runs = max(report.logged.n_runs, report.live.n_runs if report.live is not None else 0)
    if n_runs < MIN_RUNS:
        return f"unknown: {n_runs:,} full runs, at least {MIN_RUNS} say whether {MIN_SHARE:.0%} can be read"
    return f"not refused: at least {MIN_SHARE:.0%} of answers can be read"


def _formula(route: Route) -> str:
    """The least number of audits, spelt out."""
    if not 0 < route.max_em_drop < 1 or not 0 < route.confidence < 1:
        return "no number of audits proves a drop of exactly 0, or anything with certainty"
    least = math.ceil(math.log(1 - route.confidence) / math.log(1 - route.max_em_drop))
    return (
        f"exact binomial bound: ln(1 - {route.confidence:g}) / ln(1 - {route.max_em_drop:g}) = {least:,} audits if none"
        " disagrees, more with each that does; a test that may be watched all the time needs more"
    )


def _print_route_json(report: RouteDiagnosis) -> None:
    import msgspec

    from suffice.scoring.base import scorer_label

    status = report.status
    plain: dict[str, object] = {
        "route": report.name,
        "mode": report.route.mode,
        "scorer": scorer_label(report.route.scorer),
        "refused": report.refused,
        "logged": _runs_json(report.logged),
        "live": None if report.live is None else _runs_json(report.live),
        "governed_share": None if status is None else status.report.governed_share,
        "ungoverned": {} if status is None else dict(status.report.ungoverned),
        "audits": None
        if status is None
        else {
            **msgspec.to_builtins(status.evidence),
            "n_missing": status.evidence.n_missing,
            "wait_s": status.evidence.wait_s,
        },
    }
    click.echo(msgspec.json.encode(plain).decode())


def _runs_json(runs: FullRunCounts) -> dict[str, int]:
    return {
        "n_runs": runs.n_runs,
        "n_extractable": runs.n_extractable,
        "n_repeats": runs.n_repeats,
        "n_agreeing": runs.n_agreeing,
        "n_failed": runs.n_failed,
    }
