"""`suffice alerts`: who is told when something goes wrong, and were they?"""

from __future__ import annotations

import click

from suffice.cli.shell import CONFIG, JSON_LINES, CommandGroup, fail


@click.group(cls=CommandGroup)
def alerts() -> None:
    """Tell people when something goes wrong."""


@alerts.command()
@CONFIG
def test(path: str) -> None:
    """Send a test notice to every sink, and say what came of it.

    Exits with 1 when one did not take it, and with 2 when none is configured.
    """
    import logging
    import time

    from suffice import wiring
    from suffice.errors import ConfigError, SufficeError
    from suffice.store.database.sqlite import database_path
    from suffice.store.people.alerts import Notice
    from suffice.wiring.alerts import notifier

    logging.basicConfig(level="WARNING", format="%(levelname)s %(name)s: %(message)s")
    try:
        settings = wiring.load_settings(path)
        job = notifier(settings, database_path(settings.store.url))
        if not job.sinks:
            raise ConfigError("nobody is configured; set webhook_url_env, or email_to, under [alerts]")
    except SufficeError as error:
        fail("alerts test", error)
    notice = Notice(kind="test", route="", sentence="this is a test; nothing is wrong", same="", path="")
    failed = False
    for sink in job.sinks:
        problem = sink.tell(notice, at_s=time.time(), link=job.link(notice))
        failed = failed or problem is not None
        click.echo(f"{sink.name}: {'took it' if problem is None else f'FAILED: {problem}'}")
    raise SystemExit(1 if failed else 0)


@alerts.command("list")
@CONFIG
@click.option("-n", "n", default=20, show_default=True, type=click.IntRange(1, 10_000), help="How many.")
@JSON_LINES
def list_sent(path: str, n: int, as_json: bool) -> None:
    """Show the latest notices that were told, oldest first."""
    import msgspec

    from suffice import wiring
    from suffice.control.jobs.notify import format_notice_time, notice_headline
    from suffice.errors import SufficeError
    from suffice.store.database.sqlite import database_path
    from suffice.store.people.alerts import sent_notices

    try:
        found = sent_notices(database_path(wiring.load_deployment(path).store.url), n)
    except SufficeError as error:
        fail("alerts list", error)
    for one in found:
        line = f"{format_notice_time(one.at_s)}  {one.sink:7}  {notice_headline(one.notice)}"
        click.echo(msgspec.json.encode(one).decode() if as_json else line)
    if not found and not as_json:
        click.echo("nobody was told anything yet")
