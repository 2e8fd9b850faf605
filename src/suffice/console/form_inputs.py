"""What a form asks for, and the inputs that several forms share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass
from typing import Final, Literal

from suffice.console.context import ViewContext, ViewRecord

Choices = Callable[[ViewContext], Iterable[tuple[str, str]]]  # value and label
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

    @property
    def summary(self) -> str:
        return f"{', '.join(self.of)}: {self.hint}" if self.of else self.hint


class FormField(ViewRecord, frozen=True):
    """One field of a form, as it is shown."""

    name: str
    label: str
    hint: str
    kind: InputKind
    choices: tuple[tuple[str, str], ...]
    required: bool
    value: str
    problem: str  # why the value was refused; "": it was not
    group: str
    of: tuple[str, ...]  # as of `FormInput`


def one_of(hint: str, values: Iterable[str], *, required: bool = False, default: str = "") -> FormInput:
    labelled = [(one, one.replace("_", " ")) for one in values]
    return FormInput(hint, "choice", lambda _: labelled, required=required, default=default)


def routes_of(view: ViewContext) -> Iterable[tuple[str, str]]:
    return [(name, name) for name in view.settings.routes]


def _any_route(view: ViewContext) -> Iterable[tuple[str, str]]:
    return [("", "all routes"), *routes_of(view)]


ROUTE: Final = FormInput("its name", "choice", routes_of, required=True)
REASON: Final = FormInput("why; it stays in the log", "area", required=True)


def any_route(hint: str) -> FormInput:
    return FormInput(hint, "choice", _any_route)
