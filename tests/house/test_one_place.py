"""One place to add a policy or a signal: the examples of the documentation, saved as one file each, are complete."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.house.tree import ROOT

PAGE = ROOT / "docs" / "how-to" / "add-a-policy.md"
PROGRAM = """
import sys
import suffice.policy, suffice.signals.folds
suffice.policy.__path__.append(sys.argv[1] + "/policies")
suffice.signals.folds.__path__.append(sys.argv[1] + "/folds")

from suffice.policy.base import build_policy, describe
from suffice.replay.study.policies import Size, list_policies
from suffice.signals.features import FeatureSet
from suffice.signals.observe import Observer
from suffice.types import Step
from tools.declarations import fields, folds, policies

assert describe(build_policy({"policy": "unanimous"})) == {"policy": "unanimous", "votes": 5}
assert "| `unanimous` | enough samples" in policies(composed=False)
assert "unanimous" in list_policies(Size(kind="samples", longest=9, few_tokens=1, many_tokens=2))
assert "| `silence` | `n_silent` |" in folds() and "| `n_silent` | steps so far" in fields()
seen = Observer(["silence"], "rounds").observe(Step(index=1, tokens=3, answer=None, answer_source=None))
assert seen.n_silent == 1 and FeatureSet(["n_silent"]).row(seen) == (1.0,)
"""


def test_a_policy_is_one_file_and_a_signal_is_one_file(tmp_path: Path) -> None:
    policy, fold = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    for folder, name, code in (("policies", "unanimous", policy), ("folds", "silence", fold)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.py").write_text(code, encoding="utf-8")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    path = {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    done = subprocess.run(command, env=path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
