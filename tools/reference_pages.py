"""Writes docs/reference/cli.md, settings.md and metrics.md from the code: `make docs` runs it, `--check` only compares.

cli.md: each command's section is its own help; what stands behind `<!-- notes -->` is written by hand. settings.md and
metrics.md: rows, defaults, kinds and labels come from the code; a meaning that somebody wrote into a row is kept.
policies.md and signals.md: see `declarations`.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
from tools.declarations import comments_of, fill_tables

from suffice.cli.examples import example_of
from suffice.cli.main import main as suffice
from suffice.cli.shell import CONTRIB
from suffice.settings import Settings
from suffice.settings.reloading import can_reload
from suffice.telemetry import METRICS

REFERENCE = Path(__file__).resolve().parents[1] / "docs" / "reference"
NOTES = "<!-- notes -->"
SETTING_HEAD = "| key | default | meaning |"
NEEDS_RESTART = " *Restart.*"
METRIC_HEAD = "| metric | kind | labels | meaning |"
# Described once, before the commands.
COMMON = ("--config", "--data-dir", "--db", "--json", "--reason", "--author", "--wait")


def commands(group: click.Group, prefix: str = "suffice") -> Iterator[tuple[str, click.Command]]:
    """Every command of Suffice itself with its whole name, in the order of the help."""
    with click.Context(group) as context:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            if command is None or f"{prefix} {name}".removeprefix("suffice ") in CONTRIB:
                continue
            yield f"{prefix} {name}", command
            if isinstance(command, click.Group):
                yield from commands(command, f"{prefix} {name}")


def describe(option: click.Option, context: click.Context) -> tuple[str, str]:
    """An option's names as code, and its help with choices and default."""
    record = option.get_help_record(context)
    text = re.sub(r"\[(\S*[<>]\S*)\]", r"`\1`", " ".join(record[1].split())) if record else ""  # a range, no link
    if isinstance(option.type, click.Choice):
        choices = ", ".join(f"`{choice}`" for choice in option.type.choices)
        text = f"{text} One of {choices}."
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    return names, text


def option_list(rows: list[tuple[str, str]]) -> str:
    return "\n".join(f"- {names}: {text}" for names, text in rows)


def command_sections() -> tuple[str, dict[str, str]]:
    """The list of common options, and for each command the text of its section."""
    options: dict[str, list[tuple[str, str]]] = {}
    help_of: dict[str, str] = {}
    groups: set[str] = set()
    for name, command in commands(suffice):
        with click.Context(command, info_name=name) as context:
            shown = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
            options[name] = [describe(option, context) for option in shown]
            usage = " ".join(command.collect_usage_pieces(context))
        paragraphs = inspect.cleandoc(command.help or "").replace("\b\n", "").replace("\f", "").split("\n\n")
        text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
        is_group = isinstance(command, click.Group)
        groups |= {name} if is_group else set()
        arguments = usage.replace("[OPTIONS]", "").replace("  ", " ").strip()
        help_of[name] = text if is_group or not arguments else f"`{name} {arguments}`. {text}"
    common = {}
    for wanted in COMMON:
        texts = Counter(text for rows in options.values() for names, text in rows if f"`{wanted}`" in names)
        common[f"`{wanted}`"] = texts.most_common(1)[0][0]
    sections = {}
    for name, text in help_of.items():
        own = [row for row in options[name] if row[0] not in common]
        parts = [text] + ([option_list(own)] if own else [])
        shared = ", ".join(names for names, _ in options[name] if names in common)
        parts += [f"Common: {shared}."] if shared else []
        parts += [f"```sh\n{example_of(name.removeprefix('suffice '))}\n```"] if name not in groups else []
        sections[name] = "\n\n".join(parts)
    return option_list(list(common.items())), sections


def cli_page(page: str) -> str:
    """The page on the command, its sections in the order of the help."""
    common, sections = command_sections()
    head, *old = re.split(r"^## `(suffice [a-z -]+)`\n", page, flags=re.MULTILINE)
    notes = {name: text.partition(NOTES)[2].strip() for name, text in zip(old[::2], old[1::2], strict=True)}
    head = re.sub(r"(## Common options\n).*?(?=\n## |\Z)", lambda m: f"{m[1]}\n{common}\n", head, flags=re.DOTALL)
    parts = [head.rstrip()]
    for name, text in sections.items():
        kept = f"\n\n{NOTES}\n\n{notes[name]}" if notes.get(name) else ""
        parts.append(f"## `{name}`\n\n{text}{kept}")
    return "\n\n".join(parts) + "\n"


