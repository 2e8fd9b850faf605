"""Where an archive keeps what, in a folder or an object store, and the manifests that say which days exist.

    manifests/2026-01-31.json                             written last: a day without one does not exist
    route=math/day=2026-01-31/part-0000.parquet

Names and hashes come from whoever can write to the store: everything is checked before it is used.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote

import msgspec

from suffice.errors import ConfigError, StoreError, TraceError
from suffice.extras import how_to_install
from suffice.files import make_folder, whole_file
from suffice.store.audit.chain import Head

MANIFESTS: Final = "manifests"
NO_ROUTE: Final = "__HIVE_DEFAULT_PARTITION__"  # of requests that matched none, as Hive and its readers name null
MOST_MANIFEST_BYTES: Final = 16 * 2**20
MOST_PART_BYTES: Final = 4 * 2**30
MOST_NAMES: Final = 20_000  # of manifests, one a day
DAY: Final = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_PART: Final = re.compile(rf"route=[\w.%~-]{{1,900}}/day=({DAY.pattern})/part-\d{{4,6}}\.parquet", re.ASCII)
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class Part(msgspec.Struct, frozen=True, kw_only=True):
    name: str  # in the archive
    n_rows: int
    n_replayable: int  # of these, full runs by design
    n_bytes: int
    sha256: str

    @property
    def route(self) -> str:
        return route_in(self.name)


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """One day of a log. Its requests come after `since_seq` in the log, up to `until_seq`."""

    day: str  # UTC
    since_seq: int
    until_seq: int
    n_requests: int
    chain: Head | None  # of the audit log at the day's end; None: it had no chain
    parts: tuple[Part, ...]
    format: int = 1

    @property
    def content(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=1)

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, and so of everything in the day."""
        return hashlib.sha256(self.content).hexdigest()


_DECODER: Final = msgspec.json.Decoder(Manifest)


def part_name(route: str, day: str, number: int) -> str:
    return f"route={quote(route, safe='') or NO_ROUTE}/day={day}/part-{number:04}.parquet"


def route_in(name: str) -> str:
    """Return the route in a part's name or path; "" for requests that matched none."""
    route = next((one.removeprefix("route=") for one in Path(name).parts if one.startswith("route=")), NO_ROUTE)
    return "" if route == NO_ROUTE else unquote(route)


