"""Reads Label Studio's annotations as reviewers' feedback; the package suffice-label-studio writes the tasks.

Reviewers see both answers as A and B without knowing which is the stop's. A hash of the episode's id decides the order,
so an annotation can be read by itself. Formats: labelstud.io/guide/task_format, labelstud.io/guide/webhook_reference,
api.labelstud.io (import and export).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from suffice.errors import BadRequest

SOURCE: Final = "reviewer"
NO_ANSWER: Final = "(no answer)"
EPISODE: Final = "suffice_episode"  # the field of a task's data that holds the episode
VERDICTS: Final = ("A is right", "B is right", "Both are right", "Neither is right", "I cannot tell")
READ: Final = frozenset({"ANNOTATION_CREATED", "ANNOTATIONS_CREATED", "ANNOTATION_UPDATED"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedRows:
    rows: tuple[dict[str, Any] | BadRequest, ...]  # feedback as in /v1/feedback, or why a row is invalid
    n_ignored: int = 0  # empty annotations, and other events


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
    results = [_row(data_of(of), one, number) for one, of in zip(annotations, tasks, strict=True)]
    return _imported(results)


def read_export(tasks: Any) -> ImportedRows:
    """Parse all annotations of an export in JSON. Raises BadRequest for another format."""
    if not isinstance(tasks, list) or not all(isinstance(one, dict) for one in tasks):
        raise BadRequest("export: must be a list of tasks; export the project in the format JSON")
    if tasks and not any("annotations" in one for one in tasks):
        raise BadRequest("annotations: no task has any; export the project in the format JSON, not JSON_MIN")
    return _imported(
        [
            _row(data_of(one), annotation, one.get("project"))
            for one in tasks
            for annotation in _listed(one.get("annotations"))
        ]
    )


def _imported(entries: Sequence[dict[str, Any] | BadRequest | None]) -> ImportedRows:
    rows = tuple(row for row in entries if row is not None)
    return ImportedRows(rows=rows, n_ignored=len(entries) - len(rows))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if isinstance(value, dict) else []


def data_of(task: Any) -> Mapping[str, Any]:
    data = task.get("data") if isinstance(task, dict) else None
    return data if isinstance(data, dict) else {}


def _row(data: Mapping[str, Any], annotation: Any, project: Any) -> dict[str, Any] | BadRequest | None:
    if not isinstance(annotation, dict) or annotation.get("id") is None:
        return BadRequest("annotation.id: is needed", param="annotation.id")
    if annotation.get("was_cancelled"):
        return None
    episode = data.get(EPISODE)
    if not isinstance(episode, str) or not episode:
        return BadRequest(f"task.data.{EPISODE}: is needed; it names the run", param=f"task.data.{EPISODE}")
    entries = dict(_results(annotation.get("result")))
    row = _verdict(entries, data, full_a=full_is_a(episode))
    if isinstance(row, BadRequest) or not row:
        return row or None
    who = annotation.get("completed_by")
    who = who.get("id") if isinstance(who, dict) else who
    return (
        row
        | {
            "feedback_id": f"label-studio:{project}:{annotation['id']}:{annotation.get('updated_at', '')}",
            "episode_id": episode,
            "source": SOURCE,
        }
        | ({} if who is None else {"user": f"label-studio:{who}"})
    )


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


def _verdict(entries: Mapping[str, Any], data: Mapping[str, Any], *, full_a: bool) -> dict[str, Any] | BadRequest:
    """The form's verdict on the full run and the other answer; {}: none.

    `correct` is about the full run, which was delivered, and `gold` names a right answer: the other one if both are
    right, so that neither counts as lost.
    """
    row = dict[str, Any]()
    verdict, gold, comment = entries.get("verdict"), entries.get("gold"), entries.get("comment")
    if verdict is not None and verdict not in VERDICTS:
        return BadRequest(f"verdict: got {str(verdict)[:80]!r}; allowed: {', '.join(VERDICTS)}", param="verdict")
    if verdict in VERDICTS[:4]:
        full_right = verdict in ("Both are right", "A is right" if full_a else "B is right")
        other_right = verdict in ("Both are right", "B is right" if full_a else "A is right")
        full, other = (data.get(f"answer_{name}") for name in ("ab" if full_a else "ba"))
        right = other if other_right else full if full_right else None
        row["correct"] = full_right
        if isinstance(gold, str) or (isinstance(right, str) and right != NO_ANSWER):
            row["gold"] = gold if isinstance(gold, str) else right
    if isinstance(comment, str) or verdict == "I cannot tell":
        row["comment"] = comment if isinstance(comment, str) else verdict
    rating = entries.get("rating_a" if full_a else "rating_b")  # of the delivered answer
    if isinstance(rating, int):
        row["rating"] = rating
    return row | ({"reason": f"Label Studio: {verdict}"} if row and verdict is not None else {})
