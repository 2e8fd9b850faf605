"""What an action asks for: one declaration for the console's form, the API's body and the command's options."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final, Literal

# The value and label of each choice, from a view of the log and the settings.
Choices = Callable[[Any], Iterable[tuple[str, str]]]
InputKind = Literal["text", "area", "number", "choice", "flag"]


@dataclass(frozen=True, slots=True)
class FormInput:
    hint: str
    kind: InputKind = "text"
    choices: Choices | None = None
    _: KW_ONLY
    required: bool = False
    default: str = ""
    group: str = ""  # heading of the fieldset; "": the one before
    of: tuple[str, ...] = ()  # values of the field `kind` or `decision` that it belongs to; empty: all
    allowed: tuple[str, ...] = ()  # the choices, where they are the same everywhere
    least: int | None = None  # of a whole number; None: it may be any number
    range: tuple[float, float] = (-math.inf, math.inf)  # of a number
    fills_in: bool = False  # an empty number, or 0, means the default
    many: bool = False  # lines, or parts between commas; an option that may be repeated
    find: Callable[[Any, str], object] | None = None  # for a context; raises BadRequest where it is not there
    metavar: str = ""  # of the option; "": of its kind
    option: str = ""  # of the command; "": named after the field
    argument: str = ""  # of the function; "": named after the field

    @property
    def summary(self) -> str:
        return f"{', '.join(self.of)}: {self.hint}" if self.of else self.hint


def one_of(hint: str, values: Iterable[str], *, required: bool = False, default: str = "") -> FormInput:
    allowed = tuple(values)
    labelled = [(one, one.replace("_", " ")) for one in allowed]
    return FormInput(hint, "choice", lambda _: labelled, required=required, default=default, allowed=allowed)


def find_later(_by: Any, _name: str) -> None:
    """Leave it to the function of the action to refuse an empty name."""


def routes_of(view: Any) -> Iterable[tuple[str, str]]:
    return [(name, name) for name in view.settings.routes]


def any_route(hint: str) -> FormInput:
    return FormInput(hint, "choice", lambda view: [("", "all routes"), *routes_of(view)])


ROUTE: Final = FormInput("its name", "choice", routes_of, required=True)
REASON: Final = FormInput("why; it stays in the log", "area", required=True)
