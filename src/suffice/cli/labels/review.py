"""`suffice review`: the review queue at a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import click
import msgspec

from suffice.cli import shell
from suffice.cli.operations import command_of
from suffice.formatting import format_time
from suffice.operations.reviews import ask_for_review
from suffice.review.agreement import Kappa, VerdictEffect, agreement, em_of
from suffice.review.items import ReviewItem, ReviewLease, VerdictForm
from suffice.review.queue import ItemState, Queue
from suffice.sanitize import printable, printable_lines
from suffice.settings import Settings
from suffice.store.database.decisions import Decisions
from suffice.store.database.location import LogLocation, log_location
from suffice.store.people import deciding
from suffice.wiring.evidence import read_verdict_effect
from suffice.wiring.files import question_texts, questions_file

_REVIEWER = shell.option("--reviewer", help="Name of the reviewer. [default: the user of this computer]")
_QUESTIONS = shell.option(
    "--questions",
    type=shell.FILE,
    metavar="FILE",
    help="JSON lines with `question` or `messages`  [default: the route's own]",
)
_KEYS = {
    "both": (
        ("b", "both", "both right"),
        ("f", "full", "only the full answer"),
        ("e", "early", "only the early one"),
        ("n", "neither", "neither"),
        ("u", "unsure", "unsure"),
    ),
    "one": (("y", "right", "right"), ("n", "wrong", "wrong"), ("u", "unsure", "unsure")),
}
_MORE = (("c", "say what is right"), ("r", "add a reason"), ("s", "skip"), ("q", "quit"))


@click.group(cls=shell.CommandGroup)
def review() -> None:
    """Review the most informative runs and say which answers are right."""


@review.command("list")
@shell.ROUTE
@shell.option("--all", "all_of_them", is_flag=True, help="Items that are settled or over, too.")
@shell.report()
def list_(settings: Settings, route: str | None, *, all_of_them: bool) -> shell.CommandReply:
    """List the items that wait for a reviewer, most urgent first."""
    queue, now_s = _read_queue(settings, route), time.time()
    places = list(queue.of(route) if all_of_them else queue.waiting(now_s=now_s, route=route))
    lines = list[str]()
    for place in places:
        item = place.item
        due = "" if item.deadline_s is None else f", due {format_time(item.deadline_s)}"
        lines += [f"{item.episode_id}  {item.route}  {item.why}  {place.state(now_s)}{due}", f"  {item.because}"]
    plain = [{"state": place.state(now_s), **msgspec.to_builtins(place.item)} for place in places]
    return shell.CommandReply(plain, lines or "no items in the review queue")


def _read_queue(settings: Settings, route: str | None) -> Queue:
    shell.route_names(settings, route)  # refuses an unknown one
    return deciding.read_reviews(log_location(settings.store)).queue


_TAKE = shell.stacked(shell.ROUTE, _REVIEWER, _QUESTIONS, shell.CONFIG, shell.JSON)


@review.command("next")
@_TAKE
def next_(**given: Any) -> None:
    """Lease the next item and answer it with one key; without a terminal, or with --json, lease it and show it."""
    _go_through(**given, third=False)


@review.command()
@_TAKE
def adjudicate(**given: Any) -> None:
    """Decide items on which reviewers disagree; those reviewers do not get them."""
    _go_through(**given, third=True)


@review.command()
@click.argument("item")
@click.argument(
    "word", metavar="VERDICT", type=click.Choice(["both", "full", "early", "neither", "right", "wrong", "unsure"])
)
@shell.option("--corrected", metavar="TEXT", help="The right answer, if you know it.")
@shell.option("--reason", default="", metavar="TEXT", help="In your own words.")
@_REVIEWER
@shell.CONFIG
@shell.JSON
def submit(
    item: str, word: str, corrected: str | None, reason: str, reviewer: str | None, path: Path, *, as_json: bool
) -> None:
    """Submit a verdict on ITEM.

    For two answers `both`, `full`, `early` or `neither`; for one `right` or `wrong`; or `unsure`.

    Repeating a verdict changes nothing; a different one replaces yours. After your lease has expired, the verdict
    counts if nobody else has leased the item, and otherwise is kept beside the others.
    """
    name = shell.author_name(reviewer)
    retry_hint = f"Submit it again: suffice review submit {item} {word} --reviewer {name} …"
    with shell.deployment_log(path, retry_hint=retry_hint) as (settings, writer):
        place = deciding.read_reviews(writer.path).queue.places.get(item)
        if place is None:
            shell.fail(f"unknown item {item!r}; see suffice review list", 1)
        form = VerdictForm(item=item, reviewer=name, word=word, corrected=corrected, reason=reason)
        result = shell.accepted(deciding.submit_verdict(writer, form, now_s=time.time()))
        effect = _effect(settings, place.item)
    if as_json:
        shell.print_json({**msgspec.to_builtins(result), "changed": effect, "sentence": effect.sentence})
        return
    click.echo(f"{item}: {result.message}")
    if result.verdict is not None:
        click.echo(f"  {effect.sentence}")


review.add_command(command_of(ask_for_review, retry_hint="Ask again once the log can be written."))


@review.command()
@shell.ROUTE
@shell.report()
def stats(settings: Settings, route: str | None) -> shell.CommandReply:
    """Show the number of items by state, the agreement of reviewers, and the estimate from random items."""
    queue, now_s = _read_queue(settings, route), time.time()
    plain, lines = list[dict[str, Any]](), list[str]()
    for name in shell.route_names(settings, route):
        counts, agree = queue.counts(now_s=now_s, route=name), agreement(queue.of(name))
        em, n_drawings = em_of(queue, name), len(queue.drawings.get(name, ()))
        plain.append({"route": name, "items": counts, "agreement": agree, "em": em, "n_drawings": n_drawings})
        lines.append(f"route {name}")
        lines.append("  items      " + ", ".join(f"{n:,} {state}" for state, n in counts.items()))
        lines.append(f"  agreement  {_kappa(agree)}")
        if em is None:
            lines.append(f"  EM         unknown: none of {n_drawings:,} drawings is through")
        else:
            between = f"[{em.low or 0:.1%}, {em.high or 0:.1%}] of delivered answers, from {em.n:,} drawn at random"
            lines.append(f"  EM         {em.value:.1%} {between}" + (f" ({em.note})" if em.note else ""))
    return shell.CommandReply(plain, lines)


def _kappa(kappa: Kappa | None) -> str:
    if kappa is None:
        return "unknown: no item has two verdicts"
    if kappa.value is None:
        return f"{kappa.observed:.0%} equal on {kappa.n_items:,} items; kappa is not defined: all verdicts are the same"
    ends = "too few items for an interval" if kappa.low is None else f"[{kappa.low:.2f}, {kappa.high or 0:.2f}]"
    return f"kappa {kappa.value:.2f} {ends}, {kappa.observed:.0%} equal on {kappa.n_items:,} items"


def _go_through(
    path: Path, route: str | None, reviewer: str | None, questions: Path | None, *, as_json: bool, third: bool
) -> None:
    name, n = shell.author_name(reviewer), 0
    with shell.deployment_log(path, route, retry_hint="Your item goes back by itself.") as (settings, writer):
        texts_of = cache(lambda file: question_texts(file, settings))
        while (lease := deciding.lease_next(writer, name, now_s=time.time(), route=route, third=third)) is not None:
            n += 1
            place = deciding.read_reviews(writer.path).queue.places[lease.item]
            question, where = _question(settings, writer.path, place.item, questions, texts_of)
            _print(place, lease, question, where, writer.path, as_json=as_json)
            if as_json or not sys.stdin.isatty() or not _answer(settings, writer, place.item, name):
                return
    click.echo(f"nothing {'else ' if n else ''}waits for {name}", err=as_json)


def _print(
    place: ItemState, lease: ReviewLease, question: str | None, where: str, log: LogLocation, *, as_json: bool
) -> None:
    item, others = place.item, place.verdicts if place.needs_third else ()
    kept = deciding.kept_sources(log, item.episode_id, now_s=time.time())
    sources = () if kept is None else kept.sources
    if as_json:
        plain = {"question": question, "question_from": where, "lease": lease, "verdicts": others, "sources": sources}
        shell.print_json({**plain, **msgspec.to_builtins(item)})
        return
    click.echo()
    click.secho(printable(f"{item.episode_id}, route {item.route}"), bold=True)
    click.echo(f"why       {item.because}")
    if item.deadline_s is not None:
        click.echo(f"due       {format_time(item.deadline_s)}")
    click.echo(f"yours     until {format_time(lease.until_s)}")
    click.echo(f"question  {where}")
    for line in printable_lines(question or ""):
        click.echo(f"  {line}")
    for source in sources:
        click.echo(f"step {source.step:<4} {printable(source.what)}")
        for line in printable_lines(source.text):
            click.echo(f"  {line}")
    if item.shows != "early":
        click.echo(f"full answer   {_displayed(item.full_answer)}")
    if item.shows != "full":
        click.echo(f"early answer  {_displayed(item.early_answer)}")
    for one in others:
        click.echo(f"{one.reviewer} said {one.category}" + (f": {printable(one.reason)}" if one.reason else ""))


def _displayed(answer: str | None) -> str:
    return "(none)" if answer is None else printable(answer)


def _answer(settings: Settings, writer: Decisions, item: ReviewItem, name: str) -> bool:
    keys = _KEYS["both" if item.shows == "both" else "one"]
    corrected, reason = None, ""
    click.echo("  ".join(f"[{key}] {text}" for key, _, text in keys))
    click.echo("  ".join(f"[{key}] {text}" for key, text in _MORE))
    while True:
        key = click.getchar().lower()
        word = next((word for known, word, _ in keys if known == key), None)
        if key == "c":
            corrected = click.prompt("right answer", default="", show_default=False) or None
        elif key == "r":
            reason = click.prompt("reason", default="", show_default=False)
        elif key in ("s", "q", "\x03", "\x04"):
            deciding.give_item_back(writer, item.episode_id, name, "skipped", now_s=time.time())
            return key == "s"
        elif word is not None:
            form = VerdictForm(item=item.episode_id, reviewer=name, word=word, corrected=corrected, reason=reason)
            result = deciding.submit_verdict(writer, form, now_s=time.time())
            click.echo(f"{word}: {result if isinstance(result, str) else result.message}")
            click.echo(f"  {_effect(settings, item).sentence}")
            return True


def _effect(settings: Settings, item: ReviewItem) -> VerdictEffect:
    shell.find_settings(settings, item.route)
    effect = read_verdict_effect(settings, item.episode_id)
    assert effect is not None
    return effect


def _question(
    settings: Settings,
    log: LogLocation,
    item: ReviewItem,
    given: Path | None,
    texts_of: Callable[[Path], Mapping[str, str]],
) -> tuple[str | None, str]:
    """Return the text of an item's question, and where it is from or why it cannot be had."""
    kept = deciding.kept_question(log, item.episode_id, now_s=time.time())
    if kept is not None:
        return kept, "kept in the log:"
    file = given or questions_file(settings, item.route)
    if file is None:
        return None, (
            f"cannot be had: the log holds no text; name routes.{item.route}.review.questions or --questions, "
            f"or let the route keep it (routes.{item.route}.review.keep_text)"
        )
    result = texts_of(file).get(item.question_key)
    return result, f"from {file}:" if result is not None else f"cannot be had: it is not in {file}"
