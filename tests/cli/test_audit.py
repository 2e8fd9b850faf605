"""`suffice audit` and `suffice erase`, as a person and a program see them."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import re
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.store.made_chain import (
    cut_tail,
    edit,
    named_request,
    published,
    rebuild,
    remove_and_close_up,
    reorder_places,
    story,
)
from tests.store.test_erasing import CANARY, bytes_of, ended

from suffice.cli.main import main
from suffice.rollout.assign import conversation_key
from suffice.sanitize import format_cell
from suffice.settings import Settings, parse_settings
from suffice.store.database.sqlite import SqliteConnection
from suffice.store.database.writer import LogWriter
from suffice.store.rows.events import FeedbackEvent
from suffice.types import Feedback, Pause
from suffice.wiring.audit import differences, loggable_settings, user_name
from suffice.wiring.files import load_settings
from suffice.wiring.gateway import build_gateway
from suffice.wiring.keys import deployment_salt
from suffice.wiring.worker import open_worker

CONFIG = """
[upstreams.u]
url = "http://127.0.0.1:9"
[routes.math]
upstream = "u"
policy = { policy = "never" }
[store]
url = "sqlite:///FOLDER/log.db"
[audit]
file = "FOLDER/heads.jsonl"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "suffice.toml"
    file.write_text(CONFIG.replace("FOLDER", str(tmp_path)), encoding="utf-8")
    settings = load_settings(file)
    deployment_salt(settings)
    fill(settings, list(story(12)))
    return file


def fill(settings: Settings, events: Iterable[Any]) -> None:
    log = LogWriter(settings.store, now=lambda: 1_764_147_600.0)
    for event in events:
        assert log.append(event)
    log.close()


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def export_head(config: Path) -> None:
    with open_worker(load_settings(config), learning=False) as here:
        assert here.once("audit")


def tamper(config: Path, how: Any, place: int) -> None:
    with closing(SqliteConnection(config.with_name("log.db"), isolation_level=None)) as connection:
        how(connection, place)


# ---- verify ----------------------------------------------------------------------------------------------------------


def test_a_whole_log_verifies_and_says_what_it_was_compared_with(config: Path) -> None:
    alone = call("audit", "verify", "--config", config)
    assert alone.exit_code == 0, alone.output
    assert "no exported head to compare with" in alone.output
    export_head(config)
    done = call("audit", "verify", "--config", config)
    assert done.exit_code == 0, done.output
    assert re.search(r"^18 rows of the chain are what was written$", done.output, re.MULTILINE)
    assert "compared with 1 exported heads\n" in done.output
    plain = json.loads(call("audit", "verify", "--config", config, "--json").output)
    assert (plain["ok"], plain["bad"], plain["n_heads"], plain["signatures_checked"]) == (True, None, 1, True)
    assert plain["head"]["place"] == 18


@pytest.mark.parametrize(
    ("how", "place", "says"),
    [
        (edit, 7, "place 7 of the chain, row .*: edited: it is not what was written"),
        (remove_and_close_up, 7, "place 7 of the chain, row .*: does not follow from the row before it"),
        (
            reorder_places,
            7,
            "place 7 of the chain, row .*: does not follow from the row before it: rows were reordered",
        ),
        (cut_tail, 9, "place 9 of the chain: cut off: a head at place 18 was exported"),
        (rebuild, 5, "place 1 of the chain: rebuilt: from here to place 18"),
    ],
)
def test_five_ways_of_tampering_are_found_each_time_and_named(config: Path, how: Any, place: int, says: str) -> None:
    export_head(config)
    tamper(config, how, place)
    done = call("audit", "verify", "--config", config)
    assert done.exit_code == 1
    assert re.search(f"^BAD: {says}", done.output, re.MULTILINE), done.output
    plain = json.loads(call("audit", "verify", "--config", config, "--json").output)
    assert plain["ok"] is False
    assert isinstance(plain["bad"]["place"], int)


