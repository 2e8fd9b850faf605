"""The pages that people read: the site has all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from tests.house.tree import ROOT


def named(nav: list[Any]) -> Iterator[str]:
    """The pages of a navigation, in order."""
    for entry in nav:
        if isinstance(entry, str):
            yield entry
        else:
            for below in entry.values():
                yield from named(below)


def test_the_site_lists_every_page_once() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    docs = ROOT / settings["docs_dir"]
    pages = sorted(path.relative_to(docs).as_posix() for path in docs.rglob("*.md"))
    assert sorted(named(settings["nav"])) == pages
    assert settings["strict"], "a link that leads nowhere fails the build"
