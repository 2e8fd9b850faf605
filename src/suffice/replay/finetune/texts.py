"""Prompts, thoughts and answers as their owner kept them, found by the ids that the log has, and who agreed to what.

The log holds no text by design, so the texts come from here: JSON lines of the owner's own form, or logs of OpenAI
requests with their responses. A line is used only where somebody agreed, and a withdrawal beats every agreement.
Knows files and fields; refuses to know runs and stops.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from suffice.errors import ConfigError
from suffice.files import json_object, open_unpacked
from suffice.replay.logs.formats import openai

_IDS: Final = ("episode_id", "response_id", "question_key")
_YES: Final = frozenset({True, "true", "yes"})
_NO: Final = frozenset({False, "false", "no"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """What its owner kept of one run, or of one prompt. None: not kept."""

    messages: tuple[Mapping[str, Any], ...] | None = None  # as OpenAI's API has them
    thought: str | None = None  # all that was shown of it
    steps: tuple[str, ...] | None = None  # the same, cut as the gateway cut it
    answer: str | None = None  # in full words
    consent: bool | None = None  # may it be learned from? None: it does not say


@dataclass(slots=True)
class Texts:
    """Texts by the ids of the log; of a prompt alone, by its `question_key`."""

    by_id: dict[str, Text] = field(default_factory=dict)  # "episode_id e…", "response_id r…", "question_key q…"
    n_lines: int = 0

    def of(self, *, episode_id: str, response_id: str | None, question_key: str) -> Text | None:
        """What is known of one run: its own text, with the prompt's where it has none."""
        own = self.by_id.get(f"episode_id {episode_id}")
        if own is None and response_id is not None:
            own = self.by_id.get(f"response_id {response_id}")
        prompt = self.by_id.get(f"question_key {question_key}") if question_key else None
        if own is None:
            return prompt
        if prompt is None:
            return own
        agreed = (
            own.consent
            if prompt.consent is None
            else prompt.consent
            if own.consent is None
            else (own.consent and prompt.consent)
        )
        return replace(own, messages=own.messages or prompt.messages, consent=agreed)


@dataclass(slots=True)
class Consent:
    """Who agreed: a list of ids, lines that say so themselves, or everybody by the owner's word."""

    everybody: bool = False
    listed: dict[str, bool] = field(default_factory=dict)  # id → agreed or withdrawn; the last line counts

    def given(self, said: bool | None, ids: Iterable[str | None]) -> bool:
        """May the run be learned from?

        said  what its own text says
        ids   by which it may be listed
        """
        listed = [self.listed[one] for one in ids if one is not None and one in self.listed]
        if said is False or not all(listed):
            return False
        return said is True or bool(listed) or self.everybody


def read_consent(path: Path) -> dict[str, bool]:
    """Ids that agreed, one a line; or JSON objects with `key` and `consent`. Raises ConfigError with the line."""
    found: dict[str, bool] = {}
    for number, line in _lines(path):
        text = line.decode("utf-8", "replace").strip()
        if not text.startswith("{"):
            found[text] = True
            continue
        item = json_object(line, f"{path}:{number}")
        key, agreed = item.get("key"), _agreed(item, f"{path}:{number}")
        if not isinstance(key, str) or agreed is None:
            raise ConfigError(f'{path}:{number}: needs {{"key": "…", "consent": true}}, or the id alone')
        found[key] = agreed
    return found


def read_texts(paths: Sequence[Path]) -> Texts:
    """All texts of some files of JSON lines, `.gz` by suffix. Raises ConfigError with file and line."""
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
    """A line in the owner's own form."""
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
    """A line that holds a request and its response, as OpenAI's API has them."""
    request = item.get("request")
    request = request if isinstance(request, Mapping) else {}
    call = openai(item)
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
    told = response.get("suffice")
    episode = told.get("episode_id") if isinstance(told, Mapping) else None
    ids = {"response_id": response.get("id"), "episode_id": episode}
    return [f"{name} {value}" for name, value in ids.items() if isinstance(value, str) and value]


def _messages(item: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], ...] | None:
    """The prompt; a text alone is what the user said."""
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
    """Lines that are not blank, with their numbers. Raises ConfigError when the file cannot be read."""
    try:
        with open_unpacked(path) as file:
            for number, line in enumerate(file, 1):
                if not line.isspace():
                    yield number, line
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
