"""Reads Label Studio's annotations as reviewers' feedback; the package suffice-label-studio writes the tasks.

Reviewers see both answers as A and B without knowing which is the stop's. A hash of the episode's id decides the order,
so an annotation can be read by itself. Formats: labelstud.io/guide/task_format, labelstud.io/guide/webhook_reference,
api.labelstud.io (import and export).
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from suffice.errors import BadRequest
from suffice.settings import Metric
from suffice.settings.checks import SCORE_FIELDS

SOURCE: Final = "reviewer"
NO_ANSWER: Final = "(no answer)"
EPISODE: Final = "suffice_episode"  # the field of a task's data that holds the episode
_RIGHT: Final = {  # which of A and B a verdict calls right
    "A is right": (True, False),
    "B is right": (False, True),
    "Both are right": (True, True),
    "Neither is right": (False, False),
}
VERDICTS: Final = (*_RIGHT, "I cannot tell")
T = TypeVar("T")
READ: Final = frozenset({"ANNOTATION_CREATED", "ANNOTATIONS_CREATED", "ANNOTATION_UPDATED"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedRows:
    rows: tuple[dict[str, Any] | BadRequest, ...]  # feedback as in /v1/feedback, or why a row is invalid
    n_ignored: int = 0  # empty annotations, and other events

    @staticmethod
    def of(entries: Iterable[T], read: Callable[[T], dict[str, Any] | None]) -> ImportedRows:
        """Read each entry. `read` raises BadRequest for an invalid one and returns None for one to ignore."""
        rows = list[dict[str, Any] | BadRequest | None]()
        for entry in entries:
            try:
                rows.append(read(entry))
            except BadRequest as error:
                rows.append(error)
        kept = tuple(row for row in rows if row is not None)
        return ImportedRows(rows=kept, n_ignored=len(rows) - len(kept))


def full_is_a(episode_id: str) -> bool:
    """Whether the full run's answer is A; depends on the id alone."""
    return hashlib.blake2b(episode_id.encode("utf-8", "surrogatepass"), digest_size=1).digest()[0] < 128


def read_event(payload: Mapping[str, Any]) -> ImportedRows:
    """Parse a webhook's event; feedback of a deleted annotation stays. Raises BadRequest for other events."""
    action = payload.get("action")
    if not isinstance(action, str):
        raise BadRequest("action: is needed, the name of an event such as 'ANNOTATION_CREATED'", param="action")
    if action not in READ:
        return ImportedRows(rows=(), n_ignored=1)
    annotations, tasks = _listed(payload.get("annotation")), _listed(payload.get("task"))
    if not annotations:
        raise BadRequest("annotation: is needed; let the webhook send its payload", param="annotation")
    if len(tasks) != len(annotations):
        raise BadRequest("task: is needed beside each annotation; its data names the run", param="task")
    project = payload.get("project")
    number = project.get("id") if isinstance(project, dict) else None
    return ImportedRows.of(zip(annotations, tasks, strict=True), lambda pair: _row(data_of(pair[1]), pair[0], number))


def read_export(tasks: Any) -> ImportedRows:
    """Parse all annotations of an export in JSON. Raises BadRequest for another format."""
    if not isinstance(tasks, list) or not all(isinstance(one, dict) for one in tasks):
        raise BadRequest("export: must be a list of tasks; export the project in the format JSON")
    if tasks and not any("annotations" in one for one in tasks):
        raise BadRequest("annotations: no task has any; export the project in the format JSON, not JSON_MIN")
    if not all(isinstance(one.get("annotations") or [], list) for one in tasks):
        raise BadRequest("annotations: must be a list in each task; export the project in the format JSON")
    annotations = ((task, one) for task in tasks for one in _listed(task.get("annotations")))
    return ImportedRows.of(annotations, lambda pair: _row(data_of(pair[0]), pair[1], pair[0].get("project")))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if isinstance(value, dict) else []


def data_of(task: Any) -> Mapping[str, Any]:
    data = task.get("data") if isinstance(task, dict) else None
    return data if isinstance(data, dict) else {}


def _row(data: Mapping[str, Any], annotation: Any, project: Any) -> dict[str, Any] | None:
    if not isinstance(annotation, dict) or annotation.get("id") is None:
        raise BadRequest("annotation.id: is needed", param="annotation.id")
    if annotation.get("was_cancelled"):
        return None
    episode, who = data.get(EPISODE), annotation.get("completed_by")
    if not isinstance(episode, str) or not episode:
        raise BadRequest(f"task.data.{EPISODE}: is needed; it names the run", param=f"task.data.{EPISODE}")
    row = _verdict(dict(_results(annotation.get("result"))), data, full_a=full_is_a(episode))
    if not row:
        return None
    who = who.get("id") if isinstance(who, dict) else who
    number = f"label-studio:{project}:{annotation['id']}:{annotation.get('updated_at', '')}"
    row |= {"feedback_id": number, "episode_id": episode, "source": SOURCE}
    return row if who is None else row | {"user": f"label-studio:{who}"}


