"""The database schema: one script, and views for any SQL tool.

`events` is the only source of truth. `owners` and `leases` track live processes and their jobs; `rollups`, `rolled`,
`tallies`, `fold_states` and `watches` are caches; `artefacts` holds content-addressed objects; `chain` is the hash
chain of the audit log.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

from msgspec.structs import fields

from suffice.errors import StoreError
from suffice.store.rows.sums import RollupSums
from suffice.store.sql import PostgresConnection, has_table

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


def _columns(body: str, *fields: str) -> str:
    """Return view columns named by their JSON paths; after a bar, the default of rows older than the field."""
    columns = list[str]()
    for path, _, absent in (field.partition("|") for line in fields for field in line.split()):
        value = f"json_extract({body}.{path}')"
        name = path.rpartition(".")[2]
        columns.append(f"coalesce({value}, {absent}) AS {name}" if absent else f"{value} AS {name}")
    return ",\n        ".join(columns)


_REQUESTS = _columns(
    "body, '$.request",
    "kind mode model stream n_samples audit propensity policy_version certified question_key ungoverned",
    "received_at_s keep_rate|1.0 kept_by|'' endpoint|'/v1/chat/completions' query unit|'' setup|''",
    "promise|'certified' sender|'' arms|'[]' delivery|1 conversation|'' seeded|0 tenant|'' form|'text'",
)
_OUTCOMES = _columns(
    "o.body, '$.outcome",
    "end_reason status answer",
    "usage.prompt_tokens usage.completion_tokens usage.reasoning_tokens usage.cached_tokens",
    "overhead.probe_tokens overhead.extra_prompt_tokens overhead.cached_prompt_tokens overhead.discarded_tokens",
    "overhead.n_extra_calls stopped stop_reason stop_step would_answer decision finish_method handover_ms",
    "tokens_saved_estimate estimate_method degraded vote unclosed duration_s ttft_s calls model system_fingerprint",
    "finish_step finish_answer pair_arm pair_propensity pair_answer pair_tokens",
)
_UNREAD_COLUMN = _columns("o.body, '$.outcome", "finished_unread|0")
_OUTCOMES_VIEW: Final = """
    CREATE VIEW outcomes AS SELECT o.seq, o.at_s, o.episode_id, r.route AS route, o.response_id AS response_id,
        {columns}
    FROM events o LEFT JOIN events r ON r.kind = 'request' AND r.key = o.key
    WHERE o.kind = 'outcome';"""
_COSTS = _columns("o.body, '$.outcome", "stopped cost_usd overhead_usd would_cost_usd saved_usd_estimate")
_STEPS = _columns(
    "s.value, '$",
    "tokens answer answer_source confidence entropy hedges probe_tokens action reason logprobs ctx_tokens|0 logprob",
    "stated_confidence reported_done caller_action draft_distance hedge_rate loop_share margin mass closed_entropy",
    "end_margin known_words pattern_code missing|0 late_tokens",
)
_FEEDBACK = (
    "response_id correct gold answer rating thumbs comment source reason metrics satisfaction event user sender"
    " propensity door request_reason"
)
_SUM_COLUMNS = ", ".join(
    f"{field.name} {'REAL' if isinstance(field.default, float) else 'INTEGER'} NOT NULL DEFAULT 0"
    for field in fields(RollupSums)
)
_KIND_INDEXES = "\n    ".join(
    f"CREATE INDEX {name} ON events (seq) WHERE {kinds_in(kinds)};" for name, kinds in INDEXED_KINDS.items()
)
_SCRIPT: Final = f"""
    CREATE TABLE events (
        seq         INTEGER PRIMARY KEY AUTOINCREMENT,  -- the only order
        kind        TEXT NOT NULL,
        key         TEXT NOT NULL,                      -- at most one row of a kind has it
        episode_id  TEXT,
        route       TEXT,
        at_s        REAL NOT NULL,                      -- Unix time; informative
        owner       INTEGER NOT NULL,                   -- the process that wrote it
        body        TEXT NOT NULL,                      -- the event as JSON
        response_id TEXT                                -- that an outcome or feedback names
    );
    CREATE UNIQUE INDEX events_once ON events (kind, key);
    CREATE INDEX outcomes_by_response ON events (response_id)
        WHERE kind = 'outcome';
    CREATE INDEX feedback_by_episode ON events (episode_id) WHERE kind = 'feedback';
    CREATE INDEX feedback_by_response ON events (response_id)
        WHERE kind = 'feedback' AND episode_id IS NULL;
    CREATE INDEX requests_by_owner ON events (owner) WHERE kind = 'request';
    CREATE INDEX requests_by_route ON events (route) WHERE kind = 'request';
    CREATE INDEX counted ON events (route, seq) WHERE kind = 'requests_counted';
    {_KIND_INDEXES}

    CREATE TABLE owners (
        id        INTEGER PRIMARY KEY AUTOINCREMENT,
        lock      TEXT NOT NULL UNIQUE,                -- part of its lock file's name
        pid       INTEGER NOT NULL,                    -- for people; never used to decide
        started_s REAL NOT NULL,
        settled   INTEGER NOT NULL DEFAULT 0           -- place up to which each of its requests has its outcome
    );
    CREATE TABLE leases (
        job     TEXT PRIMARY KEY,
        owner   INTEGER NOT NULL,   -- the process that holds the job, or held it last
        token   INTEGER NOT NULL,   -- grows with each holder: what an earlier one still wants to write is refused
        beat    INTEGER NOT NULL,   -- grows with each renewal
        held    INTEGER NOT NULL,
        until_s REAL NOT NULL       -- Unix time; for people: clocks step, so beats decide
    );
    CREATE TABLE artefacts (
        address TEXT PRIMARY KEY,   -- made of the content
        body    TEXT NOT NULL,
        at_s    REAL NOT NULL       -- Unix time; informative
    );
    CREATE TABLE chain (
        place         INTEGER PRIMARY KEY,  -- 1 says where the chain begins
        seq           INTEGER,              -- of the event; null: the beginning
        form          INTEGER NOT NULL,     -- how it is digested
        kept          BLOB NOT NULL,        -- digest of the event without people's words
        whole         BLOB,                 -- digest of the event with them; null: it holds none
        answers       BLOB,                 -- digest of the answers in it; null: there are none
        answers_salt  BLOB,                 -- null though there is a digest: erased
        comments      BLOB,
        comments_salt BLOB,
        link          BLOB NOT NULL,        -- digest of all of this and of the link before
        note          TEXT                  -- what the beginning says
    );
    CREATE UNIQUE INDEX chain_by_event ON chain (seq);

    -- Caches, built from the log, which may be emptied at any time: sums by route, class, version and hour
    -- (store/routes/rollups.py), and what each route's estimates are made of (assurance/estimate.py), as JSON.
    CREATE TABLE rollups (
        grain       INTEGER NOT NULL,   -- 0: by the hour; by the day: 1 routes, 2 classes, 3 versions, 4 tenants
        route       TEXT NOT NULL,
        query_class TEXT NOT NULL,
        version     TEXT NOT NULL,
        hour        INTEGER NOT NULL,   -- since 1970, UTC
        {_SUM_COLUMNS},
        PRIMARY KEY (grain, route, query_class, version, hour)
    ) WITHOUT ROWID;
    CREATE INDEX rollups_by_hour ON rollups (hour) WHERE grain = 0;
    CREATE TABLE rolled (
        id     INTEGER PRIMARY KEY CHECK (id = 1),
        format INTEGER NOT NULL,   -- of what is summed
        seq    INTEGER NOT NULL,   -- place in the log up to which it is
        at_s   REAL NOT NULL       -- Unix time; informative
    );
    CREATE TABLE tallies (
        route TEXT PRIMARY KEY,
        seq   INTEGER NOT NULL,  -- how far the log was summed up when it changed last
        body  TEXT NOT NULL
    );

    CREATE VIEW requests AS SELECT seq, at_s, episode_id, route,
        {_REQUESTS}
    FROM events WHERE kind = 'request';

    {_OUTCOMES_VIEW.format(columns=_OUTCOMES)}

    CREATE VIEW costs AS SELECT o.seq, o.at_s, o.episode_id, r.route AS route,
        {_COSTS}
    FROM events o LEFT JOIN events r ON r.kind = 'request' AND r.key = o.key
    WHERE o.kind = 'outcome';

    CREATE VIEW steps AS SELECT o.seq, o.episode_id, r.route AS route, json_extract(s.value, '$.index') AS step,
        {_STEPS}
    FROM events o LEFT JOIN events r ON r.kind = 'request' AND r.key = o.key,
        json_each(o.body, '$.outcome.steps') s
    WHERE o.kind = 'outcome';

    CREATE VIEW feedback AS SELECT
        j.seq, j.at_s, j.feedback_id, j.episode_id, r.route AS route, r.seq IS NOT NULL AS joined,
        {", ".join(f"j.{name}" for name in _FEEDBACK.split())}
    FROM (
        SELECT
            f.seq, f.at_s, json_extract(f.body, '$.feedback.feedback_id') AS feedback_id,
            -- Two answers with one response id: nobody can say which is meant, so neither.
            coalesce(f.episode_id, (
                SELECT CASE WHEN count(*) = 1 THEN max(o.key) END FROM events o
                WHERE o.kind = 'outcome' AND o.response_id = f.response_id
            )) AS episode_id,
            {_columns("f.body, '$.feedback", _FEEDBACK)}
        FROM events f WHERE f.kind = 'feedback'
    ) j LEFT JOIN events r ON r.kind = 'request' AND r.key = j.episode_id;
