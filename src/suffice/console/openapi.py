"""The OpenAPI description of the control API, generated from the endpoints and the records of views."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from suffice.console.context import ConsoleEndpoint

VERSION: str
try:
    VERSION = version("suffice")
except PackageNotFoundError:  # a source tree that is not installed
    VERSION = "unknown"
_REF: Final = "#/components/schemas/{name}"
_TEXT: Final = {"type": "string"}
_TEXT_OR_NULL: Final = {"type": ["string", "null"]}
_ERROR: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code"],
            "properties": {"message": _TEXT, "type": _TEXT, "param": _TEXT_OR_NULL, "code": _TEXT_OR_NULL},
        }
    },
}


def document(endpoints: Iterable[ConsoleEndpoint]) -> dict[str, Any]:
    described = [one for one in endpoints if one.path.startswith("/api")]
    records = list(dict.fromkeys(one.record for one in described if one.record is not None))
    schemas, components = msgspec.json.schema_components(records, ref_template=_REF)
    by_record = dict(zip(records, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for one in described:
        schema = by_record[one.record] if one.record is not None else {"type": "object"}
        paths.setdefault(one.path, {})[one.method.lower()] = _operation(one, schema)
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
            "schemas": {**components, "Error": _ERROR},
            "securitySchemes": {"secret": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"secret": []}],
    }


def _operation(endpoint: ConsoleEndpoint, schema: Any) -> dict[str, Any]:
    name = f"{endpoint.method.lower()}{endpoint.path}".replace("/api", "")
    operation: dict[str, Any] = {
        "operationId": re.sub(r"[^a-z0-9]+", "_", name).strip("_"),
        "summary": endpoint.summary,
        "x-role": endpoint.needs,
        "responses": {
            "200": {"description": "The result", "content": {endpoint.gives: {"schema": schema}}},
            "default": {
                "description": "The error",
                "content": {"application/json": {"schema": {"$ref": _REF.format(name="Error")}}},
            },
        },
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": _TEXT}
        for name in re.findall(r"\{(\w+)\}", endpoint.path)
    ]
    if endpoint.method == "GET":
        parameters += [
            {"name": name, "in": "query", "description": sentence, "schema": _TEXT}
            for name, sentence in endpoint.fields.items()
        ]
    else:
        properties = {name: _TEXT | {"description": sentence} for name, sentence in endpoint.fields.items()}
        body = {"application/json": {"schema": {"type": "object", "properties": properties}}}
        operation["requestBody"] = {"required": True, "content": body}
    if parameters:
        operation["parameters"] = parameters
    if endpoint.needs == "nobody":
        operation["security"] = []
    return operation
