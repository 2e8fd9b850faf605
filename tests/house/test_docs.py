"""Code in the docs runs, settings in the docs are accepted, and nothing that exists is left out."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import doctest
import importlib
import inspect
import json
import re
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click
import msgspec
import pytest

from suffice import errors, types
from suffice.assurance.certify import FleetRequirement, RouteWealth, WarmStart
from suffice.assurance.forecast import ForecastAction
from suffice.assurance.spending import SpendEstimate, SpendForecast, Spike
from suffice.cli.main import main
from suffice.cli.shell import CONTRIB
from suffice.gateway.app import ENDPOINTS
from suffice.gateway.request_parsing import BLOCKING, KNOWN_OPTIONS, OVERRIDES
from suffice.policy.base import POLICIES
from suffice.review import items
from suffice.review.holds import Incident, IncidentDecision, Override, OverrideEnd
from suffice.scoring.base import SCORERS
from suffice.server import serve_in_loop
from suffice.settings import Settings, parse_settings
from suffice.settings.reloading import can_reload
from suffice.store.rows import events
from suffice.store.rows.events import EVENTS, AccessGrant, QuestionText
from suffice.telemetry import METRICS
from suffice.wiring.routes import build_route
from suffice_testing import FakeUpstream
from suffice_testing.prompt import cut
from suffice_testing.reply import Reply
from tests.house.levels import LEVELS, heading_of
from tests.house.tree import DOCS, ROOT, Block, blocks, python_files, short
from tests.replay.archive.made import archive_log, observed, on_route, write

GATEWAY = "http://127.0.0.1:8400"
MAX_NOT_RUN = 2  # blocks marked <!-- no-run -->, over all documents
REFERENCE = ROOT / "docs" / "reference"

BLOCKS = [block for path in DOCS for block in blocks(path)]
SETTINGS = re.compile(r"^\[(routes|upstreams)", re.MULTILINE)
TOML = [block for block in BLOCKS if block.language == "toml" and SETTINGS.search(block.text)]
ELSEWHERE = {"three-replicas.md"}  # run as a whole by tests/replicas/test_tutorial.py
WITH_PYTHON = [
    path for path in DOCS if path.name not in ELSEWHERE and any(b.language == "python" for b in blocks(path))
]


def place(block: Block) -> str:
    """Where a block stands."""
    return f"{short(block.path)}:{block.line}"


def settings_in(block: Block) -> dict[str, Any]:
    """The settings of a block; what a fragment leaves out (an upstream) is added."""
    raw = tomllib.loads(block.text)
    raw.setdefault("upstreams", {"local": {"url": "http://127.0.0.1:8080"}})
    for route in raw.get("routes", {}).values():
        route.setdefault("upstream", next(iter(raw["upstreams"])))
    return raw


@contextlib.contextmanager
def gateway_for(path: Path, folder: Path) -> Iterator[str]:
    """A real gateway with the document's own settings, before a fake model server; its base URL."""
    complete = [b for b in TOML if b.path == path and "[upstreams" in b.text]
    assert complete, f"{short(path)} talks to a gateway and shows no settings with an upstream"
    thought = cut("17 * 24 is 17 * 20 and 17 * 4, that is 340 and 68, so 408.")
    is_samples = 'kind = "samples"' in complete[0].text
    reply = Reply(reasoning=() if is_samples else thought, answer=cut("The answer is 408."))
    with FakeUpstream.in_thread(reply) as fake:
        raw = settings_in(complete[0])
        for upstream in raw["upstreams"].values():
            upstream["url"] = fake.url
        raw["store"] = {"url": f"sqlite:///{folder / 'docs.db'}"}
        with in_thread(parse_settings(raw)) as url:
            yield url


@contextlib.contextmanager
def in_thread(settings: Settings) -> Iterator[str]:
    """Serve in a thread, for documents that are not asynchronous."""
    started: list[str] = []
    failed: list[BaseException] = []
    ready = threading.Event()
    control: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def host() -> None:
        stop = asyncio.Event()
        async with serve_in_loop(settings) as url:
            control.append((asyncio.get_running_loop(), stop))
            started.append(url)
            ready.set()
            await stop.wait()

    def run() -> None:
        try:
            asyncio.run(host())
        except BaseException as error:
            failed.append(error)
            raise
        finally:
            ready.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(20), "the gateway did not start"
    assert not failed, failed
    try:
        yield started[0]
    finally:
        loop, stop = control[0]
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)
        assert not thread.is_alive()


@pytest.mark.parametrize("path", WITH_PYTHON, ids=short)
def test_python_in_the_docs_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = [b for b in blocks(path) if b.language == "python" and not b.not_run]
    assert code
    with contextlib.ExitStack() as stack:
        url = GATEWAY
        if any(GATEWAY in b.text for b in code):
            url = stack.enter_context(gateway_for(path, tmp_path))
        if any('"archive' in b.text for b in code):
            archive_log(write(tmp_path, on_route("math", observed(60))), tmp_path)
        namespace: dict[str, Any] = {"__name__": "docs"}
        for block in code:
            text = "\n" * (block.line - 1) + block.text.replace(GATEWAY, url)
            exec(compile(text, str(path), "exec", dont_inherit=True), namespace)
        close = getattr(namespace.get("client"), "close", None)
        if close is not None:
            close()


