"""Archives from whoever can write to the store: each is refused with its place and a reason, and nothing crashes."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from suffice.errors import ExecutorError, TraceError
from suffice.executor import PoolExecutor
from suffice.replay.archive.days import expand_archives, read_archived_runs, verify_day
from suffice.replay.traces import formats, read
from suffice.replay.traces.read import survey
from tests.replay.archive.made import archive_log, observed, open_archive, write


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of one day with forty runs."""
    folder = tmp_path_factory.mktemp("honest")
    archive_log(write(folder, observed(40), n_days=1), folder)
    return folder / "archive"


@pytest.fixture
def archive(honest: Path, tmp_path: Path) -> Path:
    """A copy that a test may poison."""
    for path in honest.rglob("*"):
        if path.is_file():
            copy = tmp_path / "archive" / path.relative_to(honest)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    return tmp_path / "archive"


def manifest_of(archive: Path) -> Path:
    (manifest,) = (archive / "manifests").iterdir()
    return manifest


def part_of(archive: Path) -> Path:
    (part,) = archive.rglob("*.parquet")
    return part


def put(archive: Path, content: bytes) -> None:
    """Replace the part, with a manifest that vouches for it."""
    part_of(archive).write_bytes(content)
    manifest = json.loads(manifest_of(archive).read_text())
    manifest["parts"][0] |= {"n_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest_of(archive).write_text(json.dumps(manifest))


def read_all(archive: Path) -> int:
    """As the commands do: the shards of the files, in processes of their own."""
    files = expand_archives([archive], cache=archive.parent / "cache")
    return sum(one.n_runs for one in survey(files, executor=PoolExecutor(1)))


def test_the_honest_archive_is_read(archive: Path) -> None:
    assert read_all(archive) == 40


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.update(format=2), "has the format 2"),
        (lambda m: m.update(day="2026-02-02"), "is of '2026-02-02', not of 2026-01-01"),
        (lambda m: m["parts"][0].update(name="../../etc/passwd"), "names the part '../../etc/passwd'"),
        (lambda m: m["parts"][0].update(name="/etc/passwd"), "names the part '/etc/passwd'"),
        (lambda m: m["parts"][0].update(name="route=../day=2026-01-01/part-0000.parquet"), "cannot be read: No such"),
        (lambda m: m["parts"][0].update(name="route=r/day=2026-01-02/part-0000.parquet"), "names the part"),
        (lambda m: m["parts"][0].update(n_bytes=2**60), "cannot be right"),
        (lambda m: m["parts"][0].update(n_bytes=-1), "cannot be right"),
        (lambda m: m["parts"][0].update(sha256="../x"), "cannot be right"),
        (lambda m: m["parts"][0].update(n_rows=10**30), "is not a manifest|cannot be right|requests"),
        (lambda m: m.update(n_requests=7), "says 7 requests, and parts of 40"),
        (lambda m: m.update(parts=m["parts"] * 2, n_requests=80), "names a part twice"),
        (lambda m: m.update(parts="all"), "is not a manifest"),
        (lambda m: m.pop("since_seq"), "is not a manifest"),
    ],
)
def test_a_manifest_that_cannot_be_right_is_refused(archive: Path, change: Change, reason: str) -> None:
    manifest = json.loads(manifest_of(archive).read_text())
    change(manifest)
    manifest_of(archive).write_text(json.dumps(manifest))
    with pytest.raises(TraceError, match=reason) as refused:
        read_all(archive)
    assert "manifests/2026-01-01.json" in str(refused.value) or "part-0000.parquet" in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b'{"day": "\xff"}', b"null", b"{}" + b" " * 17 * 2**20])
def test_a_manifest_that_is_none_is_refused(archive: Path, content: bytes) -> None:
    manifest_of(archive).write_bytes(content)
    with pytest.raises(TraceError, match=r"manifests/2026-01-01.json: (is not a manifest|has [\d,]+ bytes)"):
        read_all(archive)


def test_a_part_that_is_cut_swapped_or_gone_is_refused(archive: Path) -> None:
    part, whole = part_of(archive), part_of(archive).read_bytes()
    part.write_bytes(whole[:-1])
    with pytest.raises(TraceError, match=r"part-0000.parquet: has [\d,]+ bytes; its manifest says"):
        read_all(archive)
    part.write_bytes(bytes([*whole[:-1], whole[-1] ^ 1]))
    with pytest.raises(TraceError, match=r"part-0000.parquet: is not the file of which its manifest has the hash"):
        read_all(archive)
    part.unlink()
    with pytest.raises(TraceError, match=r"part-0000.parquet: cannot be read"):
        read_all(archive)


@pytest.mark.parametrize("cut", [0, 4, 11, 200, -9, -1])
def test_a_cut_file_with_a_manifest_that_vouches_for_it_is_refused(archive: Path, cut: int) -> None:
    content = part_of(archive).read_bytes()[:cut] or b"?"
    put(archive, content)
    with pytest.raises(TraceError, match=r"part-0000.parquet.*: (cannot be read as Parquet|is missing)"):
        read_all(archive)


