"""What the last-good file says is in force, for whoever asks while the log cannot be read.

Knows the file and how a person reads it; refuses to know why the log cannot be read.
"""

from __future__ import annotations

import time

from suffice.cli.deciding import format_time
from suffice.cli.inspect.held import override_words
from suffice.errors import ConfigError
from suffice.gateway.last_good import GoodRoute, LastGood
from suffice.sanitize import printable
from suffice.settings import Settings
from suffice.wiring import good_file, last_good


def last_words(settings: Settings, route: str | None = None) -> list[str]:
    try:
        good = last_good(settings)
    except (ConfigError, OSError) as error:
        return [f"and the last-good file says nothing: {error}"]
    if good is None:
        return []
    now_s = time.time()
    named = {name: one for name, one in good.routes.items() if route in (None, name)}
    width = max(map(len, named), default=0)
    return [_when(settings, good, now_s), *(f"  {name:<{width}}  {_served(one, now_s)}" for name, one in named.items())]


def _when(settings: Settings, good: LastGood, now_s: float) -> str:
    until_s = good.at_s + settings.store.last_good_s
    serves = (
        f"may be served until {format_time(until_s)}"
        if now_s < until_s
        else "is too old to be served: all runs in full"
    )
    return f"{good_file(settings)} says what was in force at {format_time(good.at_s)}, and {serves}"


def _served(one: GoodRoute, now_s: float) -> str:
    held, made = one.held, one.held.publication
    said = [] if one.refused is None else [f"behaves as observe: {one.refused}"]
    if held.pause is not None:
        said.append(f"PAUSED by {held.pause.author}: {held.pause.reason}")
    elif made is not None and held.level:
        proved = "certified" if made.certified else "budgeted"
        said.append(f"{proved}, level {held.level} of {made.n_levels - 1}, publication {made.number}")
    elif one.standing is not None:
        said.append(f"the policy that a rollout brought: {one.standing.get('policy')}")
    else:
        said.append("no level is in force")
    return printable("; ".join((*said, *override_words(one.overrides, now_s))))
