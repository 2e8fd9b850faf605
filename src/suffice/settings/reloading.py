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


def can_reload(table: type[msgspec.Struct], field: str) -> bool:
    return field not in AT_START.get(table, ())


class Reload(msgspec.Struct, frozen=True, kw_only=True):
    """A reload's result: paths of settings, such as `routes.math.max_em_drop`."""

    settings: Settings  # those of the file, where they can be reloaded, else those that the process started with
    applied: tuple[str, ...]
    need_restart: tuple[str, ...]  # they differ from the file until a restart

    @property
    def sentence(self) -> str:
        applied = f"{len(self.applied)} settings changed: {', '.join(self.applied)}" if self.applied else "no change"
        later = f"; these need a restart and stay as they were: {', '.join(self.need_restart)}"
        return applied + (later if self.need_restart else "")


def merge_settings(before: Settings, after: Settings) -> Reload:
    """Take over from `after` what can be reloaded."""
    applied, kept = list[str](), list[str]()
    merged = _merged("", before, after, applied, kept)
    return Reload(settings=merged, applied=tuple(applied), need_restart=tuple(kept))


def _merged(path: str, before: S, after: S, applied: list[str], kept: list[str]) -> S:
    values = dict[str, Any]()
    for field in before.__struct_fields__:
        old, new, here = getattr(before, field), getattr(after, field), f"{path}.{field}" if path else field
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
