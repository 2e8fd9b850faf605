"""A file that is there in full or not at all.

It is written under another name in the same folder, synced, and renamed. A reader sees the old
file or the new one, and an error in the middle leaves the old one as it was.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a name to write to; after the block it is `path`. After an error nothing is left.

    Folders that are missing are made. Raises OSError as the system does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.part")
    try:
        part.open("xb").close()
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text file in UTF-8, in full or not at all; half a surrogate pair becomes `?`."""
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8", errors="replace", newline="\n")
