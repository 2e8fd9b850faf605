"""Takes the database away under load, or the room on its disk, and gives it back: what becomes of calls and rows.

`python -m tests.replicas.outage` does it for ten real minutes with the waits of the product.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from suffice_testing import FakeUpstream
from tests.replicas.check import Report, check, read_rows
from tests.replicas.cluster import Cluster, Member
from tests.replicas.kills import model, settings
from tests.replicas.load import Call, Load
from tests.replicas.postgres import PostgresServer

AROUND_S = 4.0  # of load before the fault and after it
BACK_S = 60.0  # within which everything must be as before
LONGER_S = 60.0  # at most, until a call has begun that runs in full
GROWS_MIB = 40.0  # at most, of a gateway in an outage
DISK_MIB = 128  # of the server whose disk fills up
SMALL_WAL = ("-c", "min_wal_size=32MB", "-c", "max_wal_size=48MB")
# The silence after which a process counts as dead is no setting.
PRELUDE = """
from suffice.store.database import postgres, writer
postgres._IS_ALIVE = postgres._IS_ALIVE.replace(f"< {{postgres.DEAD_S}}", "< {dead_s}")
postgres.BEAT_S, writer.DEAD_S = {dead_s} / 6, {dead_s}
"""


@dataclass(frozen=True, kw_only=True)
class OutagePlan:
    fault: Literal["down", "full disk"] = "down"
    for_s: float = 10.0
    last_good_s: float = 4.0
    dead_s: float = 3.0
    queue_rows: int = 50_000
    n_gateways: int = 2
    n_streams: int = 8
    delay_s: float = 0.02  # between tokens


@dataclass
class Observed:
    """What was seen from outside while it lasted; times are monotonic."""

    from_s: float = 0.0
    until_s: float = 0.0
    back_s: float = 0.0
    full_s: dict[str, float] = field(default_factory=dict)  # when a gateway was first seen to run everything in full
    rss_mib: dict[str, list[float]] = field(default_factory=dict)
    n_dropped: dict[str, float] = field(default_factory=dict)

    def look(self, gateways: list[Member]) -> bool:
        """Note every gateway; whether all of them read the log."""
        reads = True
        for one in gateways:
            assert one.process is not None
            serves = json.loads(_get(f"{one.url}/readyz")).get("without_log", "")
            if serves == "full":
                self.full_s.setdefault(one.name, time.monotonic())
            reads &= not serves
            dropped = _get(f"{one.url}/metrics").partition("\nsuffice_events_dropped_total ")[2].split()[0]
            self.n_dropped[one.name] = float(dropped)
            status = Path(f"/proc/{one.process.pid}/status").read_text()
            self.rss_mib.setdefault(one.name, []).append(int(status.partition("VmRSS:")[2].split()[0]) / 1024)
        return reads


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as reply:
        text: str = reply.read().decode()
        return text


@contextmanager
def small_disk() -> Iterator[Path]:
    """A file system of its own for the server. Raise OSError where none may be mounted."""
    folder = Path(tempfile.mkdtemp(prefix="suffice-disk-"))
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        folder.rmdir()
        raise OSError("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)
        folder.rmdir()


@contextmanager
def database_down(cluster: Cluster) -> Iterator[Callable[[], None]]:
    assert cluster.server is not None
    cluster.hold_down("database")
    cluster.server.kill()
    yield lambda: None
    cluster.let_up("database")
    cluster.server.wait_ready()


@contextmanager
def disk_full(cluster: Cluster) -> Iterator[Callable[[], None]]:
    assert cluster.server is not None
    ballast = cluster.server.folder / "ballast"

    def fill() -> None:
        """Take the last byte, again and again, as the server gives some back."""
        with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
            for n_bytes in (2**20, 2**12):
                with contextlib.suppress(OSError):
                    while file.write(bytes(n_bytes)) == n_bytes:
                        pass

    fill()
    yield fill
    ballast.unlink()
    cluster.server.wait_ready()


def run_outage(plan: OutagePlan, tell: Callable[[str], None] = lambda _: None) -> Report:
    """Raise OSError where the fault cannot be made."""
    with (
        tempfile.TemporaryDirectory(prefix="suffice-outage-") as folder,
        FakeUpstream.in_thread(model(plan.delay_s)) as fake,
        small_disk() if plan.fault == "full disk" else nullcontext() as disk,
        PostgresServer(disk, () if disk is None else SMALL_WAL) as server,
    ):
        store = {"last_good_s": plan.last_good_s, "queue_rows": plan.queue_rows}
        cluster = Cluster(
            Path(folder),
            {**settings(fake), "store": store},
            n_gateways=plan.n_gateways,
            n_workers=1,
            server=server,
        )
        for member in cluster.members:
            member.prelude = PRELUDE.format(dead_s=plan.dead_s)
        with cluster:
            load, observed = Load(cluster.gateways, plan.n_streams), Observed()
            asyncio.run(_suffer(cluster, load, plan, observed, tell))
            fake.wait_idle(60.0)
            for gateway in cluster.gateways:  # writes what is in its queue
                cluster.hold_down(gateway.name)
                gateway.end()
            report = check(cluster, load.history, fake, n_dropped=round(sum(observed.n_dropped.values())))
            _add(report, plan, cluster, load, observed)
    return report


async def _suffer(
    cluster: Cluster, load: Load, plan: OutagePlan, observed: Observed, tell: Callable[[str], None]
) -> None:
    fault = database_down if plan.fault == "down" else disk_full
    async with load:
        await asyncio.sleep(AROUND_S)
        with fault(cluster) as keep_up:
            observed.from_s = notified_s = time.monotonic()
            while (now_s := time.monotonic()) - observed.from_s < plan.for_s or (
                plan.fault == "down"
                and now_s - observed.from_s < plan.for_s + LONGER_S
                and not _full(plan, load, observed)
            ):
                keep_up()
                await asyncio.to_thread(observed.look, cluster.gateways)
                if now_s - notified_s > 60:
                    notified_s = now_s
                    tell(f"{now_s - observed.from_s:.0f} s: {dict(Counter(call.end for call in load.history.calls))}")
                await asyncio.sleep(0.3)
            observed.until_s = time.monotonic()
        ended_s = time.monotonic()
        while time.monotonic() - ended_s < BACK_S:
            await asyncio.sleep(0.1)
            if await asyncio.to_thread(observed.look, cluster.gateways):
                break
        observed.back_s = time.monotonic()
        await asyncio.sleep(AROUND_S + plan.dead_s)
    await asyncio.to_thread(observed.look, cluster.gateways)


def _full(plan: OutagePlan, load: Load, observed: Observed) -> list[Call]:
    """The whole calls that began after every gateway was seen to run everything in full."""
    if len(observed.full_s) < plan.n_gateways:
        return []
    late_s = max(observed.full_s.values())
    return [call for call in load.history.calls if call.began_s > late_s and call.end == "done"]


def _add(report: Report, plan: OutagePlan, cluster: Cluster, load: Load, observed: Observed) -> None:
    from_s, until_s = observed.from_s, observed.until_s
    calls = [call for call in load.history.calls if from_s <= call.began_s <= until_s]
    ends = Counter(call.end for call in calls)
    report.add(f"answers go on while the database is {plan.fault}", set(ends) == {"done"}, f"{dict(ends)}")
    statuses = Counter(status for at_s, status in load.history.feedback if from_s <= at_s <= until_s)
    refused = {status for status in statuses if status != 200}
    may_pass = {200} if plan.fault == "full disk" else set[int]()  # where a page had room left: none of it is lost
    report.add(
        "feedback is refused, so that its sender keeps it",
        bool(refused) and set(statuses) <= {503, 507} | may_pass,
        f"{dict(statuses)}",
    )
    if plan.fault == "down":
        late_s = max(observed.full_s.values(), default=float("inf"))
        rows = read_rows(cluster.store_url)
        full = [call for call in _full(plan, load, observed) if call.began_s <= until_s]
        stopped = [call.nonce for call in full for one in rows.outcomes.get(call.episode or "", ()) if one.stopped]
        report.add(
            "after `last_good_s` everything runs in full",
            bool(full) and not stopped,
            f"{plan.last_good_s:g} s, seen after {late_s - from_s:.1f} s;"
            f" {len(full)} calls since, {len(stopped)} of them stopped",
        )
    again_s = min((at_s for at_s, status in load.history.feedback if at_s > until_s and status == 200), default=0.0)
    n_deaths = sum(one.n_starts - 1 for one in cluster.members)
    report.add(
        "it recovers by itself",
        observed.back_s - until_s < BACK_S and again_s > 0 and not n_deaths,
        f"the log is read {observed.back_s - until_s:.1f} s after it is back,"
        f" feedback taken after {again_s - until_s:.1f} s; {n_deaths} processes died",
    )
    grown = max(max(sizes) - sizes[0] for sizes in observed.rss_mib.values())
    n_dropped = sum(observed.n_dropped.values())
    must_drop = len(calls) / plan.n_gateways > plan.queue_rows  # some gateway has more requests than room
    may_drop = 3 * len(calls) >= plan.queue_rows  # an outcome waits, too, and runs that began before
    report.add(
        "what waits is bounded, and its overflow counted",
        grown < GROWS_MIB and (may_drop if n_dropped else not must_drop),
        f"queues of {plan.queue_rows:,} rows, {len(calls):,} calls, {n_dropped:,.0f} events dropped; +{grown:.1f} MiB",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--streams", type=int, default=40)
    parser.add_argument("--queue-rows", type=int, default=50_000)
    options = parser.parse_args()
    plan = OutagePlan(
        for_s=options.seconds,
        last_good_s=options.seconds / 5,
        dead_s=60.0,
        n_streams=options.streams,
        queue_rows=options.queue_rows,
        delay_s=options.streams * 0.01,
    )
    report = run_outage(plan, lambda line: print(line, flush=True))
    print(report)
    return int(bool(report.broken))


if __name__ == "__main__":
    sys.exit(main())
