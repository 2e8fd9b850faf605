"""`make test-replicas`: what must hold of several processes on a real PostgreSQL, with promise, test and result.

Kills and restarts under load first, then the contract of the log and the rows of the table of faults that its database
has to do with, on PostgreSQL. `SUFFICE_TEST_POSTGRES` chooses the server: a folder of programs, such as
/usr/lib/postgresql/17/bin.
"""

from __future__ import annotations

import argparse
import sys

from tests.faults import table
from tests.faults.conftest import ON_BOTH
from tests.replicas.kills import Plan, run
from tests.replicas.postgres import version
from tests.replicas.rolling import RollingPlan, run_rolling

CONTRACT = table.Row("a log on PostgreSQL", "answers all that one in a file does", "tests/store")
FILES = ("tests/replicas/", "tests/store/", "tests/faults/test_without_server.py", "tests/attacks/test_archives.py")
HERE = ("tests/replicas/test_kills.py", "tests/replicas/test_rolling.py")  # what `main` runs itself


def rows_of_databases() -> list[table.Row]:
    """The rows of the table of faults whose tests run on PostgreSQL."""
    return [
        row
        for row in table.rows(table.PAGE.read_text(encoding="utf-8"))
        if (row.test.startswith(FILES) or row.test.partition("::")[2] in ON_BOTH) and not row.test.startswith(HERE)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="200 kills under 200 streams")
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--streams", type=int, default=40)
    parser.add_argument("--sqlite", action="store_true", help="on a SQLite file instead")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    n_kills, n_streams = (200, 200) if options.full else (options.kills, options.streams)

    def tell(line: str) -> None:
        print(line, flush=True)

    # 200 streams whose tokens come as a large model's do: so many calls begin in a second as two cores can serve.
    plan = Plan(
        n_kills=n_kills,
        n_streams=n_streams,
        delay_s=max(0.05, n_streams * 0.0025),
        postgres=not options.sqlite,
        seed=options.seed,
    )
    where, too = ("a SQLite file", "") if options.sqlite else (version(), " or of PostgreSQL")
    print(
        f"{plan.n_gateways} gateways, one with a clock {plan.shift_s:.0f} s ahead, {plan.n_workers} workers, {where};"
        f" {n_streams} streams; {n_kills} times SIGKILL to any of them{too}"
    )
    result = run(plan, tell)
    print(f"killed: {dict(result.kills)}; {result.took_s:.0f} s\n\n{result.report}\n")
    rolling = run_rolling(RollingPlan(n_rounds=5 if options.full else 1, postgres=not options.sqlite), tell)
    print(f"\nrolling restart:\n{rolling}")
    holds = not result.report.broken and not rolling.broken
    if not options.sqlite:
        print(f"\nthe contract of the log and the table of faults on {version()}:", flush=True)
        holds &= table.run([CONTRACT, *rows_of_databases()], "-k", "not sqlite", is_part=True)
    return int(not holds)


if __name__ == "__main__":
    sys.exit(main())