def _results(result: Any) -> Iterator[tuple[str, Any]]:
    for one in result if isinstance(result, list) else ():
        value = one.get("value") if isinstance(one, dict) else None
        if not isinstance(value, dict):
            continue
        outcome = value.get("choices", value.get("text", value.get("rating")))
        if isinstance(outcome, list):
            outcome = outcome[0] if outcome else None
        if outcome is not None:
            yield str(one.get("from_name")), outcome


def _verdict(entries: Mapping[str, Any], data: Mapping[str, Any], *, full_a: bool) -> dict[str, Any]:
    """The form's verdict on the full run and the other answer; {}: none.

    `correct` is about the full run, which was delivered, and `gold` names a right answer: the other one if both are
    right, so that neither counts as lost.
    """
    row = dict[str, Any]()
    verdict = entries.get("verdict")
    gold = entries.get("gold")
    comment = entries.get("comment")
    if verdict is not None and verdict not in VERDICTS:
        raise BadRequest(f"verdict: got {str(verdict)[:80]!r}; allowed: {', '.join(VERDICTS)}", param="verdict")
    own, other = "ab" if full_a else "ba"
    if verdict in _RIGHT:
        row["correct"], other_right = _RIGHT[verdict] if full_a else _RIGHT[verdict][::-1]
        right = data.get(f"answer_{other if other_right else own}") if other_right or row["correct"] else None
        if isinstance(gold, str) or (isinstance(right, str) and right != NO_ANSWER):
            row["gold"] = gold if isinstance(gold, str) else right
    if isinstance(comment, str) or verdict == "I cannot tell":
        row["comment"] = comment if isinstance(comment, str) else verdict
    if isinstance(rating := entries.get(f"rating_{own}"), int):  # of the delivered answer
        row["rating"] = rating
    return row | ({"reason": f"Label Studio: {verdict}"} if row and verdict is not None else {})


# ---- Reads Langfuse's scores as feedback of users, annotators and evaluators

SIGNATURE_HEADER: Final = "x-langfuse-signature"
SOURCES: Final = {"ANNOTATION": "reviewer", "EVAL": "judge", "API": "user"}  # Langfuse's source → ours
MOST_METADATA_CHARS: Final = 10_000  # of JSON in a string; of longer ones only the trace is used
_TRUE, _FALSE = ("true", "1", "1.0", "yes"), ("false", "0", "0.0", "no")


def check_signature(raw: bytes, header: str, secret: str) -> None:
    """Raise BadRequest 401 unless `header` signs `raw`, at any time: `t=TIME,v1=HMAC-SHA-256 of "TIME.body"`."""
    parts = dict(part.strip().partition("=")[::2] for part in header.split(","))
    given = parts.get("v1", parts.get("s", ""))
    result = f"{parts.get('t', '')}.".encode("utf-8", "surrogatepass") + raw
    genuine = hmac.new(secret.encode(), result, hashlib.sha256).hexdigest()
    if not parts.get("t") or not hmac.compare_digest(genuine.encode(), given.encode("utf-8", "surrogatepass")):
        message = f"{SIGNATURE_HEADER}: does not sign this body; check the secret that Langfuse shows"
        raise BadRequest(message, status=401, code="invalid_signature")


def read_scores(payload: Mapping[str, Any], fields: Mapping[str, str], declared: Mapping[str, Metric]) -> ImportedRows:
    """Parse a page of the API (`data`), an event with a `score`, or one score. Raises BadRequest for anything else.

    fields    the settings' `feedback.langfuse.scores`: name of a score to a field of feedback
    declared  the settings' metrics; a score of the same name is one
    """
    if isinstance(payload.get("data"), list):
        scores = payload["data"]
    elif isinstance(payload.get("score"), dict):
        scores = [payload["score"]]
    elif "name" in payload and ("value" in payload or "stringValue" in payload or "string_value" in payload):
        scores = [payload]
    elif isinstance(payload.get("type"), str):
        return ImportedRows(rows=(), n_ignored=1)
    else:
        raise BadRequest('body: must be a score, {"data": [scores]} as the Scores API answers, or an event of Langfuse')
    return ImportedRows.of(scores, lambda score: _feedback(score, fields, declared))


