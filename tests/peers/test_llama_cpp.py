"""The runner of llama.cpp's tests reads reports and compares them rightly, and installs only what is pinned."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from suffice.gateway.app import endpoints
from suffice.settings import parse_settings
from tests.peers import llama_cpp

REPORT = """<?xml version="1.0"?><testsuites><testsuite>
<testcase classname="unit.test_a" name="test_passes"/>
<testcase classname="unit.test_a" name="test_fails[x-1]"><failure message="no"/></testcase>
<testcase classname="unit.test_a" name="test_breaks"><error message="no"/></testcase>
<testcase classname="unit.test_b" name="test_waits"><skipped message="no"/></testcase>
</testsuite></testsuites>"""


def test_a_report_is_read_as_test_ids_and_their_ends(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    result = llama_cpp.read_report(report)
    assert result == {
        "unit/test_a.py::test_passes": "passed",
        "unit/test_a.py::test_fails[x-1]": "failed",
        "unit/test_a.py::test_breaks": "failed",
        "unit/test_b.py::test_waits": "skipped",
    }
    assert llama_cpp.n_passed(result) == 1


def test_a_difference_is_any_other_end_or_a_test_that_one_side_lacks() -> None:
    direct = {"a": "passed", "b": "failed", "c": "passed", "d": "skipped"}
    through = {"a": "passed", "b": "passed", "c": "failed", "e": "passed"}
    assert llama_cpp.differing(direct, through) == ["b", "c", "d", "e"]
    assert llama_cpp.differing(direct, direct) == []


@pytest.mark.parametrize("mode", ["off", "observe"])
def test_the_gateway_of_the_suite_can_be_built(mode: str, tmp_path: Path) -> None:
    settings = llama_cpp.settings_for("http://127.0.0.1:1", mode, tmp_path)
    assert parse_settings({"server": {"relay": list(llama_cpp.RELAY)}}).server.relay == settings.server.relay
    assert len(endpoints(settings.server.relay)) > len(llama_cpp.RELAY)


@pytest.mark.parametrize("name", ["llama_cpp.txt", "llama_cpp_source.txt"])
def test_everything_that_is_fetched_is_pinned_and_hashed(name: str) -> None:
    text = (llama_cpp.HERE / name).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert lines
    assert all(re.match(r"[\w.-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", line) for line in lines)
