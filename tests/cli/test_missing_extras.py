"""Where an extra is missing, whatever needs it says in one sentence what to type, and nothing else breaks."""

from __future__ import annotations

import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.house.tree import ROOT

from suffice.extras import how_to_install
from suffice.settings import Store
from suffice.store.database.writer import LogWriter

# Modules of the packages that this installation pretends to lack.
RUN = """
import sys
from importlib.machinery import PathFinder
class Without:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else PathFinder.find_spec(name, path, target)
    find_distributions = PathFinder.find_distributions
sys.meta_path[:] = [Without if one is PathFinder else one for one in sys.meta_path]
sys.argv = ["suffice", *ARGS]
from suffice.cli.main import main
main()
"""
BASE = '[upstreams.up]\nurl = "http://127.0.0.1:9"\n[routes.r]\nupstream = "up"\n'
RUNS = str(ROOT / "src" / "suffice" / "data" / "own_reasoning.jsonl.gz")


class Need(NamedTuple):
    hidden: tuple[str, ...]
    arguments: tuple[str, ...]
    settings: str = BASE
    file: str = "suffice.toml"
    status: int = 2


# Needs of several extras at once: the check of the settings names each of them, and passes.
CHECKED = Need(
    ("jinja2", "sklearn", "optuna", "math_verify", "joserfc"),
    ("config", "check"),
    BASE
    + """mode = "enforce"
probe = {}
scorer = "math"
[console.oidc]
issuer = "https://idp.example.com"
client_id = "c"
roles.sre = { role = "admin" }
""",
    status=0,
)
NEEDS = {
    "console": CHECKED,
    "replay": Need(("pyarrow", "matplotlib"), ("replay", "runs.parquet")),
    "train": CHECKED,
    "math": CHECKED,
    "postgres": Need(("psycopg",), ("status",), BASE + '[store]\nurl = "postgresql://u@127.0.0.1:9/d"\n'),
    "archive": Need(("obstore",), ("archive", "--to", "s3://bucket/folder")),
    "ray": Need(("ray",), ("replay", RUNS, "--ray", "local", "--no-report")),
    "otel": Need(("opentelemetry",), ("serve",), BASE + '[telemetry]\notlp_endpoint = "http://127.0.0.1:9"\n'),
    "oidc": CHECKED,
    "yaml": Need(("yaml",), ("config", "check"), "upstreams: {}\n", file="suffice.yaml"),
}


def test_every_extra_is_in_the_table() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert set(NEEDS) == set(declared)


@pytest.mark.parametrize("need", dict.fromkeys(NEEDS.values()), ids=lambda need: "-".join(need.hidden))
def test_whoever_needs_a_missing_extra_is_told_what_to_type(need: Need, tmp_path: Path) -> None:
    (tmp_path / need.file).write_text(need.settings)
    (tmp_path / "runs.parquet").touch()
    LogWriter(Store(url=f"sqlite:///{tmp_path}/suffice.db"), now=time.time).close()
    script = RUN.replace("HIDDEN", repr(need.hidden)).replace("ARGS", repr(need.arguments))
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    output = done.stdout + done.stderr
    assert done.returncode == need.status, output
    for extra in (extra for extra, own in NEEDS.items() if own == need):
        lines = [line for line in output.splitlines() if how_to_install(extra) in line]
        assert len(set(lines)) == 1, output
    assert "Traceback" not in output
