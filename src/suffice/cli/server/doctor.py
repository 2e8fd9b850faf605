"""`suffice doctor`: what a model server really does, and what a route's full runs say.

Knows options, where findings are kept and who is asked. It refuses to know experiments (`doctor`)
and how the result looks (`cli.server.findings`). Heavy imports stand inside the functions.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from suffice.cli.deciding import find_settings
from suffice.cli.shell import JSON_OBJECT, fail
from suffice.settings import Driver

if TYPE_CHECKING:
    from suffice.cli.inspect.status import RouteStatus
    from suffice.doctor.route import FullRunCounts
    from suffice.doctor.talk import Talk
    from suffice.settings import Route, Settings, Upstream
    from suffice.store.rows.events import Event
    from suffice.types import Findings
    from suffice.upstream.client import UpstreamClient

DEFAULT_CONFIG = Path("suffice.toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorOptions:
    """The options of one call of the command."""

    upstream: str | None
    route: str | None
    model: str | None
    driver: Driver | None
    api_key_env: str
    questions: Path | None
    repeats: int
    timeout_s: float
    as_json: bool


@click.command()
@click.option("--upstream", help="Address of a model server, or its name in the settings: examine it.")
@click.option("--route", help="Name of a route in the settings: see what its full runs say.")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Settings, TOML or YAML. [default: suffice.toml, if it is there]",
)
@click.option("--model", help="Model to ask for. [default: the route's, else the first that is listed]")
@click.option("--driver", help="Examine and suggest settings for this one, as in the settings.")
@click.option("--api-key-env", default="", help="Environment variable with the server's key, for an address.")
@click.option(
    "--questions",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="JSON lines with `question`: run them on the route.",
)
@click.option("--repeats", default=10, show_default=True, help="How many of them are run twice.")
@click.option("--timeout", "timeout_s", default=30.0, show_default=True, help="Seconds for an experiment or a run.")
@JSON_OBJECT
def doctor(config: Path | None, **options: object) -> None:
    """Examine a model server (--upstream), or what the full runs of a route say (--route).

    With a settings file the findings go into its log, where the gateway reads them at its next start.
    Exits with 1 when the server does not answer, and with 2 when it cannot be asked.
    """
    from suffice.errors import ConfigError, SufficeError
    from suffice.wiring import load_settings

    asked = DoctorOptions(**options)  # type: ignore[arg-type]  # click has checked them
    try:
        if (asked.upstream is None) == (asked.route is None):
            raise ConfigError("name either --upstream or --route")
        path = config or (DEFAULT_CONFIG if DEFAULT_CONFIG.is_file() else None)
        settings = None if path is None else load_settings(path)
        if asked.route is not None:
            _examine_route(settings, asked, asked.route)
            return
        reached = asyncio.run(_examine_upstream(settings, asked, str(asked.upstream)))
    except (SufficeError, OSError) as error:
        fail("doctor", error)
    raise SystemExit(0 if reached else 1)


# --------------------------------------------------------------------------- an upstream


async def _examine_upstream(settings: Settings | None, asked: DoctorOptions, target: str) -> bool:
    """Examine, keep and show. False: the server answered no chat."""
    import msgspec

    from suffice.cli.server.findings import show_upstream
    from suffice.doctor.advise import advise
    from suffice.doctor.examine import examine
    from suffice.plugins import load_plugins
    from suffice.upstream.drivers import driver_facts
    from suffice.upstream.findings import honoured

    name, upstream = _target(settings, asked, target)
    if asked.driver is not None:
        load_plugins()
        driver_facts(asked.driver)  # raises where it does not exist
        upstream = msgspec.structs.replace(upstream, driver=asked.driver)
    async with _client(name, upstream) as client:
        talk = await _talk(client, asked, asked.model)
        with _progress(asked) as tell:
            found = await examine(talk, upstream=name, examination_id=_new_id(), at_s=time.time(), tell=tell)
    kept = await _keep_findings(settings, name, found)
    advice = advise(found, name=name or "local", url=upstream.url, driver=asked.driver)
    show_upstream(found, advice, url=upstream.url, n_calls=talk.n_calls, kept=kept, as_json=asked.as_json)
    return honoured(found, "reachable")


def _target(settings: Settings | None, asked: DoctorOptions, target: str) -> tuple[str, Upstream]:
    """The upstream that is meant, with its name in the settings; "": it has none."""
    from suffice.errors import ConfigError
    from suffice.settings import Upstream
    from suffice.upstream.findings import url_key

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
    """A client that tries again only where a kept connection turned out to be closed, as the gateway does."""
    from suffice.upstream.client import UpstreamClient
    from suffice.wiring import api_key

    return UpstreamClient(name or "doctor", upstream, api_key(name or "doctor", upstream))


async def _talk(client: UpstreamClient, asked: DoctorOptions, model: str | None) -> Talk:
    """A talk with the model that is asked for, else with the first that the server lists."""
    from suffice.doctor.talk import Talk
    from suffice.errors import ConfigError

    talk = Talk(
        client, model=model or "", timeout_s=asked.timeout_s, clock_s=time.monotonic, nonce=lambda: secrets.token_hex(6)
    )
    if not model:
        listed = await talk.models()
        if not listed:
            raise ConfigError("--model: the server lists no model; name one")
        talk.model = listed[0]
    return talk


async def _keep_findings(settings: Settings | None, name: str, found: Findings) -> str:
    """Put the findings into the log; say where they are, or why not."""
    if settings is None:
        return "Not kept: there is no settings file here (--config)."
    if not name:
        return "Not kept: no upstream in the settings has this address."
    await _append(settings, found)
    return f"Kept in {settings.store.url} for upstream {name!r}; a gateway reads it at its next start."


async def _append(settings: Settings, event: Event) -> None:
    from suffice.wiring import open_log

    log = open_log(settings)
    try:
        await log.append_durable(event)
    finally:
        log.close()


def _new_id() -> str:
    return f"ex_{int(time.time() * 1e3):011x}{secrets.token_hex(4)}"


@contextmanager
def _progress(asked: DoctorOptions) -> Iterator[Callable[[str], None]]:
    """Says which experiment is being made, to a person who waits and to nobody else."""
    if asked.as_json or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console

    with Console(stderr=True).status("starting") as line:
        yield lambda name: line.update(f"trying {name}")


# --------------------------------------------------------------------------- a route


def _examine_route(settings: Settings | None, asked: DoctorOptions, name: str) -> None:
    """Report on a route, from its log and from questions that are run now."""
    from suffice.cli.server.findings import RouteDiagnosis, show_route
    from suffice.errors import ConfigError

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
    from suffice.doctor.route import FullRunCounts, from_log
    from suffice.scoring.base import build_scorer
    from suffice.store.database.sqlite import database_path
    from suffice.store.database.views import read_episodes

    path = database_path(settings.store.url)
    if not path.is_file():
        return FullRunCounts()
    return from_log((found.episode for found in read_episodes(path, name)), build_scorer(route.scorer))


def _status(settings: Settings, name: str) -> RouteStatus | None:
    """What `suffice status` knows of the route; None: the log has no request of it yet."""
    from suffice.cli.inspect.status import read_statuses
    from suffice.store.database.sqlite import database_path
    from suffice.store.database.views import n_requests_of

    path = database_path(settings.store.url)
    if not path.is_file() or not n_requests_of(path, [name], most=1)[name]:
        return None
    return read_statuses(path, settings, name)[0]


def _refused(settings: Settings, name: str, route: Route) -> str | None:
    from suffice.wiring import build_route, read_evidence

    return build_route(name, route, read_evidence(settings)).refused


async def _run_questions(settings: Settings, asked: DoctorOptions, name: str, route: Route) -> FullRunCounts:
    """Run the questions in full at the route's upstream, past the gateway, and keep what was seen."""
    from suffice.doctor.route import as_findings, read_route_questions, run_live
    from suffice.scoring.base import build_scorer, scorer_label

    assert asked.questions is not None
    bodies = read_route_questions(asked.questions.read_text("utf-8").splitlines(), str(asked.questions))
    upstream = settings.upstreams[route.upstream]
    async with _client(route.upstream, upstream) as client:
        talk = await _talk(client, asked, asked.model or route.model)
        found = await run_live(
            talk, bodies, build_scorer(route.scorer), n_repeats=asked.repeats, at_once=upstream.slots
        )
    label = scorer_label(route.scorer)
    record = as_findings(found, examination_id=_new_id(), route=name, scorer=label, at_s=time.time())
    await _append(settings, record)
    return found
