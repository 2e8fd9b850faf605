"""`suffice serve`: the gateway as a process."""

from __future__ import annotations

from collections.abc import Callable

import click

from suffice.cli.shell import CONFIG, fail

FIRST = """The console's admin secret, shown once and kept as a hash only:

    {secret}

Open /console on the address below and log in with it. Lost it? suffice admin reset-secret makes another one.
"""


@click.command()
@CONFIG
@click.option("--host", default=None, help="Address to listen on; overrides the settings.")
@click.option("--port", type=int, default=None, help="Port to listen on; 0 picks a free one.")
@click.option(
    "--log-level", default="info", show_default=True, type=click.Choice(["debug", "info", "warning", "error"]),
    help="How much is told on standard error; debug may quote what clients sent.",
)  # fmt: skip
def serve(path: str, host: str | None, port: int | None, log_level: str) -> None:
    """Serve the OpenAI-compatible gateway until it is told to end."""
    import logging

    from suffice.errors import StoreError, SufficeError
    from suffice.server import run
    from suffice.wiring import decisions, load_settings
    from suffice.wiring.people import ADMIN, People, access_changed

    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        settings = load_settings(path)
        people = People.of(settings)
        # Nobody is made in the place of those who come back with their folder.
        secret = people.first() if settings.console.enabled and people.file.parent.is_dir() else None
        if secret is not None:
            click.echo(FIRST.format(secret=secret), err=True)
            try:
                with decisions(settings) as writer:
                    writer.write(None, [access_changed(People.of(settings), ADMIN, "added")])
            except StoreError as error:  # a gateway serves without its log, too
                logging.getLogger("suffice").warning("the new admin could not be written down: %s", error)
        run(settings, listening=_told(settings.console.enabled), host=host, port=port)
    except SufficeError as error:
        fail("serve", error)
    except OSError as error:
        place = f"{host or settings.server.host}:{settings.server.port if port is None else port}"
        fail("serve", f"cannot listen on {place}: {error.strerror or error}")


def _told(has_console: bool) -> Callable[[str], None]:
    """Says where it listens, whatever the level of the log: people open that address, and programs wait for it."""

    def tell(url: str) -> None:
        pages = f", with the console on {url}/console" if has_console else ""
        click.echo(f"suffice is listening on {url}/v1{pages}", err=True)

    return tell
