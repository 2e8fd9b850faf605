"""What the audit log itself has to tell, as rows of the log.

ConfigChanged  a process started with other settings than those last recorded
Exported       somebody took data out of the log
Erased         words of people were taken out of rows, by whom and why
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from suffice.store.rows.route_event import OfNoEpisode


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingChange:
    """One setting that is another one now. Values as JSON."""

    path: str  # such as routes.math.max_em_drop
    before: str | None  # None: it was not there
    after: str | None  # None: it is not there any more


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigChange:
    """The settings that a process started with, and how they differ from those before."""

    number: int  # of the log's changes, from 1, which only records what is there
    author: str  # process and user; "file" where no user is known
    reason: str  # a short sentence
    changes: tuple[SettingChange, ...]  # by path; (): nothing was recorded before
    settings: dict[str, str]  # all of them, path to JSON; secrets never


@dataclass(frozen=True, slots=True)
class ConfigChanged(OfNoEpisode):
    """A process started with other settings than those last recorded."""

    kind: ClassVar[Literal["config_changed"]] = "config_changed"
    change: ConfigChange

    @property
    def key(self) -> str:
        """What may exist once: a change of that number. Sorted by text they are in order."""
        return f"{self.change.number:08}"

    @property
    def route(self) -> str | None:
        """None: it is about all routes."""
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """Data that left the log."""

    export_id: str
    author: str
    reason: str  # a short sentence
    what: str  # "audit log", "training pairs" …
    where: str  # name of the file, "standard output"
    n_rows: int


@dataclass(frozen=True, slots=True)
class Exported(OfNoEpisode):
    """Somebody took data out of the log."""

    kind: ClassVar[Literal["exported"]] = "exported"
    export: Export

    @property
    def key(self) -> str:
        """What may exist once: the export."""
        return self.export.export_id

    @property
    def route(self) -> str | None:
        """None: it is about the log."""
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """Words that were taken out of rows. What they were is nowhere; that they were is for good."""

    erasure_id: str  # of the whole erasure, which may be written in several rows
    number: int  # of this row within it, from 1
    author: str
    reason: str
    what: str  # which rows were meant: "episode ep_…", "older than 90 days" …
    parts: tuple[str, ...]  # "answers", "comments", "metadata", "steps"
    n_rows: int  # rows that were changed
    chained: tuple[int, ...] = ()  # places in the log of those that stand in the chain
    until_seq: int = 0  # everything that was meant up to this place in the log is done; 0: nothing is said


@dataclass(frozen=True, slots=True)
class WordsErased(OfNoEpisode):
    """Words of people were taken out of rows."""

    kind: ClassVar[Literal["erased"]] = "erased"
    erasure: Erasure

    @property
    def key(self) -> str:
        """What may exist once: a part of the erasure."""
        return f"{self.erasure.erasure_id}:{self.erasure.number:06}"

    @property
    def route(self) -> str | None:
        """None: it is about the log."""
        return None
