"""A mail server on loopback that does what a real one does and what a bad one may do; it keeps all that it heard."""

from __future__ import annotations

import base64
import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Tls = Literal["none", "starttls", "at once", "promised only"]  # the last: it offers STARTTLS and then has none


@dataclass
class Served:
    """What came, and where."""

    host: str
    port: int
    bare: list[bytes] = field(default_factory=list)  # lines that anybody on the way could have read
    hidden: list[bytes] = field(default_factory=list)  # lines inside TLS
    mails: list[bytes] = field(default_factory=list)
    ready: threading.Event = field(default_factory=threading.Event)


@dataclass
class MailServer:
    """How it behaves."""

    tls: Tls = "none"
    certificate: Path | None = None  # with its key
    login: tuple[str, str] | None = None  # whom it lets in; None: everybody, without asking
    refuses: bool = False  # every recipient
    gossips: bool = False  # says again, in its refusals, what it was told

    @contextlib.contextmanager
    def serving(self) -> Iterator[Served]:
        """Serve in a thread, one client after the other."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            made = Served("127.0.0.1", listener.getsockname()[1])
            thread = threading.Thread(target=self._accept, args=(listener, made), daemon=True)
            thread.start()
            try:
                yield made
            finally:
                with contextlib.suppress(OSError):
                    listener.shutdown(socket.SHUT_RDWR)
                thread.join(10)
                assert not thread.is_alive()

    def _accept(self, listener: socket.socket, made: Served) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.settimeout(10)
            # A client that does not trust us goes away in the middle: that is its right.
            with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
                opened.enter_context(connection)
                self._talk(self._hidden(connection, opened) if self.tls == "at once" else connection, made, opened)

    def _hidden(self, connection: socket.socket, opened: contextlib.ExitStack) -> ssl.SSLSocket:
        assert self.certificate is not None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate)
        return opened.enter_context(context.wrap_socket(connection, server_side=True))

    def _talk(self, connection: socket.socket, made: Served, opened: contextlib.ExitStack) -> None:
        lines = opened.enter_context(connection.makefile("rb"))
        known = self.login is None

        def say(text: str) -> None:
            connection.sendall(text.encode() + b"\r\n")

        say("220 here")
        while line := lines.readline():
            (made.hidden if isinstance(connection, ssl.SSLSocket) else made.bare).append(line)
            word = line[:4].upper()
            if word == b"EHLO":
                say("\r\n".join(f"250-{one}" for one in ("here", *self._offers(connection))) + "\r\n250 8BITMIME")
            elif word == b"STAR" and self.tls == "starttls":
                say("220 go on")
                connection = self._hidden(connection, opened)
                lines = opened.enter_context(connection.makefile("rb"))
            elif word == b"STAR":
                say("454 not now")
            elif word == b"AUTH":
                known = self._knows(line)
                output = line.decode().strip() if self.gossips else "no"
                say("235 welcome" if known else f"535 {output}")
            elif word == b"DATA":
                say("354 go on")
                mail = b""
                while (part := lines.readline()) not in (b".\r\n", b""):
                    mail += part
                made.mails.append(mail)
                say("250 taken")
            elif word == b"QUIT":
                say("221 bye")
                return
            else:
                say("550 secret words" if word == b"RCPT" and self.refuses else "250 fine" if known else "530 who?")

    def _offers(self, connection: socket.socket) -> list[str]:
        hidden = isinstance(connection, ssl.SSLSocket)
        tls = ["STARTTLS"] if self.tls in ("starttls", "promised only") and not hidden else []
        return [*tls, *(["AUTH PLAIN LOGIN"] if self.login is not None else [])]

    def _knows(self, line: bytes) -> bool:
        assert self.login is not None
        user, password = self.login
        return line.split()[1:] == [b"PLAIN", base64.b64encode(f"\0{user}\0{password}".encode())]
