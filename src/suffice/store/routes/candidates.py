"""What a refit proposed as a candidate of a rollout: signed, with its lineage and report card, beside what is in force.

    ProposedVersion, artefact, publication in force ──▶ learned_candidate ──▶ Candidate, or a sentence why it cannot be
    ──▶ models_of ──▶ the models of a candidate, read back
    what serves, and what served before it ──▶ take_back ──▶ the one before it, if that can still serve

A learned version is compared with what the certify loop has in force, so there must be something, certified, in the
epoch that the candidate was learned in. Everything here raises StoreError, and ConfigError for models that cannot be
read.
"""

from __future__ import annotations

from typing import Any

from suffice.errors import ConfigError
from suffice.learn.version import FoldedVersion as Models
from suffice.learn.version import load_version, read_version
from suffice.rollout.evidence import rules_of
from suffice.rollout.versions import Version, VersionLineage, VersionTarget, make_version, misfit
from suffice.scoring.base import scorer_label
from suffice.settings import Route
from suffice.store.database.decisions import Decisions, read_artefact
from suffice.store.database.views import LogReader, open_reader, select
from suffice.store.routes.in_force import InForce, read_decided
from suffice.store.routes.rollouts import (
    RolloutCandidate,
    RolloutRun,
    brought_by,
    own_version,
    read_rollouts,
    read_serving_version,
    start_candidate,
    undo,
    version_at,
)
from suffice.store.rows.records import ProposedVersion


def learned_candidate(
    connection: LogReader,
    name: str,
    route: Route,
    held: InForce,
    address: str,
    *,
    by: str,
    why: str,
    now_s: float,
) -> RolloutCandidate | str:
    """A refit's version that is to be tried on a route; a sentence where it cannot be."""
    problem = _cannot_be_compared(name, route, held)
    if problem is not None:
        return problem
    of = "route = ? AND json_extract(body, '$.proposal.address') = ? ORDER BY seq DESC LIMIT 1"
    for proposal in select(connection, ProposedVersion, of, (name, address)):
        body = read_artefact(connection, address)
        return as_candidate(name, route, held, proposal, body, by=by, why=why, now_s=now_s)
    return f"{address} was never proposed for route {name}; `suffice status` names what was"


def propose_learned(
    writer: Decisions, name: str, route: Route, address: str, *, author: str, reason: str, rollout: str, secret: str
) -> RolloutRun | str:
    """Begin a rollout of a refit's version by a person's word; a sentence where it may not begin now."""
    with open_reader(writer.path) as connection:
        held = read_decided(connection).of(name)
        one = learned_candidate(
            connection, name, route, held, address, by=f"person:{author}", why=reason, now_s=writer.now()
        )
    if isinstance(one, str):
        return one
    return start_candidate(
        writer, one, author=author, reason=reason, name=rollout, rules=rules_of(route), secret=secret
    )


def as_candidate(
    name: str,
    route: Route,
    held: InForce,
    proposal: ProposedVersion,
    body: str | None,
    *,
    by: str,
    why: str,
    now_s: float,
) -> RolloutCandidate | str:
    """The same of a proposal at hand."""
    problem, made, epoch = _cannot_be_compared(name, route, held), held.publication, held.epoch
    if problem is not None or made is None:
        return problem or ""
    if proposal.address == made.fit:
        return f"{proposal.address} is in force on route {name} already"
    if epoch is not None and proposal.read_to_seq < epoch.since_seq:
        return f"{proposal.address} was learned before epoch {epoch.number} began: {epoch.reason}"
    since, to = proposal.lineage.get("first_seq"), proposal.lineage.get("last_seq")
    version = make_version(
        "learned",
        read_version(proposal.address, body).plain(),
        kind=route.kind,
        scorer=scorer_label(route.scorer),
        # the models that the evidence in force speaks of, by the names that they give themselves
        model_family=", ".join(sorted({named or asked for asked, named, _ in made.upstream} - {""})) or "not named",
        report_card={"proposed": proposal.lineage, "card": proposal.card},
        lineage=VersionLineage(parent=None, proposed_by=by, why=why, since_seq=since, to_seq=to, proposed_s=now_s),
    )
    return RolloutCandidate(route=name, version=version, in_force=made.fit, follows=made.number, fit=proposal.address)


def models_of(version: Version) -> Models:
    """The models of a learned candidate. Raises ConfigError for what is none."""
    if version.form != "learned":
        raise ConfigError(f"version {version.address}: is a policy and no learned version")
    return load_version(version.plain()["body"])


def plain_of(connection: LogReader, address: str, *, secret: str) -> dict[str, Any]:
    """What a version is: of models that the loop has fitted, or a refit has proposed, the body alone.

    Raises ConfigError for one that is gone or is not what it was, and StoreError.
    """
    kept = _kept_at(connection, address, secret=secret)
    return {"body": kept.plain()} if isinstance(kept, Models) else kept.plain()


def _kept_at(connection: LogReader, address: str, *, secret: str) -> Models | Version:
    if address.startswith("v-"):
        return read_version(address, read_artefact(connection, address))
    return version_at(connection, address, secret=secret)


def take_back(writer: Decisions, name: str, route: Route, *, author: str, reason: str, secret: str) -> RolloutRun | str:
    """Take back the version that serves all of a route; a sentence where no rollout has brought it.

    A sentence, too, where the version before it could not serve any more: its signals are gone, or the route has
    another kind or scorer now. Nobody is better off with a version that no gateway can load.
    """
    with open_reader(writer.path) as connection:
        now = serves(connection, name, route)
        last = brought_by(read_rollouts(connection), name, now)
        problem = "" if last is None else _cannot_serve(connection, route, last.first.in_force, secret=secret)
    if problem:
        return f"{problem}; `suffice kill` lets everything run in full, and the settings may name another policy"
    return undo(writer, name, now, author=author, reason=reason)


def _cannot_serve(connection: LogReader, route: Route, address: str, *, secret: str) -> str:
    """Why what is kept under an address could not serve a route; "": it can. Raises StoreError."""
    if route.policy and own_version(route).address == address:
        return ""  # the settings hold it, and have been read
    try:
        version = _kept_at(connection, address, secret=secret)
    except ConfigError as error:
        return str(error)
    if isinstance(version, Models):
        return ""
    here = VersionTarget(kind=route.kind, scorer=scorer_label(route.scorer), model_family=version.model_family or "")
    problem = misfit(version, here)
    return "" if problem is None else f"version {address} {problem}"


def _cannot_be_compared(name: str, route: Route, held: InForce) -> str | None:
    made = held.publication
    if not route.is_learned:
        return f"route {name} serves what its owner wrote down, and nothing learned"
    if route.promise != "certified":
        return f"route {name} keeps its promise on average; nothing would certify a candidate there"
    if made is None or not made.certified or not made.fit:
        return f"nothing is certified on route {name} now, so there is nothing to compare a candidate with"
    return None


def serves(connection: LogReader, name: str, route: Route) -> str:
    """Address of what serves all of a route now; "": nothing does but the full run. Raises StoreError, ConfigError."""
    if route.policy:
        return read_serving_version(read_rollouts(connection), name, own_version(route).address)
    made = read_decided(connection).of(name).publication
    return "" if made is None else made.fit
