"""Draws of days that are over are made again, so a forged one is found without a head that was kept."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from suffice.rollout.assign import DAY_S, day_salt
from suffice.wiring.evidence import write_bundle
from suffice.wiring.keys import deployment_salt
from tests.audit_bundle.made import BURST, DAY, SHARE, events, made_log, settings_of
from tests.audit_bundle.test_forgeries import Line, Lines, publish_anew, requests, resealed, value_at, verdict


@pytest.fixture(scope="module")
def salted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Lines]:
    """A bundle of requests that were drawn by the salts of three days, of which two are published."""
    folder = tmp_path_factory.mktemp("salted")
    (folder / "log.salt").write_text("s2")  # with others, the last window may not hold all three days
    made_log(folder, events(secret=deployment_salt(settings_of(folder))))
    lines = [
        json.loads(line)
        for line in write_bundle(settings_of(folder), "r", None, where="b", author="ann", reason="check")
    ]
    return folder, lines


def test_the_draws_of_days_that_are_over_are_made_again(
    salted: tuple[Path, Lines], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, lines = salted
    code, output = verdict(lines, folder, capsys, heads=True)
    assert code == 0, output
    days = Counter(line["at"] // DAY_S for line in requests(lines))
    assert sorted(days) == [DAY, DAY + 1, DAY + 2]
    assert f"draws: {days[DAY] + days[DAY + 1]} of {days.total()} made again by published salts" in output


def of_a_day(lines: Lines, day: int, *, audit: bool) -> Line:
    """A request of the middle of a day, out of the burst; an audit is one that lost."""
    return next(
        line
        for line in requests(lines)
        if line["at"] // DAY_S == day
        and line["at"] % DAY_S > DAY_S / 2
        and line["n"] > BURST
        and line["audit"] is audit
        and (not audit or (line["status"] == "returned" and value_at(line["z"], lines[0]["level"]) == 1))
    )


def salt_rows(lines: Lines) -> Lines:
    return [line for line in lines if line["type"] == "row" and json.loads(line["told"])[1] == "salt_published"]


def resalt(row: Line, **changes: Any) -> None:
    row["kept"] = json.dumps({"salt": json.loads(row["kept"])["salt"] | changes})


def turn_one_draw_off(lines: Lines) -> None:
    line = of_a_day(lines, DAY, audit=True)
    line["audit"], line["p"] = False, 1 - line["p"]
    for name in ("status", "d", "z", "label", "right"):
        line.pop(name, None)


def call_a_live_run_an_audit(lines: Lines) -> None:
    line = of_a_day(lines, DAY + 1, audit=False)
    line |= {"audit": True, "p": 1 - line["p"], "status": "returned", "d": [], "z": []}


def falsify_the_probability(lines: Lines) -> None:
    """By so little that their frequency does not tell it."""
    lines[0]["window"]["share"] = share = SHARE + 0.03
    for line in requests(lines):
        line["p"] = line["p"] if line["p"] == 1 else share if line["audit"] else 1 - share


def turn_one_draw_off_on_a_day_without_a_salt(lines: Lines) -> None:
    line = of_a_day(lines, DAY + 1, audit=True)
    turn_one_draw_off(lines)
    line["at"] = of_a_day(lines, DAY + 1, audit=False)["at"] + DAY_S


def turn_one_draw_off_and_borrow_another(lines: Lines) -> None:
    line = of_a_day(lines, DAY, audit=True)
    turn_one_draw_off(lines)
    line["unit"] = of_a_day(lines, DAY, audit=False)["unit"]


def draw_by_the_salt_of_another_day(lines: Lines) -> None:
    first, _, last = salt_rows(lines)
    resalt(last, salt=json.loads(first["kept"])["salt"]["salt"])


def choose_salts_afterwards(lines: Lines) -> None:
    """Salts of another secret, which lead to each other."""
    for row in salt_rows(lines)[1:]:
        resalt(row, salt=day_salt(json.loads(row["kept"])["salt"]["day"], salt="another"))


def change_what_bound_the_salts(lines: Lines) -> None:
    resalt(salt_rows(lines)[0], salt="00" * 32)


def bind_nothing(lines: Lines) -> None:
    lines.remove(salt_rows(lines)[0])


def publish_a_salt_too_early(lines: Lines) -> None:
    """As if somebody could have known the draws of a day."""
    first, _, last = salt_rows(lines)
    first["kept"] = last["kept"]


DRAWS: list[tuple[Callable[[Lines], None], str]] = [
    (turn_one_draw_off, "is an audit by the salt of its day, and logged otherwise"),
    (call_a_live_run_an_audit, "is no audit by the salt of its day, and logged otherwise"),
    (falsify_the_probability, "is an audit by the salt of its day, and logged otherwise"),
    (turn_one_draw_off_on_a_day_without_a_salt, "is said to be of a day before that of requests above it"),
    (turn_one_draw_off_and_borrow_another, "is that of 2 requests"),
    (draw_by_the_salt_of_another_day, "is not the one that those of later days lead to"),
    (choose_salts_afterwards, "is not the one that those of later days lead to"),
    (change_what_bound_the_salts, "is not the one that those of later days lead to"),
    (bind_nothing, "was drawn by a salt that nothing had bound"),
    (publish_a_salt_too_early, "was drawn by a salt that was public"),
]


@pytest.mark.parametrize(("forge", "says"), DRAWS, ids=[one.__name__ for one, _ in DRAWS])
def test_a_forged_draw_is_found_without_a_head(
    forge: Callable[[Lines], None], says: str, salted: tuple[Path, Lines], capsys: pytest.CaptureFixture[str]
) -> None:
    """Though everything that follows from it was written anew, up to the publication."""
    folder, whole = salted
    lines = copy.deepcopy(whole)
    forge(lines)
    assert lines != whole
    publish_anew(lines)
    code, output = verdict(resealed(lines), folder, capsys)
    assert code == 1, output
    assert says in output
    assert all(
        " salt " in one or "draw " in one or "day before" in one for one in output.splitlines() if "WRONG" in one
    ), output
