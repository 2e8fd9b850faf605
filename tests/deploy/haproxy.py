"""HAProxy: the installed one, else Debian's, fetched without root into the folder of this run."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

Start = Callable[..., "subprocess.Popen[bytes]"]


def fetched(folder: Path) -> tuple[str, dict[str, str]] | None:
    """Debian's package and what it needs, unpacked in the folder: the program, and the variables that it needs."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return None
    for name in ("state/lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    apt = ["apt-get", "--quiet", "--yes", "-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root"]
    apt += ["-o", f"Dir::State={folder}/state", "-o", "Dir::State::status=/var/lib/dpkg/status"]
    apt += ["-o", f"Dir::Cache={folder}/cache"]
    for words in (["update"], ["install", "--no-install-recommends", "--download-only", "haproxy"]):
        if subprocess.run([*apt, *words], capture_output=True, check=False, timeout=300).returncode:
            return None
    for package in (folder / "cache" / "archives").glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(package), str(folder / "root")], check=True, timeout=60)
    libraries = os.pathsep.join(map(str, (folder / "root" / "usr" / "lib").glob("*-linux-gnu*")))
    return str(folder / "root" / "usr" / "sbin" / "haproxy"), {"LD_LIBRARY_PATH": libraries}