def is_archive(source: str | Path) -> bool:
    """Whether a trace source is the address of an object store, or a folder with manifests."""
    return "://" in str(source) or (Path(source) / MANIFESTS).is_dir()


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive at an address: a folder, or a URL of an object store, whose credentials are in the environment.

    cache  keeps the parts of a remote archive that were read, by their hashes
    """

    address: str
    cache: Path
    _store: Any  # of obstore, which has no common type for its stores
    _root: Path | None  # None: it is remote

    @classmethod
    def open(cls, address: str | Path, *, cache: Path, create: bool = False) -> Archive:
        """Open an archive. Raise ConfigError for an address that cannot be used or a missing folder."""
        try:
            from obstore.exceptions import BaseError
            from obstore.store import from_url
        except ImportError:
            raise ConfigError(f"an archive needs obstore: {how_to_install('archive')}") from None
        text = str(address)
        remote = "://" in text and not text.startswith("file://")
        root = None if remote else Path(unquote(text.removeprefix("file://"))).absolute()
        try:
            if root is not None and create:
                make_folder(root)
            store = from_url(text if root is None else root.as_uri())
            return cls(text if root is None else str(root), cache, store, root)
        except (BaseError, OSError, ValueError) as error:
            raise ConfigError(f"{text}: cannot be used as an archive: {_first_line(error)}") from None

    def read(self, name: str, *, most_bytes: int) -> bytes:
        """Raise TraceError for a missing or larger object, and StoreError when the store cannot be used."""
        try:
            result = self._store.get(name)
            n_bytes = result.meta["size"]
            content = bytes(result.bytes()) if n_bytes <= most_bytes else b""
        except FileNotFoundError:
            raise TraceError("is missing", file=self.place(name)) from None
        except _errors() as error:
            raise StoreError(f"{self.place(name)}: cannot be read: {_first_line(error)}") from None
        if n_bytes > most_bytes:
            raise TraceError(f"has {n_bytes:,} bytes; at most {most_bytes:,}", file=self.place(name))
        return content

    def write(self, name: str, content: bytes | Path) -> None:
        """Raise StoreError."""
        try:
            self._store.put(name, content)
        except _errors() as error:
            raise StoreError(f"{self.place(name)}: cannot be written: {_first_line(error)}") from None

    def delete(self, names: list[str]) -> None:
        """Raise StoreError."""
        try:
            self._store.delete(names)
        except _errors() as error:
            raise StoreError(f"{self.address}: {names[0]} cannot be deleted: {_first_line(error)}") from None

    def place(self, name: str) -> str:
        return f"{self.address.rstrip('/')}/{name}"

    # ---- days

    def days(self) -> list[str]:
        """Return the days that exist, oldest first. Raise StoreError."""
        names = list[str]()
        try:
            for page in self._store.list(MANIFESTS):
                names += [meta["path"] for meta in page]
                if len(names) > MOST_NAMES:
                    raise StoreError(f"{self.address}: lists more than {MOST_NAMES:,} manifests")
        except _errors() as error:
            why, mark, _ = _first_line(error).partition("Got invalid list response")  # behind it stands the reply
            raise StoreError(f"{self.address}: cannot be listed: {why}{mark}") from None
        stems = (Path(name).name.removesuffix(".json") for name in names)
        return sorted(stem for stem in stems if DAY.fullmatch(stem))

    def manifests(self) -> Iterator[Manifest]:
        for day in self.days():
            manifest = self.manifest(day)
            assert manifest is not None, "it is listed"
            yield manifest

    def manifest(self, day: str) -> Manifest | None:
        """Return None if the day does not exist. Raise TraceError for a manifest that cannot be right."""
        name = f"{MANIFESTS}/{day}.json"
        if day not in self.days():
            return None
        try:
            manifest = _DECODER.decode(self.read(name, most_bytes=MOST_MANIFEST_BYTES))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise TraceError(f"is not a manifest: {error}", file=self.place(name)) from None
        problem = _problem_of(manifest, day)
        if problem:
            raise TraceError(problem, file=self.place(name))
        return manifest

    # ---- parts

    def fetch(self, part: Part) -> Path:
        """Return a file with a part's content, checked. Raise TraceError if it is not what its manifest says."""
        if self._root is not None:
            path = self._root / part.name
            self._check(part, path)
            return path
        path = self.cache / part.sha256 / part.name
        if not path.is_file():
            content = self.read(part.name, most_bytes=part.n_bytes)
            with whole_file(path) as draft:
                draft.write_bytes(content)
        self._check(part, path)
        return path

    def _check(self, part: Part, path: Path) -> None:
        try:
            n_bytes = path.stat().st_size
            if n_bytes == part.n_bytes:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise TraceError(f"cannot be read: {error.strerror}", file=self.place(part.name)) from None
        if n_bytes != part.n_bytes:
            problem = f"has {n_bytes:,} bytes; its manifest says {part.n_bytes:,}"
            raise TraceError(problem, file=self.place(part.name))
        if digest != part.sha256:
            raise TraceError("is not the file of which its manifest has the hash", file=self.place(part.name))


def _problem_of(manifest: Manifest, day: str) -> str:
    if manifest.format != 1:
        return f"has the format {manifest.format}; this version reads format 1"
    if manifest.day != day:
        return f"is of {manifest.day!r:.40}, not of {day}"
    for part in manifest.parts:
        match = _PART.fullmatch(part.name)
        if match is None or match[1] != day:
            return f"names the part {part.name!r:.200}; needs route=…/day={day}/part-0000.parquet"
        if not _SHA256.fullmatch(part.sha256) or not 0 < part.n_bytes <= MOST_PART_BYTES or part.n_rows < 1:
            return f"cannot be right about {part.name!r:.200}: rows, bytes or hash"
    if len({part.name for part in manifest.parts}) < len(manifest.parts):
        return "names a part twice"
    n_rows = sum(part.n_rows for part in manifest.parts)
    return "" if n_rows == manifest.n_requests else f"says {manifest.n_requests:,} requests, and parts of {n_rows:,}"


def _errors() -> tuple[type[Exception], ...]:
    from obstore.exceptions import BaseError

    return (BaseError, OSError, ValueError)


def _first_line(error: Exception) -> str:
    """The sentence of an error, without the dump of internals that obstore puts behind it."""
    return str(error).strip().split("\n", 1)[0][:300] or type(error).__name__
