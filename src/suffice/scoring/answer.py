r"""Where a model's text announces its answer, and what all normal forms of answers have in common.

Models put an answer in a box, or behind words (``\boxed{…}``, ``Answer: …``, ``La réponse est …``, ``答案：…``). Every
function takes any string (empty, ten million characters, broken Unicode), never raises and needs time linear in its
length: the repetitions in the patterns are bounded or possessive.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from suffice.errors import ConfigError

READ_CHARS = 200_000  # an answer comes at the end; what is before costs time on the event loop
MAX_ANSWER_CHARS = 2_000  # a longer normal form is logged as a digest: a log holds answers, not essays

# Not after "this", "that", "an": "I hope this answer is helpful" announces nothing. The look ahead
# comes first because it is what fails at nearly every character.
_ENGLISH = r"(?=a)(?<!this )(?<!that )(?<!an )\banswers?[*_]{0,3}\s{0,4}(?:is\b|[:=：])"
_OTHERS = (
    r"(?=[arо答정답])(?:\b(?:antwort|r[ée]ponse|respuesta|resposta|risposta|ответ)|答案|答え|정답|답)[*_]{0,3}\s{0,4}"
    r"(?:(?:ist|lautet|est|es|é|è)\b|[是为は는은:=：])"
)
_OTHER_MARKS = ("ntwort", "ponse", "puesta", "posta", "твет", "答", "답")  # of a text that needs the slower pattern


class AnnouncementPattern:
    """A pattern made `around` that of an announcement, for English and, at twice the cost, for any language."""

    def __init__(self, around: Callable[[str], str], flags: re.RegexFlag = re.NOFLAG) -> None:
        self._english = re.compile(around(rf"(?i:{_ENGLISH}[\s*_:：]{{0,8}})"), flags)
        self._any = re.compile(around(rf"(?i:(?:{_ENGLISH}|{_OTHERS})[\s*_:：]{{0,8}})"), flags)

    def finditer(self, text: str) -> Iterator[re.Match[str]]:
        is_english = not any(mark in text for mark in _OTHER_MARKS)
        return (self._english if is_english else self._any).finditer(text)


_ANNOUNCEMENT = AnnouncementPattern(lambda announcement: announcement)
_BRACES = re.compile(r"\\(?:boxed|fbox)\s{0,4}\{|\\[{}]|[{}]")
_STYLING = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|operatorname)\s{0,4}\{|\\[,;!]")
# A single letter or a title before the dot belongs to a name: "Washington D.C. is", "St. Louis".
_SENTENCE_END = re.compile(r"(?i:(?<!\b[a-z])(?<!\b(?:st|dr|mr|ms|mt|jr|sr|vs))(?<!\bmrs)[.!?](?=\s))|[。！？]")


def last_part(text: str) -> str:
    """The last 200,000 characters: as far back as any scorer looks for an announced answer."""
    return text[-READ_CHARS:]


def last_boxed(text: str) -> str | None:
    r"""The content of the box that closes last, or None. A box left open by a cut does not count.

    The braces of ``\text{…}`` and its kin are opened up: ``\boxed{\text{Paris}}`` gives ``Paris}``,
    and the scorers drop the stray brace as punctuation.
    """
    raw = last_boxed_raw(text)
    return None if raw is None else _STYLING.sub("", raw)


def last_boxed_raw(text: str) -> str | None:
    """The same as it was written."""
    text = last_part(text)
    if "boxed" not in text and "fbox" not in text:
        return None  # as nearly every step of a thought
    box: tuple[int, int] | None = None
    opened: list[int] = []  # where the content of a box begins; -1: an ordinary brace
    for brace in _BRACES.finditer(text):
        mark = brace.group()
        if mark in (r"\{", r"\}"):
            continue
        if mark != "}":
            opened.append(brace.end() if len(mark) > 1 else -1)
        elif opened and (begin := opened.pop()) >= 0:
            box = (begin, brace.start())
    return None if box is None else text[box[0] : box[1]]


def last_announced(text: str) -> str | None:
    """What follows the last announcement that something follows, up to the end of its sentence or line; else None."""
    text = last_part(text)
    begin = -1
    for announcement in _ANNOUNCEMENT.finditer(text):
        end = announcement.end()
        if end < len(text) and not text[end].isspace():
            begin = end
    if begin < 0:
        return None
    line = text[begin:].partition("\n")[0]
    sentence_end = _SENTENCE_END.search(line)
    return line if sentence_end is None else line[: sentence_end.start()]


def marked_answer(text: str, normalise: Callable[[str], str | None]) -> str | None:
    """The answer in the last box, else behind the last announcement; None: neither holds one."""
    for part in (last_boxed(text), last_announced(text)):
        if part is not None and (answer := normalise(part)) is not None:
            return answer
    return None


def final_answer(text: str, normalise: Callable[[str], str | None]) -> str | None:
    r"""The answer in the last ``\boxed{…}`` that holds one, else behind the last announcement, else all of the text.

    The whole text, not its first line: an explanation behind an unannounced answer is better cut off by the probe.
    """
    boxed = last_boxed(text)
    if boxed is not None and (answer := normalise(boxed)) is not None:
        return answer
    announced = last_announced(text)
    return normalise(text if announced is None else announced)


# ---- normal forms

_MAX_PASSES = 8
_DIGEST = re.compile(r"long text [0-9a-f]{32}")
_UNREADABLE = dict.fromkeys((*range(32), *range(127, 160), 0x2028, 0x2029), " ")  # line ends among them
_HALVES = re.compile("[\ud800-\udfff]")


def digest_text(text: str) -> str:
    """What replaces a text that is too long: the same for the same text, 42 characters."""
    return "long text " + hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def is_digest(answer: str) -> bool:
    """A digest is its own normal form under every scorer."""
    return len(answer) == 42 and _DIGEST.fullmatch(answer) is not None


def cap_answer(normal: str) -> str:
    """A normal form, or its digest where it is too long."""
    return normal if len(normal) <= MAX_ANSWER_CHARS else digest_text(normal)


def replace_halves(text: str) -> str:
    """The text with U+FFFD for half surrogates."""
    return _HALVES.sub("\ufffd", text)


def strip_control_characters(text: str) -> str:
    """The text without what no log can hold: control characters become spaces, half surrogates U+FFFD."""
    if text.isascii() and text.isprintable():
        return text
    return replace_halves(text.translate(_UNREADABLE))


def says_something(text: str) -> bool:
    """Is there a letter, a digit or a symbol in it? Punctuation and invisible characters say nothing."""
    return any(unicodedata.category(character)[0] in "LNS" for character in text)


def settle(text: str, one_pass: Callable[[str], str]) -> str:
    """`one_pass` until nothing changes, because a rule may make an earlier one apply; a digest if it never settles."""
    for _ in range(_MAX_PASSES):
        before, text = text, one_pass(text)
        if text == before:
            return cap_answer(text)
        if len(text) > 20 * MAX_ANSWER_CHARS:
            break
    return digest_text(text)


class ByNormalForm(ABC):
    """A scorer for which two answers are the same when their normal forms are.

    So a vote can count normal forms, and delivering the full run's normal form cannot change whether it is right.
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


class Comparer(Protocol):
    """The part of a scorer that compares bare answers; another scorer finds them."""

    def normalise(self, answer: str) -> str | None: ...

    def match(self, answer: str | None, gold: str) -> bool: ...


# ---- parameters of scorers

_MAX_CHARS = 1_000


def check_word(where: str, value: object, words: Iterable[str]) -> None:
    """Raises ConfigError for a value that is none of the words."""
    known = tuple(words)
    if not isinstance(value, str) or value not in known:
        raise ConfigError(f"{where}: got {shorten(value)}; allowed: {', '.join(known)}")


def check_flag(where: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ConfigError(f"{where}: got {shorten(value)}; allowed: true, false")


def check_text(where: str, value: object) -> None:
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_CHARS:
        raise ConfigError(f"{where}: got {shorten(value)}; need a text of 1 to {_MAX_CHARS:,} characters")


def shorten(value: object) -> str:
    """The value as an error shows it."""
    if not isinstance(value, str):
        return f"a value of type {type(value).__name__}"
    return repr(value) if len(value) <= 80 else f"{value[:77]!r}..."
