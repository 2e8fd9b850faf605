"""One environment a client, made from its hashed file and kept below build/clients until that file changes.

Knows uv, pip and npm; refuses to know what the clients are asked. No registry is named here: the tools
use the one that the machine is set up for.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.clients.peers.roster import HERE, ROOT, Client

CACHE = ROOT / "build" / "clients"
QUIET = {
    "AI_SDK_LOG_WARNINGS": "false",
    "ANONYMIZED_TELEMETRY": "false",
    "DO_NOT_TRACK": "1",
    "DSPY_CACHEDIR": "dspy",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONWARNINGS": "ignore",
    "TRANSFORMERS_OFFLINE": "1",
}
KEPT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "SUFFICE_PEERS_TRACEBACK")


class Missing(Exception):
    """Something that has to be installed by hand is not there; the message says what."""


def ready(name: str) -> Path:
    """The environment of this name, made first if it is not there. Raises Missing and CalledProcessError."""
    return _node() if name == "node" else _python(name)


def _python(name: str) -> Path:
    wanted = HERE / "requirements" / f"{name}.txt"
    folder = CACHE / name
    interpreter = folder / "bin" / "python"
    if _is_current(folder, [wanted]):
        return folder
    print(f"{name}: installing", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    uv = _uv()
    if uv is not None:
        _tool([uv, "venv", "--quiet", "--python", sys.executable, str(folder)])
        _tool([uv, "pip", "install", "--quiet", "--python", str(interpreter), "--require-hashes", "-r", str(wanted)])
    else:
        _tool([sys.executable, "-m", "venv", str(folder)])
        pip = [str(interpreter), "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet"]
        _tool([*pip, "--require-hashes", "-r", str(wanted)])
    _stamp(folder, [wanted])
    return folder


def _uv() -> str | None:
    """The uv beside our own interpreter, or the one on the path; None: pip does it, more slowly."""
    beside = Path(sys.executable).parent / "uv"
    return str(beside) if beside.is_file() else shutil.which("uv")


def _node() -> Path:
    for needed in ("node", "npm"):
        if shutil.which(needed) is None:
            raise Missing(f"{needed} not found")
    folder, source = CACHE / "node", HERE / "node"
    locks = [source / "package.json", source / "package-lock.json"]
    if not _is_current(folder, locks):
        print("node: installing", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for lock in locks:
            shutil.copy(lock, folder)
        _tool(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], cwd=folder)
        _stamp(folder, locks)
    for program in source.glob("*.mjs"):  # they find their packages in the folder they stand in
        shutil.copy(program, folder)
    return folder


def _is_current(folder: Path, sources: list[Path]) -> bool:
    stamp = folder / ".stamp"
    return stamp.is_file() and stamp.read_text(encoding="utf-8") == _digest(sources)


def _stamp(folder: Path, sources: list[Path]) -> None:
    (folder / ".stamp").write_text(_digest(sources), encoding="utf-8")


def _digest(sources: list[Path]) -> str:
    digest = hashlib.sha256(sys.version.encode())
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _tool(command: list[str], cwd: Path | None = None) -> None:
    """Run an installer; what it says goes to our own stderr, so that a table can still be piped on."""
    subprocess.run(command, check=True, cwd=cwd, stdout=sys.stderr)


def clean_environment(home: Path) -> dict[str, str]:
    """What a client finds around it: no proxy, no key and no settings of whoever runs this."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return (
        kept
        | QUIET
        | {
            "HOME": str(home),
            "DSPY_CACHEDIR": str(home / "dspy"),
            "OPENAI_API_KEY": "unused",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
    )


def version_of(client: Client, folder: Path) -> str:
    """The installed version of a client's package."""
    if client.runtime == "node":
        file = folder / "node_modules" / client.distribution / "package.json"
        command = ["node", "-p", f"require({str(file)!r}).version"]
    else:
        code = f"import importlib.metadata as m; print(m.version({client.distribution!r}))"
        command = [str(folder / "bin" / "python"), "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
