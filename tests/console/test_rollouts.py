"""A learned version on its way, on the console's page of policies: what may act, a person's step, and back."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from suffice.store.routes.rollouts import read_rollouts
from tests.console.visitor import Visitor, people_of, settings_in, site
from tests.control.tried import BOLDER, CONTROL, FIVE, ROUTE, SECRET, Trial, proposed, published


def titles(page: str) -> set[str]:
    """The texts of headings and names on a page."""
    return set(re.findall(r"<(?:h\d|strong)[^>]*>([^<]+)</", page))


def test_a_person_sees_what_may_act_moves_it_and_takes_it_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUFFICE_SALT", SECRET)
    settings = settings_in(
        tmp_path,
        routes={"r": {**msgspec.to_builtins(ROUTE), "upstream": "local"}},
        control=msgspec.to_builtins(CONTROL),
    )
    trial, secret = Trial(tmp_path / "log.db"), people_of(settings).first()
    assert secret is not None
    trial.write(proposed())
    with site(settings) as app:
        ann = Visitor(app)
        assert ann.login(secret).status == 303
        assert "Try it in steps" in ann.get("/console/policies").text
        assert "learned version of 1 January" in titles(ann.get("/console/policies").text), "the day of its refit"
        form = {"route": "r", "address": BOLDER.address, "reason": "saves more"}
        refused = ann.post("/console/rollouts/propose", {**form, "address": "v-nothing", "csrf": ann.token()})
        assert (refused.status, "was never proposed" in refused.text) == (409, True)
        ann.post("/console/rollouts/propose", {**form, "csrf": ann.token()})
        held = trial.held
        assert (held.state.fit, held.author, held.reason) == (BOLDER.address, "admin", "saves more")
        trial.audits(100)
        trial.look()
        page = ann.get("/console/policies").text
        learned = "learned version of 1 January, level 2"
        assert learned in titles(page)
        assert f'title="{held.state.candidate}">{learned}' in page
        for place in ("/console/policies", "/console/route?route=r", "/console"):
            assert not [one for one in titles(ann.get(place).text) if re.search(r"[\[{]|\bp?v-[0-9a-f]+", one)], place
        assert "level 2 may act" in page
        assert "level 2 of the candidate may act" in page
        assert "not enough data" in ann.get("/console/policies/assessment?route=r").text
        for stage in ("canary", "ramp", "ramp", "full"):
            ann.post("/console/rollouts/move", {"route": "r", "move": "promote", "reason": "go", "csrf": ann.token()})
            assert read_rollouts(trial.path)[-1].state.stage == stage
        trial.write(published(BOLDER, number=2))
        ann.post("/console/rollouts/move", {"route": "r", "move": "rollback", "reason": "no", "csrf": ann.token()})
        undone = read_rollouts(trial.path)[-1].undone
        assert undone is not None
        assert undone.reason == "no"
        trial.write(published(FIVE, number=3))
        again = {"route": "r", "move": "rollback", "reason": "no", "csrf": ann.token()}
        assert "came by no rollout" in ann.post("/console/rollouts/move", again).text
