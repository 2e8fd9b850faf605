"""Every path of the console and of the control API, in one table: who may ask, and what answers.

    View ──▶ GET /console/… (a page) and GET /api/… (the same record as JSON)
    Action ──▶ POST /console/… (from a form) and POST /api/… (from a program)

A path that is not here does not exist, and one that is here has a role: there is no other way in.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from suffice.console.auth import Needs, Principal
from suffice.console.exchange import JSON, Answer, ConsoleRequest
from suffice.console.people import Role
from suffice.console.view_context import ViewContext

if TYPE_CHECKING:
    from suffice.console.context import ConsoleContext

Handler: TypeAlias = Callable[["ConsoleContext", ConsoleRequest, Principal], Awaitable[Answer]]
Reader: TypeAlias = Callable[[ViewContext, ConsoleRequest, Principal], Any]  # Any: each view has a record of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleEndpoint:
    method: Literal["GET", "POST"]
    path: str  # `{id}` stands for an id
    needs: Needs
    run: Handler
    summary: str
    record: type | None = None  # what a program gets; None: see `gives`
    asks: Mapping[str, str] = field(default_factory=dict)  # fields of the query, or of the body
    gives: str = JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    path: str  # below /console and below /api
    api_path: str | None = None  # below /api, where it is another one
    read: Reader
    record: type
    template: str
    title: str
    place: str = ""  # in the navigation; "": it stands below another one
    needs: Role = "reviewer"
    asks: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionResult:
    said: str  # in one sentence
    goes_to: str = ""  # where a person goes on; "": back to where they were


Doing: TypeAlias = Callable[["ConsoleContext", ConsoleRequest, Principal], ActionResult]


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """Something that changes something. `do` runs in a thread; it raises BadRequest for what cannot be done."""

    path: str  # below /console and below /api
    do: Doing
    summary: str
    needs: Role
    asks: Mapping[str, str]