def test_hardly_any_block_is_exempt() -> None:
    exempt = [place(block) for block in BLOCKS if block.not_run]
    assert len(exempt) <= MAX_NOT_RUN, exempt
    assert len(WITH_PYTHON) >= 6


@pytest.mark.parametrize("block", TOML, ids=place)
def test_settings_in_the_docs_are_accepted(block: Block) -> None:
    settings = parse_settings(settings_in(block))
    for name, route in settings.routes.items():
        build_route(name, route)


def test_docstring_examples_hold() -> None:
    tried = 0
    for path in python_files("src"):
        if ">>> " not in path.read_text(encoding="utf-8"):
            continue
        name = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
        result = doctest.testmod(importlib.import_module(name))
        assert not result.failed, f"{name}: {result.failed} of {result.attempted} examples fail"
        tried += result.attempted
    assert tried > 0


def rows(path: Path, heading: str | None = None) -> dict[str, list[str]]:
    """The rows of a document's tables by the first code word in their first cell."""
    text = path.read_text(encoding="utf-8")
    if heading is not None:
        _, results, text = text.partition(f"\n## {heading}\n")
        assert results, f"{short(path)}: no section ## {heading}"
        text = text.split("\n## ")[0]
    by_word: dict[str, list[str]] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")] if line.startswith("|") else []
        for word in re.findall(r"`([^`]+)`", cells[0]) if cells else ():
            by_word[word] = cells
    return by_word


SECTIONS = {heading_of(level): model for level, model in LEVELS.items() if level}


def default_text(field: msgspec.structs.FieldInfo) -> str:
    """A default as the reference writes it."""
    if field.required:
        return "must be given"
    default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    if default is None:
        return "none"
    if isinstance(default, msgspec.Struct):
        return "`{}`"
    return f"`{json.dumps(default)}`"


@pytest.mark.parametrize("section", SECTIONS)
def test_every_setting_is_documented_with_its_default(section: str) -> None:
    documented = rows(REFERENCE / "settings.md", section)
    fields = msgspec.structs.fields(SECTIONS[section])
    assert list(documented) == [field.name for field in fields]
    for field in fields:
        assert documented[field.name][1] == default_text(field), field.name
        assert len(documented[field.name][2]) > 5
        needs_restart = documented[field.name][2].endswith("*Restart.*")
        assert needs_restart != can_reload(SECTIONS[section], field.name), field.name


def test_every_metric_is_documented() -> None:
    documented = rows(REFERENCE / "metrics.md")
    assert list(documented) == [spec.name for spec in METRICS]
    for spec in METRICS:
        assert documented[spec.name][1] == spec.kind
        assert tuple(re.findall(r"`(\w+)`", documented[spec.name][2])) == spec.labels, spec.name


def test_every_error_is_documented_in_the_docs_and_in_the_tree() -> None:
    public = vars(errors).items()
    classes = {name for name, value in public if inspect.isclass(value) and issubclass(value, Exception)}
    documented = rows(REFERENCE / "errors.md", "Exceptions in Python")
    assert set(documented) == classes | {code for code in documented if code.islower()}
    tree = ast.get_docstring(ast.parse(inspect.getsource(errors))) or ""
    assert not [name for name in classes if name not in tree]


RECORDS = {
    "Request": (types.Request, types.ArmDraw),
    "Outcome": (types.Outcome, types.Usage, types.Overhead, types.UpstreamCall),
    "Step": (types.StepRecord,),
    "Feedback": (types.Feedback,),
    "Findings": (types.Findings, types.Finding),
    "Route findings": (types.RouteFindings,),
    "Publication": (types.Publication, types.EvidenceSummary),
    "Epoch": (types.Epoch,),
    "Alarm": (types.Alarm,),
    "Pause": (types.Pause, types.Resumption),
    "Label request": (types.LabelRequest,),
    "Job run": (types.JobRun,),
    "Forecast action": (ForecastAction,),
    "Fleet requirement": (FleetRequirement, RouteWealth),
    "Warm start": (WarmStart,),
    "Spending": (SpendForecast, SpendEstimate, Spike),
    "Access": (AccessGrant,),
    "Config change": (events.ConfigChange, events.SettingChange),
    "Alert sent": (events.AlertDelivery,),
    "Fail-open rate": (events.FailOpenCount,),
    "Export": (events.Export,),
    "Erasure": (events.Erasure,),
    "Experiment": (events.ExperimentStart, events.ExperimentEnd),
    "Review item": (items.ReviewItem,),
    "Review drawing": (items.ControlDraw,),
    "Review lease": (items.ReviewLease, items.ItemReturn),
    "Verdict": (items.Verdict,),
    "Kept question": (QuestionText,),
    "Override": (Override, OverrideEnd),
    "Incident": (Incident, IncidentDecision),
}


