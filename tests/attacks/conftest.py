"""`--peers`: the attacks that are made on other gateways, too, and their table at the end."""

from __future__ import annotations

import pytest

OUTCOME = "outcome of an attack"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--peers", action="store_true", help="attack LiteLLM and TensorZero, too, and print a table")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "attacked" in metafunc.fixturenames:
        others = ("LiteLLM", "TensorZero") if metafunc.config.getoption("--peers") else ()
        metafunc.parametrize("attacked", ("Suffice", *others), indirect=True, scope="session")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    rows = dict[str, dict[str, str]]()
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == OUTCOME:
                    attack, target, outcome = value
                    rows.setdefault(attack, {})[target] = outcome
    targets = sorted({target for row in rows.values() for target in row}, key=lambda name: (name != "Suffice", name))
    if terminalreporter.config.getoption("--peers") and targets:
        lines = [["attack", *targets], ["---"] * (1 + len(targets))]
        lines += [[attack, *(row.get(target, "not made") for target in targets)] for attack, row in rows.items()]
        terminalreporter.write_line("")
        for line in lines:
            terminalreporter.write_line(f"| {' | '.join(line)} |")
