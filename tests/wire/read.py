"""A stream on file: a few header lines, a line of dashes, then the bytes as the engine sent them.

    # engine: llama.cpp               … which engine, and its version where it is known
    # evidence: recorded              or synthetic: written from the engine's documentation
    # source: …                       the command that recorded it, or the documentation it was written from
    # request: POST /v1/… {…}         what was asked
    # expect: {…}                     what a client must read in it
    ---
    data: …

`expect` is read off the bytes by whoever made the file, never by the code that is tested.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STREAMS = Path(__file__).parent / "streams"
MARK = b"---\n"


@dataclass(frozen=True)
class Stream:
    """One file."""

    name: str
    head: dict[str, str]
    body: bytes

    @property
    def method(self) -> str:
        return self.head["request"].split(" ")[0]

    @property
    def path(self) -> str:
        return self.head["request"].split(" ")[1]

    @property
    def request(self) -> dict[str, Any]:
        """The request's body."""
        request: dict[str, Any] = json.loads(self.head["request"].split(" ", 2)[2])
        return request

    @property
    def expect(self) -> dict[str, Any]:
        expect: dict[str, Any] = json.loads(self.head["expect"])
        return expect

    @property
    def is_events(self) -> bool:
        return not self.body.startswith(b"{")

    @property
    def is_chat(self) -> bool:
        return self.path == "/v1/chat/completions"


def read(path: Path) -> Stream:
    """Read one file."""
    head, mark, body = path.read_bytes().partition(MARK)
    assert mark, f"{path.name}: no line of dashes"
    lines = [line.removeprefix("# ").partition(": ") for line in head.decode().splitlines()]
    return Stream(path.stem, {key: value for key, _, value in lines}, body)


def write(name: str, head: dict[str, str], body: bytes) -> Path:
    """Write one file."""
    path = STREAMS / f"{name}.stream"
    path.write_bytes("".join(f"# {k}: {v}\n" for k, v in head.items()).encode() + MARK + body)
    return path


def all_streams() -> list[Stream]:
    """Every file, by name."""
    return [read(path) for path in sorted(STREAMS.glob("*.stream"))]
