"""The runs that may be ended, and which token each must write next. Pure; knows neither vLLM nor torch."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

RUN_FIELD, TEXT_FIELD, TAG_FIELD, SIGNALS_FIELD = "suffice_run", "suffice_text", "suffice_tag", "suffice_signals"
MOST_CHARS = 256  # of a run's name, and of the text that ends its thought
MOST_RUNS = 4_096  # remembered: a preempted run comes back, and nothing says which runs do not
MOST_READINGS = 1_024  # of one run
# A thought that is cut in the middle of a number ends in another answer: it ends with its line, after so many tokens
# with its sentence, and after twice as many anywhere but in a number.
MOST_WAIT_TOKENS = 32
_ENDS_SENTENCE = re.compile(r"(?:[^\d\s][.!?]|[\u3002\uff01\uff1f])['\")\]*]*\s*\Z")
_ENDS_IN_NUMBER = re.compile(r"\d[.,:/]?\Z")
_READ_TOKENS = 4  # of the end of a thought, to see what ends there

Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Reading:
    """What the logits showed at the end of a line of a thought."""

    n_tokens: int  # generated so far
    end_margin: float  # nats: log-probability of the best next token minus that of the end of thought
    logprob: float | None  # mean log-probability of the line's own tokens; None: unknown


@dataclass(slots=True)
class Run:
    name: str
    forced: tuple[int, ...]  # tokens that end the thought, its closing tag last
    bare: tuple[int, ...]  # the same for a thought that has just ended a line, without the text's own line end
    tag: tuple[int, ...]  # the closing tag alone, by which the model ends the thought itself
    wants_signals: bool = False
    is_told: bool = False
    is_over: bool = False  # the thought has ended, or the forced text is complete
    told_at: int | None = None  # tokens generated when the engine first saw that it is to end; None: not yet
    start: int | None = None  # tokens generated before the first forced one; None: not begun
    readings: list[Reading] = field(default_factory=list)

    def next_forced(
        self, n_generated: int, output: Callable[[], Sequence[int]], text_of: Callable[[int], str]
    ) -> int | None:
        """Return the token that the run must write now; None: whatever the model chooses, until the thought may end.

        The place in the text follows from the number of tokens, so a step that is computed twice, as after a
        preemption or in a prompt that is read in parts, forces the same token.

        output   the tokens generated so far; called only until the forcing begins
        text_of  the text of a token
        """
        if not self.is_told or self.is_over:
            return None
        if self.start is None or n_generated < self.start:
            self.start = self._place_in(output(), text_of)
            if self.start is None:
                return None
        place = n_generated - self.start
        if place >= len(self.forced):
            self.is_over = True
            return None
        return self.forced[place]

    def _place_in(self, output: Sequence[int], text_of: Callable[[int], str]) -> int | None:
        """Return where the forced text begins; None if not here, or if the model has written the tag itself."""
        self.told_at = len(output) if self.told_at is None else self.told_at
        if _holds(output, self.tag):
            self.is_over = True  # the model was faster
            return None
        begun = next((n for n in range(len(self.tag) - 1, 0, -1) if tuple(output[-n:]) == self.tag[:n]), 0)
        if begun:  # it has just begun to write the tag: complete it, and write nothing before it
            self.forced = self.tag
            return len(output) - begun
        if output and "\n" in text_of(output[-1]):
            self.forced = self.bare
        elif not _may_end("".join(map(text_of, output[-_READ_TOKENS:])), len(output) - self.told_at):
            return None
        return len(output)


def _may_end(text: str, n_waited: int) -> bool:
    """Return whether a thought whose end is `text`, in the middle of a line, may end after so many tokens."""
    if n_waited < 2 * MOST_WAIT_TOKENS:
        return n_waited >= MOST_WAIT_TOKENS and _ENDS_SENTENCE.search(text) is not None
    return _ENDS_IN_NUMBER.search(text) is None


def _holds(tokens: Sequence[int], part: tuple[int, ...]) -> bool:
    n = len(part)
    return any(tuple(tokens[at : at + n]) == part for at in range(len(tokens) - n + 1))


class RunTable:
    """All runs of one worker by name. The listener's thread marks them; the engine's thread reads them."""

    def __init__(self, encode: Encode) -> None:
        self._encode, self._lock = encode, threading.Lock()
        self._runs: OrderedDict[str, Run] = OrderedDict()

    def enter(self, arguments: Mapping[str, Any] | None) -> Run | None:
        """Return the run that a request's extra arguments name, the same one as before a preemption; None: no name."""
        if not arguments or RUN_FIELD not in arguments:
            return None
        name, tag = str(arguments[RUN_FIELD]), str(arguments.get(TAG_FIELD) or "</think>")
        text = str(arguments.get(TEXT_FIELD) or tag)
        with self._lock:
            if (run := self._runs.get(name)) is not None:
                return run
            run = Run(
                name=name,
                forced=tuple(self._encode(text)),
                bare=tuple(self._encode(text.lstrip("\n") or tag)),
                tag=tuple(self._encode(tag)),
                wants_signals=bool(arguments.get(SIGNALS_FIELD)),
            )
            self._runs[name] = run
            if len(self._runs) > MOST_RUNS:
                self._runs.popitem(last=False)
            return run

    def end(self, name: str) -> bool:
        """Mark a run's thought to be ended; return False for an unknown run or one whose thought is over."""
        with self._lock:
            run = self._runs.get(name)
            if run is None or run.is_over:
                return False
            run.is_told = True
            return True

    def readings(self, name: str, after: int) -> list[Reading] | None:
        """Return what was read of a run at more than `after` tokens; None for an unknown run."""
        run = self._runs.get(name)
        return None if run is None else [one for one in run.readings if one.n_tokens > after]


def check_arguments(arguments: Mapping[str, Any] | None, n: int) -> None:
    """Raise ValueError, which vLLM answers with 400, for arguments that name no single run."""
    if not arguments or RUN_FIELD not in arguments:
        return
    name = arguments[RUN_FIELD]
    if not isinstance(name, str) or not 0 < len(name) <= MOST_CHARS:
        raise ValueError(f"vllm_xargs.{RUN_FIELD}: needs a name of 1 to {MOST_CHARS} characters")
    for field_name in (TEXT_FIELD, TAG_FIELD):
        text = arguments.get(field_name, "")
        if not isinstance(text, str) or len(text) > MOST_CHARS:
            raise ValueError(f"vllm_xargs.{field_name}: needs a text of at most {MOST_CHARS} characters")
    if n != 1:
        raise ValueError(f"vllm_xargs.{RUN_FIELD}: one name is one run; n must be 1, not {n}")


def refusal(*, tensor_parallel: int, pipeline_parallel: int, speculates: bool) -> str | None:
    """Return why this set-up cannot be served, in one sentence; None if it can.

    Each worker hears of a stop by itself, so two workers of one run could force it at different steps and continue
    two different texts.
    """
    if tensor_parallel != 1 or pipeline_parallel != 1:
        return (
            "suffice-vllm: needs --tensor-parallel-size 1 and --pipeline-parallel-size 1, because workers of one model"
            f" could act at different steps (got {tensor_parallel} and {pipeline_parallel}); --data-parallel-size works"
        )
    if speculates:
        return "suffice-vllm: does not work with speculative decoding; start vLLM without --speculative-config"
    return None
