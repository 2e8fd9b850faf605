"""Builds routes from settings and from the evidence in the log, with warnings for their owner."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any, Final

import msgspec

from suffice.assurance.guarantee import extractability_refusal
from suffice.assurance.start import MOST_AUDITS, describe_starts
from suffice.control.evidence.cold_start import burst_of, forecast_start, start_terms
from suffice.episode.chain_reader import build_segmenter
from suffice.errors import ConfigError
from suffice.gateway.app import endpoints
from suffice.gateway.load_control import warnings as load_warnings
from suffice.plugins import load_plugins
from suffice.policy.base import Policy, build_policy, version_of
from suffice.rollout.experiment import find_arm, with_arm
from suffice.scoring.base import build_scorer, scorer_label
from suffice.serving.route import BuiltRoute, FixedPolicy, route_setup
from suffice.settings import Driver, Probe, Route, Settings, Upstream
from suffice.signals.base import FROM_THE_STREAM, reads_answers
from suffice.signals.observe import Observer
from suffice.store.database.location import log_location
from suffice.store.database.views import route_findings, upstream_findings
from suffice.store.people.promises import extracted
from suffice.types import Findings, ReplyForm
from suffice.upstream.drivers import driver_facts, effort_problem, honoured, losing_methods, url_key
from suffice.wiring.files import read_models, read_toml

PATIENCE: Final = 100_000  # requests to the first stop; more cause a warning

# Signals that every governed route records, so that later policies can be replayed on its log.
RECORDED: Mapping[str, tuple[str, ...]] = {
    "reasoning": ("stability", "confidence", "hedges"),
    "samples": ("votes",),
    "rounds": ("stability", "confidence", "drafts"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StartupEvidence:
    upstreams: Mapping[str, Findings] = field(default_factory=dict)  # by name, same address only
    extracted: Mapping[str, tuple[bool, ...]] = field(default_factory=dict)  # by route, oldest first


def read_evidence(settings: Settings, *, with_runs: bool = True) -> StartupEvidence:
    """Read the results of `suffice doctor` and, unless left out, of the routes' own full runs. Raises StoreError."""
    path = log_location(settings.store)
    if not path.exists():
        return StartupEvidence()
    examined, routes = route_findings(path), settings.routes if with_runs else {}
    return StartupEvidence(
        upstreams={
            name: result
            for name, result in upstream_findings(path).items()
            if name in settings.upstreams and result.url_key == url_key(settings.upstreams[name].url)
        },
        extracted={name: extracted(path, name, route, examined) for name, route in routes.items()},
    )


def evidence_warnings(settings: Settings, evidence: StartupEvidence) -> list[str]:
    warnings = []
    for name, route in settings.routes.items():
        built = build_route(name, route, evidence)
        if route.mode == "enforce" and built.refused is not None:
            warnings.append(f"routes.{name}: behaves as observe: {built.refused}")
        reads_logprobs = built.reads("end-of-thought") or (route.kind == "samples" and built.reads("wording"))
        if reads_logprobs and not any(honoured(built.findings, way) for way in ("logprobs_stream", "line_signals")):
            why = f"no log-probabilities are requested: run suffice doctor --upstream {route.upstream}, which must see"
            ways = "logprobs_stream or, for vLLM, line_signals"
            warnings.append(f"routes.{name}: {why} {ways}; until then, what they tell is unknown")
        if route.kind == "reasoning" and route.mode != "off":
            driver = settings.upstreams[route.upstream].driver
            warnings += [f"routes.{name}: {text}" for text in _lost_forms(route, driver, built.findings)]
        if route.mode == "observe" and route.probe is not None and route.kind != "rounds" and not built.may_probe:
            warnings.append(
                f"routes.{name}.probe: no probe is sent while observing: run suffice doctor --upstream"
                f' {route.upstream}, or write verified_by = "owner" if you know that this upstream continues'
                " a text and caches prefixes"
            )
    return warnings


