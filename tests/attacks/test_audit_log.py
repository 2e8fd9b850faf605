"""Attacks on the audit log: by whoever can write its file, its exported heads, or a bundle that somebody checks."""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tools import verify_bundle as verifier

from suffice.cli.main import main
from suffice.errors import StoreError
from suffice.store.audit.appender import Appender
from suffice.store.audit.chain import append_line, line_of, read_heads, signing_key
from suffice.store.audit.verify import verify_chain
from suffice.store.database.sqlite import SqliteConnection
from suffice.store.rows.events import Erasure, to_row
from suffice.wiring.evidence import write_bundle
from tests.audit_bundle.made import made_log
from tests.audit_bundle.test_forgeries import Lines, audit, requests, resealed, written
from tests.store.made_chain import copied, cut_tail, feedback, head_of, made, published, rebuild, write

N = 24
PLACES = 33
EVENT = "seq = (SELECT seq FROM chain WHERE place = 17)"
WORDS = "seq = (SELECT seq FROM chain WHERE comments IS NOT NULL ORDER BY place LIMIT 1 OFFSET 4)"
PUBLISHED = "seq = (SELECT max(seq) FROM events WHERE kind = 'policy_published')"


@pytest.fixture(scope="module")
def whole() -> Iterator[SqliteConnection]:
    with closing(made(":memory:", N)) as connection:
        yield connection


# ---- rows: what the file alone shows ---------------------------------------------------------------------------------

ROWS = {
    "level raised": f"UPDATE events SET body = json_set(body, '$.publication.level', 40) WHERE {PUBLISHED}",
    "certificate invented": f"UPDATE events SET body = replace(body, 'false', 'true') || ' ' WHERE {PUBLISHED}",
    "author replaced": f"UPDATE events SET body = replace(body, 'worker', 'ann') WHERE {PUBLISHED}",
    "moved to another route": f"UPDATE events SET route = 'chat' WHERE {PUBLISHED}",
    "kind of which nobody keeps a chain": f"UPDATE events SET kind = 'job_ran' WHERE {PUBLISHED}",
    "kind that nobody knows": f"UPDATE events SET kind = 'policy_publishe' WHERE {PUBLISHED}",
    "written otherwise, equal as JSON": f"UPDATE events SET body = replace(body, ':', ': ') WHERE {EVENT}",
    "a fraction": f"UPDATE events SET body = replace(body, '\"at\":6', '\"at\":6.0') WHERE {PUBLISHED}",
    "a letter as an escape": f"UPDATE events SET body = replace(body, 'because', '\\u0062ecause') WHERE {PUBLISHED}",
    "a look-alike letter": f"UPDATE events SET body = replace(body, 'because', 'bеcause') WHERE {PUBLISHED}",
    "a key twice": f'UPDATE events SET body = replace(body, \'"level":\', \'"level":40,"level":\') WHERE {PUBLISHED}',
    "no JSON": f"UPDATE events SET body = 'null' WHERE {EVENT}",
    "empty": f"UPDATE events SET body = '' WHERE {EVENT}",
    "a blob in place of a text": f"UPDATE events SET body = CAST(body AS BLOB) WHERE {EVENT}",
    "time moved by a microsecond": f"UPDATE events SET at_s = at_s + 1e-6 WHERE {EVENT}",
    "time that is no number": f"UPDATE events SET at_s = 'yesterday' WHERE {EVENT}",
    "time without end": f"UPDATE events SET at_s = 9e999 WHERE {EVENT}",
    "another row's body": f"UPDATE events SET body = (SELECT body FROM events WHERE seq = 2) WHERE {EVENT}",
    "row number below all": f"UPDATE events SET seq = -5 WHERE {PUBLISHED}",
    "row number above all": "UPDATE events SET seq = 9000 WHERE seq = 3",
    "no words, says the chain": "UPDATE chain SET whole = NULL, comments = NULL, comments_salt = NULL WHERE " + WORDS,
    "words changed": f"UPDATE events SET body = replace(body, 'comment ', 'praise ') WHERE {WORDS}",
    "words gone with their salt": f"""UPDATE chain SET comments_salt = NULL WHERE {WORDS};
        UPDATE events SET body = json_set(body, '$.feedback.comment', null) WHERE {WORDS}""",
    "salts of two rows swapped": """UPDATE chain SET comments_salt = (SELECT comments_salt FROM chain
        WHERE comments_salt IS NOT NULL ORDER BY place LIMIT 1 OFFSET 5) WHERE """
    + WORDS,
    "another form of digests": "UPDATE chain SET form = 0 WHERE place = 17",
    "the form as a text": "UPDATE chain SET form = '1x' WHERE place = 17",
    "place below all": "UPDATE chain SET place = -17 WHERE place = 17",
    "link as a text": "UPDATE chain SET link = 'ab' WHERE place = 17",
    "link of the last row": f"UPDATE chain SET link = zeroblob(32) WHERE place = {PLACES}",
    "digest that is too long": "UPDATE chain SET kept = CAST(hex(kept) AS BLOB) WHERE place = 17",
    "digest without bytes": "UPDATE chain SET kept = x'' WHERE place = 17",
    "a gigantic digest": "UPDATE chain SET kept = zeroblob(9000000) WHERE place = 17",
    "a second beginning": """UPDATE chain SET seq = NULL, note = (SELECT note FROM chain WHERE place = 1)
        WHERE place = 17""",
    "a note": "UPDATE chain SET note = '{}' WHERE place = 17",
    "beginning that vouches for less": "UPDATE chain SET note = replace(note, '\"after_seq\":0', '\"after_seq\":30')",
    "beginning that is no JSON": "UPDATE chain SET note = '{' WHERE place = 1",
    "beginning gone": "DELETE FROM chain WHERE place = 1",
    "chain emptied": "DELETE FROM chain",
    "all events gone": "DELETE FROM events",
    "one of each table": f"DELETE FROM events WHERE {EVENT}; DELETE FROM chain WHERE place = 18",
    "first half gone": "DELETE FROM events WHERE seq < 20; DELETE FROM chain WHERE place BETWEEN 2 AND 15",
    "a decision behind the writer's back": """INSERT INTO events (kind, key, route, at_s, owner, body)
        SELECT kind, key || '-2', route, at_s, owner, body FROM events WHERE kind = 'policy_published' LIMIT 1""",
    "a link copied behind the end": """INSERT INTO chain SELECT 900, 900, form, kept, whole, answers, answers_salt,
        comments, comments_salt, link, note FROM chain WHERE place = 17""",
}