def test_a_head_that_somebody_else_signed_is_named_and_not_believed(config: Path, tmp_path: Path) -> None:
    export_head(config)
    file = tmp_path / "heads.jsonl"
    file.write_text(file.read_text().replace('"place":18', '"place":9'), encoding="utf-8")
    done = call("audit", "verify", "--config", config)
    assert done.exit_code == 1
    assert f"BAD HEAD: {file}, line 1: is not signed with this deployment's secret" in done.output
    assert json.loads(call("audit", "verify", "--config", config, "--json").output)["bad_heads"] == [
        {"file": str(file), "line": 1}
    ]


def test_a_log_is_verified_by_its_name_and_without_its_secret(config: Path, tmp_path: Path) -> None:
    export_head(config)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "log.db").rename(elsewhere / "log.db")
    (tmp_path / "log.salt").unlink()
    done = call("audit", "verify", "--db", elsewhere / "log.db", "--head", tmp_path / "heads.jsonl")
    assert done.exit_code == 0, done.output
    assert "signatures were not checked" in done.output
    assert {path.suffix for path in elsewhere.iterdir()} <= {".db", ".db-wal", ".db-shm"}, "no secret was made"


def test_what_cannot_be_read_is_said_with_another_exit_code(config: Path, tmp_path: Path) -> None:
    for words in (
        ("--db", tmp_path / "none.db"),
        ("--config", tmp_path / "none.toml"),
        ("--config", config, "--head", tmp_path / "none.jsonl"),
        ("--db", config),
    ):
        done = call("audit", "verify", *words)
        assert done.exit_code == 2, done.output
        assert done.output.startswith("suffice audit verify: ")


# ---- show and export -------------------------------------------------------------------------------------------------


def test_rows_are_shown_with_when_who_what_and_why(config: Path) -> None:
    reason = "it answers \x1b[31mnonsense"
    pause = Pause(route="math", number=1, cause="person", reason=reason, author="ann")
    fill(load_settings(config), [published(9, level=9), published(10, level=4), pause])
    done = call("audit", "show", "--config", config, "-n", "2")
    assert done.output.splitlines() == [
        "2025-11-26 09:00:00Z  #20  policy_published math  by worker",
        "    level 9 of 40, certified, version c-9 → level 4 of 40, certified, version c-10",
        "    because: because",
        "2025-11-26 09:00:00Z  #21  enforcement_paused math  by ann",
        "    acting → paused: person",
        "    because: it answers �[31mnonsense",
    ]
    report = call("audit", "show", "--config", config, "--kind", "policy_published", "--json").output
    lines = [json.loads(line) for line in report.splitlines()]
    assert [line["event"]["publication"]["number"] for line in lines] == [1, 2, 3, 9, 10]
    assert call("audit", "show", "--config", config, "--route", "none").output == "no such row in the audit log\n"


def test_an_export_is_whole_leaves_a_row_and_its_formulas_are_text(config: Path, tmp_path: Path) -> None:
    evil = FeedbackEvent(
        Feedback(feedback_id="=1+1", comment='=HYPERLINK("http://x","y")', source="@me", reason="-2+3\r\n,x")
    )
    fill(load_settings(config), [evil])
    out = tmp_path / "audit.csv"
    whose = ("--author", "ann", "--reason", "year end")
    done = call("audit", "export", "--config", config, "--format", "csv", "--out", out, *whose)
    assert done.output == f"18 rows written to {out}\n"
    result = list(csv.DictReader(io.StringIO(out.read_text(encoding="utf-8"), newline="")))
    assert len(result) == 18
    assert (result[-1]["who"], result[-1]["why"][:5]) == ("'@me", "'-2+3")
    assert not [value for row in result for value in row.values() if value.startswith(("=", "@", "+", "-"))]
    assert json.loads(result[-1]["event"])["feedback"]["feedback_id"] == "=1+1"
    last = json.loads(call("audit", "show", "--config", config, "-n", "1", "--json").output)
    assert (last["kind"], last["who"], last["why"]) == ("exported", "ann", "year end")
    assert last["after"] == f"audit log: 18 rows to {out}"
    assert call("audit", "verify", "--config", config).exit_code == 0


