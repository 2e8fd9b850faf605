"""A bundle about a level that acts on part of the requests convinces, and one that says another part does not."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tools import verify_bundle as verifier

from suffice.store.database.views import open_reader, read_publications
from suffice.wiring.evidence import write_bundle
from tests.audit_bundle.made import events, made_log
from tests.audit_bundle.test_forgeries import Line, Lines, publish_anew, resealed, rewrite, verdict


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log")


@pytest.fixture(scope="module")
def whole(folder: Path) -> Lines:
    settings = made_log(folder, events(), control={"burst_requests": None})
    with open_reader(folder / "log.db") as log:
        published = [one for _, one in read_publications(log, "r")]
    made = next(one for one in published if one.level and one.exposure < 1 and one.evidence.window_share == 0)
    lines = write_bundle(settings, "r", made.number, where="b", author="ann", reason="check")
    return [json.loads(line) for line in lines]


def test_it_holds_for_the_part_that_was_published(
    whole: Lines, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, output = verdict(whole, folder, capsys, heads=True)
    assert code == 0, output
    assert whole[0]["window"]["share"] == 0
    assert f"level {whole[0]['certified_level']} of 40 passes" in output
    part = verifier.Bundle((folder / "bundle.jsonl").read_bytes()).part
    assert part < 1
    assert f"at level {whole[0]['level']} on {part:.0%} of them" in output


def publication(change: Line) -> Callable[[Lines], None]:
    return lambda lines: rewrite(lines, "policy_published", lambda body: body["publication"].update(change))


def be_no_start_by_share(lines: Lines) -> None:
    rewrite(lines, "epoch_began", lambda body: body["epoch"].update(ramps=False))


def weigh_audits(lines: Lines) -> None:
    lines[0]["window"]["share"] = 0.4


@pytest.mark.parametrize(
    ("forge", "says"),
    [
        (publication({"exposure": 1.0}), "the log wealth of the levels is not what the rows come to"),
        (publication({"exposure": 0.1}), "level 0"),
        (publication({"share": 0.05}), "share of the requests: "),
        (be_no_start_by_share, "level 0"),
        (weigh_audits, "the log wealth of the levels is not what the rows come to"),
    ],
)
def test_another_part_weight_or_part_of_delta_is_named(
    forge: Callable[[Lines], None], says: str, whole: Lines, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = copy.deepcopy(whole)
    forge(lines)
    code, output = verdict(resealed(lines), folder, capsys)
    assert code == 1, output
    assert says in output


def test_a_smaller_part_than_the_audits_leave_is_named_though_all_is_written_anew(
    whole: Lines, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = copy.deepcopy(whole)
    publication({"exposure": 0.25, "share": 0.5})(lines)
    publish_anew(lines)
    code, output = verdict(resealed(lines), folder, capsys)
    assert code == 1, output
    assert "share of the requests: 0.25 by the bundle, 0.5 by the log" in output
