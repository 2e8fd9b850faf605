"""`suffice policy`: which version serves a route, which one is tried, and a person's word to bring one forward or back.

Knows options and how a rollout looks; refuses to know what its evidence says (`rollout.stages`, `control.advance`).
Heavy imports stand inside the functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from suffice.cli.deciding import AUTHOR, CONFIG, JSON, REASON, date, failing_with, log_of, refused, route_of, say, who

if TYPE_CHECKING:
    from collections.abc import Sequence

    from suffice.control.advance import Looked
    from suffice.rollout.rules import Rules
    from suffice.settings import Settings
    from suffice.store.rollouts import Held


@click.group()
def policy() -> None:
    """Bring a policy into traffic in steps, on evidence, and back."""


@policy.command("list")
@CONFIG
@JSON
def list_(path: str, *, as_json: bool) -> None:
    """List what serves each route, and the rollout that runs there."""
    from suffice.store.rollouts import own_version, read_rollouts, running, serving

    with failing_with("list"), log_of(path) as (settings, writer):
        held = read_rollouts(writer.path)
        rows = list[dict[str, Any]]()
        for name, route in settings.routes.items():
            own = own_version(route).address if route.policy else None
            now = None if own is None else serving(held, name, own)
            rows.append({"route": name, "own": own, "serves": now, "rollout": _row(running(held).get(name))})
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode({"routes": rows}).decode())
        return
    for row in rows:
        click.echo(f"{row['route']}: {_serves(row)}")
        if row["rollout"] is not None:
            click.echo(f"  {_told(row['rollout'])}")
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
    from suffice.store.rollouts import read_rollouts

    with failing_with("show"), log_of(path) as (settings, writer):
        route_of(settings, route)
        mine = [one for one in read_rollouts(writer.path) if one.state.route == route]
        if not mine:
            refused("show", f"there never was a rollout on route {route}; begin one with `suffice policy propose`")
        held = mine[-1]
        looked = None if held.state.over else _look(settings, route, held, writer.path)
    if as_json:
        import msgspec

        standing = None if looked is None else msgspec.to_builtins(looked.standing)
        click.echo(msgspec.json.encode({**(_row(held) or {}), "moves": held.moves, "standing": standing}).decode())
        return
    _print(held, looked)


@policy.command()
@click.argument("before")
@click.argument("after")
@CONFIG
def diff(before: str, after: str, path: str) -> None:
    """Show in what version AFTER differs from version BEFORE, by their addresses."""
    from suffice import wiring
    from suffice.rollout.difference import diff as differences
    from suffice.store.rollouts import version_at
    from suffice.store.views import reading

    with failing_with("diff"), log_of(path) as (settings, writer), reading(writer.path) as connection:
        secret = wiring.deployment_salt(settings)
        told = differences(*(version_at(connection, one, secret=secret) for one in (before, after)))
    click.echo("\n".join(told) or "the same")


@policy.command()
@click.argument("route")
@click.argument("table")
@CONFIG
@REASON
@AUTHOR
@JSON
def propose(route: str, table: str, path: str, reason: str, author: str | None, *, as_json: bool) -> None:
    """Try another policy on ROUTE.

    TABLE is the policy as the settings write it, such as '{policy = "beta", threshold = 0.9}', or a file that holds it
    (TOML or JSON). It begins in shadow, where nobody is served by it.
    """
    import secrets

    from suffice import wiring
    from suffice.rollout.versions import Lineage, make_version
    from suffice.scoring.base import scorer_label
    from suffice.store import rollouts

    with failing_with("propose"), log_of(path) as (settings, writer):
        told = route_of(settings, route)
        own = rollouts.own_version(told)
        parent = rollouts.serving(rollouts.read_rollouts(writer.path), route, own.address)
        version = make_version(
            "policy", wiring.policy_table(table), kind=told.kind, scorer=scorer_label(told.scorer), model_family=None,
            lineage=Lineage(
                parent=parent, proposed_by=f"person:{who(author)}", why=reason, proposed_s=writer.now(),
            ),
        )  # fmt: skip
        wiring.check_policy(route, told, version.plain()["body"])
        found = rollouts.propose(
            writer, version, route=route, own=own, author=who(author), reason=reason,
            name=f"{route}-{secrets.token_hex(4)}", rules=_rules(), secret=wiring.deployment_salt(settings),
        )  # fmt: skip
    if isinstance(found, str):
        refused("propose", found)
    say(
        found.state, as_json=as_json,
        text=f"route {route}: {found.state.candidate} is tried from here on, in shadow; `suffice policy show {route}`"
        " says what is missing",
    )  # fmt: skip


def _word(command: Callable[..., None]) -> Callable[..., None]:
    """The options of a command by which a person moves a rollout."""
    for option in (JSON, AUTHOR, REASON, CONFIG, click.argument("route")):
        command = option(command)
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
    from suffice.store import rollouts

    with failing_with("rollback", again="`suffice kill` needs no database."), log_of(path) as (settings, writer):
        told = route_of(settings, route)
        runs = route in rollouts.running(rollouts.read_rollouts(writer.path))
        own = "" if runs else rollouts.own_version(told).address
        undone = None if runs else rollouts.undo(writer, route, own, author=who(author), reason=reason)
    if undone is None:
        _step("rollback", route, path=path, reason=reason, author=author, as_json=as_json)
        return
    if isinstance(undone, str):
        refused("rollback", undone)
    text = f"route {route}: {undone.first.in_force} serves again; a gateway follows within a second"
    say(undone.state, as_json=as_json, text=text)


# --------------------------------------------------------------------------- one rollout


def _step(command: str, route: str, *, path: str, reason: str, author: str | None, as_json: bool) -> None:
    """Take a person's step."""
    from suffice.store import rollouts

    with failing_with(command, again="`suffice kill` needs no database."), log_of(path) as (settings, writer):
        route_of(settings, route)
        found = rollouts.step(writer, route, command, author=who(author), reason=reason, rules=_rules())
    if isinstance(found, str):
        refused(command, found)
    told = "rolled back" if found.stage == "rolled_back" else f"{found.stage}, {found.share:.0%} of new units"
    say(found, as_json=as_json, text=f"route {route}: {told}; a gateway follows within a second")


