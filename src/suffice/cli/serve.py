"""`suffice serve`: the gateway as a process."""

from __future__ import annotations

import click

FIRST = """The console's admin secret, shown once and kept as a hash only:

    {secret}

Open /console on the address below and log in with it. Lost it? suffice admin reset-secret makes another one.
"""


@click.command()
@click.option("--config", "path", default="suffice.toml", show_default=True, help="Settings, TOML or YAML.")
@click.option("--host", default=None, help="Address to listen on; overrides the settings.")
@click.option("--port", type=int, default=None, help="Port to listen on; 0 picks a free one.")
@click.option("--log-level", default="info", type=click.Choice(["debug", "info", "warning", "error"]))
def serve(path: str, host: str | None, port: int | None, log_level: str) -> None:
    """Serve the OpenAI-compatible gateway until it is told to end."""
    import logging

    from suffice.errors import SufficeError
    from suffice.server import run
    from suffice.wiring import decisions, load_settings
    from suffice.wiring.people import ADMIN, People, access_changed

    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        settings = load_settings(path)
        secret = People.of(settings).first() if settings.console.enabled else None
        if secret is not None:
            click.echo(FIRST.format(secret=secret), err=True)
            with decisions(settings) as writer:
                writer.write(None, [access_changed(People.of(settings), ADMIN, "added")])
        run(settings, host=host, port=port)
    except SufficeError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"cannot listen: {error.strerror or error}") from None
