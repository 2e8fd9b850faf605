"""`suffice doctor`: examines a model server, or what a route's full runs show, and prints the findings."""

from __future__ import annotations

import asyncio
import math
import secrets
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from suffice.assurance.guarantee import MIN_RUNS, MIN_SHARE
from suffice.cli.inspect.route_report import audits_missing
from suffice.cli.inspect.route_status import RouteStatus, read_statuses
from suffice.cli.shell import FILE, JSON_OBJECT, Command, find_settings, option, print_json
from suffice.doctor.examine import Advice, advise, examine, not_verified
from suffice.doctor.route import FullRunCounts, as_findings, from_log, read_route_questions, run_live
from suffice.doctor.talk import Talk
from suffice.errors import ConfigError
from suffice.plugins import load_plugins
from suffice.scoring.base import build_scorer, scorer_label
from suffice.settings import Driver, Route, Settings, Upstream
from suffice.store.database.sqlite import database_path
from suffice.store.database.views import n_requests_of, read_episodes
from suffice.store.rows.events import Event
from suffice.types import Findings
from suffice.upstream.client import UpstreamClient
from suffice.upstream.drivers import EXPERIMENTS, driver_facts, honoured, url_key
from suffice.wiring.files import load_settings
from suffice.wiring.keys import api_key
from suffice.wiring.routes import build_route, read_evidence
from suffice.wiring.startup import open_log

STYLES = {"yes": "green", "no": "red", "ignored": "yellow", "unclear": "dim"}
VERIFIED = ("yes", "no", "ignored")  # verdicts that this server itself gave; after "unclear" nothing is verified
_WIDTH = 120  # of plain lines


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteDiagnosis:
    name: str
    route: Route
    status: RouteStatus | None  # None: the log has no request of the route
    logged: FullRunCounts
    live: FullRunCounts | None  # None: no questions were run
    refused: str | None  # why the route is not enforced


# --------------------------------------------------------------------------- an upstream


def show_upstream(findings: Findings, advice: Advice, *, url: str, n_calls: int, kept: str, as_json: bool) -> None:
    if as_json:
        _print_json(findings, advice, url=url, kept=kept)
        return
    made = f"{len(findings.findings)} experiments, {n_calls} calls, made against this server"
    head = f"{url}, model {findings.model}: {made}"
    if sys.stdout.isatty():
        _print_table(findings, head)
    else:
        _print_lines(findings, head)
    _print_advice(advice, kept)


def _print_json(findings: Findings, advice: Advice, *, url: str, kept: str) -> None:
    plain = msgspec.to_builtins(findings) | {"url": url, "advice": msgspec.to_builtins(advice), "kept": kept}
    for one in plain["findings"]:
        one["verified"] = one["verdict"] in VERIFIED
    plain["not_verified"] = list(not_verified())
    print_json(plain)


