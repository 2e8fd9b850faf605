"""The examples run as a user runs them, in front of a fake model; their tools and their gold are exact."""

from __future__ import annotations

import importlib
import os
import re
import runpy
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest
from tools.house import pins

from suffice_testing import FakeUpstream, Reply
from suffice_testing.prompt import cut
from suffice_testing.reply import FakeRequest
from tests.house.tree import ROOT
from tests.local.cached import cached

EXAMPLES = ROOT / "examples"
FRAMEWORKS = {"langgraph_rag": "langgraph", "dspy_rag": "dspy", "pydantic_ai_agent": "pydantic-ai-slim"}


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> object:
    """Import a module of the examples as it stands in its folder."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def get(name: str) -> ModuleType:
        return importlib.import_module(name)

    return get


def reads(passages: str) -> str:
    """A model that finds the country once its passages name it; before, it says what it saw last."""
    born = re.findall(r"was born in ([\w ]+)\.", passages)
    known = dict(re.findall(r"([A-Z][\w ]*) is the capital of ([\w ]+)\.", passages))
    return next((known[city] for city in born if city in known), born[-1] if born else "Nowhere")


def says(request: FakeRequest) -> Reply:
    """What the fake model answers to each of the loops."""
    messages = request.messages
    last = str(messages[-1]["content"])
    if "Answer with the name of the country only." in last:
        text = reads(last)
    elif str(messages[0]["content"]).startswith("Solve the problem."):
        text = f"CALC {len(messages)} * 0 + 7" if len(messages) > 10 else "CALC 1 + 1"
    else:
        text = "1 + 1 = 2"
    return Reply(answer=cut(text))


def run(name: str, url: str, *more: str) -> str:
    """The program's output."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), *more],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"SUFFICE_EXAMPLES_URL": url},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def table(printed: str) -> dict[str, tuple[float, float]]:
    """EM in percent and steps of both passes."""
    result = re.findall(r"^  (full|governed) +([\d.]+)% +([\d.]+)", printed, re.MULTILINE)
    return {name: (float(em), float(steps)) for name, em, steps in result}


def runs(printed: str, which: str) -> list[tuple[int, bool]]:
    """Steps of each run of one pass, and whether it was stopped."""
    result = re.findall(rf"^  {which} .* steps=(\d+), .* stopped=(True|False)\)$", printed, re.MULTILINE)
    return [(int(steps), stopped == "True") for steps, stopped in result]


# steps of a full run; audits, a tenth by chance, take as many
LOOPS = [("iterative_rag", 6), ("self_revision", 3), ("tool_agent", 6)]


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize(("name", "n_full"), LOOPS)
def test_an_example_runs_saves_and_says_what_it_cost(name: str, n_full: int) -> None:
    with FakeUpstream.in_thread(says) as fake:
        printed = run(name, fake.url, "--questions", "8", "--verbose")
    result, governed = table(printed), runs(printed, "governed")
    assert runs(printed, "full") == [(n_full, False)] * 8
    assert all(2 <= steps < n_full if stopped else steps == n_full for steps, stopped in governed)
    n_stopped = sum(stopped for _, stopped in governed)
    assert n_stopped >= 2
    assert result["full"][1] == n_full
    assert result["governed"][1] == pytest.approx(sum(steps for steps, _ in governed) / 8, abs=0.051), "one digit"
    saved = re.search(r"tokens saved: ([\d.]+)% generated, ([\d.]+)% with prompts; (\d) of 8 runs stopped", printed)
    assert saved is not None
    assert float(saved[1]) > 0
    assert int(saved[3]) == n_stopped
    assert printed.count(" gold ") == 16
    if name == "iterative_rag":
        assert result["full"][0] >= 50.0


@pytest.mark.slow
def test_the_agent_behind_the_gateway_saves_and_does_its_tasks() -> None:
    printed = run("gateway_agent", "", "--questions", "1")
    figures = re.findall(
        r"^  (full|gateway|and turns|and loop) +tasks done (\d) of 1, ([\d.]+) tokens", printed, re.MULTILINE
    )
    assert [name for name, *_ in figures] == ["full", "gateway", "and turns", "and loop"]
    assert {done for _, done, _ in figures} == {"1"}
    full, *others = (float(tokens) for *_, tokens in figures)
    assert max(others) < full


