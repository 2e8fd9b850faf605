"""Logs of model traffic, read as calls: which format a file has, line by line, without sending anything.

It knows files and lines. What a record means stands in `formats` and `vllm`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from suffice.errors import ConfigError
from suffice.files import open_unpacked
from suffice.replay.logs import vllm
from suffice.replay.logs.formats import READERS, LoggedCall, detect_log_format

FORMATS = (*READERS, "vllm")
LOOKED_AT = 200  # lines at the head of a file from which its format is told


@dataclass(slots=True)
class Log:
    """What files of logs hold."""

    calls: list[LoggedCall] = field(default_factory=list)
    formats: list[str] = field(default_factory=list)  # of the files, in their order
    n_records: int = 0  # lines, or records of an array, that were looked at
    n_left_out: int = 0  # of them: failed, cached, no answer in it, or unreadable


def read_logs(paths: Sequence[Path], *, as_format: str | None = None) -> Log:
    """Read all calls of some files, `.gz` by suffix. Raises ConfigError with the file at fault.

    as_format  a name of FORMATS; None: told from each file
    """
    log = Log()
    for path in paths:
        try:
            name = as_format or _format(path)
            log.formats.append(name)
            before = len(log.calls)
            (_read_vllm if name == "vllm" else _read_json)(path, name, log)
        except (OSError, EOFError, zlib.error) as error:
            raise ConfigError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
        if len(log.calls) == before:
            raise ConfigError(f"{path}: holds no finished call with an answer in the format {name!r}")
    return log


def _format(path: Path) -> str:
    """Told from the first record or line that gives it away."""
    with open_unpacked(path) as file:
        head = [line.decode("utf-8", "replace") for line in islice(file, LOOKED_AT)]
    if any(vllm.LINE_MARK.search(line) and not line.lstrip().startswith("{") for line in head):
        return "vllm"
    for item in islice(_records(path), LOOKED_AT):
        name = detect_log_format(item) if item is not None else None
        if name is not None:
            return name
    raise ConfigError(f"{path}: has no format that is known; known: {', '.join(FORMATS)}; name one with --format")


def _read_json(path: Path, name: str, log: Log) -> None:
    for item in _records(path):
        log.n_records += 1
        call = READERS[name](item) if item is not None else None
        if call is None:
            log.n_left_out += 1
        else:
            log.calls.append(call)


def _read_vllm(path: Path, name: str, log: Log) -> None:  # noqa: ARG001 - one signature for both readers
    with open_unpacked(path) as file:
        for call in vllm.read_vllm_log(line.decode("utf-8", "replace") for line in file):
            log.n_records += 1
            log.calls.append(call)


def _records(path: Path) -> Iterator[Mapping[str, Any] | None]:
    """The objects of JSON lines, or of one JSON array; None for a line that is no object."""
    with open_unpacked(path) as file:
        if file.read(1) == b"[":
            yield from _array(path)
            return
    with open_unpacked(path) as file:
        for line in file:
            if not line.isspace():
                yield _object(line)


def _array(path: Path) -> Iterator[Mapping[str, Any] | None]:
    with open_unpacked(path) as file:
        whole = file.read()
    try:
        items = msgspec.json.decode(whole)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise ConfigError(f"{path}: begins as a JSON array and is none ({error})") from None
    yield from (item if isinstance(item, Mapping) else None for item in items)


def _object(line: bytes) -> Mapping[str, Any] | None:
    try:
        item = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeError):
        return None
    return item if isinstance(item, Mapping) else None
