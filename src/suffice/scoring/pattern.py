"""Patterns from a settings file, matched in time that is linear in the text whatever both hold.

Python's own `re` backtracks, and takes exponential time on innocent-looking patterns such as
`(a+)+b`. This matcher backtracks too, but remembers where it failed, and whether a place in the
pattern fits at a place in the text never depends on how one came there. So it takes each pair of
places at most once and gives what `re` gives. What would break that (references back to a group, looking
ahead or behind) is refused when the pattern is read, as RE2 does, and so are very long patterns.

Knows patterns and texts; refuses to know answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

READ_CHARS = 4_000  # the end of a text, where its answer stands; bounds the time together with the next
MAX_INSTRUCTIONS = 200  # of the compiled pattern; `{2,5}` counts as five copies
_MAX_DEPTH = 20  # brackets inside brackets
_MAX_PATTERN_CHARS = 1_000

_QUANTIFIER = re.compile(r"(?:([*+?])|\{(\d{1,3})(?:(,)(\d{1,3})?)?\})(\?)?")
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\\[])*\]", re.DOTALL)
_GROUP = re.compile(r"\((?:\?(?::|P<([A-Za-z_]\w{0,40})>))?")
_ESCAPES = frozenset("dDwWsSntrfv")


class BadPattern(ValueError):
    """The pattern cannot be used. The message says where and why, and what may be written."""


@dataclass(frozen=True, slots=True)
class _Item:
    """One character of a kind: a letter, a class, a dot."""

    written: str


@dataclass(frozen=True, slots=True)
class _Edge:
    """A place between characters: `^`, `$` or a word boundary."""

    written: str


@dataclass(frozen=True, slots=True)
class _Group:
    number: int | None  # None: it only groups
    inner: _Node


@dataclass(frozen=True, slots=True)
class _Sequence:
    parts: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Choice:
    options: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Repeat:
    inner: _Node
    low: int
    high: int | None  # None: without end
    greedy: bool


_Node: TypeAlias = _Item | _Edge | _Group | _Sequence | _Choice | _Repeat


@dataclass(slots=True)
class _Instruction:
    """One step of the matcher."""

    kind: Literal["item", "edge", "split", "open", "close", "done"]
    test: re.Pattern[str] | None = None  # of an item or an edge
    then: tuple[int, ...] = ()  # of a split: where to go on, the preferred way first


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern that is ready to match. Build it with `compile_pattern`."""

    source: str
    _program: tuple[_Instruction, ...] = field(repr=False)
    _first: re.Pattern[str] | None = field(repr=False)  # what a match can begin with; None: with anything

    def last(self, text: str) -> str | None:
        """The group of the last match in the last 4,000 characters; None: there is none.

        The group is the one named `answer`, else the first one, else the whole match.
        """
        matched = None
        for begin, end in self._spans(text[-READ_CHARS:]):
            matched = (begin, end)
        return None if matched is None else text[-READ_CHARS:][matched[0] : matched[1]]

    def _spans(self, text: str) -> Iterator[tuple[int, int]]:
        """The group's place in each match, from left to right; matches do not overlap."""
        reached: dict[int, int] = {}  # (instruction, place) that fits nowhere → how it was reached
        at = 0
        while at <= len(text):
            if self._first is not None:
                begins = self._first.search(text, at)
                if begins is None:
                    return
                at = begins.start()
            matched = self._match(text, at, reached)
            if matched is None:
                at += 1
                continue
            end, group = matched
            if group is not None:
                yield group
            at = max(end, at + 1)

    def _match(self, text: str, start: int, reached: dict[int, int]) -> tuple[int, tuple[int, int] | None] | None:
        """The match that begins at `start`: (its end, the group's place); None: there is none."""
        program, width = self._program, len(text) + 1
        todo = [(0, start, -1, -1, -1)]  # instruction, place, reached from, where the group began and ended
        while todo:
            step, at, origin, begin, end = todo.pop()
            key = step * width + at
            if key in reached:
                continue
            reached[key] = origin
            instruction = program[step]
            kind = instruction.kind
            if instruction.test is not None:
                if instruction.test.match(text, at) is not None:
                    todo.append((step + 1, at + (kind == "item"), key, begin, end))
            elif kind == "split":
                todo.extend((there, at, key, begin, end) for there in reversed(instruction.then))
            elif kind == "open":
                todo.append((step + 1, at, key, at, -1))
            elif kind == "close":
                todo.append((step + 1, at, key, begin, at))
            else:
                while key >= 0:  # the way that led here fits; everything else that was tried does not
                    key = reached.pop(key)
                return at, (begin, end) if end >= 0 else None
        return None


