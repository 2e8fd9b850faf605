"""What all normal forms have in common, and the checks of scorers' parameters.

A normal form can be logged, is short, and stays the same when it is normalised again.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Protocol

from suffice.errors import ConfigError

MAX_ANSWER_CHARS = 2_000  # a longer normal form stands as a digest: a log holds answers, not essays
_MAX_PASSES = 8
_DIGEST = re.compile(r"long text [0-9a-f]{32}")
_UNREADABLE = {
    **dict.fromkeys((*range(32), *range(127, 160)), " "),  # control characters, line ends among them
    0x2028: " ",
    0x2029: " ",
}
_HALVES = re.compile("[\ud800-\udfff]")


def digest_text(text: str) -> str:
    """What stands for a text that is too long: the same for the same text, 42 characters."""
    return "long text " + hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def is_digest(answer: str) -> bool:
    """Does a digest stand there? It is its own normal form under every scorer."""
    return len(answer) == 42 and _DIGEST.fullmatch(answer) is not None


def strip_control_characters(text: str) -> str:
    """The text without what no log can hold: control characters become spaces, half surrogates U+FFFD."""
    if text.isascii() and text.isprintable():
        return text
    return _HALVES.sub("\ufffd", text.translate(_UNREADABLE))


def says_something(text: str) -> bool:
    """Is there a letter, a digit or a symbol in it? Punctuation and invisible characters say nothing."""
    return any(unicodedata.category(character)[0] in "LNS" for character in text)


def settled(text: str, one_pass: Callable[[str], str]) -> str:
    """`one_pass` again and again until nothing changes; a text that never settles stands as a digest.

    A rule may make another one apply that was tried before it; so a single pass is not idempotent.
    """
    for _ in range(_MAX_PASSES):
        before, text = text, one_pass(text)
        if text == before:
            return text if len(text) <= MAX_ANSWER_CHARS else digest_text(text)
        if len(text) > 20 * MAX_ANSWER_CHARS:
            return digest_text(text)
    return digest_text(text)


class ByNormalForm(ABC):
    """A scorer for which two answers are the same when their normal forms are.

    So equality is an equivalence relation, a vote can count normal forms, and a stop that delivers
    the full run's normal form cannot change whether the answer is right.
    """

    __slots__ = ()

    @abstractmethod
    def normalise(self, answer: str) -> str | None:
        """The normal form of a bare answer, such as a reference; None: it is no answer."""

    def match(self, answer: str | None, gold: str) -> bool:
        if answer is None:
            return False
        normal = self.normalise(answer)
        return normal is not None and (answer == gold or normal == self.normalise(gold))


_MAX_CHARS = 1_000


class Comparer(Protocol):
    """The part of a scorer that compares bare answers; another scorer found them."""

    def normalise(self, answer: str) -> str | None:
        """The normal form of a bare answer; None: it is no answer."""
        ...

    def match(self, answer: str | None, gold: str) -> bool:
        """Is `answer` the reference? None never is."""
        ...


def check_word(where: str, value: object, words: Iterable[str]) -> str:
    """The value, if it is one of the words. Raises ConfigError."""
    known = tuple(words)
    if isinstance(value, str) and value in known:
        return value
    raise ConfigError(f"{where}: got {shorten(value)}; allowed: {', '.join(known)}")


def check_flag(where: str, value: object) -> bool:
    """The value, if it is true or false. Raises ConfigError."""
    if isinstance(value, bool):
        return value
    raise ConfigError(f"{where}: got {shorten(value)}; allowed: true, false")


def check_text(where: str, value: object) -> str:
    """The value, if it is a text of 1 to 1,000 characters. Raises ConfigError."""
    if isinstance(value, str) and 0 < len(value) <= _MAX_CHARS:
        return value
    raise ConfigError(f"{where}: got {shorten(value)}; need a text of 1 to {_MAX_CHARS:,} characters")


def shorten(value: object) -> str:
    """The value as an error shows it."""
    if not isinstance(value, str):
        return f"a value of type {type(value).__name__}"
    return repr(value) if len(value) <= 80 else f"{value[:77]!r}..."
