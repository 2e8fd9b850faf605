"""Runs cut at their stop, from the event log with the texts that its owner supplies, or from recorded traces.

A line is used only with consent, and a withdrawal beats every agreement. Whether a cut kept the answer is known for
full
runs, and for stopped runs only where a label says that their answer is right. What a wrong stopped run would have
answered is unknown, so it is left out, never guessed.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec

from suffice.assurance.runs import Match, measure_run
from suffice.errors import ConfigError
from suffice.files import json_object, open_unpacked
from suffice.learn.dataset import by_design, fate
from suffice.policy.protocol import Policy
from suffice.replay.logs import read_openai
from suffice.replay.traces.columns import Batch
from suffice.replay.traces.read import read_traces
from suffice.signals.observe import Observer
from suffice.store.database.views import EpisodeWithLabels
from suffice.types import Outcome, Request
from suffice_finetune.pairs import CutRun, Seen, StopRecord

_IDS: Final = ("episode_id", "response_id", "question_key")
_YES: Final = frozenset({True, "true", "yes"})
_NO: Final = frozenset({False, "false", "no"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """The owner's text of one run or of one prompt. None: not available."""

    messages: tuple[Mapping[str, Any], ...] | None = None  # as in OpenAI's API
    thought: str | None = None  # all of the visible reasoning
    steps: tuple[str, ...] | None = None  # the same, split as by the gateway
    answer: str | None = None  # verbatim
    consent: bool | None = None  # may be trained on; None: not stated


@dataclass(slots=True)
class Texts:
    """Texts by ids of the log, or of a prompt by its `question_key`."""

    by_id: dict[str, Text] = field(default_factory=dict)  # "episode_id e…", "response_id r…", "question_key q…"
    n_lines: int = 0

    def of(self, *, episode_id: str, response_id: str | None, question_key: str) -> Text | None:
        """Return the text of one run, completed by its prompt's."""
        own = self.by_id.get(f"episode_id {episode_id}")
        if own is None and response_id is not None:
            own = self.by_id.get(f"response_id {response_id}")
        prompt = self.by_id.get(f"question_key {question_key}") if question_key else None
        if own is None:
            return prompt
        if prompt is None:
            return own
        stated = [one for one in (own.consent, prompt.consent) if one is not None]
        agreed = all(stated) if stated else None
        return replace(own, messages=own.messages or prompt.messages, consent=agreed)


@dataclass(slots=True)
class Consent:
    """Consent by a list of ids, by the lines themselves, or by the owner for everybody."""

    everybody: bool = False
    listed: dict[str, bool] = field(default_factory=dict)  # id → agreed or withdrawn; the last line counts

    def given(self, stated: bool | None, ids: Iterable[str | None]) -> bool:
        """Return whether a run with one of these ids may be trained on; `stated` is its own text's answer."""
        listed = [self.listed[one] for one in ids if one is not None and one in self.listed]
        if stated is False or not all(listed):
            return False
        return stated is True or bool(listed) or self.everybody


def read_consent(path: Path) -> dict[str, bool]:
    """Read ids with consent, one a line, or JSON objects with `key` and `consent`. Raises ConfigError with the line."""
    agreed_ids: dict[str, bool] = {}
    for number, line in _lines(path):
        text = line.decode("utf-8", "replace").strip()
        if not text.startswith("{"):
            agreed_ids[text] = True
            continue
        item = json_object(line, f"{path}:{number}")
        key, agreed = item.get("key"), _agreed(item, f"{path}:{number}")
        if not isinstance(key, str) or agreed is None:
            raise ConfigError(f'{path}:{number}: needs {{"key": "…", "consent": true}}, or the id alone')
        agreed_ids[key] = agreed
    return agreed_ids


def read_texts(paths: Sequence[Path]) -> Texts:
    """Read texts from files of JSON lines, `.gz` by suffix. Raises ConfigError with file and line."""
    texts = Texts()
    for path in paths:
        for number, line in _lines(path):
            where = f"{path}:{number}"
            item = json_object(line, where)
            texts.n_lines += 1
            ids = [f"{name} {item[name]}" for name in _IDS if isinstance(item.get(name), str) and item[name]]
            if "response" in item:
                ids += _ids_of_response(item["response"])
                text = _of_log(item, where)
            else:
                text = _of_own(item, where)
            if not ids:
                raise ConfigError(f"{where}: has none of {', '.join(_IDS)}, by which a run is found in the log")
            for one in ids:
                texts.by_id[one] = text
    return texts