@pytest.mark.parametrize("attack", ROWS)
def test_a_changed_file_does_not_verify(whole: SqliteConnection, attack: str) -> None:
    with closing(copied(whole)) as log:
        before = list(log.iterdump())
        log.executescript(ROWS[attack])
        assert list(log.iterdump()) != before, "the attack did nothing"
        verdict = verify_chain(log)
    assert not verdict.ok
    assert verdict.bad is not None
    assert verdict.bad.what.startswith(("edited", "removed", "added", "reordered", "is digested", "does not follow"))


def test_a_log_whose_chain_was_dropped_does_not_verify(whole: SqliteConnection) -> None:
    with closing(copied(whole)) as log:
        log.execute("DROP TABLE chain")
        with pytest.raises(StoreError, match="chain"):
            verify_chain(log)


# ---- erasing as a cover ----------------------------------------------------------------------------------------------


def _erase_with(log: SqliteConnection, change: str) -> None:
    """An attacker erases words with a proper `erased` row, and changes more than words beside it."""
    seq = log.execute(f"SELECT seq FROM events WHERE {WORDS}").fetchone()[0]
    log.execute("UPDATE chain SET comments_salt = NULL WHERE seq = ?", (seq,))
    log.execute("UPDATE events SET body = json_set(body, '$.feedback.comment', null) WHERE seq = ?", (seq,))
    log.execute("BEGIN IMMEDIATE")
    Appender(log, owner=1).add(
        to_row(
            Erasure(
                erasure_id="x",
                number=1,
                author="ann",
                reason="asked",
                what="a run",
                parts=("comments",),
                n_rows=1,
                chained=(seq,),
            )
        ),
        99.0,
    )
    log.execute("COMMIT")
    log.execute(change, (seq,))


@pytest.mark.parametrize(
    ("attack", "change"),
    [
        ("nothing else", "SELECT ?"),
        ("the verdict turned", "UPDATE events SET body = replace(body, ':true', ':false') WHERE seq = ?"),
        ("the rating raised", "UPDATE events SET body = json_set(body, '$.feedback.rating', 9) WHERE seq = ?"),
        ("a reference put in", "UPDATE events SET body = json_set(body, '$.feedback.gold', '7') WHERE seq = ?"),
        ("other words put back", "UPDATE events SET body = json_set(body, '$.feedback.comment', 'good') WHERE seq = ?"),
    ],
    ids=lambda value: value if "?" not in value else "sql",
)
def test_an_erasure_covers_words_and_nothing_else(whole: SqliteConnection, attack: str, change: str) -> None:
    with closing(copied(whole)) as log:
        _erase_with(log, change)
        verdict = verify_chain(log)
    assert verdict.ok is (attack == "nothing else"), verdict.bad
    assert verdict.ok is (verdict.n_erased == 1) or verdict.bad is not None


