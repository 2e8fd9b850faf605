"""What the console offers would succeed, and what a change shows is what it asks for."""

from __future__ import annotations

import os
import re
import time
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest

from suffice.console.actions import ACTIONS
from suffice.gateway.kill import KillSwitch, set_switch
from suffice.store.people.audit_view import entries
from suffice.store.rows.events import KillSwitchState
from suffice.types import Publication
from suffice.wiring.keys import kill_file
from suffice.wiring.routes import setup_of
from tests.console.made import decided, filled_site
from tests.console.visitor import Visitor, people_of, settings_in, site
from tests.control.test_upkeep import append


@pytest.mark.parametrize("is_same", [True, False])
def test_rolling_back_is_offered_where_the_evidence_is_of_the_present_settings(tmp_path: Path, is_same: bool) -> None:
    settings = settings_in(tmp_path)
    secret, setup = people_of(settings).first() or "", setup_of(settings, "math") if is_same else "other settings"
    with site(settings) as app:
        (*begun, first) = decided("math", "as it came out", setup)
        append(tmp_path / "log.db", *begun, first)
        assert isinstance(first, Publication)
        # Of these, the fourth serves: the third is the same, and so are the first two with each other.
        for number, level in ((2, first.level), (3, 2), (4, 2)):
            append(tmp_path / "log.db", replace(first, number=number, level=level))
        visitor = Visitor(app)
        visitor.login(secret)
        page = visitor.get("/console/route?route=math").text
        ways = re.findall(r"kind=pin&amp;publication=(\d+)", page)
        assert ways == (["2"] if is_same else []), "one way to each other policy"
        assert ("the same as serves now" in page, "the same as No. 2" in page) == (is_same, is_same)
        assert ("was gathered on other settings" in page) == (not is_same)
        news, _, repeats = page.partition("2 more publications of the same policies")
        numbers = [re.findall(r'name="first" value="(\d+)"', part) for part in (news, repeats)]
        assert numbers == [["4", "2"], ["3", "1"]], "what repeats a policy is behind a click"
        assert "kind=pin&amp;level=1" in page, "a lower level of what serves now"
        form = {"route": "math", "kind": "pin", "level": "1", "reason": "a drill", "csrf": visitor.token()}
        assert visitor.post("/console/overrides/set", form).status == 303


def test_the_fields_of_an_override_say_to_which_kinds_they_belong(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    secret = people_of(settings).first() or ""
    with site(settings) as app:
        visitor = Visitor(app)
        visitor.login(secret)
        page = visitor.get("/console/change/overrides/set?kind=pin&route=math").text
        assert page.count('data-of="') == 4
        assert 'data-of="pin cap"' in page


def test_an_order_about_the_switch_is_one_row_and_a_file_by_other_hands_is_one_too(tmp_path: Path) -> None:
    rows, file = list[KillSwitchState](), tmp_path / "kill"
    switch = KillSwitch(file, notify=rows.append)
    for on in (True, False):
        order = KillSwitchState(on=on, reason="a drill (ann)", stamp=time.time_ns(), ordered=True)
        switch.follow(order)
        if on:
            set_switch(file, "a drill", "ann", order=order.stamp)
        switch.check()
        assert (switch.on, file.exists()) == (on, on)
    assert rows == [], "the order itself is the row"
    file.write_text("by hand")
    os.utime(file, ns=(time.time_ns() + 10**6,) * 2)  # a clock of files may be coarse
    switch.check()
    file.unlink()
    switch.check()
    assert [one.on for one in rows] == [True, False]


def test_the_console_gives_one_order(tmp_path: Path) -> None:
    with filled_site(tmp_path) as visitor:
        form = {"csrf": visitor.token(), "reason": "a drill", "back": "/console"}
        assert visitor.post("/console/stop-all", form).status == 303
    assert kill_file(settings_in(tmp_path)).exists()
    assert [(one.who, one.why) for one in entries(tmp_path / "log.db", kind="kill_switched")] == [("admin", "a drill")]


# Forms that change nothing of what is served: sessions, the reviewer's desk, own views, exports and running requests.
NO_PREVIEW = (
    "login",
    "logout",
    "review/say",
    "review/next",
    "views/save",
    "runs/",
    "episodes.csv",
    "changes.csv",
    "report.csv",
)


def test_every_form_on_a_page_can_say_first_what_it_would_do() -> None:
    n_forms = 0
    for template in (files("suffice.console") / "templates").iterdir():
        for form in re.findall(r'<form method="post".*?</form>', template.read_text("utf-8"), re.DOTALL):
            path = re.search(r'action="/console/([^"]*)"', form)
            if path is None or not path[1].startswith(NO_PREVIEW):
                n_forms += 1
                assert "preview" in form, (template.name, form)
    assert n_forms >= 5


# Fields with what is plausible in them; each is then given what is wrong, and has to say so beside itself.
PLAUSIBLE = {
    "route": "math",
    "reason": "why",
    "name": "drill",
    "kind": "observe",
    "days": "3",
    "role": "viewer",
    "measure": "em_drop",
    "limit": "0.02",
    "hours": "8",
    "hypothesis": "h",
    "treatment_arm": "full",
    "control_arm": "as_now",
    "decision": "tighten",
    "incident": "i",
    "move": "rollback",
}
KIND_OF = {"level": "cap", "max_em_drop": "budget", "publication": "pin"}
WRONG = {"number": ("abc", "-5"), "choice": ("nope",), "text": ("\x00",), "area": ("",), "flag": ()}
ANY_NUMBER = {("/alerts/rules/set", "limit")}
# What is refused here whatever is written: no client's key is accepted, nothing is certified, and nothing runs.
REFUSED_HERE = ("/keys/create", "/rollouts/propose", "/release-all", "/experiments/start", "/incidents/decide")


def test_what_is_wrong_with_a_field_is_said_beside_it(tmp_path: Path) -> None:
    with filled_site(tmp_path) as visitor:
        for action in (one for one in ACTIONS if one.title and one.path not in REFUSED_HERE):
            for name, field in action.fields.items():
                if name == "reason":  # see `test_a_preview_changes_nothing_and_says_what_the_change_then_does`
                    continue
                kind = "text" if field.kind == "area" and not field.required else field.kind
                for wrong in () if (action.path, name) in ANY_NUMBER else WRONG[kind]:
                    form = {each: PLAUSIBLE.get(each, one.default) for each, one in action.fields.items()}
                    form["kind"] = KIND_OF.get(name, "budget" if "level" in form else "")
                    form |= {name: wrong, "csrf": visitor.token(), "preview": "1"}
                    page = visitor.post(f"/console{action.path}", form)
                    problems = re.findall(r'id="problem-(\w+)"', page.text)
                    assert (page.status >= 400, problems) == (True, [name]), (action.path, name, wrong)
