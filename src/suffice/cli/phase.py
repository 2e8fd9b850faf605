"""Where a route stands with its certificate, as `suffice status` says it: phase, evidence, what is missing, alarm."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from pathlib import Path

    from suffice.store.in_force import InForce

PhaseName: TypeAlias = Literal["unattended", "cold start", "burst", "searching", "certified", "paused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Where a route stands."""

    phase: PhaseName
    epoch: int                    # 0: no worker has begun with it
    level: int                    # in force; 0 never stops
    n_levels: int                 # above level 0; 0: nothing is learned yet
    n_requests: int               # governed ones of this epoch
    n_burst: int                  # of them that run in full at least
    n_audits: int                 # behind the latest publication
    n_missing: int | None         # audits to the next level, at the rates seen
    share: float | None           # of tokens that the level would have saved on these audits
    e_value: float | None
    max_em_drop: float | None     # what is proved: a drop below this
    confidence: float | None
    reason: str                   # the latest publication's, pause's or epoch's own sentence
    alarm: str | None             # the latest, with its cause
    n_labels_wanted: int
    attended: bool = False        # does a living worker look after it?
    ceiling: int | None = None    # the highest level that people's ratings allow; None: they take nothing off
    classes: tuple[tuple[str, int], ...] = ()  # classes of questions that the guard-rails hold, and their levels


def read_phases(database: Path) -> dict[str, Phase]:
    """Every route with which a control loop has begun. Raises StoreError."""
    from suffice.store.decisions import is_attended
    from suffice.store.epochs import labels_wanted, requests_since
    from suffice.store.in_force import read_decided
    from suffice.store.views import reading

    with reading(database) as connection:
        found, attended = {}, is_attended(connection, database)
        for name, held in read_decided(connection).routes.items():
            since = held.epoch.since_seq if held.epoch is not None else 0
            found[name] = phase_of(
                held, n_requests=requests_since(connection, name, since),
                n_labels_wanted=_open_labels(connection, labels_wanted(connection, name)), attended=attended,
            )  # fmt: skip
        return found


def _open_labels(connection: sqlite3.Connection, asked: set[str]) -> int:
    said = connection.execute("SELECT DISTINCT episode_id FROM events WHERE kind = 'feedback'").fetchall()
    return len(asked - {name for (name,) in said})


def phase_of(held: InForce, *, n_requests: int = 0, n_labels_wanted: int = 0, attended: bool = False) -> Phase:
    """Put what is in force into words and numbers."""
    made, epoch = held.publication, held.epoch
    evidence = made.evidence if made is not None else None
    phase: PhaseName = (
        "paused" if held.pause is not None
        else "unattended" if epoch is None
        else ("cold start" if epoch.number == 1 else "burst") if made is None
        else "certified" if held.level
        else "searching"
    )  # fmt: skip
    said = held.pause or made or epoch
    return Phase(
        phase=phase,
        epoch=epoch.number if epoch is not None else 0,
        level=held.level,
        n_levels=made.n_levels - 1 if made is not None and made.fit else 0,
        n_requests=n_requests,
        n_burst=epoch.burst if epoch is not None else 0,
        n_audits=evidence.n_audits if evidence is not None else 0,
        n_missing=evidence.n_missing if evidence is not None else None,
        share=evidence.share if evidence is not None else None,
        e_value=evidence.e_value if evidence is not None else None,
        max_em_drop=evidence.max_em_drop if evidence is not None else None,
        confidence=evidence.confidence if evidence is not None else None,
        reason=said.reason if said is not None else "no worker has begun with this route",
        alarm=f"{held.alarm.cause}: {held.alarm.reason} (ended epoch {held.alarm.epoch})" if held.alarm else None,
        n_labels_wanted=n_labels_wanted,
        attended=attended,
        ceiling=made.ceiling if made is not None else None,
        classes=made.classes if made is not None else (),
    )


def phase_lines(one: Phase, *, per_s: float | None, acts: bool) -> list[tuple[str, str]]:
    """What a reader sees.

    per_s  audits a second, lately; None: unknown
    acts   is the route in `enforce`?
    """
    lines = [("phase", _phase(one, acts=acts))]
    if one.phase in ("cold start", "burst"):
        left = max(0, one.n_burst - one.n_requests)
        lines.append(("evidence", f"{one.n_requests:,} of {one.n_burst:,} full runs{_when(left, per_s)}"))
    elif one.n_audits:
        lines.append(("evidence", f"{one.n_audits:,} audits in the window: {one.reason}"))
        lines.append(("next level", _next(one, per_s)))
    if one.classes:
        each = ", ".join(f"{name or 'none'} at level {level}" for name, level in one.classes)
        lines.append(("held classes", f"{each}: they lose more than twice the budget"))
    if one.n_labels_wanted:
        lines.append(("labels wanted", f"{one.n_labels_wanted:,}: audits whose stop would have answered otherwise"))
    lines.append(("last alarm", one.alarm or "none"))
    if not one.attended:
        lines.append(("control loop", "NOT RUNNING: no worker looks after this route now; see suffice worker"))
    return lines


def _phase(one: Phase, *, acts: bool) -> str:
    if one.phase == "certified":
        proved = f"a drop below {100 * (one.max_em_drop or 0):g} points at {one.confidence or 0:.0%}"
        saves = "" if one.share is None else f", saves {one.share:.1%} of the tokens of its audits"
        return f"certified, level {one.level} of {one.n_levels}: {proved}{saves}" + ("" if acts else "; not acted on")
    if one.phase == "searching":
        return "all in full: nothing is certified"
    if one.phase == "unattended":
        return "all in full: no control loop has begun with this route"
    if one.phase == "paused":
        return f"PAUSED until somebody resumes it: {one.reason}"
    return f"{one.phase}, all in full: {one.reason}"


def _next(one: Phase, per_s: float | None) -> str:
    if one.level and one.level == one.n_levels:
        return "none: this is the last"
    if one.ceiling is not None and one.level == one.ceiling:
        return "none: people's ratings allow no higher one in this epoch"
    if one.n_missing is None:
        return "no number of such audits would certify it"
    return f"about {one.n_missing:,} more audits at the rates seen{_when(one.n_missing, per_s)}"


def _when(n: int, per_s: float | None) -> str:
    from suffice.cli.status import wait

    return f", in {wait(n / per_s)} at the present rate" if n and per_s else ""