# ---- what only a kept head shows -------------------------------------------------------------------------------------


def _roll_back(log: SqliteConnection) -> None:
    """An older copy is put in its place, and life goes on."""
    cut_tail(log, 20)
    write(log, [published(700 + i) for i in range(30)])


def _another_log(log: SqliteConnection) -> None:
    with closing(made(":memory:", N)) as other:
        other.backup(log)


def _begin_again(log: SqliteConnection) -> None:
    """The same rows under a chain of today."""
    rebuild(log, 2)


def _drop_the_last(log: SqliteConnection) -> None:
    cut_tail(log, PLACES)


@pytest.mark.parametrize("attack", [_roll_back, _another_log, _begin_again, _drop_the_last])
def test_a_log_that_fits_in_itself_is_found_by_a_head_that_was_kept(
    whole: SqliteConnection, attack: Callable[[SqliteConnection], None]
) -> None:
    kept = head_of(whole)
    with closing(copied(whole)) as log:
        attack(log)
        assert verify_chain(log).ok, "this is what the page of the threat model says does not hold"
        assert not verify_chain(log, [kept]).ok


# ---- heads -----------------------------------------------------------------------------------------------------------

KEY = signing_key("the deployment's own")


@pytest.fixture
def heads(whole: SqliteConnection, tmp_path: Path) -> Path:
    file = tmp_path / "heads.jsonl"
    append_line(file, line_of(head_of(whole), at="2026-11-26T09:00:00Z", key=KEY))
    return file


HEADS: dict[str, Callable[[dict[str, Any]], object]] = {
    "no signature": lambda line: line.pop("signature"),
    "empty signature": lambda line: line.update(signature=""),
    "signature of no ASCII": lambda line: line.update(signature="é" * 64),
    "signature with a NUL": lambda line: line.update(signature=line["signature"][:-1] + "\0"),
    "signature in capitals": lambda line: line.update(signature=line["signature"].upper()),
    "half a surrogate pair": lambda line: line.update(signature="\ud800"),
    "other place": lambda line: line.update(place=line["place"] - 1),
    "place beyond 64 bits": lambda line: line.update(place=2**80),
    "negative place": lambda line: line.update(place=-1),
    "other link": lambda line: line.update(link="00" * 32),
    "other chain": lambda line: line.update(begin="00" * 32),
    "other time": lambda line: line.update(at="2020-01-01T00:00:00Z"),
    "fields shifted by a line end": lambda line: line.update(at=line["at"] + "\n" + line["begin"], begin=""),
    "place as a text": lambda line: line.update(place="33"),
    "a list": lambda line: line.update(link=[line["link"]]),
}


@pytest.mark.parametrize("attack", HEADS)
def test_a_forged_head_is_called_one(heads: Path, attack: str) -> None:
    line = json.loads(heads.read_text())
    HEADS[attack](line)
    heads.write_text(json.dumps(line) + "\n")
    with contextlib.suppress(StoreError):
        assert [one.signed for one in read_heads(heads, key=KEY)] == [False]


def test_a_line_that_was_signed_elsewhere_is_called_forged(heads: Path) -> None:
    assert [one.signed for one in read_heads(heads, key=signing_key("of another deployment"))] == [False]


@pytest.mark.parametrize(
    "content",
    [
        b"[]\n",
        b"null\n",
        b"\xff\xfe\n",
        b"[" * 100_000 + b"\n",
        b"1" * 10_000 + b"\n",
        b'{"at": NaN}\n',
        b"\0\0\0\n",
    ],
    ids=repr,
)
def test_a_file_of_heads_that_holds_none_is_refused(heads: Path, content: bytes) -> None:
    heads.write_bytes(content)
    with pytest.raises(StoreError, match="line 1 is no head"):
        read_heads(heads, key=KEY)


# ---- the command -----------------------------------------------------------------------------------------------------


def _verify(folder: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["audit", "verify", "--db", str(folder / "log.db"), *words])


def _write_log(folder: Path) -> None:
    with closing(made(folder / "log.db", N)) as log:
        append_line(folder / "heads.jsonl", line_of(head_of(log), at="2026-11-26T09:00:00Z", key=KEY))


