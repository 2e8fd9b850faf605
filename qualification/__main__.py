"""Lists the worlds of this package, or runs those whose names are given.

python -m qualification               the list
python -m qualification drifts net    these, each with its own defaults
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main(words: list[str]) -> int:
    worlds = {path.stem: path for path in sorted(HERE.glob("*.py")) if not path.stem.startswith("_")}
    unknown = [word for word in words if word not in worlds]
    if not words or unknown:
        for name, path in worlds.items():
            print(f"{name:14} {path.read_text(encoding='utf-8').split(chr(10), 1)[0].strip(chr(34))}")
        return 2 if unknown else 0
    failed = []
    for word in words:
        print(f"== {word}", flush=True)
        sys.argv = [str(worlds[word])]
        try:
            runpy.run_module(f"qualification.{word}", run_name="__main__")
        except SystemExit as end:
            if end.code:
                failed.append(word)
    print(f"{len(words) - len(failed)} passed, {len(failed)} failed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
