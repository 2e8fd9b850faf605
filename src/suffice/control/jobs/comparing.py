"""What jobs have in common that read the log and compare answers: where it is, and each route's comparison."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from suffice.control.evidence.scorers import Matches, ScorerCache
from suffice.settings import Settings


@dataclass(slots=True, kw_only=True)
class ComparisonJob:
    """A job's part that knows where the log is, and what answers are compared with.

    author   who decides: written into events
    matches  how answers of a route are compared with references, for as long as the job lives
    """

    settings: Settings
    path: Path
    author: str
    matches: Matches
    monotonic_s: Callable[[], float]
    _matched: ScorerCache = field(default_factory=ScorerCache)

    def close(self) -> None:
        """Let go of what compares answers."""
        self._matched.close()