def _print_table(findings: Findings, head: str) -> None:
    table = Table(title=Text(head), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("experiment", no_wrap=True, style="bold")
    table.add_column("verdict", no_wrap=True)
    table.add_column("verified\nhere", no_wrap=True)
    table.add_column("evidence", overflow="fold")
    for one in findings.findings:
        # Text, not str: a server's words may look like markup.
        result = Text(EXPERIMENTS[one.experiment].replace("`", "") + "\n", style="dim").append(
            Text(one.evidence, style="default not dim")
        )
        table.add_row(one.experiment, Text(one.verdict, style=STYLES[one.verdict]), _verified(one.verdict), result)
    Console().print(table)


def _print_lines(findings: Findings, head: str) -> None:
    click.echo(head)
    click.echo(f"{'experiment':<22} {'verdict':<8} {'verified':<9} evidence")
    for one in findings.findings:
        click.echo(f"{one.experiment:<22} {one.verdict:<8} {_verified(one.verdict):<9} {one.evidence}")
    click.echo()


def _verified(verdict: str) -> str:
    return "verified" if verdict in VERIFIED else "not"


def _print_advice(advice: Advice, kept: str) -> None:
    _say("What Suffice will use here", [*advice.sentences, kept])
    click.echo("For suffice.toml:\n")
    click.echo(textwrap.indent(advice.settings, "    "))
    _say("Known from documentation only, not verified against a live server", list(not_verified()))


def _say(title: str, sentences: list[str]) -> None:
    width = min(_WIDTH, shutil.get_terminal_size((_WIDTH, 24)).columns)
    click.echo(click.style(title, bold=True) if sys.stdout.isatty() else title)
    for sentence in sentences:
        click.echo(textwrap.fill(sentence, width, initial_indent="  - ", subsequent_indent="    "))
    click.echo()


# --------------------------------------------------------------------------- a route


def show_route(report: RouteDiagnosis, *, as_json: bool) -> None:
    if as_json:
        _print_route_json(report)
        return
    lines = _route_lines(report)
    if not sys.stdout.isatty():
        click.echo(f"route {report.name}")
        for what, value in lines:
            click.echo(f"  {what:<20} {value}")
        return
    table = Table(title=Text(f"route {report.name}"), show_header=False, title_justify="left", box=None)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for what, value in lines:
        table.add_row(what, Text(value, style="bold red" if value.startswith("REFUSED") else ""))
    Console().print(table)


def _route_lines(report: RouteDiagnosis) -> list[tuple[str, str]]:
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
    if report.refused is not None:
        return f"REFUSED: {report.refused}"
    n_runs = max(report.logged.n_runs, report.live.n_runs if report.live is not None else 0)
    if n_runs < MIN_RUNS:
        return f"unknown: {n_runs:,} full runs, at least {MIN_RUNS} say whether {MIN_SHARE:.0%} can be read"
    return f"not refused: at least {MIN_SHARE:.0%} of answers can be read"


def _formula(route: Route) -> str:
    if not 0 < route.max_em_drop < 1 or not 0 < route.confidence < 1:
        return "no number of audits proves a drop of exactly 0, or anything with certainty"
    least = math.ceil(math.log(1 - route.confidence) / math.log(1 - route.max_em_drop))
    return (
        f"exact binomial bound: ln(1 - {route.confidence:g}) / ln(1 - {route.max_em_drop:g}) = {least:,} audits if none"
        " disagrees, more with each that does; a test that may be watched all the time needs more"
    )


def _print_route_json(report: RouteDiagnosis) -> None:
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
    print_json(plain)


def _runs_json(runs: FullRunCounts) -> dict[str, int]:
    return {
        "n_runs": runs.n_runs,
        "n_extractable": runs.n_extractable,
        "n_repeats": runs.n_repeats,
        "n_agreeing": runs.n_agreeing,
        "n_failed": runs.n_failed,
    }


DEFAULT_CONFIG = Path("suffice.toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorOptions:
    upstream: str | None
    route: str | None
    model: str | None
    driver: Driver | None
    api_key_env: str
    questions: Path | None
    repeats: int
    timeout_s: float
    as_json: bool


@click.command(cls=Command)
@option("--upstream", help="Address of a model server, or its name in the settings: examine it.")
@option("--route", help="Name of a route in the settings: see what its full runs say.")
@option("--config", type=FILE, metavar="FILE", help="Settings, TOML or YAML. [default: suffice.toml, if it is there]")
@option("--model", help="Model to ask for. [default: the route's, else the first that is listed]")
@option("--driver", help="Examine and suggest settings for this one, as in the settings.")
@option("--api-key-env", default="", help="Environment variable with the server's key, for an address.")
@option("--questions", type=FILE, metavar="FILE", help="JSON lines with `question`: run them on the route.")
@option("--repeats", default=10, help="How many of them are run twice.")
@option("--timeout", "timeout_s", default=30.0, help="Seconds for an experiment or a run.")
@JSON_OBJECT
def doctor(config: Path | None, **options: object) -> None:
    """Examine a model server (--upstream), or what the full runs of a route say (--route).

    With a settings file the findings go into its log, where the gateway reads them at its next start.
    Exits with 1 when the server does not answer, and with 2 when it cannot be asked.
    """
    asked = DoctorOptions(**options)  # type: ignore[arg-type]  # click has checked them
    if (asked.upstream is None) == (asked.route is None):
        raise ConfigError("name either --upstream or --route")
    path = config or (DEFAULT_CONFIG if DEFAULT_CONFIG.is_file() else None)
    settings = None if path is None else load_settings(path)
    if asked.route is not None:
        _examine_route(settings, asked, asked.route)
        return
    reached = asyncio.run(_examine_upstream(settings, asked, str(asked.upstream)))
    raise SystemExit(0 if reached else 1)


# --------------------------------------------------------------------------- an upstream


async def _examine_upstream(settings: Settings | None, asked: DoctorOptions, target: str) -> bool:
    name, upstream = _target(settings, asked, target)
    if asked.driver is not None:
        load_plugins()
        driver_facts(asked.driver)  # raises where it does not exist
        upstream = msgspec.structs.replace(upstream, driver=asked.driver)
    async with _client(name, upstream) as client:
        talk = await _talk(client, asked, asked.model)
        with _progress(asked) as tell:
            result = await examine(talk, upstream=name, examination_id=_new_id(), at_s=time.time(), tell=tell)
    kept = await _keep_findings(settings, name, result)
    advice = advise(result, name=name or "local", url=upstream.url, driver=asked.driver)
    show_upstream(result, advice, url=upstream.url, n_calls=talk.n_calls, kept=kept, as_json=asked.as_json)
    return honoured(result, "reachable")


def _target(settings: Settings | None, asked: DoctorOptions, target: str) -> tuple[str, Upstream]:
    """The upstream that is meant, with its name in the settings; "": it has none."""
    known = settings.upstreams if settings is not None else {}
    if target in known:
        return target, known[target]
    if not target.startswith(("http://", "https://")):
        names = ", ".join(sorted(known)) or "none is configured"
        raise ConfigError(f"--upstream: got {target!r}; need http://host[:port] or a name from the settings: {names}")
    for name, one in known.items():
        if url_key(one.url) == url_key(target):
            return name, one
    return "", Upstream(url=target, api_key_env=asked.api_key_env)


def _client(name: str, upstream: Upstream) -> UpstreamClient:
    return UpstreamClient(name or "doctor", upstream, api_key(name or "doctor", upstream))


async def _talk(client: UpstreamClient, asked: DoctorOptions, model: str | None) -> Talk:
    talk = Talk(
        client, model=model or "", timeout_s=asked.timeout_s, clock_s=time.monotonic, nonce=lambda: secrets.token_hex(6)
    )
    if not model:
        listed = await talk.models()
        if not listed:
            raise ConfigError("--model: the server lists no model; name one")
        talk.model = listed[0]
    return talk


async def _keep_findings(settings: Settings | None, name: str, findings: Findings) -> str:
    if settings is None:
        return "Not kept: there is no settings file here (--config)."
    if not name:
        return "Not kept: no upstream in the settings has this address."
    await _append(settings, findings)
    return f"Kept in {settings.store.url} for upstream {name!r}; a gateway reads it at its next start."


async def _append(settings: Settings, event: Event) -> None:
    log = open_log(settings)
    try:
        await log.append_durable(event)
    finally:
        log.close()


def _new_id() -> str:
    return f"ex_{int(time.time() * 1e3):011x}{secrets.token_hex(4)}"


@contextmanager
def _progress(asked: DoctorOptions) -> Iterator[Callable[[str], None]]:
    if asked.as_json or not sys.stderr.isatty():
        yield lambda _: None
        return
    with Console(stderr=True).status("starting") as line:
        yield lambda name: line.update(f"trying {name}")


# --------------------------------------------------------------------------- a route


def _examine_route(settings: Settings | None, asked: DoctorOptions, name: str) -> None:
    if settings is None:
        raise ConfigError("--route: needs a settings file; name it with --config")
    route = find_settings(settings, name, option="--route")
    if asked.questions is not None and not route.upstream:
        raise ConfigError(f"routes.{name}.upstream: none is named, so no question can be asked; the caller runs it")
    logged = _logged(settings, name, route)
    live = asyncio.run(_run_questions(settings, asked, name, route)) if asked.questions is not None else None
    show_route(
        RouteDiagnosis(
            name=name,
            route=route,
            status=_status(settings, name),
            logged=logged,
            live=live,
            refused=_refused(settings, name, route),
        ),
        as_json=asked.as_json,
    )


def _logged(settings: Settings, name: str, route: Route) -> FullRunCounts:
    path = database_path(settings.store.url)
    if not path.is_file():
        return FullRunCounts()
    return from_log((result.episode for result in read_episodes(path, name)), build_scorer(route.scorer))


def _status(settings: Settings, name: str) -> RouteStatus | None:
    """What `suffice status` knows of the route; None: the log has no request of it yet."""
    path = database_path(settings.store.url)
    if not path.is_file() or not n_requests_of(path, [name], most=1)[name]:
        return None
    return read_statuses(path, settings, name)[0]


def _refused(settings: Settings, name: str, route: Route) -> str | None:
    return build_route(name, route, read_evidence(settings)).refused


async def _run_questions(settings: Settings, asked: DoctorOptions, name: str, route: Route) -> FullRunCounts:
    assert asked.questions is not None
    bodies = read_route_questions(asked.questions.read_text("utf-8").splitlines(), str(asked.questions))
    upstream = settings.upstreams[route.upstream]
    async with _client(route.upstream, upstream) as client:
        talk = await _talk(client, asked, asked.model or route.model)
        live = await run_live(talk, bodies, build_scorer(route.scorer), n_repeats=asked.repeats, at_once=upstream.slots)
    label = scorer_label(route.scorer)
    record = as_findings(live, examination_id=_new_id(), route=name, scorer=label, at_s=time.time())
    await _append(settings, record)
    return live
