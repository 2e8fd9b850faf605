"""Tables of labels from files: three formats, one meaning, and a mistake is named by file, row and column."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from suffice.errors import TraceError
from suffice.replay.traces.formats import read_rows
from suffice.sanitize import format_csv
from tests.drawn import examples

ROWS: list[dict[str, Any]] = [{"id": "a", "gold": "4", "rating": 5}, {"id": "b", "gold": None, "rating": None}]


def test_three_formats_say_the_same(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "t.csv").write_text("\ufeffid,gold,rating\r\na,4,5\r\n\r\nb,,\r\n", "utf-8")
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n", "utf-8")
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "t.parquet")
    assert list(read_rows(tmp_path / "t.jsonl")) == list(read_rows(tmp_path / "t.parquet")) == list(enumerate(ROWS, 1))
    assert list(read_rows(tmp_path / "t.csv")) == [
        (1, {"id": "a", "gold": "4", "rating": "5"}),
        (2, {"id": "b", "gold": "", "rating": ""}),
    ]


WORDS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)
MANY = settings(max_examples=examples(100), suppress_health_check=[HealthCheck.function_scoped_fixture])


@MANY
@given(
    cells=st.lists(WORDS, min_size=1, max_size=5),
    head=st.sampled_from(["", "=", "+", "-", "@", "\t=", "'=", "''-", "'"]),
)
def test_what_our_exports_quote_is_no_formula_and_is_read_as_it_was(
    tmp_path: Path, cells: list[str], head: str
) -> None:
    texts = [head + cell for cell in cells]
    written = format_csv(["a"], [{"a": text} for text in texts])
    (tmp_path / "t.csv").write_text(written, "utf-8", newline="")
    displayed = [cell for row in csv.reader(io.StringIO(written, newline="")) for cell in row][1:]
    assert not [cell for cell in displayed if cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))]
    assert [row["a"] for _, row in read_rows(tmp_path / "t.csv")] == texts


@pytest.mark.parametrize(
    ("name", "text", "row", "says"),
    [
        ("t.csv", "", None, "is empty"),
        ("t.csv", "a,a\n1,2\n", None, "appears twice in the header"),
        ("t.csv", "a,b\n1,2\n3\n", 2, "has 1 cells, and the header 2"),
        ("t.csv", 'a\n"x', 1, "is not valid CSV"),
        ("t.jsonl", '{"a": 1}\n[2]\n', 2, "must be a JSON object"),
        ("t.jsonl", '{"a": 1}\n{"a": \n', 2, "is not valid JSON"),
        ("t.txt", "a", None, "has an unknown suffix"),
        ("t.parquet", "a", None, "cannot be read as Parquet"),
    ],
)
def test_a_mistake_is_named_by_its_place(tmp_path: Path, name: str, text: str, row: int | None, says: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_text(text, "utf-8")
    with pytest.raises(TraceError) as refused:
        list(read_rows(tmp_path / name))
    assert refused.value.row == row
    assert says in str(refused.value)
    assert str(refused.value).startswith(str(tmp_path / name))


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_bytes_that_are_no_text_and_files_that_are_not_there_are_told(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b'{"a": "\xff"}\n')
    with pytest.raises(TraceError, match="is not UTF-8"):
        list(read_rows(tmp_path / name))
    with pytest.raises(TraceError, match="cannot be read"):
        list(read_rows(tmp_path / "missing.csv"))