def test_columns_of_another_type_or_name_are_refused(archive: Path) -> None:
    table = pq.read_table(part_of(archive), partitioning=None)
    changes: tuple[tuple[str, Callable[[Any], Any], str], ...] = (
        ("steps", lambda t: t.drop(["steps"]), "column steps: is missing|steps: is missing"),
        ("full_tokens", lambda t: replaced(t, "full_tokens", pa.array(["x"] * 40)), "full_tokens: has the type"),
        ("replayable", lambda t: replaced(t, "replayable", pa.array(["yes"] * 40)), "replayable: has the type"),
        ("full_tokens", lambda t: replaced(t, "full_tokens", pa.array([-5] * 40)), "full_tokens: is -5"),
        ("run", lambda t: pa.concat_tables([t.slice(0, 20)] * 2), "row 21: repeats the run"),
    )
    for name, change, reason in changes:
        sink = pa.BufferOutputStream()
        pq.write_table(change(table), sink)
        put(archive, sink.getvalue().to_pybytes())
        with pytest.raises(TraceError, match=reason) as refused:
            read_all(archive)
        assert "part-0000.parquet" in str(refused.value), name


def replaced(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, column)


def bomb(archive: Path, text: str, n_rows: int) -> bytes:
    """Rows that all repeat one text, which the file has once."""
    table = pq.read_table(part_of(archive), partitioning=None).slice(0, 1)
    rows = pa.concat_tables([table] * n_rows)
    runs = pa.array([f"run {number}" for number in range(n_rows)])
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, compression="zstd", dictionary_pagesize_limit=2**30) as writer:
        for at in range(0, n_rows, 500):
            part = replaced(replaced(rows, "run", runs).slice(at, 500), "model", pa.array([text] * 500))
            writer.write_table(part)
    return bytes(sink.getvalue())


def test_a_text_that_every_row_repeats_takes_its_length_once(archive: Path) -> None:
    """A gigabyte and a half in the columns of 1,500 rows, from a file of kilobytes."""
    content = bomb(archive, "x" * 1_000_000, 1_500)
    assert len(content) < 2_000_000
    put(archive, content)
    with limited_memory():
        assert read_all(archive) == 1_500


def test_a_row_group_that_states_too_much_is_refused_unread(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MOST_EXPANDED_BYTES", 1_000)
    with pytest.raises(TraceError, match=r"part-0000.parquet, row 1: would take [\d,]+ bytes in memory; at most 1,000"):
        read_all(archive)


def test_a_shard_that_needs_more_memory_than_a_reader_may_use_is_refused(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "MOST_READ_BYTES", 16 * 2**20)
    table = pq.read_table(part_of(archive), partitioning=None)
    steps = pa.array([[{**step, "logprobs": [0.5] * 30_000} for step in row[:2]] for row in table["steps"].to_pylist()])
    sink = pa.BufferOutputStream()
    pq.write_table(replaced(table, "steps", steps), sink, compression="zstd")
    assert len(sink.getvalue()) < 2_000_000
    put(archive, sink.getvalue().to_pybytes())
    with pytest.raises((TraceError, ExecutorError), match=r"part-0000.parquet"):
        read_all(archive)


@contextmanager
def limited_memory() -> Iterator[None]:
    """A limit of a gigabyte more than now for this process and its children."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_rows_whose_json_is_hostile_are_refused_with_their_number(archive: Path) -> None:
    table = pq.read_table(part_of(archive), partitioning=None)
    for name, value in (("outcome", "[" * 50_000), ("request", "{}"), ("labels", '[{"seq": "x"}]'), ("outcome", None)):
        column = table.column(name).to_pylist()
        column[6] = value
        sink = pa.BufferOutputStream()
        pq.write_table(replaced(table, name, pa.array(column, pa.string())), sink)
        put(archive, sink.getvalue().to_pybytes())
        opened = open_archive(archive.parent)
        with pytest.raises(TraceError, match=r"part-0000.parquet, row 7: cannot be read"):
            list(read_archived_runs(opened, "r"))
        with pytest.raises(TraceError, match=r"row 7"):
            verify_day(opened, next(opened.manifests()))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_bytes_at_random_are_read_or_refused_and_never_end_the_reader(archive: Path, seed: int) -> None:
    """Footers, statistics and pages with wrong bytes, and a manifest that vouches for each."""
    whole, rng = part_of(archive).read_bytes(), random.Random(seed)
    n_footer = int.from_bytes(whole[-8:-4], "little")
    n_refused = 0
    for _ in range(25):
        content = bytearray(whole)
        first = len(content) - 8 - n_footer if rng.random() < 0.8 else 0
        for _ in range(rng.choice([1, 1, 2, 4])):
            content[rng.randrange(first, len(content) - 4)] = rng.choice([0, 127, 128, 255, rng.randrange(256)])
        put(archive, bytes(content))
        try:
            read_all(archive)
        except (TraceError, ExecutorError) as error:
            n_refused += "part-0000.parquet" in str(error) or pytest.fail(f"it does not name the file: {error}")
    assert n_refused


def die(path: Path) -> list[object]:
    os._exit(len(str(path)) % 7 + 1)


def test_a_file_that_ends_every_reader_is_named(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a library in C++ may end its process: the command goes on and says which file it was."""
    monkeypatch.setattr("suffice.replay.traces.read.split_file", die)
    with pytest.raises(ExecutorError, match=r"part-0000.parquet: its worker process died 3 times"):
        read_all(archive)