"""  # noqa: S608 - constants of this file


class Migration(NamedTuple):
    """A change of the schema. On PostgreSQL, gateways of two versions run side by side during an upgrade."""

    version: int  # of the schema after it
    oldest: int  # version of the schema whose gateways go on working with it
    script: str  # in the words of SQLite


# A cache of what workers have folded of each route (store/database/decisions.py).
_FOLD_STATES: Final = """
    CREATE TABLE IF NOT EXISTS fold_states (
        job   TEXT NOT NULL,
        route TEXT NOT NULL,
        seq   INTEGER NOT NULL,  -- place in the log up to which it was folded
        body  BLOB NOT NULL,
        PRIMARY KEY (job, route)
    );
"""
# Which looks the jobs have completed (store/database/watches.py).
_WATCHES: Final = """
    CREATE TABLE IF NOT EXISTS watches (
        job             TEXT NOT NULL,
        route           TEXT NOT NULL,     -- '': the job as a whole
        beat            INTEGER NOT NULL,  -- completed looks
        seq             INTEGER NOT NULL,  -- place in the log up to which the last one read
        n               INTEGER NOT NULL,  -- requests of the route that it had counted
        looked_at_s     REAL NOT NULL,     -- Unix time, by the worker's clock; 0: none was completed
        n_failures      INTEGER NOT NULL,  -- since the last completed one
        failing_since_s REAL,              -- Unix time of the first of them; null: it does not fail
        problem         TEXT NOT NULL,     -- of the latest
        PRIMARY KEY (job, route)
    );
