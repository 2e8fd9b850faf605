"""What is to be recorded: the questions of a file, and the settings that every run of a recording shares.

It knows lines and fields, and refuses to know servers and files. The settings travel with each
run in its `meta`, so that a recording can be resumed only as it was begun.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import msgspec

from suffice.episode.answer_forcing import N_RIVALS
from suffice.errors import ConfigError
from suffice.files import json_object
from suffice.scoring.base import Spec
from suffice.settings import Probe, Steps

RecordKind = Literal["reasoning", "samples"]
# Fields of a question's line that go into its request; those of the command come first.
SENT_ALONG = (
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "chat_template_kwargs",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionLine:
    """One line of the question file."""

    id: str
    task: str  # "": the line names none
    question: str  # what the user wrote last
    gold: str  # the right answer, as it is written
    body: Mapping[str, Any]  # messages, and the sampling fields that stood beside them


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingRecipe:
    """What makes two runs comparable: the same for all runs of one recording."""

    kind: RecordKind
    model: str
    scorer: Spec
    driver: str
    finish: str | None  # how a thought is closed for a probe; None: nothing is probed
    n_samples: int = 1  # kind "samples": answers a question
    temperature: float | None = None  # None: the question's own, else the server's default
    max_tokens: int | None = None  # None: likewise
    logprobs: bool = True  # ask for the log-probabilities of the run's own tokens
    top_logprobs: int = N_RIVALS  # rivals listed at each token of a probe, as live
    steps: Steps = field(default_factory=Steps)
    probe: Probe = field(default_factory=Probe)

    def as_data(self) -> dict[str, Any]:
        """Plain data, in a fixed order. Fields that change no run (time-outs) are left out."""
        data = asdict(self) | {"steps": msgspec.to_builtins(self.steps), "probe": msgspec.to_builtins(self.probe)}
        for name in ("timeout_s", "verified_by"):
            del data["probe"][name]
        return data

    @property
    def hash(self) -> str:
        """A short name of these settings."""
        return hashlib.blake2b(msgspec.json.encode(self.as_data()), digest_size=6).hexdigest()

    def body(self, asked: QuestionLine) -> dict[str, Any]:
        """The chat request for a question."""
        sent = {"model": self.model, "seed": recording_seed(asked.id), **asked.body}
        if self.temperature is not None:
            sent["temperature"] = self.temperature
        if self.max_tokens is not None:
            name = "max_completion_tokens" if "max_completion_tokens" in sent else "max_tokens"
            sent[name] = self.max_tokens
        if self.logprobs:
            sent |= {"logprobs": True, "top_logprobs": 1}
        return sent | {"stream": True, "stream_options": {"include_usage": True}}


def recording_seed(question_id: str) -> int:
    """The seed that a question is asked with: the same in every recording, so that a resumed one differs in nothing."""
    return int.from_bytes(hashlib.blake2b(question_id.encode(), digest_size=3).digest(), "big")


def read_recorded_questions(lines: Iterable[str], where: str) -> list[QuestionLine]:
    """Read JSON lines with `question` or `messages`, `gold`, and optionally `id`, `task` and sampling fields.

    A line without an id is named after its messages. Raises ConfigError with the line at fault.
    """
    found: list[QuestionLine] = []
    ids: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        asked = _read_line(line, f"{where}:{number}")
        if asked.id in ids:
            first = ids[asked.id]
            raise ConfigError(f"{where}:{number}: id {asked.id!r:.80} stands in line {first} already; ids are unique")
        ids[asked.id] = number
        found.append(asked)
    if not found:
        raise ConfigError(f"{where}: holds no question")
    return found


def _read_line(line: str, where: str) -> QuestionLine:
    item = json_object(line, where)
    messages, question = item.get("messages"), item.get("question")
    if isinstance(question, str) and "messages" not in item:
        messages = [{"role": "user", "content": question}]
    if not isinstance(messages, list) or not _are_messages(messages):
        raise ConfigError(f'{where}: has no question; need {{"question": "…"}} or messages with roles and text')
    known, gold = _text(item, "id", where), _text(item, "gold", where)
    if gold is None:
        raise ConfigError(f"{where}: has no gold; a trace says for every answer whether it is right")
    return QuestionLine(
        id=known if known is not None else _name_of(messages),
        task=_text(item, "task", where) or "",
        question=question if isinstance(question, str) else _last_said(messages),
        gold=gold,
        body={"messages": messages, **{k: item[k] for k in SENT_ALONG if k in item}},
    )


def _are_messages(messages: list[Any]) -> bool:
    return bool(messages) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and "content" in m for m in messages
    )


def _text(item: Mapping[str, Any], name: str, where: str) -> str | None:
    """A field that is text; a number is taken as it is written."""
    value = item.get(name)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise ConfigError(f"{where}: {name}: must be text, got {type(value).__name__}")


def _last_said(messages: list[dict[str, Any]]) -> str:
    content = next((m["content"] for m in reversed(messages) if m["role"] == "user"), messages[-1]["content"])
    if isinstance(content, list):
        parts = [p.get("text") for p in content if isinstance(p, dict)]
        return "".join(p for p in parts if isinstance(p, str))
    return content if isinstance(content, str) else ""


def _name_of(messages: object) -> str:
    return hashlib.blake2b(msgspec.json.encode(messages), digest_size=8).hexdigest()
