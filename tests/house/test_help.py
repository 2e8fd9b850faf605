"""`suffice --help` is quick, because it loads click and the standard library and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

ALLOWED = {"suffice", "click", "suffice_demo"}  # the last adds a command, which loads no more than these
MAX_CPU_S = 0.2
RUN = """
import sys
before = set(sys.modules)
sys.argv = ["suffice", *ARGS]
try:
    from suffice.cli.main import main
    main()
except SystemExit as end:
    code = end.code
import json, resource
used = resource.getrusage(resource.RUSAGE_SELF)
tops = sorted({name.split(".")[0] for name in set(sys.modules) - before})
found = {"code": code or 0, "cpu_s": used.ru_utime + used.ru_stime, "modules": tops}
print(json.dumps(found), file=sys.stderr)
"""


def run_help(*arguments: str) -> tuple[dict[str, object], str]:
    """Run the command in a fresh interpreter; return what it used and what it printed."""
    script = RUN.replace("ARGS", repr(list(arguments)))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    return json.loads(done.stderr.splitlines()[-1]), done.stdout


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("serve", "--help")], ids=" ".join)
def test_help_loads_only_click_and_the_standard_library(arguments: tuple[str, ...]) -> None:
    used, printed = run_help(*arguments)
    modules = used["modules"]
    assert isinstance(modules, list)
    foreign = sorted(set(modules) - ALLOWED - sys.stdlib_module_names)
    assert used["code"] == 0
    assert printed.strip()
    assert not foreign, f"suffice {' '.join(arguments)} loads {foreign}; import them inside commands"


def test_help_is_quick() -> None:
    # The smallest of five: CPU time, unlike wall time, hardly sees what else the machine does.
    seconds = min(float(str(run_help("--help")[0]["cpu_s"])) for _ in range(5))
    print(f"suffice --help: {seconds * 1000:.0f} ms of CPU")
    assert seconds < MAX_CPU_S
