"""What everybody has to know of a deployment before anything else: killed, paused, not served, damaged."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from suffice.errors import StoreError
from suffice.store.database.presence import Presence, read_presences, switch_reason
from suffice.store.database.schema import QUICK_CHECK_BYTES
from suffice.store.database.views import connect_reader, open_reader, read_kinds
from suffice.store.routes.in_force import fold_decisions
from suffice.types import Pause

MOST_TEXT: Final = 300  # characters


def find_damage(path: Path, *, within_s: float | None = None, thorough: bool = False) -> str | None:
    """What is wrong with a log's pages; "": nothing; None: it could not be read through in time, or not at all.

    within_s  None: however long it takes. SQLite before 3.41 does not stop inside a table
    thorough  compare indexes with their tables, too: several times as slow
    """
    try:
        with contextlib.closing(connect_reader(path, one_thread=False)) as connection:
            if within_s is not None:
                end_s = time.monotonic() + within_s
                connection.set_progress_handler(lambda: time.monotonic() > end_s, 10_000)
            pragma = "PRAGMA integrity_check(1)" if thorough else "PRAGMA quick_check(1)"
            verdict = " ".join(str(connection.execute(pragma).fetchone()[0]).split())
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        return str(error)[:MOST_TEXT] if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) else None
    except UnicodeDecodeError as error:  # names in the schema
        return f"damaged names: {error.reason}"
    except (OSError, StoreError):
        return None
    return "" if verdict == "ok" else verdict[:MOST_TEXT]


def is_large(path: Path) -> bool:
    try:
        return path.stat().st_size > QUICK_CHECK_BYTES
    except OSError:
        return False


MOST_PAUSES: Final = 5  # that are named one by one
CHECK_S: Final = 0.3  # for reading a log through that no gateway has read through


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    kill_reason: str | None  # as the kill switch's file says; None: there is no such file
    pauses: tuple[Pause, ...]  # that have not ended, by route
    processes: tuple[Presence, ...]  # that serve now
    damage: str  # of the log; "": none is known

    @property
    def sentences(self) -> tuple[str, ...]:
        """What to say first, worst first; nothing where all is well."""
        damage = f"LOG DAMAGED: {self.damage}; restore a backup: what is shown may be incomplete"
        return (
            *self._killed(),
            *self._paused(),
            *(() if self.processes else ("NO GATEWAY: no process serves this log now",)),
            *((damage,) if self.damage else ()),
        )

    def _killed(self) -> tuple[str, ...]:
        if self.kill_reason is not None:
            late = [one.name for one in self.processes if not one.killed]
            waits = f" ({', '.join(late)} has not confirmed)" if late else ""
            return (f"KILLED: nothing is stopped on any route{waits}: {self.kill_reason}",)
        held = [one.name for one in self.processes if one.killed]
        return (f"KILLED: {', '.join(held)} stops nothing on any route, by its environment",) if held else ()

    def _paused(self) -> tuple[str, ...]:
        sentences = [
            f"PAUSED: route {one.route} runs in full until somebody resumes it: {one.reason} ({one.author})"
            for one in self.pauses[:MOST_PAUSES]
        ]
        if rest := [one.route for one in self.pauses[MOST_PAUSES:]]:
            sentences.append(f"PAUSED: {len(rest)} more routes: {', '.join(rest)}")
        return tuple(sentences)


def read_condition(
    path: Path, switch: Path, announced: Sequence[Path], *, routes: Collection[str], checks: bool
) -> Condition:
    """The condition of the deployment on the log at `path`. Raises nothing: what cannot be read is left out."""
    processes = read_presences(announced)
    damage = next((one.damage for one in processes if one.damage), "")
    if checks and not damage and not is_large(path):
        damage = find_damage(path, within_s=CHECK_S) or ""
    pauses: tuple[Pause, ...] = ()
    with contextlib.suppress(StoreError, sqlite3.Error), open_reader(path) as connection:
        rows = read_kinds(connection, "enforcement_paused", "enforcement_resumed")
        held = sorted(fold_decisions((stored.event for stored in rows), {}).items())
        pauses = tuple(one.pause for route, one in held if one.pause is not None and route in routes)
    return Condition(kill_reason=switch_reason(switch), pauses=pauses, processes=processes, damage=damage)
