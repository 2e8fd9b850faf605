"""The rules of `make house` see what they forbid."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tools import house, vocabulary

from tests.house.tree import SRC

GUILTY: dict[str, tuple[Callable[[house.PythonFile], Iterator[house.Violation]], str, int]] = {
    "a clock, shared dice, a file": (
        house.check_purity,
        "import random\nrandom.choice([1])\ndatetime.now()\nopen('x')\n",
        3,
    ),
    "a long file": (house.check_sizes, "x = 1\n" * 601, 1),
    "a long function": (house.check_sizes, "def f():\n" + "    x = 1\n" * 60, 1),
    "a wide class": (house.check_classes, "class A:\n" + "    def f(self): ...\n" * (house.MAX_METHODS + 1), 1),
    "a ceiling that can come down": (house.check_classes, f"class {next(iter(house.WIDE_CLASSES))}: ...\n", 1),
    "a banned module": (house.check_bans, "import pickle\nfrom httpx import get\n", 2),
    "a print": (house.check_bans, "print(1)\n", 1),
    "an unformatted line": (house.check_formatting, "x = 1  # fmt: " + "skip\n", 1),
}


@pytest.mark.parametrize("name", GUILTY)
def test_a_rule_on_one_file_sees_what_it_forbids(name: str) -> None:
    rule, text, n = GUILTY[name]
    assert len(list(rule(house.PythonFile(SRC / "guilty.py", text, ast.parse(text))))) == n
    assert not list(rule(house.PythonFile(SRC / "innocent.py", "x = 1\n", ast.parse("x = 1\n"))))


@pytest.mark.parametrize(("imported", "n"), [("from suffice import c", 0), ("from suffice.a import x", 1)])
def test_files_that_import_each_other_are_seen(imported: str, n: int) -> None:
    texts = {"a": "from suffice import b\nx = 1\n", "b": f"if TYPE_CHECKING:\n    {imported}\n", "c": "y = 1\n"}
    tree = [house.PythonFile(SRC / f"{name}.py", text, ast.parse(text)) for name, text in texts.items()]
    assert len(list(house.check_circles(tree))) == n


def rules_broken(tmp_path: Path, **modules: str) -> list[str]:
    """The rules of the vocabulary that a package of these modules breaks."""
    folder = tmp_path / "suffice"
    folder.mkdir()
    trees = []
    for name, text in modules.items():
        path = folder / f"{name}.py"
        path.write_text(text, encoding="utf-8")
        trees.append((path, ast.parse(text)))
    return sorted(row[0] for row in vocabulary.check(trees))


@pytest.mark.parametrize(
    ("name", "text", "rule"),
    [
        ("keys.py", 'BODY = {"telling": 1}', "the word telling in a string"),
        ("paths.py", 'PATH = f"/api/{1}/weighed"', "the word weighed in a string"),
        ("options.py", 'OPTION = "--in-force"', "the word in_force in a string"),
        ("metrics.py", 'NAME = "suffice_found_total"', "the word found in a string"),
        ("lottery.py", "x = 1", "the word lottery in a file's name"),
        ("sorry.html", "", "the word sorry in a file's name"),
        ("a.html", '<a href="/console/policies/weighed?x=1">told</a>', "the word weighed in html"),
        ("a.html", '<input name="told">', "the word told in html"),
        ("a.html", "<a href=\"{{ link('/console/found', {'x': made.x}) }}\">", "the word found in html"),
        ("a.sql", "SELECT body -> 'undoing' FROM events -- undoing", "the word undoing in sql"),
    ],
)
def test_old_words_are_seen_in_what_people_read_or_type(tmp_path: Path, name: str, text: str, rule: str) -> None:
    path = tmp_path / "suffice" / name
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8")
    is_python = path.suffix == ".py"
    rows = vocabulary.check([(path, ast.parse(text))], ()) if is_python else vocabulary.check((), [path])
    assert [row[0] for row in rows] == [rule]


def test_old_words_are_seen_in_tests_but_for_the_sentence_that_names_a_test() -> None:
    tree = ast.parse("def test_what_is_said_twice():\n    found = 1\nclass Keeper: ...\ndef helper(told): ...\n")
    rows = list(vocabulary.check_tests([(Path("tests/store/test_lottery.py"), tree)]))
    assert [row[3] for row in rows] == ["the name test_lottery", "the name Keeper", "the name found", "the name told"]


def test_prose_and_what_cannot_change_are_not_counted(tmp_path: Path) -> None:
    text = '"""He said so."""\nMESSAGE = "no run was found"\nKIND = "review_asked"\nx = r"\\bmade (a|the) mistake"\n'
    assert rules_broken(tmp_path, a=text) == []


def test_each_string_that_may_say_an_old_word_is_still_in_use() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in SRC.rglob("*") if path.suffix in (".py", ".sql"))
    assert not [name for name in vocabulary.STRINGS_ALLOWED if not re.search(rf"(?<!\w){name}\b", text)]
    assert all(reason for _, reason in vocabulary.STRINGS_ALLOWED.values())


def test_the_vocabulary_sees_what_it_forbids(tmp_path: Path) -> None:
    a = "import sqlite3\nclass Seen: ...\nclass Rows: ...\ndef f(): ...\nfound = 1\ndef g(told): ...\n"
    b = "from suffice.a import Rows\nclass Rows: ...\ndef f(): ...\n"
    assert rules_broken(tmp_path, a=a, b=b) == [
        "class defined twice",
        "class named by a participle",
        "function defined twice",
        "kind of database",
        "small file with one importer",
        "the word found in a name",
        "the word told in a name",
    ]


@pytest.mark.parametrize(
    "text",
    ["import psycopg", "from suffice.store.database import sqlite", "from suffice.store.database.postgres import X"],
)
def test_who_asks_which_database_it_has_is_noticed(tmp_path: Path, text: str) -> None:
    assert rules_broken(tmp_path, a=f"{text}\n") == ["kind of database"]


@pytest.mark.parametrize("name", ["Setting", "FeatureSet", "Seed", "KeyRing"])
def test_a_noun_that_looks_like_a_participle_is_none(tmp_path: Path, name: str) -> None:
    assert rules_broken(tmp_path, a=f"class {name}: ...\n") == []


def test_a_name_that_is_no_word_of_the_list_is_fine(tmp_path: Path) -> None:
    assert rules_broken(tmp_path, a="founder = 1\nclass Allotment: ...\n") == []


def test_a_test_that_does_not_exist_is_noticed() -> None:
    assert house.is_test("tests/house/test_gates.py::test_a_test_that_does_not_exist_is_noticed")
    assert not house.is_test("tests/house/test_gates.py::test_of_nothing")
    assert not house.is_test("tests/house/test_nothing.py")
