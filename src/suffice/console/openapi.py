"""The OpenAPI description of the control API, generated from the endpoints and the records of views."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from suffice.console.context import ConsoleEndpoint


def _version() -> str:
    try:
        return version("suffice")
    except PackageNotFoundError:
        return "unknown"


VERSION: Final = _version()
_REF: Final = "#/components/schemas/{name}"
_ERROR: Final[Mapping[str, Any]] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def document(doors: Iterable[ConsoleEndpoint]) -> dict[str, Any]:
    mine = [door for door in doors if door.path.startswith("/api")]
    records = list(dict.fromkeys(door.record for door in mine if door.record is not None))
    schemas, components = msgspec.json.schema_components(records, ref_template=_REF)
    by_record = dict(zip(records, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for door in mine:
        paths.setdefault(door.path, {})[door.method.lower()] = _operation(door, by_record)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Suffice",
            "version": VERSION,
            "description": "What the console shows and does, for programs. Fractions are fractions, times are Unix"
            " seconds, tokens are tokens, money is in US dollars; null is unknown, never 0.",
        },
        "paths": paths,
        "components": {
            "schemas": {**components, "Error": dict(_ERROR)},
            "securitySchemes": {"secret": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"secret": []}],
    }


def _operation(door: ConsoleEndpoint, by_record: Mapping[type, Any]) -> dict[str, Any]:
    entries: dict[str, Any] = {
        "operationId": re.sub(r"[^a-z0-9]+", "_", f"{door.method.lower()}{door.path}".replace("/api", "")).strip("_"),
        "summary": door.summary,
        "x-role": door.needs,
        "responses": {
            "200": _answer(door, by_record),
            "default": {
                "description": "why not",
                "content": {"application/json": {"schema": {"$ref": _REF.format(name="Error")}}},
            },
        },
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", door.path)
    ]
    parameters += [
        {"name": name, "in": "query", "description": sentence, "schema": {"type": "string"}}
        for name, sentence in door.asks.items()
        if door.method == "GET"
    ]
    if parameters:
        entries["parameters"] = parameters
    if door.method != "GET":
        entries["requestBody"] = {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "properties": {
                            name: {"type": "string", "description": sentence} for name, sentence in door.asks.items()
                        },
                    }
                }
            },
        }
    if door.needs == "nobody":
        entries["security"] = []
    return entries


def _answer(door: ConsoleEndpoint, by_record: Mapping[type, Any]) -> dict[str, Any]:
    schema = by_record[door.record] if door.record is not None else {"type": "object"}
    return {"description": "as asked", "content": {door.gives: {"schema": schema}}}
