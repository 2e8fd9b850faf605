"""Runs the examples one after the other against one local model: `make examples`.

    python -m examples [NAME …] [--questions N]

Those with other people's libraries run in environments of their own below build/examples, made from the
hashed files in requirements/ and kept until these change. Exit code 1: one of them failed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))

from local_model import ADDRESS, served  # noqa: E402 - the examples stand in their own folder, as programs do

# example ──▶ the environment that it needs; None: the one that runs this
EXAMPLES = {
    "iterative_rag": None,
    "self_revision": None,
    "tool_agent": None,
    "gateway_agent": None,
    "langgraph_rag": "langgraph",
    "dspy_rag": "dspy",
    "pydantic_ai_agent": "pydantic-ai",
}
SOURCES = (ROOT / "src", ROOT / "contrib" / "suffice-demo" / "src")  # of ours, which no such environment has installed
QUIET = {"LANGSMITH_TRACING": "false", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONWARNINGS": "ignore"}


def interpreter(environment: str | None) -> str:
    """The Python of an environment, made first if it is not there."""
    if environment is None:
        return sys.executable
    wanted = HERE / "requirements" / f"{environment}.txt"
    folder = ROOT / "build" / "examples" / environment
    python, stamp = folder / "bin" / "python", folder / ".stamp"
    digest = hashlib.sha256(sys.version.encode() + wanted.read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == digest:
        return str(python)
    print(f"{environment}: installing", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    beside = Path(sys.executable).parent / "uv"
    uv = str(beside) if beside.is_file() else shutil.which("uv")
    if uv is not None:
        install = [uv, "pip", "install", "--quiet", "--python", str(python)]
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
    else:
        install = [str(python), "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet"]
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run([*install, "--require-hashes", "-r", str(wanted)], check=True)
    stamp.write_text(digest, encoding="utf-8")
    return str(python)


def main() -> int:
    """Run what was asked for; 1: one of them failed."""
    parser = argparse.ArgumentParser(prog="make examples", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(EXAMPLES)}; none: all")
    parser.add_argument("--questions", type=int, help="for each of them; without it, each as many as it says")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in EXAMPLES]
    if unknown:
        parser.error(f"unknown {', '.join(unknown)}; known: {', '.join(EXAMPLES)}")
    failed = []
    with served() as url:
        for name in options.names or EXAMPLES:
            python = interpreter(EXAMPLES[name])
            around = os.environ | QUIET | {ADDRESS: url, "PYTHONPATH": os.pathsep.join(map(str, SOURCES))}
            command = [python, str(HERE / f"{name}.py")]
            command += ["--questions", str(options.questions)] if options.questions else []
            if subprocess.run(command, env=around, check=False).returncode:
                failed.append(name)
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
