"""The versions of the database schema, whose scripts are in `sqlite.sql` and `postgres.sql`.

`events` is the only source of truth. `owners` and `leases` track live processes and their jobs; `rollups`, `rolled`,
`tallies`, `fold_states` and `watches` are caches; `artefacts` holds content-addressed objects; `chain` is the hash
chain of the audit log.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

from suffice.errors import StoreError
from suffice.store.sql import load_queries

APPLICATION_ID: Final = 0x53554646  # "SUFF": marks our files
PAGE_BYTES: Final = 8_192  # of SQLite: an outcome often takes more than half of the default 4 KiB
_LOOKS_S: Final = 0.01  # between two attempts on a new file that other processes open too
MOST_TEXT: Final = 300  # characters of what is wrong with a page
QUICK_CHECK_BYTES: Final = 64 * 2**20  # larger files are not checked at start-up

# Partial indexes over rare kinds, so that polling for new rows is cheap.
_DECISIONS: Final = (
    *("agent_planned", "alarm_raised", "enforcement_paused", "enforcement_resumed", "epoch_began", "policy_published"),
)
_REVIEWS: Final = ("review_asked", "review_drawn", "review_leased", "review_returned", "review_verdict")
_PAUSES: Final = ("enforcement_paused", "enforcement_resumed")
INDEXED_KINDS: Final[Mapping[str, tuple[str, ...]]] = {
    "decisions": _DECISIONS,
    "jobs": ("job_ran", "label_wanted"),
    "reviews": _REVIEWS,
    "holds": (*_PAUSES, "incident_decided", "incident_opened", "override_ended", "override_set"),
}


def kinds_in(kinds: Collection[str]) -> str:
    """Return the SQL condition that a row has one of these kinds, as in the partial indexes.

    For IN, SQLite would make a table of the kinds at every row that is inserted, which takes longer than the row.
    """
    return f"({' OR '.join(f'kind = {kind!r}' for kind in kinds)})"


class Migration(NamedTuple):
    """A change of the schema, whose script is named by it in each dialect's file of queries.

    On PostgreSQL, gateways of two versions run side by side during an upgrade.
    """

    version: int  # of the schema after it
    oldest: int  # version of the schema whose gateways go on working with it

    @property
    def name(self) -> str:
        return f"schema_{self.version}"


FIRST: Final = Migration(18, 18)  # an older log is refused
# After it, in order; never changed. The 22nd does all that the 21st did, which no release had.
MIGRATIONS: Final[tuple[Migration, ...]] = (Migration(19, 18), Migration(20, 18), Migration(22, 18))
VERSION: Final = MIGRATIONS[-1].version


def steps_from(version: int) -> list[Migration]:
    return [one for one in (FIRST, *MIGRATIONS) if one.version > version]


def create(connection: sqlite3.Connection, where: str) -> int:
    """Create the schema, or bring it up to this version; return how many steps ran. Raise StoreError."""
    connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")  # of a new file; an older one keeps its own
    _write_ahead(connection)
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = check_version(connection, where, may_be_older=True)
        if not version:
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        steps = steps_from(version)
        scripts = (load_queries("sqlite")[one.name].text for one in steps)
        for statement in (each for script in scripts for each in _statements(script)):
            connection.execute(statement)
        if version != VERSION:
            connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
        return len(steps)
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Switch a new file to write-ahead logging; SQLite refuses while others open it, so retry without a lock."""
    ends_s = time.monotonic() + _pragma(connection, "busy_timeout") / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= ends_s:
                raise
            time.sleep(_LOOKS_S)
        else:
            return


def check_version(connection: sqlite3.Connection, where: str, *, may_be_older: bool = False) -> int:
    """Return the schema version, 0 for an empty file. Raises StoreError for another application's file or version."""
    # One statement, so that no other process creates the log between two of these reads.
    query = (
        "SELECT user_version, application_id, (SELECT count(*) FROM sqlite_schema)"
        " FROM pragma_user_version, pragma_application_id"
    )
    version, application, n_objects = connection.execute(query).fetchone()
    if application != APPLICATION_ID and (n_objects or version):
        raise StoreError(f"store {where}: is a SQLite file of another program; name a new file")
    if FIRST.version <= version < VERSION and not may_be_older:
        raise StoreError(
            f"store {where}: has schema {version}, this version {VERSION}: run `suffice store migrate`, or start"
            " `suffice serve`"
        )
    if version and not FIRST.version <= version <= VERSION:
        age, way = ("a newer", "upgrade") if version > VERSION else ("an older", "keep the file with that version")
        raise StoreError(
            f"store {where}: has schema {version}, written by {age} version; this one reads schema {VERSION}: "
            f"{way}, or name a new file"
        )
    return int(version)


def check_pages(connection: sqlite3.Connection, where: str) -> None:
    if _pragma(connection, "page_size") * _pragma(connection, "page_count") > QUICK_CHECK_BYTES:
        return
    if verdict := find_bad_page(connection):
        raise StoreError(f"store {where}: damaged ({verdict}); restore a backup or name a new file")


def find_bad_page(connection: sqlite3.Connection, *, thorough: bool = False) -> str:
    """Return what SQLite finds wrong with its pages first; "": nothing."""
    pragma = "PRAGMA integrity_check(1)" if thorough else "PRAGMA quick_check(1)"
    verdict = " ".join(str(connection.execute(pragma).fetchone()[0]).split())
    return "" if verdict == "ok" else verdict[:MOST_TEXT]


def _statements(script: str) -> list[str]:
    statements, pending = [], ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            statements.append(pending)
            pending = ""
    return statements