def default_of(field: msgspec.structs.FieldInfo) -> str:
    """A default as the page writes it."""
    if field.required:
        return "must be given"
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    if value is None:
        return "none"
    return "`{}`" if isinstance(value, msgspec.Struct) else f"`{json.dumps(value)}`"


def tables(model: type[msgspec.Struct], path: tuple[str, ...] = ()) -> Iterator[tuple[str, type[msgspec.Struct]]]:
    """The heading and the type of every table of the settings; what its owner names is NAME."""
    if path:
        yield f"`[{'.'.join(path)}]`", model
    for field in msgspec.structs.fields(model):
        kind: Any = msgspec.inspect.type_info(field.type)
        place = (*path, field.name)
        for part in getattr(kind, "types", (kind,)):
            named = isinstance(part, msgspec.inspect.DictType)
            value = part.value_type if named else part
            inner = (*place, "NAME") if named else place
            if isinstance(value, msgspec.inspect.StructType) and inner != ("routes", "NAME", "rollout"):
                yield from tables(value.cls, inner)


def replace_table(text: str, head: str, rows: list[str]) -> str:
    """The text with the rows of the table that begins with this head."""
    written = "\n".join([head, re.sub(r"[^|]+", " --- ", head), *rows]) + "\n"
    return re.sub(rf"^{re.escape(head)}\n(?:\|.*\n)*", lambda _: written, text, flags=re.MULTILINE)


def marked(model: type[msgspec.Struct], field: str, meaning: str) -> str:
    """The meaning of a setting, with a mark where a reload cannot change it."""
    return meaning.removesuffix(NEEDS_RESTART) + ("" if can_reload(model, field) else NEEDS_RESTART)


def settings_page(page: str) -> str:
    """The page on the settings, with every key and default as the code has them."""
    for heading, model in tables(Settings):
        before, found, rest = page.partition(f"\n## {heading}\n")
        section, end, after = rest.partition("\n## ")
        if not found:
            before, found, section = f"{page.rstrip()}\n", f"\n## {heading}\n", f"\n{SETTING_HEAD}\n"
        meanings = dict(re.findall(r"^\| `(\w+)` \| .*? \| (.+) \|$", section, re.MULTILINE))
        meanings = {**comments_of(model), **meanings}
        rows = [
            f"| `{f.name}` | {default_of(f)} | {marked(model, f.name, meanings.get(f.name, ''))} |"
            for f in msgspec.structs.fields(model)
        ]
        page = before + found + replace_table(section, SETTING_HEAD, rows) + end + after
    return page


def metrics_page(page: str) -> str:
    """The page on the metrics: its table."""
    meanings = dict(re.findall(r"^\| `(\w+)` \| \w+ \| .*? \| (.+) \|$", page, re.MULTILINE))
    rows = [
        f"| `{m.name}` | {m.kind} | {', '.join(f'`{label}`' for label in m.labels) or '–'} "
        f"| {meanings.get(m.name, m.help)} |"
        for m in METRICS
    ]
    return replace_table(page, METRIC_HEAD, rows)


PAGES = {
    "cli.md": cli_page,
    "settings.md": settings_page,
    "metrics.md": metrics_page,
    "policies.md": fill_tables,
    "signals.md": fill_tables,
}


def stale_pages(*, write: bool) -> list[str]:
    """The pages that differ from what the code says; with `write` they are brought up to date."""
    stale = []
    for name, build in PAGES.items():
        path = REFERENCE / name
        page = path.read_text(encoding="utf-8")
        built = build(page)
        if built != page:
            stale.append(name)
            if write:
                path.write_text(built, encoding="utf-8")
    return stale


if __name__ == "__main__":
    check = "--check" in sys.argv[1:]
    for stale_page in (stale := stale_pages(write=not check)):
        print(f"docs/reference/{stale_page}: {'run make docs' if check else 'updated'}")
    sys.exit(1 if check and stale else 0)
