"""Reads Label Studio's annotations as reviewers' feedback; the package suffice-label-studio writes the tasks.

Reviewers see both answers as A and B without knowing which is the stop's. A hash of the episode's id decides the order,
so an annotation can be read by itself. Formats: labelstud.io/guide/task_format, labelstud.io/guide/webhook_reference,
api.labelstud.io (import and export).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from suffice.errors import BadRequest

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
    verdict, gold, comment = entries.get("verdict"), entries.get("gold"), entries.get("comment")
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
