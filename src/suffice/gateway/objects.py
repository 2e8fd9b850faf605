"""Objects that an upstream keeps (responses, files, batches …) and which key made each.

    answer that names a new object ──▶ Objects.note ──▶ log
    path or body that names one    ──▶ Objects.check ──▶ nothing, or 404

Where several keys ask, an object can be used by the key that made it through this gateway, and by keys with
`all_objects`. To all others it does not exist, and so does every object that nobody made through this gateway. What a
list would show cannot be told apart, so a list is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from suffice.errors import BadRequest
from suffice.gateway.auth import Caller
from suffice.store.rows.records import StoredObject

MOST_ENTRIES: Final = 10_000  # objects that are remembered; the log knows the others
MOST_ID_CHARS: Final = 200
MOST_REFERENCES: Final = 1_000  # in one body: each is looked up
LARGE_BYTES: Final = 32 * 1024  # a body that is walked through in a thread
# Collections of OpenAI's and Anthropic's APIs. Their names stand in paths, in front of an object's id.
_COLLECTIONS: Final = frozenset(
    {
        "assistants",
        "batches",
        "containers",
        "conversations",
        "evals",
        "files",
        "responses",
        "skills",
        "threads",
        "uploads",
        "vector_stores",
        "videos",
        "chat/completions",
        "fine_tuning/jobs",
    }
)
_CALLS: Final = frozenset({"compact", "input_tokens", "runs", "count_tokens"})  # stand where an id does, and are none
# Fields of request bodies that name objects, wherever they stand.
_REFERENCES: Final = frozenset(
    {
        "assistant_id",
        "batch_id",
        "container",
        "container_id",
        "conversation",
        "conversation_id",
        "file_id",
        "file_ids",
        "input_file_id",
        "previous_response_id",
        "response_id",
        "thread_id",
        "training_file",
        "validation_file",
        "vector_store_id",
        "vector_store_ids",
    }
)
# What callers and models write freely: words there name nothing.
_FREE: Final = frozenset({"metadata", "parameters", "schema", "input_schema", "json_schema", "arguments"})
_MAY_NAME: Final = (b"_id", b"_file", b"conversation", b"container", b"item_reference", b"\\u")  # in a body's bytes


class Objects:
    """The objects of one gateway.

    find  looks one up in the log; called in a thread
    """

    def __init__(self, find: Callable[[str], StoredObject | None] = lambda _: None) -> None:
        self._find = find
        self._recent: dict[str, StoredObject] = {}  # made by this process lately, or found in the log

    def note(self, made: StoredObject) -> bool:
        """A key made an object; False: that is known. The first key to make it stays its owner."""
        if made.object_id in self._recent:
            return False
        self._keep(made)
        return True

    def _keep(self, made: StoredObject) -> None:
        self._recent[made.object_id] = made
        while len(self._recent) > MOST_ENTRIES:
            del self._recent[next(iter(self._recent))]

    async def of(self, object_id: str) -> StoredObject | None:
        """Who made an object, and where it is; None: nobody that this gateway knows.

        The log speaks first: an id that another process saw earlier is not this one's.
        """
        stored = await asyncio.to_thread(self._find, object_id)
        if stored is not None:
            self._keep(stored)
        return stored or self._recent.get(object_id)

    def recent(self, object_id: str) -> StoredObject | None:
        return self._recent.get(object_id)

    async def check(self, caller: Caller, object_id: str, where: str) -> None:
        """Raises BadRequest 404 for an object that `caller` has not made.

        where  the field that names it
        """
        stored = None if len(object_id) > MOST_ID_CHARS else await self.of(object_id)
        if stored is None or stored.sender != caller.id:
            message = f"{where}: {object_id[:80]!r} is not found among what this key has made through this gateway"
            raise BadRequest(message, status=404, param=where, code="not_found")

    async def check_body(self, caller: Caller, raw: bytes, body: Mapping[str, Any]) -> None:
        """The same for every object that a request's body names. Raises BadRequest."""
        if not any(word in raw for word in _MAY_NAME):
            return
        named = await asyncio.to_thread(_named, body) if len(raw) > LARGE_BYTES else _named(body)
        if len(named) > MOST_REFERENCES:
            raise BadRequest(f"body: names more than {MOST_REFERENCES} objects", code="too_many_objects")
        for object_id, where in named.items():
            await self.check(caller, object_id, where)
        chosen = body.get("request_id")  # a new id: some engines let their callers choose it
        if isinstance(chosen, str) and (stored := await self.of(chosen)) is not None and stored.sender != caller.id:
            raise BadRequest("request_id: is taken; choose another one", status=409, param="request_id", code="taken")


def _named(body: Mapping[str, Any]) -> dict[str, str]:
    """The fields by which a body names objects, by the objects' ids; one more than may be, if there are more."""
    fields = dict[str, str]()
    for where, object_id in references(body):
        fields[object_id] = where
        if len(fields) > MOST_REFERENCES:
            break
    return fields


def references(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    waiting: list[Any] = [body]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting += node
            continue
        if not isinstance(node, dict):
            continue
        if node.get("type") == "item_reference" and isinstance(node.get("id"), str):
            yield "item_reference", node["id"]
        is_tool_use = node.get("type") == "tool_use"
        for field, value in node.items():
            if field in _FREE or (is_tool_use and field == "input"):
                continue
            if field in _REFERENCES:
                yield from ((field, name) for name in _names(value))
            if isinstance(value, dict | list):
                waiting.append(value)


def _names(value: Any) -> Iterator[str]:
    """Ids in the value of a field: itself, those of a list, or that of an object."""
    for one in value if isinstance(value, list) else [value]:
        name = one.get("id") if isinstance(one, dict) else one
        if isinstance(name, str) and name:
            yield name


def object_in(path: str) -> tuple[bool, str | None]:
    """Is this the path of a collection of objects, or of something in it? And the id of the object, if one is named."""
    parts = [part for part in path.split("/") if part]
    for at, part in enumerate(parts):
        if part in _COLLECTIONS or "/".join(parts[max(0, at - 1) : at + 1]) in _COLLECTIONS:
            behind = parts[at + 1] if at + 1 < len(parts) else None
            return True, None if behind in _CALLS else behind
    return False, None
