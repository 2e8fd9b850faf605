"""The docs site: links work as they do beside the files, and the API reference reads our comments and docstrings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe
from pymdownx.slugs import slugify

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
OUTWARD = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)[^)\s]*\)")
SYMBOL = re.compile(r"^(\w+) {2,}(\S.*(?:\n {3,}\S.*)*)", re.MULTILINE)


def on_config(config: Any) -> None:
    """Address headings as the places do that show the files themselves."""
    config.mdx_configs["toc"] = {"permalink": True, "slugify": slugify(case="lower")}


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """Name the file where a link leaves the site; a link that leads nowhere stays, and fails the build."""
    folder = (DOCS / page.file.src_path).parent

    def name(link: re.Match[str]) -> str:
        target = (folder / link[2]).resolve()
        if target.is_relative_to(DOCS) or not target.exists():
            return link[0]
        return f"{link[1]} (`{target.relative_to(ROOT).as_posix()}`)"

    return OUTWARD.sub(name, markdown)


class Comments(griffe.Extension):
    """What stands behind a field is its docstring, and a docstring's table of symbols is a list."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Complete what the sources say of an object."""
        if obj.docstring is not None:
            obj.docstring.value = SYMBOL.sub(_entry, obj.docstring.value)
        elif obj.is_attribute and len(obj.lines) == 1:
            comment = obj.lines[0].partition("  # ")[2]
            if comment:
                obj.docstring = griffe.Docstring(comment, parent=obj)


def _entry(symbol: re.Match[str]) -> str:
    return f"\n- `{symbol[1]}`: {' '.join(symbol[2].split())}"
