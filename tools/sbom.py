"""A bill of materials (CycloneDX 1.6) of what the image installs, from its lock file: the same bytes for the same lock.

python tools/sbom.py [requirements/image.txt] > sbom.json
"""

from __future__ import annotations

import json
import re
import sys
import uuid
from pathlib import Path
from typing import Any

from tools.house import pins

ROOT = Path(__file__).resolve().parents[1]
_ENTRY = re.compile(
    r"^(?P<name>[\w.-]+)(?:\[[\w,.-]+\])?==(?P<version>[\w.+!-]+)(?: ; (?P<marker>[^\\\n]+?))? \\\n"
    r"(?P<rest>(?:^    .*\n?)*)",
    re.MULTILINE,
)


def suffice_version() -> str:
    text = (ROOT / "src" / "suffice" / "__init__.py").read_text(encoding="utf-8")
    matched = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    assert matched is not None
    return matched[1]


def _purl(name: str, version: str) -> str:
    return f"pkg:pypi/{re.sub(r'[-_.]+', '-', name).lower()}@{version}"


def bill_of_materials(lock: Path, *, at: str) -> dict[str, Any]:
    """Everything that a lock pins, with what needs what (the `via` notes of the lock).

    at   the time of the release, ISO 8601 in UTC
    """
    text = lock.read_text(encoding="utf-8")
    entries = {matched["name"]: matched for matched in _ENTRY.finditer(text)}
    assert set(entries) == set(pins(lock)), "an entry of the lock is in another form"
    root = _purl("suffice", suffice_version())
    names = {"suffice": root} | {name: _purl(name, one["version"]) for name, one in entries.items()}
    needs: dict[str, set[str]] = {ref: set() for ref in names.values()}
    for name, one in entries.items():
        for user in re.findall(r"^    #(?: via)?\s+([\w.-]+)", one["rest"], re.MULTILINE):
            if user in names:
                needs[names[user]].add(names[name])
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, root + text)}",
        "version": 1,
        "metadata": {
            "timestamp": at,
            "component": {
                "type": "application",
                "bom-ref": root,
                "name": "suffice",
                "version": suffice_version(),
                "purl": root,
                "licenses": [{"license": {"id": "Apache-2.0"}}],
            },
        },
        "components": [_component(one) for _, one in sorted(entries.items())],
        "dependencies": [{"ref": ref, "dependsOn": sorted(on)} for ref, on in sorted(needs.items())],
    }


def _component(entry: re.Match[str]) -> dict[str, Any]:
    purl = _purl(entry["name"], entry["version"])
    described = {
        "type": "library",
        "bom-ref": purl,
        "name": entry["name"],
        "version": entry["version"],
        "purl": purl,
        "externalReferences": [
            {
                "type": "distribution",
                "url": purl,
                "comment": "one of these files, by platform; pip accepts no other",
                "hashes": [
                    {"alg": "SHA-256", "content": digest}
                    for digest in re.findall(r"--hash=sha256:([0-9a-f]{64})", entry["rest"])
                ],
            }
        ],
    }
    marker = {"properties": [{"name": "suffice:marker", "value": entry["marker"]}]} if entry["marker"] else {}
    return described | marker


if __name__ == "__main__":
    named = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "requirements" / "image.txt"
    print(json.dumps(bill_of_materials(named, at="1970-01-01T00:00:00Z"), indent=2))
