"""A recording on disk that survives being killed: no run is lost, none stands there twice.

While a recording runs, each finished run is one line of `OUT.part`, on the disk before the next
question counts as begun. At every orderly end all lines are packed into `OUT`, which appears at once or
not at all. A line torn by a crash is cut off when the recording is resumed.
"""

from __future__ import annotations

import contextlib
import gzip
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from suffice.errors import ConfigError, StoreError
from suffice.replay.record_ask import Recipe

BLOCK_BYTES = 2**20


class Recording:
    """The file of one recording; use it in a `with` block.

    `done` holds the ids of the questions that are recorded. Entering raises ConfigError when the file was
    recorded with other settings, or is no recording, and StoreError when it cannot be written.
    """

    def __init__(self, out: Path, recipe: Recipe) -> None:
        self.out, self.part = out, out.with_name(out.name + ".part")
        self.done: set[str] = set()
        self.n_torn_bytes = 0          # of a line that a crash had cut short
        self._recipe = recipe
        self._file: int | None = None

    def __enter__(self) -> Self:
        try:
            if not self.part.exists() and self.out.exists():
                self._unpack()
            self._file = os.open(self.part, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            self._take_up(self._file)
        except OSError as error:
            self._close()
            raise StoreError(f"{self.part}: cannot be used ({error.strerror})") from None
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        if self.done:
            self._pack()
        else:
            self.part.unlink(missing_ok=True)

    def append(self, run: Mapping[str, Any]) -> None:
        """Write one finished run; it is on the disk when this returns. Raises StoreError."""
        assert self._file is not None
        line = memoryview(msgspec.json.encode(run) + b"\n")
        end = os.fstat(self._file).st_size
        try:
            while line:
                line = line[os.write(self._file, line):]
            os.fsync(self._file)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, end)  # half a line must not stand before the next one
            raise StoreError(f"{self.part}: cannot be written ({error.strerror})") from None
        self.done.add(str(run["question_id"]))

    def _unpack(self) -> None:
        """Go on behind a packed recording."""
        with _atomic(self.part) as part, open_lines(self.out) as packed:
            while block := packed.read(BLOCK_BYTES):
                part.write(block)

    def _pack(self) -> None:
        with _atomic(self.out) as packed, self.part.open("rb") as part:
            if self.out.suffix == ".gz":
                # No time and no name inside: the same runs make the same bytes.
                with gzip.GzipFile(filename="", fileobj=packed, mode="wb", mtime=0) as squeezed:
                    while block := part.read(BLOCK_BYTES):
                        squeezed.write(block)
            else:
                while block := part.read(BLOCK_BYTES):
                    packed.write(block)
        self.part.unlink()

    def _take_up(self, file: int) -> None:
        """Read what is there: note which questions are done, cut a torn last line off."""
        end, number = 0, 0
        with os.fdopen(os.dup(file), "rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                number += 1
                self._check(line, number)
                end += len(line)
        self.n_torn_bytes = os.fstat(file).st_size - end
        if self.n_torn_bytes:
            os.ftruncate(file, end)
            os.fsync(file)

    def _check(self, line: bytes, number: int) -> None:
        where = f"{self.out}:{number}"
        try:
            run = msgspec.json.decode(line)
            question, settings = run["question_id"], run["meta"]["recorded_with"]
        except (msgspec.DecodeError, UnicodeError, KeyError, TypeError):
            raise ConfigError(f"{where}: is no run that `suffice record` wrote; name another file with --out") from None
        mine = self._recipe.as_data()
        if settings != mine:
            raise ConfigError(
                f"{where}: was recorded with other settings: {_difference(settings, mine)};"
                " record with those, or name another file with --out"
            )
        if question in self.done:
            raise ConfigError(f"{where}: question {question!r:.80} is there twice")
        self.done.add(question)

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


def _difference(theirs: object, mine: Mapping[str, Any]) -> str:
    """The first settings that differ, in words."""
    if not isinstance(theirs, Mapping):
        return "none that could be read"
    found = []
    for name, value in mine.items():
        other = theirs.get(name)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            found += [
                f"{name}.{key} was {other.get(key)!r} and is now {value.get(key)!r}"
                for key in value
                if other.get(key) != value.get(key)
            ]
        elif other != value:
            found.append(f"{name} was {other!r} and is now {value!r}")
    return ", ".join(found[:3]) or "by another version of suffice"


@contextlib.contextmanager
def _atomic(path: Path) -> Iterator[Any]:
    """A file that appears whole, or not at all."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.draft")
    try:
        with draft.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def open_lines(path: Path) -> Iterator[Any]:
    """The bytes of a file of JSON lines, gzip or plain. Raises ConfigError where the gzip is damaged."""
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rb") as file:
                yield file
        else:
            with path.open("rb") as plain:
                yield plain
    except (EOFError, gzip.BadGzipFile) as error:
        raise ConfigError(f"{path}: is damaged ({error})") from None
