"""Reads archives: their files as traces, and their runs as the log had them, to fit models without the database."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from suffice.errors import TraceError
from suffice.replay.archive.layout import Archive, Manifest, Part, is_archive
from suffice.replay.archive.writing import ArchivedLabel
from suffice.replay.traces.formats import open_parquet
from suffice.store.database.views import EpisodeWithLabels, StoredLabel
from suffice.store.rows.events import decode_as
from suffice.types import Episode, Outcome, Request

BATCH_ROWS: Final = 1_000
_LABELS: Final = msgspec.json.Decoder(list[ArchivedLabel])
_BODIES: Final = ("seq", "request", "outcome_seq", "outcome", "labels")


def expand_archives(sources: Iterable[str | Path], *, cache: Path) -> list[Path]:
    """Replace each archive among trace files by the files of its days. Raise TraceError, ConfigError and StoreError."""
    files = list[Path]()
    for source in sources:
        if not is_archive(source):
            files.append(Path(source))
            continue
        archive = Archive.open(source, cache=cache)
        own = [archive.fetch(part) for manifest in archive.manifests() for part in manifest.parts if part.n_replayable]
        if not own:
            raise TraceError("is an archive without full runs", file=str(source))
        files += own
    return files


def verify_day(archive: Archive, manifest: Manifest) -> int:
    """Check a day's files and rows against its manifest; return its rows. Raise TraceError."""
    n_rows = 0
    for part in manifest.parts:
        places = [run.episode.request.route for run in read_part(archive, part)]
        if len(places) != part.n_rows or set(places) != {part.route}:
            problem = f"has {len(places):,} requests of {sorted(set(places))}; its manifest says {part.n_rows:,}"
            raise TraceError(problem, file=archive.place(part.name))
        n_rows += len(places)
    return n_rows


def read_archived_runs(archive: Archive, route: str) -> Iterator[EpisodeWithLabels]:
    """Yield the runs of a route in the order of their requests, as `views.read_episodes` does from the log.

    Answers are letters; labels have verdicts instead of references. Raise TraceError.
    """
    for manifest in archive.manifests():
        for part in manifest.parts:
            if part.route == route:
                yield from read_part(archive, part)


def read_part(archive: Archive, part: Part) -> Iterator[EpisodeWithLabels]:
    path, number = archive.fetch(part), 0
    with open_parquet(path, pre_buffer=False) as file:
        missing = [name for name in _BODIES if name not in file.schema_arrow.names]
        if missing:
            raise TraceError("is missing", file=archive.place(part.name), column=missing[0])
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=list(_BODIES)):
            for row in batch.to_pylist():
                number += 1
                yield _run_of(row, archive.place(part.name), number)


def _run_of(row: dict[str, Any], file: str, number: int) -> EpisodeWithLabels:
    try:
        request, outcome = decode_as(Request, row["request"]), decode_as(Outcome, row["outcome"])
        labels = tuple(StoredLabel(one.seq, one.feedback, one.at_s) for one in _LABELS.decode(row["labels"]))
        seq = max(row["seq"], row["outcome_seq"])
    except (ValueError, TypeError) as error:
        raise TraceError(f"cannot be read: {error}", file=file, row=number) from None
    return EpisodeWithLabels(seq=seq, episode=Episode(request=request, outcome=outcome), labels=labels)
