"""The composition root: from a settings file to running objects. Files, environment and clocks enter here.

Nothing below this file reads the environment, opens a file it was not given or asks for the time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
import tomllib
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suffice import settings as settings_module
from suffice.assurance.extractable import WINDOW_RUNS, refusal
from suffice.control.arms import Tune
from suffice.control.jobs import Worker
from suffice.control.loops import Certify
from suffice.control.matching import matching
from suffice.control.monitor import Monitor
from suffice.control.proposing import Retrain
from suffice.episode import ahead
from suffice.episode.segment import build_segmenter
from suffice.errors import ConfigError
from suffice.gateway import desk
from suffice.gateway.app import App, endpoints
from suffice.gateway.context import Gateway
from suffice.gateway.follow import Follower, following
from suffice.gateway.operating import warnings as load_warnings
from suffice.gateway.operating import watched
from suffice.gateway.route import BuiltRoute, setup_of
from suffice.model.artefact import StopModel
from suffice.model.artefact import load as load_model
from suffice.model.reading import MOST_BYTES
from suffice.plugins import load_plugins
from suffice.policy.base import POLICIES, Policy, build_policy, version_of
from suffice.policy.parameters import parameters_of
from suffice.scoring.base import build_scorer, scorer_label
from suffice.settings import Route, Settings, Upstream
from suffice.signals.observe import Observer
from suffice.store.decisions import Decisions
from suffice.store.log import EventLog
from suffice.store.sqlite import SqliteLog, database_path
from suffice.store.views import extracted_answers, read_recent, route_counts, route_findings, upstream_findings
from suffice.telemetry import LOG, Metrics
from suffice.types import Findings, RouteFindings
from suffice.upstream.client import UpstreamClient
from suffice.upstream.drivers import driver_facts
from suffice.upstream.findings import url_key

if TYPE_CHECKING:
    from suffice.edge.embedder import HttpEmbedder

LEARNT_RUNS = 2_000  # of the log's latest runs: what they teach is known again after a restart

# Signals that every governed route records, so that a later policy can be replayed on its log.
RECORDED: Mapping[str, tuple[str, ...]] = {
    "reasoning": ("stability", "confidence", "hedges"),
    "samples": ("votes",),
    "rounds": ("stability", "confidence", "drafts"),
}

MOST_DEEP = 8  # policies inside policies whose models are looked for, as many as `build_policy` takes
HANDLERS_END_S = 5.0  # at the end: how long a handler that was cut off has to write its outcome


def load_settings(path: str | Path) -> Settings:
    """Read a TOML (or YAML) file. Raises ConfigError with the file, the place and what is allowed."""
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: is not UTF-8 at byte {error.start}") from None
    try:
        raw = _read_yaml(text) if file.suffix in (".yaml", ".yml") else tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: {error}") from None
    load_plugins()
    try:
        return settings_module.parse(_with_models(raw, file.parent))
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def _with_models(raw: Any, folder: Path) -> Any:
    """The settings as read, each learned model that a route names by its file replaced by what the file says.

    Whatever else is wrong with them is left to `settings.parse` and `build_policy`. Any: nothing is checked yet.
    """
    routes = raw.get("routes") if isinstance(raw, Mapping) else None
    if not isinstance(routes, Mapping):
        return raw
    read = {
        name: {**route, "policy": _policy_with_models(f"routes.{name}.policy", route["policy"], folder)}
        if isinstance(route, Mapping) and "policy" in route else route
        for name, route in routes.items()
    }  # fmt: skip
    return {**raw, "routes": read}


def _policy_with_models(where: str, spec: Any, folder: Path, depth: int = MOST_DEEP) -> Any:
    """A policy, written as a table, with its models' data in it; a policy inside it likewise."""
    name = spec.get("policy") if isinstance(spec, Mapping) else None
    if not depth or not isinstance(name, str) or name not in POLICIES:
        return spec
    read = dict(spec)
    for parameter in parameters_of(POLICIES[name]):
        value, place = read.get(parameter.name), f"{where}.{name}.{parameter.name}"
        if parameter.type is StopModel and isinstance(value, str):
            read[parameter.name] = _read_model(place, folder / value)
        elif parameter.type is Policy and isinstance(value, list):
            read[parameter.name] = [
                _policy_with_models(f"{place}[{at}]", one, folder, depth - 1) for at, one in enumerate(value)
            ]
        elif parameter.type is Policy and value is not None:
            read[parameter.name] = _policy_with_models(place, value, folder, depth - 1)
    return read


