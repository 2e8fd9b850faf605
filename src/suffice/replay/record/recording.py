"""The questions, the settings that all runs of a recording share, and the recording's file.

A crash neither loses nor repeats a finished run: each is synced as one line of `OUT.part`, and every orderly end packs
all lines into `OUT` atomically.
"""

from __future__ import annotations

import gzip
import hashlib
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from suffice.episode.proposer import LISTED_TOKENS
from suffice.errors import ConfigError, StoreError
from suffice.files import json_object, open_unpacked, whole_file
from suffice.replay.logs import text_of
from suffice.replay.traces.rows import RunLog, open_packed
from suffice.scoring.base import Spec
from suffice.settings import Probe, Steps
from suffice.store.database.presence import try_lock
from suffice.upstream.continuation import N_RIVALS

RecordKind = Literal["reasoning", "samples"]
# Fields of a question's line that go into its request; options of the command take precedence.
SENT_ALONG = ("max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "seed", "chat_template_kwargs")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionLine:
    id: str
    task: str  # "": none
    question: str  # the last user message
    gold: str  # the correct answer, as written
    body: Mapping[str, Any]  # messages and sampling fields


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingRecipe:
    """The settings that make runs comparable: equal for all runs of one recording."""

    kind: RecordKind
    model: str
    scorer: Spec
    driver: str
    finish: str | None  # how a probe closes the reasoning; None: no probes
    n_samples: int = 1  # for kind "samples": answers per question
    temperature: float | None = None  # None: that of the question, else the server's default
    max_tokens: int | None = None  # None: likewise
    logprobs: bool = True  # request log-probabilities of the run's own tokens
    top_logprobs: int = N_RIVALS  # alternatives listed per token of a probe, as live
    steps: Steps = field(default_factory=Steps)
    probe: Probe = field(default_factory=Probe)

    def as_data(self) -> dict[str, Any]:
        """Plain data in a fixed order, without fields that do not change runs, such as time-outs."""
        data = asdict(self) | {"steps": msgspec.to_builtins(self.steps), "probe": msgspec.to_builtins(self.probe)}
        for name in ("timeout_s", "verified_by"):
            del data["probe"][name]
        return data

    @property
    def hash(self) -> str:
        return hashlib.blake2b(msgspec.json.encode(self.as_data()), digest_size=6).hexdigest()

    def body(self, question: QuestionLine) -> dict[str, Any]:
        sent = {"model": self.model, "seed": recording_seed(question.id), **question.body}
        if self.temperature is not None:
            sent["temperature"] = self.temperature
        if self.max_tokens is not None:
            name = "max_completion_tokens" if "max_completion_tokens" in sent else "max_tokens"
            sent[name] = self.max_tokens
        if self.logprobs:
            sent |= {"logprobs": True, "top_logprobs": LISTED_TOKENS if self.kind == "reasoning" else 1}
        return sent | {"stream": True, "stream_options": {"include_usage": True}}


def recording_seed(question_id: str) -> int:
    """The sampling seed of a question, equal in every recording and after a resume."""
    return int.from_bytes(hashlib.blake2b(question_id.encode(), digest_size=3).digest(), "big")


def read_recorded_questions(lines: Iterable[str], where: str) -> list[QuestionLine]:
    """Read JSON lines with `question` or `messages`, and `gold`; `id` defaults to a hash. Raise ConfigError."""
    questions: list[QuestionLine] = []
    ids: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        question = _read_line(line, f"{where}:{number}")
        if question.id in ids:
            problem = f"id {question.id!r:.80} is already used in line {ids[question.id]}; ids must be unique"
            raise ConfigError(f"{where}:{number}: {problem}")
        ids[question.id] = number
        questions.append(question)
    if not questions:
        raise ConfigError(f"{where}: contains no questions")
    return questions


def _read_line(line: str, where: str) -> QuestionLine:
    item = json_object(line, where)
    messages, question = item.get("messages"), item.get("question")
    if isinstance(question, str) and "messages" not in item:
        messages = [{"role": "user", "content": question}]
    listed = messages if isinstance(messages, list) else []
    if not listed or not all(isinstance(m, dict) and isinstance(m.get("role"), str) and "content" in m for m in listed):
        raise ConfigError(f'{where}: has no question; need {{"question": "…"}} or messages with roles and text')
    known, gold = _text(item, "id", where), _text(item, "gold", where)
    if gold is None:
        raise ConfigError(f"{where}: has no gold; a trace records for every answer whether it is correct")
    return QuestionLine(
        id=known if known is not None else hashlib.blake2b(msgspec.json.encode(messages), digest_size=8).hexdigest(),
        task=_text(item, "task", where) or "",
        question=question if isinstance(question, str) else _last_user_text(listed),
        gold=gold,
        body={"messages": messages, **{k: item[k] for k in SENT_ALONG if k in item}},
    )


def _text(item: Mapping[str, Any], name: str, where: str) -> str | None:
    value = item.get(name)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise ConfigError(f"{where}: {name}: must be text, got {type(value).__name__}")


def _last_user_text(messages: list[dict[str, Any]]) -> str:
    return text_of(next((m["content"] for m in reversed(messages) if m["role"] == "user"), messages[-1]["content"]))


@contextmanager
def open_recording(out: Path, recipe: RecordingRecipe) -> Iterator[RunLog]:
    """The log of a recording, whose runs are packed into `out` at the end.

    Raise ConfigError when the file was recorded with other settings, TraceError when it is no recording, and StoreError
    when it cannot be used.
    """
    part = out.with_name(out.name + ".part")
    with ExitStack() as opened:
        try:
            if not part.exists() and out.exists():
                _unpack(out, part)
            log = opened.enter_context(RunLog(part))
        except OSError as error:
            raise StoreError(f"{part}: cannot be used ({error.strerror or error})") from None
        if not try_lock(log.descriptor):
            raise StoreError(f"{part}: another recorder is writing to it; wait for it to finish, or stop it")
        _check_settings(log, out, recipe)
        try:
            yield log
        finally:  # stay locked until the file is packed
            if log.ids:
                _pack(part, out)
            else:
                part.unlink(missing_ok=True)


def _check_settings(log: RunLog, out: Path, recipe: RecordingRecipe) -> None:
    other = next((run for _, _, run, _ in log.ids if run != recipe.hash), None)
    if other is None:
        return
    with log.path.open("rb") as lines:
        row = next(row for row in map(msgspec.json.decode, lines) if row["run"] == other)
    difference = describe_difference(recorded_with(row.get("meta")), recipe.as_data())
    raise ConfigError(
        f"{out}: was recorded with other settings: {difference}; record with those, or name another file with --out"
    )


def _unpack(out: Path, part: Path) -> None:
    try:
        with whole_file(part) as draft, draft.open("wb") as plain, open_unpacked(out) as packed:
            shutil.copyfileobj(packed, plain)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise StoreError(f"{out}: is damaged ({error})") from None


def _pack(part: Path, out: Path) -> None:
    with whole_file(out) as draft, open_packed(draft, gzipped=out.suffix == ".gz") as packed, part.open("rb") as lines:
        packed.writelines(line for line in lines if line.endswith(b"\n"))
    part.unlink()


def recorded_with(meta: str | None) -> Mapping[str, Any]:
    """The settings in a run's `meta`; empty if `suffice record` did not record it."""
    try:
        settings = msgspec.json.decode(meta or "{}")["recorded_with"]
    except (msgspec.DecodeError, KeyError, TypeError):
        return {}
    return settings if isinstance(settings, Mapping) else {}


def describe_difference(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> str:
    if not theirs:
        return "it does not record which"
    differences = []
    for name, value in mine.items():
        other = theirs.get(name)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            pairs = [(f"{name}.{key}", other.get(key), value[key]) for key in value]
        else:
            pairs = [(name, other, value)]
        differences += [f"{what} was {old!r} and is now {new!r}" for what, old, new in pairs if old != new]
    return ", ".join(differences[:3]) or "by another version of suffice"
