"""llama.cpp's own server tests, run against a local server directly and through the gateway.

    make peer-suite             (or: python -m tests.peers.llama_cpp [--modes off observe] [TEST FILE …])

The promise: what passes directly passes through the gateway, and what fails directly fails there. The
tests expect a model and options that we do not have, so many of them fail; that both sets are the same is
what counts. They are fetched when this runs, by pip and with a pinned hash, and are never part of this tree.

A test that does not end the same way twice in direct runs is left out and named. One that differs through
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

from suffice.local import weights
from suffice.local.server import LocalServer, ServerSpec
from suffice.server import serving
from suffice.settings import Settings, parse

HERE = Path(__file__).parent
TESTS = "vendor/llama.cpp/tools/server/tests"
FILES = (
    "test_basic", "test_chat_completion", "test_completion", "test_compat_anthropic", "test_compat_oai_responses",
    "test_embedding", "test_ignore_eos", "test_infill", "test_security", "test_stream", "test_template",
    "test_tokenize",
)  # fmt: skip
# Paths that these tests ask for and that are llama.cpp's own.
RELAY = (
    "GET /", "GET /health", "GET /props", "POST /props", "GET /slots", "GET /lora-adapters", "POST /lora-adapters",
    "POST /completion", "POST /completions", "POST /embedding", "POST /embeddings", "POST /infill", "POST /rerank",
    "POST /tokenize", "POST /detokenize", "POST /apply-template", "POST /chat/completions/input_tokens",
    "OPTIONS /completions", "GET /v1/stream", "DELETE /v1/stream", "GET /sw.js",
    "GET /manifest.webmanifest", "GET /_app/version.json",
)  # fmt: skip
TEST_TIMEOUT_S = 20
RUN_TIMEOUT_S = 1_800
N_AGAIN = 3   # how often a test that differs is run again before it counts

Results = dict[str, str]   # test id → passed, failed, skipped


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
    found = next(folder.glob(f"*/{TESTS}/utils.py"), None)
    if found is None:
        pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input", "download"]
        subprocess.run(
            [*pip, "--no-deps", "--no-binary", "llama-cpp-python", "--require-hashes", "--dest", str(folder),
             "-r", str(HERE / "llama_cpp_source.txt")],
            check=True,
        )  # fmt: skip
        with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
            wanted = [m for m in archive.getmembers() if f"/{TESTS}/" in m.name]
            archive.extractall(folder, members=wanted, filter="data")
        found = next(folder.glob(f"*/{TESTS}/utils.py"))
    return found.parent, python


async def run(tests: Path, python: Path, port: int, names: Iterable[str]) -> Results:
    """Run tests, whole files or single ones, against the server on a port."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        process = await asyncio.create_subprocess_exec(
            str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "header_case", "-m", "not slow",
            f"--timeout={TEST_TIMEOUT_S}", f"--junitxml={report}", f"--basetemp={scratch}/tmp", *names,
            cwd=tests,
            env={**os.environ, "PORT": str(port), "DEBUG_EXTERNAL": "1", "PYTHONPATH": f"{tests}{os.pathsep}{HERE}"},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            await asyncio.wait_for(process.wait(), RUN_TIMEOUT_S)
        except TimeoutError:
            process.kill()
            await process.wait()
            raise
        return read_report(report)


def read_report(report: Path) -> Results:
    """Test ids and how they ended."""
    found: Results = {}
    for case in ET.parse(report).getroot().iter("testcase"):
        file = case.get("classname", "").replace(".", "/") + ".py"
        ends = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        found[f"{file}::{case.get('name')}"] = {"skipped": "skipped"}.get(ends[0], "failed") if ends else "passed"
    return found


def settings_for(upstream: str, mode: str, folder: Path) -> Settings:
    """A gateway in front of the server, with the engine's own paths listed."""
    return parse({
        "server": {"relay": list(RELAY)},
        "upstreams": {"local": {"url": upstream, "driver": "llama.cpp", "slots": 2}},
        "routes": {"all": {"upstream": "local", "mode": mode}},
        "store": {"url": f"sqlite:///{folder / f'{mode}.db'}"},
    })  # fmt: skip


def port_of(url: str) -> int:
    """The port at the end of a base address."""
    return int(url.rpartition(":")[2])


def n_passed(results: Mapping[str, str]) -> int:
    """How many tests passed."""
    return sum(end == "passed" for end in results.values())


def differing(direct: Mapping[str, str], through: Mapping[str, str]) -> list[str]:
    """Tests that ended in another way."""
    return sorted(t for t in direct.keys() | through.keys() if direct.get(t) != through.get(t))


async def compare(tests: Path, python: Path, upstream: str, modes: Sequence[str], files: Sequence[str]) -> int:
    """Run everything; print what passed where; return the number of differences."""
    direct = await run(tests, python, port_of(upstream), files)
    print(f"direct: {n_passed(direct)} of {len(direct)} pass", flush=True)
    again = await run(tests, python, port_of(upstream), files)
    unsteady = set(differing(direct, again))
    print(f"direct, again: {n_passed(again)} of {len(again)} pass; left out as unsteady: {len(unsteady)}")
    for test in sorted(unsteady):
        print(f"  unsteady: {test}: {direct.get(test)}, then {again.get(test)}")
    steady = {t: end for t, end in direct.items() if t not in unsteady}
    n_different = 0
    with tempfile.TemporaryDirectory() as scratch:
        for mode in modes:
            async with serving(settings_for(upstream, mode, Path(scratch))) as url:
                through = await run(tests, python, port_of(url), files)
                mine = {t: end for t, end in through.items() if t not in unsteady}
                first = differing(steady, mine)
                left = await _confirmed(tests, python, upstream, url, steady, first)
            print(
                f"through the gateway, {mode}: {n_passed(mine)} of {len(mine)} steady tests pass,"
                f" directly {n_passed(steady)} of {len(steady)}; {len(first)} differed at first,"
                f" {len(left)} each time", flush=True,
            )  # fmt: skip
            for test in left:
                print(f"  differs: {test}: {steady.get(test)} directly, {mine.get(test)} through")
            n_different += len(left)
    return n_different


async def _confirmed(
    tests: Path, python: Path, upstream: str, url: str, direct: Mapping[str, str], suspects: list[str]
) -> list[str]:
    """Those of the suspects that, run again and again on both sides, never end through as they ever did directly."""
    seen = {t: {direct.get(t)} for t in suspects}
    for _ in range(N_AGAIN):
        if not suspects:
            break
        print(f"  {len(suspects)} differ so far and are run again: {', '.join(suspects[:8])}", flush=True)
        again = await run(tests, python, port_of(upstream), suspects)
        through = await run(tests, python, port_of(url), suspects)
        for test in suspects:
            seen[test].add(again.get(test))
        suspects = [t for t in suspects if through.get(t) not in seen[t]]
    return suspects


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 when a test ends differently through the gateway, 0 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m tests.peers.llama_cpp")
    parser.add_argument("--modes", nargs="+", default=["off", "observe"])
    parser.add_argument("files", nargs="*", default=FILES, help="test files without .py")
    options = parser.parse_args(arguments)
    tests, python = prepared(weights.cache_folder())
    spec = ServerSpec(model_path=weights.fetch("smol"), alias="local", n_parallel=2)
    with LocalServer(spec) as server:
        names = [f"unit/{name}.py" for name in options.files]
        n_different = asyncio.run(compare(tests, python, server.url, options.modes, names))
    print("equal" if not n_different else f"{n_different} tests differ")
    return 1 if n_different else 0


if __name__ == "__main__":
    sys.exit(main())
