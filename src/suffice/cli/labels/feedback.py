"""`suffice feedback`: labels that do not come over HTTP.

Knows options, where questions and the log are, and how the result looks; refuses to know whose word counts
(`control.people.judging`). Heavy imports stand inside the functions.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from suffice.cli.deciding import find_settings
from suffice.cli.labels.feedback_files import import_file, pull
from suffice.cli.labels.parked import parked
from suffice.cli.shell import CONFIG_FILE, JSON_OBJECT, CommandGroup, fail

if TYPE_CHECKING:
    from suffice.control.people.judging import JudgingResult
    from suffice.settings import Judge, Route, Settings


@click.group(cls=CommandGroup)
def feedback() -> None:
    """Labels and other feedback that do not come over HTTP."""


feedback.add_command(import_file)
feedback.add_command(pull)
feedback.add_command(parked)


@feedback.command()
@click.option("--route", required=True, help="Name of a route with a [judge] table in the settings.")
@CONFIG_FILE
@click.option(
    "--questions",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="JSON lines with `question` or `messages`: the log holds none. [default: the table's]",
)
@click.option(
    "--most",
    type=click.IntRange(2, 1_000_000),
    default=200,
    show_default=True,
    metavar="N",
    help="Answers to grade, at most.",
)
@JSON_OBJECT
def judge(route: str, config: Path, questions: Path | None, most: int, *, as_json: bool) -> None:
    """Grade full runs whose stop would have answered otherwise, and label them if the judge is good enough.

    Runs that people labelled are graded first: they say how often the judge is wrong. As long as that leaves nothing
    of the route's EM budget, or no run has both words, no label is written.
    """
    from suffice.errors import SufficeError
    from suffice.wiring import load_deployment

    try:
        settings = load_deployment(config)
        found = asyncio.run(_judge(settings, route, _questions_file(settings, route, questions), most))
    except (SufficeError, OSError) as error:
        fail("feedback judge", error)
    _show(found, as_json=as_json)


def _tables(settings: Settings, name: str) -> tuple[Route, Judge]:
    from suffice.errors import ConfigError

    route = find_settings(settings, name, option="--route")
    if route.judge is None:
        raise ConfigError(f"routes.{name}.judge: is missing; name the url and the model of a judge")
    return route, route.judge


def _questions_file(settings: Settings, name: str, given: Path | None) -> Path:
    from suffice.errors import ConfigError

    named = _tables(settings, name)[1].questions
    if given is None and not named:
        raise ConfigError(f"routes.{name}.judge.questions: names no file, and --questions neither")
    return given or Path(named)


async def _judge(settings: Settings, name: str, questions: Path, most: int) -> JudgingResult:
    from suffice.control.people.judging import judge_labels
    from suffice.edge.judge import JudgeModel
    from suffice.edge.yardstick import yardstick
    from suffice.store.database.sqlite import database_path
    from suffice.store.database.views import read_episodes
    from suffice.store.rows.records import FeedbackEvent
    from suffice.wiring import open_log, question_texts, secret

    route, table = _tables(settings, name)
    path = database_path(settings.store.url)
    texts = question_texts(questions, settings)
    key = secret(f"routes.{name}.judge.api_key_env", table.api_key_env)
    episodes = list(read_episodes(path, name))
    log = open_log(settings, create=False)
    model = JudgeModel(table.url, table.model, api_key=key, timeout_s=table.timeout_s, max_tokens=table.max_tokens)
    try:
        async with model:
            with yardstick(route.scorer) as scorer:
                return await judge_labels(
                    episodes,
                    model,
                    lambda given: log.append_durable(FeedbackEvent(given)),
                    questions=texts,
                    match=scorer.match,
                    max_em_drop=route.max_em_drop,
                    confidence=(1 + route.confidence) / 2,
                    most_calls=most,
                )
    finally:
        log.close()


def _show(found: JudgingResult, *, as_json: bool) -> None:
    import msgspec

    if as_json:
        click.echo(msgspec.json.encode(asdict(found)).decode())
        return
    click.echo(
        f"{found.n_full:,} full runs, {found.n_differing:,} in which the stop would have answered otherwise"
        f" (at most {found.disagreement:.1%} of all)"
    )
    if found.n_unknown:
        click.echo(f"{found.n_unknown:,} of these have no question in the file")
    click.echo(f"{found.n_graded:,} runs graded, {found.n_ungraded:,} without a grade, {found.n_labelled:,} labelled")
    click.echo(f"The judge: {found.reason}.")
