"""Strict parsing of feedback, shared by the HTTP endpoints, the library and `suffice feedback import`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from suffice.assurance.labels import BEHAVIOUR
from suffice.assurance.satisfaction import scaled
from suffice.errors import BadRequest, ConfigError
from suffice.gateway.request_parsing import check_known, read_text
from suffice.rollout.assign import joined, sender_key
from suffice.settings import Metric
from suffice.settings.checks import span_of
from suffice.types import Feedback

NAMES: Final = ("feedback_id", "episode_id", "response_id")  # short, like "source" and "user"
WORDS: Final = ("correct", "gold", "answer", "rating", "thumbs", "comment", "metrics", "event")
FIELDS: Final = (
    *("feedback_id", "episode_id", "response_id", "correct", "gold", "answer", "rating", "thumbs", "comment"),
    *("source", "reason", "metrics", "event", "user", "propensity"),
)
TEXT_LIMIT_CHARS: Final = 10_000
NAME_LIMIT_CHARS: Final = 200
# Most characters of each field, in the order of checking.
_TEXTS: Final = dict.fromkeys(("gold", "answer", "comment", "reason"), TEXT_LIMIT_CHARS)
_LIMITS: Final = dict.fromkeys((*NAMES, "source", "user"), NAME_LIMIT_CHARS) | _TEXTS

Declared = Mapping[str, Metric]


def read_feedback(body: Mapping[str, Any], declared: Declared | None = None) -> Feedback:
    """Raise BadRequest, naming the field and what is allowed.

    declared  the settings' metrics; None: leave the check of metric values to the server
    """
    check_known(body, FIELDS)
    given = {k: v for k, v in body.items() if v is not None}
    if "event" in given:
        given.setdefault("source", BEHAVIOUR)
    for key in ("feedback_id", "source"):
        if not given.get(key):
            raise BadRequest(f"{key}: is needed, a non-empty string", param=key)
    for key, limit in _LIMITS.items():
        if "\x00" in (read_text(given, key, limit) or ""):
            raise BadRequest(f"{key}: must not hold NUL characters", param=key)
    if "episode_id" not in given and "response_id" not in given:
        raise BadRequest("episode_id or response_id: one of them must name the request", param="episode_id")
    _check_verdicts(given)
    _check_event(given)
    return _with_metrics(given, declared)


def seal_feedback(feedback: Feedback, *, sender: str, door: str, salt: str) -> Feedback:
    """Return the feedback as logged: with its sender, and with a keyed hash in place of the person's name."""
    user = sender_key(f"user {joined(sender, feedback.user)}", salt=salt) if feedback.user else ""
    return replace(feedback, sender=sender, door=door, user=user)


def id_conflict(where: str = "") -> BadRequest:
    message = "feedback_id: its sender has used it for other feedback; different feedback needs an id of its own"
    return BadRequest(f"{where}{message}", status=409, param="feedback_id", code="feedback_id_conflict")


def _check_verdicts(given: Mapping[str, Any]) -> None:
    if not isinstance(given.get("correct", True), bool):
        raise BadRequest("correct: must be true or false", param="correct")
    rating = given.get("rating", 1)
    if not isinstance(rating, int) or isinstance(rating, bool) or not 1 <= rating <= 5:
        raise BadRequest("rating: must be a whole number from 1 to 5", param="rating")
    if given.get("thumbs", "up") not in ("up", "down"):
        raise BadRequest("thumbs: must be 'up' or 'down'", param="thumbs")
    if not set(WORDS) & set(given):
        *most, last = WORDS
        raise BadRequest(f"feedback: is empty; give {', '.join(most)} or {last}")


def _check_event(given: Mapping[str, Any]) -> None:
    """An event is weaker evidence than a label, so it has its own source and no other field."""
    event, source = given.get("event"), given["source"]
    if event is None:
        if source == BEHAVIOUR:
            message = f"source: {BEHAVIOUR!r} is for events only; other feedback needs 'user' or another source"
            raise BadRequest(message, param="source")
    elif event not in ("regenerate", "abandon"):
        raise BadRequest("event: must be 'regenerate' or 'abandon'", param="event")
    elif source != BEHAVIOUR:
        message = f"source: for an event it must be {BEHAVIOUR!r}, or left out; send other feedback separately"
        raise BadRequest(message, param="source")
    elif beside := [word for word in WORDS if word in given and word != "event"]:
        raise BadRequest(f"event: must be sent alone; send {', '.join(beside)} separately", param="event")
    share = given.get("propensity", 1.0)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        message = "propensity: must be a number above 0 and up to 1: the share of people who are asked"
        raise BadRequest(message, param="propensity")


# --------------------------------------------------------------------------- declared metrics


def _with_metrics(given: dict[str, Any], declared: Declared | None) -> Feedback:
    if "propensity" in given:
        given = given | {"propensity": float(given["propensity"])}
    values = given.pop("metrics", None)
    if values is None:
        return Feedback(**given)
    if not isinstance(values, dict) or not values or not all(isinstance(name, str) for name in values):
        raise BadRequest("metrics: must be an object of values by name, with at least one", param="metrics")
    read = {name: read_value(name, value, declared) for name, value in values.items()}
    satisfaction = None
    if declared is not None:
        of_users = [name for name in read if declared[name].level == "user"]
        if of_users and not given.get("user"):
            message = f"user: is needed, for metrics.{of_users[0]} speaks of a user and counts once for each"
            raise BadRequest(message, param="user")
        # Mean over the answered survey questions, each scaled from 0 (worst) to 1.
        answers = [scaled(float(value), declared[name]) for name, value in read.items() if declared[name].survey]
        satisfaction = sum(answers) / len(answers) if answers else None
    return Feedback(**given, metrics=tuple(sorted(read.items())), satisfaction=satisfaction)


