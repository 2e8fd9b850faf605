"""llama.cpp's own server tests, run against a local server directly and through the gateway.

    make peer-suite             (or: python -m tests.peers.llama_cpp [TEST FILE …] [--modes off observe])

The promise: what passes directly passes through the gateway, and what fails directly fails there. The
tests expect a model and options that we do not have, so many of them fail; that both sets are the same is
what counts. They are fetched when this runs, by pip and with a pinned hash, and are never part of this tree.

A test that does not end the same way twice in direct runs is left out and counted as unsteady. One that differs through
the gateway is run again on both sides, because some of these tests depend on time and chance: a fixed answer
within ten tokens at temperature 0.8, for one, passes about two times in three, directly too.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from suffice.server import serve_in_loop
from suffice.settings import Settings, parse_settings
from suffice_demo.local import weights
from suffice_demo.local.server import LocalServer, ServerSpec

HERE = Path(__file__).parent
TESTS = "vendor/llama.cpp/tools/server/tests"
FILES = (
    "test_basic",
    "test_chat_completion",
    "test_completion",
    "test_compat_anthropic",
    "test_compat_oai_responses",
    "test_embedding",
    "test_ignore_eos",
    "test_infill",
    "test_security",
    "test_stream",
    "test_template",
    "test_tokenize",
)
# Paths that these tests ask for and that are llama.cpp's own.
RELAY = (
    "GET /",
    "GET /health",
    "GET /props",
    "POST /props",
    "GET /slots",
    "GET /lora-adapters",
    "POST /lora-adapters",
    "POST /completion",
    "POST /completions",
    "POST /embedding",
    "POST /embeddings",
    "POST /infill",
    "POST /rerank",
    "POST /tokenize",
    "POST /detokenize",
    "POST /apply-template",
    "POST /chat/completions/input_tokens",
    "OPTIONS /completions",
    "GET /v1/stream",
    "DELETE /v1/stream",
    "GET /sw.js",
    "GET /manifest.webmanifest",
    "GET /_app/version.json",
)
TEST_TIMEOUT_S = 20
RUN_TIMEOUT_S = 1_800  # of one file, in one way
N_AGAIN = 3  # how often a test that differs is run again before it counts

Results = dict[str, str]  # test id → passed, failed, skipped


def prepared(cache: Path) -> tuple[Path, Path]:
    """The tests' folder and the Python to run them with; both are made once and kept in `cache`."""
    folder = cache / "peers" / "llama_cpp"
    folder.mkdir(parents=True, exist_ok=True)
    python = folder / "venv" / "bin" / "python"
    if not (folder / "venv" / ".ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder / "venv")], check=True)
        pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input", "install"]
        subprocess.run([*pip, "--require-hashes", "-r", str(HERE / "llama_cpp.txt")], check=True)
        (folder / "venv" / ".ready").touch()
    result = next(folder.glob(f"*/{TESTS}/utils.py"), None)
    if result is None:
        pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input", "download"]
        subprocess.run(
            [
                *pip,
                "--no-deps",
                "--no-binary",
                "llama-cpp-python",
                "--require-hashes",
                "--dest",
                str(folder),
                "-r",
                str(HERE / "llama_cpp_source.txt"),
            ],
            check=True,
        )
        with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
            wanted = [m for m in archive.getmembers() if f"/{TESTS}/" in m.name]
            archive.extractall(folder, members=wanted, filter="data")
        result = next(folder.glob(f"*/{TESTS}/utils.py"))
    return result.parent, python


async def run(tests: Path, python: Path, port: int, names: Iterable[str]) -> Results:
    """Run tests, whole files or single ones, against the server on a port."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        process = await asyncio.create_subprocess_exec(
            str(python),
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "header_case",
            "-m",
            "not slow",
            f"--timeout={TEST_TIMEOUT_S}",
            f"--junitxml={report}",
            f"--basetemp={scratch}/tmp",
            *names,
            cwd=tests,
            env={**os.environ, "PORT": str(port), "DEBUG_EXTERNAL": "1", "PYTHONPATH": f"{tests}{os.pathsep}{HERE}"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            await asyncio.wait_for(process.wait(), RUN_TIMEOUT_S)
        except TimeoutError:
            process.kill()
            await process.wait()
            raise
        return read_report(report)


def read_report(report: Path) -> Results:
    """Test ids and how they ended."""
    result: Results = {}
    for case in ET.parse(report).getroot().iter("testcase"):
        file = case.get("classname", "").replace(".", "/") + ".py"
        ends = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        result[f"{file}::{case.get('name')}"] = {"skipped": "skipped"}.get(ends[0], "failed") if ends else "passed"
    return result


def settings_for(upstream: str, mode: str, folder: Path) -> Settings:
    """A gateway in front of the server, with the engine's own paths listed."""
    return parse_settings(
        {
            "server": {"relay": list(RELAY)},
            "upstreams": {"local": {"url": upstream, "driver": "llama.cpp", "slots": 2}},
            "routes": {"all": {"upstream": "local", "mode": mode}},
            "store": {"url": f"sqlite:///{folder / f'{mode}.db'}"},
        }
    )


def port_of(url: str) -> int:
    """The port at the end of a base address."""
    return int(url.rpartition(":")[2])


def n_passed(results: Mapping[str, str]) -> int:
    """How many tests passed."""
    return sum(end == "passed" for end in results.values())


def differing(direct: Mapping[str, str], through: Mapping[str, str]) -> list[str]:
    """Tests that ended in another way."""
    return sorted(t for t in direct.keys() | through.keys() if direct.get(t) != through.get(t))


async def compare(tests: Path, python: Path, upstream: str, modes: Sequence[str], names: Sequence[str]) -> int:
    """Run file after file; print how each ended where; return the number of differences."""
    print(f"| file | tests | direct | unsteady | {' | '.join(f'{mode} | differ' for mode in modes)} |")
    print(f"| --- | --- | --- | --- | {' | '.join('--- | ---' for _ in modes)} |", flush=True)
    rows, n_different = list[Sequence[int]](), 0
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            direct = await run(tests, python, port_of(upstream), [name])
            again = await run(tests, python, port_of(upstream), [name])
            steady = {t: end for t, end in direct.items() if again.get(t) == end}
            row, output = [len(direct), n_passed(steady), len(direct.keys() | again.keys()) - len(steady)], list[str]()
            for mode in modes:
                async with serve_in_loop(settings_for(upstream, mode, Path(scratch))) as url:
                    mine = await run(tests, python, port_of(url), [name])
                    mine = {t: end for t, end in mine.items() if t in steady or t not in direct.keys() | again.keys()}
                    left = await _confirmed(tests, python, upstream, url, steady, differing(steady, mine))
                row += [n_passed(mine), len(left)]
                output += [f"  {mode}: {test}: {steady.get(test)} directly, {mine.get(test)} through" for test in left]
                n_different += len(left)
            rows.append(row)
            print(f"| {Path(name).stem} | {' | '.join(map(str, row))} |", *output, sep="\n", flush=True)
    print(f"| all {len(names)} | {' | '.join(str(sum(column)) for column in zip(*rows, strict=True))} |")
    print("Direct and through the gateway: tests that passed, of those that end directly twice in the same way.")
    return n_different


async def _confirmed(
    tests: Path, python: Path, upstream: str, url: str, direct: Mapping[str, str], suspects: list[str]
) -> list[str]:
    """Those of the suspects that, run again and again on both sides, never end through as they ever did directly."""
    seen = {t: {direct.get(t)} for t in suspects}
    for _ in range(N_AGAIN):
        if not suspects:
            break
        again = await run(tests, python, port_of(upstream), suspects)
        through = await run(tests, python, port_of(url), suspects)
        for test in suspects:
            seen[test].add(again.get(test))
        suspects = [t for t in suspects if through.get(t) not in seen[t]]
    return suspects


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 when a test ends differently through the gateway, 0 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m tests.peers.llama_cpp")
    parser.add_argument("files", nargs="*", metavar="FILE", help=f"without .py: {', '.join(FILES)}; all by default")
    parser.add_argument("--modes", nargs="+", choices=("off", "observe", "enforce"), default=["off", "observe"])
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.files if name not in FILES]:
        parser.error(f"FILE: got {unknown[0]!r}; choose from {', '.join(FILES)}")
    tests, python = prepared(weights.cache_folder())
    spec = ServerSpec(model_path=weights.fetch("smol"), alias="local", n_parallel=2)
    with LocalServer(spec) as server:
        names = [f"unit/{name}.py" for name in options.files or FILES]
        n_different = asyncio.run(compare(tests, python, server.url, options.modes, names))
    print("equal" if not n_different else f"{n_different} tests differ")
    return 1 if n_different else 0


if __name__ == "__main__":
    sys.exit(main())