def test_an_export_begins_where_it_is_asked_to(config: Path) -> None:
    done = call("audit", "export", "--config", config, "--since", "2025-11-26T10:00:00+01:00")
    assert len(done.output.splitlines()) == 17
    assert json.loads(done.output.splitlines()[0])["at"] == "2025-11-26 09:00:00Z"
    for since, n in (("2025-11-27", 1), ("1970-01-01", 18)):  # the first export is a row of today
        assert len(call("audit", "export", "--config", config, "--since", since).output.splitlines()) >= n
    for nonsense in ("yesterday", "2025-02-30", "99999-01-01", "'; DROP TABLE events"):
        done = call("audit", "export", "--config", config, "--since", nonsense)
        assert done.exit_code == 2
        assert "--since: got" in done.output


def test_a_verdict_of_wrong_is_told_as_one_of_right_is(config: Path) -> None:
    fill(
        load_settings(config),
        [
            FeedbackEvent(Feedback(feedback_id="no", correct=False)),
            FeedbackEvent(Feedback(feedback_id="yes", correct=True)),
        ],
    )
    report = call("audit", "show", "--config", config, "-n", "2").output
    assert "feedback_id no, correct false\n" in report
    assert "feedback_id yes, correct true\n" in report


def test_a_cell_is_text_wherever_a_spreadsheet_would_compute() -> None:
    assert [format_cell(one) for one in ("=1", "+1", "-1", "@x", "\tx", "\rx", "x=1", -1, 2.5, None, "")] == [
        "'=1",
        "'+1",
        "'-1",
        "'@x",
        "'\tx",
        "'\rx",
        "x=1",
        "-1",
        "2.5",
        "",
        "",
    ]


# ---- erase -----------------------------------------------------------------------------------------------------------


def with_words(config: Path, *, sender: str = "") -> None:
    settings = load_settings(config)
    talk = conversation_key(sender, "talk-7", salt=deployment_salt(settings))
    fill(
        settings,
        [
            named_request("w1", unit="u1", conversation=talk, sender=sender),
            ended("w1", answer=f"{CANARY} one"),
            named_request("w2", unit="u2", conversation=talk, sender=sender),
            ended("w2", answer=f"{CANARY} two"),
            named_request("w3", unit="u3", conversation="another"),
            ended("w3", answer=f"{CANARY} three"),
            FeedbackEvent(Feedback(feedback_id="fw", episode_id="w1", comment=f"{CANARY} comment")),
        ],
    )


def left(config: Path) -> int:
    """How often the canary stands in any file of the log."""
    return sum(content.count(CANARY.encode()) for content in bytes_of(config.parent).values())


def test_a_conversation_is_erased_by_the_id_that_clients_send(config: Path) -> None:
    with_words(config)
    dry = call("erase", "--config", config, "--unit", "talk-7", "--reason", "asked to", "--dry-run")
    assert dry.exit_code == 0
    assert dry.output == "5 rows may hold answers, comments, questions, metadata; nothing was changed\n"
    before = left(config)
    done = call("erase", "--config", config, "--unit", "talk-7", "--reason", "asked to", "--author", "ann")
    assert done.exit_code == 0, done.output
    assert "erased in 3 of 5 rows" in done.output
    assert "gone from the file and its write-ahead log; backups" in done.output
    assert 0 < left(config) < before
    assert call("erase", "--config", config, "--episode", "w3", "--reason", "asked to").exit_code == 0
    assert left(config) == 0
    displayed = call("audit", "show", "--config", config, "--kind", "erased").output
    assert "by ann" in displayed
    assert "because: asked to" in displayed
    assert "talk-7" not in displayed, "a conversation's id may name a person"
    assert call("audit", "verify", "--config", config).exit_code == 0


def test_an_id_that_two_senders_used_names_two_conversations(config: Path) -> None:
    with_words(config, sender="a1")
    talk = conversation_key("b2", "talk-7", salt=deployment_salt(load_settings(config)))
    other = [named_request("w9", conversation=talk, sender="b2"), ended("w9", answer=f"{CANARY} nine")]
    fill(load_settings(config), other)
    before = left(config)
    refused = call("erase", "--config", config, "--unit", "talk-7", "--reason", "asked to")
    assert refused.exit_code == 2
    assert "conversations of 2 senders" in refused.output
    assert f"{talk} of sender b2" in refused.output
    assert left(config) == before
    done = call("erase", "--config", config, "--unit", talk, "--reason", "asked to")
    assert done.exit_code == 0, done.output
    assert left(config) < before
    assert sum(f"{CANARY} nine".encode() in content for content in bytes_of(config.parent).values()) == 0
    assert sum(f"{CANARY} one".encode() in content for content in bytes_of(config.parent).values()) > 0