def compile_pattern(source: str, *, ignore_case: bool = False) -> Pattern:
    r"""Read a pattern. Raises BadPattern.

    Taken: letters, ``.``, classes such as ``[^,]``, ``\d \w \s \D \W \S \n \t``, ``\b \B``, ``^`` and ``$`` at
    the ends of lines, ``|``, groups ``( )``, ``(?: )`` and ``(?P<answer> )``, and ``* + ? {2} {2,} {2,5}``, each also
    with a ``?`` behind it, which takes as little as possible. All mean what they mean in Python with `re.MULTILINE`.

    source  at most 1,000 characters
    """
    if len(source) > _MAX_PATTERN_CHARS:
        raise BadPattern(f"{len(source):,} characters; at most {_MAX_PATTERN_CHARS:,}")
    reader = _Reader(source)
    node = reader.read()
    wanted = reader.names.get("answer", 1 if reader.n_groups else None)
    if wanted is None:
        node, wanted = _Group(1, node), 1
    if _size(node) >= MAX_INSTRUCTIONS:
        raise BadPattern(f"too long once repetitions such as {{2,5}} are written out; at most {MAX_INSTRUCTIONS} steps")
    flags = re.MULTILINE | (re.IGNORECASE if ignore_case else re.NOFLAG)
    program: list[_Instruction] = []
    _emit(node, program, wanted, flags)
    program.append(_Instruction("done"))
    first = _first_items(node)
    begins = re.compile("|".join(sorted(first)), flags) if first is not None else None
    return Pattern(source, tuple(program), begins)


class _Reader:
    """Reads a pattern from left to right."""

    def __init__(self, source: str) -> None:
        self._source, self._at = source, 0
        self._depth = 0
        self.n_groups = 0
        self.names: dict[str, int] = {}

    def read(self) -> _Node:
        """The whole pattern."""
        node = self._choice()
        if self._at < len(self._source):
            raise self._wrong("a ) that closes nothing")
        return node

    def _choice(self) -> _Node:
        options = [self._sequence()]
        while self._next("|"):
            options.append(self._sequence())
        return options[0] if len(options) == 1 else _Choice(tuple(options))

    def _sequence(self) -> _Node:
        parts: list[_Node] = []
        while self._at < len(self._source) and self._source[self._at] not in "|)":
            parts.append(self._piece())
        return _Sequence(tuple(parts))

    def _piece(self) -> _Node:
        atom = self._atom()
        matched = _QUANTIFIER.match(self._source, self._at)
        if matched is None:
            if self._source[self._at : self._at + 1] == "{":
                raise self._wrong(r"a { that repeats nothing; write \{ for a brace")
            return atom
        if isinstance(atom, _Edge) or _may_be_empty(atom):
            raise self._wrong("repeats something that can be empty")
        self._at = matched.end()
        if self._source[self._at : self._at + 1] in ("*", "+", "?"):
            raise self._wrong("repeats a repetition")
        sign, low, comma, high, lazy = matched.groups()
        if sign is not None:
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[sign]
        else:
            least = int(low)
            most = int(high) if high is not None else None if comma else least
        if most is not None and (most < least or most == 0):
            raise self._wrong(f"{matched.group()} repeats at most {most} times")
        return _Repeat(atom, least, most, lazy is None)

    def _atom(self) -> _Node:
        character = self._source[self._at]
        if character == "(":
            return self._group()
        if character == "[":
            return self._class()
        if character == "\\":
            return self._escaped()
        if character in "*+?":
            raise self._wrong(f"a {character} that repeats nothing")
        self._at += 1
        if character in "^$":
            return _Edge(character)
        return _Item(character if character == "." else re.escape(character))

    def _group(self) -> _Node:
        matched = _GROUP.match(self._source, self._at)
        if matched is None or self._source[matched.end() : matched.end() + 1] == "?":
            raise self._wrong("of groups with (? only (?: ) and (?P<name> ) can be matched in linear time")
        self._at, name, number = matched.end(), matched.group(1), None
        if matched.group() != "(?:":
            self.n_groups += 1
            number = self.n_groups
            if name is not None:
                if name in self.names:
                    raise self._wrong(f"two groups named {name}")
                self.names[name] = number
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self._wrong(f"more than {_MAX_DEPTH} groups inside each other")
        inner = self._choice()
        self._depth -= 1
        if not self._next(")"):
            raise self._wrong("a ( that is never closed")
        return _Group(number, inner)

    def _class(self) -> _Node:
        matched = _CLASS.match(self._source, self._at)
        if matched is None:
            raise self._wrong(r"a [ that is never closed; inside of [ ] write \[ for a bracket")
        written = matched.group()
        if any(double in written for double in ("--", "&&", "~~", "||")):
            raise self._wrong("-- && ~~ || mean nothing inside of [ ]")
        try:
            re.compile(written)
        except re.error as error:
            raise self._wrong(str(error)) from None
        self._at = matched.end()
        return _Item(written)

    def _escaped(self) -> _Node:
        character = self._source[self._at + 1 : self._at + 2]
        self._at += 2
        if character in ("b", "B"):
            return _Edge("\\" + character)
        if character in _ESCAPES or (character and not character.isalnum()):
            return _Item("\\" + character if character in _ESCAPES else re.escape(character))
        self._at -= 2
        raise self._wrong(rf"\{character} is not among \d \w \s \D \W \S \b \B \n \t \r \f \v")

    def _next(self, character: str) -> bool:
        if self._source[self._at : self._at + 1] != character:
            return False
        self._at += 1
        return True

    def _wrong(self, what: str) -> BadPattern:
        return BadPattern(f"character {self._at + 1}: {what}")


