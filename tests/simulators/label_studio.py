"""A Label Studio with in-memory projects, tasks and annotations, over a real socket.

Answers have the fields and codes of Label Studio's own source and API reference (data_import/api.py,
data_export/api.py, webhooks/models.py; api.labelstud.io).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

WHEN = "2026-01-02T03:04:05.000000Z"


@dataclass(slots=True)
class Project:
    id: int
    tasks: dict[int, dict[str, Any]] = field(default_factory=dict)


class FakeLabelStudio:
    """A server on 127.0.0.1, as a context manager; `calls` records the requests.

    >>> import urllib.request
    >>> with FakeLabelStudio(token="t") as studio:
    ...     request = urllib.request.Request(f"{studio.url}/api/projects/1/import", b'[{"data": {"question": "?"}}]')
    ...     request.add_header("authorization", "Token t")
    ...     with urllib.request.urlopen(request) as reply:
    ...         reply.status, json.load(reply)["task_count"]
    (201, 1)

    token     a legacy token; requests without it are rejected
    refresh   a personal access token, exchanged for a short-lived one at /api/token/refresh; None: none
    """

    def __init__(self, *, token: str = "", refresh: str | None = None, projects: tuple[int, ...] = (1,)) -> None:
        self.token, self.refresh, self.short = token, refresh, "short-lived"
        self.projects = {number: Project(number) for number in projects}
        self.calls: list[tuple[str, str]] = []
        self._n_tasks = self._n_annotations = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def annotate(
        self,
        task: int,
        verdict: Mapping[str, Any],
        *,
        project: int = 1,
        by: int = 1,
        when: str = WHEN,
        skipped: bool = False,
        annotation: int | None = None,
    ) -> dict[str, Any]:
        """Annotate a task as a person does; return the body of the webhook.

        said        by control: a list is a choice, a string a text, a number a rating
        annotation  id of the annotation to change; None: a new one
        """
        with self._lock:
            of = self.projects[project].tasks[task]
            if annotation is None:
                self._n_annotations += 1
            made = {
                "id": annotation or self._n_annotations,
                "completed_by": by,
                "result": _result(verdict),
                "task": task,
                "was_cancelled": skipped,
                "ground_truth": False,
                "created_at": WHEN,
                "updated_at": when,
                "lead_time": 4.2,
                "prediction": {},
                "result_count": len(verdict),
            }
            of["annotations"] = [one for one in of["annotations"] if one["id"] != made["id"]] + [made]
        action = "ANNOTATION_CREATED" if annotation is None else "ANNOTATION_UPDATED"
        displayed = {key: value for key, value in of.items() if key != "annotations"}
        return {"action": action, "annotation": made, "task": displayed, "project": {"id": project, "title": "Judge"}}

    def answer(self, method: str, target: str, authorization: str, body: Any) -> tuple[int, Any]:
        """Status and JSON of one request."""
        parts = urlsplit(target)
        self.calls.append((method, parts.path))
        if (method, parts.path) == ("POST", "/api/token/refresh"):
            known = self.refresh is not None and isinstance(body, dict) and body.get("refresh") == self.refresh
            return (200, {"access": self.short}) if known else (401, {"detail": "Token is invalid or expired"})
        if authorization not in (f"Token {self.token}", f"Bearer {self.short}"):
            return 401, {"detail": "Invalid token."}
        _, api, projects, number, what = [*parts.path.split("/"), "", "", ""][:5]
        project = self.projects.get(int(number)) if number.isdecimal() else None
        if (api, projects) != ("api", "projects") or project is None:
            return 404, {"detail": "Not found."}
        if (method, what) == ("POST", "import"):
            return self._imported(project, body)
        if (method, what) == ("GET", "export"):
            every = parse_qs(parts.query).get("download_all_tasks") == ["true"]
            return 200, [one for one in project.tasks.values() if every or one["annotations"]]
        return 404, {"detail": "Not found."}

    def _imported(self, project: Project, body: Any) -> tuple[int, Any]:
        tasks = body if isinstance(body, list) else [body]
        if not all(isinstance(one, dict) for one in tasks):
            return 400, {"detail": "Incorrect task data"}
        with self._lock:
            for one in tasks:
                self._n_tasks += 1
                data = one.get("data", one)
                project.tasks[self._n_tasks] = {
                    "id": self._n_tasks,
                    "data": data,
                    "meta": one.get("meta", {}),
                    "project": project.id,
                    "created_at": WHEN,
                    "updated_at": WHEN,
                    "annotations": [],
                    "predictions": [],
                    "drafts": [],
                    "is_labeled": False,
                    "overlap": 1,
                }
        return 201, {
            "task_count": len(tasks),
            "annotation_count": 0,
            "prediction_count": 0,
            "duration": 0.01,
            "file_upload_ids": [],
            "could_be_tasks_list": False,
            "found_formats": [],
            "data_columns": [],
        }


def _result(verdict: Mapping[str, Any]) -> list[dict[str, Any]]:
    result = []
    for number, (name, value) in enumerate(verdict.items()):
        kind, inner = (
            ("rating", {"rating": value})
            if isinstance(value, int)
            else ("choices", {"choices": value})
            if isinstance(value, list)
            else ("textarea", {"text": [value]})
        )
        result.append(
            {
                "id": f"r{number}",
                "from_name": name,
                "to_name": "question",
                "type": kind,
                "origin": "manual",
                "value": inner,
            }
        )
    return result


def _handler(studio: FakeLabelStudio) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            raw = self.rfile.read(length)
            body = json.loads(raw) if raw else None
            status, reply = studio.answer(self.command, self.path, self.headers.get("authorization") or "", body)
            report = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(report)))
            self.end_headers()
            self.wfile.write(report)

        do_GET = _serve  # noqa: N815 - http.server's own names
        do_POST = _serve  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    return Handler
