"""A minimal HTTP/1.1 server side, with every way to misbehave, that notices a hang-up even while it writes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace

HEAD_LIMIT_BYTES = 64 * 1024
BODY_LIMIT_BYTES = 64 * 2**20
CLOSE_S = 1.0  # how long a client may take to read what is left


class BadHttp(ValueError):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str:
        return next((v for k, v in self.headers if k.lower() == name), "")

    @property
    def keep_alive(self) -> bool:
        return "close" not in self.header("connection").lower()


class ClientConnection:
    """One client's connection. `gone` is set as soon as the client's side is closed."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.gone = asyncio.Event()
        self._reader = reader
        self._buffer = bytearray()
        self._arrived = asyncio.Event()
        self._pump = asyncio.create_task(self._read())

    async def _read(self) -> None:
        # Reading never pauses, so that a hang-up is noticed while a response is being sent.
        with contextlib.suppress(ConnectionError, OSError):
            while data := await self._reader.read(65536):
                self._buffer += data
                self._arrived.set()
        self.gone.set()
        self._arrived.set()

    async def _more(self) -> bool:
        if self.gone.is_set():
            return False
        await self._arrived.wait()
        self._arrived.clear()
        return True

    async def _take(self, n_bytes: int) -> bytes:
        if n_bytes > BODY_LIMIT_BYTES:
            raise BadHttp(f"body of {n_bytes} bytes; at most {BODY_LIMIT_BYTES}")
        while len(self._buffer) < n_bytes:
            if not await self._more():
                raise ConnectionResetError
        taken = bytes(self._buffer[:n_bytes])
        del self._buffer[:n_bytes]
        return taken

    async def _line_end(self, mark: bytes, limit: int) -> bytes:
        while (at := self._buffer.find(mark)) < 0:
            if len(self._buffer) > limit:
                raise BadHttp(f"more than {limit} bytes before {mark!r}")
            if not await self._more():
                raise ConnectionResetError
        return await self._take(at + len(mark))

    async def request(self) -> HttpRequest:
        """Read the next request. Raise ConnectionResetError if there is none, BadHttp if it is invalid."""
        head = (await self._line_end(b"\r\n\r\n", HEAD_LIMIT_BYTES)).decode("latin-1")
        first, *lines = head[:-4].split("\r\n")
        parts = first.split(" ")
        if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
            raise BadHttp(f"request line {first[:80]!r}; need 'METHOD target HTTP/1.1'")
        fields = (line.partition(":") for line in lines)
        headers = tuple((name.strip(), value.strip()) for name, _, value in fields)
        request = HttpRequest(method=parts[0], target=parts[1], headers=headers, body=b"")
        if request.header("expect").lower() == "100-continue":
            self.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return replace(request, body=await self._body(request))

    async def _body(self, request: HttpRequest) -> bytes:
        if "chunked" in request.header("transfer-encoding").lower():
            return await self._chunked_body()
        length = request.header("content-length") or "0"
        if not length.isascii() or not length.isdigit():
            raise BadHttp(f"content-length {length[:40]!r}; need a whole number")
        return await self._take(int(length))

    async def _chunked_body(self) -> bytes:
        parts = list[bytes]()
        while True:
            line = await self._line_end(b"\r\n", 1024)
            try:
                size = int(line.split(b";")[0], 16)
            except ValueError:
                raise BadHttp(f"chunk size {line[:40]!r}; need a hexadecimal number") from None
            data = (await self._take(size + 2))[:-2]
            if not size:
                return b"".join(parts)
            parts.append(data)

    def reset(self) -> None:
        """Abort the connection, so that the client sees a reset and not an end."""
        raw = self.writer.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def close(self) -> None:
        """Close our side and stop reading. A client that does not read the rest in CLOSE_S is cut off."""
        self._pump.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._pump
        self.writer.close()
        try:
            async with asyncio.timeout(CLOSE_S):
                await self.writer.wait_closed()
        except (ConnectionError, OSError):  # a time-out is an OSError too
            self.writer.transport.abort()


class Response:
    def __init__(self, connection: ClientConnection, *, goes_on: bool = False) -> None:
        self._connection, self._goes_on = connection, goes_on
        self._piece_bytes: int | None = None
        self.status: int | None = None
        self.n_bytes_sent = 0
        self.complete = False

    def cut_into(self, piece_bytes: int | None) -> None:
        """Cut the body into HTTP chunks of this size; None: one for each `send`."""
        self._piece_bytes = piece_bytes

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        self._head(status, {**headers, "transfer-encoding": "chunked"})
        await self._flush()

    async def whole(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self._head(status, {**headers, "content-length": str(len(body))})
        self._write(body)
        self.n_bytes_sent += len(body)
        self.complete = True
        await self._flush()

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.status = status
        lines = [f"HTTP/1.1 {status} {'OK' if status < 400 else 'Error'}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self._write("\r\n".join([*lines, "", ""]).encode("latin-1"))

    async def send(self, data: bytes) -> None:
        size = self._piece_bytes or max(1, len(data))
        for at in range(0, len(data), size):
            self._write_chunk(data[at : at + size])
            await self._flush()
            await asyncio.sleep(0)

    async def finish(self, data: bytes = b"") -> None:
        """Send the last part and complete the body, in one write, so that no reader can act in between."""
        if self._piece_bytes is not None:
            await self.send(data)
        elif data:
            self._write_chunk(data)
        self._write(b"0\r\n\r\n")
        self.complete = True
        await self._flush()

    def _write_chunk(self, data: bytes) -> None:
        if data:
            self._write(b"%x\r\n%s\r\n" % (len(data), data))
            self.n_bytes_sent += len(data)

    def _write(self, data: bytes) -> None:
        if not (self._goes_on and self._connection.gone.is_set()):
            self._connection.writer.write(data)

    async def _flush(self) -> None:
        try:
            await self._connection.writer.drain()
        except ConnectionError:
            if not self._goes_on:
                raise