def test_the_questions_have_one_answer_each_and_the_index_finds_the_way_to_it(example: type) -> None:
    corpus, rag, bm25 = example("corpus"), example("iterative_rag"), example("bm25")
    index, requested = bm25.Index(corpus.corpus()), corpus.questions(24)
    assert len(index.passages) == 402
    assert len(set(index.passages)) == 402
    n_matches = 0
    for question in requested:
        passages: list[str] = []
        query = question.text
        for _ in range(rag.ROUNDS):
            passages += index.search(query, 1, without=passages)
            query = rag.next_query(question.text, passages[-1])
        assert len(set(passages)) == rag.ROUNDS
        n_matches += reads("\n".join(passages)) == question.gold
    assert n_matches >= 16


def test_the_index_ranks_by_rare_words(example: type) -> None:
    index = example("bm25").Index(["the cat sat", "the dog sat", "the cat ran off with the dog", "a bird"])
    assert index.search("the cat sat", 1) == ["the cat sat"]
    assert index.search("cat", 9) == ["the cat sat", "the cat ran off with the dog"]
    assert index.search("bird", 3) == ["a bird"]
    assert index.search("bird", 3, without=["a bird"]) == []
    assert index.search("zebra", 3) == []


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        ("4 * 6 - 5", "19"),
        (" (1+2)*3 ", "9"),
        ("7 / 2", "3.5"),
        ("-3 + 1", "-2"),
        ("1 / 0", "error"),
        ("2 ** 9", "error"),
        ("__import__('os')", "error"),
        ("a + 1", "error"),
        ("", "error"),
        ("(" * 500, "error"),
    ],
)
def test_the_calculator_reads_sums_and_nothing_else(example: type, written: str, answer: str) -> None:
    assert example("tool_agent").calculate(written).startswith(answer)


def test_every_example_is_run_by_make_and_pinned_where_it_needs_another_library() -> None:
    listed = (EXAMPLES / "__main__.py").read_text(encoding="utf-8")
    programs = {path.stem for path in EXAMPLES.glob("*.py") if "def main()" in path.read_text(encoding="utf-8")}
    assert programs - {"__main__"} == {"iterative_rag", "self_revision", "tool_agent", "gateway_agent", *FRAMEWORKS}
    base = pins(ROOT / "requirements" / "base.txt")
    for name, package in FRAMEWORKS.items():
        environment = re.search(rf'"{name}": "([\w-]+)"', listed)
        assert environment is not None, name
        wanted = EXAMPLES / "requirements" / f"{environment[1]}.txt"
        assert re.search(rf"^{package}(\[\w+\])?==", wanted.read_text(encoding="utf-8"), re.MULTILINE)
        assert "--hash=sha256:" in wanted.read_text(encoding="utf-8")
        assert base.items() <= pins(wanted).items(), f"{wanted.name} lacks what suffice needs; run make lock-clients"


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_an_environment_of_a_framework_needs_none_of_our_packages_installed(name: str) -> None:
    """`-S` reads no `.pth` file, so what is installed here from this folder cannot be imported."""
    ours = runpy.run_path(str(EXAMPLES / "__main__.py"))["SOURCES"]
    imported = re.findall(r"^from (\w+) import", (EXAMPLES / f"{name}.py").read_text(encoding="utf-8"), re.MULTILINE)
    shared = [module for module in imported if (EXAMPLES / f"{module}.py").is_file()]
    path = os.pathsep.join(map(str, (EXAMPLES, *ours, sysconfig.get_path("purelib"))))
    command = [sys.executable, "-S", "-c", f"import {', '.join(shared)}"]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=60, check=False
    )
    assert shared
    assert done.returncode == 0, done.stderr


@pytest.mark.model
def test_the_first_example_runs_on_the_real_model() -> None:
    cached("qwen0.5b")
    environment = {k: v for k, v in os.environ.items() if k != "SUFFICE_EXAMPLES_URL"}
    program = str(Path("examples") / "iterative_rag.py")
    done = subprocess.run(
        [sys.executable, program, "--questions", "1"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    assert table(done.stdout)["full"][1] == 6.0
