"""The pages that people read: the site has all of them, and the changelog is one of lines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from tests.house.tree import ROOT

MAX_ENTRY = 240  # characters: two lines


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


def test_what_is_new_is_said_in_two_lines() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    unreleased = changelog.partition("\n## [Unreleased]\n")[2].partition("\n## ")[0]
    entries = re.findall(r"^- .*(?:\n  .*)*", unreleased, re.MULTILINE)
    assert not [entry for entry in entries if len(entry) > MAX_ENTRY], "say it shorter, and link the page for the rest"
