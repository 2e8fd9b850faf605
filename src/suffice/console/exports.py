"""Tables that leave the console: CSV whose text runs in no spreadsheet. An export is written down, so it is a POST."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from suffice.console import csv_export, formatting
from suffice.console.auth import Principal
from suffice.console.context import ConsoleContext
from suffice.console.exchange import Answer, ConsoleRequest
from suffice.console.table import ConsoleEndpoint
from suffice.console.views.changes import changes
from suffice.console.views.episodes import MOST_PAGE, episodes

CSV: Final = "text/csv; charset=utf-8"


async def _episodes(desk: ConsoleContext, asked: ConsoleRequest, visitor: Principal) -> Answer:
    wanted = replace(asked, query={**asked.query, "limit": str(MOST_PAGE)})
    lines = (await desk.read(lambda look: episodes(look, wanted, visitor))).lines
    body = csv_export.format_csv_table(
        (
            "episode",
            "at (UTC)",
            "route",
            "class",
            "kind",
            "end",
            "stopped",
            "audit",
            "steps",
            "stop step",
            "answer",
            "answer at the stop",
            "differs",
            "right",
            "tokens",
            "tokens saved",
        ),
        (
            (
                one.episode_id,
                formatting.format_moment(one.at_s),
                one.route,
                one.query_class,
                one.kind,
                one.end_reason,
                one.stopped,
                one.audit,
                one.n_steps,
                one.stop_step,
                one.answer,
                one.would_answer,
                one.differs,
                one.correct,
                one.tokens,
                one.saved_tokens,
            )
            for one in lines
        ),
    )
    return await _file(desk, visitor, "episodes.csv", body, len(lines))


async def _changes(desk: ConsoleContext, asked: ConsoleRequest, visitor: Principal) -> Answer:
    lines = (await desk.read(lambda look: changes(look, asked, visitor))).lines
    body = csv_export.format_csv_table(
        ("place", "at (UTC)", "kind", "route", "before", "after", "reason", "author"),
        (
            (
                one.seq,
                formatting.format_moment(one.at_s),
                one.kind,
                one.route,
                one.before,
                one.after,
                one.reason,
                one.author,
            )
            for one in lines
        ),
    )
    return await _file(desk, visitor, "changes.csv", body, len(lines))


async def _file(desk: ConsoleContext, visitor: Principal, name: str, body: bytes, n_rows: int) -> Answer:
    await desk.off_loop(lambda: desk.note_export(name, n_rows, visitor.name))
    return Answer(kind=CSV, body=body, headers=(("content-disposition", f'attachment; filename="{name}"'),))


DOORS: Final = (
    ConsoleEndpoint(
        method="POST", path="/console/episodes.csv", needs="admin", run=_episodes, summary="runs as a table", gives=CSV
    ),
    ConsoleEndpoint(
        method="POST", path="/console/changes.csv", needs="admin", run=_changes, summary="changes as a table", gives=CSV
    ),
)
