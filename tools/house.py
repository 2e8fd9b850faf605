"""`make house`: the rules of this tree that no linter knows. Prints path:line: what is wrong; what is allowed."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.house.tree import DOCS, ROOT, SRC, files, parsed, python_files, short
from tools import vocabulary

MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 60
MAX_METHODS = 20
# Older classes with more methods. A number only falls, as a second object is found in the class.
WIDE_CLASSES = {
    "ChainReader": 25,
    "Database": 29,
    "Decisions": 24,
    "LearnedEvidence": 37,
    "Ledger": 24,
    "LiveAgent": 25,
    "NativeEvents": 21,
    "PairedEvidence": 24,
    "PostgresConnection": 24,
    "PostgresDatabase": 34,
    "RouteLoop": 24,
    "SqliteDatabase": 34,
    "StreamRelay": 26,
    "UpstreamClient": 21,
}
MAX_BASE_DISTRIBUTIONS = 25
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}
MAY_PRINT = (SRC / "cli",)
BANNED_MODULES = {
    "httpx": "a cancelled call can leave its pool unusable",
    "litellm": "it brings 60 distributions into the process that holds the keys",
    "pickle": "loading runs code",
    "marshal": "loading runs code",
    "shelve": "loading runs code",
}
BANNED_NAMES = {"BaseHTTPMiddleware": "it hides that the client has left"}
# Split, so that this file does not hold what it looks for.
REGISTRIES = ("pypi" + ".org", "python" + "hosted", "npm" + "js", "index" + "-url")
MACHINE_PATH = re.compile(r"(?<![\w.:/-])/(?:work|root|home|Users|opt)/[\w.-]+")
UNFORMATTED = re.compile(r"# fmt: " + r"(?:skip|off)")
BINARY = {".png", ".gguf", ".ico", ".db"}

CORE = ("settings", "signals", "policy", "scoring", "assurance", "model", "rollout", "review")
CORE_FILES = (SRC / "types.py", SRC / "errors.py", SRC / "upstream" / "wire.py")
CLOCKS = {"now", "utcnow", "today", "time", "monotonic", "perf_counter"}
DICE = {"random", "randint", "randrange", "choice", "choices", "shuffle", "sample", "uniform", "seed"}
FILES = {"open", "input", "exec", "eval", "__import__"}


@dataclass(frozen=True, slots=True, order=True)
class Violation:
    """One place where a rule is broken."""

    path: str
    line: int
    what: str
    allowed: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.what}; {self.allowed}"


@dataclass(frozen=True, slots=True)
class PythonFile:
    """A source file with its text and syntax tree."""

    path: Path
    text: str
    tree: ast.Module

    @property
    def name(self) -> str:
        return short(self.path) if self.path.is_relative_to(ROOT) else self.path.name

    def at(self, line: int, what: str, allowed: str) -> Violation:
        return Violation(self.name, line, what, allowed)


def read_python(path: Path) -> PythonFile:
    return PythonFile(path, path.read_text(encoding="utf-8"), parsed(path))


# --------------------------------------------------------------------------- one Python file


def check_sizes(file: PythonFile) -> Iterator[Violation]:
    """Files and functions fit on their screens."""
    n_lines = len(file.text.splitlines())
    if n_lines > MAX_FILE_LINES:
        yield file.at(1, f"a file of {n_lines} lines", f"at most {MAX_FILE_LINES}")
    for node in ast.walk(file.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                yield file.at(node.lineno, f"{node.name} has {length} lines", f"at most {MAX_FUNCTION_LINES}")


def check_classes(file: PythonFile) -> Iterator[Violation]:
    """A class that does everything is several objects in one."""
    for node in ast.walk(file.tree):
        if isinstance(node, ast.ClassDef):
            n_methods = sum(isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef) for one in node.body)
            most = WIDE_CLASSES.get(node.name, MAX_METHODS)
            if n_methods > most:
                yield file.at(node.lineno, f"{node.name} has {n_methods} methods", f"at most {most}")
            elif n_methods < most and node.name in WIDE_CLASSES:
                lower = f"{n_methods} in WIDE_CLASSES" if n_methods > MAX_METHODS else "no line in WIDE_CLASSES"
                yield file.at(node.lineno, f"{node.name} has only {n_methods} methods", lower)


def check_file_name(file: PythonFile) -> Iterator[Violation]:
    """No name is a drawer for anything."""
    if VAGUE_NAMES & {file.path.stem, file.path.parent.name}:
        yield file.at(1, "a name that says nothing", "say what it is about")


def check_formatting(file: PythonFile) -> Iterator[Violation]:
    """The formatter formats everything."""
    for number, line in enumerate(file.text.splitlines(), start=1):
        if UNFORMATTED.search(line):
            yield file.at(number, "a line that the formatter must leave alone", "no exemption; rewrite it")


def check_bans(file: PythonFile) -> Iterator[Violation]:
    """The package imports nothing that is banned, and only commands print."""
    may_print = any(file.path == place or place in file.path.parents for place in MAY_PRINT)
    for node in ast.walk(file.tree):
        names: Sequence[str] = ()
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(alias.name for alias in node.names)]
        elif not may_print and isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id == "print":
                yield file.at(node.lineno, "print()", "only commands print")
            continue
        for name in names:
            reason = BANNED_MODULES.get(name.split(".")[0]) or BANNED_NAMES.get(name)
            if reason:
                yield file.at(getattr(node, "lineno", 1), f"imports {name}", f"not allowed: {reason}")


def check_purity(file: PythonFile) -> Iterator[Violation]:
    """The core is a function of its arguments: no clock, no shared dice, no files."""
    for node in ast.walk(file.tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Name) and called.id in FILES:
            yield file.at(node.lineno, f"{called.id}() in the core", "take what it reads as an argument")
        if not isinstance(called, ast.Attribute) or not isinstance(called.value, ast.Name):
            continue
        owner, verb = called.value.id, called.attr
        if owner in {"datetime", "date", "time"} and verb in CLOCKS:
            yield file.at(node.lineno, f"{owner}.{verb}() in the core", "take the time as an argument")
        if owner == "random" and verb in DICE:
            yield file.at(node.lineno, f"random.{verb}() in the core", "take rng: random.Random")


def is_core(path: Path) -> bool:
    return SRC in path.parents and (path in CORE_FILES or path.relative_to(SRC).parts[0] in CORE)


# --------------------------------------------------------------------------- texts and documents


def check_texts() -> Iterator[Violation]:
    """No file names a machine or a registry, and none is a link: not every checkout keeps links."""
    for path in files():
        if path.is_symlink():
            yield Violation(short(path), 1, "a symbolic link", "a file of its own")
        if path.suffix in BINARY:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            for match in MACHINE_PATH.findall(line):
                yield Violation(short(path), number, f"names a path of one machine, {match}", "a relative path")
            for host in REGISTRIES:
                if host in line:
                    yield Violation(short(path), number, f"names a registry, {host}", "leave it to the installer")


def check_documents() -> Iterator[Violation]:
    """Links lead somewhere, every page is listed, and the changelog has the headings of keepachangelog.com."""
    for path in DOCS:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", line)
            named = re.findall(r"`((?:tests|src|docs|bench|requirements|tools)/[\w./-]+)`", line)
            targets = [path.parent / link for link in links if not link.startswith(("http://", "https://"))]
            for target in [*targets, *(ROOT / name for name in named)]:
                if not target.exists():
                    yield Violation(short(path), number, f"names {target.name}, which does not exist", "a file here")
    folder = ROOT / "docs"
    listed = set(re.findall(r"\]\(([\w/-]+\.md)", (folder / "README.md").read_text(encoding="utf-8")))
    for path in DOCS:
        if folder in path.parents and path.name != "README.md" and path.relative_to(folder).as_posix() not in listed:
            yield Violation(short(path), 1, "a page that docs/README.md does not list", "a line there")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    kinds = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
    for number, line in enumerate(changelog.splitlines(), start=1):
        if line.startswith("### ") and line[4:] not in kinds:
            yield Violation("CHANGELOG.md", number, f"the heading {line[4:]}", ", ".join(kinds))
    if "\n## [Unreleased]\n" not in changelog:
        yield Violation("CHANGELOG.md", 1, "no section [Unreleased]", "one, at the top")


def check_named_tests() -> Iterator[Violation]:
    """The docs, the tables beside the tests and the threat model name tests that exist."""
    for path in (*DOCS, *sorted((ROOT / "tests").rglob("README.md"))):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            named = re.findall(r"`(tests/[\w/]+\.py(?:::\w+)?)`", line)
            if re.match(r"\| P\d+ \| ", line) and not named:
                yield Violation(short(path), number, "a promise without a test", "the test that holds it")
            for test in named:
                if not is_test(test):
                    yield Violation(short(path), number, f"names {test}, which does not exist", "a test here")
    model = (ROOT / "docs" / "reference" / "security.md").read_text(encoding="utf-8")
    for path in sorted((ROOT / "tests" / "attacks").glob("test_*.py")):
        if f"`{path.name}`" not in model:
            yield Violation(short(path), 1, "not in docs/reference/security.md", "every file of attacks is named there")


def is_test(test: str) -> bool:
    file, _, name = test.partition("::")
    path = ROOT / file
    if not name or not path.exists():
        return path.exists()
    return any(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name for node in parsed(path).body
    )


# --------------------------------------------------------------------------- what is installed


def pins(path: Path) -> dict[str, str]:
    """Name and version of everything that a requirement file pins."""
    return dict(re.findall(r"^([\w.-]+)(?:\[[\w,.-]+\])?==([\w.+!-]+)", path.read_text(encoding="utf-8"), re.MULTILINE))


def check_requirements() -> Iterator[Violation]:
    """Everything installed is pinned with hashes, the same in all environments, and the base install is small."""
    folder = ROOT / "requirements"
    dev = pins(folder / "dev.txt")
    for name in ("base", "build", "demo", "dev", "docs", "image", "image-archive", "lock"):
        path = folder / f"{name}.txt"
        logical = path.read_text(encoding="utf-8").replace("\\\n", " ")
        lines = [line for line in logical.splitlines() if line.strip() and not line.lstrip().startswith("#")]
        for line in lines:
            if not re.match(r"[\w.-]+(\[[\w,.-]+\])?==\S+ .*--hash=sha256:[0-9a-f]{64}", line):
                yield Violation(short(path), 1, f"{line[:60]} is not pinned with a hash", "run `make lock`")
        if name in {"base", "build", "demo", "image", "image-archive"} and not pins(path).items() <= dev.items():
            yield Violation(short(path), 1, "pins another version than dev.txt", "run `make lock`")
    n_base = len(pins(folder / "base.txt"))
    if not 10 <= n_base <= MAX_BASE_DISTRIBUTIONS:
        yield Violation("requirements/base.txt", 1, f"{n_base} distributions", f"at most {MAX_BASE_DISTRIBUTIONS}")


def check_hints() -> Iterator[Violation]:
    """A hint on a missing extra names a declared one, and nothing names a distribution that no index has."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    unpublished = "suffice" + "["
    for path in (*python_files("src", "bench"), *sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if unpublished in line:
                yield Violation(short(path), number, "an extra of a distribution in no index", "suffice.extras")
            for name in re.findall(r"how_to_install\(['\"](.+?)['\"]\)", line):
                if name not in extras:
                    yield Violation(short(path), number, f"the extra {name}", ", ".join(sorted(extras)))


def check_circles(sources: Sequence[PythonFile]) -> Iterator[Violation]:
    """Files that import each other, be it for types alone."""
    files = {module_name(file.path): file for file in sources}
    graph = dict[str, set[str]]()
    for name, file in files.items():
        imported = set[str]()
        for node in ast.walk(file.tree):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                imported |= (inside & files.keys()) or {node.module}
        graph[name] = (imported & files.keys()) - {name}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle = error.args[1]
        yield Violation(short(files[circle[0]].path), 1, f"a circle: {' ← '.join(circle)}", "imports in one direction")


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")


# --------------------------------------------------------------------------- running


def check_all() -> tuple[list[Violation], list[str]]:
    """Everything that is wrong, and notes on ceilings that can come down."""
    sources = [read_python(path) for path in python_files("src")]
    others = [read_python(path) for path in python_files("tests", "bench", "examples", "tools")]
    violations: list[Violation] = []
    for file in (*sources, *others):
        for rule in (check_sizes, check_file_name, check_formatting):
            violations += rule(file)
    for file in sources:
        violations += check_bans(file)
        violations += check_classes(file)
        if is_core(file.path):
            violations += check_purity(file)
    violations += check_circles(sources)
    for check in (check_texts, check_documents, check_named_tests, check_requirements, check_hints):
        violations += check()
    by_rule: dict[str, list[Violation]] = defaultdict(list)
    texts = [path for suffix in ("html", "sql") for path in sorted((ROOT / "src").rglob(f"*.{suffix}"))]
    trees = [(file.path, file.tree) for file in sources]
    tests = [(file.path, file.tree) for file in others if file.path.is_relative_to(ROOT / "tests")]
    for rule_name, path, line, what, allowed in (*vocabulary.check(trees, texts), *vocabulary.check_tests(tests)):
        by_rule[rule_name].append(Violation(short(path), line, what, allowed))
    notes = []
    for rule_name in sorted({*by_rule, *vocabulary.CEILINGS}):
        broken, ceiling = by_rule[rule_name], vocabulary.CEILINGS.get(rule_name, 0)
        if len(broken) > ceiling:
            violations += broken
            notes.append(f"{rule_name}: {len(broken)}; the ceiling is {ceiling}")
        elif len(broken) < ceiling:
            notes.append(f"{rule_name}: {len(broken)}; lower its ceiling of {ceiling} in tools/vocabulary.py")
    return violations, notes


def main() -> int:
    """Print what is wrong, a line each; the exit status is 1 when there is something."""
    violations, notes = check_all()
    for line in (*sorted(set(violations)), *notes):
        print(line)
    print(f"{len(set(violations))} violations of the rules of the house")
    return int(bool(violations))


if __name__ == "__main__":
    sys.exit(main())