def _of_own(item: Mapping[str, Any], where: str) -> Text:
    steps = item.get("steps")
    if steps is not None and not (isinstance(steps, list) and all(isinstance(step, str) for step in steps)):
        raise ConfigError(f"{where}: steps: must be a list of texts, got {type(steps).__name__}")
    return Text(
        messages=_messages(item, where),
        thought=_text(item, "thought", where),
        steps=None if steps is None else tuple(steps),
        answer=_text(item, "answer", where),
        consent=_agreed(item, where),
    )


def _of_log(item: Mapping[str, Any], where: str) -> Text:
    request = item.get("request")
    request = request if isinstance(request, Mapping) else {}
    call = read_openai(item)
    if call is None or len(call.texts) != 1:
        raise ConfigError(f"{where}: response: must hold one choice with an answer")
    agreed = _agreed(item, where)
    metadata = request.get("metadata")
    if agreed is None and isinstance(metadata, Mapping):
        agreed = _agreed(metadata, f"{where}: request.metadata")
    return Text(
        messages=_messages(request, where), thought=call.thoughts[0] or None, answer=call.texts[0], consent=agreed
    )


def _ids_of_response(response: object) -> list[str]:
    if not isinstance(response, Mapping):
        return []
    note = response.get("suffice")
    episode = note.get("episode_id") if isinstance(note, Mapping) else None
    ids = {"response_id": response.get("id"), "episode_id": episode}
    return [f"{name} {value}" for name, value in ids.items() if isinstance(value, str) and value]


def _messages(item: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], ...] | None:
    prompt = _text(item, "prompt", where)
    if prompt is not None:
        return ({"role": "user", "content": prompt},)
    messages = item.get("messages")
    if messages is None:
        return None
    if not isinstance(messages, list) or not all(isinstance(m, dict) and "role" in m for m in messages):
        raise ConfigError(f"{where}: messages: must be a list of objects with a role")
    return tuple(messages)


def _agreed(item: Mapping[str, Any], where: str) -> bool | None:
    value = item.get("consent")
    if value is None:
        return None
    if isinstance(value, (bool, str)):
        if value in _YES:
            return True
        if value in _NO:
            return False
    raise ConfigError(f"{where}: consent: must be true or false")


def _text(item: Mapping[str, Any], name: str, where: str) -> str | None:
    value = item.get(name)
    if value is None or isinstance(value, str):
        return value
    raise ConfigError(f"{where}: {name}: must be a text, got {type(value).__name__}")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with open_unpacked(path) as file:
            for number, line in enumerate(file, 1):
                if not line.isspace():
                    yield number, line
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


ANSWER: Final = "{answer}"  # template for an answer of which only the normal form is known


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    consent: Consent
    uncertified: bool = False  # include uncertified stops; their lines say so
    estimate_cuts: bool = False  # include cuts estimated from token counts; their lines say so
    answer: str = ANSWER  # template for an answer without its own text

    def say(self, answer: str) -> str:
        return self.answer.replace(ANSWER, answer)


@dataclass(frozen=True, slots=True)
class StoppingPolicy:
    policy: Policy
    version: str
    level: int | None
    models: frozenset[str] | None  # for which it is certified; None: not certified


Chooses: TypeAlias = Callable[[str], StoppingPolicy]  # the stopping policy for a prompt, by its key


# --------------------------------------------------------------------------- the log, with its owner's texts


def cut_log(
    episodes: Iterable[EpisodeWithLabels], texts: Texts, terms: Terms, *, match: Match, left_out: Counter[str]
) -> Iterator[CutRun]:
    """Cut the runs of a route of kind `reasoning` where its policy stops; count others in `left_out`."""
    for item in episodes:
        cut = _of_run(item, texts, terms, match)
        if isinstance(cut, CutRun):
            yield cut
        elif cut is not None:
            left_out[cut] += 1


