"""A hint on a missing extra names packages that this project declares, and no distribution that nobody can install."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from suffice.extras import how_to_install, packages_of

ROOT = Path(__file__).parents[2]
DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
HINTS = sorted(
    {
        (str(file.relative_to(ROOT)), name)
        for file in SOURCES
        for name in re.findall(r"how_to_install\(['\"](.+?)['\"]\)", file.read_text("utf-8"))
    }
)
TOLD = re.compile(r"suffice\[")
PAGES = [
    *SOURCES,
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "bench").rglob("*.py")),
    ROOT / "README.md",
]


def plain(requirement: str) -> str:
    return requirement.replace("_", "-").replace(" ", "").lower()


def test_there_are_hints() -> None:
    assert len(HINTS) >= 10


@pytest.mark.parametrize(("file", "extra"), HINTS)
def test_a_hint_is_on_a_declared_extra_and_names_its_packages(file: str, extra: str) -> None:
    assert extra in DECLARED, file
    assert sorted(map(plain, packages_of(extra))) == sorted(map(plain, DECLARED[extra])), "as this installation says"
    shown = how_to_install(extra)
    assert shown.startswith("pip install ")
    assert all(f'"{one}"' in shown for one in packages_of(extra))


def test_an_extra_that_is_none_is_said_without_a_command() -> None:
    assert how_to_install("trian") == "install the extra trian"


def test_nothing_tells_people_to_install_a_distribution_by_name() -> None:
    named = [str(file.relative_to(ROOT)) for file in PAGES if TOLD.search(file.read_text("utf-8"))]
    assert not named, "the distribution is in no index: use suffice.extras.how_to_install"


IMPORTED = {"scikit-learn": "sklearn"}  # where a module is not named like its distribution


def test_the_code_imports_every_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = [*project["dependencies"], *(one for extra in DECLARED.values() for one in extra)]
    names = [re.split(r"[\[<>=; ]", one)[0] for one in declared]
    text = "\n".join(file.read_text("utf-8") for file in SOURCES)
    imported = set(re.findall(r"^\s*(?:import|from) (\w+)", text, re.MULTILINE))
    assert [name for name in names if IMPORTED.get(name, name.replace("-", "_")) not in imported] == []
