"""A release is built twice to the same bytes, says its version in one way, and its parts work outside the tree."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from tools import release
from tools.house import pins
from tools.sbom import bill_of_materials

from suffice import __version__
from tests.deploy.chart import rendered
from tests.house.tree import ROOT, files

LOCK = ROOT / "requirements" / "image.txt"
AT = "2026-11-29T00:00:00Z"


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release") / "dist"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", "1790000000")
        release.build(folder)
    return folder


def test_every_file_names_the_same_version() -> None:
    assert set(release.versions()) == set(release.PLACES)
    assert {name: versions for name, versions in release.versions().items() if versions != {__version__}} == {}


def test_preparing_a_version_changes_every_file_and_dates_the_changelog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*release.PLACES, "CHANGELOG.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setattr(release, "ROOT", tmp_path)
    release.prepare("9.8.7", "2026-12-01")
    assert set(map(frozenset, release.versions().values())) == {frozenset({"9.8.7"})}
    changelog = (tmp_path / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "\n## [Unreleased]\n\n## [9.8.7] - 2026-12-01\n" in changelog
    with pytest.raises(AssertionError, match="in the changelog already"):
        release.prepare("9.8.7", "2026-12-02")
    with pytest.raises(AssertionError, match="a version such as"):
        release.prepare("next", "2026-12-02")


def test_the_bill_lists_what_the_lock_pins_and_what_needs_what() -> None:
    bill = bill_of_materials(LOCK, at=AT)
    assert {one["name"]: one["version"] for one in bill["components"]} == pins(LOCK)
    needs = {one["ref"]: one["dependsOn"] for one in bill["dependencies"]}
    refs = {one["bom-ref"] for one in bill["components"]} | {bill["metadata"]["component"]["bom-ref"]}
    assert set(needs) == refs
    root = needs[bill["metadata"]["component"]["bom-ref"]]
    assert any(ref.startswith("pkg:pypi/psycopg@") for ref in root)
    reached, waiting = set[str](), [bill["metadata"]["component"]["bom-ref"]]
    while waiting:
        ref = waiting.pop()
        if ref not in reached:
            reached.add(ref)
            waiting += needs[ref]
    assert reached == refs, "every package is there because something needs it"
    assert all(one["externalReferences"][0]["hashes"] for one in bill["components"])
    assert bill == bill_of_materials(LOCK, at=AT)


def test_building_again_gives_the_same_bytes(dist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1790000000")
    release.build(tmp_path / "dist")
    assert (tmp_path / "dist" / "SHA256SUMS").read_bytes() == (dist / "SHA256SUMS").read_bytes()
    checked = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=dist, check=False)
    assert checked.returncode == 0


def test_the_packed_chart_is_the_folder(dist: Path) -> None:
    with tarfile.open(dist / f"suffice-chart-{__version__}.tgz") as packed:
        names = {name.removeprefix("suffice/") for name in packed.getnames()}
        content = packed.extractfile("suffice/Chart.yaml")
        assert content is not None
        assert yaml.safe_load(content)["appVersion"] == __version__
    folder = ROOT / "deploy" / "chart"
    added = {"files/alerts.yml", "files/suffice.json"}
    assert names - added == {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_packed_chart_brings_alert_rules_and_a_dashboard(dist: Path) -> None:
    values = {"serviceMonitor": {"enabled": True}, "dashboard": {"enabled": True}}
    objects = rendered(values, dist / f"suffice-chart-{__version__}.tgz")
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))
    assert objects["PrometheusRule", "x"]["spec"] == rules
    dashboard = json.loads(objects["ConfigMap", "x-dashboard"]["data"]["suffice.json"])
    assert dashboard == json.loads((ROOT / "deploy" / "grafana" / "suffice.json").read_text(encoding="utf-8"))


def test_a_wheel_built_from_the_sdist_is_the_wheel(dist: Path, tmp_path: Path) -> None:
    with tarfile.open(dist / f"suffice-{__version__}.tar.gz") as sources:
        sources.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.2 has none
        sources.extractall(tmp_path)
    tree = tmp_path / f"suffice-{__version__}"
    shipped = {path.relative_to(ROOT).as_posix() for path in files() if path.relative_to(ROOT).parts[0] == "deploy"}
    assert {path for path in shipped if not (tree / path).exists()} == set()
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path / "again")],
        cwd=tree,
        check=True,
        capture_output=True,
        env={**os.environ, "SOURCE_DATE_EPOCH": "1790000000"},
    )
    (wheel,), (again,) = dist.glob("*.whl"), (tmp_path / "again").glob("*.whl")
    assert again.read_bytes() == wheel.read_bytes()


def test_the_wheel_runs_outside_the_tree(dist: Path, tmp_path: Path) -> None:
    """Installed by unpacking, with the packages of this environment; its own files come from the wheel alone."""
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    (tmp_path / "empty").mkdir()

    def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        entry = "import suffice, sys; sys.argv[0] = 'suffice'; from suffice.cli.main import main; main()"
        environ = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "XDG_DATA_HOME": str(tmp_path), **variables}
        return subprocess.run(
            [sys.executable, "-c", entry, *words],
            cwd=tmp_path / "empty",
            env=environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    where = subprocess.run(
        [sys.executable, "-c", "import suffice; print(suffice.__file__)"],
        cwd=tmp_path / "empty",
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(tmp_path / "site"))
    assert __version__ in run("--version").stdout
    variables = {"SUFFICE__UPSTREAMS__UP__URL": "http://127.0.0.1:9", "SUFFICE__ROUTES__CHAT__UPSTREAM": "up"}
    assert run("config", "check", **variables).stdout.endswith(": ok\n")
    settings = json.loads(run("config", "show", **variables).stdout)
    assert settings["store"]["url"] == f"sqlite:///{tmp_path / 'suffice' / 'suffice.db'}"
    nothing = run("serve")
    assert nothing.returncode == 2
    assert "suffice.toml" in nothing.stderr
    assert "Traceback" not in nothing.stderr
