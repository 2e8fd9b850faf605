"""`suffice policy`: which version serves a route, and the rollout of another one."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import click
import msgspec

from suffice.cli.shell import (
    AUTHOR,
    CONFIG,
    JSON,
    REASON,
    CommandGroup,
    find_settings,
    log_of,
    nothing_written,
    option,
    print_json,
    print_line,
    refused,
    say,
    who,
)
from suffice.control.compare.assessment import Assessment, standing_of
from suffice.control.evidence.scorers import matching
from suffice.formatting import format_time
from suffice.review.decide import OverrideForm
from suffice.rollout.effects import diff_plain
from suffice.rollout.evidence import rules_of
from suffice.settings import Route, Settings
from suffice.store.database.decisions import Decisions
from suffice.store.database.views import open_reader
from suffice.store.people.deciding import set_override
from suffice.store.routes import rollouts
from suffice.store.routes.candidates import plain_of, propose_learned, take_back
from suffice.store.routes.in_force import read_decided
from suffice.store.routes.rollouts import (
    RolloutRun,
    own_version,
    read_rollouts,
    read_running_rollouts,
    read_serving_version,
)
from suffice.wiring.keys import deployment_salt
from suffice.wiring.routes import check_policy, policy_table, setup_of

_MODELS: Final = re.compile(r"v-[0-9a-f]{12}")  # the address of what a refit has proposed


@click.group(cls=CommandGroup)
def policy() -> None:
    """Roll a policy out in steps, on evidence, and roll it back."""


@policy.command("list")
@CONFIG
@JSON
def list_(path: str, *, as_json: bool) -> None:
    """List what serves each route, and the rollout that runs there."""
    with log_of(path) as (settings, writer):
        held, decided = read_rollouts(writer.path), read_decided(writer.path)
        rows = list[dict[str, Any]]()
        for name, route in settings.routes.items():
            own = own_version(route).address if route.policy else None
            made = decided.of(name).publication
            learned = None if made is None or not made.version else made.version
            now = learned if own is None else read_serving_version(held, name, own)
            rows.append(
                {"route": name, "own": own, "serves": now, "rollout": _row(read_running_rollouts(held).get(name))}
            )
    if as_json:
        print_json({"routes": rows})
        return
    for row in rows:
        click.echo(f"{row['route']}: {_serves(row)}")
        if row["rollout"] is not None:
            print_line(f"  {_told(row['rollout'])}")
    if not rows:
        click.echo("no route: write one as [routes.NAME] in the settings")


@policy.command()
@click.argument("route")
@CONFIG
@JSON
def show(route: str, path: str, *, as_json: bool) -> None:
    """Show the rollout of ROUTE: where it stands, what its evidence says and what is missing.

    Where none runs, its latest one is shown.
    """
    with log_of(path) as (settings, writer):
        find_settings(settings, route)
        mine = [one for one in read_rollouts(writer.path) if one.state.route == route]
        if not mine:
            refused(f"there never was a rollout on route {route}; `suffice policy propose` begins one")
        held = mine[-1]
        looked = None if held.state.over else _look(settings, route, held, writer.path)
    if as_json:
        standing = None if looked is None else msgspec.to_builtins(looked.standing)
        print_json({**(_row(held) or {}), "moves": held.moves, "standing": standing})
        return
    _print(held, looked)


@policy.command()
@click.argument("before")
@click.argument("after")
@CONFIG
def diff(before: str, after: str, path: str) -> None:
    """Show in what version AFTER differs from version BEFORE, by their addresses."""
    with log_of(path) as (settings, writer), open_reader(writer.path) as connection:
        secret = deployment_salt(settings)
        old, new = (plain_of(connection, one, secret=secret) for one in (before, after))
    shared = old.keys() & new.keys()  # of models that are no version yet there is the body alone
    result = diff_plain(*({key: value for key, value in one.items() if key in shared} for one in (old, new)))
    click.echo("\n".join(result) or "the same")


@policy.command()
@click.argument("route")
@click.argument("candidate")
@CONFIG
@REASON
@AUTHOR
@JSON
def propose(route: str, candidate: str, path: str, reason: str, author: str | None, *, as_json: bool) -> None:
    """Try another version on ROUTE.

    CANDIDATE is the address of what a refit proposed, such as v-0123456789ab (`suffice status` names it), on a route
    that learns; else a policy as the settings write it, such as '{policy = "beta", threshold = 0.9}', or a file that
    holds it (TOML or JSON). It begins in shadow, where nobody is served by it.
    """
    with log_of(path) as (settings, writer):
        rules, by, secret = find_settings(settings, route), who(author), deployment_salt(settings)
        begin = propose_learned if _MODELS.fullmatch(candidate) else _propose_policy
        name = f"{route}-{secrets.token_hex(4)}"
        result = begin(writer, route, rules, candidate, author=by, reason=reason, rollout=name, secret=secret)
    if isinstance(result, str):
        refused(result)
    say(
        result.state,
        as_json=as_json,
        text=f"route {route}: {result.state.candidate} is tried from here on, in shadow; `suffice policy show {route}`"
        " says what is missing",
    )


def _propose_policy(
    writer: Decisions, name: str, route: Route, table: str, *, author: str, reason: str, rollout: str, secret: str
) -> RolloutRun | str:
    if route.is_owned:
        return (
            f"route {name} acts by the proof of its own policy, and a candidate would have none: nobody would be served"
            " by it. Write the other policy into the settings, where it is proved in its turn, or uncertified = true to"
            " try versions without a proof"
        )
    held, own = rollouts.read_rollouts(writer.path), rollouts.own_version(route)
    version = rollouts.proposed_version(
        held, name, route, policy_table(table), author=author, why=reason, now_s=writer.now()
    )
    check_policy(name, route, version.plain()["body"])
    one = rollouts.own_candidate(held, version, route=name, own=own)
    if isinstance(one, str):
        return one
    return rollouts.start_candidate(
        writer, one, author=author, reason=reason, name=rollout, rules=rules_of(route), secret=secret
    )


def _word(command: Callable[..., None]) -> Callable[..., None]:
    for add in (JSON, AUTHOR, REASON, CONFIG, click.argument("route")):
        command = add(command)
    return command


@policy.command()
@_word
def promote(route: str, **said: Any) -> None:
    """Take the next step of ROUTE's rollout, whatever its evidence says; your name stands on it."""
    _step("promote", route, **said)


