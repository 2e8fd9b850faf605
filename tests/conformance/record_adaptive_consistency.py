"""Record where the authors' own package stops, on the runs of `runs.votes`.

    python -m venv venv && venv/bin/pip install AdaptiveConsistency==1.0.0 "numpy<3" "scipy<2"
    PYTHONPATH=src venv/bin/python -m tests.conformance.record_adaptive_consistency

The package (MIT licence) is asked after every sample, as a live run would. Nothing of it is kept but its answers.
"""

from __future__ import annotations

import importlib
import json
from importlib.metadata import version
from pathlib import Path

from tests.conformance.runs import SEEDS, votes

FILE = Path(__file__).with_name("adaptive_consistency.json")
CRITERIA = {
    "beta": "BetaStoppingCriteria",
    "vote-entropy": "EntropyStoppingCriteria",
    "vote-share": "MajorityStoppingCriteria",
}


def main() -> None:
    package = importlib.import_module("adaptive_consistency.stopping_criterias")
    recorded = {
        "package": f"AdaptiveConsistency {version('AdaptiveConsistency')}",
        "command": "python -m tests.conformance.record_adaptive_consistency",
        "first_stop": {
            name: [first_stop(getattr(package, criterion)(), votes(seed)) for seed in SEEDS]
            for name, criterion in CRITERIA.items()
        },
    }
    FILE.write_text(json.dumps(recorded) + "\n", encoding="utf-8")


def first_stop(criterion: object, answers: list[str]) -> int:
    """The number of samples at the first stop; 0: none."""
    ask = criterion.should_stop  # type: ignore[attr-defined]  # the package has no types
    return next((n for n in range(1, len(answers) + 1) if ask(answers[:n])["stop"]), 0)


if __name__ == "__main__":
    main()
