"""How many clients may be connected, in total and from one address, and who makes room for whom.

At a limit, a new connection takes the place of the one that has waited longest for its client: for a request's head
first, else for a body. A request that came whole is never given up; where there are only such, the new one is refused.
So half-open connections, however many, keep nobody out.
"""

from __future__ import annotations

import socket
from enum import IntEnum
from typing import Protocol


class ConnectionPhase(IntEnum):
    """What a connection waits for."""

    HEAD = 0  # the client: the head of a request, or its first byte
    BODY = 1  # the client: the rest of a body
    ANSWER = 2  # us


class Peer(Protocol):
    """One connection, as far as it is counted."""

    phase: ConnectionPhase

    def evict(self) -> None:
        """Close it: its place is needed."""


class Connections:
    """Counts connections. Each belongs to the address that it came from.

    most              at once; None: no limit
    most_per_address  likewise for each address
    """

    def __init__(self, *, most: int | None = None, most_per_address: int | None = None) -> None:
        self.most, self.most_per_address = most, most_per_address
        self._address_of: dict[Peer, str | bytes] = {}
        self._by_address: dict[str | bytes, dict[Peer, None]] = {}  # the one that has waited longest is first
        self._waiting: tuple[dict[Peer, None], ...] = ({}, {})  # by phase; likewise

    def __len__(self) -> int:
        return len(self._address_of)

    def admit(self, peer: Peer, host: str) -> str | None:
        """Count a new connection, which waits for a head. Returns why there is no place for it; None: there is."""
        address = _network_of(host)
        same = self._by_address.get(address, {})
        if self.most_per_address is not None and len(same) >= self.most_per_address and not self._evict_of(same):
            return f"server.max_connections_per_address: {self.most_per_address} requests are being answered"
        if self.most is not None and len(self) >= self.most and not self._evict_any():
            return f"server.max_connections: {self.most} requests are being answered"
        self._address_of[peer] = address
        self._by_address.setdefault(address, {})[peer] = None
        self._waiting[ConnectionPhase.HEAD][peer] = None
        return None

    def move(self, peer: Peer, phase: ConnectionPhase) -> None:
        """A connection waits for something else now."""
        before, peer.phase = peer.phase, phase
        if peer not in self._address_of:
            return
        if before != ConnectionPhase.ANSWER:
            self._waiting[before].pop(peer, None)
        if phase != ConnectionPhase.ANSWER:
            self._waiting[phase][peer] = None
            same = self._by_address[self._address_of[peer]]
            del same[peer]
            same[peer] = None

    def forget(self, peer: Peer) -> None:
        """A connection is closed; to say so twice is harmless."""
        address = self._address_of.pop(peer, None)
        if address is None:
            return
        same = self._by_address[address]
        del same[peer]
        if not same:
            del self._by_address[address]
        for waiting in self._waiting:
            waiting.pop(peer, None)

    def _evict_any(self) -> bool:
        for waiting in self._waiting:
            if waiting:
                self._evict(next(iter(waiting)))
                return True
        return False

    def _evict_of(self, same: dict[Peer, None]) -> bool:
        for phase in (ConnectionPhase.HEAD, ConnectionPhase.BODY):
            found = next((peer for peer in same if peer.phase == phase), None)
            if found is not None:
                self._evict(found)
                return True
        return False

    def _evict(self, peer: Peer) -> None:
        self.forget(peer)
        peer.evict()


def _network_of(host: str) -> str | bytes:
    """What counts as one address: an IPv4 address, or the 64 bits of an IPv6 address that one customer is given."""
    if ":" not in host:
        return host
    try:
        packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    except OSError:
        return host
    if packed.startswith(bytes(10) + b"\xff\xff"):  # IPv4 at a socket for both
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return packed[:8]
