"""The version and the installation commands of optional extras, read from the metadata of this installation."""

from __future__ import annotations

import re
from importlib import metadata
from typing import Final

DISTRIBUTION: Final = "suffice"


def installed_version() -> str:
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "unknown"


def how_to_install(extra: str) -> str:
    """Return the pip command for an extra. It names packages, so it works wherever Suffice was installed from."""
    wanted = [f'"{one}"' for one in packages_of(extra)]
    return f"pip install {' '.join(wanted)} (the extra {extra})" if wanted else f"install the extra {extra}"


def packages_of(extra: str) -> list[str]:
    """Return an extra's requirements with versions; [] if Suffice is not installed or has no such extra."""
    try:
        declared = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return []
    matches = (re.fullmatch(r"([^;]+);\s*extra\s*==\s*['\"]([^'\"]+)['\"]", one) for one in declared)
    return [one[1].strip() for one in matches if one is not None and one[2] == extra]
