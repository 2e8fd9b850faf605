"""Tables that leave the console: CSV whose text runs in no spreadsheet."""

from __future__ import annotations

from typing import Final

from suffice.console import sheet, words
from suffice.console.desk import Desk
from suffice.console.doors import Visitor
from suffice.console.exchange import Answer, Asked
from suffice.console.look import Look
from suffice.console.table import Door
from suffice.console.views.changes import changes
from suffice.console.views.episodes import MOST_PAGE, episodes

CSV: Final = "text/csv; charset=utf-8"


async def _episodes(desk: Desk, asked: Asked, visitor: Visitor) -> Answer:
    query = {**asked.query, "limit": str(MOST_PAGE)}
    wanted = Asked(
        method=asked.method, path=asked.path, headers=asked.headers, query=query, form={}, address=asked.address
    )

    def made(look: Look) -> bytes:
        return sheet.table(
            ("episode", "at (UTC)", "route", "class", "kind", "end", "stopped", "audit", "steps", "stop step",
             "answer", "answer at the stop", "differs", "right", "tokens", "tokens saved"),
            (
                (one.episode_id, words.when(one.at_s), one.route, one.query_class, one.kind, one.end_reason,
                 one.stopped, one.audit, one.n_steps, one.stop_step, one.answer, one.would_answer, one.differs,
                 one.correct, one.tokens, one.saved_tokens)
                for one in episodes(look, wanted, visitor).lines
            ),
        )  # fmt: skip

    return _file("episodes.csv", await desk.read(made))


async def _changes(desk: Desk, asked: Asked, visitor: Visitor) -> Answer:
    def made(look: Look) -> bytes:
        return sheet.table(
            ("place", "at (UTC)", "kind", "route", "what", "reason", "author"),
            (
                (one.seq, words.when(one.at_s), one.kind, one.route, one.what, one.reason, one.author)
                for one in changes(look, asked, visitor).lines
            ),
        )

    return _file("changes.csv", await desk.read(made))


def _file(name: str, body: bytes) -> Answer:
    return Answer(kind=CSV, body=body, headers=(("content-disposition", f'attachment; filename="{name}"'),))


DOORS: Final = (
    Door(
        method="GET", path="/console/episodes.csv", needs="admin", run=_episodes, summary="runs as a table", gives=CSV
    ),
    Door(
        method="GET", path="/console/changes.csv", needs="admin", run=_changes, summary="changes as a table", gives=CSV
    ),
)