def test_everything_that_is_older_goes_and_exports_from_before_are_named(config: Path, tmp_path: Path) -> None:
    with_words(config)
    call("audit", "export", "--config", config, "--out", tmp_path / "old.jsonl")
    words = ("--part", "answers", "--part", "comments")
    done = call("erase", "--config", config, "--older-than", "1d", *words, "--reason", "old")
    assert done.exit_code == 0, done.output
    assert re.search(r"^exported on \d{4}-\d\d-\d\d to .*old\.jsonl: this copy was not", done.output, re.MULTILINE)
    (tmp_path / "old.jsonl").unlink()
    assert left(config) == 0
    assert call("audit", "verify", "--config", config).exit_code == 0


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--episode", "nobody"), 1, "0 rows"),
        ((), 2, "needs --episode or --unit"),
        (("--episode", "e1", "--older-than", "1d"), 2, "needs --episode or --unit"),
        (("--older-than", "long ago"), 2, "--older-than: got 'long ago'"),
        (("--older-than", "1d", "--part", "everything"), 2, "everything"),
    ],
)
def test_what_cannot_be_erased_is_said(config: Path, words: tuple[str, ...], code: int, says: str) -> None:
    done = call("erase", "--config", config, "--reason", "r", *words)
    assert done.exit_code == code
    assert says in done.output


# ---- settings that changed -------------------------------------------------------------------------------------------


async def start(config: Path) -> None:
    async with build_gateway(load_settings(config)):
        pass


def test_settings_that_changed_are_a_row_and_unchanged_ones_are_none(config: Path) -> None:
    asyncio.run(start(config))
    asyncio.run(start(config))
    first = call("audit", "show", "--config", config, "--kind", "config_changed", "--json").output.splitlines()
    assert len(first) == 1
    assert json.loads(first[0])["event"]["change"]["changes"] == []
    config.write_text(config.read_text().replace('upstream = "u"', 'upstream = "u"\nmax_em_drop = 0.01\nmode = "off"'))
    asyncio.run(start(config))
    (_, second) = call("audit", "show", "--config", config, "--kind", "config_changed", "--json").output.splitlines()
    row = json.loads(second)
    assert row["event"]["change"]["changes"] == [
        {"path": "routes.math.max_em_drop", "before": "0.02", "after": "0.01"},
        {"path": "routes.math.mode", "before": '"observe"', "after": '"off"'},
    ]
    assert row["before"] == 'routes.math.max_em_drop = 0.02; routes.math.mode = "observe"'
    assert row["who"] == (f"serve, {user_name()}" if user_name() else "file")
    assert call("audit", "verify", "--config", config).exit_code == 0


def test_no_secret_of_an_address_is_told_and_a_long_value_is_a_digest() -> None:
    settings = parse_settings(
        {
            "upstreams": {"u": {"url": "https://host/v1?key=s3cret", "api_key_env": "UPSTREAM_KEY"}},
            "routes": {"r": {"upstream": "u", "probe": {"closing": "x" * 5_000}}},
            "audit": {"webhook_env": "HOOK"},
        }
    )
    report = loggable_settings(settings)
    assert report["upstreams.u.url"] == '"https://host/v1?***"'
    assert report["upstreams.u.api_key_env"] == '"UPSTREAM_KEY"'
    assert report["audit.webhook_env"] == '"HOOK"'
    assert re.fullmatch(r'"sha256 [0-9a-f]{64}, 5002 characters"', report["routes.r.probe.closing"])
    assert "s3cret" not in json.dumps(report)


def test_differences_are_named_by_path() -> None:
    result = differences({"a": "1", "b": "2"}, {"b": "3", "c": "4"})
    assert [(one.path, one.before, one.after) for one in result] == [
        ("a", "1", None),
        ("b", "2", "3"),
        ("c", None, "4"),
    ]