def _look(settings: Settings, route: str, held: Held, path: Any) -> Looked:
    import time

    from suffice import wiring
    from suffice.control.advance import standing_of
    from suffice.control.matching import matching
    from suffice.store.views import reading

    with reading(path) as connection:
        return standing_of(
            connection, held, settings.routes[route], matching, _rules(), secret=wiring.deployment_salt(settings),
            now_s=time.time(),
        )  # fmt: skip


def _rules() -> Rules:
    from suffice.rollout.rules import Rules

    return Rules()


def _row(held: Held | None) -> dict[str, Any] | None:
    if held is None:
        return None
    state = held.state
    return {
        "rollout": state.rollout, "candidate": state.candidate, "in_force": state.in_force, "stage": state.stage,
        "share": state.share, "paused": state.paused, "paused_by": state.paused_by, "began_s": state.began_s,
        "author": held.author, "reason": held.reason,
    }  # fmt: skip


def _serves(row: dict[str, Any]) -> str:
    if row["own"] is None:
        return "what the control loop certifies"
    return f"{row['serves']}" + ("" if row["serves"] == row["own"] else f", in place of the settings' {row['own']}")


def _told(row: dict[str, Any]) -> str:
    held = f"; held by {row['paused_by']}: {row['paused']}" if row["paused"] else ""
    return (
        f"{row['candidate']} in {row['stage']}, {row['share']:.0%} of new units, since {date(row['began_s'])}"
        f" by {row['author']}: {row['reason']}{held}"
    )


def _print(held: Held, looked: Looked | None) -> None:
    click.echo(f"rollout {held.state.rollout} on route {held.state.route}")
    click.echo(f"  {_told(_row(held) or {})}")
    for one in held.moves:
        click.echo(f"  {date(one.now_s)}  {one.move}: {one.stage}, {one.share:.0%}; by {one.by}: {one.reason}")
    if held.undone is not None:
        click.echo(f"  taken back by {held.undone.author}: {held.undone.reason}")
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
