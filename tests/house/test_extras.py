"""A hint on a missing extra names packages that this project declares."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from suffice.extras import how_to_install, packages_of

ROOT = Path(__file__).parents[2]
DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]


def plain(requirement: str) -> str:
    return requirement.replace("_", "-").replace(" ", "").lower()


@pytest.mark.parametrize("extra", DECLARED)
def test_a_hint_names_the_packages_of_its_extra(extra: str) -> None:
    assert sorted(map(plain, packages_of(extra))) == sorted(map(plain, DECLARED[extra])), "as this installation says"
    displayed = how_to_install(extra)
    assert displayed.startswith("pip install ")
    assert all(f'"{one}"' in displayed for one in packages_of(extra))


def test_an_extra_that_is_none_is_said_without_a_command() -> None:
    assert how_to_install("trian") == "install the extra trian"