"""
# Shows which audits were read to their end after their client had left.
_UNREAD: Final = "DROP VIEW outcomes;" + _OUTCOMES_VIEW.format(columns=f"{_OUTCOMES}, {_UNREAD_COLUMN}")
FIRST: Final = Migration(18, 18, _SCRIPT)  # an older log is refused
# After it, in order; never changed.
MIGRATIONS: Final[tuple[Migration, ...]] = (
    Migration(19, 18, _FOLD_STATES),
    Migration(20, 18, _WATCHES),
    Migration(21, 18, _UNREAD),
)
VERSION: Final = MIGRATIONS[-1].version

_FUNCTIONS: Final = r"""
    -- What the queries take from JSON, as text: null stays null, true is 'true'. PostgreSQL refuses a null character
    -- in any text, and a model may write one.
    CREATE FUNCTION json_extract(body TEXT, path TEXT) RETURNS TEXT LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
        AS $$ SELECT replace(body, '\u0000', '\ufffd')::json #>> string_to_array(substr(path, 3), '.') $$;
    CREATE FUNCTION json_each(body TEXT, path TEXT) RETURNS TABLE (value TEXT) LANGUAGE sql IMMUTABLE PARALLEL SAFE
        AS $$ SELECT CASE json_typeof(one) WHEN 'string' THEN one #>> '{}' ELSE one::text END
              FROM json_array_elements(coalesce(json_extract(body, path), '[]')::json) one $$;
    CREATE TABLE notes (                     -- of processes, about now (postgres.py)
        name TEXT COLLATE "C" PRIMARY KEY,
        body TEXT NOT NULL,
        at_s DOUBLE PRECISION NOT NULL       -- by the server's clock
    );
    CREATE TABLE schema_versions (
        version BIGINT PRIMARY KEY,
        oldest  BIGINT NOT NULL,  -- schema version of the oldest gateways that may go on with it
        at_s    DOUBLE PRECISION NOT NULL
    );
