"""The image: what its file says, and its steps run as a script in a clean folder (no container engine is needed)."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from suffice.settings import parse_settings
from suffice.settings.environment import override_settings
from suffice_testing import FakeUpstream, Reply
from tests.deploy.dockerfile import Instruction, instructions, of_stage
from tests.house.tree import ROOT

FILE = ROOT / "deploy" / "Dockerfile"
INSTRUCTIONS = instructions(FILE)
FINAL = max(one.stage for one in INSTRUCTIONS)
USER = 10001


def environment() -> dict[str, str]:
    return {name: value for one in of_stage(INSTRUCTIONS, FINAL, "ENV") for name, value in one.pairs.items()}


def only(name: str) -> Instruction:
    (one,) = of_stage(INSTRUCTIONS, FINAL, name)
    return one


def test_the_base_is_pinned_and_the_same_in_both_stages() -> None:
    (version,) = [one.text.partition("=")[2] for one in of_stage(INSTRUCTIONS, -1, "ARG")]
    assert re.fullmatch(r"3\.1[123]\.\d+-slim-[a-z]+", version)
    assert {one.text.split()[0] for one in INSTRUCTIONS if one.name == "FROM"} == {"python:${PYTHON}"}


def test_it_runs_as_a_numbered_user_in_the_exec_form() -> None:
    assert only("USER").text == f"{USER}:{USER}"
    for name in ("ENTRYPOINT", "CMD"):
        assert json.loads(only(name).text)
    assert "CMD [" in only("HEALTHCHECK").text
    assert not [one for one in INSTRUCTIONS if one.name == "ADD"]
    after = INSTRUCTIONS[INSTRUCTIONS.index(only("USER")) :]
    assert not [one for one in after if one.name in {"RUN", "COPY"}], "these would run as another user"


def test_no_secret_is_built_in() -> None:
    words = [word for one in INSTRUCTIONS if one.name in {"ENV", "ARG"} for word in one.pairs]
    assert not [word for word in words if re.search(r"KEY|SECRET|PASSWORD|TOKEN|SALT", word)]


def test_its_variables_are_settings() -> None:
    merged, variables = override_settings({}, environment())
    settings = parse_settings(merged)
    assert variables == {"server.host": "SUFFICE__SERVER__HOST"}
    assert only("EXPOSE").text == str(settings.server.port)
    assert only("VOLUME").text == environment()["SUFFICE_DATA_DIR"]


def test_the_builder_gets_what_is_copied_and_nothing_else() -> None:
    lines = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = [line[1:] for line in lines if line.startswith("!")]
    assert "*" in lines
    copied = set[str]()
    for one in (one for one in INSTRUCTIONS if one.name == "COPY" and "--from" not in one.text):
        for source in one.words[:-1]:
            pattern = source.replace("${REQUIREMENTS}", "image*")
            paths = [path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern)]
            assert paths, source
            assert all(any(name == ok or name.startswith(f"{ok}/") for ok in allowed) for name in paths), source
            copied |= set(paths)
    unused = [ok for ok in allowed if not any(name == ok or fnmatch.fnmatch(name, f"{ok}/*") for name in copied)]
    assert not unused


def steps(context: Path, prefix: Path) -> None:
    """Do what the first stage does, in a folder, with another prefix than the image's."""
    values = {"REQUIREMENTS": "image"}
    for one in (one for one in INSTRUCTIONS if one.stage == 0):
        if one.name == "COPY":
            *sources, target = [word.replace("${REQUIREMENTS}", values["REQUIREMENTS"]) for word in one.words]
            for source in sources:
                place = context / target / (Path(source).name if target.endswith("/") else "")
                place.parent.mkdir(parents=True, exist_ok=True)
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy2(ROOT / source, place)
        elif one.name == "RUN":
            command = one.text.replace("${REQUIREMENTS}", "image").replace("/usr/lib/suffice", str(prefix))
            assert command != one.text
            path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            done = subprocess.run(
                ["/bin/sh", "-c", command],
                cwd=context,
                env={**os.environ, "PATH": path, "PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": ""},
                capture_output=True,
                timeout=900,
                check=False,
            )
            if b"No matching distribution found" in done.stderr or b"onnection" in done.stderr:
                pytest.skip("the packages cannot be fetched here")
            assert done.returncode == 0, done.stderr.decode()


