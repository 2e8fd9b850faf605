"""A release: `release.py prepare VERSION [DATE]` writes the version everywhere, `release.py build` makes dist/.

Building twice from the same commit gives the same bytes (SOURCE_DATE_EPOCH, else the commit's time).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.sbom import bill_of_materials, suffice_version  # noqa: E402 - the folder is found by the line above

VERSION = re.compile(r"\d+\.\d+\.\d+(?:(?:a|b|rc)\d+)?")
# Every file that names the version, and the text around it.
PLACES = {
    "src/suffice/__init__.py": r'(^__version__ = ")([^"]+)',
    "deploy/chart/Chart.yaml": r"(^(?:version|appVersion): )(\S+)",
    "deploy/compose/compose.yaml": r"(image: suffice:)(\S+)",
    "deploy/Dockerfile": r"(-t suffice:)(\S+)",
    "docs/how-to/deploy-kubernetes.md": r"(registry\.example\.com/suffice:)(\d[^\s`]*)",
    **{
        path.relative_to(ROOT).as_posix(): r'(^version = ")([^"]+)'
        for path in sorted(ROOT.glob("contrib/suffice-*/pyproject.toml"))
    },
    "contrib/suffice-loop/typescript/package.json": r'(^  "version": ")([^"]+)',
    "contrib/suffice-loop/typescript/package-lock.json": r'("name": "suffice-loop",\n\s+"version": ")([^"]+)',
}


def versions() -> dict[str, set[str]]:
    """The versions that each file names."""
    return {
        name: {found[1] for found in re.findall(pattern, (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)}
        for name, pattern in PLACES.items()
    }


def prepare(version: str, date: str) -> None:
    """Write a version into every file, and give the changelog's unreleased part its heading."""
    assert VERSION.fullmatch(version), f"got {version!r}; a version such as 0.2.0 or 0.3.0rc1"
    for name, pattern in PLACES.items():
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        path.write_text(re.sub(pattern, rf"\g<1>{version}", text, flags=re.MULTILINE), encoding="utf-8")
    changelog = ROOT / "CHANGELOG.md"
    text = changelog.read_text(encoding="utf-8")
    assert f"## [{version}]" not in text, f"{version} is in the changelog already"
    dated = text.replace("\n## [Unreleased]\n", f"\n## [Unreleased]\n\n## [{version}] - {date}\n", 1)
    changelog.write_text(re.sub(r"\nWhat will be [\d.]+, by", "\nWhat is new, by", dated, count=1), encoding="utf-8")


def build(folder: Path) -> list[Path]:
    """Build the wheel, the sdist, the chart and the bill of materials, and write their checksums."""
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or _commit_time())
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--directory", str(folder)],
        cwd=ROOT,
        env={**os.environ, "SOURCE_DATE_EPOCH": str(epoch)},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    version = suffice_version()
    (folder / f"suffice-chart-{version}.tgz").write_bytes(_chart(epoch))
    at = datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    for name in ("image", "image-archive"):
        bill = bill_of_materials(ROOT / "requirements" / f"{name}.txt", at=at)
        (folder / f"suffice-{version}-{name}.cdx.json").write_text(json.dumps(bill, indent=2), encoding="utf-8")
    made = sorted(folder.iterdir())
    sums = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in made)
    (folder / "SHA256SUMS").write_text(sums, encoding="utf-8")
    return made


def _commit_time() -> str:
    command = ["git", "log", "-1", "--format=%ct"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _chart(epoch: int) -> bytes:
    """The chart as helm packages one: with alert rules and the dashboard in its folder `files`."""
    folder, packed = ROOT / "deploy" / "chart", io.BytesIO()
    content = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    for path in (ROOT / "deploy" / "prometheus" / "alerts.yml", ROOT / "deploy" / "grafana" / "suffice.json"):
        content[f"files/{path.name}"] = path
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, path in sorted(content.items()):
            entry = tarfile.TarInfo(f"suffice/{name}")
            entry.size, entry.mtime, entry.mode = path.stat().st_size, epoch, 0o644
            with path.open("rb") as source:
                archive.addfile(entry, source)
    return gzip.compress(packed.getvalue(), mtime=0)


def main() -> None:
    if sys.argv[1:2] == ["prepare"] and len(sys.argv) in {3, 4}:
        prepare(sys.argv[2], sys.argv[3] if len(sys.argv) == 4 else datetime.now(UTC).strftime("%Y-%m-%d"))
        print(f"{sys.argv[2]}: in {len(PLACES)} files and CHANGELOG.md; read the diff, commit and tag it")
    elif sys.argv[1:2] == ["build"]:
        folder = Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "dist"
        for path in build(folder):
            print(f"{path.stat().st_size:>10}  {path}")
    else:
        sys.exit("release.py: need prepare VERSION [DATE], or build [FOLDER]")


if __name__ == "__main__":
    main()
