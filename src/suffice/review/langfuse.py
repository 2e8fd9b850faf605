"""Reads Langfuse's scores as feedback of users, annotators and evaluators.

Formats: langfuse.com/docs/api-and-data-platform/features/scores-api (version 3 with a typed `value` and a `subject`,
version 2 with `stringValue` and flat ids), …/features/blob-storage-export-fields, and
langfuse.com/docs/prompt-management/features/webhooks-slack-integrations for signatures. Langfuse's webhooks are about
prompts and alerts; scores come by its API or exports, or from a client.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any, Final

from suffice.errors import BadRequest
from suffice.review.label_studio import ImportedRows
from suffice.settings import Metric
from suffice.settings.checks import SCORE_FIELDS

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
        return words if words is not None else value
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
