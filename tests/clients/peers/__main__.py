"""`make clients`: every client, every scene, every mode; one table; exit 1 on any difference.

    python -m tests.clients.peers [--only NAME,…] [--json] [--allow-missing]

Exit codes: 0 all the same; 1 a difference, or a client that broke; 2 a client that was not run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.clients.peers import environments
from tests.clients.peers.matrix import ClientBroke, Pair, compared
from tests.clients.peers.roster import CLIENTS, Client
from tests.clients.peers.stage import MODES, Stage, staged


@dataclass(slots=True, kw_only=True)
class Row:
    """One client's line of the table."""

    client: str
    version: str = "–"
    pairs: list[Pair] = field(default_factory=list)
    broke: str | None = None      # why nothing could be compared
    not_run: str | None = None    # what is not installed here
    seconds: float = 0.0

    @property
    def wrong(self) -> list[Pair]:
        """The pairs that differ."""
        return [pair for pair in self.pairs if pair.wrong]

    @property
    def result(self) -> str:
        """The last column."""
        if self.not_run is not None:
            return f"not run: {self.not_run}"
        if self.broke is not None:
            return "BROKE"
        return f"{len(self.wrong)} DIFFER" if self.wrong else "same"


def row_of(client: Client, stage: Stage, home: Path) -> Row:
    """Set a client up and compare it."""
    row, started = Row(client=client.name), time.monotonic()
    try:
        folder = environments.ready(client.environment)
        row.version = environments.version_of(client, folder)
        row.pairs = compared(client, folder, stage, home)
    except environments.Missing as missing:
        row.not_run = str(missing)
    except (ClientBroke, subprocess.SubprocessError) as error:
        row.broke = str(error)
    row.seconds = time.monotonic() - started
    return row


def show(row: Row) -> None:
    """Print one line, and below it what is wrong."""
    cells = []
    for mode in MODES:
        pairs = [pair for pair in row.pairs if pair.mode == mode]
        n_stopped = sum(pair.stopped for pair in pairs)
        same = f"{sum(not pair.wrong for pair in pairs)}/{len(pairs)}"
        cells.append(f"{same} ({n_stopped} stopped)" if mode == "enforce" else same)
    print(f"{row.client:21} {row.version:9} {cells[0]:>6} {cells[1]:>8} {cells[2]:>18}  "
          f"{row.result:26} {row.seconds:5.0f} s", flush=True)  # fmt: skip
    if row.broke is not None:
        print(f"    {row.broke}")
    for pair in row.wrong:
        for sentence in pair.wrong:
            print(f"    {pair.mode} {pair.scene}: {sentence}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; return the exit code."""
    parser = argparse.ArgumentParser(prog="make clients", description=__doc__)
    parser.add_argument("--only", default="", help="names of clients, with commas between them")
    parser.add_argument("--json", action="store_true", help="one JSON object a client instead of the table")
    parser.add_argument("--allow-missing", action="store_true", help="exit 0 although a client was not run")
    options = parser.parse_args(arguments)
    names = [name for name in options.only.split(",") if name]
    unknown = [name for name in names if name not in {client.name for client in CLIENTS}]
    if unknown:
        parser.error(f"unknown {', '.join(unknown)}; known: {', '.join(client.name for client in CLIENTS)}")
    rows = []
    if not options.json:
        print(f"{'client':21} {'version':9} {'off':>6} {'observe':>8} {'enforce':>18}  {'result':26} {'time':>7}")
    with tempfile.TemporaryDirectory() as folder, staged(Path(folder)) as stage:
        for client in CLIENTS:
            if names and client.name not in names:
                continue
            row = row_of(client, stage, Path(folder))
            rows.append(row)
            print(json.dumps(asdict(row) | {"result": row.result})) if options.json else show(row)
    if any(row.wrong or row.broke for row in rows):
        return 1
    return 2 if any(row.not_run for row in rows) and not options.allow_missing else 0


if __name__ == "__main__":
    sys.exit(main())
