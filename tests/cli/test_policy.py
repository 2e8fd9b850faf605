"""`suffice policy` as a person uses it: propose, look, move, go back; a refusal is a sentence and changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from suffice.cli.main import main
from suffice.wiring.files import load_settings
from suffice.wiring.worker import open_decisions

SETTINGS = """
[upstreams.box]
url = "http://127.0.0.1:9"

[routes.math]
upstream = "box"
kind = "samples"
samples = 8
mode = "enforce"
uncertified = true
policy = { policy = "beta", threshold = 0.95 }

[routes.own]
upstream = "box"
match = { header = "own" }

[routes.proved]
upstream = "box"
kind = "samples"
match = { header = "proved" }
mode = "enforce"
policy = { policy = "beta", threshold = 0.95 }

[store]
url = "sqlite:///FOLDER/log.db"
"""
BOLDER = '{policy = "beta", threshold = 0.9}'


class Person:
    """Somebody at a terminal."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "suffice.toml"
        self.file.write_text(SETTINGS.replace("FOLDER", str(folder)), encoding="utf-8")
        open_decisions(load_settings(self.file)).close()  # a log, as the first start of a gateway makes it

    def says(self, *words: str) -> Result:
        return CliRunner().invoke(main, ["policy", *words, "--config", str(self.file)])

    def decides(self, *words: str) -> Result:
        return self.says(*words, "--reason", "because", "--author", "ann")

    def listed(self) -> dict[str, object]:
        result: dict[str, object] = json.loads(self.says("list", "--json").output)["routes"][0]
        return result


@pytest.fixture
def person(tmp_path: Path) -> Person:
    return Person(tmp_path)


def test_a_rollout_from_its_proposal_to_full_and_back(person: Person) -> None:
    before = person.listed()
    assert before["serves"] == before["own"]
    assert "has had no rollout" in person.says("show", "math").output
    assert person.decides("propose", "math", BOLDER).exit_code == 0
    displayed = person.says("show", "math").output
    assert "in shadow, 0% of new units" in displayed
    assert "0 of 400 audits" in displayed
    for word in ("hold", "release", "promote", "promote", "promote", "promote"):
        assert person.decides(word, "math").exit_code == 0, word
    after = person.listed()
    assert (after["rollout"], after["own"]) == (None, before["own"])
    assert after["serves"] != before["serves"]
    assert "body.threshold: 0.95 → 0.9" in person.says("diff", str(before["serves"]), str(after["serves"])).output
    assert json.loads(person.says("show", "math", "--json").output)["stage"] == "full"
    assert person.decides("rollback", "math").exit_code == 0
    assert person.listed() == before
    assert "came by no rollout" in person.decides("rollback", "math").output


def test_what_cannot_be_is_refused_with_a_sentence(person: Person) -> None:
    assert "threshold: got 2" in person.decides("propose", "math", '{policy = "beta", threshold = 2}').output
    assert "names no policy" in person.decides("propose", "math", "{a = 1}").output
    assert "acts by the proof of its own policy" in person.decides("propose", "proved", BOLDER).output
    assert "cannot be read" in person.decides("propose", "math", "no-such-file").output
    assert "is no table" in person.decides("propose", "math", "{").output
    assert "unknown route" in person.decides("propose", "maths", BOLDER).output
    assert "its owner wrote none down" in person.decides("propose", "own", BOLDER).output
    same = person.decides("propose", "math", '{"policy": "beta", "threshold": 0.9}')
    assert same.exit_code == 0
    again = person.decides("propose", "math", '{policy = "beta", threshold = 0.85}')
    assert (again.exit_code, "one at a time" in again.output) == (1, True)
    assert "it is not paused" in person.decides("release", "math").output
    assert person.decides("hold", "math").exit_code == 0
    assert "holds it already" in person.decides("hold", "math").output
    assert "rolled back" in person.decides("rollback", "math").output
    assert "no rollout runs" in person.decides("promote", "math").output


def test_a_pin_needs_a_publication_to_go_back_to(person: Person) -> None:
    refused = person.decides("pin", "own", "3", "--days", "2")
    assert (refused.exit_code, "unknown publication 3 of route own" in refused.output) == (1, True)


def test_what_a_refit_never_proposed_is_not_tried(person: Person) -> None:
    assert "nothing is certified on route own" in person.decides("propose", "own", "v-0123456789ab").output
    assert "serves what its owner wrote down" in person.decides("propose", "math", "v-0123456789ab").output
    assert "is not kept in this log" in person.says("diff", "v-0123456789ab", "v-0123456789ac").output


def test_a_file_may_hold_the_table(person: Person) -> None:
    table = person.file.with_name("bolder.toml")
    table.write_text('policy = "beta"\nthreshold = 0.9\n', encoding="utf-8")
    assert person.decides("propose", "math", str(table)).exit_code == 0
