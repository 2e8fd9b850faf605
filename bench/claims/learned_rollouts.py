"""What a rollout of a learned version keeps and costs: better, equal and harmful candidates on simulated traffic.

    python -m bench.claims.learned_rollouts [--seeds 100] [--jobs 2] [--only WORD ...]

Each cell is one rollout from its first request to its end, by the live stages machine and certificate, beside the
certify loop, which has its own part of delta. Budget 2 %, confidence 95 %; evaluated every 50 requests, one request per
second. *Over the budget* is judged on 40,000 held-out runs. `bench.claims.tried` has the candidates.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: a process a core, not a core a product

import argparse
import time
from collections.abc import Sequence

import numpy as np
from bench.claims.canary import cells, chosen
from bench.claims.tried import CANDIDATES, Tried, try_out

from suffice.assurance.bounds import exact_binomial
from suffice.executor import build_executor

HEAD = (
    "| candidate | promoted | rolled back | inconclusive | ended after, requests: median / p90 |"
    " of them in shadow, median | pairs, median | live requests served by it, median | served over the budget |"
    " such a level passed, served or not | keeps of the tokens: in force, candidate |"
)


def seldom(n: int, of: int) -> str:
    """How often something happened, with the exact upper end for its rate (one-sided, 95 %)."""
    return f"{n} of {of}, at most {100 * exact_binomial(n, of, 0.90).high:.1f} %"


def row(name: str, found: Sequence[Tried]) -> str:
    """One line of the table."""
    kept = [100 * float(np.median([getattr(one, what) for one in found])) for what in ("kept_in_force", "kept")]
    mine = [
        f"{name}: {CANDIDATES[name].says}",
        *cells([one.ended for one in found]),
        seldom(sum(one.n_over > 0 for one in found), len(found)),
        seldom(sum(one.passed_over for one in found), len(found)),
        " %, ".join(f"{one:.0f}" for one in kept) + " %",
    ]
    return f"| {' | '.join(mine)} |"


def work(cell: tuple[str, int]) -> tuple[Tried, float]:
    begin_s = time.process_time()
    return try_out(*cell), time.process_time() - begin_s


def main() -> None:
    about = __doc__.splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m bench.claims.learned_rollouts", description=about)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="candidates with one of these in a name")
    asked = parser.parse_args()
    cpu_s = 0.0
    print(HEAD, "| --- " * (HEAD.count("|") - 1) + "|", sep="\n")
    pool = build_executor(asked.jobs)
    for name in chosen(asked.only, CANDIDATES):
        done = list(pool.map(work, [(name, seed) for seed in range(asked.seeds)]))
        cpu_s += sum(taken for _, taken in done)
        print(row(name, [one for one, _ in done]), flush=True)
    print(f"\n{asked.seeds} seeds each, {cpu_s:.0f} s of CPU time")


if __name__ == "__main__":
    main()
