"""The kill switch: a file that disables early stopping on every route within 0.5 s, without database or network.

Runs in progress are not stopped either. If the file's presence cannot be determined, the switch keeps its state. A file
that carries out an order for all replicas has the order's stamp, and a newer release removes it; any other file stays
until a person removes it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal, TypeAlias

from suffice.files import PRIVATE, write_whole
from suffice.serving.route import BuiltRoute
from suffice.store.database.presence import Announcement, SwitchFile, changed_ns, read_switch, switch_text
from suffice.store.routes.deployments import stamp_after
from suffice.store.rows.events import KillSwitchState
from suffice.telemetry import LOG

LOOK_S: Final = 0.5
VARIABLE: Final = "SUFFICE_KILL"  # in the environment at start-up: anything but "" and "0" turns it on
REASON: Final = "kill_switch"  # `Request.ungoverned` while it is on


Holder: TypeAlias = Literal["", "order", "file", "environment"]


class KillSwitch:
    """One gateway's view of the switch. `notify` gets a row for each change and must not block."""

    def __init__(
        self,
        file: Path | None = None,
        *,
        environment: str = "",
        notify: Callable[[KillSwitchState], object] = lambda _: 0,
        presence: Announcement | None = None,
        gateway: str = "",
    ) -> None:
        self.file = file
        self._notify = notify
        self.presence = presence
        self._gateway = gateway
        self._by_environment = environment.strip() not in ("", "0")
        self._known: SwitchFile | None = None  # the file as it was seen last
        self.order: KillSwitchState | None = None  # the newest for all replicas
        self.on, self.reason = False, ""
        if self._by_environment:
            self._set(on=True, reason=f"the environment has {VARIABLE}", stamp=0)
        self.check()

    @property
    def held_by(self) -> Holder:
        """What keeps it on: an order, which a release ends, or what only a person at this machine can take away."""
        if not self.on:
            return ""
        if self._known is not None and self._known.order is None:
            return "file"
        return "environment" if self._by_environment else "order"

    @property
    def is_local(self) -> bool:
        """Whether a release does not release this gateway."""
        return self.held_by in ("file", "environment")

    def next_stamp(self, now_s: float) -> int:
        """Return the stamp of an order given here: newer than every order known here, whatever the clocks say."""
        own = 0 if self._known is None else self._known.order or 0
        return max(stamp_after(self.order, int(now_s * 1e9)), own + 1)

    def check(self) -> None:
        """Check whether the file exists and announce the state. Never raises."""
        self._read_file()
        self._announce()

    def follow(self, order: KillSwitchState | None) -> None:
        """Apply an order for all replicas, unless a newer one is known. What a person made here stays in effect."""
        if order is None or (self.order is not None and order.stamp <= self.order.stamp):
            return
        self._read_file()
        self.order = order
        if order.on:
            if not self.on:
                self._set(on=True, reason=order.reason, stamp=order.stamp, is_ordered=True)
        else:
            self._release(order)
        self._announce()

    def _release(self, order: KillSwitchState) -> None:
        try:
            if self.file is not None:
                remove_ordered(self.file, order.stamp)
                self._known = read_switch(self.file)
        except FileNotFoundError:
            self._known = None
        except OSError as error:
            LOG.error("kill switch: %s was released, but cannot be removed (%s)", self.file, error.strerror)
        if self._known is None and not self._by_environment:
            self._set(on=False, reason=order.reason, stamp=order.stamp, is_ordered=True)
        elif self.is_local:
            LOG.warning("kill switch: released elsewhere, but still on here, by its %s: %s", self.held_by, self.reason)
            self._tell(on=True, reason=f"still on after the release: {self.reason}", stamp=order.stamp)

    def _announce(self) -> None:
        if self.presence is None:
            return
        stamp = self.order.stamp if self.order is not None and self.order.on else None
        if self._known is not None:
            stamp = max(self._known.stamp, stamp or 0)
        self.presence.update(
            killed=self.on, kill_stamp=stamp, kill_reason=self.reason if self.on else "", kill_local=self.is_local
        )

    def _read_file(self) -> None:
        if self.file is None:
            return
        before = self._known
        try:
            if before is not None and before.changed_ns == changed_ns(self.file):
                return
            self._known = read_switch(self.file)
        except FileNotFoundError:
            self._known = None
        except OSError as error:  # an unreadable disk changes nothing
            LOG.warning("kill switch: cannot check whether %s exists (%s)", self.file, error.strerror)
            return
        if self._known is not None:
            self._set(on=True, reason=self._known.reason, stamp=self._known.stamp)
        elif before is not None:
            stays = self._by_environment or (self.order is not None and self.order.on)
            self._set(on=stays, reason=self.reason, stamp=before.stamp)

    def _set(self, *, on: bool, reason: str, stamp: int, is_ordered: bool = False) -> None:
        """`is_ordered`: a person's order, which is in the log, says the same."""
        changed = on != self.on
        self.on = on
        self.reason = reason
        if changed:
            LOG.warning("kill switch: %s", f"pulled: {reason}" if on else "released: active policies may stop again")
        if changed and not is_ordered:
            self._tell(on=on, reason=reason, stamp=stamp)

    def _tell(self, *, on: bool, reason: str, stamp: int) -> None:
        self._notify(KillSwitchState(on=on, reason=reason, stamp=stamp, gateway=self._gateway))

    def apply(self, route: BuiltRoute) -> BuiltRoute:
        if not self.on:
            return route
        return replace(route.in_full(), refused="the kill switch is pulled")


def set_switch(file: Path, reason: str, author: str, *, order: int | None = None) -> bool:
    """Return True if the switch was off. Raise OSError.

    order  the stamp of the order that it carries out, which a later release ends; None: only a person removes the file
    """
    was_there = file.exists()
    if not file.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file.parent))
    try:
        write_whole(file, switch_text(f"{reason} ({author})", order))
    except OSError:
        file.touch(PRIVATE)  # a full disk may have room for a file without a reason
    return not was_there


def remove_ordered(file: Path, stamp: int) -> None:
    """Remove the file of an order, unless a newer order wrote it, or a person. Raise OSError."""
    with contextlib.suppress(FileNotFoundError):
        known = read_switch(file)
        if known.order is not None and known.order <= stamp:
            file.unlink()


def clear_switch(file: Path) -> bool:
    """Return False if the switch was off. Raise OSError."""
    try:
        file.unlink()
    except FileNotFoundError:
        return False
    return True