def _lost_forms(route: Route, driver: Driver, findings: Findings | None) -> list[str]:
    """Return which replies some ways to finish would not deliver."""
    texts = []
    requests: tuple[tuple[ReplyForm, bool, str], ...] = (
        ("tools", False, "tools"),
        ("tools", True, "a required call"),
        ("json", False, "a schema"),
    )
    for form, must_call, fields in requests:
        lost = losing_methods(driver, findings, form, must_call=must_call) if form in route.reply_forms else set()
        if must_call:
            lost -= losing_methods(driver, findings, form)
        if lost:
            ways = " and ".join(sorted(lost))
            texts.append(f"requests with {fields} are not finished by {ways}: {route.upstream} does not keep it there")
    return texts


def route_notes(settings: Settings, evidence: StartupEvidence, names: Collection[str] | None = None) -> list[str]:
    """Say, in at most three sentences a route, what its owner should know before any request.

    names  only of these routes; None: of all
    """
    notes = list[str]()
    for name, route in settings.routes.items():
        if route.mode != "off" and (names is None or name in names):
            about = (
                *(_cost_note(route), _unverified_note(route, settings, evidence)),
                _never_note(name, route, settings) or _start_note(route, settings),
            )
            notes += [f"routes.{name}: {note}" for note in about if note]
    return notes


def _cost_note(route: Route) -> str:
    if route.kind != "samples" or route.samples == 1:
        return ""
    n = f"{route.samples:,}"
    return f"asks up to {n} times a request (samples = {n}), which is about {n} times the tokens of a direct call"


def _unverified_note(route: Route, settings: Settings, evidence: StartupEvidence) -> str:
    upstream = settings.upstreams.get(route.upstream)
    if upstream is None or route.kind != "reasoning":
        return ""
    how = f"suffice doctor --upstream {route.upstream} examines it"
    if route.upstream not in evidence.upstreams:
        return f"unverified: nobody has examined upstreams.{route.upstream}, so how it ends a thought is assumed; {how}"
    if route.probe is not None and route.probe.verified_by == "owner":
        return f"unverified: that probes find a cached prefix is the owner's word (probe.verified_by); {how}"
    return ""


def _never_note(name: str, route: Route, settings: Settings) -> str:
    """Why no number of audits will certify the route; what `_promise_warnings` says of "enforce" is not repeated."""
    if route.uncertified:
        return ""
    if not 0 < route.max_em_drop < 1 or not 0 < route.confidence < 1:
        return "can never be certified: no number of audits proves a drop of exactly 0, or anything with certainty"
    if not settings.control.enabled and route.mode == "enforce":
        return "is certified only while suffice worker runs: control.enabled is false"
    if route.kind == "reasoning" and route.probe is None and route.mode == "observe":
        return f'observes at no further token; before mode = "enforce" it needs a [routes.{name}.probe] table'
    return ""


def _start_note(route: Route, settings: Settings) -> str:
    passes_through = route.kind == "samples" and route.samples == 1
    if passes_through or not route.is_replayed or not settings.control.enabled or route.promise != "certified":
        return ""
    acts = "expect" if route.mode == "enforce" else 'observes; with mode = "enforce" expect'
    return f"{acts} {describe_starts(forecast_start(route, settings.control))}"


