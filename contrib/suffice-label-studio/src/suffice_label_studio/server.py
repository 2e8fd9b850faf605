"""HTTP client of a Label Studio server, as in its API reference (api.labelstud.io, projects).

A legacy token is sent as `Token`; a personal access token, which is a JWT, is first exchanged for a short-lived one.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from suffice.errors import ToolError, UpstreamError
from suffice.upstream.client import UpstreamClient, helper_client

BATCH_TASKS: Final = 250
MOST_BYTES: Final = 256 * 2**20  # of one export
TIMEOUT_S: Final = 60.0


@asynccontextmanager
async def connect_label_studio(url: str, *, api_key: str, timeout_s: float = TIMEOUT_S) -> AsyncIterator[LabelStudio]:
    """Connect to a server at a base address, such as http://127.0.0.1:8080, for the block. Raises ToolError."""
    async with helper_client("label studio", url, timeout_s=timeout_s) as client:
        server = LabelStudio(url.rstrip("/"), client, timeout_s=timeout_s)
        await server.log_in(api_key)
        yield server


class LabelStudio:
    def __init__(self, url: str, client: UpstreamClient, *, timeout_s: float = TIMEOUT_S) -> None:
        self._url, self._client, self._timeout_s = url, client, timeout_s
        self._headers: list[tuple[str, str]] = []

    async def import_tasks(self, project: int, tasks: Sequence[dict[str, Any]]) -> int:
        """Add tasks to a project; return how many. Raises ToolError; earlier batches stay."""
        n_added = 0
        for start in range(0, len(tasks), BATCH_TASKS):
            batch = list(tasks[start : start + BATCH_TASKS])
            answer = await self._call("POST", f"/api/projects/{project}/import", batch)
            # Some editions import in the background and return an id.
            counted = answer.get("task_count") if isinstance(answer, dict) else None
            n_added += counted if isinstance(counted, int) else len(batch)
        return n_added

    async def export(self, project: int, *, all_tasks: bool = False) -> Any:
        """Return the project's tasks with their annotations; with `all_tasks`, also those without. Raises ToolError."""
        more = "&download_all_tasks=true" if all_tasks else ""
        return await self._call("GET", f"/api/projects/{project}/export?exportType=JSON{more}")

    async def log_in(self, api_key: str) -> None:
        """Authenticate further calls with this key, or with the token that it is exchanged for. Raises ToolError."""
        if api_key.count(".") != 2:
            self._headers = [("authorization", f"Token {api_key}")]
            return
        answer = await self._call("POST", "/api/token/refresh", {"refresh": api_key})
        short = answer.get("access") if isinstance(answer, dict) else None
        if not isinstance(short, str):
            raise ToolError(f"label studio {self._url}: gave no access token for the personal access token")
        self._headers = [("authorization", f"Bearer {short}")]

    async def _call(self, method: str, path: str, body: Any = None) -> Any:
        where = f"label studio {self._url}{path.partition('?')[0]}"
        try:
            status, raw, _ = await self._client.fetch(
                path,
                None if body is None else json.dumps(body).encode(),
                self._headers,
                method=method,
                timeout_s=self._timeout_s,
                most_bytes=MOST_BYTES + 1,
            )
        except UpstreamError as error:
            raise ToolError(f"{where}: could not be asked ({type(error).__name__}); is it running there?") from None
        if status in (401, 403):
            raise ToolError(f"{where}: answered {status}; check the key, and that it may use the project")
        if status == 404:
            raise ToolError(f"{where}: answered 404; check the address and the number of the project")
        if not 200 <= status < 300:
            raise ToolError(f"{where}: answered {status}: {raw[:200].decode('utf-8', 'replace')!r}")
        if len(raw) > MOST_BYTES:
            most = f"{MOST_BYTES // 2**20} MiB"
            raise ToolError(f"{where}: answered more than {most}; export a snapshot to a file instead")
        try:
            return json.loads(raw)
        except (ValueError, RecursionError):
            raise ToolError(f"{where}: answered no JSON; is this a Label Studio?") from None
