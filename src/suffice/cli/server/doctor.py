"""`suffice doctor`: examines a model server, or what a route's full runs show, and prints the findings."""

from __future__ import annotations

import asyncio
import math
import sys
import textwrap
import time
from collections.abc import Collection, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from suffice.assurance.guarantee import MIN_RUNS, MIN_SHARE
from suffice.cli import shell
from suffice.cli.inspect.route_report import audits_missing, frequencies
from suffice.cli.inspect.route_status import read_statuses
from suffice.doctor.examine import (
    NOT_VERIFIED,
    FullRunCounts,
    Recommendation,
    as_findings,
    examine,
    from_log,
    recommend,
    run_live,
)
from suffice.doctor.experiments import EXPERIMENTS
from suffice.doctor.session import ServerSession
from suffice.errors import ConfigError
from suffice.plugins import load_plugins
from suffice.report.snapshot import RouteSnapshot
from suffice.scoring.base import build_scorer, scorer_label
from suffice.settings import Driver, Route, Settings, Upstream
from suffice.store.database.location import log_location
from suffice.store.database.views import n_requests_of, read_episodes
from suffice.store.rows.events import Event
from suffice.types import Findings
from suffice.upstream.client import PROBE_PATH, UpstreamClient
from suffice.upstream.drivers import driver_facts, honoured, url_key
from suffice.wiring.files import read_route_questions
from suffice.wiring.keys import api_key, create_id, deployment_salt
from suffice.wiring.routes import build_route, read_evidence
from suffice.wiring.startup import open_log

STYLES = {"yes": "green", "no": "red", "ignored": "yellow", "unclear": "dim"}
VERIFIED = ("yes", "no", "ignored")  # verdicts of this server itself; "unclear" verifies nothing


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


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteDiagnosis:
    name: str
    route: Route
    status: RouteSnapshot | None  # None: the log has no request of the route
    logged: FullRunCounts
    live: FullRunCounts | None  # None: no questions were run
    refused: str | None  # why the route is not enforced


@click.command(cls=shell.Command)
@shell.option("--upstream", help="Address of a model server, or its name in the settings: examine it.")
@shell.option("--route", help="Name of a route in the settings: see what its full runs say.")
@shell.option(
    "--config", type=shell.FILE, metavar="FILE", help="Settings, TOML or YAML. [default: suffice.toml, if it is there]"
)
@shell.option("--model", help="Model to ask for. [default: the route's, else the first that is listed]")
@shell.option("--driver", help="Examine and suggest settings for this one, as in the settings.")
@shell.option("--api-key-env", default="", help="Environment variable with the server's key, for an address.")
@shell.option("--questions", type=shell.FILE, metavar="FILE", help="JSON lines with `question`: run them on the route.")
@shell.option("--repeats", default=10, help="How many of them are run twice.")
@shell.option("--timeout", "timeout_s", default=30.0, help="Seconds for an experiment or a run.")
@shell.JSON_OBJECT
def doctor(config: Path | None, **given: object) -> None:
    """Examine a model server (--upstream), or the full runs of a route (--route).

    With a settings file the findings are logged, and the gateway reads them at its next start. Exits with 1 when the
    server does not answer, and with 2 when the examination cannot start.
    """
    options = DoctorOptions(**given)  # type: ignore[arg-type]  # click has checked them
    if (options.upstream is None) == (options.route is None):
        raise ConfigError("name either --upstream or --route")
    settings = shell.load_optional_settings(config)
    if options.route is not None:
        _examine_route(settings, options, options.route)
        return
    reached = asyncio.run(_examine_upstream(settings, options, str(options.upstream)))
    raise SystemExit(0 if reached else 1)


def _client(name: str, upstream: Upstream) -> UpstreamClient:
    return UpstreamClient(name or "doctor", upstream, api_key(name or "doctor", upstream))


async def connect(client: UpstreamClient, model: str | None, *, timeout_s: float) -> ServerSession:
    """Return a session that asks for the named model, else for the first that the server lists."""
    session = ServerSession(client, model=model or "", timeout_s=timeout_s)
    if not model:
        listed = await session.models()
        if not listed:
            status, _ = await session.get(PROBE_PATH)
            raise ConfigError(_why_none_is_listed(client.settings.url, status))
        session.model = listed[0]
    return session