def build_route(
    name: str, settings: Route, evidence: StartupEvidence | None = None, upstream: Upstream | None = None
) -> BuiltRoute:
    """Build a route's scorer and policy. Raises ConfigError with the route's path."""
    known = evidence or StartupEvidence()
    try:
        scorer = build_scorer(settings.scorer)
        policy = build_policy(settings.policy or {"policy": "never"})
        build_segmenter(settings.steps)
        proposer = _build_proposer(settings.probe)
    except ConfigError as error:
        raise ConfigError(f"routes.{name}.{error}") from None
    named = {need.partition("(")[0] for need in policy.needs}  # needs with parameters of their own
    recorded = (*RECORDED[settings.kind], *(("drafts",) if settings.embeddings is not None else ()))
    needs = (*dict.fromkeys(need for need in recorded if need not in named), *policy.needs)
    Observer(needs, settings.kind)  # fails here for an unknown signal, and not in a request
    built = BuiltRoute(
        name=name,
        settings=settings,
        scorer=scorer,
        serving=FixedPolicy(policy=policy, version=version_of(policy), needs=needs),  # nothing certifies yet
        proposer=proposer,
        findings=known.upstreams.get(settings.upstream),
        refused=extractability_refusal(known.extracted.get(name, ()), scorer_label(settings.scorer)),
    )
    address = "" if upstream is None else url_key(upstream.url)
    setup = route_setup(settings, scorer_label(settings.scorer), address, probes=built.may_probe)
    return replace(built, setup=setup)


def build_routes(settings: Settings, evidence: StartupEvidence) -> tuple[BuiltRoute, ...]:
    return tuple(
        build_route(name, route, evidence, settings.upstreams.get(route.upstream))
        for name, route in settings.routes.items()
    )


def _build_proposer(probe: Probe | None) -> Policy | None:
    if probe is None or not (probe.propose or probe.propose_every):
        return None
    try:
        policy = build_policy(probe.propose)
    except ConfigError as error:
        raise ConfigError(f"probe.propose: {error}") from None
    if reads_answers(policy.needs):
        raise ConfigError(
            f"probe.propose: {policy.name} reads trial answers, which only a probe gives; a policy over the signals"
            f" {', '.join(sorted(FROM_THE_STREAM))}"
        )
    return policy


def setup_of(settings: Settings, name: str) -> str:
    route, evidence = settings.routes[name], read_evidence(settings, with_runs=False)  # it depends on no run
    return build_route(name, route, evidence, settings.upstreams.get(route.upstream)).setup


def check_routes(settings: Settings) -> list[str]:
    """Build everything that needs no socket; return warnings for the owner. Raises ConfigError."""
    endpoints(settings.server.relay)
    warnings = [plugin.warning() for plugin in load_plugins() if plugin.problem is not None]
    if not settings.upstreams and not settings.routes:
        warnings.append("upstreams: none is configured, so suffice serve has nothing to serve")
    for name, upstream in settings.upstreams.items():
        try:
            driver_facts(upstream.driver)
        except ConfigError as error:
            raise ConfigError(f"upstreams.{name}.{error}") from None
    for name, route in settings.routes.items():
        warnings += _route_warnings(f"routes.{name}", name, route, settings)
    return warnings + [warning for name in settings.experiments for warning in _check_arms(settings, name)]


def _route_warnings(where: str, name: str, route: Route, settings: Settings) -> Iterator[str]:
    built, upstream = build_route(name, route), settings.upstreams.get(route.upstream)
    _check_effort(where, route, upstream)
    if route.mode == "enforce" and not built.acts and not route.certifies_itself:
        way_out = "write uncertified = true to let it act anyway"
        yield f"{where}: enforce without a certified policy behaves as observe; {way_out}"
    yield from _promise_warnings(where, route)
    if route.probe is not None and route.mode != "off" and upstream is not None and upstream.slots == 1:
        so = "so a probe is sent only while one call runs there; write how many it serves at once"
        yield f"{where}.probe: upstreams.{route.upstream} has slots = 1, {so}"
    yield from _starving(where, route, settings)
    yield from load_warnings(where, route, upstream)
    if route.kind == "samples" and route.samples == 1:
        yield f"{where}: samples = 1 passes through unless a request asks for more"


