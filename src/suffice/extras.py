"""How the packages of an optional extra are installed, by what this installation declares of itself."""

from __future__ import annotations

import re
from importlib import metadata
from typing import Final

DISTRIBUTION: Final = "suffice"


def how_to_install(extra: str) -> str:
    """The command for a person who lacks an extra: it names the packages, whatever Suffice was installed from."""
    wanted = [f'"{one}"' for one in packages_of(extra)]
    return f"pip install {' '.join(wanted)} (the extra {extra})" if wanted else f"install the extra {extra}"


def packages_of(extra: str) -> list[str]:
    """What an extra brings, with versions; nothing where this is no installation, or it has no such extra."""
    try:
        declared = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return []
    matches = (re.fullmatch(r"([^;]+);\s*extra\s*==\s*['\"]([^'\"]+)['\"]", one) for one in declared)
    return [one[1].strip() for one in matches if one is not None and one[2] == extra]
