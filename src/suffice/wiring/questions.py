"""What a person reads of a question: from the file that a route names, by the keys under which the log knows it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from suffice.doctor.route import read_route_questions
from suffice.errors import ConfigError
from suffice.review.question import written_out
from suffice.rollout.assign import question_key
from suffice.settings import Settings
from suffice.upstream.wire import encode_json
from suffice.wiring.keys import deployment_salt


def question_texts(file: Path, settings: Settings) -> Mapping[str, str]:
    """The questions of a file by `Request.question_key`. Raises ConfigError and OSError."""
    salt, found = deployment_salt(settings), dict[str, str]()
    for body in read_route_questions(file.read_text("utf-8").splitlines(), str(file)):
        text = written_out(body["messages"])
        found[question_key(encode_json(body["messages"]).decode(), salt=salt)] = text  # as a chat
        found[question_key(text, salt=salt)] = text  # as a loop of the caller's
    return found


def questions_file(settings: Settings, route: str) -> Path | None:
    """The file of a route's questions for reviewers, else its judge's; None: it names none.

    Raises ConfigError for a route that does not exist.
    """
    known = settings.routes.get(route)
    if known is None:
        names = ", ".join(sorted(settings.routes)) or "none is configured"
        raise ConfigError(f"unknown route {route!r}; known: {names}")
    named = known.review.questions or ("" if known.judge is None else known.judge.questions)
    return Path(named) if named else None
