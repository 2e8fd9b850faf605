r"""Where a text announces its answer, what all normal forms share, and the scorers of texts.

Models put an answer in a box, or after words (``\boxed{…}``, ``Answer: …``, ``La réponse est …``, ``答案：…``). Every
function accepts any string (empty, ten million characters, broken Unicode), never raises and takes linear time: the
repetitions in the patterns are bounded or possessive.
"""

from __future__ import annotations

import hashlib
import re
import string
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from suffice.errors import ConfigError
from suffice.scoring.pattern import BadPattern, Pattern, compile_pattern
from suffice.scoring.scorer import Scorer

READ_CHARS = 200_000  # an answer comes at the end; reading more costs time on the event loop
MAX_ANSWER_CHARS = 2_000  # a longer normal form is logged as a digest: the log holds answers, not essays

# Not after "this", "that", "an": "I hope this answer is helpful" announces nothing. The look ahead comes
# first because it fails at nearly every character.
_ENGLISH = r"(?=a)(?<!this )(?<!that )(?<!an )\banswers?[*_]{0,3}\s{0,4}(?:is\b|[:=：])"
_OTHERS = (
    r"(?=[arо答정답])(?:\b(?:antwort|r[ée]ponse|respuesta|resposta|risposta|ответ)|答案|答え|정답|답)[*_]{0,3}\s{0,4}"
    r"(?:(?:ist|lautet|est|es|é|è)\b|[是为は는은:=：])"
)
_OTHER_MARKS = ("ntwort", "ponse", "puesta", "posta", "твет", "答", "답")  # of texts that need the slower pattern


class AnnouncementPattern:
    """A pattern built `around` that of an announcement, for English and, at twice the cost, for any language."""

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
    return text[-READ_CHARS:]


def last_boxed(text: str) -> str | None:
    r"""Return the content of the box that closes last, or None. A box that was cut does not count.

    ``\text{…}`` and similar are unwrapped: ``\boxed{\text{Paris}}`` gives ``Paris}``, and the scorers drop the stray
    brace as punctuation.
    """
    raw = last_boxed_raw(text)
    return None if raw is None else _STYLING.sub("", raw)


def last_boxed_raw(text: str) -> str | None:
    """Return the content of the box that closes last, unchanged, or None."""
    text = last_part(text)
    if "boxed" not in text and "fbox" not in text:
        return None  # the common case: a step of a thought
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
    """Return what follows the last announcement, up to the end of its sentence or line; else None."""
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
    for part in (last_boxed(text), last_announced(text)):
        if part is not None and (answer := normalise(part)) is not None:
            return answer
    return None


# ---- normal forms

_MAX_PASSES = 8
_DIGEST = re.compile(r"long text [0-9a-f]{32}")
_UNREADABLE = dict.fromkeys((*range(32), *range(127, 160), 0x2028, 0x2029), " ")  # line ends among them
_HALVES = re.compile("[\ud800-\udfff]")


def digest_text(text: str) -> str:
    """Return the 42-character replacement of a text that is too long; equal texts have equal digests."""
    return "long text " + hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def is_digest(answer: str) -> bool:
    return len(answer) == 42 and _DIGEST.fullmatch(answer) is not None


def cap_answer(normal: str) -> str:
    return normal if len(normal) <= MAX_ANSWER_CHARS else digest_text(normal)


def replace_halves(text: str) -> str:
    """Replace lone surrogates by U+FFFD."""
    return _HALVES.sub("\ufffd", text)


def strip_control_characters(text: str) -> str:
    """Replace what a log cannot hold: control characters by spaces, lone surrogates by U+FFFD."""
    if text.isascii() and text.isprintable():
        return text
    return replace_halves(text.translate(_UNREADABLE))


def says_something(text: str) -> bool:
    """Return whether the text has a letter, a digit or a symbol, and not only punctuation and invisible characters."""
    return any(unicodedata.category(character)[0] in "LNS" for character in text)


def settle(text: str, one_pass: Callable[[str], str]) -> str:
    """Repeat `one_pass` until nothing changes, because a rule may make an earlier one apply; otherwise a digest."""
    for _ in range(_MAX_PASSES):
        before, text = text, one_pass(text)
        if text == before:
            return cap_answer(text)
        if len(text) > 20 * MAX_ANSWER_CHARS:
            break
    return digest_text(text)


class ByNormalForm(ABC):
    """A scorer for which answers are equal if their normal forms are.

    A vote can then count normal forms, and delivering the full run's normal form cannot change whether it is right.
    """

    __slots__ = ()

    @abstractmethod
    def normalise(self, answer: str) -> str | None: ...

    def extract(self, text: str) -> str | None:
        r"""Return the answer in the last ``\boxed{…}`` with one, else after the last announcement, else the text."""
        boxed = last_boxed(text)
        if boxed is not None and (answer := self.normalise(boxed)) is not None:
            return answer
        announced = last_announced(text)
        return self.normalise(text if announced is None else announced)

    def match(self, answer: str | None, gold: str) -> bool:
        if answer is None:
            return False
        normal = self.normalise(answer)
        return normal is not None and (answer == gold or normal == self.normalise(gold))


class ByComparer(ByNormalForm):
    """A scorer whose answers are compared by another one, if there is one."""

    __slots__ = ()
    compare: Scorer | None

    def match(self, answer: str | None, gold: str) -> bool:
        return super().match(answer, gold) if self.compare is None else self.compare.match(answer, gold)


# ---- scorers: none of them knows meaning, "USA" is not "United States"