def _why_none_is_listed(url: str, status: int) -> str:
    if status in {401, 403}:
        return f"--api-key-env: {url} answers {status} to GET {PROBE_PATH}; name the variable with the server's key"
    if status != 200 and urlsplit(url).path.rstrip("/").removesuffix("/v1"):
        return (
            f"--upstream: {url} answers {status} to GET {PROBE_PATH}; need the address alone, such as http://host:port"
        )
    if status != 200:
        return f"--model: {url} answers {status} to GET {PROBE_PATH}; name a model"
    return "--model: the server lists no model; name one"


async def examine_server(
    session: ServerSession, upstream: str, *, only: Collection[str] = EXPERIMENTS, quiet: bool = False
) -> Findings:
    """Run experiments; a terminal shows which, unless `quiet`."""
    with Console(stderr=True, quiet=quiet or not sys.stderr.isatty()).status("starting") as line:
        return await examine(
            session,
            upstream=upstream,
            examination_id=create_id("ex"),
            at_s=time.time(),
            only=only,
            on_start=lambda experiment: line.update(f"trying {experiment}"),
        )


async def append_findings(settings: Settings, event: Event) -> None:
    if not log_location(settings.store).exists():
        deployment_salt(settings)  # a log without its secret would look as if that had been lost
    with closing(open_log(settings)) as log:
        await log.append_durable(event)


async def _examine_upstream(settings: Settings | None, options: DoctorOptions, target: str) -> bool:
    name, upstream = shell.find_upstream(settings, target, api_key_env=options.api_key_env)
    if not name and settings is not None:
        same = {one: known for one, known in settings.upstreams.items() if url_key(known.url) == url_key(target)}
        name, upstream = next(iter(same.items()), (name, upstream))
    if options.driver is not None:
        load_plugins()
        driver_facts(options.driver)  # raises for an unknown driver
        upstream = msgspec.structs.replace(upstream, driver=options.driver)
    async with _client(name, upstream) as client:
        session = await connect(client, options.model, timeout_s=options.timeout_s)
        driver = options.driver or (upstream.driver if name else await session.engine())
        client.settings = msgspec.structs.replace(upstream, driver=driver or upstream.driver)
        result = await examine_server(session, name, quiet=options.as_json)
    if settings is None:
        stored = "Not kept: there is no settings file here (--config)."
    elif not name:
        stored = "Not kept: no upstream in the settings has this address."
    else:
        await append_findings(settings, result)
        stored = f"Kept in {settings.store.url} for upstream {name!r}; a gateway reads it at its next start."
    recommendation = recommend(result, name=name or "local", url=upstream.url, driver=driver)
    if options.as_json:
        _print_json(result, recommendation, url=upstream.url, stored=stored)
    else:
        made = f"{len(result.findings)} experiments, {session.n_calls} calls, made against this server"
        _print_findings(result, f"{upstream.url}, model {result.model}: {made}")
        _print_recommendations(recommendation, stored)
    return honoured(result, "reachable")


def _print_json(findings: Findings, recommendation: Recommendation, *, url: str, stored: str) -> None:
    plain = msgspec.to_builtins(findings) | {"url": url, "recommendation": recommendation, "stored": stored}
    for one in plain["findings"]:
        one["verified"] = one["verdict"] in VERIFIED
    shell.print_json({**plain, "not_verified": NOT_VERIFIED})


def _print_findings(findings: Findings, head: str) -> None:
    if not sys.stdout.isatty():
        click.echo(head)
        click.echo(f"{'experiment':<22} {'verdict':<8} {'verified':<9} evidence")
        for one in findings.findings:
            click.echo(f"{one.experiment:<22} {one.verdict:<8} {_verified(one.verdict):<9} {one.evidence}")
        click.echo()
        return
    table = Table("experiment", "verdict", "verified\nhere", "evidence", title=Text(head), title_justify="left")
    table.box, table.pad_edge = box.SIMPLE_HEAD, False
    for column in table.columns[:3]:
        column.no_wrap = True
    for one in findings.findings:
        # Text, not str: a server's text may look like markup.
        meaning, _ = EXPERIMENTS[one.experiment]
        evidence = Text(meaning.replace("`", "") + "\n", style="dim")
        evidence.append(Text(one.evidence, style="default not dim"))
        verdict = Text(one.verdict, style=STYLES[one.verdict])
        table.add_row(Text(one.experiment, style="bold"), verdict, _verified(one.verdict), evidence)
    Console().print(table)


def _verified(verdict: str) -> str:
    return "verified" if verdict in VERIFIED else "not"


def _print_recommendations(recommendation: Recommendation, kept: str) -> None:
    _print_list("What Suffice will use here", [*recommendation.sentences, kept])
    click.echo("For suffice.toml:\n")
    click.echo(textwrap.indent(recommendation.settings, "    "))
    _print_list("Known from documentation only, not verified against a live server", list(NOT_VERIFIED))