def _of_run(item: EpisodeWithLabels, texts: Texts, terms: Terms, match: Match) -> CutRun | str | None:
    """Return the cut of one run, or why there is none; None: not a run of this route's policy."""
    request, outcome = item.episode.request, item.episode.outcome
    what = fate(request, outcome)
    if what == "ungoverned":
        return None
    if request.kind != "reasoning":
        return "no chain of thought"
    if what not in ("full", "stopped", "by failure") or outcome.stop_step is None:
        return "never stopped, nor would have been" if what == "full" else f"the run is of no use ({what})"
    if outcome.stop_reason == "hopeless":
        return "stopped as hopeless"
    if not request.certified and not terms.uncertified:
        return "stopped by what was not certified"
    judged = _judged(item, match)
    if isinstance(judged, str):
        return judged
    text = texts.of(episode_id=request.episode_id, response_id=outcome.response_id, question_key=request.question_key)
    if text is None:
        return "no text"
    ids = (request.episode_id, outcome.response_id, request.question_key or None)
    if not terms.consent.given(text.consent, ids):
        return "no consent"
    return _with_text(request, outcome, text, judged, terms)


@dataclass(frozen=True, slots=True)
class _StopEffect:
    kept: bool
    gained: bool  # … and the full run would have been wrong
    labelled: bool


def _judged(item: EpisodeWithLabels, match: Match) -> _StopEffect | str:
    run = measure_run(item, match)
    if run.stopped:
        if run.correct is None:
            return "stopped, and nobody said whether it was right"
        if not run.correct:
            return "stopped and wrong: what the full run would have said is hidden"
        return _StopEffect(kept=True, gained=False, labelled=True)
    outcome = item.episode.outcome
    if outcome.would_answer == outcome.answer:
        if run.correct is False or outcome.answer is None:
            return "wrong both ways"
        return _StopEffect(kept=True, gained=False, labelled=run.correct is not None)
    if run.drop is None:
        return "stop and full run differ, and nobody said which is right"
    if run.drop == 0:
        return "wrong both ways"
    return _StopEffect(kept=run.drop < 0, gained=run.drop < 0, labelled=True)


def _with_text(request: Request, outcome: Outcome, text: Text, judged: _StopEffect, terms: Terms) -> CutRun | str:
    place = _cut_place(outcome, text, estimate=terms.estimate_cuts)
    if isinstance(place, str):
        return place
    thought, rest, exact = place
    in_words = outcome.answer if text.answer is None else text.answer.strip()
    would = None if outcome.would_answer is None else terms.say(outcome.would_answer)
    version, _, level = request.policy_version.partition("@")
    return CutRun(
        messages=text.messages or (),
        thought=thought,
        rest=rest,
        answer=(would if judged.gained else in_words) or "",
        stopped_answer=in_words if outcome.stopped or would is None or (judged.kept and not judged.gained) else would,
        full_answer=None if outcome.stopped else in_words,
        kept=judged.kept,
        labelled=judged.labelled,
        stop=StopRecord(
            policy_version=version,
            certified=request.certified,
            level=int(level) if level.isdecimal() else None,
            step=outcome.stop_step or 0,
            n_steps=None if outcome.stopped else len(outcome.steps),
            seen=_seen(request, outcome),
            model=outcome.model or request.model,
            exact=exact,
        ),
    )


def _seen(request: Request, outcome: Outcome) -> Seen:
    if outcome.stopped:
        return "stopped"
    return "observed" if request.mode == "observe" or not by_design(request) else "audit"


def _cut_place(outcome: Outcome, text: Text, *, estimate: bool) -> tuple[str, str | None, bool] | str:
    """Return the reasoning up to the stop, the text after it, and whether the place is exact; or why there is none."""
    if outcome.stopped:
        if text.steps is not None:
            return "".join(text.steps), None, True
        return (text.thought, None, True) if text.thought else "no thought in its text"
    assert outcome.stop_step is not None
    n_before = sum(step.index <= outcome.stop_step for step in outcome.steps)
    if n_before >= len(outcome.steps):
        return "the stop is at the end of the thought"
    if text.steps is not None:
        if len(text.steps) < n_before + 1:
            return "its text has fewer steps than the run"
        return "".join(text.steps[:n_before]), "".join(text.steps[n_before:]), True
    if not text.thought:
        return "no thought in its text"
    if not estimate:
        return "where its text is to be cut is not known; give its steps, or allow estimated cuts"
    tokens = [step.tokens for step in outcome.steps]
    at = _boundary(text.thought, round(len(text.thought) * sum(tokens[:n_before]) / max(1, sum(tokens))))
    return text.thought[:at], text.thought[at:], False


def _boundary(thought: str, at: int) -> int:
    """Return the next end of a line, or else of a word, so that the cut includes what the policy saw."""
    for mark in ("\n", " "):
        place = thought.find(mark, at)
        if 0 <= place < at + 200:
            return place + 1
    return at