def read_score(score: Any, fields: Mapping[str, str], declared: Mapping[str, Metric]) -> dict[str, Any] | BadRequest:
    return read_scores({"data": [score]}, fields, declared).rows[0]


def _feedback(score: Any, fields: Mapping[str, str], declared: Mapping[str, Metric]) -> dict[str, Any]:
    if not isinstance(score, Mapping):
        raise BadRequest("score: must be an object")
    name, number = score.get("name"), score.get("id")
    if not isinstance(name, str) or not name:
        raise BadRequest("name: is needed, the name of the score", param="name")
    if not isinstance(number, str) or not number:
        raise BadRequest("id: is needed, the id of the score; it makes sending again safe", param="id")
    source = SOURCES.get(str(score.get("source") or "API").upper())
    if source is None:
        raise BadRequest(f"source: got {str(score['source'])[:40]!r}; known: {', '.join(SOURCES)}", param="source")
    kind = str(_of(score, "dataType", "data_type") or "NUMERIC").upper()
    row: dict[str, Any] = {
        "feedback_id": f"langfuse:{number}:{_of(score, 'updatedAt', 'updated_at') or ''}",
        "source": source,
        **_named(score),
        **_feedback_fields(_field(name, kind, fields, declared), _value(score, kind), declared),
    }
    comment, author = score.get("comment"), _of(score, "authorUserId", "author_user_id")
    if isinstance(comment, str) and comment:
        row.setdefault("comment", comment)
    return row | ({"user": f"langfuse:{author}"} if isinstance(author, str) and author else {})


def _of(score: Mapping[str, Any], *names: str) -> Any:
    return next((score[name] for name in names if score.get(name) not in (None, "")), None)


def _named(score: Mapping[str, Any]) -> dict[str, str]:
    metadata, subject = score.get("metadata"), score.get("subject")
    if isinstance(metadata, str):
        try:
            metadata = json.loads(metadata) if len(metadata) <= MOST_METADATA_CHARS else None
        except (ValueError, RecursionError):
            metadata = None
    known = metadata if isinstance(metadata, Mapping) else {}
    for field in ("episode_id", "response_id"):
        if isinstance(name := known.get(f"suffice_{field}"), str) and name:
            return {field: name}
    subject = subject if isinstance(subject, Mapping) else {}
    trace = _of(score, "traceId", "trace_id") or subject.get("traceId")
    trace = trace or (subject.get("id") if subject.get("kind") == "trace" else None)
    if not isinstance(trace, str) or not trace:
        message = "traceId: is needed, the episode's id; or name it in the metadata as suffice_episode_id"
        raise BadRequest(message, param="traceId")
    return {"episode_id": trace}


def _field(name: str, kind: str, fields: Mapping[str, str], declared: Mapping[str, Metric]) -> str:
    if name in fields:
        return fields[name]
    if name in declared:
        return f"metrics.{name}"
    if kind == "CORRECTION":
        return "answer"
    if name in SCORE_FIELDS:
        return name
    short = name[:80]
    message = f"name: unknown score {short!r}; map it in feedback.langfuse.scores, or declare metrics.{short}"
    raise BadRequest(message, param="name")


def _value(score: Mapping[str, Any], kind: str) -> Any:
    words = _of(score, "stringValue", "string_value")
    value = score.get("value")
    if kind in ("CATEGORICAL", "TEXT", "CORRECTION"):
        given = words if words is not None else value
        if given is None or isinstance(given, Mapping | list):
            raise BadRequest(f"value: must be a text or a number, got {str(given)[:40]!r}", param="value")
        return given
    if kind == "BOOLEAN":
        return _flag(value if value not in (None, "") else words)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            raise BadRequest(f"value: must be a number, got {value[:40]!r}", param="value") from None
    return value


def _flag(value: Any) -> bool:
    result = str(value).lower()
    if result not in (*_TRUE, *_FALSE):
        raise BadRequest(f"value: must be true or false, got {str(value)[:40]!r}", param="value")
    return result in _TRUE


def _feedback_fields(field: str, value: Any, declared: Mapping[str, Metric]) -> dict[str, Any]:
    kind, _, name = field.partition(".")
    if kind == "metrics":
        return {"metrics": {name: _flag(value) if declared[name].type == "boolean" else value}}
    if field == "correct":
        return {field: _flag(value)}
    if field == "thumbs":
        result = str(value).lower()
        return {field: result if result in ("up", "down") else "up" if _flag(value) else "down"}
    if field == "rating":
        return {field: int(value) if isinstance(value, float) and value.is_integer() else value}
    return {field: str(value)}
