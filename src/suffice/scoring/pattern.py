"""Patterns from a settings file, matched in time linear in the text, whatever both contain.

Python's own `re` backtracks and takes exponential time on patterns such as `(a+)+b`. This matcher backtracks too, but
remembers failures: whether a place in the pattern fits a place in the text never depends on the path there, so it tries
each pair at most once and matches what `re` does. Back references and lookaround would break that and are refused at
compile time, as in RE2, and so are very long patterns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

READ_CHARS = 4_000  # the end of a text, where its answer is; with the next limit, this bounds the time
MAX_INSTRUCTIONS = 200  # of the compiled pattern; `{2,5}` counts as five copies
_MAX_DEPTH = 20  # brackets inside brackets
_MAX_PATTERN_CHARS = 1_000

_QUANTIFIER = re.compile(r"(?:([*+?])|\{(\d{1,3})(?:(,)(\d{1,3})?)?\})(\?)?")
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\\[])*\]", re.DOTALL)
_GROUP = re.compile(r"\((?:\?(?::|P<([A-Za-z_]\w{0,40})>))?")
_ESCAPES = frozenset("dDwWsSntrfv")


class BadPattern(ValueError):
    pass


@dataclass(frozen=True, slots=True)
class _Instruction:
    test: re.Pattern[str] | None = None
    n_chars: int = 0  # consumed by the test: 1, or 0 for a place between characters
    mark: Literal["open", "close"] | None = None
    group: int = 0  # of the mark
    jumps: tuple[int, ...] = (1,)  # to the next steps, relative to this one, the preferred one first


_Program = list[_Instruction]


@dataclass(frozen=True, slots=True)
class Pattern:
    source: str
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
    compiler = _Compiler(source, flags)
    program = compiler.compile()
    if compiler.n_groups == 0:
        program = _group(1, program)
    wanted = compiler.names.get("answer", 1)
    program = [_Instruction() if one.mark and one.group != wanted else one for one in program]
    first = _first_items(program)
    return Pattern(source, tuple(program), re.compile("|".join(sorted(first)), flags) if first is not None else None)


class _Compiler:
    def __init__(self, source: str, flags: re.RegexFlag) -> None:
        self._source, self._flags = source, flags
        self._at = self._depth = 0
        self.n_groups = 0
        self.names: dict[str, int] = {}

    def compile(self) -> _Program:
        program = self._choice()
        if self._at < len(self._source):
            raise self._error("a ) that closes nothing")
        return program

    def _choice(self) -> _Program:
        options = [self._sequence()]
        while self._next("|"):
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
        while self._at < len(self._source) and self._source[self._at] not in "|)":
            program += self._piece()
            _check_length(len(program))
        return program

    def _piece(self) -> _Program:
        atom = self._atom()
        match = _QUANTIFIER.match(self._source, self._at)
        if match is None:
            if self._source[self._at : self._at + 1] == "{":
                raise self._error(r"a { that repeats nothing; write \{ for a brace")
            return atom
        if _first_items(atom) is None:
            raise self._error("repeats something that can be empty")
        self._at = match.end()
        if self._source[self._at : self._at + 1] in ("*", "+", "?"):
            raise self._error("repeats a repetition")
        sign, low, comma, high, lazy = match.groups()
        if sign is not None:
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[sign]
        else:
            least = int(low)
            most = int(high) if high is not None else None if comma else least
        if most is not None and (most < least or most == 0):
            raise self._error(f"{match.group()} repeats at most {most} times")
        return _repeat(atom, least, most, greedy=lazy is None)

    def _atom(self) -> _Program:
        character = self._source[self._at]
        if character == "(":
            return self._in_brackets()
        if character == "[":
            return self._class()
        if character == "\\":
            return self._escaped()
        if character in "*+?":
            raise self._error(f"a {character} that repeats nothing")
        self._at += 1
        if character in "^$":
            return self._test(character, 0)
        return self._test(character if character == "." else re.escape(character), 1)

    def _in_brackets(self) -> _Program:
        match = _GROUP.match(self._source, self._at)
        if match is None or self._source[match.end() : match.end() + 1] == "?":
            raise self._error("of groups with (? only (?: ) and (?P<name> ) can be matched in linear time")
        self._at, name, number = match.end(), match.group(1), 0
        if match.group() != "(?:":
            self.n_groups += 1
            number = self.n_groups
            if name is not None:
                if name in self.names:
                    raise self._error(f"two groups named {name}")
                self.names[name] = number
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self._error(f"more than {_MAX_DEPTH} groups inside each other")
        inner = self._choice()
        self._depth -= 1
        if not self._next(")"):
            raise self._error("a ( that is never closed")
        return _group(number, inner) if number else inner

    def _class(self) -> _Program:
        match = _CLASS.match(self._source, self._at)
        if match is None:
            raise self._error(r"a [ that is never closed; inside of [ ] write \[ for a bracket")
        written = match.group()
        if any(double in written for double in ("--", "&&", "~~", "||")):
            raise self._error("-- && ~~ || mean nothing inside of [ ]")
        try:
            program = self._test(written, 1)
        except re.error as error:
            raise self._error(str(error)) from None
        self._at = match.end()
        return program

    def _escaped(self) -> _Program:
        character = self._source[self._at + 1 : self._at + 2]
        if not character or (character.isalnum() and character not in _ESCAPES | {"b", "B"}):
            raise self._error(rf"\{character} is not among \d \w \s \D \W \S \b \B \n \t \r \f \v")
        self._at += 2
        if character in ("b", "B"):
            return self._test("\\" + character, 0)
        return self._test("\\" + character if character in _ESCAPES else re.escape(character), 1)

    def _test(self, written: str, n_chars: int) -> _Program:
        return [_Instruction(re.compile(written, self._flags), n_chars)]

    def _next(self, character: str) -> bool:
        is_next = self._source.startswith(character, self._at)
        self._at += is_next
        return is_next

    def _error(self, what: str) -> BadPattern:
        return BadPattern(f"character {self._at + 1}: {what}")


def _group(number: int, inner: _Program) -> _Program:
    return [_Instruction(mark="open", group=number), *inner, _Instruction(mark="close", group=number)]


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
    items, todo, known = set[str](), [0], set[int]()
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