_ARTICLES = frozenset({"a", "an", "the"})
_WRAPPERS = frozenset("$`")  # around formulas and code; by category they are symbols
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_SPACES = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class TextScorer(ByNormalForm):
    """Compares short answers by their words.

    Normal form, after SQuAD's (Rajpurkar et al. 2016, arXiv:1606.05250): NFKC, case folded, without invisible
    characters, punctuation and the articles a, an, the; one space between words. SQuAD's form makes different answers
    equal, so in contrast to it, characters attached to digits stay (``-5``, ``1.5``, ``3:2``, ``1/2``, ``50%``; only
    commas that group thousands go), symbols stay (``C++`` is not ``C``) except ``$`` and the backtick, which wrap
    formulas and code, and so do articles if nothing else is left. A text longer than 2,000 characters is folded only in
    case and white space and replaced by a digest; one of more than 200,000 is not folded at all.
    """

    name: ClassVar[str] = "text"

    def normalise(self, answer: str) -> str | None:
        if len(answer) > READ_CHARS:
            return digest_text(answer)
        if len(answer) > MAX_ANSWER_CHARS:
            # Without NFKC, which long runs of combining marks make quadratic.
            folded = _SPACES.sub(" ", answer.casefold()).strip()
            return digest_text(folded) if len(folded) > MAX_ANSWER_CHARS else self.normalise(folded)
        # Several passes: dropped punctuation can bring a letter and its accent, or two digits, together.
        return settle(answer, _one_pass) or None


def _one_pass(text: str) -> str:
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    words = [_bare(word) for word in "".join(map(_visible, folded)).split()]
    words = [word for word in words if word]
    return " ".join([word for word in words if word not in _ARTICLES] or words)


def _visible(character: str) -> str:
    if character == "\u2212":  # the minus sign is a symbol, the hyphen that models write is punctuation
        return "-"
    category = unicodedata.category(character)
    if category == "Cf":  # joiners, direction marks
        return ""
    if category == "Cs":  # a lone surrogate, which cannot be encoded later
        return "\ufffd"
    return " " if category == "Cc" else character


def _bare(word: str) -> str:
    kept: list[str] = []
    for at, character in enumerate(word):
        if character not in _WRAPPERS and not unicodedata.category(character).startswith("P"):
            kept.append(character)
            continue
        after_digit = bool(kept) and word[at - 1].isdecimal()
        before_digit = word[at + 1 : at + 2].isdecimal()
        is_sign = character == "-" and before_digit and not kept
        is_inside = character in ".,:/" and before_digit and after_digit
        if is_sign or is_inside or (character == "%" and after_digit):
            kept.append(character)
    return _THOUSANDS.sub("", "".join(kept))


_PUNCTUATION = {ord(mark): None for mark in string.punctuation}
_SQUAD_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


@dataclass(frozen=True, slots=True)
class SquadScorer(ByNormalForm):
    """Compares short answers as SQuAD does.

    Normal form (Rajpurkar et al. 2016, arXiv:1606.05250, `evaluate-v1.1.py`; the same in HotpotQA's
    `hotpot_evaluate_v1.py`, Yang et al. 2018, arXiv:1809.09600): lower case, without ASCII punctuation, without the
    words a, an, the, one space between words. So `-5` is `5` and `1.5` is `15`. What a log cannot hold is replaced:
    lone surrogates, control characters, long texts (by a digest). A form without a letter, digit or symbol is not an
    answer.
    """

    name: ClassVar[str] = "squad"

    def normalise(self, answer: str) -> str | None:
        if len(answer) > READ_CHARS:
            return digest_text(answer)
        # ASCII punctuation is removed before the articles, so one pass is enough: `a.n` disappears at once.
        normal = " ".join(
            _SQUAD_ARTICLES.sub(" ", strip_control_characters(answer).lower().translate(_PUNCTUATION)).split()
        )
        return cap_answer(normal) if says_something(normal) else None


_CONTROLS = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"}


@dataclass(frozen=True, slots=True)
class WholeScorer(ByComparer):
    """Compares whole texts.

    Every character counts, except white space at the ends of lines and of the text, the kind of line end, and how an
    accent is composed (NFC). A text of more than 2,000 characters is compared by a digest. `compare` is a scorer that
    compares the whole text instead.
    """

    name: ClassVar[str] = "whole"
    reads_json: ClassVar[bool] = True

    compare: Scorer | None = None

    def extract(self, text: str) -> str | None:
        return self.normalise(text)

    def normalise(self, answer: str) -> str | None:
        if self.compare is not None:
            return self.compare.normalise(answer)
        if is_digest(answer):
            return answer
        lines = "\n".join(line.rstrip() for line in answer.splitlines()).strip()
        lines = replace_halves(lines.translate(_CONTROLS))
        if not says_something(lines):
            return None
        return cap_answer(lines if len(lines) > MAX_ANSWER_CHARS else unicodedata.normalize("NFC", lines))


@dataclass(frozen=True, slots=True)
class RegexScorer(ByComparer):
    """Extracts the answer by a pattern (see `Pattern.last`) and compares it by another scorer."""

    name: ClassVar[str] = "regex"
    reads_json: ClassVar[bool] = True

    pattern: str
    ignore_case: bool = False
    compare: Scorer = field(default_factory=TextScorer)
    _pattern: Pattern = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            compiled = compile_pattern(self.pattern, ignore_case=self.ignore_case)
        except BadPattern as error:
            raise ConfigError(f"scorer.pattern: {error}") from None
        object.__setattr__(self, "_pattern", compiled)

    def extract(self, text: str) -> str | None:
        last = self._pattern.last(text)
        return None if last is None else self.compare.normalise(last)

    def normalise(self, answer: str) -> str | None:
        """Return the normal form of a bare answer, such as a reference, which need not match the pattern."""
        return self.compare.normalise(answer)
