"""A recording on disk that survives being killed: no run is lost, none stands there twice.

While a recording runs, each finished run is one line of `OUT.part`, on the disk before the next
question begins (`jsonl.RunLog`). At every orderly end all lines are packed into `OUT`, which appears at
once or not at all. The settings stand in each run's `meta`: a recording goes on only as it was begun.
"""

from __future__ import annotations

import gzip
import shutil
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import msgspec

from suffice.errors import ConfigError, StoreError
from suffice.files import open_unpacked, whole_file
from suffice.replay.record.ask import RecordingRecipe
from suffice.replay.traces.jsonl import RunLog, RunRow


class RecordingFile:
    """The file of one recording; use it in a `with` block.

    `done` holds the ids of the questions that are recorded. Entering raises ConfigError when the file was
    recorded with other settings, TraceError when it is no recording, and StoreError when it cannot be used.
    """

    def __init__(self, out: Path, recipe: RecordingRecipe) -> None:
        self.out, self.part = out, out.with_name(out.name + ".part")
        self.done: set[str] = set()
        self.torn = False  # had a crash cut the last line short?
        self._recipe = recipe
        self._open = ExitStack()
        self._log: RunLog | None = None

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            try:
                if not self.part.exists() and self.out.exists():
                    self._unpack()
                log = opened.enter_context(RunLog(self.part))
                opened.enter_context(_alone(self.part))
            except OSError as error:
                raise StoreError(f"{self.part}: cannot be used ({error.strerror or error})") from None
            self._take_up(log)
            self._log, self._open = log, opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._log = None
        with self._open:  # the file stays ours until it is packed
            if self.done:
                self._pack()
            else:
                self.part.unlink(missing_ok=True)

    def append(self, row: RunRow) -> None:
        """Write one finished run; it is on the disk when this returns. Raises StoreError."""
        assert self._log is not None
        try:
            self._log.append(row)
        except OSError as error:
            raise StoreError(f"{self.part}: cannot be written ({error.strerror or error})") from None
        self.done.add(row.question_id)

    def _take_up(self, log: RunLog) -> None:
        """Note which questions are done; refuse what was recorded in another way."""
        self.torn = log.torn
        for _, _, run, question in log.ids:
            if run != self._recipe.hash:
                raise ConfigError(
                    f"{self.out}: was recorded with other settings: {self._difference(run)};"
                    " record with those, or name another file with --out"
                )
            self.done.add(question)

    def _difference(self, run: str) -> str:
        """Which settings were others in the recording `run`, in words."""
        with self.part.open("rb") as lines:
            for line in lines:
                row: Mapping[str, Any] = msgspec.json.decode(line)
                if row["run"] == run:
                    return describe_difference(recorded_with(row.get("meta")), self._recipe.as_data())
        raise AssertionError("unreachable")

    def _unpack(self) -> None:
        """Go on behind a packed recording."""
        try:
            with whole_file(self.part) as draft, draft.open("wb") as part, open_unpacked(self.out) as packed:
                shutil.copyfileobj(packed, part)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise StoreError(f"{self.out}: is damaged ({error})") from None

    def _pack(self) -> None:
        """Put every whole line into the named file; a line that could not be written to its end stays out."""
        with whole_file(self.out) as draft, draft.open("wb") as plain, self.part.open("rb") as part:
            # Without name and time the same runs give the same bytes.
            squeezed = gzip.GzipFile("", "wb", fileobj=plain, mtime=0) if self.out.suffix == ".gz" else None
            packed: IO[bytes] = plain if squeezed is None else squeezed  # type: ignore[assignment]  # it writes bytes as any file does
            packed.writelines(line for line in part if line.endswith(b"\n"))
            if squeezed is not None:
                squeezed.close()
        self.part.unlink()


def recorded_with(meta: str | None) -> Mapping[str, Any]:
    """The settings that a run's `meta` names; empty: it was not recorded here."""
    try:
        found = msgspec.json.decode(meta or "{}")["recorded_with"]
    except (msgspec.DecodeError, KeyError, TypeError):
        return {}
    return found if isinstance(found, Mapping) else {}


def describe_difference(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> str:
    """The first settings that differ, in words."""
    if not theirs:
        return "it does not say with which"
    found = []
    for name, value in mine.items():
        other = theirs.get(name)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            found += [
                f"{name}.{key} was {other.get(key)!r} and is now {value[key]!r}"
                for key in value
                if other.get(key) != value[key]
            ]
        elif other != value:
            found.append(f"{name} was {other!r} and is now {value!r}")
    return ", ".join(found[:3]) or "by another version of suffice"


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a file against a second recorder, where the system can. Raises StoreError when there is one."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(f"{path}: another recorder is writing to it; wait for it, or end it") from None
        yield
