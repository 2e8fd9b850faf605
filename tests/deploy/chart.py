"""The chart, rendered as helm does, and judged by the schemas of Kubernetes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml
from kubernetes_validate.utils import latest_version, validate

from suffice.settings.environment import override_settings
from tests.house.tree import ROOT

CHART = ROOT / "deploy" / "chart"
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
OLDEST = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))["kubeVersion"].removeprefix(">=")[:4]
VERSIONS = (OLDEST, latest_version())

Objects = dict[tuple[str, str], dict[str, Any]]


def deployed(**options: Any) -> dict[str, Any]:
    """Values with an upstream and a route; options are named as their path, with two underscores for a dot."""
    values: dict[str, Any] = {"config": {"upstreams": {"up": {"url": "http://vllm:8000"}}}}
    for path, value in {"config__routes__chat__upstream": "up", **options}.items():
        *parents, last = path.split("__")
        place = values
        for name in parents:
            place = place.setdefault(name, {})
        place[last] = value
    return values


def rendered(values: dict[str, Any], chart: Path = CHART) -> Objects:
    """The objects by kind and name, each of which both the oldest and the newest Kubernetes accept."""
    with helm_python.Chart.load(chart) as loaded:
        texts = loaded.render(values, name="x", namespace="models")
    manifests = [text for path, text in texts.items() if path.endswith(".yaml")]
    objects = [one for text in manifests for one in yaml.safe_load_all(text) if one]
    for one in objects:
        if one["apiVersion"].split("/")[0].endswith((".coreos.com", "gateway.networking.k8s.io", "keda.sh")):
            continue  # of an operator
        for version in VERSIONS:
            validate(one, version, strict=True)
    by_name = {(one["kind"], one["metadata"]["name"]): one for one in objects}
    assert len(by_name) == len(objects)
    return by_name


def refusal(values: dict[str, Any]) -> str:
    """Why the chart refuses these values."""
    with helm_python.Chart.load(CHART) as loaded, pytest.raises(helm_python.HelmError) as error:
        loaded.render(values, name="x")
    return str(error.value)


def pod(objects: Objects, component: str, kind: str = "Deployment") -> dict[str, Any]:
    """What the pods of a component are, as its controller's template says."""
    return dict(objects[kind, f"x-{component}"]["spec"]["template"]["spec"])


def container(objects: Objects, component: str, kind: str = "Deployment") -> dict[str, Any]:
    return next(dict(one) for one in pod(objects, component, kind)["containers"] if one["name"] == component)


def settings_of(objects: Objects, component: str, kind: str = "Deployment") -> dict[str, Any]:
    """The settings that a component reads: its file, below the variables of its container."""
    raw = yaml.safe_load(objects["ConfigMap", "x"]["data"]["suffice.yaml"])
    environ = {one["name"]: one.get("value", "x-1") for one in container(objects, component, kind)["env"]}
    return override_settings(raw, environ)[0]