def read_value(name: str, value: Any, declared: Declared | None) -> bool | float | str:
    """Raise BadRequest, naming the metric and what is allowed."""
    where = f"metrics.{name[:80]}"
    if declared is None:
        if not isinstance(value, bool | int | float | str):
            raise BadRequest(f"{where}: must be a number, true or false, or a word", param=where)
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
    metric = declared.get(name)
    if metric is None:
        known = ", ".join(sorted(declared)) or "none; declare it in the settings as [metrics.NAME]"
        raise BadRequest(f"{where}: is not declared; declared: {known}", param=where)
    if metric.type == "boolean":
        if not isinstance(value, bool):
            raise BadRequest(f"{where}: must be true or false", param=where)
        return value
    if metric.type == "category":
        if value not in metric.values:
            raise BadRequest(f"{where}: must be one of {', '.join(metric.values)}", param=where)
        return str(value)
    low, high = span_of(metric) or (0.0, 0.0)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    whole = metric.type == "rating"
    if not (is_number and low <= value <= high and (not whole or float(value).is_integer())):
        kind = "a whole number" if whole else "a number"
        raise BadRequest(f"{where}: must be {kind} from {low:g} to {high:g}", param=where)
    return float(value)


# --------------------------------------------------------------------------- tables to import

METRICS: Final = "metrics."  # prefix of a metric's field
_FLAGS: Final = dict.fromkeys(("true", "yes", "1", "1.0"), True) | dict.fromkeys(("false", "no", "0", "0.0"), False)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackMapping:
    columns: Mapping[str, str]  # field: column
    fixed: Mapping[str, str]  # field: cell, the same in every row
    unused: tuple[str, ...]  # columns without a field

    def column_of(self, field: str | None) -> str | None:
        return self.columns.get(field or "", field)


def plan(columns: Iterable[str], mapped: Iterable[str], fixed: Iterable[str], declared: Declared) -> FeedbackMapping:
    known = list(columns)
    fields = [*(field for field in FIELDS if field != "metrics"), *(f"{METRICS}{name}" for name in declared)]
    given, set_to = _pairs("--map", mapped, fields), _pairs("--set", fixed, fields)
    for field, column in given.items():
        if column not in known:
            raise ConfigError(f"--map: {field}: there is no column {column!r}; there are: {', '.join(known)}")
    taken = {*given.values()}
    by_name = {name: name for name in known if name in (*fields, "metrics") and name not in taken | given.keys()}
    by_field = {field: column for field, column in (by_name | given).items() if field not in set_to}
    used = set(by_field.values())
    return FeedbackMapping(columns=by_field, fixed=set_to, unused=tuple(name for name in known if name not in used))


def _pairs(option: str, options: Iterable[str], fields: list[str]) -> dict[str, str]:
    pairs = {}
    for one in options:
        field, _, value = one.partition("=")
        if not value:
            raise ConfigError(f"{option}: got {one!r}; it is written FIELD=…")
        if field not in fields:
            raise ConfigError(f"{option}: unknown field {field!r}; known: {', '.join(fields)}")
        pairs[field] = value
    return pairs


def body(cells: Mapping[str, Any], by: FeedbackMapping, declared: Declared) -> dict[str, Any]:
    """Convert one row, leaving out empty cells. Raise BadRequest with the field as `param`.

    A row without `feedback_id` gets a hash of its content, so that importing a table again adds nothing.
    """
    raw = dict(by.fixed) | {field: cells.get(column) for field, column in by.columns.items()}
    given, metrics = dict[str, Any](), dict[str, Any]()
    for field, cell in raw.items():
        name = field.removeprefix(METRICS)
        if cell is None or cell == "":
            continue
        if field == "metrics":
            if not isinstance(cell, Mapping):
                raise BadRequest(f"{field}: must be an object, got {str(cell)[:40]!r}", param=field)
            metrics |= cell
        elif name != field:
            metrics[name] = (_READERS.get(declared[name].type) or _number)(field, cell)
        else:
            given[field] = (_READERS.get(field) or _text)(field, cell)
    if metrics:
        given["metrics"] = metrics
    if "feedback_id" not in given:
        content = msgspec.json.encode(given, order="sorted")
        given["feedback_id"] = f"import:{hashlib.blake2b(content, digest_size=12).hexdigest()}"
    return given


def _flag(field: str, cell: Any) -> bool:
    flag = _FLAGS.get(str(cell).strip().lower())
    if flag is None:
        raise BadRequest(f"{field}: must be true or false, got {str(cell)[:40]!r}", param=field)
    return flag


def _number(field: str, cell: Any) -> float:
    try:
        return float(cell)
    except (TypeError, ValueError):
        raise BadRequest(f"{field}: must be a number, got {str(cell)[:40]!r}", param=field) from None


def _whole(field: str, cell: Any) -> int:
    value = _number(field, cell)
    if not value.is_integer():
        raise BadRequest(f"{field}: must be a whole number, got {str(cell)[:40]!r}", param=field)
    return int(value)


def _thumbs(_: str, cell: Any) -> str:
    word = str(cell).strip().lower()
    flag = _FLAGS.get(word)
    return word if flag is None else "up" if flag else "down"


def _text(field: str, cell: Any) -> str:
    if isinstance(cell, Mapping | list):
        raise BadRequest(f"{field}: must be a text or a number, got {str(cell)[:40]!r}", param=field)
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


_READERS: Final[dict[str, Callable[[str, Any], Any]]] = {
    "correct": _flag,
    "rating": _whole,
    "propensity": _number,
    "thumbs": _thumbs,
    "boolean": _flag,  # types of metrics from here on
    "category": _text,
}
