"""`suffice policy`: the version that serves a route, and the rollout of another one."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from suffice.cli import shell
from suffice.cli.operations import command_of
from suffice.control.compare.assessment import Assessment
from suffice.formatting import format_time
from suffice.operations.fields import ROUTE
from suffice.operations.overrides import override_route
from suffice.operations.rollouts import move_rollout
from suffice.rollout.evidence import rules_of
from suffice.rollout.versions import diff_plain
from suffice.settings import Settings
from suffice.store.database.location import log_location
from suffice.store.database.views import open_reader
from suffice.store.routes import rollouts
from suffice.store.routes.deployments import read_decided
from suffice.store.routes.rollouts import RolloutRun, plain_of, propose_learned
from suffice.wiring.evidence import read_assessment
from suffice.wiring.files import load_deployment
from suffice.wiring.keys import deployment_salt
from suffice.wiring.routes import check_policy, policy_table

_MODELS: Final = re.compile(r"v-[0-9a-f]{12}")  # the address of a refit's proposal
_NEEDS_NO_LOG: Final = "`suffice kill` needs no database."


@click.group(cls=shell.CommandGroup)
def policy() -> None:
    """Roll a policy out in steps, on evidence, and roll it back."""


@policy.command("list")
@shell.report()
def list_(settings: Settings) -> shell.CommandReply:
    """List the version that serves each route, and its running rollout."""
    path = log_location(settings.store)
    held, decided = rollouts.read_rollouts(path), read_decided(path)
    rows, running = list[dict[str, Any]](), rollouts.read_running_rollouts(held)
    for name, route in settings.routes.items():
        own = rollouts.own_version(route).address if route.policy else None
        made = decided.of(name).publication
        learned = None if made is None or not made.version else made.version
        now = learned if own is None else rollouts.read_serving_version(held, name, own)
        rollout = _plain_rollout(running[name]) if name in running else None
        rows.append({"route": name, "own": own, "serves": now, "rollout": rollout})
    lines = [line for row in rows for line in _route_lines(row)]
    return shell.CommandReply({"routes": rows}, lines or "no route: write one as [routes.NAME] in the settings")


@policy.command()
@click.argument("route")
@shell.report()
def show(settings: Settings, route: str) -> shell.CommandReply:
    """Show the running rollout of ROUTE, or else the latest: its state, its evidence and what is missing."""
    shell.find_settings(settings, route)
    path = log_location(settings.store)
    mine = [one for one in rollouts.read_rollouts(path) if one.state.route == route]
    if not mine:
        shell.fail(f"route {route} has had no rollout; `suffice policy propose` starts one", 1)
    held = mine[-1]
    assessment = None if held.state.over else read_assessment(settings, held)
    standing = None if assessment is None else msgspec.to_builtins(assessment.standing)
    plain = {**_plain_rollout(held), "moves": held.moves, "standing": standing}
    return shell.CommandReply(plain, _rollout_lines(held, assessment))


@policy.command()
@click.argument("before")
@click.argument("after")
@shell.CONFIG
def diff(before: str, after: str, path: Path) -> None:
    """Show how version AFTER differs from version BEFORE, by their addresses."""
    settings = load_deployment(path)
    secret = deployment_salt(settings)
    with open_reader(log_location(settings.store)) as connection:
        old, new = (plain_of(connection, one, secret=secret) for one in (before, after))
    shared = old.keys() & new.keys()  # models that are no version yet have only the body
    result = diff_plain(*({key: value for key, value in one.items() if key in shared} for one in (old, new)))
    click.echo("\n".join(result) or "the same")


@policy.command()
@click.argument("route")
@click.argument("candidate")
@shell.decision()
def propose(by: shell.PendingDecision, route: str, candidate: str) -> shell.CommandReply:
    """Start a rollout of another version on ROUTE.

    CANDIDATE is the address of a refit's proposal, such as v-0123456789ab (`suffice status` names it), on a route
    that learns; else a policy as in the settings, such as '{policy = "beta", threshold = 0.9}', or a file that
    holds it (TOML or JSON). It starts in shadow, where it serves nobody.
    """
    begin = propose_learned if _MODELS.fullmatch(candidate) else _propose_policy
    name, secret = f"{route}-{secrets.token_hex(4)}", deployment_salt(by.settings)
    begun = begin(by.writer, route, by.rules(route), candidate, **by.signed, rollout=name, secret=secret)
    state = shell.accepted(begun).state
    hint = f"`suffice policy show {route}` shows what is missing"
    return shell.CommandReply(state, f"route {route}: {state.candidate} is now being tried in shadow; {hint}")


def _propose_policy(
    writer: Any, name: str, route: Any, table: str, *, author: str, reason: str, rollout: str, secret: str
) -> RolloutRun | str:
    if route.is_owned:
        return (
            f"route {name} acts by the proof of its own policy, and a candidate would have none: it would serve no"
            " requests. Write the other policy into the settings, where it is proved in its turn, or uncertified = true"
            " to try versions without a proof"
        )
    held = rollouts.read_rollouts(writer.path)
    own = rollouts.own_version(route)
    now_s = writer.now()
    lineage = rollouts.lineage_of(f"person:{author}", reason, now_s)
    version = rollouts.proposed_version(held, name, route, policy_table(table), lineage)
    check_policy(name, route, version.plain()["body"])
    one = rollouts.own_candidate(held, version, route=name, own=own)
    if isinstance(one, str):
        return one
    rules = rules_of(route)
    return rollouts.start_candidate(writer, one, author=author, reason=reason, name=rollout, rules=rules, secret=secret)


for name, what in {
    "promote": "Take the next step of ROUTE's rollout regardless of its evidence; your name is recorded.",
    "hold": "Hold ROUTE's rollout where it is; harm still rolls it back.",
    "release": "Resume ROUTE's rollout after a hold.",
    "rollback": "Roll ROUTE back: end the running rollout, or take back the version of the last one.",
}.items():
    fields, move = {"route": ROUTE}, partial(move_rollout.do, move=name)
    named = replace(move_rollout, fields=fields, commands=(f"policy {name}",), do=move)
    policy.add_command(command_of(named, help_text=what, retry_hint=_NEEDS_NO_LOG))

_PUBLICATION: Final = replace(override_route.fields["publication"], required=True)
_PIN: Final = replace(
    override_route,
    fields={"route": ROUTE, "publication": _PUBLICATION, "days": override_route.fields["days"]},
    commands=("policy pin",),
    do=partial(override_route.do, kind="pin"),
)
_PINS: Final = "Serve PUBLICATION of ROUTE until a date, as far as it is certified there now."
policy.add_command(command_of(_PIN, help_text=_PINS, needs=("days",)))


def _plain_rollout(held: RolloutRun) -> dict[str, Any]:
    names = ("rollout", "candidate", "active", "stage", "fit", "level", "share", "paused", "paused_by", "began_s")
    state = {name: getattr(held.state, name) for name in names}
    return {**state, "author": held.author, "reason": held.reason}


def _route_lines(row: dict[str, Any]) -> list[str]:
    own, serves = row["own"], row["serves"]
    if own is None:
        now = f"what the control loop certifies: {serves or 'nothing yet, so all runs in full'}"
    else:
        now = serves if serves == own else f"{serves}, in place of the settings' {own}"
    return [f"{row['route']}: {now}", *([f"  {_describe(row['rollout'])}"] if row["rollout"] else [])]


def _describe(rollout: dict[str, Any]) -> str:
    held = f"; held by {rollout['paused_by']}: {rollout['paused']}" if rollout["paused"] else ""
    fit = f" ({rollout['fit']}, level {rollout['level']} may act)" if rollout["fit"] else ""
    return (
        f"{rollout['candidate']}{fit} in {rollout['stage']}, {rollout['share']:.0%} of new units,"
        f" since {format_time(rollout['began_s'])} by {rollout['author']}: {rollout['reason']}{held}"
    )


def _rollout_lines(held: RolloutRun, assessment: Assessment | None) -> Iterator[str]:
    yield f"rollout {held.state.rollout} on route {held.state.route}"
    yield f"  {_describe(_plain_rollout(held))}"
    for one in held.moves:
        yield f"  {format_time(one.now_s)}  {one.sentence}; by {one.by}: {one.reason}"
    if held.undone is not None:
        yield f"  taken back by {held.undone.author}: {held.undone.reason}"
    if assessment is None:
        return
    standing, evidence = assessment.standing, assessment.evidence
    missing = "; ".join(standing.missing) or "everything is there for the next step"
    yield f"  {standing.word}: {standing.ends or standing.broken or missing}"
    yield (
        f"  {assessment.at:,} requests, {evidence.n_audits:,} audits, {evidence.n_candidate:,} units of the"
        f" candidate, {evidence.n_control:,} of its control"
    )
    for reading in standing.readings:
        yield f"  {reading.sentence}"
