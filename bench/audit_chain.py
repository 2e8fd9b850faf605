"""How long the audit log's chain takes to write and to walk: `python bench/audit_chain.py [--rows 1000000]`.

Nine rows of ten are labels, every other one with a reference and a comment; the rest are publications. The log is made
in a folder of its own, which is removed afterwards.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import sys
import tempfile
import time
from pathlib import Path

from suffice.store.audit.appender import Appender, begin_chain
from suffice.store.audit.chain import head
from suffice.store.audit.verify import verify_chain
from suffice.store.database import schema
from suffice.store.database.decisions import Decisions
from suffice.store.database.erasing import ErasureOrder, erase_words, purge
from suffice.store.rows.events import Event, FeedbackEvent, to_row
from suffice.store.sql import SqliteConnection
from suffice.types import Feedback, Publication

BATCH = 1_000


def event(number: int) -> Event:
    if number % 10 == 0:
        return Publication(
            route="r",
            number=number,
            epoch=1,
            at=number,
            version=f"v-{number}",
            fit="f",
            level=number % 41,
            n_levels=41,
            certified=True,
            share=0.1,
            reason="more audits",
            author="worker",
        )
    said = number % 2 == 1
    return FeedbackEvent(
        Feedback(
            feedback_id=f"label {number}",
            episode_id=f"ep_{number:016x}",
            correct=number % 3 > 0,
            source="user",
            gold=str(number) if said else None,
            comment=f"this is comment number {number}" if said else None,
        )
    )


def fill(connection: SqliteConnection, n_rows: int) -> float:
    """Write them as the gateway does, a thousand in a transaction; seconds of the writing alone."""
    spent_s = 0.0
    for start in range(0, n_rows, BATCH):
        rows = [to_row(event(number)) for number in range(start, min(n_rows, start + BATCH))]
        began_s = time.perf_counter()
        connection.execute("BEGIN IMMEDIATE")
        appender = Appender(connection, owner=1)
        for row in rows:
            appender.add(row, 1.0)
        connection.execute("COMMIT")
        spent_s += time.perf_counter() - began_s
    return spent_s


def erase_one_in_a_thousand(path: Path, n_rows: int) -> tuple[float, float]:
    """Seconds of erasing the words of so many labels, and of writing the file anew."""
    order = ErasureOrder(
        erasure_id="e", what="a thousandth", parts=("answers", "comments"), author="a", reason="measured"
    )
    with Decisions(path, now=time.time, monotonic_s=time.monotonic) as writer:
        began_s = time.perf_counter()
        erase_words(writer, order, range(2, n_rows, 1_000))
        erased_s, began_s = time.perf_counter() - began_s, time.perf_counter()
        assert purge(path)
        return erased_s, time.perf_counter() - began_s


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    n_rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.db"
        with contextlib.closing(SqliteConnection(path, isolation_level=None)) as connection:
            schema.create(connection, str(path))
            begin_chain(connection, 1.0)
            written_s = fill(connection, n_rows)
            found = head(connection)
            assert found is not None
            began_s, began_cpu_s = time.perf_counter(), time.process_time()
            verdict = verify_chain(connection, [found])
            walked_s, walked_cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
        erased_s, purged_s = erase_one_in_a_thousand(path, n_rows)
        assert verdict.ok, verdict.bad
        assert verdict.n_rows == n_rows + 1
        size_mib = path.stat().st_size / 2**20
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    each_us = written_s / n_rows * 1e6
    print(f"{n_rows:,} rows, {size_mib:,.0f} MiB: written in {written_s:.1f} s ({each_us:.1f} us a row),")
    print(f"verified in {walked_s:.2f} s ({walked_cpu_s:.2f} s of CPU); peak memory {peak_mib:.0f} MiB")
    print(f"words of a thousandth erased in {erased_s:.2f} s, file written anew in {purged_s:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
