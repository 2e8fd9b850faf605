r"""Where the answer stands in a model's text: in a box, or behind words such as "the answer is".

Knows how models announce an answer (``\boxed{…}``, ``Answer: …``, ``La réponse est …``, ``答案：…``) and refuses
to know what an answer looks like: a number, a letter or a name is the business of the scorers.

Every function takes any string (empty, ten million characters, broken Unicode), never raises
and needs time linear in its length: the repetitions in the patterns are bounded or possessive.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

READ_CHARS = 200_000  # an answer stands at the end; what is before costs time on the event loop

# Not after "this", "that", "an": "I hope this answer is helpful" announces nothing. The look ahead
# comes first because it is what fails at nearly every character.
_ENGLISH = r"(?=a)(?<!this )(?<!that )(?<!an )\banswers?[*_]{0,3}\s{0,4}(?:is\b|[:=：])"
_OTHERS = (
    r"(?=[arо答정답])(?:\b(?:antwort|r[ée]ponse|respuesta|resposta|risposta|ответ)|答案|答え|정답|답)[*_]{0,3}\s{0,4}"
    r"(?:(?:ist|lautet|est|es|é|è)\b|[是为は는은:=：])"
)
_OTHER_MARKS = ("ntwort", "ponse", "puesta", "posta", "твет", "答", "답")  # of a text that needs the slower pattern


class AnnouncementPattern:
    """A pattern around an announcement, for texts in English and, at twice the cost, for texts in any language.

    around  makes the pattern from that of the announcement
    """

    def __init__(self, around: Callable[[str], str], flags: re.RegexFlag = re.NOFLAG) -> None:
        self._english = re.compile(around(rf"(?i:{_ENGLISH}[\s*_:：]{{0,8}})"), flags)
        self._any = re.compile(around(rf"(?i:(?:{_ENGLISH}|{_OTHERS})[\s*_:：]{{0,8}})"), flags)

    def finditer(self, text: str) -> Iterator[re.Match[str]]:
        """All matches, from left to right."""
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
    """What follows the last announcement, up to the end of its sentence or line; None: there is none.

    An announcement at the very end, with nothing behind it, does not count.
    """
    text = last_part(text)
    begin = -1
    for announcement in _ANNOUNCEMENT.finditer(text):
        end = announcement.end()
        if end < len(text) and not text[end].isspace():
            begin = end
    if begin < 0:
        return None
    line_end = text.find("\n", begin)
    line = text[begin:] if line_end < 0 else text[begin:line_end]
    sentence_end = _SENTENCE_END.search(line)
    return line if sentence_end is None else line[: sentence_end.start()]


def told(text: str, normalise: Callable[[str], str | None]) -> str | None:
    r"""The answer in the last ``\boxed{…}``, else what follows the last announcement, else all of it.

    The whole text, not its first line: an explanation behind an unannounced answer makes it
    another answer, and is better cut off by the probe than guessed away here.

    normalise  gives the normal form of a bare answer; a box in which it finds none does not count
    """
    boxed = last_boxed(text)
    if boxed is not None and (answer := normalise(boxed)) is not None:
        return answer
    announced = last_announced(text)
    return normalise(text if announced is None else announced)
