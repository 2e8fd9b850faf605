"""Turns records into pages: templates that escape everything, and nothing in them that runs in a browser.

Needs jinja2, which the extra `console` brings; without it pages say so, and `/api` works all the same.
"""

from __future__ import annotations

import hashlib
import html
from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from suffice.console import formatting
from suffice.extras import how_to_install

if TYPE_CHECKING:
    from jinja2 import Environment

HERE: Final = Path(__file__).parent
STATIC: Final[Mapping[str, str]] = {
    "console.css": "text/css; charset=utf-8",
    "uplot.min.css": "text/css; charset=utf-8",
    "theme.js": "text/javascript; charset=utf-8",
    "console.js": "text/javascript; charset=utf-8",
    "charts.js": "text/javascript; charset=utf-8",
    "htmx.min.js": "text/javascript; charset=utf-8",
    "uplot.iife.min.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


def can_render() -> bool:
    return find_spec("jinja2") is not None


def no_pages() -> bytes:
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Suffice</title><h1>The console needs a package</h1>"
        f"<p>Run <code>{html.escape(how_to_install('console'))}</code>, and start again."
        " The API below <code>/api</code> works without it."
    ).encode()


def page(template: str, values: Mapping[str, Any]) -> bytes:
    text: str = _environment().get_template(template).render(values)
    return text.encode("utf-8", "replace")


@lru_cache(maxsize=1)
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        loader=FileSystemLoader(HERE / "templates"),
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(formatting.FILTERS)
    made.globals["static"] = asset_url
    return made


@lru_cache(maxsize=len(STATIC) + 1)
def static(name: str) -> tuple[bytes, str]:
    """A file of ours that a browser asks for, and its kind. Raises KeyError for a name that is none."""
    return (HERE / "static" / name).read_bytes(), STATIC[name]


@lru_cache(maxsize=len(STATIC))
def asset_url(name: str) -> str:
    """Where a browser finds a file of ours; another address when its content is another."""
    return f"/console/static/{hashlib.sha256(static(name)[0]).hexdigest()[:12]}/{name}"