def _may_be_empty(node: _Node) -> bool:
    match node:
        case _Item():
            return False
        case _Edge():
            return True
        case _Group(_, inner):
            return _may_be_empty(inner)
        case _Sequence(parts):
            return all(map(_may_be_empty, parts))
        case _Choice(options):
            return any(map(_may_be_empty, options))
        case _Repeat(inner, low):
            return low == 0 or _may_be_empty(inner)


def _size(node: _Node) -> int:
    """How many instructions `_emit` makes of it, at least."""
    match node:
        case _Item() | _Edge():
            return 1
        case _Group(_, inner):
            return _size(inner) + 2
        case _Sequence(parts):
            return sum(map(_size, parts))
        case _Choice(options):
            return sum(map(_size, options)) + 2 * len(options)
        case _Repeat(inner, low, high):
            return (_size(inner) + 1) * (low + 1 if high is None else high) + 1


def _emit(node: _Node, program: list[_Instruction], wanted: int, flags: re.RegexFlag) -> None:
    match node:
        case _Item(written):
            program.append(_Instruction("item", re.compile(written, flags)))
        case _Edge(written):
            program.append(_Instruction("edge", re.compile(written, flags)))
        case _Group(number, inner):
            if number != wanted:
                _emit(inner, program, wanted, flags)
                return
            program.append(_Instruction("open"))
            _emit(inner, program, wanted, flags)
            program.append(_Instruction("close"))
        case _Sequence(parts):
            for part in parts:
                _emit(part, program, wanted, flags)
        case _Choice(options):
            _emit_choice(options, program, wanted, flags)
        case _Repeat():
            _emit_repeat(node, program, wanted, flags)


def _emit_choice(options: tuple[_Node, ...], program: list[_Instruction], wanted: int, flags: re.RegexFlag) -> None:
    split = _Instruction("split")
    program.append(split)
    begins, leaves = [], []
    for option in options:
        begins.append(len(program))
        _emit(option, program, wanted, flags)
        leaves.append(_Instruction("split"))
        program.append(leaves[-1])
    split.then = tuple(begins)
    for leave in leaves:
        leave.then = (len(program),)


def _emit_repeat(node: _Repeat, program: list[_Instruction], wanted: int, flags: re.RegexFlag) -> None:
    for _ in range(node.low):
        _emit(node.inner, program, wanted, flags)
    splits = []
    for _ in range(1 if node.high is None else node.high - node.low):
        splits.append((len(program), _Instruction("split")))
        program.append(splits[-1][1])
        _emit(node.inner, program, wanted, flags)
    if node.high is None:
        program.append(_Instruction("split", then=(splits[0][0],)))
    for at, split in splits:
        split.then = (at + 1, len(program)) if node.greedy else (len(program), at + 1)


def _first_items(node: _Node) -> frozenset[str] | None:
    """What a match can begin with; None: it can be empty, or begins with an edge."""
    match node:
        case _Item(written):
            return frozenset({written})
        case _Edge():
            return None
        case _Group(_, inner):
            return _first_items(inner)
        case _Repeat(inner, low):
            return _first_items(inner) if low else None
        case _Choice(options):
            matched = [_first_items(option) for option in options]
            known = [items for items in matched if items is not None]
            return frozenset().union(*known) if len(known) == len(matched) else None
        case _Sequence(parts):
            begins: frozenset[str] = frozenset()
            for part in parts:
                if isinstance(part, _Repeat) and part.low == 0:
                    begins |= _first_items(part.inner) or frozenset()
                    continue
                items = _first_items(part)
                return None if items is None else begins | items
            return None
