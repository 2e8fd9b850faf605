"""vLLM's own log lines, read as calls: what `--enable-log-requests --enable-log-outputs` writes.

    Received request ID: prompt: '…', params: SamplingParams(n=1, …), prompt_token_ids: […], …
    Request ID details: prompt: '…', …             newer versions, at level DEBUG
    Generated response ID: output: '…', output_token_ids: […], finish_reason: stop

Taken from vllm/entrypoints/logger.py of the vLLM project; not tried on a live server's log. A line
carries no year, so times are used only for how far apart they are.
"""

from __future__ import annotations

import ast
import calendar
import re
from collections.abc import Iterable, Iterator

from suffice.replay.logs.formats import THINK, LoggedCall, prompt_key

_STRING = r"(?P<{}>'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|None)"
_HEAD = re.compile(r"\b(?:INFO|DEBUG|WARNING)\s+(?P<month>\d\d)-(?P<day>\d\d)\s+(?P<h>\d\d):(?P<m>\d\d):(?P<s>\d\d)")
_ASKED = re.compile(r"\b(?:Received request|Request) (?P<id>\S+?):? (?:details: )?prompt: " + _STRING.format("text"))
_TOLD = re.compile(
    r"\bGenerated response (?P<id>\S+?)(?P<stream> \(streaming (?:delta|complete)\))?: output: "
    + _STRING.format("text")
    + r"(?:, output_token_ids: (?P<tokens>\[[^\]]*\]|None|\([^)]*\)))?"
)
_PROMPT_IDS = re.compile(r"prompt_token_ids: \[(?P<ids>[\d, ]*)\]")
LINE_MARK = re.compile(r"\b(?:Received request|Generated response) \S+")
YEAR = 2000  # any leap year: only differences count


def read_vllm_log(lines: Iterable[str]) -> Iterator[LoggedCall]:
    """The calls whose answer was logged. Pieces of a stream are left out: its whole answer follows them."""
    asked: dict[str, tuple[str, int | None]] = {}
    for line in lines:
        if (found := _ASKED.search(line)) is not None:
            ids = _PROMPT_IDS.search(line)
            n_prompt = None if ids is None else len([n for n in ids["ids"].split(",") if n.strip()])
            asked[found["id"]] = prompt_key(_unquoted(found["text"])), n_prompt
        elif (found := _TOLD.search(line)) is not None and found["stream"] != " (streaming delta)":
            prompt, n_prompt = asked.pop(found["id"], ("", None))
            said = _unquoted(found["text"])
            thought, closed, text = said.partition(THINK[1])
            yield LoggedCall(
                prompt=prompt,
                texts=(text if closed else said,),
                thoughts=(thought.removeprefix(THINK[0]) if closed else "",),
                prompt_tokens=n_prompt,
                completion_tokens=_length(found["tokens"]),
                at_s=_moment(line),
            )


def _unquoted(text: str) -> str:
    """A string as Python's repr wrote it."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, str) else ""


def _length(listed: str | None) -> int | None:
    if listed is None or listed == "None":
        return None
    return len([one for one in listed.strip("[]()").split(",") if one.strip()])


def _moment(line: str) -> float | None:
    head = _HEAD.search(line)
    if head is None:
        return None
    month, day, hours, minutes, seconds = (int(head[name]) for name in ("month", "day", "h", "m", "s"))
    return float(calendar.timegm((YEAR, month, day, hours, minutes, seconds)))
