"""`make test-replicas`: kills and restarts under load on a real PostgreSQL, and prints promise, result and figures."""

from __future__ import annotations

import argparse
import sys

from tests.replicas.kills import Plan, run
from tests.replicas.rolling import RollingPlan, run_rolling


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
    where, too = ("a SQLite file", "") if options.sqlite else ("PostgreSQL", " or of PostgreSQL")
    print(
        f"{plan.n_gateways} gateways, one with a clock {plan.shift_s:.0f} s ahead, {plan.n_workers} workers, {where};"
        f" {n_streams} streams; {n_kills} times SIGKILL to any of them{too}"
    )
    result = run(plan, tell)
    print(f"killed: {dict(result.kills)}; {result.took_s:.0f} s\n\n{result.report}\n")
    rolling = run_rolling(RollingPlan(n_rounds=5 if options.full else 1, postgres=not options.sqlite), tell)
    print(f"\nrolling restart:\n{rolling}")
    return int(bool(result.report.broken or rolling.broken))


if __name__ == "__main__":
    sys.exit(main())
