"""A worker process that `suffice serve` or `suffice worker` starts for a part of the jobs, its first argument.

It reads its settings from stdin, and writes a line per decision, or with a second argument, `text` or `json`, what was
decided.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from importlib.util import find_spec
from typing import Final

HUNG: Final = 75  # its status where a look hung: it is started again without that route
GENTLE: Final = {"watch": 5, "chores": 10}  # niceness, of 19: processes that answer requests have priority


def main() -> None:
    import msgspec

    from suffice.control.worker_process import Part
    from suffice.errors import StoreError
    from suffice.plugins import load_plugins
    from suffice.settings import parse_settings
    from suffice.telemetry import configure_logging
    from suffice.wiring.worker import open_worker

    part: Part = "watch" if "watch" in sys.argv[1:2] else "chores"
    prints = "".join(sys.argv[2:3])
    for name in ("SIGINT", "SIGHUP"):  # a terminal sends them to the gateway too, which ends this process
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    sigterm, stop_pipe = os.pipe()
    os.set_blocking(stop_pipe, False)
    signal.signal(signal.SIGTERM, lambda *_: os.write(stop_pipe, b"."))
    with contextlib.suppress(OSError, AttributeError):
        os.nice(GENTLE[part])
    load_plugins()
    settings = parse_settings(msgspec.json.decode(sys.stdin.buffer.readline()))
    configure_logging("warning", settings.telemetry.log_format)
    try:
        # A route whose policy is written needs no fit to be certified.
        learning = find_spec("sklearn") is not None or not any(one.is_learned for one in settings.routes.values())
        with open_worker(settings, learning=learning, create=False, part=part) as here:
            if part == "watch":
                here.bound_looks(settings.control.lease_s / 2, lambda: os._exit(HUNG))
            while not _ended(sigterm, here.pause_s()):
                reports = here.round_if_due()
                if prints:
                    from suffice.cli.server.serve import print_reports

                    print_reports(reports, as_json=prints == "json")
                elif reports:
                    with contextlib.suppress(BrokenPipeError):
                        os.write(sys.stdout.fileno(), b"decided\n")
    except StoreError as error:  # the log cannot be opened; the parent process restarts this one
        sys.exit(f"worker: {error}")


def _ended(sigterm: int, within_s: float) -> bool:
    ready, _, _ = select.select([sys.stdin, sigterm], [], [], within_s)
    return sigterm in ready or (bool(ready) and not os.read(sys.stdin.fileno(), 4096))