@pytest.fixture(scope="module")
def image() -> Iterator[Path]:
    """The image's /usr/lib/suffice, in a folder that other users may read."""
    with tempfile.TemporaryDirectory(prefix="suffice-image-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        context = folder / "src"
        context.mkdir()
        steps(context, folder / "suffice")
        shutil.rmtree(context)
        yield folder / "suffice"


@pytest.mark.slow
def test_the_installed_packages_are_the_locked_ones_and_bring_no_installer(image: Path) -> None:
    (site,) = (image / "lib").glob("python3.*/site-packages")
    installed = {re.sub(r"[-_.]+", "-", path.name.split("-")[0]).lower() for path in site.glob("*.dist-info")}
    locked = set(
        re.findall(r"^([\w-]+)(?:\[.*\])?==", (ROOT / "requirements/image.txt").read_text("utf-8"), re.MULTILINE)
    )
    assert installed - {"suffice"} <= locked
    assert "suffice" in installed
    assert "pip" not in installed
    assert not list(site.glob("*.pth"))


@pytest.mark.slow
def test_it_serves_as_its_user_from_a_read_only_file_system(image: Path) -> None:
    """ENV, WORKDIR, USER, ENTRYPOINT, CMD and HEALTHCHECK as in the file; only the data directory can be written."""
    settings, data = image.parent / "etc", image.parent / "data"
    settings.mkdir()
    data.mkdir(mode=0o700)
    reply = Reply(reasoning=("two and two ",), answer=("4",))
    is_root = os.geteuid() == 0
    if is_root:
        os.chown(data, USER, USER)
    with FakeUpstream.in_thread(reply) as fake:
        (settings / "suffice.toml").write_text('[server]\napi_keys_env = "KEYS"\n[routes.chat]\nupstream = "up"\n')
        variables = {
            **environment(),
            "PATH": f"{image / 'bin'}:/usr/bin:/bin",
            "SUFFICE_DATA_DIR": str(data),
            "SUFFICE__SERVER__PORT": "0",
            "SUFFICE__UPSTREAMS__UP__URL": fake.url,
            "KEYS": "sk-a-client",
        }
        user = USER if is_root else None
        everything: dict[str, Any] = {"env": variables, "cwd": settings, "user": user, "text": True}
        command = [*only("ENTRYPOINT").words, *only("CMD").words]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, **everything)
        try:
            assert process.stderr is not None
            output = ""
            while "listening on" not in output:
                line = process.stderr.readline()
                assert line, output
                output += line
            url = re.search(r"listening on http://0\.0\.0\.0:(\d+)/v1", output)
            assert url is not None
            variables["SUFFICE__SERVER__PORT"] = url[1]
            subprocess.run(only("HEALTHCHECK").words, check=True, timeout=60, **everything)
            request = urllib.request.Request(
                f"http://127.0.0.1:{url[1]}/v1/chat/completions",
                json.dumps({"model": "m", "messages": [{"role": "user", "content": "2 + 2?"}]}).encode(),
                {"authorization": "Bearer sk-a-client", "content-type": "application/json"},
            )
            with urllib.request.urlopen(request) as answer:
                assert json.load(answer)["choices"][0]["message"]["content"] == "4"
            status = subprocess.run(["suffice", "status", "--json"], check=True, capture_output=True, **everything)
            assert json.loads(status.stdout)["route"] == "chat"
        finally:
            process.send_signal(signal.SIGTERM)
            rest = process.stderr.read() if process.stderr is not None else ""
            process.wait(60)
            if process.stderr is not None:
                process.stderr.close()
        assert process.returncode == 0, rest
        assert "Traceback" not in output + rest
        assert (data / "suffice.db").exists()
        assert not [path for path in settings.iterdir() if path.name != "suffice.toml"]
        refused = subprocess.run(only("HEALTHCHECK").words, check=False, capture_output=True, **everything)
        assert refused.returncode != 0
