"""A replay as traffic in budgeted mode: it is called what it is; tests/claims has what it saves and loses."""

from __future__ import annotations

import io

from rich.console import Console

from suffice.replay.online.protocol import describe_confidence, print_online
from tests.replay.online.test_online import replayed


def test_it_is_called_what_it_is_in_table_and_object() -> None:
    report = replayed(promise="budgeted", max_em_drop=0.3, n_seeds=1)
    assert report.plain()["promise"] == "budgeted"
    screen = io.StringIO()
    print_online([report], Console(file=screen, width=140))
    said = screen.getvalue()
    assert "at most 30 points of EM, on average, without a confidence (budgeted mode)" in said
    assert "% sure" not in said
    certified = replayed(max_em_drop=0.3, n_seeds=1)
    assert certified.plain()["promise"] == "certified"
    assert describe_confidence(certified) == "95 % sure"