def _torn_page(folder: Path) -> None:
    file = folder / "log.db"
    content = bytearray(file.read_bytes())
    for page in range(3, len(content) // 4096):
        content[page * 4096 : page * 4096 + 64] = b"\xa5" * 64
    file.write_bytes(content)


def _shorter(folder: Path) -> None:
    file = folder / "log.db"
    file.write_bytes(file.read_bytes()[:-4096])


def _without(folder: Path) -> Path:
    (folder / "log.db").unlink()
    return folder / "log.db"


def _plain_database(folder: Path) -> None:
    _without(folder)
    with closing(SqliteConnection(folder / "log.db")) as other:
        other.execute("CREATE TABLE chain (x)")


def _swap_heads(folder: Path) -> None:
    (folder / "other").mkdir()
    _write_log(folder / "other")
    shutil.copy(folder / "other" / "heads.jsonl", folder / "heads.jsonl")


FILES: dict[str, Callable[[Path], object]] = {
    "pages overwritten": _torn_page,
    "file cut": _shorter,
    "file of zeros": lambda folder: (folder / "log.db").write_bytes(bytes(100_000)),
    "file of text": lambda folder: (folder / "log.db").write_text("all is well\n" * 1_000),
    "a folder": lambda folder: _without(folder).mkdir(),
    "a link to nothing": lambda folder: _without(folder).symlink_to("nothing"),
    "another application's database": _plain_database,
    "heads of another chain": _swap_heads,
}


@pytest.mark.parametrize("attack", FILES)
def test_a_file_that_is_no_whole_log_is_never_called_one(tmp_path: Path, attack: str) -> None:
    _write_log(tmp_path)
    assert _verify(tmp_path, "--head", str(tmp_path / "heads.jsonl")).exit_code == 0
    FILES[attack](tmp_path)
    done = _verify(tmp_path, "--head", str(tmp_path / "heads.jsonl"))
    assert done.exit_code in {1, 2}, done.output
    assert "are what was written" not in done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)


def test_a_name_in_the_log_does_not_command_the_terminal(tmp_path: Path) -> None:
    with closing(made(tmp_path / "log.db", 2)) as log:
        write(log, [published(9, route="\x1b[2J\x1b[31mmath\u202e\nBAD: nothing")])
    done = CliRunner().invoke(main, ["audit", "show", "--db", str(tmp_path / "log.db")])
    assert done.exit_code == 0, done.output
    assert "\x1b" not in done.output
    assert "\u202e" not in done.output
    assert "\nBAD" not in done.output


# ---- bundles ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lines, Path]:
    folder = tmp_path_factory.mktemp("bundle")
    settings = made_log(folder)
    lines = [json.loads(line) for line in write_bundle(settings, "r", None, where="b", author="ann", reason="check")]
    return lines, folder / "heads.jsonl"


def _drown_the_ratio(lines: Lines) -> None:
    """Odds that no audit has, beside one request whose odds are no number: in it drowns the test of the ratio."""
    lines[0]["window"]["share"] = 0.7
    for line in requests(lines):
        line["p"] = 0.7 if line["audit"] else 0.3
    next(line for line in requests(lines) if not line["audit"])["p"] = float("nan")


def _odds(value: float) -> Callable[[Lines], None]:
    def change(lines: Lines) -> None:
        next(line for line in requests(lines) if not line["audit"])["p"] = value

    return change


def _negative_finish(lines: Lines) -> None:
    lines[0]["kind"] = "reasoning"
    lines[0]["charges"]["finish"] = [{"from_level": 1, "n": 2_000, "n_differing": -1, "upper": 0.0}]


def _negative_judge(lines: Lines) -> None:
    lines[0]["charges"]["judge"] = {"charge": 1e-9, "n_graded": 1, "n_wrong": 2, "n_alone": 3, "n_audits": 1}


def _unrecorded(count: int) -> Callable[[Lines], None]:
    def change(lines: Lines) -> None:
        at = lines.index(audit(lines))
        lines.insert(
            at,
            {
                "type": "unrecorded",
                "n": lines[at]["n"],
                "count": count,
                "audit_share": 1.0,
                "seq": lines[at]["seq"] - 1,
                "digest": "",
            },
        )

    return change


def _field(*way: str | int, value: object) -> Callable[[Lines], None]:
    def change(lines: Lines) -> None:
        place: Any = lines[0]
        for key in way[:-1]:
            place = place[key]
        place[way[-1]] = value

    return change


