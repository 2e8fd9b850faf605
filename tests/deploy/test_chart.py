"""The chart: rendered by helm where it is installed, its settings, probes, ports and metrics are Suffice's own."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from suffice.cli.main import main
from suffice.gateway.app import ENDPOINTS
from suffice.settings import parse_settings
from suffice.settings.environment import override_settings
from suffice.telemetry import METRICS
from tests.deploy.dockerfile import instructions
from tests.house.tree import ROOT

CHART = ROOT / "deploy" / "chart"
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
TEMPLATES = sorted((CHART / "templates").iterdir())
DEPLOYED = ("--set", "config.upstreams.up.url=http://vllm:8000", "--set", "config.routes.chat.upstream=up")
EVERYTHING = (*DEPLOYED, "--set", "gateway.autoscaling.enabled=true,serviceMonitor.enabled=true")
helm = pytest.mark.skipif(shutil.which("helm") is None, reason="helm is not installed: not rendered here")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["helm", *words], capture_output=True, text=True, check=False, timeout=60)


def rendered(*options: str) -> dict[tuple[str, str], dict[str, Any]]:
    done = run("template", "x", str(CHART), *options)
    assert done.returncode == 0, done.stderr
    return {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(done.stdout)}


def container(deployment: dict[str, Any]) -> dict[str, Any]:
    (one,) = deployment["spec"]["template"]["spec"]["containers"]
    return dict(one)


# --------------------------------------------------------------------------- without helm


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_every_value_that_a_template_reads_exists_and_every_block_is_closed(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"\.Values\.([\w.]+)", text):
        value: Any = VALUES
        for part in name.split("."):
            assert isinstance(value, dict), name
            assert part in value or name.startswith("config."), name
            value = value.get(part)
    text = re.sub(r"\{\{-?\s*/\*.*?\*/\s*-?\}\}", "", text, flags=re.DOTALL)
    opened = re.findall(r"\{\{-?\s*(?:if|with|range|define)\b", text)
    assert len(opened) == len(re.findall(r"\{\{-?\s*end\s*-?\}\}", text))
    assert text.count("{{") == text.count("}}")


def test_every_value_is_in_the_schema_and_the_other_way_round() -> None:
    def compare(value: Any, schema: dict[str, Any], path: str) -> None:
        schema = SCHEMA["definitions"]["secretKey"] if "$ref" in schema else schema
        if schema.get("additionalProperties") is not False:
            return
        assert set(value) | {"global"} == set(schema["properties"]) | {"global"}, path
        for name, inner in schema["properties"].items():
            compare(value.get(name), inner, f"{path}.{name}")

    compare(VALUES, SCHEMA, "")


def test_the_default_settings_are_accepted() -> None:
    settings = parse_settings({**VALUES["config"], "control": {"enabled": False}})
    gateway = VALUES["gateway"]
    assert gateway["terminationGracePeriodSeconds"] > gateway["preStopSeconds"] + settings.server.grace_s
    assert settings.server.api_keys_env


# --------------------------------------------------------------------------- with helm


@helm
def test_helm_finds_no_fault() -> None:
    done = run("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout


@helm
def test_the_settings_of_the_pods_are_accepted() -> None:
    objects = rendered(*EVERYTHING)
    raw = yaml.safe_load(objects["ConfigMap", "x"]["data"]["suffice.yaml"])
    for name in ("gateway", "worker", "console"):
        one = container(objects["Deployment", f"x-{name}"])
        settings = parse_settings(override_settings(raw, {e["name"]: e.get("value", "x-1") for e in one["env"]})[0])
        assert not settings.control.enabled
        assert settings.console.enabled == (name == "console")
        assert settings.routes["chat"].upstream == "up"
        assert main.get_command(click.Context(main), one["args"][0]) is not None
        mounts = {mount["name"]: mount["mountPath"] for mount in one["volumeMounts"]}
        assert settings.store.password_file.startswith(mounts["password"] + "/")
        image = instructions(ROOT / "deploy" / "Dockerfile")
        assert mounts["config"] == [i.text for i in image if i.name == "WORKDIR"][-1]
        assert mounts["data"] == next(i.text for i in image if i.name == "VOLUME")


@helm
def test_the_pods_are_confined() -> None:
    for (kind, _), one in rendered(*EVERYTHING).items():
        if kind != "Deployment":
            continue
        pod, inner = one["spec"]["template"]["spec"], container(one)["securityContext"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] == 10001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not pod["automountServiceAccountToken"]
        assert inner == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container(one)["resources"]["limits"]["memory"]


@helm
def test_probes_ports_and_metrics_exist() -> None:
    objects = rendered(*EVERYTHING)
    paths = {endpoint.path for endpoint in ENDPOINTS}
    gateway = container(objects["Deployment", "x-gateway"])
    (port,) = gateway["ports"]
    assert port["containerPort"] == parse_settings(VALUES["config"]).server.port
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert gateway[probe]["httpGet"]["path"] in paths
        assert gateway[probe]["httpGet"]["port"] == port["name"]
    service = objects["Service", "x"]["spec"]
    labels = objects["Deployment", "x-gateway"]["spec"]["template"]["metadata"]["labels"]
    assert service["selector"].items() <= labels.items()
    assert service["ports"][0]["targetPort"] == port["name"]
    (endpoint,) = objects["ServiceMonitor", "x"]["spec"]["endpoints"]
    assert endpoint["path"] in paths
    (metric,) = objects["HorizontalPodAutoscaler", "x-gateway"]["spec"]["metrics"]
    known = {one.name: one for one in METRICS}
    assert known[metric["pods"]["metric"]["name"]].kind == "gauge"


@helm
def test_only_the_gateways_are_scaled_disrupted_and_served() -> None:
    objects = rendered(*EVERYTHING)
    assert "replicas" not in objects["Deployment", "x-gateway"]["spec"]
    assert rendered(*DEPLOYED)["Deployment", "x-gateway"]["spec"]["replicas"] == 2
    worker = objects["Deployment", "x-worker"]["spec"]["template"]["metadata"]["labels"]
    for kind, name in (("PodDisruptionBudget", "x-gateway"), ("ServiceMonitor", "x")):
        assert not objects[kind, name]["spec"]["selector"]["matchLabels"].items() <= worker.items()
    assert not objects["Service", "x"]["spec"]["selector"].items() <= worker.items()


@helm
def test_the_file_of_people_has_one_place_that_survives_a_restart() -> None:
    objects = rendered(*EVERYTHING)
    deployment = objects["Deployment", "x-console"]["spec"]
    assert (deployment["replicas"], deployment["strategy"]) == (1, {"type": "Recreate"})
    volumes = {volume["name"]: volume for volume in deployment["template"]["spec"]["volumes"]}
    assert ("PersistentVolumeClaim", volumes["data"]["persistentVolumeClaim"]["claimName"]) in objects
    clients = objects["Service", "x"]["spec"]["selector"]
    assert not clients.items() <= deployment["template"]["metadata"]["labels"].items()
    assert ("Deployment", "x-console") not in rendered(*DEPLOYED, "--set", "console.enabled=false")


@helm
def test_new_settings_restart_the_pods_one_after_the_other() -> None:
    def checksum(*options: str) -> str:
        template = rendered(*options)["Deployment", "x-gateway"]["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/config"])

    assert checksum(*DEPLOYED) == checksum(*DEPLOYED)
    assert checksum(*DEPLOYED) != checksum(*DEPLOYED, "--set", "config.routes.chat.mode=off")


@helm
@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("config.store.url=sqlite:///suffice.db", "does not match pattern"),
        ("config.store.url=postgresql://suffice:secret@postgres/suffice", "does not match pattern"),
        ("gateway.terminationGracePeriodSeconds=300", "live streams would be cut"),
        ("image.tag=latest", "image"),
        ("gatway.replicas=3", "gatway"),
    ],
)
def test_values_that_would_harm_are_refused(value: str, says: str) -> None:
    done = run("template", "x", str(CHART), *DEPLOYED, "--set", value)
    assert done.returncode != 0
    assert says in done.stderr
