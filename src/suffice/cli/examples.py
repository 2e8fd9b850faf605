"""What an example in the help of each command writes behind its name; commands without an entry need nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

EXAMPLES: Final[Mapping[str, str]] = {
    "init": "--upstream http://127.0.0.1:8080 --serve",
    "config check": "suffice.toml",
    "config show": "--sources",
    "doctor": "--upstream http://127.0.0.1:8080",
    "serve": "--upstream http://127.0.0.1:8080",
    "reload": '--reason "budget of chat raised, see change 4711"',
    "worker": "--once certify",
    "completion": "bash",
    "store check": "--config suffice.toml",
    "store migrate": "--config suffice.toml",
    "store copy": "suffice.db --config postgres.toml",
    "admin reset-secret": "admin",
    "admin add": "rita --role reviewer",
    "admin remove": "rita",
    "key create": 'web --route math --reason "new client"',
    "key rotate": 'web --overlap-hours 4 --reason "yearly"',
    "key revoke": 'web --reason "leaked"',
    "status": "--route math",
    "archive": "--to archive",
    "audit export": "--since 2026-11-01 --format csv --out audit.csv",
    "audit bundle": "math --out math-bundle.json",
    "policy show": "math",
    "policy diff": "v-0123456789ab v-ba9876543210",
    "policy propose": 'math beta.toml --reason "cheaper"',
    "policy promote": 'math --reason "seen enough"',
    "policy hold": 'math --reason "launch week"',
    "policy release": 'math --reason "launch is over"',
    "policy rollback": 'math --reason "complaints"',
    "policy pin": 'math 3 --days 7 --reason "known good"',
    "experiment show": "lower-effort",
    "experiment start": 'lower-effort --reason "is low effort enough?"',
    "experiment stop": 'lower-effort --reason "decided"',
    "pause": 'math --reason "wrong answers reported"',
    "resume": 'math --reason "false alarm"',
    "incident show": "math:p1",
    "incident decide": 'math:p1 tighten --level 2 --reason "until the fix"',
    "incident open": 'math --reason "a customer complained"',
    "override set": 'math cap --level 4 --days 7 --reason "careful week"',
    "override list": "math",
    "override end": 'math 2 --reason "week is over"',
    "kill": '--reason "something is wrong"',
    "unkill": "--wait 10",
    "review list": "--route math",
    "review next": "--route math",
    "review adjudicate": "--route math",
    "review submit": "17 right",
    "review ask": 'ep_0123456789ab --reason "a customer asked"',
    "review stats": "--route math",
    "feedback import": "labels.csv",
    "feedback judge": "--route math --questions questions.jsonl",
    "feedback label-studio": "--url http://127.0.0.1:8081 --project 1",
    "export feedback": "feedback.csv",
    "export finetune": "runs.jsonl --out finetune",
    "export label-studio": "--route math --out tasks.json",
    "erase": '--older-than 90d --part comments --reason "retention"',
    "estimate": "requests.jsonl --max-em-drop 0.01",
    "record": "questions.jsonl --route math --out runs.jsonl",
    "replay": "runs.jsonl --max-em-drop 0.02",
    "tune": "runs.jsonl --max-em-drop 0.02 --route math",
}


def example_of(name: str) -> str:
    """Return the line to type for a command, such as "policy show"."""
    return f"suffice {name} {EXAMPLES.get(name, '')}".rstrip()
