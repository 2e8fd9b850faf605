"""What the first page and a route's page answer, each in one sentence. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from suffice.console.context import ViewRecord
from suffice.console.scope import TimeRange
from suffice.console.views.history import History, describe_saved
from suffice.console.views.precision import describe_needed, says_nothing
from suffice.console.views.route_state import RouteState
from suffice.formatting import format_points
from suffice.review.route_guarantee import STOPS
from suffice.sanitize import plural

MOST_NAMED: Final = 3  # routes in a sentence


class Answers(ViewRecord, frozen=True):
    """The four questions of a page, in its order; each sentence holds for what the bar says."""

    tone: Literal["good", "warn", "bad", ""]  # of what is safe
    safe: str
    saves: str
    needs: str
    changed: str


def answer_questions(history: History, window: TimeRange, states: Sequence[RouteState], n_needs: int) -> Answers:
    tone, safe = _describe_safety(history, window, states)
    needs = f"{plural(n_needs, 'thing')}{', the most urgent first' if n_needs > 1 else ''}." if n_needs else "Nothing."
    n = len(history.markers)
    changed = f"{plural(n, 'version, alarm or decision', 'versions, alarms and decisions')} {window.phrase}"
    latest = "" if not n else f"; the latest: {history.markers[-1].text}"
    return Answers(
        tone=tone, safe=safe, saves=describe_saved(history, window), needs=needs, changed=f"{changed}{latest}."
    )


def _describe_safety(
    history: History, window: TimeRange, states: Sequence[RouteState]
) -> tuple[Literal["good", "warn", "bad"], str]:
    acting = [one for one in states if one.promise_state in STOPS]
    over = [one.name for one in acting if _is_over(one)]
    bare = [one.name for one in acting if one.promise_state in ("uncertified", "candidate", "unknown")]
    average = [one.name for one in acting if one.promise_state == "budgeted"]
    beside = [one.name for one in states if one.beside]
    trial = f"; requests in an experiment or a rollout on {_named(beside)} are not covered" if beside else ""
    tail = f"{_measured(history, window)}{trial}."
    if over:
        return "bad", f"No: {_named(over)} lost more than the EM budget{tail}"
    if bare:
        return "warn", f"Not proved on {_named(bare)}, which stops runs without a certificate{tail}"
    if average:
        return "warn", f"On average: {_named(average)} keeps the EM budget without confidence{tail}"
    if not acting and beside:
        return "warn", f"Only experiments and rollouts stop runs now{tail}"
    if not acting:
        return "good", f"Yes: nothing is stopped now{tail}"
    verb = "keep their EM budgets" if len(acting) > 1 else "keeps its EM budget"
    return "good", f"Yes: {_named([one.name for one in acting])} {verb}, certified{tail}"


def _is_over(one: RouteState) -> bool:
    low = one.em_drop.low if one.em_drop is not None else None
    return low is not None and low > one.max_em_drop


def _measured(history: History, window: TimeRange) -> str:
    drop = history.total.em_drop
    if drop is None:
        return f"; the EM drop {window.phrase} is not known yet"
    if says_nothing(drop):
        return f"; the EM drop {window.phrase} is not known yet: {describe_needed(drop, 'audit')}"
    allowed = "" if history.budget is None else f", of {100 * history.budget:.2f} allowed"
    return f"; the EM drop {window.phrase} was {format_points(drop.value)}{allowed}"


def _named(names: Sequence[str]) -> str:
    words = [one or "requests without a route" for one in names[:MOST_NAMED]]
    words += [f"{len(names) - MOST_NAMED} more"] if len(names) > MOST_NAMED else []
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