def _print_list(title: str, sentences: list[str]) -> None:
    click.secho(title, bold=True)
    for sentence in sentences:
        click.echo(shell.wrapped(sentence, "  - ", "    "))
    click.echo()


def _examine_route(settings: Settings | None, options: DoctorOptions, name: str) -> None:
    if settings is None:
        raise ConfigError("--route: needs a settings file; name it with --config")
    route = shell.find_settings(settings, name, option="--route")
    if options.questions is not None and not route.upstream:
        raise ConfigError(f"routes.{name}.upstream: none is named, so no question can be asked; the caller runs it")
    path = log_location(settings.store)
    status = None
    logged = FullRunCounts()
    if path.exists():
        logged = from_log((one.episode for one in read_episodes(path, name)), build_scorer(route.scorer))
    live = asyncio.run(_run_questions(settings, options, name, route)) if options.questions is not None else None
    if path.exists() and n_requests_of(path, [name], most=1)[name]:
        status = read_statuses(path, settings, name)[0]
    refused = build_route(name, route, read_evidence(settings)).refused
    report = RouteDiagnosis(name=name, route=route, status=status, logged=logged, live=live, refused=refused)
    if options.as_json:
        shell.print_json(_plain_route(report))
    else:
        shell.print_facts(f"route {name}", [list(_route_lines(report))], loud=("REFUSED",))


async def _run_questions(settings: Settings, options: DoctorOptions, name: str, route: Route) -> FullRunCounts:
    assert options.questions is not None
    bodies = read_route_questions(options.questions.read_text("utf-8").splitlines(), str(options.questions))
    upstream = settings.upstreams[route.upstream]
    async with _client(route.upstream, upstream) as client:
        session = await connect(client, options.model or route.model, timeout_s=options.timeout_s)
        live = await run_live(
            session, bodies, build_scorer(route.scorer), n_repeats=options.repeats, concurrency=upstream.slots
        )
    label = scorer_label(route.scorer)
    await append_findings(
        settings, as_findings(live, examination_id=create_id("ex"), route=name, scorer=label, at_s=time.time())
    )
    return live


def _route_lines(report: RouteDiagnosis) -> Iterator[tuple[str, str]]:
    status, route = report.status, report.route
    yield "mode", f"{route.mode}, scorer {scorer_label(route.scorer)}"
    if status is None:
        yield "governed", "no request of this route is in the log yet"
    else:
        whole = status.report
        because = frequencies(whole.ungoverned, "; untouched: ")
        share = "unknown" if whole.governed_share is None else f"{whole.governed_share:.1%}"
        yield "governed", f"{share} of {whole.n_requests:,} requests{because}"
    for where, runs in (("log", report.logged), ("live", report.live)):
        if runs is not None and (runs.n_runs or runs.n_failed):
            yield from _runs_lines(where, runs)
    yield "enforcement", _enforcement(report)
    if status is not None:
        sure = f"{route.confidence:.0%}"
        yield "audits missing", audits_missing(status.evidence, max_em_drop=route.max_em_drop, sure=sure)
    yield "  estimate by", _formula(route)


def _runs_lines(where: str, runs: FullRunCounts) -> Iterator[tuple[str, str]]:
    failed = f"; {runs.n_failed:,} more were not answered in time" if runs.n_failed else ""
    yield f"readable, {where}", f"{_part(runs.n_extractable, runs.n_runs)} of full runs{failed}"
    repeats = "no question was run twice"
    if runs.n_repeats:
        ceiling = "a stop can hardly agree more often with a full run than two full runs with each other"
        repeats = f"{_part(runs.n_agreeing, runs.n_repeats)} of repeats; {ceiling}"
    yield f"agreement, {where}", repeats


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


def _plain_route(report: RouteDiagnosis) -> dict[str, Any]:
    status, audits = report.status, None
    if status is not None:
        missing = {"n_missing": status.evidence.n_missing, "wait_s": status.evidence.wait_s}
        audits = {**msgspec.to_builtins(status.evidence), **missing}
    return {
        "route": report.name,
        "mode": report.route.mode,
        "scorer": scorer_label(report.route.scorer),
        "refused": report.refused,
        "logged": asdict(report.logged),
        "live": None if report.live is None else asdict(report.live),
        "governed_share": None if status is None else status.report.governed_share,
        "ungoverned": {} if status is None else dict(status.report.ungoverned),
        "audits": audits,
    }