BUNDLES: dict[str, Callable[[Lines], None]] = {
    "odds that drown the test of the sample ratio": _drown_the_ratio,
    "odds of NaN": _odds(float("nan")),
    "odds of infinity": _odds(float("inf")),
    "odds below 0": _odds(-3.0),
    "odds above 1": _odds(1.5),
    "a finish that differs less than never": _negative_finish,
    "a judge that is wrong more often than asked": _negative_judge,
    "a stretch of no requests": _unrecorded(0),
    "a stretch of less than none": _unrecorded(-1),
    "a stretch more": _unrecorded(1),
    "levels for ever": _field("n_levels", value=10**12),
    "no levels": _field("n_levels", value=0),
    "levels that are no number": _field("n_levels", value="41"),
    "a finish that takes for ever": _field(
        "charges", "finish", value=[{"from_level": 1, "n": 10**12, "n_differing": 10**11, "upper": 0.1}]
    ),
    "a budget of everything": _field("promise", "max_em_drop", value=1.0),
    "a budget of NaN": _field("promise", "max_em_drop", value=float("nan")),
    "a budget below nothing": _field("promise", "max_em_drop", value=-0.1),
    "delta of 1": _field("promise", "delta", value=1.0),
    "delta of 0": _field("promise", "delta", value=0),
    "another route": _field("route", value="another"),
    "another publication": _field("publication", value=99),
    "no window": _field("window", value=None),
    "a window of the future": _field("window", "until", value=10**9),
    "wealth of NaN": _field("log_wealth", value=[float("nan")] * 41),
    "a later form": _field("form", value=2),
    "its form as a text": _field("form", value="1"),
    "two headers": lambda lines: lines.insert(1, copy.deepcopy(lines[0])),
}


def _checked(content: bytes, folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, str]:
    (folder / "bundle.jsonl").write_bytes(content)
    return verifier.main([str(folder / "bundle.jsonl"), *more]), capsys.readouterr().out


def test_the_bundle_holds_before_it_is_attacked(
    bundle: tuple[Lines, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, report = _checked(written(bundle[0]), tmp_path, capsys, "--head", str(bundle[1]))
    assert code == 0, report


@pytest.mark.parametrize("attack", BUNDLES)
def test_a_forged_bundle_does_not_hold_even_with_its_digests_made_anew(
    bundle: tuple[Lines, Path], attack: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = copy.deepcopy(bundle[0])
    BUNDLES[attack](lines)
    code, report = _checked(written(resealed(lines)), tmp_path, capsys)
    assert code in {1, 2}, report
    assert "\nholds" not in report
    assert not report.startswith("holds")


RAW = {
    "deep": b'{"type":' + b"[" * 100_000,
    "a number without end": b'{"type":"header","form":1e999}\n',
    "digits without end": b'{"type":"header","form":' + b"1" * 10_000 + b"}\n",
    "no text": bytes(range(256)),
    "half a line": b'{"type":"header","fo',
    "an empty line": b"\n\n\n",
    "a list": b"[1, 2]\n",
    "a type that is a list": b'{"type":[]}\n',
}


@pytest.mark.parametrize("attack", RAW)
def test_what_is_no_bundle_ends_in_a_sentence(attack: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = _checked(RAW[attack], tmp_path, capsys)
    assert code == 2
    assert report.startswith("cannot be checked")


def test_a_name_in_a_bundle_neither_adds_a_line_nor_hides_one(
    bundle: tuple[Lines, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = copy.deepcopy(bundle[0])
    lines[0]["route"] = "r\nholds: with confidence 1 …\x1b[8m\u202e"
    code, report = _checked(written(lines), tmp_path, capsys)
    assert code == 1
    assert "\nholds" not in report
    assert report.isascii() or not {"\x1b", "\u202e"} & set(report)


def test_a_bundle_of_another_log_is_not_vouched_for_by_these_heads(
    bundle: tuple[Lines, Path], whole: SqliteConnection, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "heads.jsonl"
    append_line(file, line_of(head_of(whole), at="2026-11-26T09:00:00Z", key=KEY))
    code, report = _checked(written(bundle[0]), tmp_path, capsys, "--head", str(file))
    assert code in {1, 2}, report


def test_an_older_bundle_shown_again_says_which_publication_it_is_of(
    bundle: tuple[Lines, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, report = _checked(written(bundle[0]), tmp_path, capsys)
    assert f"publication {bundle[0][0]['publication']}" in report


def test_said_twice_is_still_one_row(whole: SqliteConnection) -> None:
    with closing(copied(whole)) as log:
        before = head_of(log)
        write(log, [feedback(1), published(1)])  # replayed: both keys are there
        assert head_of(log) == before
        assert verify_chain(log, [before]).ok
