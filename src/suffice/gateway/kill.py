"""The kill switch: a file that disables early stopping on every route within 0.5 s, without database or network.

Runs in progress are not stopped either. If the file's presence cannot be determined, the switch keeps its state.
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
from suffice.store.rows.events import KillSwitchState
from suffice.telemetry import LOG

LOOK_S: Final = 0.5
VARIABLE: Final = "SUFFICE_KILL"  # in the environment at start-up: anything but "" and "0" turns it on
REASON: Final = "kill_switch"  # `Request.ungoverned` while it is on


class KillSwitch:
    """One gateway's view of the switch. `notify` gets a row for each change and must not block."""

    def __init__(
        self,
        file: Path | None = None,
        *,
        environment: str = "",
        notify: Callable[[KillSwitchState], object] = lambda _: 0,
        presence: Announcement | None = None,
    ) -> None:
        self.file, self._notify, self.presence = file, notify, presence
        self._by_environment = environment.strip() not in ("", "0")
        self._stamp: int | None = None  # modification time of the known file, ns
        self.order: KillSwitchState | None = None  # the newest for all replicas
        # Replaced by an order given here: the log may show it a moment longer.
        self._replaced: tuple[KillSwitchState | None, ...] = ()
        self.on, self.reason = False, ""
        if self._by_environment:
            self._set(on=True, reason=f"the environment has {VARIABLE}", stamp=0)
        self.check()

    def check(self) -> None:
        """Check whether the file exists and announce the state. Never raises."""
        self._read_file()
        self._announce()

    def follow(self, order: KillSwitchState | None, *, given_here: bool = False) -> None:
        """Apply the newest order for all replicas. A file of this gateway's own stays in effect."""
        if order == self.order or order in self._replaced:
            return
        self._replaced = (self.order,) if given_here else ()
        self.order = order
        if self._stamp is None and order is not None:
            self._set(on=self._by_environment or order.on, reason=order.reason, stamp=order.stamp, is_ordered=True)
        self._announce()

    def _announce(self) -> None:
        if self.presence is not None:
            stamp = (
                self.order.stamp if self._stamp is None and self.order is not None and self.order.on else self._stamp
            )
            self.presence.update(killed=self.on, kill_stamp=stamp, kill_reason=self.reason if self.on else "")

    def _read_file(self) -> None:
        if self.file is None:
            return
        try:
            stamp: int | None = _stamp_of(self.file)
        except FileNotFoundError:
            stamp = None
        except OSError as error:  # an unreadable disk changes nothing
            LOG.warning("kill switch: cannot check whether %s exists (%s)", self.file, error.strerror)
            return
        if stamp == self._stamp:
            return
        self._stamp, before = stamp, self._stamp
        if stamp is None:
            stays = self._by_environment or (self.order is not None and self.order.on)
            is_ordered = self.order is not None and self.order.stamp > (before or 0)  # the file went because of it
            self._set(on=stays, reason=self.reason, stamp=before or 0, is_ordered=is_ordered)
        else:
            self._set(on=True, reason=switch_reason(self.file) or NO_REASON, stamp=stamp)

    def _set(self, *, on: bool, reason: str, stamp: int, is_ordered: bool = False) -> None:
        """`is_ordered`: a person's order, which is in the log, says the same."""
        changed, self.on, self.reason = on != self.on, on, reason
        if changed:
            LOG.warning("kill switch: %s", f"pulled: {reason}" if on else "released: active policies may stop again")
        if changed and not is_ordered:
            self._notify(KillSwitchState(on=on, reason=reason, stamp=stamp))

    def apply(self, route: BuiltRoute) -> BuiltRoute:
        if not self.on:
            return route
        return replace(route, certified=False, folds=(), levels=(), risks=False, refused="the kill switch is pulled")


def set_switch(file: Path, reason: str, author: str) -> bool:
    """Return True if the switch was off. Raise OSError."""
    was_there = file.exists()
    if not file.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file.parent))
    try:
        write_whole(file, f"{reason} ({author})\n")
    except OSError:
        file.touch(PRIVATE)  # a full disk may have room for a file without a reason
    return not was_there


def clear_switch(file: Path) -> bool:
    """Return False if the switch was off. Raise OSError."""
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
