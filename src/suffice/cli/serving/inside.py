"""The worker that `suffice serve` starts beside itself: settings on standard input, a line for each decision out."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import sys
from importlib.util import find_spec
from typing import Final

GENTLE: Final = 10  # of 19: whoever answers requests goes first


def main() -> None:
    """Work until standard input ends."""
    import msgspec

    from suffice.errors import StoreError
    from suffice.plugins import load_plugins
    from suffice.settings import parse
    from suffice.wiring import worker

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, it means the gateway, which ends this process
    logging.basicConfig(level="WARNING", format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with contextlib.suppress(OSError, AttributeError):
        os.nice(GENTLE)
    load_plugins()
    settings = parse(msgspec.json.decode(sys.stdin.buffer.readline()))
    try:
        with worker(settings, learning=find_spec("sklearn") is not None, create=False) as here:
            while not _ended(settings.control.period_s):
                if here.round():
                    with contextlib.suppress(BrokenPipeError):
                        os.write(sys.stdout.fileno(), b"decided\n")
    except StoreError as error:  # of a log that cannot be opened; whoever started this process tries again
        sys.exit(f"worker: {error}")


def _ended(within_s: float) -> bool:
    """Wait, and say whether standard input has ended meanwhile: whoever started this process is gone."""
    ready, _, _ = select.select([sys.stdin], [], [], within_s)
    return bool(ready) and not os.read(sys.stdin.fileno(), 4096)
