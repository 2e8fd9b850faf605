"""Makes the entry points of a package in contrib/ visible, as if pip had installed it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

CONTRIB = Path(__file__).parents[2] / "contrib"


def install_contrib(name: str, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((CONTRIB / name / "pyproject.toml").read_text("utf-8"))["project"]
    metadata = site / f"{name.replace('-', '_')}-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    points = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in named.items())
        for group, named in project["entry-points"].items()
    ]
    (metadata / "entry_points.txt").write_text("\n".join(points))
    monkeypatch.syspath_prepend(str(site))
