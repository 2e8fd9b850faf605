"""`make clients`: every client, every scene, every mode, then Exact Match by other people's tools.

    python -m tests.clients.peers [--only NAME,…] [--json] [--allow-missing]

Exit codes: 0 all the same; 1 a difference, or a client that broke; 2 a client that was not run.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from suffice.types import Request
from tests.clients.peers import environments
from tests.clients.peers.exam import EXAMINERS, Sitting, examined
from tests.clients.peers.matrix import ClientBroke, Pair, compared
from tests.clients.peers.roster import CLIENTS, Client
from tests.clients.peers.stage import MODES, staged

PAIRS = "{:21} {:9} {:>6} {:>8} {:>18}  {:26} {:>6}"
SITTINGS = "{:21} {:9} {:>6} {:>6} {:>13} {:>13}  {:18} {:>6}"


@dataclass(slots=True, kw_only=True)
class Row:
    """One client's line of the table."""

    client: str
    version: str = "–"
    pairs: list[Pair] = field(default_factory=list)
    sittings: list[Sitting] = field(default_factory=list)  # of a tool that measures Exact Match
    broke: str | None = None  # why nothing could be compared
    not_run: str | None = None  # what is not installed here
    seconds: float = 0.0

    @property
    def wrong(self) -> list[str]:
        """One sentence for each difference."""
        pairs = [f"{p.mode} {p.scene}: {sentence}" for p in self.pairs for sentence in p.wrong]
        return pairs + [f"{s.mode or 'direct'}: {sentence}" for s in self.sittings for sentence in s.wrong]

    @property
    def result(self) -> str:
        """The last column."""
        if self.not_run is not None:
            return f"not run: {self.not_run}"
        if self.broke is not None:
            return "BROKE"
        return f"{len(self.wrong)} DIFFER" if self.wrong else "same"


def row_of(client: Client, set_up: Callable[[Row, Path], None]) -> Row:
    """Make the client's environment and fill its row; what goes wrong becomes part of it."""
    row, started = Row(client=client.name), time.monotonic()
    try:
        folder = environments.ready(client.environment)
        row.version = environments.version_of(client, folder)
        set_up(row, folder)
    except environments.Missing as missing:
        row.not_run = str(missing)
    except (ClientBroke, OSError, RuntimeError, subprocess.SubprocessError) as error:
        row.broke = f"{type(error).__name__}: {error}"
    row.seconds = time.monotonic() - started
    return row


def show_pairs(row: Row) -> None:
    """Print one client's line: scenes that are the same, by mode."""
    cells = []
    for mode in MODES:
        pairs = [pair for pair in row.pairs if pair.mode == mode]
        n_stopped = sum(pair.stopped for pair in pairs)
        same = f"{sum(not pair.wrong for pair in pairs)}/{len(pairs)}"
        cells.append(f"{same} ({n_stopped} stopped)" if mode == "enforce" else same)
    print(PAIRS.format(row.client, row.version, *cells, row.result, f"{row.seconds:.0f} s"))
    _show_wrong(row)


def show_sittings(row: Row) -> None:
    """Print one tool's line: Exact Match direct and by mode, its own number and ours."""
    cells = []
    for sitting in row.sittings:
        ours = "" if sitting.em_status is None else f" = {100 * sitting.em_status:.1f}"
        cells.append(f"{100 * sitting.em:.1f}{ours}")
    cells += ["–"] * (4 - len(cells))
    print(SITTINGS.format(row.client, row.version, *cells, row.result, f"{row.seconds:.0f} s"))
    _show_wrong(row)


def _show_wrong(row: Row) -> None:
    for sentence in ([row.broke] if row.broke else []) + row.wrong:
        print(f"    {sentence}")
    sys.stdout.flush()


def compare_clients(chosen: Sequence[str], *, as_json: bool) -> list[Row]:
    """The first table."""
    rows = []
    with tempfile.TemporaryDirectory() as name, staged(Path(name)) as stage:
        for client in CLIENTS:
            if client.name not in chosen:
                continue

            def fill(row: Row, folder: Path, client: Client = client) -> None:
                row.pairs = compared(client, folder, stage, Path(name))

            rows.append(row_of(client, fill))
            _print_json(rows[-1]) if as_json else show_pairs(rows[-1])
        if not as_json:
            show_shares(governed_shares([episode.request for episode in stage.episodes()]))
    return rows


def show_shares(shares: Mapping[str, Counter[str]]) -> None:
    """Print how many requests were governed, and why the others were not, by API."""
    print("\nRequests by reason in observe and enforce, and as when only chats without tools or schema were governed")
    for name, reasons in shares.items():
        n = sum(reasons.values())
        print(f"{name:44} {n:6} " + ", ".join(f"{reason} {count / n:.1%}" for reason, count in reasons.most_common()))


def governed_shares(requests: Sequence[Request]) -> dict[str, Counter[str]]:
    """Return the requests of each API by reason, now and before."""
    shares: dict[str, Counter[str]] = {}
    for request in requests:
        if request.mode == "off":
            continue
        now = before = request.ungoverned or "governed"
        if request.endpoint != "/v1/chat/completions":
            before = "endpoint"
        elif request.ungoverned is None and request.form != "text":
            before = {"tools": "tools", "json": "response_format"}[request.form]
        for name, reason in (("now", now), ("before", before)):
            shares.setdefault(f"{request.endpoint}, {name}", Counter())[reason] += 1
    return dict(sorted(shares.items()))


def compare_examiners(chosen: Sequence[str], *, as_json: bool) -> list[Row]:
    """The second table."""
    rows = []
    for tool in EXAMINERS:
        if tool.name not in chosen:
            continue
        with tempfile.TemporaryDirectory() as name:

            def fill(row: Row, folder: Path, tool: Client = tool, home: str = name) -> None:
                row.sittings = examined(tool, folder, Path(home))

            rows.append(row_of(tool, fill))
        _print_json(rows[-1]) if as_json else show_sittings(rows[-1])
    return rows


def _print_json(row: Row) -> None:
    print(json.dumps(asdict(row) | {"result": row.result, "wrong": row.wrong}), flush=True)


def exit_code(rows: Sequence[Row], *, allow_missing: bool) -> int:
    """1: something differs or broke. 2: something was not run, and that was not allowed. 0: all the same."""
    if any(row.wrong or row.broke for row in rows):
        return 1
    return 2 if any(row.not_run for row in rows) and not allow_missing else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; return the exit code."""
    parser = argparse.ArgumentParser(prog="make clients", description=__doc__)
    parser.add_argument("--only", default="", help="names of clients, with commas between them")
    parser.add_argument("--json", action="store_true", help="one JSON object a client instead of the table")
    parser.add_argument("--allow-missing", action="store_true", help="exit 0 although a client was not run")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that both servers are ended as well
    known = [client.name for client in (*CLIENTS, *EXAMINERS)]
    names = [name for name in options.only.split(",") if name] or known
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"unknown {', '.join(unknown)}; known: {', '.join(known)}")
    if not options.json:
        print("What a client's user sees, through the gateway and direct: scenes that are the same")
        print(PAIRS.format("client", "version", *MODES, "result", "time"), flush=True)
    rows = compare_clients(names, as_json=options.json)
    if not options.json:
        print("\nExact Match in percent: as the tool measures it = as suffice status reports it for the same requests")
        print(SITTINGS.format("tool", "version", "direct", *MODES, "result", "time"), flush=True)
    rows += compare_examiners(names, as_json=options.json)
    return exit_code(rows, allow_missing=options.allow_missing)


if __name__ == "__main__":
    sys.exit(main())