@policy.command()
@_word
def hold(route: str, **said: Any) -> None:
    """Hold ROUTE's rollout where it is; harm still sends it back."""
    _step("hold", route, **said)


@policy.command()
@_word
def release(route: str, **said: Any) -> None:
    """Let ROUTE's rollout go on where it is held."""
    _step("release", route, **said)


@policy.command()
@_word
def rollback(route: str, path: str, reason: str, author: str | None, *, as_json: bool) -> None:
    """Go back on ROUTE: end the rollout that runs, or take back what the last one brought."""
    with nothing_written("`suffice kill` needs no database."), log_of(path) as (settings, writer):
        rules = find_settings(settings, route)
        runs = route in rollouts.read_running_rollouts(rollouts.read_rollouts(writer.path))
        undone = (
            None
            if runs
            else take_back(writer, route, rules, author=who(author), reason=reason, secret=deployment_salt(settings))
        )
    if undone is None:
        _step("rollback", route, path=path, reason=reason, author=author, as_json=as_json)
        return
    if isinstance(undone, str):
        refused(undone)
    text = f"route {route}: {undone.first.in_force} serves again; running gateways follow within a second"
    say(undone.state, as_json=as_json, text=text)


@policy.command()
@click.argument("route")
@click.argument("publication", type=click.IntRange(1))
@option("--days", type=float, required=True, metavar="D", help="Until it ends by itself: at most 30.")
@CONFIG
@REASON
@AUTHOR
@JSON
def pin(
    route: str, publication: int, days: float, path: str, reason: str, author: str | None, *, as_json: bool
) -> None:
    """Serve what PUBLICATION of ROUTE put in force, until a date, as far as it is certified there now."""
    with log_of(path) as (settings, writer):
        rules = find_settings(settings, route)
        wanted = OverrideForm(kind="pin", reason=reason, author=who(author), days=days)
        override = set_override(
            writer,
            route,
            rules,
            wanted,
            now_s=time.time(),
            publication=publication,
            setup=setup_of(settings, route),
        )
    if isinstance(override, str):
        refused(override)
    say(override, as_json=as_json, text=f"route {route}: {override.after}, until {format_time(override.expires_at_s)}")


