"""The words of the house: what may not be said where people read or type it, with what to write instead.

Names of Python; strings that are keys, paths, labels or options (text with spaces is prose, where these are plain
words); names of files; addresses and fields of templates; names in SQL.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

# A word that only we knew, and the field's term. It may not be a whole name, nor a part between underscores.
WORDS = {
    "advice": "recommendations",
    "asked": "request, query",
    "brought": "transition, outcome",
    "deeds": "actions",
    "desk": "service, backend, context",
    "doors": "endpoints, auth",
    "found": "what the variable holds: rows, match, matches",
    "in_force": "active",
    "in_play": "eligible",
    "intake": "request, parsed request",
    "keeper": "certifier",
    "lot": "assignment",
    "lots": "assignments",
    "lottery": "assignment, sample ratio",
    "liking": "satisfaction",
    "outlook": "forecast",
    "rails": "guardrails",
    "said": "what the variable holds: text, answer, report",
    "shown": "sanitised, displayed",
    "stands": "active, holds",
    "told": "notified, reported",
    "trouble": "alert",
    "twice": "paired",
    "voice": "label source",
    "world": "regime",
}
# Words that only keys of the log and addresses said.
KEY_WORDS = {
    "begun": "start, change",
    "beginning": "start",
    "drawing": "draw",
    "kept": "what is kept: question, sources, stored",
    "made": "object, created",
    "sorry": "error",
    "switching": "state",
    "telling": "delivery, compared",
    "undoing": "undo",
    "weighed": "assessment",
}
_KIND = "a kind of rows: the column `kind` is unique with a row's key, is digested in the chain, and is read by 0.2"
_EARLIER = "a key of 0.2, written until the next release: gateways of 0.2 on the same log read it"
_EXTRACT = "a key of bundles that others verify"
_PATH = "a path of 0.2, which answers 308 until the next release"
_SIGNAL = "a signal's name: in settings, and in features of learned versions"
# Strings, or names in SQL, that say such a word: where they may ("": anywhere), and why they have to.
STRINGS_ALLOWED: dict[str, tuple[str, str]] = {
    "/experiments/shown": ("app.py", _PATH),
    "/policies/weighed": ("app.py", _PATH),
    "asked": ("types.py runs.py stream_relay.py live_costs.py", "an end of runs, in every log"),
    "cannot_be_asked": ("operations.py actions.py", "an error's code, which clients compare"),
    "kept": ("chain.py personal.py events.py .sql", f"{_EXTRACT}; of the chain; of texts, too long to write twice"),
    "kept_by": ("bundle.py .sql", f"{_EXTRACT}; a column of the view `requests`"),
    "lot": ("types.py context.py alerts.py .sql", "a value of `kept_by` in every log; a key of stored alerts"),
    "n_telling_audits": ("estimate.py", "a figure of `status --json` and of the API"),
    "not_found": ("", "the standard name of HTTP's 404"),
    "not_found_error": ("passthrough.py", "the name of an error in the Messages API"),
    "said": ("rules.py base.py wording.py", _SIGNAL),
    "told": ("chain.py", _EXTRACT),
    "telling": ("events.py estimate.py runs.py", f"{_EARLIER}; a sum that logs keep, behind `n_telling_audits`"),
    **dict.fromkeys(("begun", "beginning", "drawing", "made", "switching", "undoing"), ("events.py", _EARLIER)),
    **dict.fromkeys(("object_made", "question_kept", "review_asked", "rollout_begun", "sources_kept"), ("", _KIND)),
}
# A key, a path, a label, an option: text without spaces that is no regular expression.
KEY = re.compile(r"[\w./{}:$?=&-]+")
# What a template names: its addresses, and the fields that its forms send.
TEMPLATE_NAME = re.compile(r"""\b(?:href|src|action|hx-get|hx-post|name)="([^"{]*)|'(/[^' ]*)'""")
SQL_NAME = re.compile(r"--.*|(\w+)")
# Last words that look like participles and are nouns.
NOUNS = ("Embedding", "Feed", "Finding", "Mapping", "Need", "Ring", "Sampling", "Seed", "Set", "Setting", "String")
IRREGULAR = (
    "Begun|Born|Bought|Bound|Brought|Caught|Chosen|Done|Drawn|Driven|Found|Given|Gone|Held|Kept|Known|Left|Lent|Lost|Made|"
    "Met|Paid|Put|Read|Said|Seen|Sent|Set|Shown|Sold|Spent|Stood|Taken|Taught|Thrown|Told|Understood|Worn|Written"
)
PARTICIPLE = re.compile(rf"(?:[A-Z][a-z]*(?:ed|ing)|{IRREGULAR})$")
# Public classes of one name in two modules, each with its reason.
SAME_NAME_ALLOWED = {"Episode": "the library's handle of a run; in types it is the run's record, read from the log"}
SMALL_FILE_LINES = 40
DATABASES = ("suffice.store.database.postgres", "suffice.store.database.sqlite")
KNOW_DATABASES = {
    *(("database", name) for name in ("location.py", "postgres.py", "schema.py", "sqlite.py")),
    ("store", "supervised.py"),
}

# Names that clash and may: a command may share the name of what it calls. At most so many; a number only goes down.
CEILINGS: dict[str, int] = {"function defined twice": 7, "an old word in a name of tests": 91}

