"""The first three pages need few of our own words, and say what each one means where it first stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.house.tree import ROOT

GLOSSARY = ROOT / "docs" / "glossary.md"
FIRST = (
    ROOT / "README.md",
    ROOT / "docs" / "tutorial" / "first-steps.md",
    ROOT / "docs" / "how-to" / "observe-then-enforce.md",
)
MOST_TERMS, MOST_LISTED = 10, 35
CODE = re.compile(r"^```.*?^```|`[^`\n]*`|<!--.*?-->|^#[^\n]*", re.MULTILINE | re.DOTALL)
TARGET = re.compile(r"\]\((?!\S*glossary\.md)[^)]*\)|!\[[^]]*\]")
EXPLAINED = re.compile(r"\*\*[^*\n]+\*\*|\[[^]\n]+\]\(\S*glossary\.md\)")


def terms() -> list[tuple[str, ...]]:
    """The rows of the glossary, each with its words."""
    rows = re.findall(r"^\| (?!term |---)([^|]+) \|", GLOSSARY.read_text("utf-8"), re.MULTILINE)
    return [tuple(word.strip() for word in row.split(",")) for row in rows]


def prose(page: Path) -> str:
    """A page without code, headings, and the addresses of its links, other than to the glossary."""
    return TARGET.sub("]", CODE.sub("", page.read_text("utf-8")))


def first_use(term: tuple[str, ...], text: str) -> re.Match[str] | None:
    words = "|".join(re.escape(word) for word in term)
    return re.search(rf"\b(?:{words})(?:s|es)?\b", text, 0 if term[0].isupper() else re.IGNORECASE)


@pytest.mark.parametrize("page", FIRST, ids=lambda page: page.stem)
def test_a_first_page_uses_few_of_our_words_and_explains_each(page: Path) -> None:
    text = prose(page)
    used = {term: result for term in terms() if (result := first_use(term, text)) is not None}
    assert len(used) <= MOST_TERMS, sorted(term[0] for term in used)
    spans = [one.span() for one in EXPLAINED.finditer(text)]
    unexplained = [
        term[0] for term, result in used.items() if not any(low <= result.start() < high for low, high in spans)
    ]
    assert not unexplained


def test_the_glossary_lists_what_a_reader_needs() -> None:
    listed = terms()
    assert len(listed) <= MOST_LISTED
    pages = [path.read_text("utf-8") for path in (ROOT / "docs").rglob("*.md") if path != GLOSSARY]
    assert not [term[0] for term in listed if not any(first_use(term, CODE.sub("", page)) for page in pages)]
