"""The settings page: all settings and their defaults, examined upstreams, recent jobs, and people with access."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from suffice.console.context import ViewContext, ViewRecord
from suffice.console.openapi import VERSION
from suffice.settings import Settings
from suffice.store.database.decisions import is_attended
from suffice.store.database.location import database_at
from suffice.store.database.views import job_history, upstream_findings
from suffice.types import Findings, JobRun

MOST_CHARS: Final = 400  # of one value: a learned model in a policy is long
N_JOBS: Final = 30
_CREDENTIALS: Final = re.compile(r"//[^/@\s\"]+@")  # of an address


class SettingRow(ViewRecord, frozen=True):
    path: str
    value: str  # as in a settings file
    is_default: bool


class Section(ViewRecord, frozen=True):
    name: str
    group: str  # the table whose part it is, such as routes.math
    settings: tuple[SettingRow, ...]


class AccessEntry(ViewRecord, frozen=True):
    """A person with access, without their secret."""

    name: str
    role: str
    since_s: float


class SettingsPage(ViewRecord, frozen=True):
    version: str
    log: str
    log_bytes: int
    attended: bool  # whether a live worker holds this log
    sections: tuple[Section, ...]
    upstreams: tuple[Findings, ...]  # as `suffice doctor` examined them
    jobs: tuple[JobRun, ...]  # newest first
    people: tuple[AccessEntry, ...]  # () for reviewers


def settings_page(view: ViewContext) -> SettingsPage:
    people = (
        sorted(view.visit.context.auth.people(), key=lambda one: one.name)
        if view.visit.principal.role == "admin"
        else ()
    )
    return SettingsPage(
        version=VERSION,
        log=database_at(view.path).name,
        log_bytes=database_at(view.path).size_bytes(),
        attended=is_attended(view.connection, view.path),
        sections=tuple(sections(view.settings)),
        upstreams=tuple(upstream_findings(view.connection).values()),
        jobs=tuple(reversed(job_history(view.path, n=N_JOBS))),
        people=tuple(AccessEntry(name=one.name, role=one.role, since_s=one.since_s) for one in people),
    )


def sections(settings: Settings) -> Iterator[Section]:
    for name in settings.__struct_fields__:
        value = getattr(settings, name)
        if isinstance(value, Mapping):
            for key, item in value.items():
                yield from _tables(f"{name}.{key}", item, f"{name}.{key}")
        else:
            yield from _tables(name, value, name)


def _tables(path: str, table: msgspec.Struct, group: str) -> Iterator[Section]:
    plain, inner = list[SettingRow](), list[tuple[str, msgspec.Struct]]()
    for info in msgspec.structs.fields(table):
        value = getattr(table, info.name)
        if isinstance(value, msgspec.Struct):
            inner.append((f"{path}.{info.name}", value))
            continue
        default = info.default if info.default is not msgspec.NODEFAULT else info.required or info.default_factory()
        is_default = not info.required and bool(value == default)
        plain.append(SettingRow(path=info.name, value=_format_value(value), is_default=is_default))
    yield Section(name=path, group=group, settings=tuple(plain))
    for where, value in inner:
        yield from _tables(where, value, group)


def _format_value(value: Any) -> str:
    if value is None:
        return "not set"
    text = _CREDENTIALS.sub("//***@", msgspec.json.encode(value).decode())
    return text if len(text) <= MOST_CHARS else f"{text[:MOST_CHARS]} … ({len(text):,} characters)"
