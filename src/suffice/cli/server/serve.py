"""`suffice serve`: the gateway as a process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from suffice.cli.shell import CONFIG, INSECURE_OPEN, fail

if TYPE_CHECKING:
    from suffice.settings import Settings

FIRST = """The console's admin secret, shown once and kept as a hash only:

    {secret}

Open /console on the address below and log in with it. Lost it? suffice admin reset-secret makes another one.
"""


@click.command()
@CONFIG
@click.option("--host", default=None, help="Address to listen on; overrides the settings.")
@click.option("--port", type=int, default=None, help="Port to listen on; 0 picks a free one.")
@click.option(
    "--log-level",
    default="info",
    show_default=True,
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="How much is told on standard error; debug may quote what clients sent.",
)
@click.option("--no-access-log", is_flag=True, help="Leave out the line for each request.")
@INSECURE_OPEN
def serve(
    path: str, host: str | None, port: int | None, log_level: str, no_access_log: bool, insecure_open: bool
) -> None:
    """Serve the OpenAI-compatible gateway until it is told to end."""
    import logging

    from suffice.cli.server.logs import BackgroundHandler
    from suffice.errors import SufficeError
    from suffice.server import run_server
    from suffice.telemetry import ACCESS
    from suffice.wiring import load_settings

    logging.basicConfig(
        level=log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        handlers=[BackgroundHandler()],
    )
    if no_access_log:
        ACCESS.setLevel("WARNING")
    try:
        settings = load_settings(path)
        # Nobody is made in the place of those who come back with their folder.
        makes_admin = settings.console.enabled and _people_folder_exists(settings)

        def listening(url: str, console_url: str) -> None:
            if makes_admin:
                _show_first_secret(settings)
            pages = f", with the console on {console_url}/console" if settings.console.enabled else ""
            # Whatever the level of the log: people open that address, and programs wait for it.
            click.echo(f"suffice is listening on {url}/v1{pages}", err=True)

        run_server(settings, listening=listening, host=host, port=port, insecure_open=insecure_open)
    except SufficeError as error:
        fail("serve", error)
    except OSError as error:
        fail("serve", error.strerror or error)


def _people_folder_exists(settings: Settings) -> bool:
    from suffice.wiring.people import People

    return People.of(settings).file.parent.is_dir()


def _show_first_secret(settings: Settings) -> None:
    """At the first run, make an admin and show the secret. A gateway serves without its log or its people, too."""
    from suffice.errors import SufficeError
    from suffice.telemetry import LOG
    from suffice.wiring import open_decisions
    from suffice.wiring.people import ADMIN, People, access_changed

    try:
        secret = People.of(settings).first()
        if secret is None:
            return
        click.echo(FIRST.format(secret=secret), err=True)
        with open_decisions(settings) as writer:
            writer.write(None, [access_changed(People.of(settings), ADMIN, "added")])
    except SufficeError as error:
        LOG.warning("the new admin could not be written down: %s", error)
