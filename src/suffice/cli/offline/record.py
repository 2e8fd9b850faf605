"""`suffice record`: records full runs of questions at a live model server."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bars

from suffice.cli.shell import (
    FILE,
    JSON_OBJECT,
    Command,
    fail,
    find_settings,
    find_upstream,
    load_optional_settings,
    option,
    warn,
)
from suffice.edge.math import open_scorer
from suffice.errors import ConfigError
from suffice.plugins import load_plugins
from suffice.replay.record import (
    Progress,
    RecordingRecipe,
    open_recording,
    read_recorded_questions,
    record_runs,
    upstream_for_recording,
)
from suffice.settings import Probe, Route, Settings, Upstream
from suffice.upstream.client import UpstreamClient
from suffice.upstream.drivers import DRIVERS
from suffice.wiring.keys import api_key

_FIGURES = (  # in --json
    *("n_questions", "n_before", "n_recorded", "n_left", "n_right", "n_steps"),
    *("run_tokens", "probe_tokens", "n_unclosed", "n_unread", "failed"),
)
PLAIN_LINE_S = 10.0  # between two lines of progress without a terminal


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordOptions:
    upstream: str | None
    config: Path | None
    route: str | None
    model: str | None
    kind: Literal["reasoning", "samples"] | None
    samples: int | None
    scorer: str | None
    driver: str | None
    api_key_env: str
    temperature: float | None
    max_tokens: int | None
    logprobs: bool
    out: Path
    concurrency: int
    as_json: bool


@click.command(cls=Command)
@click.argument("questions", type=FILE)
@option("--upstream", help="Address of a model server, or its name in the settings.")
@option(
    "--config",
    type=FILE,
    metavar="FILE",
    help="Settings, for --route and names of upstreams. [default: suffice.toml, if it is there]",
)
@option("--route", help="Take kind, scorer, steps, probe, samples and upstream from this route.")
@option("--model", help="Model to ask for. [default: the route's]")
@option("--kind", type=click.Choice(["reasoning", "samples"]), help="What a run is. [default: the route's]")
@option("--samples", type=click.IntRange(2, 1000), help="Answers a question, for samples. [default: 16]")
@option("--scorer", help="How answers are read and compared. [default: the route's, else text]")
@option("--driver", help="What the server can do beyond the plain protocol, as in the settings.")
@option("--api-key-env", default="", help="Environment variable with the server's key, for an address.")
@option("--temperature", type=click.FloatRange(0.0), help="For all questions. [default: their own]")
@option("--max-tokens", type=click.IntRange(1), help="Cap of a run. [default: the questions' own]")
@option(
    "--logprobs/--no-logprobs",
    default=True,
    show_default=False,
    help="Ask for log-probabilities of the run's own tokens.",
)
@option("--out", type=FILE, required=True, help="The traces: .jsonl or .jsonl.gz.")
@option("--concurrency", type=click.IntRange(1), default=4, help="Requests at once.")
@JSON_OBJECT
def record(questions: Path, **options: object) -> None:
    """Record full runs of QUESTIONS at a live model server, with a trial answer at every step.

    QUESTIONS holds JSON lines with `question` (or `messages`) and `gold`. Repeat the command to continue an interrupted
    recording. Exits with 1 when questions are left, and with 2 when it cannot record.
    """
    given = RecordOptions(**options)  # type: ignore[arg-type]  # click has checked them
    try:
        progress = asyncio.run(_record(questions, given))
    except KeyboardInterrupt:
        fail(f"interrupted; {given.out} holds what is recorded; run the same command to continue", 130)
    _print(progress, given)
    raise SystemExit(1 if progress.n_left else 0)


async def _record(questions: Path, given: RecordOptions) -> Progress:
    if not given.out.name.endswith((".jsonl", ".jsonl.gz")):
        raise click.UsageError(f"--out: got {given.out.name!r}; a name that ends in .jsonl or .jsonl.gz")
    load_plugins()
    to_record = read_recorded_questions(_lines(questions), str(questions))
    is_address = (given.upstream or "").startswith(("http://", "https://"))
    needs_settings = given.config is not None or given.route is not None or not is_address
    settings = load_optional_settings(given.config) if needs_settings else None
    route = _route(settings, given)
    name, upstream = _upstream(settings, route, given)
    recipe = _recipe(route, upstream, given)
    limited = upstream_for_recording(upstream, concurrency=given.concurrency)
    client = UpstreamClient(name, limited, api_key(name, upstream))
    with open_scorer(recipe.scorer) as scorer, open_recording(given.out, recipe) as recording:
        _warn(recipe, given.out, torn=recording.torn)
        async with client:
            with _reporting(len(to_record), as_json=given.as_json) as on_progress:
                return await record_runs(
                    to_record,
                    recording,
                    client=client,
                    recipe=recipe,
                    scorer=scorer,
                    report=on_progress,
                    dataset=questions.name.removesuffix(".jsonl"),
                    concurrency=given.concurrency,
                )


def _lines(questions: Path) -> list[str]:
    try:
        return questions.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{questions}: is not UTF-8 at byte {error.start}") from None


def _route(settings: Settings | None, given: RecordOptions) -> Route | None:
    if given.route is None:
        return None
    if settings is None:
        raise ConfigError("--route: needs a settings file; name it with --config")
    return find_settings(settings, given.route, option="--route")


def _upstream(settings: Settings | None, route: Route | None, given: RecordOptions) -> tuple[str, Upstream]:
    target = given.upstream or (route.upstream if route is not None else None)
    if target is None:
        raise ConfigError("--upstream: name a server, or a --route that has one")
    name, entry = find_upstream(settings, target, api_key_env=given.api_key_env)
    if given.driver is not None:
        if given.driver not in DRIVERS:
            raise ConfigError(f"--driver: unknown name {given.driver!r}; known: {', '.join(DRIVERS)}")
        entry = msgspec.structs.replace(entry, driver=given.driver)
    return name or "record", entry


def _recipe(route: Route | None, upstream: Upstream, given: RecordOptions) -> RecordingRecipe:
    kind = given.kind or (route.kind if route is not None else None)
    if kind not in ("reasoning", "samples"):
        raise ConfigError(f"--kind: got {kind!r}; allowed: reasoning, samples")
    rules = route or Route()
    model = given.model or rules.model
    if model is None:
        raise ConfigError("--model: name the model to ask for")
    methods = upstream.finish or DRIVERS[upstream.driver].methods
    samples = given.samples or (rules.samples if rules.samples > 1 else 16)
    return RecordingRecipe(
        kind=kind,
        model=model,
        scorer=given.scorer or rules.scorer,
        driver=upstream.driver,
        finish=next((m for m in methods if m != "native"), None) if kind == "reasoning" else None,
        n_samples=samples if kind == "samples" else 1,
        temperature=given.temperature,
        max_tokens=given.max_tokens,
        logprobs=given.logprobs,
        steps=rules.steps,
        probe=rules.probe or Probe(),
    )


def _warn(recipe: RecordingRecipe, out: Path, *, torn: bool) -> None:
    if torn:
        warn(f"{out}: the last line was cut short; its question is recorded again")
    if recipe.kind == "reasoning" and recipe.finish is None:
        warn("this server has no way to ask for a trial answer: steps will have none")
    if recipe.kind == "samples" and recipe.temperature == 0:
        warn("temperature is 0, so all samples of a question will be the same")


@contextmanager
def _reporting(n_questions: int, *, as_json: bool) -> Iterator[Callable[[Progress], None]]:
    started_s = last_s = time.monotonic()
    if as_json:
        yield lambda _: None
    elif sys.stderr.isatty():
        columns = (TextColumn("record"), BarColumn(24), MofNCompleteColumn(), TextColumn("{task.fields[live]}"))
        with Bars(*columns, console=Console(stderr=True)) as bars:
            task = bars.add_task("record", total=n_questions, live="")
            yield lambda p: bars.update(task, completed=p.n_done, live=live_line(p, time.monotonic() - started_s))
    else:

        def on_progress(progress: Progress) -> None:
            nonlocal last_s
            now_s = time.monotonic()
            if now_s - last_s >= PLAIN_LINE_S:
                last_s = now_s
                done = f"{progress.n_done} of {progress.n_questions}"
                warn(f"{done} · {live_line(progress, now_s - started_s)}")

        yield on_progress


def live_line(progress: Progress, taken_s: float) -> str:
    n, parts = progress.n_recorded, []
    if n:
        parts.append(f"EM {progress.n_right / n:.2f}")
    if taken_s > 0:
        parts.append(f"{(progress.run_tokens + progress.probe_tokens) / taken_s:.0f} tokens/s")
    if n and taken_s > 0:
        parts.append(f"{_clock(progress.n_left * taken_s / n)} left")
    if progress.failed:
        parts.append(f"{len(progress.failed)} failed")
    return " · ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _print(progress: Progress, given: RecordOptions) -> None:
    if given.as_json:
        click.echo(json.dumps({"out": str(given.out), **{name: getattr(progress, name) for name in _FIGURES}}))
        return
    click.echo(f"{given.out}: {progress.n_done} of {progress.n_questions} questions, {progress.n_recorded} of them now")
    if n := progress.n_recorded:
        click.echo(
            f"EM {progress.n_right / n:.3f}, {progress.n_steps / n:.1f} steps and"
            f" {progress.run_tokens / n:.1f} tokens a question; probes: {progress.probe_tokens:,} tokens"
        )
    if progress.n_unclosed:
        click.echo(f"{progress.n_unclosed} chains were cut inside their thought and closed there, as a stop would")
    if progress.n_unread:
        click.echo(f"{progress.n_unread} full answers could not be read by the scorer")
    for question, why in list(progress.failed.items())[:5]:
        click.echo(f"left: {question}: {why}", err=True)
    if progress.n_left:
        click.echo(f"{progress.n_left} questions are left; the same call goes on with them", err=True)
