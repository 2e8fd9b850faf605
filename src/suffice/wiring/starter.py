"""The first settings of a newcomer: a server that is observed, at no extra call and no extra token."""

from __future__ import annotations

import json
from typing import Final

from suffice.settings import Driver

ROUTE: Final = "chat"
UPSTREAM: Final = "local"

_STARTER: Final = """\
# Suffice observes: clients get the server's own answers, and no call and no token is added. All settings, with
# their defaults: suffice config show. What each one means: docs/reference/settings.md

{upstream}{key}
[routes.{route}]                       # all chat requests; a `match` table would choose some of them
upstream = "{name}"
kind = "reasoning"                 # one thought that may end early; also "samples" (votes) and "rounds" (loops)
mode = "observe"                   # "enforce" stops runs, once audits have proved that max_em_drop is kept
scorer = "{scorer}"                  # how answers are read and compared: text, number, choice, math, json, ...
policy = {{ policy = "stable-answer", streak = 4 }}   # would stop once the answer has not changed for 4 steps
max_em_drop = 0.02                 # you would accept 2 points of Exact Match ...
confidence = 0.95                  # ... with this confidence

# For "enforce": short extra calls ask for the answer so far, which is what a certificate rests on.
# [routes.{route}.probe]

[server]
host = "127.0.0.1"                 # this machine only; others need keys: suffice key --help
port = 8400

[store]
url = "sqlite:///suffice.db"       # the log; its secrets lie beside it, suffice.salt and suffice.people
"""


def upstream_table(url: str, driver: Driver | None) -> str:
    """Return the table of a server of which no more is known than its driver."""
    return f'[upstreams.{UPSTREAM}]\nurl = {json.dumps(url)}\ndriver = "{driver or "openai"}"\n'


def starter_settings(upstream: str, *, api_key_env: str = "", scorer: str = "text") -> str:
    """Return a complete settings file.

    upstream  the table [upstreams.local], as `upstream_table` or the doctor's recommendation writes it
    """
    key = f"api_key_env = {json.dumps(api_key_env)}\n"
    if not api_key_env:
        key = '# api_key_env = "MY_KEY"         # variable with its key; without it each client\'s own is passed on\n'
    return _STARTER.format(upstream=upstream, key=key, name=UPSTREAM, route=ROUTE, scorer=scorer)