def _read_model(where: str, file: Path) -> dict[str, Any]:
    """The model in a file, checked, as a table. Raises ConfigError with where it was named, the file and the place."""
    try:
        with file.open("rb") as handle:
            content = handle.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # a name may hold a null byte
        raise ConfigError(f"{where}: {file}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    try:
        return load_model(content).plain()
    except ConfigError as error:
        raise ConfigError(f"{where}: {file}: {error}") from None


def _read_yaml(text: str) -> Any:
    try:
        import yaml  # type: ignore[import-untyped, unused-ignore]  # only for those who write YAML
    except ImportError:
        raise ConfigError("YAML config needs the package PyYAML; install it or write TOML") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(str(error)) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What the log already says about upstreams and routes; empty when there is no log yet."""

    upstreams: Mapping[str, Findings] = field(default_factory=dict)          # by name, same address only
    extracted: Mapping[str, tuple[bool, ...]] = field(default_factory=dict)  # by route, oldest first


def read_evidence(settings: Settings, database: Path | None = None) -> Evidence:
    """Read what `suffice doctor` and the routes' own full runs have shown. Raises StoreError.

    database  the log's file; None: the one that the settings name
    """
    path = database or database_path(settings.store.url)
    if not path.is_file():
        return Evidence()
    examined = route_findings(path)
    return Evidence(
        upstreams={
            name: found for name, found in upstream_findings(path).items()
            if name in settings.upstreams and found.url_key == url_key(settings.upstreams[name].url)
        },
        extracted={
            name: _extracted(path, name, route, examined) for name, route in settings.routes.items()
        },
    )  # fmt: skip


def _extracted(
    path: Path, name: str, route: Route, examined: Mapping[str, tuple[int, RouteFindings]]
) -> tuple[bool, ...]:
    """The latest full runs of a route: could the answer be read? Those of the last examination come first.

    Runs before it do not count: their answers may have been read by another scorer.
    """
    seq, found = examined.get(name, (0, None))
    if found is None or found.scorer != scorer_label(route.scorer):
        return tuple(extracted_answers(path, name, limit=WINDOW_RUNS))
    seen = [True] * found.n_extractable + [False] * (found.n_runs - found.n_extractable)
    return (*seen, *extracted_answers(path, name, since_seq=seq, limit=WINDOW_RUNS))


def evidence_warnings(settings: Settings, evidence: Evidence) -> list[str]:
    """What the log says against these settings, for the owner."""
    warnings = []
    for name, route in settings.routes.items():
        built = build_route(name, route, evidence)
        if route.mode == "enforce" and built.refused is not None:
            warnings.append(f"routes.{name}: behaves as observe: {built.refused}")
        if route.mode == "observe" and route.probe is not None and not built.may_probe:
            warnings.append(
                f"routes.{name}.probe: no probe is sent while observing: run suffice doctor --upstream"
                f' {route.upstream}, or write verified_by = "owner" if you know that this upstream continues'
                " a text and caches prefixes"
            )
    return warnings


def build_route(
    name: str, settings: Route, evidence: Evidence | None = None, upstream: Upstream | None = None
) -> BuiltRoute:
    """Build a route's scorer and policy. Raises ConfigError with the route's path."""
    known = evidence or Evidence()
    try:
        scorer = build_scorer(settings.scorer)
        policy = build_policy(settings.policy or {"policy": "never"})
        build_segmenter(settings.steps)
    except ConfigError as error:
        raise ConfigError(f"routes.{name}.{error}") from None
    asked = {need.partition("(")[0] for need in policy.needs}  # with parameters of its own: those count
    recorded = (*RECORDED[settings.kind], *(("drafts",) if settings.embeddings is not None else ()))
    needs = (*dict.fromkeys(need for need in recorded if need not in asked), *policy.needs)
    Observer(needs, settings.kind)  # a signal that does not exist must fail here, not in a request
    built = BuiltRoute(
        name=name,
        settings=settings,
        scorer=scorer,
        policy=policy,
        policy_version=version_of(policy),
        certified=False,  # nothing certifies yet
        needs=needs,
        findings=known.upstreams.get(settings.upstream),
        refused=refusal(known.extracted.get(name, ()), scorer_label(settings.scorer)),
    )
    address = "" if upstream is None else url_key(upstream.url)
    setup = setup_of(settings, scorer_label(settings.scorer), address, probes=built.may_probe)
    return replace(built, setup=setup)


def check(settings: Settings, environment: Mapping[str, str] | None = None) -> list[str]:
    """Build everything that can be built without opening a socket; return warnings for the owner.

    Raises ConfigError for what cannot work.
    """
    endpoints(settings.server.relay)
    known = os.environ if environment is None else environment
    warnings = [plugin.warning() for plugin in load_plugins() if plugin.problem is not None]
    _check_drivers(settings)
    for name, route in settings.routes.items():
        built = build_route(name, route)
        upstream = settings.upstreams.get(route.upstream)
        wrong = ahead.problem(route, upstream) if upstream is not None else None
        if wrong is not None:
            raise ConfigError(f"routes.{name}.{wrong}")
        if route.mode == "enforce" and not built.acts and not route.is_learned:
            warnings.append(
                f"routes.{name}: enforce without a certified policy behaves as observe;"
                " write uncertified = true to let it act all the same"
            )
        if route.probe is not None and route.mode != "off" and upstream is not None and upstream.slots == 1:
            warnings.append(
                f"routes.{name}.probe: upstreams.{route.upstream} has slots = 1, so a probe is sent only while"
                " one call runs there; write how many it serves at once"
            )
        given = route.embeddings
        if given is not None and given.api_key_env and given.api_key_env not in known:
            warnings.append(f"routes.{name}.embeddings: the environment has no {given.api_key_env}")
        warnings += load_warnings(f"routes.{name}", route, upstream)
        if route.kind == "samples" and route.samples == 1:
            warnings.append(f"routes.{name}: samples = 1 passes through unless a request asks for more")
    for name, one in settings.upstreams.items():
        if one.api_key_env and one.api_key_env not in known:
            warnings.append(f"upstreams.{name}: the environment has no {one.api_key_env}")
    keys = settings.server.api_keys_env
    if keys and not _split(known.get(keys, "")):
        warnings.append(f"server.api_keys_env: the environment has no keys in {keys}")
    return warnings


def _check_drivers(settings: Settings) -> None:
    """Is there a driver for every upstream? Raises ConfigError with the upstream's path."""
    for name, upstream in settings.upstreams.items():
        try:
            driver_facts(upstream.driver)
        except ConfigError as error:
            raise ConfigError(f"upstreams.{name}.{error}") from None


def api_key(name: str, upstream: Upstream) -> str | None:
    """An upstream's key from the environment; None: it has none. Raises ConfigError where it is missing."""
    return secret(f"upstreams.{name}.api_key_env", upstream.api_key_env)


def secret(where: str, variable: str) -> str | None:
    """What an environment variable holds; None: none was named. Raises ConfigError where it is missing."""
    if not variable:
        return None
    key = os.environ.get(variable)
    if not key:
        raise ConfigError(f"{where}: the environment has no {variable}")
    return key


def embedders(settings: Settings) -> dict[str, HttpEmbedder]:
    """The embedders of routes that have one, not opened yet. Raises ConfigError."""
    given = {name: route.embeddings for name, route in settings.routes.items() if route.mode != "off"}
    if not any(given.values()):
        return {}
    from suffice.edge.embedder import HttpEmbedder  # a general HTTP client, slow to import, and rarely needed

    return {
        name: HttpEmbedder(
            one.url, model=one.model, timeout_s=one.timeout_s, pause_s=one.pause_s,
            api_key=secret(f"routes.{name}.embeddings.api_key_env", one.api_key_env),
        )
        for name, one in given.items() if one is not None
    }  # fmt: skip


def _client_keys(settings: Settings) -> tuple[str, ...]:
    name = settings.server.api_keys_env
    if not name:
        return ()
    keys = _split(os.environ.get(name, ""))
    if not keys:
        raise ConfigError(f"server.api_keys_env: the environment has no keys in {name}")
    return keys


def _split(keys: str) -> tuple[str, ...]:
    return tuple(k.strip() for k in keys.split(",") if k.strip())


def deployment_salt(settings: Settings) -> str:
    """The secret that keys lots and question keys: SUFFICE_SALT, else one kept beside the database."""
    given = os.environ.get("SUFFICE_SALT")
    if given:
        return given
    file = database_path(settings.store.url).with_suffix(".salt")
    if not file.exists():
        _write_salt(file)
    salt = file.read_text(encoding="utf-8").strip()
    if not salt:
        raise ConfigError(f"{file}: is empty; it must hold the secret of this log: restore it or delete it")
    return salt


def _write_salt(file: Path) -> None:
    """Make the file whole or not at all; of several processes at once, the first one's salt stays."""
    draft = file.with_name(f"{file.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:
            handle.write(secrets.token_hex(16))
            handle.flush()
            os.fsync(handle.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(draft, file)
    finally:
        draft.unlink(missing_ok=True)


class Randomness:
    """Random bytes of the system, taken from it in blocks: asking costs more than the few that an id needs."""

    def __init__(self, block_bytes: int = 4_096) -> None:
        self._size = block_bytes
        self._block, self._at = b"", 0

    def take(self, n_bytes: int) -> bytes:
        """The next bytes; none is given twice. `n_bytes` is at most the size of a block."""
        if self._at + n_bytes > len(self._block):
            self._block, self._at = os.urandom(self._size), 0
        self._at += n_bytes
        return self._block[self._at - n_bytes : self._at]


_RANDOM = Randomness()


def new_id() -> str:
    """A fresh episode id: sortable by time, unguessable."""
    return f"ep_{int(time.time() * 1e3):011x}{_RANDOM.take(8).hex()}"


async def _handlers_end(gw: Gateway) -> None:
    """Wait a little for handlers that still write their outcome: the log closes behind them."""
    end_s = time.monotonic() + HANDLERS_END_S
    while gw.n_live and time.monotonic() < end_s:  # noqa: ASYNC110 - once in a life; polling is plainest
        await asyncio.sleep(0.01)


def _recovered(settings: Settings, log: EventLog) -> Evidence:
    """What an opened log knows, once the requests of dead processes have their outcome."""
    if not isinstance(log, SqliteLog):
        return Evidence()
    log.recover()
    evidence = read_evidence(settings)
    for warning in evidence_warnings(settings, evidence):
        LOG.warning(warning)
    return evidence


def _running(
    settings: Settings, log: EventLog, evidence: Evidence, clients: Mapping[str, UpstreamClient],
    vectors: Mapping[str, HttpEmbedder],
) -> Gateway:
    """All that handlers need, with what the log's history teaches."""
    gw = Gateway(
        settings=settings, routes=tuple(
            build_route(name, r, evidence, settings.upstreams.get(r.upstream)) for name, r in settings.routes.items()
        ),
        upstreams=clients, embedders=vectors, log=log, metrics=Metrics(),
        api_keys=_client_keys(settings) if clients else (),
        salt=deployment_salt(settings), new_id=new_id, wall_s=time.time, monotonic_s=time.monotonic,
    )  # fmt: skip
    if isinstance(log, SqliteLog):
        counts = route_counts(database_path(settings.store.url))
        gw.n_requests = {c.route: c.n_requests for c in counts if c.route}
        for episode in read_recent(database_path(settings.store.url), LEARNT_RUNS):
            gw.learn(episode.request, episode.outcome)
    gw.extracted = {name: deque(seen, maxlen=WINDOW_RUNS) for name, seen in evidence.extracted.items()}
    return gw


def library(settings: Settings, vectors: Mapping[str, HttpEmbedder]) -> Gateway:
    """What a loop in this process is governed with: routes and the log, without sockets and without clients.

    vectors  of `embedders`; the caller opens and closes them

    The caller closes `log`. Raises ConfigError and StoreError.
    """
    for warning in check(settings):
        LOG.warning(warning)
    log = SqliteLog.open(settings.store, now=time.time)
    try:
        gw = _running(settings, log, _recovered(settings, log), {}, vectors)
        gw.refresh = Follower(gw, log.path).refresh
        gw.refresh()
    except BaseException:
        log.close()
        raise
    gw.new_id = lambda: f"ep_{int(time.time() * 1e3):011x}{os.urandom(8).hex()}"  # asked from many threads
    return gw


def decisions(settings: Settings) -> Decisions:
    """The settings' log, open for a person's decisions; the caller closes it. Raises ConfigError and StoreError."""
    return Decisions.open(database_path(settings.store.url), now=time.time, monotonic_s=time.monotonic)


@contextmanager
def worker(settings: Settings) -> Iterator[Worker]:
    """The control loop's jobs on the settings' log, while the block lasts. Raises ConfigError and StoreError."""
    with decisions(settings) as writer:
        author = f"worker {secrets.token_hex(3)}"
        certify = Certify(
            settings=settings, path=writer.path, author=author, matches=matching, monotonic_s=time.monotonic
        )
        monitor = Monitor(
            settings=settings, path=writer.path, author=author, matches=matching, monotonic_s=time.monotonic
        )
        retrain = Retrain(
            settings=settings, path=writer.path, author=author, matches=matching, monotonic_s=time.monotonic
        )
        tune = Tune(
            settings=settings, path=writer.path, author=author, matches=matching, monotonic_s=time.monotonic,
            now=time.time,
        )  # fmt: skip
        try:
            yield Worker(
                decisions=writer, jobs=(certify, monitor, retrain, tune), author=author, now=time.time,
                monotonic_s=time.monotonic, new_id=lambda: f"jr_{int(time.time() * 1e3):011x}{secrets.token_hex(4)}",
            )
        finally:
            certify.close()
            monitor.close()


@asynccontextmanager
async def gateway(settings: Settings, *, log: EventLog | None = None) -> AsyncIterator[App]:
    """Open the log and the upstreams, and give the ASGI application; close them all afterwards.

    Raises ConfigError and StoreError before anything is served.
    """
    for warning in check(settings):
        LOG.warning(warning)
    keys = {name: api_key(name, upstream) for name, upstream in settings.upstreams.items()}
    vectors = embedders(settings)
    if not settings.upstreams:
        raise ConfigError("upstreams: none is configured; add [upstreams.NAME] with a url")
    opened = log or SqliteLog.open(settings.store, now=time.time)
    try:
        evidence = _recovered(settings, opened)
        clients = {
            name: UpstreamClient(
                name, upstream, keys[name], evidence.upstreams.get(name),
                monotonic_s=time.monotonic, wall_s=time.time,
            )
            for name, upstream in settings.upstreams.items()
        }  # fmt: skip
        gw = _running(settings, opened, evidence, clients, vectors)
        async with AsyncExitStack() as stack:
            for client in clients.values():
                await stack.enter_async_context(client)
            for embedder in vectors.values():
                await stack.enter_async_context(embedder)
            stack.enter_context(watched(gw.look_at_load, gw.metrics))
            if isinstance(opened, SqliteLog):
                follower = Follower(gw, opened.path)
                await stack.enter_async_context(following(follower))
                gw.told = follower.tell
            gw.ready = True
            try:
                yield App(gw)
            finally:
                gw.ready = False
                await _handlers_end(gw)
                desk.close_all(gw)
    finally:
        if log is None:
            opened.close()


