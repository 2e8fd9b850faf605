"""The endpoints of each action: its form with a preview, the page's POST, and the API's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from suffice.console.action_form import PREVIEW, ActionForm, Preview, rehearse, run_operation
from suffice.console.auth import may
from suffice.console.context import ConsoleEndpoint, ConsoleVisit, ViewContext, ViewRecord
from suffice.console.exchange import HTML, JSON, ConsoleRequest, ConsoleResponse, json_response, redirect
from suffice.errors import BadRequest
from suffice.operations.fields import InputKind
from suffice.operations.operation import OperationResult, OperationSpec

FORMS: Final = "/console/change"  # below it, each action has its form
# The template, the title, what it shows, the status.
Render = Callable[[ConsoleVisit, str, str, dict[str, Any], int], ConsoleResponse]
_NEVER_HERE: Final = (401, 403, 429)  # refusals that are about the visitor


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


class FormPage(ViewRecord, frozen=True):
    title: str
    summary: str
    address: str  # to which it is sent
    fields: tuple[FormField, ...]
    problem: str  # why it was refused, where that is about no field; "": it was not
    preview: Preview | None
    blocked: bool  # it would not succeed now, whatever is written
    back: str  # the page to go back to


class ActionLink(ViewRecord, frozen=True):
    title: str
    summary: str
    href: str
    command: str  # of the command line; "": none


class ActionIndex(ViewRecord, frozen=True):
    groups: tuple[tuple[str, tuple[ActionLink, ...]], ...]


def index_of(view: ViewContext, actions: tuple[OperationSpec, ...]) -> ActionIndex:
    """Everything that the visitor may change, by what it is about."""
    role, groups = view.visit.principal.role, dict[str, list[ActionLink]]()
    for one in actions:
        if one.title and role is not None and may(role, one.needs) and (view.tenants is None or one.by_tenant):
            link = ActionLink(
                title=one.title,
                summary=one.summary,
                href=f"{FORMS}{one.path}",
                command=f"suffice {one.commands[0]}" if one.commands else "",
            )
            groups.setdefault(one.path.split("/")[1], []).append(link)
    return ActionIndex(groups=tuple((name, tuple(links)) for name, links in groups.items()))


@dataclass(frozen=True, slots=True)
class ActionPages:
    """The handlers of one action."""

    action: OperationSpec
    render: Render
    back_of: Callable[[ConsoleRequest], str]

    async def _run(self, visit: ConsoleVisit) -> OperationResult:
        form = ActionForm(visit.context, visit.request, visit.principal)
        result = await visit.context.in_thread(lambda: run_operation(self.action, form))
        visit.context.services.notify()
        return result

    async def _preview(self, visit: ConsoleVisit) -> Preview:
        form = ActionForm(visit.context, visit.request, visit.principal)
        return await visit.context.in_thread(lambda: rehearse(self.action, form))

    async def _form(
        self,
        visit: ConsoleVisit,
        values: Mapping[str, str],
        *,
        problem: BadRequest | None = None,
        preview: Preview | None = None,
        blocked: bool = False,
    ) -> ConsoleResponse:
        sentence, at = ("", None) if problem is None else (str(problem), problem.param)
        at = at if at in self.action.fields else None

        def read(view: ViewContext) -> FormPage:
            back = values.get("back", "")
            return FormPage(
                title=self.action.title,
                summary=self.action.summary,
                address=f"/console{self.action.path}",
                fields=tuple(_fields_of(self.action, view, values, at, sentence)),
                problem="" if at else sentence,
                preview=preview,
                blocked=blocked,
                back=back if back.startswith("/console") else "",
            )

        page = await visit.context.read(visit, read)
        status, values_of_page = 200 if problem is None or blocked else problem.status, {"it": page}
        return await visit.context.in_thread(
            lambda: self.render(visit, "form.html", self.action.title, values_of_page, status)
        )

    async def ask(self, visit: ConsoleVisit) -> ConsoleResponse:
        """The form, with what the address fills in; where that is all but the reason, with its preview."""
        query, fields = visit.request.query, self.action.fields
        given = {name: query[name] for name in (*fields, "back") if query.get(name)}
        needed = {name for name, one in fields.items() if name != "reason" and one.required}
        if not needed <= given.keys():
            return await self._form(visit, given)
        defaults = {name: one.default for name, one in fields.items()}
        filled = replace(visit, request=replace(visit.request, form={**defaults, **given}))
        try:
            return await self._form(visit, given, preview=await self._preview(filled))
        except BadRequest as error:
            if error.status == 409:
                return await self._form(visit, given, problem=error, blocked=True)
            return await self._form(visit, given)

    async def page(self, visit: ConsoleVisit) -> ConsoleResponse:
        values, title = visit.request.form, self.action.title
        try:
            if values.get(PREVIEW):
                return await self._form(visit, values, preview=await self._preview(visit))
            result = await self._run(visit)
        except BadRequest as error:
            if not title or error.status in _NEVER_HERE:
                raise
            return await self._form(visit, values, problem=error)
        if result.secret:
            return await visit.context.in_thread(lambda: self.render(visit, "done.html", title, {"it": result}, 200))
        if result.message:
            visit.context.leave_message(visit.principal, result.message)
        return redirect(result.goes_to or self.action.goes_to or self.back_of(visit.request))

    async def api(self, visit: ConsoleVisit) -> ConsoleResponse:
        if visit.request.form.get(PREVIEW, "") not in ("", "false"):
            return json_response({"done": False, "preview": await self._preview(visit)})
        result = await self._run(visit)
        secret = {"secret": result.secret} if result.secret else {}
        return json_response({"done": True, "message": result.message, **secret})


def endpoints_of_action(
    action: OperationSpec, render: Render, back_of: Callable[[ConsoleRequest], str]
) -> tuple[ConsoleEndpoint, ...]:
    pages, needs, of = ActionPages(action, render, back_of), action.needs, action.by_tenant
    fields, form = {name: one.summary for name, one in action.fields.items()}, f"{FORMS}{action.path}"
    if action.title:
        fields[PREVIEW] = "true: say what would change, and change nothing"
    forms = (ConsoleEndpoint("GET", form, needs, pages.ask, action.title, HTML, of),) if action.title else ()
    return (
        *forms,
        ConsoleEndpoint("POST", f"/console{action.path}", needs, pages.page, action.summary, HTML, of, fields=fields),
        ConsoleEndpoint("POST", f"/api{action.path}", needs, pages.api, action.summary, JSON, of, fields=fields),
    )


def _fields_of(
    action: OperationSpec, view: ViewContext, values: Mapping[str, str], at: str | None, sentence: str
) -> Iterator[FormField]:
    """The fields of a form with their values; `sentence` is what is wrong with the one called `at`."""
    was_sent = "csrf" in values
    for name, known in action.fields.items():
        yield FormField(
            name=name,
            label=name.replace("_", " ").capitalize().replace("em drop", "EM drop"),
            hint=f"{known.hint}; one a line" if known.many and known.kind == "area" else known.hint,
            kind=known.kind,
            choices=tuple(known.choices(view)) if known.choices is not None else (),
            required=known.required,
            value=values.get(name, "" if was_sent else known.default),
            problem=sentence.removeprefix(f"{name}: ") if at == name else "",
            group=known.group,
            of=known.of,
        )
