"""All settings, in one frozen tree. Pure: files and environment are read in `wiring`.

    Settings
    ├── server      our HTTP edge: address, limits, keys
    ├── upstreams   model servers by name: address, driver, time-outs, ways to finish
    ├── routes      what is governed and how: match, kind, mode, scorer, policy, budgets
    └── store       where events go

Every field has a unit in its name or comment and a safe default. `parse` refuses what it does
not know, with the path of the key and the nearest key that exists.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from math import isfinite
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from suffice.errors import ConfigError
from suffice.types import Kind, Mode

S = TypeVar("S", bound=msgspec.Struct)
Driver = Literal["openai", "llama.cpp", "vllm"]
FinishMethod = Literal["native", "prefill", "raw"]
VerifiedBy = Literal["doctor", "owner"]
_RELAY = re.compile(r"(GET|POST|PUT|PATCH|DELETE) (/|(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]{1,200})+)")


class Server(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Our HTTP edge."""

    host: str = "127.0.0.1"
    port: int = 8400
    api_keys_env: str = ""            # environment variable with comma-separated keys; "": open
    max_body_bytes: int = 20 * 2**20  # larger bodies are refused with 413
    max_depth: int = 128              # JSON nesting
    ping_s: float = 15.0              # comment line on a silent stream
    grace_s: float = 10.0             # how long live streams may finish at shutdown
    client_idle_timeout_s: float = 300.0  # a client that takes nothing for so long though bytes wait is cut off
    relay: tuple[str, ...] = ()       # further paths of the engine that are relayed, such as "POST /tokenize"


