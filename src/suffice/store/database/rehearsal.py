"""Decides on the present log as a writer does, and keeps the rows instead of writing them: the preview of a change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from suffice.store.database.decisions import Decisions, JobLease
from suffice.store.database.views import locate_event
from suffice.store.rows.events import Event, key_of


class RehearsedDecisions(Decisions):
    """Borrows the log of a writer, which stays open."""

    rehearses = True

    def __init__(self, writer: Decisions) -> None:
        self.path, self.now, self.monotonic_s = writer.path, writer.now, writer.monotonic_s
        self.database, self.owner, self.redact = writer.database, writer.owner, writer.redact
        self.events: list[Event] = []  # that would be written

    def __post_init__(self, create: bool) -> None:
        """Open nothing."""

    def close(self) -> None:
        """Release nothing."""

    def write(
        self,
        lease: JobLease | None,
        events: Iterable[Event],
        artefacts: Mapping[str, str] | None = None,
        *,
        all_new: bool = False,
    ) -> list[bool]:
        assert lease is None
        assert artefacts is None or isinstance(artefacts, Mapping)
        rows = list(events)
        new = [locate_event(self.path, type(one), key_of(one)) is None for one in rows]
        if all(new) or not all_new:
            self.events += [one for one, is_new in zip(rows, new, strict=True) if is_new]
        return new
