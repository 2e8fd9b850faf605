"""Training lines for a language model from runs cut at a stop, so that its answers survive early termination.

A supervised line teaches the right answer from the reasoning so far; a preference line prefers closing at the cut where
that kept the answer, and continuing where it lost it. No prompt is in both files, and no line has text that looks like
a key.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, TypeAlias

from suffice.policy.folded_version import place_of

Format: TypeAlias = Literal["supervised", "preference"]
ThoughtAs: TypeAlias = Literal["tags", "field"]
Seen: TypeAlias = Literal["audit", "observed", "stopped", "recorded"]
Line: TypeAlias = Mapping[str, Any]  # one JSON object; each key has its own type
Message: TypeAlias = Mapping[str, Any]  # as in OpenAI's API

# Patterns of keys and passwords. A false match costs one prompt; a key in a model's weights costs much more.
_SECRETS: Final = re.compile(
    r"\bsk-[A-Za-z0-9_-]{16,}|\b(?:gh[pousr]|glpat|xox[abprs]|hf|npm)[_-][A-Za-z0-9_-]{16,}|\bgithub_pat_\w{20,}"
    r"|\bAKIA[0-9A-Z]{16}\b|\bAIza[\w-]{30,}|-----BEGIN [A-Z ]*PRIVATE KEY|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\."
    r"|\b[Bb]earer\s+[\w.~+/-]{20,}"
    r"|\b(?:password|passwd|secret|api[_-]?key|access[_-]?token)[\\\"']*\s*[:=]\s*[\\\"']*[^\s\\\"']{8,}",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRecord:
    """Where and by what a run was cut; part of every line."""

    policy_version: str
    certified: bool  # that version was certified at that level at the time
    level: int | None  # None: the version has no levels
    step: int  # 1 is the first
    n_steps: int | None  # of the full run; None: unknown, because it was stopped
    seen: Seen  # how the run is known
    model: str
    exact: bool = True  # False: the cut was estimated from token counts


@dataclass(frozen=True, slots=True, kw_only=True)
class CutRun:
    messages: tuple[Message, ...]  # the prompt
    thought: str  # up to the cut
    rest: str | None  # after it; None: never generated, or not available
    answer: str  # the right one to teach, verbatim if available
    stopped_answer: str | None  # the answer after the cut; None: not available
    full_answer: str | None  # of the full run; None: unknown because of the stop
    kept: bool  # the stop's answer is right
    labelled: bool  # by a label; else by agreement with the full run
    stop: StopRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class LineFormat:
    format: Format = "supervised"
    thought_as: ThoughtAs = "tags"  # inside the content, or in `reasoning_content`
    think_open: str = "<think>\n"
    think_close: str = "\n</think>\n\n"
    val_share: float = 0.1  # of prompts, in [0, 1)


@dataclass(slots=True)
class TrainingPairs:
    train: list[Line] = field(default_factory=list)
    val: list[Line] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)  # reason: cuts


def make_pairs(cuts: Iterable[CutRun], shape: LineFormat) -> TrainingPairs:
    pairs, seen = TrainingPairs(), set[str]()
    for cut in cuts:
        why = _unfit(cut, shape)
        if why is not None:
            pairs.left_out[why] += 1
            continue
        group = prompt_group(cut.messages)
        origin = {"labelled": cut.labelled, "prompt_group": group, "stop": asdict(cut.stop)}
        line = {**_trainer_fields(cut, shape), "cut": "kept" if cut.kept else "lost", **origin}
        twin = _digest(f"{group}\0{cut.thought.strip()}\0{cut.answer.strip()}", 16)
        if twin in seen:
            pairs.left_out["the same prompt, thought and answer again"] += 1
            continue
        seen.add(twin)
        (pairs.val if place_of(group, purpose="finetune") < shape.val_share else pairs.train).append(line)
    return pairs


def prompt_group(messages: Sequence[Message]) -> str:
    """Hash a prompt without case, white space and Unicode form, so that near duplicates stay together."""
    words = [f"{message.get('role')}: {message_text(message.get('content'))}" for message in messages]
    plain = " ".join(unicodedata.normalize("NFKC", "\n".join(words)).casefold().split())
    return _digest(plain, 8)


def _digest(text: str, n_bytes: int) -> str:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=n_bytes).hexdigest()


def message_text(content: object) -> str:
    if isinstance(content, str):
        return content
    parts = [part.get("text") for part in content if isinstance(part, Mapping)] if isinstance(content, list) else []
    return "\n".join(part for part in parts if isinstance(part, str))


def holds_secret(text: str) -> bool:
    return _SECRETS.search(text) is not None


def _unfit(cut: CutRun, shape: LineFormat) -> str | None:
    if not cut.messages or not any(message_text(message.get("content")).strip() for message in cut.messages):
        return "no prompt"
    if not cut.thought.strip():
        return "no thought before the stop"
    if not cut.answer.strip():
        return "no answer to teach"
    if shape.format == "preference" and (cut.rest is None or not cut.rest.strip()):
        return "nothing known behind the stop, which a preference needs"
    if shape.format == "preference" and cut.stopped_answer is None:
        return "no answer at the stop, which a preference needs"
    tags = [tag for tag in (shape.think_open.strip(), shape.think_close.strip()) if tag]
    if shape.thought_as == "tags" and any(tag in cut.thought + (cut.rest or "") for tag in tags):
        return "a tag inside the thought"
    texts = [message_text(message.get("content")) for message in cut.messages]
    texts += [json.dumps(dict(message), ensure_ascii=False) for message in cut.messages]  # tool calls, names …
    texts += [cut.thought, cut.rest or "", cut.answer, cut.stopped_answer or "", cut.full_answer or ""]
    return "holds what looks like a key" if any(map(holds_secret, texts)) else None


def _trainer_fields(cut: CutRun, shape: LineFormat) -> Line:
    prompt = [dict(message) for message in cut.messages]
    if shape.format == "supervised":
        return {"messages": [*prompt, _assistant(cut.thought, cut.answer, shape)]}
    at_cut = _assistant(cut.thought, cut.answer if cut.kept else cut.stopped_answer or "", shape)
    in_full = _assistant(cut.thought + (cut.rest or ""), cut.full_answer or cut.answer, shape)
    chosen, rejected = (at_cut, in_full) if cut.kept else (in_full, at_cut)
    return {"prompt": prompt, "chosen": [chosen], "rejected": [rejected]}


def _assistant(thought: str, answer: str, shape: LineFormat) -> Message:
    if shape.thought_as == "field":
        return {"role": "assistant", "reasoning_content": thought, "content": answer}
    return {"role": "assistant", "content": f"{shape.think_open}{thought.strip()}{shape.think_close}{answer}"}
