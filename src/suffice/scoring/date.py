"""Scorer `date`: dates are equal if they are the same day, month or year."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from suffice.scoring.text import ByNormalForm, last_part, marked_answer

# English, German, French, Spanish, Italian, Portuguese, Dutch; the English short forms.
_MONTH_WORDS = (
    "january jan januar janvier enero gennaio janeiro januari",
    "february feb februar février febrero febbraio fevereiro februari",
    "march mar märz mars marzo março maart",
    "april apr avril abril aprile",
    "may mai mayo maggio maio mei",
    "june jun juni juin junio giugno junho",
    "july jul juli juillet julio luglio julho",
    "august aug août agosto augustus",
    "september sep sept septembre septiembre settembre setembro",
    "october oct oktober octobre octubre ottobre outubro",
    "november nov novembre noviembre novembro",
    "december dec dezember décembre diciembre dicembre dezembro",
)
_MONTHS = {word: number for number, words in enumerate(_MONTH_WORDS, start=1) for word in words.split()}
_FIRST = "".join(sorted({word[0] for word in _MONTHS}))
_MONTH = "(?:" + "|".join(sorted(_MONTHS, key=len, reverse=True)) + r")(?!\w)\.?"
_GAP = r"[ \t,]{1,4}"
_DATE = re.compile(
    rf"""(?=[\d{_FIRST}])(?<![\w./-])(?:      # most characters end here
      (?P<y1>\d{{4}})(?P<s1>[-/.])(?P<m1>\d{{1,2}})(?P=s1)(?P<d1>\d{{1,2}})(?!\d)
    | (?P<y2>\d{{4}})\s?[年년]\s?(?P<m2>\d{{1,2}})\s?[月월](?:\s?(?P<d2>\d{{1,2}})\s?[日일])?
    | (?P<a>\d{{1,2}})(?P<s3>[/.-])(?P<b>\d{{1,2}})(?P=s3)(?P<y3>\d{{4}})(?!\d|[./-]\d)
    | (?P<d4>\d{{1,2}})(?:st|nd|rd|th|er|º|\.)?[ \t](?:of[ ]|de[ ]|d['’])?
      (?P<m4>{_MONTH}){_GAP}(?:de[ ]|del[ ])?(?P<y4>\d{{4}})(?!\d)
    | (?P<m5>{_MONTH}){_GAP}(?P<d5>\d{{1,2}})(?:st|nd|rd|th)?{_GAP}(?P<y5>\d{{4}})(?!\d)
    | (?P<m6>{_MONTH}){_GAP}(?:of[ ]|de[ ])?(?P<y6>\d{{4}})(?!\d)
    | (?P<y7>\d{{4}})-(?P<m7>\d{{1,2}})(?![\d-])
    | (?P<y8>[12]\d{{3}})(?![\w/-]|[.,]\d)
    )""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class DateScorer(ByNormalForm):
    """Compares dates of the Gregorian calendar.

    Normal form: `2024-03-05`, or `2024-03` or `2024` if no more is known; a less exact date is a different answer.
    `05.03.2024` has its day first, as dots imply; `3/4/2024` is ambiguous and compared as written, unless `order` is
    ``dmy`` or ``mdy``. A day that does not exist is not an answer.
    """

    name: ClassVar[str] = "date"

    order: Literal["as-written", "dmy", "mdy"] = "as-written"

    def extract(self, text: str) -> str | None:
        """Return the date in the last box, else the announced one, else the most exact one, of equals the last."""
        marked = marked_answer(text, self.normalise)
        return self.normalise(text) if marked is None else marked

    def normalise(self, answer: str) -> str | None:
        """Return the normal form of a bare answer, read as `extract` does; None if it has no date."""
        best, best_parts = None, 0
        for match in _DATE.finditer(last_part(answer).casefold()):
            date = self._read(match)
            if date is not None and (parts := len(re.split("[-/]", date))) >= best_parts:
                best, best_parts = date, parts
        return best

    def _read(self, match: re.Match[str]) -> str | None:
        if match["a"] is not None:
            return self._in_order(match)
        group = {key[0]: value for key, value in match.groupdict().items() if value is not None and key[0] in "ymd"}
        year = _number(group["y"])
        month = group.get("m")
        day = group.get("d")
        if month is None:
            return f"{year:04}"
        number = _MONTHS.get(month.rstrip(".")) or _number(month)
        if day is None:
            return f"{year:04}-{number:02}" if 1 <= number <= 12 and year else None
        return _day(year, number, _number(day))

    def _in_order(self, match: re.Match[str]) -> str | None:
        first = _number(match["a"])
        second = _number(match["b"])
        year = _number(match["y3"])
        if match["s3"] == "." or self.order == "dmy" or first > 12:
            return _day(year, second, first)
        if self.order == "mdy" or second > 12 or first == second:
            return _day(year, first, second)
        return f"{first}/{second}/{year:04}" if first and second and year else None


def _number(written: str) -> int:
    return int(written) if written.isdecimal() else 0


def _day(year: int, month: int, day: int) -> str | None:
    try:
        return datetime.date(year, month, day).isoformat()
    except ValueError:
        return None