@pytest.mark.parametrize("section", RECORDS)
def test_every_field_of_an_event_is_documented(section: str) -> None:
    text = (REFERENCE / "events.md").read_text(encoding="utf-8")
    part = text.split(f"\n## {section}\n")[1].split("\n## ")[0]
    words = set(re.findall(r"`(\w+)`", part))
    fields = {name for record in RECORDS[section] for name in get_type_hints(record)}
    assert not fields - words, fields - words


def test_every_kind_of_event_and_every_end_is_documented() -> None:
    text = (REFERENCE / "events.md").read_text(encoding="utf-8")
    ends = get_args(types.EndReason)
    assert not [word for word in (*EVENTS, *ends) if f"`{word}`" not in text]


def test_every_path_option_and_reason_of_the_gateway_is_documented() -> None:
    text = (REFERENCE / "api.md").read_text(encoding="utf-8")
    known = {endpoint.path for endpoint in ENDPOINTS}
    for endpoint in ENDPOINTS:
        if f"/v1{endpoint.path}" not in known:
            assert f"`{endpoint.method} {endpoint.path}`" in text, endpoint.path
    documented = rows(REFERENCE / "api.md")
    reasons = {"off", "no_route", "endpoint", "rounds", "n", "images", "prefill", "samples=1", "unreadable"}
    words = {*KNOWN_OPTIONS, *BLOCKING.values(), *reasons}
    assert not words - set(documented), words - set(documented)
    assert not [word for word in OVERRIDES if f"`{word}`" not in text]


def test_every_policy_and_scorer_is_documented() -> None:
    assert set(POLICIES) <= set(rows(REFERENCE / "policies.md"))
    text = (REFERENCE / "settings.md").read_text(encoding="utf-8")
    assert not [name for name in SCORERS if f"`{name}`" not in text]


def commands(group: click.Group, prefix: str = "suffice") -> Iterator[tuple[str, click.Command]]:
    """Every command with its whole name."""
    with click.Context(group) as context:
        for name in group.list_commands(context):
            if f"{prefix} {name}".removeprefix("suffice ") in CONTRIB:
                continue
            command = group.get_command(context, name)
            assert command is not None
            yield f"{prefix} {name}", command
            if isinstance(command, click.Group):
                yield from commands(command, f"{prefix} {name}")


def test_every_command_and_option_has_its_place() -> None:
    text = (REFERENCE / "cli.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## `(.+)`$", text, re.MULTILINE)
    results = dict(commands(main))
    assert set(sections) == set(results)
    for name, command in results.items():
        part = text.split(f"\n## `{name}`\n")[1].split("\n## ")[0]
        given = [option for p in command.params if isinstance(p, click.Option) for option in p.opts]
        options = [option for option in given if option.startswith("--")]
        assert not [option for option in options if f"`{option}`" not in part], f"{name}: {options}"
        described = set(re.findall(r"^\| `(--[\w-]+)`", part, re.MULTILINE))
        assert described <= set(options), f"{name}: {described - set(options)} does not exist"


def test_commands_named_in_the_docs_exist() -> None:
    known = {name for name, _ in commands(main)} | {f"suffice {name}" for name in CONTRIB}
    groups = {name for name, command in commands(main) if isinstance(command, click.Group)}
    contrib = {f"suffice {name}" for name in CONTRIB}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    for path in DOCS:
        text = path.read_text(encoding="utf-8")
        shell = [block.text for block in blocks(path) if block.language == "sh"]
        code = "\n".join([*re.findall(r"`([^`\n]+)`", text), *shell])
        added = {f"suffice {name.replace('.', ' ')}" for name in re.findall(r'^"([a-z.-]+)" = "', text, re.MULTILINE)}
        for first, second in re.findall(r"^suffice ([a-z]+)(?: ([a-z][a-z-]*)\b)?", code, re.MULTILINE):
            name = f"suffice {first}"
            assert name in known, f"{short(path)}: {name}"
            if name in groups and second:
                assert f"{name} {second}" in known | contrib | added, f"{short(path)}: {name} {second}"
        for target in re.findall(r"^make ([a-z-]+)", code, re.MULTILINE):
            assert target in targets, f"{short(path)}: make {target}"


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "sh"], ids=place)
def test_options_in_the_docs_exist(block: Block) -> None:
    results = dict(commands(main))
    for line in block.text.replace("\\\n", " ").splitlines():
        words = line.partition("  #")[0].split()
        name = " ".join(words[:3]) if " ".join(words[:3]) in results else " ".join(words[:2])
        if name in results and " ".join(words[1:3]) not in CONTRIB:
            known = {option for p in results[name].params for option in p.opts + p.secondary_opts} | {"--help"}
            used = {word.partition("=")[0] for word in words if word.startswith("--")}
            assert used <= known, f"{place(block)}: {name}: {used - known} does not exist"
