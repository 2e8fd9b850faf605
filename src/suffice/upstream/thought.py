"""Thoughts inside the answer's text, pure: where they end, and where text may be cut.

It knows inline tags such as `<think>` and the shape of characters.
"""

from __future__ import annotations

import unicodedata
from typing import Literal, TypeAlias

MOST_CUT_CHARS = 64
MOST_SPACE_CHARS = 4_096  # at the start, that are held back: behind more no tag opens a thought
Piece: TypeAlias = tuple[Literal["reasoning", "answer"], str]


class ThinkTag:
    """Separate an inline thought from the answer while the text arrives, cut anywhere.

    Only a tag at the very start (white space before it is dropped) opens a thought; once it has
    closed, or the text began without one, everything else is answer text, tags included.

    opened  the chat template wrote the opening tag: the text begins inside the thought
    """

    __slots__ = ("_close_tag", "_held", "_open_tag", "_space", "_state")

    def __init__(self, open_tag: str = "<think>", close_tag: str = "</think>", *, opened: bool = False) -> None:
        if not open_tag or not close_tag:
            raise ValueError(f"ThinkTag: got {open_tag=} {close_tag=}; both need at least one character")
        self._open_tag, self._close_tag = open_tag, close_tag
        self._state: Literal["start", "opened", "inside", "after"] = "opened" if opened else "start"
        self._space = ""  # white space at the start, until we know what it belongs to
        self._held = ""  # the beginning of a tag, perhaps

    @property
    def inside(self) -> bool:
        return self._state in ("opened", "inside")

    @property
    def decided(self) -> bool:
        """Is it known that only answer text can follow?"""
        return self._state == "after"

    def feed(self, text: str) -> list[Piece]:
        """Take the next text; return what is certain, as (channel, text) without empty texts."""
        text, self._held = self._held + text, ""
        pieces: list[Piece] = []
        if self._state in ("start", "opened"):
            text = self._begin(text)
        if self._state == "inside":
            text = self._think(text, pieces)
        if self._state == "after" and text:
            pieces.append(("answer", text))
        return pieces

    def close(self) -> list[Piece]:
        """The text has ended: return what was held back, under the channel that was open."""
        text = self._space + self._held
        self._space = self._held = ""
        return [("reasoning" if self.inside else "answer", text)] if text else []

    def _begin(self, text: str) -> str:
        """At the start: drop an opening tag, or find out that there is none. Returns what remains."""
        if not text:
            return ""
        tail = text.lstrip()
        if len(tail) < len(text):
            self._space = self._space + text[: len(text) - len(tail)]
        if tail.startswith(self._open_tag):
            self._space, self._state = "", "inside"
            return tail[len(self._open_tag) :]
        if self._open_tag.startswith(tail) and len(self._space) <= MOST_SPACE_CHARS:
            self._held = tail
            return ""
        self._state = "inside" if self._state == "opened" else "after"
        text, self._space = self._space + tail, ""
        return text

    def _think(self, text: str, pieces: list[Piece]) -> str:
        """Inside the thought: give out reasoning up to the closing tag. Returns what remains."""
        thought, tag, rest = text.partition(self._close_tag)
        if tag:
            self._state = "after"
        else:
            n_held = _overlap(text, self._close_tag)
            if n_held:
                thought, self._held = text[:-n_held], text[-n_held:]
        if thought:
            pieces.append(("reasoning", thought))
        return rest


def _overlap(text: str, tag: str) -> int:
    """How many characters at the end of `text` may be the beginning of `tag`."""
    longest = min(len(tag) - 1, len(text))
    if tag[0] not in text[len(text) - longest :]:
        return 0
    return next((n for n in range(longest, 0, -1) if text.endswith(tag[:n])), 0)


def safe_cut(text: str, following: str = "") -> str:
    """Shorten `text` until it ends between two characters as a reader sees them.

    Removed from the end: lone surrogates, joiners (ZWJ), signs that join the next letter
    (viramas), half a flag. Where the text that comes next is known, pass it as `following`: then
    a letter whose accents lie behind the cut is left out too. At most MOST_CUT_CHARS are removed: what is longer
    is no character that anybody reads.
    """
    kept, end = text[:-MOST_CUT_CHARS], text[-MOST_CUT_CHARS:]
    if following and not end.endswith("\u200d") and _clings(following[0]):
        end = _without_last_cluster(end)
    while end and _is_open(end):
        end = end[:-1]
    return kept + end


def _clings(char: str) -> bool:
    """Is this character drawn as part of the one before it (accent, joiner, variation, skin tone)?"""
    if char == "\u200d" or "\U0001f3fb" <= char <= "\U0001f3ff":
        return True
    return unicodedata.category(char).startswith("M")


def _without_last_cluster(text: str) -> str:
    end = len(text)
    while end and _clings(text[end - 1]):
        end -= 1
    return text[: max(0, end - 1)]


def _is_open(text: str) -> bool:
    last = text[-1]
    if "\ud800" <= last <= "\udfff" or last == "\u200d" or unicodedata.combining(last) == 9:
        return True
    n_flag_halves = len(text) - len(text.rstrip(_FLAG_HALVES))
    return n_flag_halves % 2 == 1


_FLAG_HALVES = "".join(chr(code) for code in range(0x1F1E6, 0x1F200))
