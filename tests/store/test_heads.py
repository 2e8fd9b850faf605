"""Exported heads: lines that are on disk, that only this deployment signs, and that say where they are unreadable."""

from __future__ import annotations

from pathlib import Path

import pytest

from suffice.errors import StoreError
from suffice.store.audit.chain import Head, append_line, line_of, read_heads, signing_key

KEY = signing_key("secret")
HEADS = [Head(begin="aa" * 32, place=n, seq=2 * n, link=f"{n:02x}" * 32) for n in (1, 5, 9)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    result = tmp_path / "heads.jsonl"
    for head in HEADS:
        append_line(result, line_of(head, at="2026-11-26T09:00:00Z", key=KEY))
    return result


def test_what_was_written_is_read_in_order_with_its_signature(file: Path) -> None:
    kept = read_heads(file, key=KEY)
    assert [one.head for one in kept] == HEADS
    assert [(one.line, one.signed, one.at) for one in kept] == [(n, True, "2026-11-26T09:00:00Z") for n in (1, 2, 3)]


def test_without_the_secret_nobody_says_that_a_signature_holds(file: Path) -> None:
    assert [one.signed for one in read_heads(file, key=None)] == [None] * 3
    assert [one.signed for one in read_heads(file, key=signing_key("another"))] == [False] * 3


@pytest.mark.parametrize(
    ("before", "after"),
    [("09:00", "08:00"), ('"place":5', '"place":6'), ('"seq":10', '"seq":11'), ("05" * 32, "06" * 32)],
)
def test_a_line_that_was_changed_is_not_signed_any_more(file: Path, before: str, after: str) -> None:
    lines = file.read_text().splitlines(keepends=True)
    lines[1] = lines[1].replace(before, after)
    file.write_text("".join(lines))
    assert [one.signed for one in read_heads(file, key=KEY)] == [True, False, True]


def test_half_a_line_of_a_crash_is_left_out_and_the_next_one_begins_anew(file: Path) -> None:
    whole = line_of(HEADS[0], at="2026-11-26T10:00:00Z", key=KEY)
    with file.open("ab") as handle:
        handle.write(whole[:40])
    assert len(read_heads(file, key=KEY)) == 3
    append_line(file, whole)
    assert [one.line for one in read_heads(file, key=KEY)] == [1, 2, 3, 5]


def test_a_line_that_is_no_head_is_named(file: Path) -> None:
    with file.open("ab") as handle:
        handle.write(b"something else\n")
    with pytest.raises(StoreError, match="line 4 is no head"):
        read_heads(file, key=KEY)


def test_a_file_that_cannot_be_read_or_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"none\.jsonl: cannot be read"):
        read_heads(tmp_path / "none.jsonl", key=KEY)
    with pytest.raises(StoreError, match="cannot be written"):
        append_line(tmp_path / "nowhere" / "heads.jsonl", b"{}\n")
