"""Which settings a running process can take over, and what a reload changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec

from suffice.settings import tables
from suffice.settings.tables import Settings

S = TypeVar("S", bound=msgspec.Struct)

# Fields that are read once, at the start: sockets, the log, and limits of connections. All others can be reloaded.
AT_START: Final[Mapping[type[msgspec.Struct], frozenset[str]]] = {
    tables.Server: frozenset(
        {"host", "port", "head_timeout_s", "body_timeout_s", "keepalive_s", "kill_file", "relay"}
        | {"max_connections", "max_connections_per_address", "replica"}
    ),
    tables.Console: frozenset({"enabled", "host", "port"}),
    tables.Retention: frozenset({"redact"}),
    tables.Telemetry: frozenset(tables.Telemetry.__struct_fields__),
    tables.Store: frozenset(tables.Store.__struct_fields__),
}

# Why they wait for a restart.
REASONS: Final[Mapping[type[msgspec.Struct], str]] = {
    tables.Server: "sockets, their limits and the file of the switch are set up when the process starts",
    tables.Console: "its socket is opened when the process starts",
    tables.Retention: "what is kept of a request is decided when the process starts",
    tables.Telemetry: "logs, metrics and traces are set up when the process starts",
    tables.Store: "the log is opened when the process starts",
}
_NO_TABLE: Final = "{}"  # a table without entries, in loggable form


def can_reload(table: type[msgspec.Struct], field: str) -> bool:
    return field not in AT_START.get(table, ())


class PlannedChange(msgspec.Struct, frozen=True, kw_only=True):
    """A setting, or a whole table that is new or gone, before and after a reload, in loggable form."""

    path: str  # such as `routes.math.max_em_drop`
    before: str | None  # JSON, or the size of a table; None: it is not there
    after: str | None
    waits: str = ""  # why it stays as it was until a restart; "": it does not

    @property
    def sides(self) -> tuple[str, str]:
        """Before and after, in words."""
        return _side(self.before), _side(self.after)

    @property
    def note(self) -> str:
        return self.waits and f"needs a restart: {self.waits}"

    @property
    def sentence(self) -> str:
        return f"{self.path}: {' → '.join(self.sides)}" + (f" ({self.note})" if self.note else "")


def _side(value: str | None) -> str:
    return "not set" if value is None else value


class Reload(msgspec.Struct, frozen=True, kw_only=True):
    """A reload's result, or its preview: paths of settings, such as `routes.math.max_em_drop`."""

    settings: Settings  # those of the file, where they can be reloaded, else those that the process started with
    applied: tuple[str, ...]
    need_restart: tuple[str, ...]  # they differ from the file until a restart
    changes: tuple[PlannedChange, ...] = ()  # both of them, by path
    notes: tuple[str, ...] = ()  # on changed routes: what they cost, and what keeps them from a certificate
    is_preview: bool = False  # nothing was changed

    @property
    def sentence(self) -> str:
        n, verb = len(self.applied), "would change" if self.is_preview else "changed"
        applied = f"{_count(n)} {verb}: {', '.join(self.applied)}" if n else "no change"
        later = f"; these need a restart and stay as they were: {', '.join(self.need_restart)}"
        return applied + (later if self.need_restart else "")


def planned_changes(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[PlannedChange, ...]:
    """Compare settings in loggable form, path to JSON. A table that one of them does not have is one change.

    >>> [one.sentence for one in planned_changes({"store.url": '"a"'}, {"store.url": '"b"', "keys.ann.scopes": "[]"})]
    ... # doctest: +ELLIPSIS
    ['keys.ann: not set → 1 setting', 'store.url: "a" → "b" (needs a restart: the log is opened ...)']
    """
    old, new = ({path: one for path, one in side.items() if one != _NO_TABLE} for side in (before, after))
    old_tables, new_tables = ({one for path in side for one in _tables_of(path)} for side in (old, new))
    only_one_has = old_tables ^ new_tables
    changes = dict[str, PlannedChange]()
    for path in sorted(one for one in old.keys() | new.keys() if old.get(one) != new.get(one)):
        table = next((one for one in _tables_of(path) if one in only_one_has), "")
        sides = [_size(table, side) if table else side.get(path) for side in (old, new)]
        changes[table or path] = PlannedChange(path=table or path, before=sides[0], after=sides[1], waits=_waits(path))
    return tuple(changes.values())


def _tables_of(path: str) -> list[str]:
    """The tables that hold a setting, but for the outermost.

    >>> _tables_of("routes.math.match.model")
    ['routes.math', 'routes.math.match']
    """
    parts = path.split(".")
    return [".".join(parts[:n]) for n in range(2, len(parts))]


def _size(table: str, side: Mapping[str, str]) -> str | None:
    n = sum(one.startswith(f"{table}.") for one in side)
    return _count(n) if n else None


def _count(n_settings: int) -> str:
    return f"{n_settings} {'setting' if n_settings == 1 else 'settings'}"


def _waits(path: str) -> str:
    name, _, field = path.partition(".")
    table = getattr(Settings(), name, None)
    if not isinstance(table, msgspec.Struct) or can_reload(type(table), field.partition(".")[0]):
        return ""
    return REASONS[type(table)]


def merge_settings(before: Settings, after: Settings) -> Reload:
    """Take over from `after` what can be reloaded."""
    applied, kept = list[str](), list[str]()
    merged = _merged("", before, after, applied, kept)
    return Reload(settings=merged, applied=tuple(applied), need_restart=tuple(kept))


def _merged(path: str, before: S, after: S, applied: list[str], kept: list[str]) -> S:
    values = dict[str, Any]()
    for field in before.__struct_fields__:
        old = getattr(before, field)
        new = getattr(after, field)
        here = f"{path}.{field}" if path else field
        is_same = old == new and (not isinstance(old, Mapping) or list(old) == list(new))  # of routes, the first serves
        if not is_same and can_reload(type(before), field):
            values[field] = _taken_over(here, old, new, applied, kept)
        elif not is_same:
            values[field] = old
            kept.append(here)
    return msgspec.structs.replace(after, **values)


def _taken_over(path: str, old: Any, new: Any, applied: list[str], kept: list[str]) -> Any:
    if isinstance(old, msgspec.Struct) and type(old) is type(new):
        return _merged(path, old, new, applied, kept)
    entries = (*old.values(), *new.values()) if isinstance(old, Mapping) and isinstance(new, Mapping) else ()
    if not any(isinstance(one, msgspec.Struct) for one in entries):  # one value, such as a policy
        applied.append(path)
        return new
    applied += [f"{path}.{name}" for name in old if name not in new]
    table = dict[str, Any]()
    for name, one in new.items():
        if name not in old:
            applied.append(f"{path}.{name}")
        table[name] = _merged(f"{path}.{name}", old[name], one, applied, kept) if name in old else one
    if list(old) != list(new) and set(old) == set(new):
        applied.append(f"{path} (their order)")
    return table
