"""What an examination has seen so far, and how an experiment says what it saw. No behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from suffice.doctor.talk import StreamTranscript
from suffice.types import Verdict

COUNT = "Write the whole numbers from 1 to 200, one a line, as digits, and nothing else."
THINK = (
    "A shop sells 3 boxes of 12 pens each day from Monday to Friday. How many pens is that?"
    " Think step by step, then write only the final number."
)
THINK_CAP = 96  # tokens: enough to see a thought, and to see that it is cut short


@dataclass(frozen=True, slots=True)
class Saw:
    verdict: Verdict
    evidence: str  # one sentence with the numbers that were measured


@dataclass(slots=True, kw_only=True)
class Facts:
    """What later experiments build on. None: not seen, or not looked for yet."""

    owned_by: str = ""  # who serves the model, as the list of models says
    n_slots: int | None = None
    context_tokens: int | None = None
    thought: StreamTranscript | None = None  # the run without any budget, to compare with
    can_list_slots: bool = False
    reports_cache: bool = False  # does usage say what a cache served?


def parse_number(value: object) -> int | None:
    """A count as a server writes it; None: something else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def within(body: object, *path: str) -> object:
    for key in path:
        body = body.get(key) if isinstance(body, Mapping) else None
    return body


def ms(seconds: float | None) -> str:
    """A time for people: milliseconds, without a false precision."""
    return "unknown" if seconds is None else f"{seconds * 1e3:,.0f} ms"


def quoted(text: str, n_chars: int = 32) -> str:
    flat = " ".join(text.split())
    return repr(flat if len(flat) <= n_chars else flat[:n_chars] + "…")
