"""What is installed is what we pinned, and what is shipped is complete."""

from __future__ import annotations

import re
import site
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tools.house import pins

from tests.house.tree import ROOT, SRC, files, python_files

# A .pth line that starts with "import" runs at every start of Python: how a stolen release spreads.
KNOWN_PTH = {
    "distutils-precedence.pth": "setuptools",
    "a1_coverage.pth": "coverage, starts in child processes when asked by its environment variable",
}


def test_what_is_asked_for_with_an_extra_is_pinned_with_it() -> None:
    """Else pip before 24, which Python 3.11 and 3.12 bring, finds a requirement without a hash and installs nothing."""
    text = (ROOT / "requirements" / "dev.txt").read_text(encoding="utf-8")
    pinned = {
        (canonicalize_name(name), canonicalize_name(extra))
        for name, extras in re.findall(r"^([\w.-]+)\[([\w,.-]+)\]==", text, re.MULTILINE)
        for extra in extras.split(",")
    }
    request = {
        (canonicalize_name(needed.name), canonicalize_name(extra))
        for name in pins(ROOT / "requirements" / "dev.txt")
        for line in _requires(name)
        for needed in [Requirement(line)]
        if needed.marker is None or needed.marker.evaluate({"extra": ""})
        for extra in needed.extras
    }
    assert ("coverage", "toml") in request
    assert request <= pinned


def _requires(name: str) -> list[str]:
    """What a pinned distribution needs; nothing where it is not installed here, as on another system."""
    try:
        return requires(name) or []
    except PackageNotFoundError:
        return []


def test_no_installed_package_runs_code_at_every_start() -> None:
    folders = {Path(folder) for folder in site.getsitepackages()}
    result = [path for folder in folders for path in folder.glob("*.pth")]
    for path in result:
        if path.name in KNOWN_PTH:
            continue
        for line in path.read_text(encoding="utf-8").splitlines():
            assert not line.startswith(("import ", "import\t")), f"{path.name} runs: {line[:200]}"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a wheel and an archive of the sources."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--directory", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=60,
    )
    return folder


def test_the_wheel_holds_every_module_and_every_data_file(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        shipped = set(archive.namelist())
    modules = {f"suffice/{path.relative_to(SRC).as_posix()}" for path in python_files("src")}
    data = {
        f"suffice/{path.relative_to(SRC).as_posix()}"
        for path in files()
        if SRC in path.parents and path.suffix != ".py"
    }
    assert modules | data <= shipped
    assert "suffice/py.typed" in data
    assert any(name.endswith("licenses/LICENSE") for name in shipped)
