"""What our server and our protocol share with uvicorn's classes, most of which is outside its documented interface.

They are subclasses, so a release that renames an attribute breaks them without an import error. With a new release,
read each name below in it, then raise the upper bound in pyproject.toml.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any, Final

import pytest

from suffice.gateway.http_protocol import LimitedHttp
from suffice.server import GatewayServer

SHARED: Final[dict[type[Any], str]] = {
    LimitedHttp: """
        app asgi_version client connection_lost connection_made connections cycle data_received flow headers loop
        on_body on_header on_headers_complete on_message_begin on_message_complete parser pipeline scheme server tasks
        transport url
    """,
    GatewayServer: "capture_signals config force_exit main_loop on_tick server_state servers should_exit shutdown",
}


def named(kind: type[Any]) -> Iterator[str]:
    """Yield what a class names of itself: what it defines, and the attributes that it reads and writes."""
    yield from (name for name in vars(kind) if not name.startswith("__"))
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(kind)))):
        match node:
            case ast.Attribute(value=ast.Name(id="self") | ast.Call(func=ast.Name(id="super")), attr=attr):
                if not attr.startswith("__"):
                    yield attr


@pytest.mark.parametrize("kind", SHARED)
def test_each_name_that_is_shared_with_uvicorn_is_one_of_these(kind: type[Any]) -> None:
    base = kind.__bases__[0]
    assert base.__module__.startswith("uvicorn.")
    assert set(named(kind)) & set(named(base)) == set(SHARED[kind].split())
