"""Patterns from a settings file, matched in time linear in the text, whatever both contain.

Python's own `re` backtracks and takes exponential time on patterns such as `(a+)+b`. This matcher backtracks too, but
remembers failures: whether a place in the pattern fits a place in the text never depends on the path there, so it tries
each pair at most once and matches what `re` does, which also checks the syntax. Back references and lookaround would
break that and are refused at compile time, as in RE2, and so are very long patterns.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

READ_CHARS = 4_000  # the end of a text, where its answer is; with the next limit, this bounds the time
MAX_INSTRUCTIONS = 200  # of the compiled pattern; `{2,5}` counts as five copies
_MAX_DEPTH = 20  # brackets inside brackets
_MAX_PATTERN_CHARS = 1_000

_QUANTIFIER = re.compile(r"(?:([*+?])|\{(\d{1,3})(?:(,)(\d{1,3})?)?\})(\?)?")
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\\[])*\]", re.DOTALL)
_GROUP = re.compile(r"\((?:\?(?::|P<\w+>))?")
_ESCAPES = frozenset("dDwWsSntrfv")


class BadPattern(ValueError):
    pass


@dataclass(frozen=True, slots=True)
class _Instruction:
    test: re.Pattern[str] | None = None
    n_chars: int = 0  # consumed by the test: 1, or 0 for a place between characters
    mark: Literal["open", "close"] | None = None  # of the group that holds the answer
    jumps: tuple[int, ...] = (1,)  # to the next steps, relative to this one, the preferred one first


_Program = list[_Instruction]


@dataclass(frozen=True, slots=True)
class Pattern:
    _program: tuple[_Instruction, ...] = field(repr=False)
    _first: re.Pattern[str] | None = field(repr=False)  # what a match can begin with; None: anything

    def last(self, text: str) -> str | None:
        """Return the group `answer`, else the first, else the whole, of the last match in the last 4,000 characters."""
        text, last = text[-READ_CHARS:], None
        for begin, end in self._spans(text):
            last = text[begin:end]
        return last

    def _spans(self, text: str) -> Iterator[tuple[int, int]]:
        reached: dict[int, int] = {}  # (instruction, place) that fails → how it was reached
        at = 0
        while at <= len(text):
            if self._first is not None:
                begins = self._first.search(text, at)
                if begins is None:
                    return
                at = begins.start()
            match = self._match(text, at, reached)
            if match is None:
                at += 1
                continue
            end, group = match
            if group is not None:
                yield group
            at = max(end, at + 1)

    def _match(self, text: str, start: int, reached: dict[int, int]) -> tuple[int, tuple[int, int] | None] | None:
        program, width = self._program, len(text) + 1
        todo = [(0, start, -1, -1, -1)]  # instruction, place, reached from, where the group began and ended
        while todo:
            step, at, origin, begin, end = todo.pop()
            key = step * width + at
            if key in reached:
                continue
            reached[key] = origin
            if step == len(program):
                while key >= 0:  # the path that led here fits; all others that were tried failed
                    key = reached.pop(key)
                return at, (begin, end) if end >= 0 else None
            instruction = program[step]
            if instruction.test is not None:
                if instruction.test.match(text, at) is None:
                    continue
                at += instruction.n_chars
            elif instruction.mark == "open":
                begin, end = at, -1
            elif instruction.mark == "close":
                end = at
            todo.extend((step + jump, at, key, begin, end) for jump in reversed(instruction.jumps))
        return None


def compile_pattern(source: str, *, ignore_case: bool = False) -> Pattern:
    r"""Compile a pattern of at most 1,000 characters. Raise BadPattern.

    Allowed: letters, ``.``, classes such as ``[^,]``, ``\d \w \s \D \W \S \n \t``, ``\b \B``, ``^`` and ``$`` at the
    ends of lines, ``|``, groups ``( )``, ``(?: )`` and ``(?P<answer> )``, and ``* + ? {2} {2,} {2,5}``, each also with
    a ``?`` after it, which matches as little as possible. All mean what they mean in Python with `re.MULTILINE`.
    """
    if len(source) > _MAX_PATTERN_CHARS:
        raise BadPattern(f"{len(source):,} characters; at most {_MAX_PATTERN_CHARS:,}")
    flags = re.MULTILINE | (re.IGNORECASE if ignore_case else re.NOFLAG)
    try:
        with warnings.catch_warnings(action="error", category=FutureWarning):  # classes that Python will read otherwise
            checked = re.compile(source, flags)
    except re.error as error:
        raise BadPattern(f"character {(error.pos or 0) + 1}: {error.msg}") from None
    except (FutureWarning, OverflowError, RecursionError) as error:
        raise BadPattern(str(error)) from None
    program = _Compiler(source, flags, answer_group=checked.groupindex.get("answer", 1)).choice()
    if checked.groups == 0:
        program = _answer(program)
    first = {source} if re.escape(source) == source else _first_items(program)  # a plain word is found as a whole
    return Pattern(tuple(program), re.compile("|".join(sorted(first)), flags) if first is not None else None)


class _Compiler:
    """Compiles a pattern that `re` accepts. `answer_group` is the number of the group that holds the answer."""

    def __init__(self, source: str, flags: re.RegexFlag, *, answer_group: int) -> None:
        self._source = source
        self._flags = flags
        self._answer_group = answer_group
        self._at = self._depth = self._n_groups = 0

    def choice(self) -> _Program:
        options = [self._sequence()]
        while self._next() == "|":
            self._at += 1
            options.append(self._sequence())
        if len(options) == 1:
            return options[0]
        begins, n = [], 1
        for option in options:
            begins.append(n)
            n += len(option) + 1
        program = [_Instruction(jumps=tuple(begins))]
        for option in options:
            program += option
            program.append(_Instruction(jumps=(n - len(program),)))
        return program

    def _sequence(self) -> _Program:
        program: _Program = []
        while self._next() not in ("", "|", ")"):
            program += self._piece()
            _check_length(len(program))
        return program

    def _piece(self) -> _Program:
        atom = self._atom()
        match = _QUANTIFIER.match(self._source, self._at)
        if match is None:
            if self._next() == "{":
                raise self._error(r"a { that repeats nothing; write \{ for a brace")
            return atom
        if _first_items(atom) is None:
            raise self._error("repeats something that can be empty")
        self._at = match.end()
        if self._next() in ("*", "+", "?"):
            raise self._error("repeats a repetition")
        sign, low, comma, high, lazy = match.groups()
        if sign is not None:
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[sign]
        else:
            least = int(low)
            most = int(high) if high is not None else None if comma else least
        if most == 0:
            raise self._error(f"{match.group()} repeats at most 0 times")
        return _repeat(atom, least, most, greedy=lazy is None)

    def _atom(self) -> _Program:
        character = self._next()
        if character == "(":
            return self._in_brackets()
        if character == "\\":
            return self._escaped()
        if character == "[" and (match := _CLASS.match(self._source, self._at)) is not None:
            return self._test(match.group(), 1)
        if character in ("^", "$"):
            return self._test(character, 0)
        return self._test(character, 1, character if character == "." else re.escape(character))

    def _in_brackets(self) -> _Program:
        match = _GROUP.match(self._source, self._at)
        if match is None or self._source[match.end() : match.end() + 1] == "?":
            raise self._error("of groups with (? only (?: ) and (?P<name> ) can be matched in linear time")
        self._at = match.end()
        captures = match.group() != "(?:"
        self._n_groups += captures
        is_answer = captures and self._n_groups == self._answer_group
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self._error(f"more than {_MAX_DEPTH} groups inside each other")
        inner = self.choice()
        self._depth -= 1
        self._at += 1
        return _answer(inner) if is_answer else inner

    def _escaped(self) -> _Program:
        written = self._source[self._at : self._at + 2]
        if written in (r"\b", r"\B"):
            return self._test(written, 0)
        if written[1].isalnum() and written[1] not in _ESCAPES:
            raise self._error(rf"{written} is not among \d \w \s \D \W \S \b \B \n \t \r \f \v")
        return self._test(written, 1, written if written[1] in _ESCAPES else re.escape(written[1]))

    def _test(self, written: str, n_chars: int, pattern: str | None = None) -> _Program:
        self._at += len(written)
        return [_Instruction(re.compile(pattern or written, self._flags), n_chars)]

    def _next(self) -> str:
        return self._source[self._at : self._at + 1]

    def _error(self, what: str) -> BadPattern:
        return BadPattern(f"character {self._at + 1}: {what}")


def _answer(inner: _Program) -> _Program:
    return [_Instruction(mark="open"), *inner, _Instruction(mark="close")]


def _repeat(inner: _Program, low: int, high: int | None, *, greedy: bool) -> _Program:
    n = len(inner) + 1
    n_optional = 1 if high is None else high - low
    _check_length(low * len(inner) + n_optional * n)
    program = inner * low
    for left in range(n_optional, 0, -1):
        jumps = (1, left * n + (high is None))
        program += [_Instruction(jumps=jumps if greedy else jumps[::-1]), *inner]
    return [*program, _Instruction(jumps=(-n,))] if high is None else program


def _check_length(n_instructions: int) -> None:
    if n_instructions > MAX_INSTRUCTIONS:
        raise BadPattern(f"too long once repetitions such as {{2,5}} are written out; at most {MAX_INSTRUCTIONS} steps")


def _first_items(program: Sequence[_Instruction]) -> frozenset[str] | None:
    items = set[str]()
    todo = [0]
    known = set[int]()
    while todo:
        step = todo.pop()
        if step == len(program):
            return None
        if step in known:
            continue
        known.add(step)
        instruction = program[step]
        if instruction.test is not None and instruction.n_chars:
            items.add(instruction.test.pattern)
        else:
            todo += [step + jump for jump in instruction.jumps]
    return frozenset(items)
