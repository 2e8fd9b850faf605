"""Two versions of the software on one log: the newest before the last migration of the schema, and this one.

`python -m tests.replicas.versions` does it for two minutes, `--seconds 3600` for an hour.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from suffice_testing import FakeUpstream
from tests.replicas.check import Report, check, command
from tests.replicas.cluster import Cluster, Member
from tests.replicas.kills import model, settings
from tests.replicas.load import Load
from tests.replicas.postgres import PostgresServer

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = "src/suffice/store/database/schema.py"
POSTGRES = "src/suffice/store/database/postgres.py"
OLD = "0.0.1"  # what the old tree says it is: both would say the same between two releases
WITHIN_S = 30.0


@dataclass(frozen=True, kw_only=True)
class VersionsPlan:
    seconds: float = 20.0
    n_streams: int = 8
    delay_s: float = 0.02


def git(*words: str) -> bytes:
    """Raise OSError where there is no history."""
    done = subprocess.run(["git", "-C", str(ROOT), *words], check=False, capture_output=True)
    if done.returncode:
        raise OSError(f"git {words[0]}: {done.stderr.decode().strip()}")
    return done.stdout


def commit_before_last_migration() -> str:
    """Raise OSError where the history has none."""

    def version(text: str) -> int:
        return max((int(number) for number in re.findall(r"\bMigration\((\d+)", text)), default=0)

    now, after = version((ROOT / SCHEMA).read_text(encoding="utf-8")), "HEAD"
    for commit in git("log", "--format=%H", "--", SCHEMA).decode().split():
        text = git("show", f"{commit}:{SCHEMA}").decode()
        if not git("ls-tree", commit, "--", POSTGRES):
            break
        if version(text) < now:
            return git("rev-parse", f"{after}^").decode().strip()
        after = commit
    raise OSError("the history has no version with another schema on PostgreSQL")


def old_source(folder: Path) -> tuple[Path, str]:
    """Write the old tree into a folder; return what to import from, and its commit."""
    commit = commit_before_last_migration()
    with tarfile.open(fileobj=io.BytesIO(git("archive", commit, "src"))) as archive:
        archive.extractall(folder, filter="data")
    facts = folder / "src" / f"suffice-{OLD}.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: suffice\nVersion: {OLD}\n", encoding="utf-8")
    return folder / "src", commit


def run_versions(plan: VersionsPlan, tell: Callable[[str], None] = lambda _: None) -> Report:
    """Raise OSError where there is no history."""
    with (
        tempfile.TemporaryDirectory(prefix="suffice-old-") as tree,
        tempfile.TemporaryDirectory(prefix="suffice-versions-") as folder,
    ):
        source, commit = old_source(Path(tree))
        with FakeUpstream.in_thread(model(plan.delay_s)) as fake, PostgresServer() as server:
            cluster = Cluster(Path(folder), settings(fake), n_gateways=2, n_workers=2, server=server)
            for member in (cluster.gateways[0], cluster.workers[0]):  # the first makes the log
                member.source = source
            with cluster:
                load = Load(cluster.gateways, plan.n_streams)
                decisions, status = asyncio.run(_work(cluster, load, plan, source, tell))
                fake.wait_idle(60.0)
                n_deaths = sum(one.n_starts - 1 for one in cluster.members)
                for gateway in cluster.gateways:
                    cluster.hold_down(gateway.name)
                    gateway.end()
                report = check(cluster, load.history, fake)
    ends = Counter(call.end for call in load.history.calls)
    figures = f"{commit[:8]} beside this tree for {plan.seconds:.0f} s: {dict(ends)}, {n_deaths} processes died"
    report.add("two versions serve one log side by side", set(ends) == {"done"} and not n_deaths, figures)
    for what, delay_s in decisions.items():
        report.add(what, delay_s < WITHIN_S, f"by both after {delay_s:.2f} s")
    skew = next((line for line in status.splitlines() if "SOFTWARE SKEW" in line), "")
    report.add("`suffice status` says that the versions differ", OLD in skew, skew or status[-200:])
    return report


async def _work(
    cluster: Cluster, load: Load, plan: VersionsPlan, source: Path, tell: Callable[[str], None]
) -> tuple[dict[str, float], str]:
    async with load:
        for _ in range(max(1, round(plan.seconds / 60))):
            await asyncio.sleep(min(60.0, plan.seconds))
            tell(f"{dict(Counter(call.end for call in load.history.calls))}")
        decisions = await asyncio.to_thread(_decide, cluster, source)
        status = await asyncio.to_thread(command, "status", "--config", cluster.config(1))
        await asyncio.sleep(2.0)
    return decisions, status.stdout + status.stderr


def _decide(cluster: Cluster, source: Path) -> dict[str, float]:
    """Pause and resume with the programs of both versions; seconds until both gateways obey."""
    delays = dict[str, float]()
    for name, tree in (("old", source), ("new", ROOT / "src")):
        for words, state in (("pause", True), ("resume", False)):
            began_s = time.monotonic()
            done = command(words, "stopped", "--config", cluster.config(), "--reason", "a drill", source=tree)
            assert done.returncode == 0, done.stdout + done.stderr
            while not all(_is_paused(one) is state for one in cluster.gateways):
                if time.monotonic() - began_s > WITHIN_S:
                    break
                time.sleep(0.05)
            delays[f"a {words} by the {name} version is obeyed by both"] = time.monotonic() - began_s
    return delays


def _is_paused(gateway: Member) -> bool:
    with urllib.request.urlopen(f"{gateway.url}/metrics", timeout=30) as reply:
        return 'suffice_promise_state{route="stopped",state="paused"} 1.0' in reply.read().decode()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--streams", type=int, default=20)
    options = parser.parse_args()
    plan = VersionsPlan(seconds=options.seconds, n_streams=options.streams, delay_s=options.streams * 0.01)
    report = run_versions(plan, lambda line: print(line, flush=True))
    print(report)
    return int(bool(report.broken))


if __name__ == "__main__":
    sys.exit(main())
