"""What the command line can change, the API and the console can: with a preview, a reason and one row of the log."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from importlib.resources import files

import click
import pytest

from suffice.cli.main import COMMANDS
from suffice.console.actions import ACTIONS
from suffice.operations.operation import OperationSpec
from suffice.store.database.views import last_place
from tests.console.conftest import Site
from tests.console.visitor import Visitor

READS = "it shows something and changes nothing"
LOCAL = "it works on files of the machine on which it is run, and changes nothing of a deployment"
# Commands without an action, each with its reason.
_READERS = """config check, config show, status, alerts list, audit verify, audit show, policy list, policy show,
    policy diff,
    experiment list, experiment show, incident list, incident show, override list, review list, review stats,
    feedback parked, admin list, key list, store check"""
EXEMPT: Mapping[str, str] = {
    **dict.fromkeys((one.strip() for one in _READERS.split(",")), READS),
    **dict.fromkeys(("estimate", "record", "replay", "tune"), LOCAL),
    "serve": "it is the server itself",
    "init": "it writes the settings before there is a console",
    "completion": "it is about the shell of whoever types",
    "worker": "it is a process of its own",
    "doctor": "it calls a model server for minutes, with that server's key, and reports as it goes",
    "store migrate": "the console needs a log that is migrated",
    "store copy": "it moves the log that the console stands on",
    "archive": "the worker does it each day; by hand it fills in days, which takes as long as it takes",
    "audit export": "Changes exports as CSV; a chained copy belongs into a file that is not the server's",
    "audit bundle": "evidence of a certificate is signed on the machine with the deployment's secret",
    "feedback import": "POST /v1/feedback/batch takes the same, with a key that says who speaks",
    "feedback judge": "it calls a judge model for minutes, at a price",
    "feedback label-studio": "a webhook brings the same: POST /v1/feedback/label-studio",
    "export feedback": "users' words leave the server only to who may read its files",
    "export finetune": "users' words leave the server only to who may read its files",
    "export label-studio": "users' words leave the server only to who may read its files",
    "erase": "it rewrites the whole file of the log and may take longer than any request",
}


def commands() -> Iterator[str]:
    for name, (module, _) in COMMANDS.items():
        command = getattr(importlib.import_module(f"suffice.cli.{module}"), name)
        if isinstance(command, click.Group):
            yield from (f"{name} {one}" for one in command.list_commands(click.Context(command)))
        else:
            yield name


def test_each_command_that_changes_something_has_an_action_or_a_reason() -> None:
    known = [*commands()]
    done = [name for action in ACTIONS for name in action.commands]
    assert len(done) == len(set(done)), "two actions for one command"
    assert set(done) <= set(known), "an action of a command that is gone"
    added = {"feedback label-studio", "export label-studio", "export finetune"}  # by packages that may be missing
    assert set(known) - set(done) - added == set(EXEMPT) - added, "neither an action nor a reason"


def command_named(words: str) -> click.Command:
    group, _, name = words.partition(" ")
    command = getattr(importlib.import_module(f"suffice.cli.{COMMANDS[group][0]}"), group)
    named = command.get_command(click.Context(command), name) if name else command
    assert isinstance(named, click.Command)
    return named


# Actions with a form or a path whose command is declared by itself, each with its reason.
COMMAND_BY_ITSELF: Mapping[str, str] = {
    **dict.fromkeys(("/stop-all", "/release-all"), "the command works without the log and the settings"),
    **dict.fromkeys(("/people/add", "/people/reset", "/people/remove"), "the command works without the log"),
    **dict.fromkeys(("/review/next", "/review/say"), "at a terminal an item is shown and answered with one key"),
    "/rollouts/move": "each move is a command",
    "/rollouts/propose": "the command takes a policy or a file as well",
    "/settings/reload": "the command asks the gateway",
    "/keys/create": "the command sets limits that the form does not offer",
    "/alerts/test": "the command works without the log",
}
# Actions without a command, each with its reason.
NO_COMMAND: Mapping[str, str] = {
    "/review/skip": "at a terminal it is a key of `review next`",
    **dict.fromkeys(("/runs/answer-now", "/runs/think-more"), "it is about a request in the process of the gateway"),
    "/views/save": "it is a view of the console",
    "/experiments/create": "at a terminal, an experiment is written into the settings",
    **dict.fromkeys(("/alerts/rules/set", "/alerts/mute"), "rules and mutes are kept in the console and by the API"),
}
SHARED = [one for one in ACTIONS if one.do.__module__.startswith("suffice.operations") and len(one.commands) < 3]


def test_each_action_is_declared_for_all_three_or_says_why_not() -> None:
    by_themselves = {one.path for one in ACTIONS if one.commands} - {one.path for one in SHARED}
    assert by_themselves == set(COMMAND_BY_ITSELF)
    assert {one.path for one in ACTIONS if not one.commands} == set(NO_COMMAND)


@pytest.mark.parametrize("spec", SHARED, ids=lambda one: one.path)
def test_a_declared_action_asks_the_same_in_form_api_and_command(here: Site, spec: OperationSpec) -> None:
    command = command_named(spec.commands[0])
    parameters = {one.name: one for one in command.params}
    for name, field in spec.fields.items():
        parameter = parameters[field.argument or name]
        assert name == "reason" or isinstance(parameter, click.Argument) == field.required, name
        if field.allowed:
            assert isinstance(parameter.type, click.Choice)
            assert tuple(parameter.type.choices) == field.allowed
    only_at_a_terminal = {"path", "data_dir", "author", "as_json", "wait_s"}
    assert parameters.keys() - only_at_a_terminal == {field.argument or name for name, field in spec.fields.items()}
    assert command.help
    (action,) = (one for one in ACTIONS if one.path == spec.path)
    assert (action.fields, action.title) == (spec.fields, spec.title)
    admin = here.visitor("admin")
    assert admin.get(f"/console/change{spec.path}").status == 200
    answer = admin.post(f"/api{spec.path}", {"csrf": admin.token()}).json
    assert answer["error"]["param"] in spec.fields, "the path is there, and asks for its fields"


def test_each_action_has_a_form_and_asks_why() -> None:
    templates = (files("suffice.console") / "templates").iterdir()
    pages = "".join(one.read_text("utf-8") for one in templates if one.name.endswith(".html"))
    for action in ACTIONS:
        place, _, name = action.path.rpartition("/")
        assert action.title or (f"/console{place}/" in pages and name in pages), action.path
        if action.title and action.path != "/alerts/test":
            assert "reason" in action.fields, action.path


FORMS = [action for action in ACTIONS if action.title]


@pytest.mark.parametrize("action", FORMS, ids=lambda one: one.path)
def test_a_form_is_a_page_whose_labels_name_their_fields(here: Site, action: object) -> None:
    path, fields = action.path, action.fields  # type: ignore[attr-defined]
    page = here.visitor("admin").get(f"/console/change{path}").text
    for name in fields:
        assert f'for="field-{name}"' in page, name
        assert f'id="field-{name}"' in page, name
        assert f'id="hint-{name}"' in page, name


def last(here: Site) -> int:
    return last_place(here.app.context.path)


# What a change needs, and what its preview and the log then say.
CHANGES = {
    "/routes/pause": ({"route": "math"}, "paused"),
    "/overrides/set": ({"route": "math", "kind": "observe", "days": "3"}, "runs in full"),
    "/incidents/open": ({"route": "math"}, "is open"),
    "/people/add": ({"name": "mallory", "role": "viewer"}, "viewer"),
    "/people/reset": ({"name": "rita"}, "new secret"),
    "/people/remove": ({"name": "rita"}, "no access"),
    "/alerts/rules/set": (
        {"name": "drop", "measure": "em_drop", "limit": "0.02", "enabled": "true"},
        "would have been",
    ),
    "/alerts/mute": ({"hours": "8"}, "no sink is told"),
    "/stop-all": ({}, "switched off"),
}


@pytest.mark.parametrize("path", CHANGES)
def test_a_preview_changes_nothing_and_says_what_the_change_then_does(here: Site, path: str) -> None:
    fields, words = CHANGES[path]
    admin = here.visitor("admin")
    form = {"csrf": admin.token(), **fields}
    before, people = last(here), here.people.listed()
    reply = admin.post(f"/api{path}", {**form, "preview": "true"}).json
    assert reply["done"] is False
    assert words in reply["preview"]["message"]
    assert len(reply["preview"]["rows"]) >= 1
    assert (last(here), here.people.listed()) == (before, people)
    assert not here.app.context.services.killed()
    assert "What it would do" in admin.post(f"/console{path}", {**form, "preview": "1"}).text
    assert (last(here), here.people.listed()) == (before, people)
    refused = admin.post(f"/console{path}", form)
    assert (refused.status, 'id="problem-reason"' in refused.text) == (400, True), "the reason is needed, and asked for"
    assert last(here) == before
    done = admin.post(f"/api{path}", {**form, "reason": "a drill"}).json
    assert done["done"] is True
    kinds = [one["kind"] for one in reply["preview"]["rows"]]
    rows = admin.get("/api/changes").json["lines"]
    assert [one["kind"] for one in rows[: len(kinds)]] == kinds[::-1]
    assert (rows[0]["author"], rows[0]["reason"]) == ("admin", "a drill")


def test_what_would_not_succeed_is_not_offered(here: Site) -> None:
    admin = here.visitor("admin")
    page = admin.get("/console/change/routes/resume?route=math").text
    assert "This cannot be done now" in page
    assert "is not paused" in page
    assert "disabled>Resume a route" in page
    admin.post("/api/routes/pause", {"csrf": admin.token(), "route": "math", "reason": "x"})
    page = admin.get("/console/change/routes/resume?route=math").text
    assert "What it would do" in page
    assert "disabled" not in page.split("What it would do")[1]


def test_an_error_stands_beside_its_field_and_what_was_written_stays(here: Site) -> None:
    admin = here.visitor("admin")
    form = {"csrf": admin.token(), "route": "math", "kind": "budget", "max_em_drop": "lots", "reason": "because"}
    got = admin.post("/console/overrides/set", form)
    assert got.status == 400
    assert '<p class="small bad" id="problem-max_em_drop" role="alert">got &#39;lots&#39;; a number</p>' in got.text
    assert 'value="lots"' in got.text
    assert ">because</textarea>" in got.text


def test_a_secret_is_said_once_and_stands_nowhere(here: Site) -> None:
    admin = here.visitor("admin")
    form = {"csrf": admin.token(), "name": "nora", "role": "operator", "reason": "on call"}
    page = admin.post("/console/people/add", form)
    secret = page.text.split("<pre>")[1].split("</pre>")[0]
    assert secret.startswith("sfc_")
    nora = Visitor(here.app)
    assert nora.login(secret).status == 303
    assert secret not in admin.get("/console/settings").text + admin.get("/api/changes").text
    row = admin.get("/api/changes?kind=access_changed").json["lines"][0]
    assert (row["after"], row["reason"]) == ("nora: added as operator", "on call")


def test_an_experiment_is_created_by_form_and_ends_as_it_says(here: Site) -> None:
    admin = here.visitor("admin")
    form = {
        "csrf": admin.token(),
        "name": "cap-two",
        "hypothesis": "Level 2 saves half at no loss.",
        "primary": "tokens",
        "margin": "1",
        "control_arm": "as_now",
        "treatment_arm": "level",
        "treatment_value": "2",
        "route": "math",
        "unit": "request",
        "share": "0.2",
        "planned_units": "4000",
        "days": "14",
        "end_when_worse": "true",
        "reason": "to learn what level 2 costs",
    }
    reply = admin.post("/api/experiments/create", {**form, "preview": "true"}).json
    assert "20% of the units; it ends after 14 days, or once an arm is proved worse" in reply["preview"]["message"]
    assert "ith 4,000 units" in reply["preview"]["message"] or "plan of 4,000 units" in reply["preview"]["message"]
    assert admin.get("/api/experiments").json["lines"] == []
    wrong = admin.post("/console/experiments/create", {**form, "planned_units": "150"})
    assert 'id="problem-planned_units"' in wrong.text
    wrong = admin.post("/console/experiments/create", {**form, "treatment_value": ""})
    assert 'id="problem-treatment_value"' in wrong.text
    wrong = admin.post("/console/experiments/create", {**form, "route": "chat"})
    assert wrong.status == 409, "no arm acts on a route that is off"
    assert admin.post("/console/experiments/create", form).status == 303
    line = admin.get("/api/experiments").json["lines"][0]
    assert (line["state"], line["share"], line["primary"]) == ("runs", 0.2, "tokens")
    row = admin.get("/api/changes?kind=experiment_started").json["lines"][0]
    assert '"em",' in row["body"]
    assert "0.01" in row["body"], "one point is a hundredth"


def test_who_may_not_change_something_is_not_offered_it(here: Site) -> None:
    rita = here.visitor("rita")
    assert "Pause a route" not in rita.get("/console/change").text
    assert rita.get("/console/change/routes/pause").status == 403
    assert "Pause a route" in here.visitor("admin").get("/console/change").text


@pytest.mark.parametrize("incident", ["", "math:m9"])
def test_an_incident_that_is_not_there_is_not_found(here: Site, incident: str) -> None:
    admin = here.visitor("admin")
    got = admin.post("/api/incidents/decide", {"incident": incident, "reason": "r", "csrf": admin.token()})
    assert (got.status, got.code, got.json["error"]["param"]) == (404, "not_found", "incident")


def test_an_override_without_a_number_is_none_that_holds(here: Site) -> None:
    admin = here.visitor("admin")
    got = admin.post("/api/overrides/end", {"route": "math", "reason": "r", "csrf": admin.token()})
    assert (got.status, got.code) == (409, "conflict")


def test_no_days_mean_the_default(here: Site) -> None:
    admin, ends = here.visitor("admin"), set[str]()
    for days in ("", "0", "30"):
        form = {"route": "math", "kind": "observe", "days": days, "reason": "r", "csrf": admin.token()}
        got = admin.post("/api/overrides/set", form)
        assert got.status == 200, got.text
        ends.add(got.json["message"].partition("until ")[2][:10])
    assert len(ends) <= 2, "all end on the same day, or at its midnight"
