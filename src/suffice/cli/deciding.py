"""What commands by which people decide have in common: whose word it is, on which log, and what a failure says.

Nothing is imported here that `--help` would have to wait for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import click

from suffice.cli import shell

if TYPE_CHECKING:
    from suffice.settings import Route, Settings
    from suffice.store.database.decisions import Decisions

CONFIG = shell.CONFIG
REASON = click.option("--reason", required=True, help="Why; it stays in the log.")
AUTHOR = click.option("--author", default=None, help="Who decides. [default: the user of this computer]")
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def who(author: str | None) -> str:
    """Whose word it is."""
    import getpass

    return author or getpass.getuser()


@contextmanager
def failing_with(command: str, *, again: str = "") -> Iterator[None]:
    """A block whose failures end the command with 2 and one sentence.

    again  what to do once it works again; nothing was written
    """
    from suffice.errors import StoreError, SufficeError

    try:
        yield
    except StoreError as error:
        shell.fail(command, f"{error}\nNothing was written. {again}" if again else error)
    except (SufficeError, OSError) as error:
        shell.fail(command, error)


@contextmanager
def log_of(path: str) -> Iterator[tuple[Settings, Decisions]]:
    """The settings in a file, and their log open for a person's decisions. Raises ConfigError and StoreError."""
    from suffice import wiring

    settings = wiring.load_settings(path)
    with wiring.decisions(settings) as writer:
        yield settings, writer


def route_of(settings: Settings, name: str, *, option: str = "") -> Route:
    """A route's settings. Raises ConfigError for one that does not exist.

    option  by which it was named, such as --route; "": as an argument
    """
    from suffice.errors import ConfigError

    if name not in settings.routes:
        known = ", ".join(sorted(settings.routes)) or "none is configured"
        raise ConfigError(f"{option}{': ' if option else ''}unknown route {name!r}; known: {known}")
    return settings.routes[name]


def setup_of(settings: Settings, name: str) -> str:
    """What a route's evidence rests on as its settings stand, so that a pin of other settings is refused."""
    from suffice import wiring

    route = settings.routes[name]
    return wiring.build_route(
        name, route, wiring.read_evidence(settings), settings.upstreams.get(route.upstream)
    ).setup


def refused(command: str, why: str) -> NoReturn:
    """It cannot be done as it was asked for: say why, and end with 1."""
    shell.fail(command, why, 1)


def say(found: Any, *, as_json: bool, text: str) -> None:
    """Print a record as JSON, or a sentence. Any: a dataclass."""
    if not as_json:
        click.echo(text)
        return
    import msgspec

    click.echo(msgspec.json.encode(found).decode())


def date(at_s: float | None) -> str:
    """A time for people, in UTC; "never" where there is none."""
    from datetime import UTC, datetime

    return "never" if at_s is None else datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
