"""The changes that the console offers: their forms, and their rehearsal on a writer that writes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from suffice.console.context import ConsoleServices, ConsoleVisit, ViewContext, ViewRecord
from suffice.console.exchange import refuse_nul
from suffice.errors import BadRequest, ConfigError
from suffice.formatting import format_percent
from suffice.operations.fields import FormInput
from suffice.operations.operation import OperationResult, OperationSpec
from suffice.review.items import MOST_TEXT
from suffice.sanitize import plural
from suffice.settings import Settings
from suffice.store.database.decisions import Decisions
from suffice.store.people.audit_view import describe_event
from suffice.store.routes.period import PeriodFigures, read_total
from suffice.store.routes.rollups import DAY_HOURS, HOUR_S
from suffice.store.rows.events import kind_named, route_of

MOST_CHARS: Final = 2_000  # of a reason
PREVIEW: Final = "preview"  # the field that asks for a rehearsal
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ActionForm(ConsoleVisit):
    """The fields of a requested change. Every reader raises BadRequest for an invalid field."""

    rehearsal: Decisions | None = None  # None: the change is made

    @property
    def services(self) -> ConsoleServices:
        services = self.context.services
        return services if self.rehearsal is None else services.rehearsing(self.rehearsal)

    @property
    def writer(self) -> Decisions:
        return self.rehearsal or self.context.services.decisions()

    @property
    def now_s(self) -> float:
        return self.context.now()

    @property
    def author(self) -> str:
        return self.principal.name

    @property
    def route(self) -> str:
        name, known = self.get("route"), sorted(self.context.settings.routes)
        if name not in known:
            listed = ", ".join(known) or "none is configured"
            raise BadRequest(f"route: unknown route {name[:80]!r}; known: {listed}", param="route", status=404)
        return name

    @property
    def reason(self) -> str:
        reason = self.get("reason").strip()
        if self.rehearsal is not None and not reason:
            return "(your reason)"
        if not reason or len(reason) > MOST_CHARS:
            message = f"reason: is needed, at most {MOST_CHARS:,} characters; it stays in the log"
            raise BadRequest(message, param="reason")
        return reason

    @property
    def settings(self) -> Settings:
        return self.context.settings

    @property
    def signed(self) -> dict[str, Any]:
        return {"author": self.author, "reason": self.reason}

    def get(self, field: str) -> str:
        return refuse_nul(self.request.form.get(field, ""), field)

    def flag(self, field: str) -> bool:
        return self.get(field) not in ("", "false", "no", "0")

    def text(self, field: str, *, required: bool = False) -> str:
        text = self.get(field).strip()
        if len(text) > MOST_TEXT:
            raise BadRequest(f"{field}: at most {MOST_TEXT:,} characters", param=field)
        if required and not text:
            raise BadRequest(f"{field}: is needed", param=field)
        return text

    def number(self, field: str, low: float = -math.inf, high: float = math.inf) -> float | None:
        text = self.get(field).strip()
        if not text:
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or not low <= value <= high:
            bounds = "" if (low, high) == (-math.inf, math.inf) else f", {low:g} to {high:g}"
            raise BadRequest(f"{field}: got {text[:40]!r}; a number{bounds}", param=field)
        return value

    def count(self, field: str) -> int | None:
        value = self.number(field)
        if value is None:
            return None
        if value != int(value) or not 0 <= value < 2**31:
            raise BadRequest(f"{field}: got {value:g}; a whole number", param=field)
        return int(value)

    def one_of(self, field: str, allowed: Iterable[T]) -> T:
        given, names = self.get(field), list(allowed)
        if given not in names:
            raise BadRequest(f"{field}: got {given[:40]!r}; allowed: {', '.join(map(str, names))}", param=field)
        return next(one for one in names if one == given)

    def read(self, name: str, field: FormInput) -> Any:
        """Return the value of a declared field; None: it is empty."""
        if name == "route" and field.choices is not None:
            return self.route if field.required or self.get(name) else None
        if field.kind == "flag":
            return self.flag(name)
        if field.allowed:
            return self.one_of(name, field.allowed)
        if field.kind == "number" or field.least is not None:
            value = self.number(name, *field.range)
            value = value if field.least is None else self.count(name)
            return float(field.default) if field.fills_in and not value else value
        text = self.text(name, required=field.required and field.find is None)
        if field.find is not None:
            field.find(self, text)
        if field.many:
            parts = text.splitlines() if field.kind == "area" else text.split(",")
            return tuple(part.strip() for part in parts if part.strip())
        return text or ("" if field.required else None)


class PreviewRow(ViewRecord, frozen=True):
    """A row that the change would write, or a setting that it would change."""

    kind: str  # of the row, or the setting's path
    before: str  # the state before, in words; "": none
    after: str
    route: str = ""  # "": none
    note: str = ""


def run_operation(operation: OperationSpec, form: ActionForm) -> OperationResult:
    """Make the change, in a thread. Raises BadRequest for an invalid request, and where the settings forbid it."""
    fields = operation.fields.items()
    given = {field.argument or name: form.read(name, field) for name, field in fields if name != "reason"}
    try:
        done = operation.do(form, **given)
    except ConfigError as error:
        raise BadRequest(str(error), status=409, code="conflict") from None
    return replace(done, message=f"{done.message} But {done.warning}.") if done.warning else done


class Preview(ViewRecord, frozen=True):
    message: str  # what would be said of it
    rows: tuple[PreviewRow, ...]
    effect: str  # what the route did lately, or what is known of the settings; "": nothing to say


def rehearse(operation: OperationSpec, form: ActionForm) -> Preview:
    """Run a change on a writer that writes nothing. Raises BadRequest where the change would."""
    rehearsal = form.context.services.decisions().rehearsal()
    result = run_operation(operation, replace(form, rehearsal=rehearsal))
    name = form.get("route")

    def described(view: ViewContext) -> tuple[PreviewRow, ...]:
        states = [(one, describe_event(view.connection, one)) for one in rehearsal.rehearsed or ()]
        return tuple(
            PreviewRow(kind=kind_named(type(one)), route=route_of(one) or "", before=before, after=after)
            for one, (before, after) in states
        )

    return Preview(
        message=result.message,
        rows=(*result.rows, *form.context.read_now(form, described)),
        effect=form.context.read_now(form, lambda view: describe_day(view, name))
        if name in form.context.settings.routes
        else result.effect,
    )


def describe_figures(figures: PeriodFigures) -> str:
    """Traffic, stops, saving and EM drop of a stretch, in a few words."""
    sums, saved, drop = figures.sums, figures.saved_tokens, figures.em_drop
    share = format_percent(sums.n_stopped / max(1, sums.n_requests), 0)
    parts = [f"{plural(sums.n_requests, 'request')}, {share} stopped early"]
    if saved:
        parts.append(f"{abs(saved):,.0f} tokens {'saved, net' if saved > 0 else 'more spent than saved'}")
    if drop is not None and drop.high is not None:
        parts.append(
            f"EM drop {100 * drop.value:.2f} points, at most {100 * drop.high:.2f}, on {plural(drop.n, 'audit')}"
        )
    return "; ".join(parts)


def describe_day(view: ViewContext, route: str) -> str:
    """What stopping did on a route in the last 24 hours, which a change of it is about."""
    hour = int(view.now_s // HOUR_S) + 1
    figures = read_total(view.connection, route, since_hour=hour - DAY_HOURS, until_hour=hour)
    if not figures.sums.n_requests:
        return f"{route} had no request in the last 24 hours."
    return f"{route} in the last 24 hours: {describe_figures(figures)}."
