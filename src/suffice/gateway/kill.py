"""The kill switch: a file that takes enforcement away from every route within a second, whatever else is broken.

It needs no database, no worker and no network: whoever can make a file can pull it (`suffice kill`, or `touch`). A
gateway looks twice a second, and once at its start, where the environment may say the same. While it is pulled,
chains of thought pass through untouched, samples are all drawn, loops of callers are never stopped; runs that are
under way are not stopped any more either. Where the file cannot be looked for, the switch stays as it was.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from suffice.files import PRIVATE, write_whole
from suffice.gateway.route import BuiltRoute
from suffice.store.database.presence import NO_REASON, Announcement, switch_reason
from suffice.store.rows.records import KillSwitchState
from suffice.telemetry import LOG

LOOK_S: Final = 0.5
VARIABLE: Final = "SUFFICE_KILL"  # in the environment of a gateway that starts: anything but "" and "0" pulls it
REASON: Final = "kill_switch"  # why a request passes through, as it is counted


class KillSwitch:
    """One gateway's view of the switch. `on` is what requests read; `look` belongs to a timer."""

    def __init__(
        self,
        file: Path | None = None,
        *,
        environment: str = "",
        told: Callable[[KillSwitchState], object] = lambda _: 0,
        presence: Announcement | None = None,
    ) -> None:
        """Look once.

        file         whose existence pulls the switch; None: there is none
        environment  what the variable says
        told         gets one row for each change; must not block
        presence     by which this process confirms what it has seen; None: it confirms nothing
        """
        self._file, self._told, self.presence = file, told, presence
        self._by_environment = environment.strip() not in ("", "0")
        self._stamp: int | None = None  # when the file that is known was written, ns
        self.on = False
        self.reason = ""
        if self._by_environment:
            self._set(on=True, reason=f"the environment has {VARIABLE}", stamp=0)
        self.look()

    def look(self) -> None:
        """See whether the file is there, and confirm what was seen; O(1), and raises nothing."""
        self._look()
        if self.presence is not None:
            self.presence.update(killed=self.on, kill_stamp=self._stamp)

    def _look(self) -> None:
        if self._file is None:
            return
        try:
            stamp: int | None = _stamp_of(self._file)
        except FileNotFoundError:
            stamp = None
        except OSError as error:  # a disk that does not answer: neither pull nor release for it
            LOG.warning("kill switch: %s cannot be looked for (%s)", self._file, error.strerror)
            return
        if stamp == self._stamp:
            return
        self._stamp, before = stamp, self._stamp
        if stamp is None:
            self._set(on=self._by_environment, reason=self.reason, stamp=before or 0)
        else:
            self._set(on=True, reason=switch_reason(self._file) or NO_REASON, stamp=stamp)

    def _set(self, *, on: bool, reason: str, stamp: int) -> None:
        changed = on != self.on
        self.on, self.reason = on, reason
        if not changed:
            return
        LOG.warning("kill switch: %s", f"pulled: {reason}" if on else "released: what is in force acts again")
        self._told(KillSwitchState(on=on, reason=reason, stamp=stamp))

    def rest_route(self, route: BuiltRoute) -> BuiltRoute:
        """The route as it serves while the switch is pulled: nothing on it may act."""
        if not self.on:
            return route
        return replace(route, certified=False, folds=(), levels=(), risks=False, refused="the kill switch is pulled")


def set_switch(file: Path, reason: str, author: str) -> bool:
    """Pull the switch, or write another reason into a pulled one; True: it was not pulled before. Raises OSError."""
    was_there = file.exists()
    if not file.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file.parent))
    try:
        write_whole(file, f"{reason} ({author})\n")
    except OSError:
        file.touch(PRIVATE)  # a full disk may have room for a file without a reason
    return not was_there


def clear_switch(file: Path) -> bool:
    """Release the switch; False: it was not pulled. Raises OSError."""
    try:
        file.unlink()
    except FileNotFoundError:
        return False
    return True


def _stamp_of(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return file.lstat().st_mtime_ns