# --------------------------------------------------------------------------- one rollout


def _step(command: str, route: str, *, path: str, reason: str, author: str | None, as_json: bool) -> None:
    again = "`suffice kill` needs no database."
    with nothing_written(again), log_of(path) as (settings, writer):
        find_settings(settings, route)
        result = rollouts.step(writer, route, command, author=who(author), reason=reason)
    if isinstance(result, str):
        refused(result)
    sentence = "rolled back" if result.stage == "rolled_back" else f"{result.stage}, {result.share:.0%} of new units"
    say(result, as_json=as_json, text=f"route {route}: {sentence}; running gateways follow within a second")


def _look(settings: Settings, route: str, held: RolloutRun, path: Any) -> Assessment:
    with open_reader(path) as connection:
        return standing_of(
            connection,
            held,
            settings.routes[route],
            settings.control,
            matching,
            secret=deployment_salt(settings),
            now_s=time.time(),
        )


def _row(held: RolloutRun | None) -> dict[str, Any] | None:
    if held is None:
        return None
    state = held.state
    return {
        "rollout": state.rollout,
        "candidate": state.candidate,
        "in_force": state.in_force,
        "stage": state.stage,
        "fit": state.fit,
        "level": state.level,
        "share": state.share,
        "paused": state.paused,
        "paused_by": state.paused_by,
        "began_s": state.began_s,
        "author": held.author,
        "reason": held.reason,
    }


def _serves(row: dict[str, Any]) -> str:
    if row["own"] is None:
        return f"what the control loop certifies: {row['serves'] or 'nothing yet, so all runs in full'}"
    return f"{row['serves']}" + ("" if row["serves"] == row["own"] else f", in place of the settings' {row['own']}")


def _told(row: dict[str, Any]) -> str:
    held = f"; held by {row['paused_by']}: {row['paused']}" if row["paused"] else ""
    fit = f" ({row['fit']}, level {row['level']} may act)" if row["fit"] else ""
    return (
        f"{row['candidate']}{fit} in {row['stage']}, {row['share']:.0%} of new units,"
        f" since {format_time(row['began_s'])}"
        f" by {row['author']}: {row['reason']}{held}"
    )


def _print(held: RolloutRun, looked: Assessment | None) -> None:
    click.echo(f"rollout {held.state.rollout} on route {held.state.route}")
    print_line(f"  {_told(_row(held) or {})}")
    for one in held.moves:
        what = f"level {one.level} may act" if one.move == "certify" else f"{one.stage}, {one.share:.0%}"
        print_line(f"  {format_time(one.now_s)}  {one.move}: {what}; by {one.by}: {one.reason}")
    if held.undone is not None:
        print_line(f"  taken back by {held.undone.author}: {held.undone.reason}")
    if looked is None:
        return
    standing = looked.standing
    click.echo(f"  {standing.word}: {standing.ends or standing.broken or _missing(standing.missing)}")
    click.echo(
        f"  {looked.at:,} requests, {looked.evidence.n_audits:,} audits, {looked.evidence.n_candidate:,} units of the"
        f" candidate, {looked.evidence.n_control:,} of its control"
    )
    for reading in standing.readings:
        click.echo(f"  {reading.sentence}")


def _missing(missing: Sequence[str]) -> str:
    return "; ".join(missing) or "everything is there for the next step"