def _promise_warnings(where: str, route: Route) -> Iterator[str]:
    if route.is_owned:
        way_out = "uncertified = true lets it act at once"
        yield f"{where}: runs in full until its own audits have proved its policy; {way_out}"
    if route.promise == "budgeted":
        yield (
            f"{where}.promise: budgeted steers the mean EM drop of the audits to {100 * route.max_em_drop:g} points; it"
            " has no confidence, and says nothing about the level that is active now or about any shorter period"
        )
    if route.is_paired and route.probe is None:
        so = "no audit gets a second call, and everything runs in full"
        yield f"{where}: {' and '.join(route.arms)} cannot be proved without a [{where}.probe] table: {so}"
    if route.mode == "enforce" and route.is_replayed and route.kind == "reasoning" and route.probe is None:
        yield (
            f"{where}: is never certified without a [{where}.probe] table, since nothing shows how far a stop differs"
            " from its trial answer; everything runs in full"
        )


def _check_effort(where: str, route: Route, upstream: Upstream | None) -> None:
    problem = effort_problem(route, upstream) if upstream is not None else None
    if problem is not None:
        raise ConfigError(f"{where}.{problem}")


def check_experiment(settings: Settings, name: str) -> None:
    """Check that every arm can act on the experiment's routes. Raises ConfigError with the place."""
    for warning in _check_arms(settings, name):
        raise ConfigError(warning)


def _check_arms(settings: Settings, name: str) -> Iterator[str]:
    one = settings.experiments[name]
    for arm, table in one.arms.items():
        for route in one.routes:
            served = with_arm(settings.routes[route], find_arm(arm, table))
            try:
                build_route(route, served)
                _check_effort(f"routes.{route}", served, settings.upstreams.get(served.upstream))
            except ConfigError as error:
                raise ConfigError(f"experiments.{name}.arms.{arm}: {error}") from None
    for route in one.routes:
        mode = settings.routes[route].mode
        if mode != "enforce":
            yield f'experiments.{name}.routes: {route} is in {mode!r}, where no arm acts; write mode = "enforce"'


def _starving(where: str, route: Route, settings: Settings) -> Iterator[str]:
    all_count = route.mode == "observe" and route.probe is None
    if route.audit_share is None or not route.is_replayed or all_count:
        return
    _, usual, _ = forecast_start(route, settings.control)
    needed = start_terms(route, settings.control).audits()
    if needed < MOST_AUDITS and usual.first_stop > PATIENCE:
        long = f"for about {usual.first_stop:,.0f} requests" if isfinite(usual.first_stop) else "for good"
        yield (
            f"{where}.audit_share: at {route.audit_share:g} a cold start stays at full runs {long}: a first certificate"
            f" takes some {needed:,} audits that count at once, and the burst brings"
            f" {burst_of(route, settings.control):,}; leave it out, and audits are many until something is certified"
        )


def policy_table(source: str) -> dict[str, Any]:
    """Read a policy's table from TOML, JSON in braces, or a file, with models that it names. Raises ConfigError."""
    is_written = source.lstrip().startswith("{")
    where, folder = ("policy", Path()) if is_written else (source, Path(source).parent)
    try:
        result = _read_table(source if is_written else Path(source).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{source}: cannot be read ({error.strerror})") from None
    except (ValueError, ConfigError):  # of TOML and Unicode
        raise ConfigError(
            f"""{where}: is no table; write it as {{policy = "beta", threshold = 0.9}}, or name a TOML or JSON file"""
        ) from None
    if not isinstance(result.get("policy"), str):
        raise ConfigError(f'{where}: names no policy; a table needs policy = "NAME"')
    return dict(read_models(where, result, folder))


def _read_table(text: str) -> Mapping[str, Any]:
    if not text.lstrip().startswith("{"):
        return read_toml(text)
    with contextlib.suppress(ValueError, RecursionError):
        table: dict[str, Any] = json.loads(text)  # an object, by its brace
        return table
    inline: dict[str, Any] = read_toml(f"table = {text.strip()}")["table"]
    return inline


def check_policy(name: str, route: Route, policy: Mapping[str, Any]) -> None:
    build_route(name, msgspec.structs.replace(route, policy=dict(policy)))
