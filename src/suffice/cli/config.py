"""`suffice config`: check a settings file before it is used, and see what it means."""

from __future__ import annotations

import click


@click.group()
def config() -> None:
    """Check a settings file, or show it with all defaults."""


@config.command("check")
@click.argument("path", default="suffice.toml")
def check(path: str) -> None:
    """Build everything the file describes, beside what the log says; exit 2 and say where when it cannot work."""
    from suffice import wiring
    from suffice.errors import SufficeError
    from suffice.plugins import load_plugins

    try:
        settings = wiring.load_settings(path)
        warnings = wiring.check(settings)
        warnings += wiring.evidence_warnings(settings, wiring.read_evidence(settings))
    except SufficeError as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None
    for plugin in load_plugins():
        if plugin.problem is None:
            click.echo(f"plug-in: {plugin.group} {plugin.name} from {plugin.package}")
    for warning in warnings:
        click.echo(f"warning: {warning}")
    click.echo(f"{path}: ok")


@config.command("show")
@click.argument("path", default="suffice.toml")
def show(path: str) -> None:
    """Print all settings as JSON, defaults filled in; secrets are never in them. A learned model is its address."""
    import msgspec

    from suffice.errors import SufficeError
    from suffice.wiring import load_settings
    from suffice.wiring.audit import with_addresses

    try:
        settings = load_settings(path)
    except SufficeError as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None
    plain = with_addresses(msgspec.to_builtins(settings))
    click.echo(msgspec.json.format(msgspec.json.encode(plain), indent=2).decode())