Row = tuple[str, Path, int, str, str]  # rule, file, line, what is wrong, what is allowed
Tree = tuple[Path, ast.Module]


def check(trees: Sequence[Tree], texts: Sequence[Path] = ()) -> Iterator[Row]:
    """All rules of this page over the package, and over its templates and queries."""
    yield from check_duplicates(trees)
    yield from check_small_files(trees)
    for path, tree in trees:
        yield from check_words(path, tree)
        yield from check_strings(path, tree)
        yield from check_databases(path, tree)
    for path in (*(path for path, _ in trees), *texts):
        yield from find_words("a file's name", path, 1, path.stem, WORDS | {"sorry": "error", "weighed": "assessment"})
    for path in texts:
        yield from check_text(path)


def check_duplicates(trees: Sequence[Tree]) -> Iterator[Row]:
    """A public class has a name of its own; a function may share its name with the command that calls it."""
    where: dict[tuple[str, str], list[tuple[Path, int]]] = defaultdict(list)
    for path, tree in trees:
        for node in tree.body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name[0] == "_":
                continue
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            where[kind, node.name].append((path, node.lineno))
            if isinstance(node, ast.ClassDef) and is_participle(path, node):
                yield "class named by a participle", path, node.lineno, f"class {node.name}", "a noun"
    for (kind, name), places in where.items():
        if len(places) > 1 and name not in SAME_NAME_ALLOWED:
            path, line = places[0]
            others = ", ".join(other.stem for other, _ in places[1:])
            yield f"{kind} defined twice", path, line, f"{kind} {name}, also in {others}", "one definition"


def is_participle(path: Path, node: ast.ClassDef) -> bool:
    """Events in `store/rows` are named in the past tense, as everywhere; an exception may say what happened."""
    if path.parent.name == "rows" or any(
        "Error" in ast.unparse(base) or "Exception" in ast.unparse(base) for base in node.bases
    ):
        return False
    return bool(PARTICIPLE.search(node.name)) and not node.name.endswith(NOUNS)


def check_small_files(trees: Sequence[Tree]) -> Iterator[Row]:
    """A small file with one importer belongs in it."""
    paths = {_module_of(path): path for path, _ in trees if path.name != "__init__.py"}
    importers: dict[str, set[Path]] = defaultdict(set)
    for path, tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            for name in names:
                importers[name].add(path)
    for module, path in paths.items():
        n_lines = len(path.read_text(encoding="utf-8").splitlines())
        if n_lines < SMALL_FILE_LINES and len(importers[module]) == 1:
            (importer,) = importers[module]
            what = f"{n_lines} lines with one importer"
            yield "small file with one importer", path, 1, what, f"its code in {importer.name}"


def _module_of(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[len(parts) - 1 - parts[::-1].index("suffice") :])


def check_words(path: Path, tree: ast.Module) -> Iterator[Row]:
    """Names that a file defines use the field's words."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        elif isinstance(node, ast.arg):
            name = node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = node.name
        else:
            continue
        yield from find_words("a name", path, node.lineno, name, WORDS)


def check_tests(trees: Sequence[Tree]) -> Iterator[Row]:
    """Names of files, variables, helpers and keys in tests; a test's own name is a sentence, where these are words."""
    for path, tree in trees:
        names = (row for row in check_words(path, tree) if not row[3].startswith("the name test_"))
        for row in (*find_words("a file's name", path, 1, path.stem, WORDS), *names):
            yield "an old word in a name of tests", *row[1:]


def check_strings(path: Path, tree: ast.Module) -> Iterator[Row]:
    """Strings that are keys, paths, labels or options use the field's words, too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and KEY.fullmatch(node.value):
            yield from find_words("a string", path, node.lineno, node.value, WORDS | KEY_WORDS)


def check_text(path: Path) -> Iterator[Row]:
    """Addresses and fields of a template, and names in SQL outside comments."""
    pattern = TEMPLATE_NAME if path.suffix == ".html" else SQL_NAME
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        for match in pattern.finditer(line):
            for name in filter(None, match.groups()):
                yield from find_words(path.suffix[1:], path, number, name, WORDS | KEY_WORDS)


def find_words(where: str, path: Path, line: int, name: str, words: Mapping[str, str]) -> Iterator[Row]:
    files, _ = STRINGS_ALLOWED.get(name, ("none", ""))
    if where != "a name" and any(str(path).endswith(file) for file in files.split() or ("",)):
        return
    parts = re.sub(r"[^a-z0-9]+", "_", f"_{re.sub(r'(?<=[a-z])(?=[A-Z])', '_', name).lower()}_")
    for word, better in words.items():
        if f"_{word}_" in parts:
            yield f"the word {word} in {where}", path, line, f"the name {name}", f"write {better}"


def check_databases(path: Path, tree: ast.Module) -> Iterator[Row]:
    """Only a database's own files and the register of URL schemes know which databases there are."""
    if path.parts[-2:] in KNOW_DATABASES:
        return
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.split(".")[0] in ("sqlite3", "psycopg") or name in DATABASES:
                assert isinstance(node, ast.stmt)
                yield "kind of database", path, node.lineno, f"imports {name}", "a method of store.database.protocol"
                break
