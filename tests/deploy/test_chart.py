"""The chart: what helm renders, and that its settings, probes, ports and metrics are Suffice's own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import helm_python
import pytest
from kubernetes_validate.utils import ValidationError

from suffice.cli.main import main
from suffice.gateway.app import ENDPOINTS
from suffice.settings import parse_settings
from suffice.telemetry import METRICS
from tests.deploy.chart import (
    CHART,
    SCHEMA,
    VALUES,
    VERSIONS,
    container,
    deployed,
    pod,
    refusal,
    rendered,
    settings_of,
)
from tests.deploy.dockerfile import instructions
from tests.house.tree import ROOT

TEMPLATES = sorted((CHART / "templates").iterdir())
EVERYTHING = deployed(gateway__autoscaling__enabled=True, serviceMonitor__enabled=True)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_every_value_that_a_template_reads_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"\.Values\.([\w.]+)", text):
        value: Any = VALUES
        for part in name.split("."):
            assert isinstance(value, dict), name
            assert part in value or name.startswith("config."), name
            value = value.get(part)


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


@pytest.mark.parametrize("version", VERSIONS)
def test_helm_finds_no_fault(version: str) -> None:
    report = helm_python.lint(CHART, EVERYTHING, strict=True, kube_version=f"v{version}.0")
    assert report["errors"] == []
    assert {one["error"] for one in report["messages"]} <= {"icon is recommended"}


def test_every_version_of_kubernetes_gets_the_same_objects() -> None:
    assert len(set(VERSIONS)) == 2
    assert not [path.name for path in TEMPLATES if ".Capabilities" in path.read_text(encoding="utf-8")]


def test_a_field_that_kubernetes_does_not_know_is_found() -> None:
    with pytest.raises(ValidationError, match="prot"):
        rendered(deployed(extraEnv=[{"name": "A", "prot": 1}]))


def test_the_settings_of_the_pods_are_accepted() -> None:
    objects = rendered(EVERYTHING)
    for name in ("gateway", "worker", "console"):
        one = container(objects, name)
        settings = parse_settings(settings_of(objects, name))
        assert not settings.control.enabled
        assert settings.console.enabled == (name == "console")
        assert settings.routes["chat"].upstream == "up"
        assert main.get_command(click.Context(main), one["args"][0]) is not None
        mounts = {mount["name"]: mount["mountPath"] for mount in one["volumeMounts"]}
        assert settings.store.password_file.startswith(mounts["password"] + "/")
        image = instructions(ROOT / "deploy" / "Dockerfile")
        assert mounts["config"] == [i.text for i in image if i.name == "WORKDIR"][-1]
        assert mounts["data"] == next(i.text for i in image if i.name == "VOLUME")


def test_the_pods_are_confined() -> None:
    objects = rendered(EVERYTHING)
    for name in ("gateway", "worker", "console"):
        outer, inner = pod(objects, name), container(objects, name)
        assert outer["securityContext"]["runAsNonRoot"]
        assert outer["securityContext"]["runAsUser"] == 10001
        assert outer["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not outer["automountServiceAccountToken"]
        assert inner["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert inner["resources"]["limits"]["memory"]


def test_probes_ports_and_metrics_exist() -> None:
    objects = rendered(EVERYTHING)
    paths = {endpoint.path for endpoint in ENDPOINTS}
    gateway = container(objects, "gateway")
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


def test_only_the_gateways_are_scaled_disrupted_and_served() -> None:
    objects = rendered(EVERYTHING)
    assert "replicas" not in objects["Deployment", "x-gateway"]["spec"]
    assert rendered(deployed())["Deployment", "x-gateway"]["spec"]["replicas"] == 2
    worker = objects["Deployment", "x-worker"]["spec"]["template"]["metadata"]["labels"]
    for kind, name in (("PodDisruptionBudget", "x-gateway"), ("ServiceMonitor", "x")):
        assert not objects[kind, name]["spec"]["selector"]["matchLabels"].items() <= worker.items()
    assert not objects["Service", "x"]["spec"]["selector"].items() <= worker.items()


def test_the_file_of_people_has_one_place_that_survives_a_restart() -> None:
    objects = rendered(EVERYTHING)
    deployment = objects["Deployment", "x-console"]["spec"]
    assert (deployment["replicas"], deployment["strategy"]) == (1, {"type": "Recreate"})
    volumes = {volume["name"]: volume for volume in deployment["template"]["spec"]["volumes"]}
    assert ("PersistentVolumeClaim", volumes["data"]["persistentVolumeClaim"]["claimName"]) in objects
    clients = objects["Service", "x"]["spec"]["selector"]
    assert not clients.items() <= deployment["template"]["metadata"]["labels"].items()
    assert ("Deployment", "x-console") not in rendered(deployed(console__enabled=False))


def test_new_settings_restart_the_pods_one_after_the_other() -> None:
    def checksum(values: dict[str, Any]) -> str:
        template = rendered(values)["Deployment", "x-gateway"]["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/config"])

    assert checksum(deployed()) == checksum(deployed())
    assert checksum(deployed()) != checksum(deployed(config__routes__chat__mode="off"))


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("config__store__url", "sqlite:///suffice.db", "does not match pattern"),
        ("config__store__url", "postgresql://suffice:secret@postgres/suffice", "does not match pattern"),
        ("gateway__terminationGracePeriodSeconds", 300, "live streams would be cut"),
        ("image__tag", "latest", "image"),
        ("gatway__replicas", 3, "gatway"),
    ],
)
def test_values_that_would_harm_are_refused(option: str, value: Any, says: str) -> None:
    assert says in refusal(deployed(**{option: value}))
