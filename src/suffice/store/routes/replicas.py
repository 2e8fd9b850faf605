"""The gateways that run on one log, as their latest rows describe them, and where they differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from suffice.store.database.location import LogLocation, database_at
from suffice.store.database.views import decoded, open_reader
from suffice.store.rows.events import ReplicaState

_LATEST: Final = """
    SELECT e.seq, e.owner, e.body FROM events e JOIN owners o ON o.id = e.owner WHERE e.kind = 'replica_seen'
    ORDER BY e.seq"""


def read_replicas(location: LogLocation) -> list[ReplicaState]:
    """Return the state of each living gateway, by name. Raise StoreError."""
    database, latest = database_at(location), dict[int, ReplicaState]()
    with open_reader(database.location) as reader:
        for seq, owner, body in reader.execute(_LATEST).fetchall():
            latest[owner] = decoded(seq, ReplicaState, body)
        living = [one for owner, one in latest.items() if database.is_alive(reader, owner)]
    return sorted(living, key=lambda one: one.name)


def version_skew(replicas: Sequence[ReplicaState]) -> dict[str, dict[str, list[str]]]:
    """Return, for each route that gateways serve in different versions, the names of the gateways by version."""
    served = dict[str, dict[str, list[str]]]()
    for one in replicas:
        for route, version in one.versions.items():
            served.setdefault(route, {}).setdefault(version, []).append(one.name)
    return {route: by_version for route, by_version in served.items() if len(by_version) > 1}


def describe_differences(replicas: Sequence[ReplicaState]) -> Iterator[str]:
    for route, by_version in version_skew(replicas).items():
        served = "; ".join(f"{', '.join(names)}: {version}" for version, names in sorted(by_version.items()))
        yield f"VERSION SKEW: route {route} is served in {len(by_version)} versions: {served}"
    if len({one.secret for one in replicas}) > 1:
        names = ", ".join(f"{one.name} {one.secret}" for one in replicas)
        yield f"SECRETS DIFFER: replicas of one log need one SUFFICE_SALT; fingerprints: {names}"
    if len({one.software for one in replicas}) > 1:
        yield f"SOFTWARE SKEW: {', '.join(f'{one.name} runs {one.software}' for one in replicas)}"
