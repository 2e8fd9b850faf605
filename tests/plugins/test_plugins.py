"""What other packages add by entry points, from a package that is really installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from suffice import plugins
from suffice.episode.chain_reader import SEGMENTERS, Segmenter
from suffice.plugins import GROUPS, register_all
from suffice.policy.base import POLICIES
from suffice.policy.rules import Never
from suffice.scoring.base import SCORERS
from suffice.signals.base import FOLDS
from suffice.signals.folds.answers import Stability
from suffice.types import Step
from suffice.upstream.drivers import DRIVERS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "tests" / "plugin_package"
CONFIG = """
[upstreams.local]
url = "http://127.0.0.1:9"
driver = "box"

[routes.words]
upstream = "local"
scorer = "last-word"
policy = { policy = "settled", streak = 3 }
effort = "low"

[routes.words.steps]
boundary = "sentence"
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as pip installs it."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("pyproject.toml", "suffice_example.py"):
        shutil.copy(PACKAGE / name, source)
    pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run([sys.executable, *pip, "--target", str(target), str(source)], check=True, capture_output=True)
    return target


def run(installed: Path | None, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Python with these arguments, where the package is installed, or is not."""
    path = os.pathsep.join(map(str, (*([installed] if installed else []), ROOT / "src", ROOT)))
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_settings_that_name_its_parts_are_fine_with_it_and_refused_without(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "suffice.toml").write_text(CONFIG, encoding="utf-8")
    check = ("-c", "from suffice.cli.main import main; main()", "config", "check")
    done = run(installed, *check, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for group, name in (("signals", "asking"), ("policies", "settled"), ("drivers", "box")):
        assert f"plug-in: suffice.{group} {name} from suffice-example 1.0\n" in done.stdout
    without = run(None, *check, cwd=tmp_path)
    assert without.returncode == 2
    assert "upstreams.local.driver: unknown name 'box'; known: anthropic, deepseek, gemini, llama.cpp" in without.stderr


@pytest.mark.slow
def test_it_passes_the_contracts_and_governs_a_request(installed: Path) -> None:
    # The docs of this project have no row for it, and its own field is in none of the columns that policies are
    # tried on there.
    without = " and ".join(f"not {word}" for word in ("page", "doc", "row", "these_tests", "not_there"))
    request = f"(asking or settled or last-word or inside) and {without}"
    done = run(
        installed,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        request,
        "tests/plugin_package/inside.py",
        *(f"tests/contracts/test_{room}.py" for room in ("policies", "scorers", "signals")),
    )
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 20


# --------------------------------------------------------------------------- what is refused


class Quiet:
    """A fold that is fit."""

    fields: tuple[str, ...] = ("quiet.share",)

    def update(self, step: Step) -> None:
        pass

    def values(self) -> dict[str, float | None]:
        return {"quiet.share": None}


class Thief(Quiet):
    fields = ("confidence",)


class Silent(Quiet):
    def values(self) -> dict[str, float | None]:
        return {}


class Shaky(Quiet):
    def update(self, step: Step) -> None:
        raise RuntimeError("not today")


class Stranger(Never):
    name = "somebody-else"


class Deaf(Segmenter):
    def feed(self, text: str, tokens: int) -> None:
        return None


def point(group: str, name: str, value: str) -> EntryPoint:
    return EntryPoint(name=name, value=value if ":" in value else f"{__name__}:{value}", group=f"suffice.{group}")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (point("signals", "votes", "Quiet"), "the name is taken; taken are closing, confidence"),
        (point("policies", "beta", "Stranger"), "the name is taken"),
        (point("scorers", "number", "Quiet"), "the name is taken"),
        (point("segmenters", "line", "Deaf"), "the name is taken"),
        (point("drivers", "vllm", "Quiet"), "the name is taken"),
        (point("signals", "Loud", "Quiet"), "a name is lower case"),
        (point("signals", "gone", "no_such_module:Fold"), "ModuleNotFoundError: No module named 'no_such_module'"),
        (point("signals", "gone", "NoSuchFold"), "AttributeError"),
        (point("signals", "thief", "Thief"), "fields: confidence exist; a fold of another package"),
        (point("signals", "silent", "Silent"), r"values: got \(\); need one for each"),
        (point("signals", "shaky", "Shaky"), "RuntimeError: not today"),
        (point("policies", "stranger", "Stranger"), "name: the policy calls itself 'somebody-else'"),
        (point("policies", "quiet", "Quiet"), "need a class that is a frozen dataclass"),
        (point("scorers", "quiet", "Quiet"), "AttributeError"),
        (point("segmenters", "deaf", "Deaf"), "thought: got '' after 'So' was fed"),
        (point("drivers", "quiet", "Quiet"), "got type; need a DriverFacts"),
        (point("drivers", "leaves", "sys:exit"), "got builtin_function_or_method; need a DriverFacts"),
        (point("scorers", "leaves", "sys:exit"), "SystemExit"),
    ],
)
def test_what_is_unfit_is_reported_by_name_and_left_out(entry: EntryPoint, message: str) -> None:
    before = {group: dict(table) for group, (table, _) in GROUPS.items()}
    (plugin,) = register_all([entry])
    assert plugin.problem is not None
    assert re.search(message, plugin.problem), plugin.problem
    assert f"plug-in {entry.name!r} in {entry.group} of unknown: left out: " in plugin.warning()
    assert {group: dict(table) for group, (table, _) in GROUPS.items()} == before


def test_the_five_tables_are_those_that_the_product_reads() -> None:
    assert [table for table, _ in GROUPS.values()] == [FOLDS, SCORERS, SEGMENTERS, DRIVERS, POLICIES]
    assert FOLDS["stability"] is Stability
    assert plugins.load_plugins() is plugins.load_plugins()


def test_groups_that_are_not_ours_are_none_of_our_business() -> None:
    assert register_all([EntryPoint(name="x", value="no_such_module", group="console_scripts")]) == ()