"""
_TUNING: Final = """
    DO $$ BEGIN  -- faster than the default, where the server was built with it
        ALTER TABLE events ALTER body SET COMPRESSION lz4;
    EXCEPTION WHEN feature_not_supported THEN NULL;
    END $$;
    -- For the newest row of a kind: from its statistics, the planner cannot know that all of a kind's rows are old.
    CREATE INDEX rare ON events (kind, seq) WHERE kind NOT IN ('request', 'outcome', 'feedback');
"""
# Types of PostgreSQL; text sorts by its bytes, as SQLite's.
_TYPES: Final = (
    (r"INTEGER PRIMARY KEY AUTOINCREMENT,  -- the only order", "BIGINT PRIMARY KEY,  -- the only order"),
    (r"INTEGER PRIMARY KEY AUTOINCREMENT", "BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY"),
    (r"settled   INTEGER", "beat_s DOUBLE PRECISION NOT NULL,\n        settled INTEGER"),
    (r"\bINTEGER\b", "BIGINT"),
    (r"\bREAL\b", "DOUBLE PRECISION"),
    (r"\bBLOB\b", "BYTEA"),
    (r"(?m)^(\s+\w+\s+)TEXT\b", r'\1TEXT COLLATE "C"'),
    (r" WITHOUT ROWID", ""),
    (r"ON events \((owner|route)\)", r"ON events (\1, seq)"),  # an index of SQLite has the place in any case
    (r"coalesce\((json_extract\([^)]*\)), ([\d.]+)\)", r"coalesce(\1, '\2')"),
)


def _for_postgres(script: str) -> str:
    for pattern, replacement in _TYPES:
        script = re.sub(pattern, replacement, script)
    return script


def _steps_from(version: int) -> list[Migration]:
    return [one for one in (FIRST, *MIGRATIONS) if one.version > version]


def migrate_postgres(connection: PostgresConnection, name: str, where: str, now_s: float) -> int:
    """Create the schema, or bring it up to this version, in a transaction of its own; return how many steps ran."""
    if not connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = ?", (name,)).fetchone():
        connection.run_script(f'CREATE SCHEMA "{name}"')
    version = check_postgres(connection, where, is_new=True)
    steps = _steps_from(version)
    for one in steps:
        script = _for_postgres(one.script)
        connection.run_script(_FUNCTIONS + script + _TUNING if one is FIRST else script)
        values = (one.version, one.oldest, now_s)
        connection.execute("INSERT INTO schema_versions (version, oldest, at_s) VALUES (?, ?, ?)", values)
    return len(steps)


def check_postgres(connection: PostgresConnection, where: str, *, is_new: bool = False) -> int:
    """Return the schema's version, which this one can work with. Raise StoreError.

    is_new  the schema may be missing, or older
    """
    if not has_table(connection, "schema_versions"):
        if is_new:
            return 0
        raise StoreError(f"store {where}: holds no event log; `suffice serve` or `suffice store migrate` makes one")
    query = "SELECT version, oldest FROM schema_versions ORDER BY version DESC LIMIT 1"
    version, oldest = connection.execute(query).fetchone()
    newest = MIGRATIONS[-1].version
    if oldest > newest:
        raise StoreError(
            f"store {where}: has schema {version}, which needs a gateway of schema {oldest} or later; this one is of"
            f" schema {newest}: upgrade it"
        )
    if version < FIRST.version:
        raise StoreError(
            f"store {where}: has schema {version}, written by an older version; this one reads schema {newest}: keep"
            " the schema with that version, or name a new one"
        )
    if version < newest and not is_new:
        raise StoreError(f"store {where}: has schema {version}, this version {newest}: run `suffice store migrate`")
    return int(version)


def create(connection: sqlite3.Connection, where: str) -> None:
    """Create the schema, or bring it up to this version, once for all processes. Raises StoreError for another file."""
    connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")  # of a new file; an older one keeps its own
    _write_ahead(connection)
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = check_version(connection, where, may_be_older=True)
        if not version:
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        for statement in (each for one in _steps_from(version) for each in _statements(one.script)):
            connection.execute(statement)
        if version != VERSION:
            connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
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