class Prices(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an upstream charges, in US dollars for a million tokens; 0 is free, no table is unknown."""

    input_usd_per_mtok: float
    output_usd_per_mtok: float
    cached_input_usd_per_mtok: float | None = None  # prompt tokens from a prefix cache; None: as input


class Upstream(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One model server that speaks OpenAI's protocol."""

    url: str                                  # base, with or without /v1
    driver: Driver = "openai"                 # what may be tried beyond the plain protocol
    api_key_env: str = ""                     # environment variable; "": the client's own header goes on
    slots: int = 1                            # requests that it serves at once; 1: cancel before hand-over
    connect_timeout_s: float = 5.0
    idle_timeout_s: float = 300.0             # silence on an open response
    keepalive_s: float = 4.0                  # llama.cpp closes idle connections after 5 s
    retries: int = 1                          # only while nothing has reached the client
    finish: tuple[FinishMethod, ...] = ()     # ways to close a thought, best first; (): the driver's
    think_open: str = "<think>"
    think_close: str = "</think>"
    prices: Prices | None = None              # None: unknown, so money is left out everywhere


class Probe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How trial answers are asked for while a thought is running."""

    max_tokens: int = 16              # of the trial answer
    max_extra_calls: int = 32         # a request; probes, continuation and reruns together
    closing: str = "\n"               # text written before the closing tag; must not end in a space
    answer_prefix: str = ""           # text written after the closing tag
    stop: tuple[str, ...] = ("\n",)   # where a trial answer ends
    verified_by: VerifiedBy = "doctor"  # who saw that the upstream continues a text and caches prefixes


class Steps(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where a chain of thought is cut into steps."""

    boundary: Literal["line", "paragraph", "tokens"] = "line"
    min_tokens: int = 24              # a step is at least this long
    growth: float = 1.15              # each step is that much longer than the last: geometric probing
    max_tokens: int = 512             # a step that sees no boundary ends here, between words


class Match(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which requests belong to a route. All given conditions must hold; none: every request."""

    model: str = ""                   # shell pattern on the request's model, "" = any
    header: str = ""                  # value of x-suffice-route, "" = any


class Route(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is governed, how, and with which promise."""

    upstream: str
    match: Match = Match()
    kind: Kind = "reasoning"
    mode: Mode = "observe"
    scorer: str = "text"
    policy: dict[str, Any] = {}       # {"policy": name, **parameters}; empty: never stop
    uncertified: bool = False         # let an uncertified policy act; everything says so
    max_em_drop: float = 0.02         # fraction: the largest EM drop that the owner accepts
    confidence: float = 0.95          # fraction: how sure the promise must be
    critical_em: float | None = None  # fraction: below it a person decides
    audit_share: float | None = None  # fraction; None: 0.10 for the first 20,000 requests, then 0.05
    model: str | None = None          # model name to send upstream; None: the client's
    samples: int = 1                  # kind "samples": answers in a full run; 1 = pass-through
    wave: int = 4                     # kind "samples": answers drawn at once
    probe: Probe | None = None        # None: no upstream call is ever added while observing
    steps: Steps = Steps()
    handover_ms: int = 5_000          # a continuation that takes longer is dropped
    handover_buffer_bytes: int = 256 * 1024


class Store(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where events go."""

    url: str = "sqlite:///suffice.db"
    queue_rows: int = 50_000          # waiting for the writer; more: outcomes are counted as dropped
    flush_ms: int = 20                # the writer gathers this long before it commits


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything, as one value."""

    server: Server = Server()
    upstreams: dict[str, Upstream] = {}
    routes: dict[str, Route] = {}
    store: Store = Store()


def parse(raw: Mapping[str, Any]) -> Settings:
    """Turn a nested mapping (TOML or YAML as read) into settings.

    Raises ConfigError with the path of the value at fault, what it was and what is allowed.
    """
    _refuse_unknown(raw, Settings, path="")
    for table, model in (("upstreams", Upstream), ("routes", Route)):
        for name, item in raw.get(table, {}).items():
            _convert(item, model, path=f"{table}.{name}")  # one by one, so that an error names its own table
    settings = _convert(raw, Settings, path="")
    _check(settings)
    return settings


def _convert(raw: object, model: type[S], *, path: str) -> S:
    """Build one settings object; an error tells the path, what was found and what is allowed."""
    try:
        return msgspec.convert(raw, model, strict=True)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at ")
        inner = where.strip("`").removeprefix("$").removeprefix(".")
        here = ".".join(part for part in (path, inner) if part) or "config"
        raise ConfigError(f"{here}: {what}{_allowed(model, inner)}") from None


def _allowed(model: type[msgspec.Struct], inner: str) -> str:
    """The words that a field may hold, where it may hold only some."""
    hint: Any = model
    for name in inner.split("."):
        nested = _struct_in(hint)
        hint = get_type_hints(nested).get(name.partition("[")[0]) if nested is not None else None
    words = [w for part in (hint, *get_args(hint)) if get_origin(part) is Literal for w in get_args(part)]
    return f"; allowed: {', '.join(words)}" if words else ""


def _refuse_unknown(raw: object, model: type[msgspec.Struct], path: str) -> None:
    """Walk the mapping beside the types; name the path of the first key that has no field."""
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{path or 'config'}: must be a table, got {type(raw).__name__}")
    hints = get_type_hints(model)
    for key, value in raw.items():
        here = f"{path}.{key}" if path else str(key)
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(hints))}"
            raise ConfigError(f"{here}: unknown key{hint}")
        nested = _struct_in(hints[key])
        if nested is None or value is None:
            continue
        if str(hints[key]).startswith("dict"):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{here}: must be a table, got {type(value).__name__}")
            for name, item in value.items():
                _refuse_unknown(item, nested, f"{here}.{name}")
        else:
            _refuse_unknown(value, nested, here)


def _struct_in(hint: Any) -> type[msgspec.Struct] | None:
    """The settings class inside a type hint: itself, `X | None`, or the values of `dict[str, X]`."""
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return hint
    found = [_struct_in(part) for part in get_args(hint)]
    return next((part for part in found if part is not None), None)


def _check(settings: Settings) -> None:
    """What types cannot say: references, ranges, and combinations that promise too much."""
    for entry in settings.server.relay:
        if not _RELAY.fullmatch(entry):
            raise ConfigError(
                f"server.relay: got {entry[:200]!r}; need a method and an exact path, such as 'POST /tokenize';"
                " methods: GET, POST, PUT, PATCH, DELETE"
            )
    for name, upstream in settings.upstreams.items():
        if not re.match(r"https?://[^/\s]+", upstream.url):
            raise ConfigError(f"upstreams.{name}.url: got {upstream.url!r}; need http://host[:port][/path]")
        if upstream.prices is not None:
            _check_prices(f"upstreams.{name}.prices", upstream.prices)
    for name, route in settings.routes.items():
        where = f"routes.{name}"
        if route.upstream not in settings.upstreams:
            known = ", ".join(sorted(settings.upstreams)) or "none is configured"
            raise ConfigError(f"{where}.upstream: unknown upstream {route.upstream!r}; known: {known}")
        _check_route(where, route)


def _check_prices(where: str, prices: Prices) -> None:
    for field, value in msgspec.structs.asdict(prices).items():
        if value is not None and not (isfinite(value) and value >= 0):
            raise ConfigError(f"{where}.{field}: got {value}; US dollars for a million tokens, at least 0")


def _check_route(where: str, route: Route) -> None:
    for field in ("max_em_drop", "confidence", "critical_em", "audit_share"):
        value = getattr(route, field)
        if value is not None and not 0 <= value <= 1:
            raise ConfigError(f"{where}.{field}: got {value}; a fraction from 0 to 1 (1 point of EM = 0.01)")
    for field in ("samples", "wave"):
        if getattr(route, field) < 1:
            raise ConfigError(f"{where}.{field}: got {getattr(route, field)}; at least 1")
    if route.probe is not None and route.probe.closing.endswith(" "):
        raise ConfigError(f"{where}.probe.closing: must not end in a space: models then lose minus signs")
