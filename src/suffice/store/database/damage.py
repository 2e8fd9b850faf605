"""Are the pages of a log what SQLite wrote? A gateway goes on serving on a damaged log, so somebody has to look."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path
from typing import Final

from suffice.errors import StoreError
from suffice.store.database.schema import QUICK_CHECK_BYTES
from suffice.store.database.views import connect_reader

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
    """Is the log too large to be read through before anything else is done with it?"""
    try:
        return path.stat().st_size > QUICK_CHECK_BYTES
    except OSError:
        return False
