"""A log that could not be opened, tried again beside a caller's own loop, which has no event loop of ours: in a thread.

    Again ── opened ──▶ with the lock of whoever drives the loops: rows that waited, then `came`
      └── not yet ──▶ a pause that doubles ──▶ tried again, and once more at the end where rows wait

Knows threads and when to try; refuses to know what is served meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from suffice.errors import StoreError
from suffice.gateway.context import GatewayState
from suffice.settings import Settings
from suffice.store.database.deferred_log import LateLog
from suffice.store.database.sqlite import SqliteLog
from suffice.telemetry import LOG
from suffice.wiring import startup
from suffice.wiring.startup import LogKnowledge, StartState

LAST_TRY_S: Final = 7.0  # that the end waits for a try, which itself waits for other processes


class Again:
    """Tries until the log is open or the process ends."""

    def __init__(
        self,
        settings: Settings,
        gw: GatewayState,
        begun: StartState,
        came: Callable[[LogKnowledge], None],
        *,
        lock: threading.Lock,
    ) -> None:
        """Begin.

        came  gets what the log knows, when rows that waited are on their way to it
        lock  whoever holds it may use the gateway and its log
        """
        assert isinstance(begun.log, LateLog)
        self._settings, self._gw, self._begun, self._came, self._lock = settings, gw, begun, came, lock
        self._late = begun.log
        self._ends, self._over = threading.Event(), False
        self._thread = threading.Thread(target=self._work, name="suffice-open", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Try once more where rows wait, then never again; rows that wait still are lost, and said to be."""
        self._ends.set()
        self._thread.join(LAST_TRY_S)
        with self._lock:
            self._over = True
        if self._late.n_waiting:
            LOG.warning("%s; %d rows that waited for it are lost", self._late.problem, self._late.n_waiting)

    def _work(self) -> None:
        pause_s, most_s = startup.AGAIN_S
        while True:
            ends = self._ends.wait(pause_s)
            if (ends and not self._late.n_waiting) or self._opened() or ends:
                return
            pause_s = min(2 * pause_s, most_s)

    def _opened(self) -> bool:
        """One try; True: the log is open, or nobody wants it any more."""
        try:
            log, known = startup.open_checked_log(self._settings, "library")
        except StoreError as error:
            with self._lock:
                self._late.problem = self._gw.without_log = str(error)
            return False
        except Exception as error:  # noqa: BLE001 - the loop goes on, and it is tried again
            LOG.error("the log could not be opened (%s)", type(error).__name__)
            return False
        with self._lock:
            if not self._over:
                self._take(log, known)
                return True
        log.close()
        return True

    def _take(self, log: SqliteLog, known: LogKnowledge) -> None:
        startup.attach(self._begun, self._late, log, serves=self._gw.serves)
        self._came(known)
