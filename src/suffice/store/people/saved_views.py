"""The views of runs that people have saved, each for themselves."""

from __future__ import annotations

from typing import Final

from suffice.store.database.decisions import Decisions
from suffice.store.database.views import LogSource, newest_events
from suffice.store.rows.preferences import SavedView

MOST_VIEWS: Final = 50  # of one person, removals included, that are read


def read_saved_views(source: LogSource, person: str) -> tuple[SavedView, ...]:
    """Return a person's views by name."""
    latest = dict[str, SavedView]()
    for one in newest_events(source, SavedView, MOST_VIEWS, prefix=person):
        latest.setdefault(one.name, one)
    return tuple(latest[name] for name in sorted(latest) if latest[name].query)


def save_view(writer: Decisions, person: str, name: str, query: str) -> bool:
    """Save a view under a name, in place of an earlier one; "": remove it. Return False after a race."""
    latest = newest_events(writer.path, SavedView, 1, prefix=person)
    number = latest[0].number + 1 if latest else 1
    return writer.write_new(SavedView(person=person, name=name, number=number, query=query))