# --------------------------------------------------------------------------- recorded traces


def cut_traces(
    files: Iterable[Path], chooses: Chooses, terms: Terms, *, where: str | None, left_out: Counter[str]
) -> Iterator[CutRun]:
    """Cut recorded chains where a policy stops them, replayed step by step as if live; count others in `left_out`.

    Raises TraceError as `read_traces` does, and ConfigError for runs that are no chains or have no texts.
    """
    for batch in read_traces(files, where=where):
        if batch.kind != "reasoning":
            raise ConfigError(f"{batch.file}: holds {batch.kind}; only chains of thought (reasoning) can be cut")
        if not any(batch.text):
            raise ConfigError(f"{batch.file}: has no texts of its steps; `suffice record` keeps them")
        for i in range(len(batch)):
            cut = _of_trace(batch, i, chooses, terms)
            if isinstance(cut, CutRun):
                yield cut
            else:
                left_out[cut] += 1


def _of_trace(batch: Batch, i: int, chooses: Chooses, terms: Terms) -> CutRun | str:
    acting = chooses(batch.question_id[i])
    certified = acting.models is not None and batch.model[i] in acting.models
    if not certified and not terms.uncertified:
        return "stopped by what was not certified"
    question = batch.question[i]
    if question is None:
        return "no text"
    meta = _meta(batch.meta[i])
    consent = meta.get("consent")
    if not terms.consent.given(consent if isinstance(consent, bool) else None, (batch.question_id[i],)):
        return "no consent"
    at = _stop_of(batch, i, acting.policy)
    if isinstance(at, str):
        return at
    judged = _judged_trace(batch, i, at)
    if isinstance(judged, str):
        return judged
    return _trace_cut(
        batch,
        i,
        at,
        judged,
        terms,
        StopRecord(
            policy_version=acting.version,
            certified=certified,
            level=acting.level,
            step=at + 1,
            n_steps=int(batch.offset[i + 1] - batch.offset[i]),
            seen="recorded",
            model=batch.model[i],
        ),
    )


def _stop_of(batch: Batch, i: int, policy: Policy) -> int | str:
    """Return the step, from 0, at which the policy stops, or why it cannot be used. A stop at the end cuts nothing."""
    observer = Observer(policy.needs, batch.kind, query=batch.query(i))
    steps = batch.steps(i)
    for at, step in enumerate(steps[:-1]):
        decision = policy.decide(observer.observe(step))
        if decision.stop:
            return "stopped as hopeless" if decision.stop_reason == "hopeless" else at
    return "never stopped, nor would have been"


def _judged_trace(batch: Batch, i: int, at: int) -> _StopEffect | str:
    row, full_ok = int(batch.offset[i]) + at, bool(batch.full_em[i])
    answer = batch.answer[row]
    if answer is None:
        return "no answer at the stop"
    if batch.correct[row] >= 0:
        right = bool(batch.correct[row] > 0)
    elif answer == batch.full_answer[i]:
        right = full_ok
    else:
        return "stop and full run differ, and nobody said which is right"
    if not right and not full_ok:
        return "wrong both ways"
    return _StopEffect(kept=right, gained=right and not full_ok, labelled=True)


def _trace_cut(batch: Batch, i: int, at: int, judged: _StopEffect, terms: Terms, stop: StopRecord) -> CutRun:
    start, end = int(batch.offset[i]), int(batch.offset[i + 1])
    texts = [text or "" for text in batch.text[start:end]]
    stopped, full = batch.answer[start + at] or "", batch.full_answer[i]
    # The last step holds the end of the reasoning and the answer; only the answer's text separates them.
    behind = texts[-1].rstrip()
    last = behind[: -len(full)] if full and behind.endswith(full) else ""
    return CutRun(
        messages=({"role": "user", "content": batch.question[i] or ""},),
        thought="".join(texts[: at + 1]),
        rest="".join(texts[at + 1 : -1]) + last,
        answer=terms.say(stopped if judged.kept else full or ""),
        stopped_answer=terms.say(stopped),
        full_answer=None if full is None else terms.say(full),
        kept=judged.kept,
        labelled=judged.labelled,
        stop=stop,
    )


def _meta(meta: str | None) -> Mapping[str, Any]:
    try:
        noted = msgspec.json.decode(meta or "{}")
    except (msgspec.DecodeError, UnicodeError):
        return {}
    return noted if isinstance(noted, dict) else {}
