"""`suffice init`: examines a server, writes a first settings file, sends some requests and says what was seen."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import click
import msgspec

from suffice.assurance.start import describe_starts
from suffice.cli import shell
from suffice.cli.inspect.route_status import read_statuses
from suffice.cli.server.doctor import append_findings, connect, examine_server
from suffice.cli.server.serve import serve
from suffice.control.evidence.cold_start import forecast_start
from suffice.doctor.examine import SHORT, recommend
from suffice.errors import ConfigError, UpstreamError
from suffice.files import write_whole
from suffice.scoring.base import build_scorer
from suffice.server import serve_in_loop
from suffice.settings import Settings, Upstream
from suffice.store.database.location import log_location
from suffice.telemetry import only_errors
from suffice.upstream.client import UpstreamClient
from suffice.upstream.drivers import find_verdict
from suffice.wiring.files import (
    ROUTE,
    UPSTREAM,
    data_folder,
    load_settings,
    parse_starter,
    starter_settings,
    upstream_table,
)
from suffice.wiring.keys import api_key
from suffice.wiring.routes import check_routes

URL: Final = "http://127.0.0.1:8080"  # where llama.cpp listens, unless it is told otherwise
MOST_REQUESTS: Final = 100
MOST_TOKENS: Final = 1_024  # of one answer
FACTORS: Final = (17, 24, 12, 31, 45, 8, 19, 26, 33, 14, 7, 52)  # of the sums that are asked


@click.command(cls=shell.Command)
@shell.option("--upstream", metavar="URL", help="Address of your model server. [default: asks for it]")
@shell.DATA_DIR
@shell.option("--api-key-env", default="", metavar="NAME", help="Environment variable with the server's key.")
@shell.option("--model", help="Model to ask for. [default: the first that the server lists]")
@shell.option("--scorer", default="number", help="How answers are read and compared.")
@shell.option("--requests", "n_requests", default=10, type=click.IntRange(0, MOST_REQUESTS), help="To send; 0: none.")
@shell.option("--timeout", "timeout_s", default=30.0, help="Seconds for an experiment, and for all requests together.")
@shell.option("--serve", "serves", is_flag=True, help="Then serve, and open the console if there is a browser.")
@click.pass_context
def init(
    context: click.Context,
    upstream: str | None,
    api_key_env: str,
    model: str | None,
    scorer: str,
    n_requests: int,
    timeout_s: float,
    serves: bool,
) -> None:
    """Examine a model server, write settings that observe it, send ten requests and show what was seen.

    The settings are one file, suffice.toml in the data directory, where every command finds it. Observing adds no call
    and no token. Exits with 1 when the server does not answer.
    """
    folder = data_folder(os.environ)
    file = folder / shell.SETTINGS_FILES[0]
    if file.exists():
        raise ConfigError(f"{file}: is there already, and suffice serve uses it; remove it or name another --data-dir")
    first = starter_settings(upstream_table(upstream or _ask_url(), None), api_key_env=api_key_env, scorer=scorer)
    checked = parse_starter(first, os.environ)
    check_routes(checked)
    server = checked.upstreams[UPSTREAM]
    with only_errors():
        asyncio.run(_examine_and_write(server, file, model=model, scorer=scorer, timeout_s=timeout_s))
    settings = load_settings(file)
    if n_requests:
        click.echo(f"\nSending {n_requests} sums through Suffice, at the cost of {n_requests} direct calls:")
        results = asyncio.run(_send(settings, n_requests, model=model, timeout_s=timeout_s))
        _print_seen(settings, results, n_requests)
    if serves:
        click.echo()
        context.invoke(serve, path=file, browse=True)
        return
    named = "" if folder == data_folder({**os.environ, "SUFFICE_DATA_DIR": ""}) else f" --data-dir {folder}"
    click.echo(f"\nNext, from any folder:\n\n    suffice serve{named}\n    suffice status{named}\n")
    click.echo(f'and in your OpenAI client: base_url = "http://{settings.server.host}:{settings.server.port}/v1"')


def _ask_url() -> str:
    if not sys.stdin.isatty():
        raise ConfigError(f"--upstream: is missing; need the address of your model server, such as {URL}")
    return str(click.prompt("Address of your model server", default=URL))


async def _examine_and_write(server: Upstream, file: Path, *, model: str | None, scorer: str, timeout_s: float) -> None:
    """Examine the server in short form, write the settings, and keep the findings in their log."""
    click.echo(f"Examining {server.url}, which takes about ten seconds")
    async with UpstreamClient(UPSTREAM, server, api_key(UPSTREAM, server)) as client:
        try:
            session = await connect(client, model, timeout_s=timeout_s)
        except UpstreamError as error:
            shell.fail(f"{error}; {_where_to_find_one()}", 1)
        driver = await session.engine()
        findings = await examine_server(session, UPSTREAM, only=SHORT)
    if session.is_gateway:
        shell.fail(f"--upstream: {server.url} is a gateway of Suffice; need the model server behind it", 2)
    if find_verdict(findings, "reachable") != "yes":
        shell.fail(f"{server.url}: {findings.findings[0].evidence}; nothing was written", 1)
    recommendation = recommend(findings, name=UPSTREAM, url=server.url, driver=driver)
    examined = f"examined by {session.n_calls} short calls"
    click.echo(f"{server.url}: model {findings.model}, driver {recommendation.driver}, {examined}")
    for sentence in recommendation.sentences:
        click.echo(shell.wrapped(sentence, "  - ", "    "))
    thinks = find_verdict(findings, "reasoning") != "no"
    text = starter_settings(recommendation.settings, api_key_env=server.api_key_env, scorer=scorer, thinks=thinks)
    write_whole(file, text)
    await append_findings(load_settings(file), findings)
    without = "" if thinks else ", without a policy: a model without thoughts leaves nothing to stop in one call"
    click.echo(f"Wrote {file}{without}")


def _where_to_find_one() -> str:
    if find_spec("suffice_testing") is None:
        return "start your model server first"
    return "start your model server, or python -m suffice_testing, which pretends to be one on port 8080"


async def _send(settings: Settings, n: int, *, model: str | None, timeout_s: float) -> list[bool]:
    """Ask sums through a gateway with these settings; return for each that was answered in time whether it is right."""
    results, scorer = list[bool](), build_scorer("number")
    async with serve_in_loop(settings) as url, UpstreamClient("suffice", Upstream(url=url), None) as client:
        session = await connect(client, model, timeout_s=timeout_s)
        gate = asyncio.Semaphore(settings.upstreams[UPSTREAM].slots)

        async def ask(number: int) -> None:
            one, other = FACTORS[number % len(FACTORS)], FACTORS[(5 * number + 1) % len(FACTORS)] + number
            body = session.body(f"What is {one} * {other}? End with the number alone.", MOST_TOKENS)
            async with gate:
                reply = await session.whole(body)
            if reply.status != 200:
                return
            gold = str(one * other)
            results.append(scorer.match(scorer.extract(reply.text), gold))
            name = str(reply.body.get("id"))
            label = {"feedback_id": f"init-{name}", "response_id": name, "gold": gold, "source": "exact-match"}
            await session.whole(label, "/v1/feedback")

        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as tasks:
                for number in range(n):
                    tasks.create_task(ask(number))
    return results


def _print_seen(settings: Settings, results: Sequence[bool], n: int) -> None:
    report = read_statuses(log_location(settings.store), settings, ROUTE)[0].report
    tokens, would_save = report.tokens, report.measured.would_save
    n_added, n_tokens = tokens.probe + tokens.discarded, tokens.client_completion
    click.echo(f"  answered        {len(results)} of {n}, {sum(results)} of them right")
    click.echo(f"  tokens          {n_tokens:,} generated; Suffice added {n_added:,}")
    click.echo("  stopped early   none: it observes")
    if would_save is not None and settings.routes[ROUTE].policy:
        click.echo(
            f"  would stop      {report.n_would_stop} by the file's policy, saving {would_save.value:.0%} of the tokens"
        )
        learned = msgspec.structs.replace(settings.routes[ROUTE], policy={}, mode="enforce")
        starts = describe_starts(forecast_start(learned, settings.control))
        how = f'With mode = "enforce", a table [routes.{ROUTE}.probe] and no policy, expect {starts}'
        click.echo(shell.wrapped(how, "  ", "  "))
