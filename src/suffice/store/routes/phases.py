"""Where a route stands with its certificate: phase, evidence, what is missing, alarm.

The same for `suffice status`, the console and the API.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from suffice.review.route_guarantee import request_window
from suffice.store.database.views import LogReader, LogSource, open_reader, query_number, query_rows
from suffice.store.routes.in_force import DeploymentState, InForce, read_decided
from suffice.store.routes.windows import n_counted
from suffice.types import BudgetAccount

# Labels that were asked for and have not come, of all routes at once.
_WANTED: Final = """
    SELECT w.route, count(*) FROM events w WHERE w.kind = 'label_wanted' AND NOT EXISTS (
        SELECT 1 FROM events f WHERE f.kind = 'feedback' AND f.episode_id = w.key
    ) GROUP BY w.route"""
_SINCE: Final = """
    SELECT count(*) FROM (
        SELECT 1 FROM events INDEXED BY requests_by_route WHERE kind = 'request' AND route = ? AND seq > ?
            AND json_extract(body, '$.request.ungoverned') IS NULL LIMIT ?)"""

PhaseName: TypeAlias = Literal["unattended", "cold start", "burst", "searching", "certified", "budgeted", "paused"]


# Copied from the evidence of the latest publication, and from the publication itself.
_OF_EVIDENCE: Final = (
    *("n_audits", "n_missing", "share", "e_value", "max_em_drop", "confidence", "judge_charge", "n_lost"),
    "n_disagreeing",
)
_OF_PUBLICATION: Final = ("ceiling", "classes", "spending", "arm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    phase: PhaseName
    epoch: int  # 0: no worker has begun with it
    level: int  # in force; 0 never stops
    n_levels: int  # above level 0; 0: nothing is learned yet
    n_requests: int  # governed ones of this epoch, counted up to `n_burst`
    n_burst: int  # of them that run in full at least
    n_audits: int = 0  # behind the latest publication
    n_missing: int | None = None  # audits to the next level, at the rates seen
    share: float | None = None  # of tokens that the level would have saved on these audits
    e_value: float | None = None
    max_em_drop: float | None = None  # what is proved: a drop below this
    confidence: float | None = None
    reason: str  # the latest publication's, pause's or epoch's own sentence
    alarm: str | None  # the latest, with its cause
    n_labels_wanted: int
    attended: bool = False  # does a living worker look after it?
    ceiling: int | None = None  # the highest level that people's ratings allow; None: they take nothing off
    classes: tuple[tuple[str, int], ...] = ()  # classes of questions that the guard-rails hold, and their levels
    spending: BudgetAccount | None = None  # the account of the budgeted mode; None: the route is not in it
    judge_charge: float = 0.0  # fraction of EM that a judge model's mistakes took off the budget; 0: it is not heard
    window: tuple[int, int] | None = None  # numbers of the first and last request that the certificate is about
    n_lost: int = 0  # of the audits, at the level
    n_disagreeing: int | None = None  # of the audits, at the level; None: unknown
    audit_share: float | None = None  # of the next requests
    arm: str = ""  # the effort or budget that is level 1; "": levels are stops


def read_phases(
    source: LogSource, decided: DeploymentState | None = None, *, attended: bool = False
) -> dict[str, Phase]:
    """Every route with which a control loop has begun. Raises StoreError."""
    with open_reader(source) as connection:
        phases, wanted = {}, dict[str, int](query_rows(connection, _WANTED))
        for name, held in (decided or read_decided(connection)).routes.items():
            n = 0 if held.epoch is None else held.epoch.burst
            if held.epoch is not None and held.publication is None:
                n = governed_since(connection, name, held.epoch.since_seq, most=n)
            phases[name] = phase_of(held, n_requests=n, n_labels_wanted=wanted.get(name, 0), attended=attended)
        return phases


def governed_since(connection: LogReader, route: str, seq: int, *, most: int) -> int:
    """Governed requests of a route behind a place of the log, those without rows included, counted up to `most`."""
    n = query_number(connection, _SINCE, (route, seq, most))
    return n if n >= most else min(most, n + n_counted(connection, route, seq))


def phase_of(held: InForce, *, n_requests: int = 0, n_labels_wanted: int = 0, attended: bool = False) -> Phase:
    made, epoch, alarm = held.publication, held.epoch, held.alarm
    known: dict[str, Any] = {}
    if made is not None:
        known = {name: getattr(made, name) for name in _OF_PUBLICATION}
        known |= {name: getattr(made.evidence, name) for name in _OF_EVIDENCE}
        known |= {"audit_share": made.share, "window": request_window(made.evidence)}
    said = held.pause or made or epoch
    return Phase(
        phase=_phase_name(held),
        epoch=epoch.number if epoch is not None else 0,
        level=held.level,
        n_levels=made.n_levels - 1 if made is not None and (made.fit or made.is_owned) else 0,
        n_requests=n_requests,
        n_burst=epoch.burst if epoch is not None else 0,
        reason=said.reason if said is not None else "no worker has begun with this route",
        alarm=f"{alarm.cause}: {alarm.reason} (ended epoch {alarm.epoch})" if alarm else None,
        n_labels_wanted=n_labels_wanted,
        attended=attended,
        **known,
    )


def _phase_name(held: InForce) -> PhaseName:
    if held.pause is not None:
        return "paused"
    if held.epoch is None:
        return "unattended"
    if held.publication is None:
        return "cold start" if held.epoch.number == 1 else "burst"
    if not held.level:
        return "searching"
    return "certified" if held.publication.spending is None else "budgeted"
