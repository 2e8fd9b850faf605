"""HTML that cannot be broken by a name: text is escaped unless it is known to be HTML.

A handful of functions, because a report is the only page made here. Pure.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from suffice.sanitize import printable


class Html(str):
    """Text that is HTML already; nothing but `tag`, `join_html` and `drawing` may make it of parts."""

    __slots__ = ()


def tag(name: str, *children: str, **attributes: str) -> Html:
    """An element. A child that is not Html is escaped; `class_` is written as `class`, `_` as `-`."""
    written = "".join(f' {key.strip("_").replace("_", "-")}="{_escape(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{written}>{join_html(children)}</{name}>")


def join_html(children: Iterable[str]) -> Html:
    """Children one after the other, escaped where they are not Html."""
    return Html("".join(child if isinstance(child, Html) else _escape(child) for child in children))


def format_html_table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str, names: int = 1) -> Html:
    """A table whose first `names` columns are text and the others numbers. It scrolls by itself where it is wide.

    A row with a single cell is a heading of the rows behind it.
    """
    kinds = ["name" if k < names else "number" for k in range(len(heads))]
    head = tag("tr", *(tag("th", text, class_=kind, scope="col") for text, kind in zip(heads, kinds, strict=True)))
    body: list[Html] = []
    for row in rows:
        if len(row) == 1:
            body.append(tag("tr", tag("th", row[0], class_="group", colspan=f"{len(heads)}", scope="rowgroup")))
            continue
        cells = [
            tag("th", text, class_=kind, scope="row") if k == 0 else tag("td", text, class_=kind)
            for k, (text, kind) in enumerate(zip(row, kinds, strict=True))
        ]
        body.append(tag("tr", *cells))
    inner = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", *body))
    return tag("div", inner, class_="wide", role="region", tabindex="0", aria_label=caption)


def _escape(text: str) -> str:
    return html.escape(printable(text), quote=True)
