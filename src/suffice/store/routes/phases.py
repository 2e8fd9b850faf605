"""Where a route stands with its certificate, and what is promised there: phase, evidence, what is missing, alarm.

The same for `suffice status`, the console and the API. Knows what is in force and what was seen; refuses to know how
it is shown.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Final, Literal, TypeAlias

from suffice.assurance.claim import Average, Claim, average_sentence, sentence
from suffice.assurance.detection import Reference, detection_law
from suffice.assurance.fidelity import FIDELITY_RISK
from suffice.assurance.judge import AT_RISK
from suffice.assurance.outlook import Outlook
from suffice.rollout.assign import LATER_SHARE
from suffice.settings import Route
from suffice.store.database.decisions import is_attended
from suffice.store.database.views import reading
from suffice.store.routes.epochs import labels_wanted, requests_since
from suffice.store.routes.in_force import InForce, read_decided
from suffice.types import EvidenceSummary, Spending

NOTICED_DROP: Final = 0.03     # the silent loss that a promise names the delay of …
NOTICED_BUDGETS: Final = 1.5   # … or so many budgets, if that is more

PhaseName: TypeAlias = Literal["unattended", "cold start", "burst", "searching", "certified", "budgeted", "paused"]


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
    spending: Spending | None = None  # the account of the budgeted mode; None: the route is not in it
    judge_charge: float = 0.0     # fraction of EM that a judge model's mistakes took off the budget; 0: it is not heard
    window: tuple[int, int] | None = None  # numbers of the first and last request that the certificate is about
    n_lost: int = 0               # of the audits, at the level
    n_disagreeing: int | None = None  # of the audits, at the level; None: unknown
    audit_share: float | None = None  # of the next requests
    arm: str = ""                 # the effort or budget that is level 1; "": levels are stops


def read_phases(database: Path) -> dict[str, Phase]:
    """Every route with which a control loop has begun. Raises StoreError."""
    with reading(database) as connection:
        found, attended = {}, is_attended(connection, database)
        for name, held in read_decided(connection).routes.items():
            since = held.epoch.since_seq if held.epoch is not None else 0
            found[name] = phase_of(
                held, n_requests=requests_since(connection, name, since),
                n_labels_wanted=open_labels(connection, labels_wanted(connection, name)), attended=attended,
            )  # fmt: skip
        return found


def open_labels(connection: sqlite3.Connection, asked: set[str]) -> int:
    """How many of these episodes nobody has said anything about."""
    said = "SELECT 1 FROM events WHERE kind = 'feedback' AND episode_id = ? LIMIT 1"
    return sum(connection.execute(said, (name,)).fetchone() is None for name in asked)


def phase_of(held: InForce, *, n_requests: int = 0, n_labels_wanted: int = 0, attended: bool = False) -> Phase:
    """Put what is in force into words and numbers."""
    made, epoch = held.publication, held.epoch
    evidence = made.evidence if made is not None else None
    phase: PhaseName = (
        "paused" if held.pause is not None
        else "unattended" if epoch is None
        else ("cold start" if epoch.number == 1 else "burst") if made is None
        else "budgeted" if held.level and made.spending is not None
        else "certified" if held.level
        else "searching"
    )  # fmt: skip
    said = held.pause or made or epoch
    return Phase(
        phase=phase,
        epoch=epoch.number if epoch is not None else 0,
        level=held.level,
        n_levels=made.n_levels - 1 if made is not None and (made.fit or made.is_owned) else 0,
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
        spending=made.spending if made is not None else None,
        judge_charge=evidence.judge_charge if evidence is not None else 0.0,
        arm=made.arm if made is not None else "",
        window=_window(evidence),
        n_lost=evidence.n_lost if evidence is not None else 0,
        n_disagreeing=evidence.n_disagreeing if evidence is not None else None,
        audit_share=made.share if made is not None else None,
    )


def _window(evidence: EvidenceSummary | None) -> tuple[int, int] | None:
    if evidence is None or evidence.window_start is None or evidence.window_end is None:
        return None
    return ceil(evidence.window_start), ceil(evidence.window_end) - 1


def promise(
    name: str, route: Route | None, phase: Phase | None, outlook: Outlook | None, *, scorer: str, labelled: bool
) -> str:
    """The promise in one sentence with all that it hangs on, or why there is none.

    labelled  has anybody ever said what is right on this route?
    """
    if phase is None:
        return "none: no control loop certifies this route"
    if route is None:
        return "not known here: it hangs on the route's settings too; name them with --config"
    if not phase.level or phase.confidence is None:
        return "none is needed: everything runs in full"
    if phase.spending is not None:
        return average_sentence(Average(
            route=name, scorer=scorer, max_em_drop=route.max_em_drop, level=phase.level, account=phase.spending,
            labels="labelled" if labelled else "label-free",
        ))  # fmt: skip
    # What the finish changes is bounded at its own confidence, and risks add up.
    at_risk = FIDELITY_RISK if route.kind == "reasoning" and not phase.arm else 0.0
    at_risk += AT_RISK if phase.judge_charge else 0.0
    return sentence(Claim(
        route=name, scorer=scorer, max_em_drop=route.max_em_drop, confidence=round(phase.confidence - at_risk, 6),
        n_window=phase.n_audits, requests=phase.window, per="pooled", labels="labelled" if labelled else "label-free",
        detection=_detection(route, phase, labelled=labelled),
        classes={} if outlook is None else {part.query_class or "": part.n_audits for part in outlook.classes},
        what=f"asked with {phase.arm}" if phase.arm else "at the level in force",
    ))  # fmt: skip


def _detection(route: Route, phase: Phase, *, labelled: bool) -> str:
    """How soon a silent loss would be noticed; "": nobody knows."""
    if phase.n_disagreeing is None or not phase.n_audits or not phase.audit_share or phase.audit_share >= 1:
        return ""
    reference = Reference(n_disagreeing=phase.n_disagreeing, n_lost=phase.n_lost, n=phase.n_audits)
    return str(detection_law(
        max(NOTICED_DROP, NOTICED_BUDGETS * route.max_em_drop), max_em_drop=route.max_em_drop, reference=reference,
        audit_share=LATER_SHARE if route.audit_share is None else route.audit_share, cap=route.most_audit_share,
        labels=labelled,
    ))  # fmt: skip
