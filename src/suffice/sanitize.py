"""Words as a person may be shown them: of strangers, such as a name, an answer or a reason, and numbers with a noun.

A terminal obeys what it is sent, and a name can turn the text behind it round. Pure; refuses to know who shows what.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import Final

_JOINERS: Final = "\u200c\u200d"
_UNSHOWN: Final = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")


def printable(text: str) -> str:
    """A text in one line as it may be shown: what moves a cursor, turns the text round or is no character is replaced.

    The two joiners (U+200C, U+200D) stay: Persian, Hindi and others cannot be written without them.
    """
    return "".join("\ufffd" if c not in _JOINERS and unicodedata.category(c) in _UNSHOWN else c for c in text)


def printable_lines(text: str) -> Iterator[str]:
    """The lines of a text, each as it may be shown; a tab is four spaces."""
    return (printable(line.replace("\t", "    ")) for line in text.splitlines())


def plural(n: float, one: str, many: str | None = None) -> str:
    """A count with its noun.

    >>> [plural(1, "route"), plural(2, "route"), plural(1_000, "class", "classes")]
    ['1 route', '2 routes', '1,000 classes']
    """
    return f"{n:,.0f} {one if n == 1 else many or one + 's'}"
