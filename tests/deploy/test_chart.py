"""The chart: what helm renders, and that its settings, probes, ports and metrics are Suffice's own."""

from __future__ import annotations

import re
import shutil
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
    Objects,
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
        schema = SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
        if schema.get("additionalProperties") is not False:
            return
        assert set(value) | {"global"} == set(schema["properties"]) | {"global"}, path
        for name, inner in schema["properties"].items():
            compare(value.get(name), inner, f"{path}.{name}")

    compare(VALUES, SCHEMA, "")


def test_the_default_settings_are_accepted() -> None:
    settings = parse_settings({**VALUES["config"], "control": {"enabled": False}})
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
    for name, kind in (*((name, "Deployment") for name in ("gateway", "worker", "console")), ("migrate", "Job")):
        outer, inner = pod(objects, name, kind), container(objects, name, kind)
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
    worker = objects["Deployment", "x-worker"]["spec"]["template"]["metadata"]["labels"]
    assert objects["PodMonitor", "x-worker"]["spec"]["selector"]["matchLabels"].items() <= worker.items()
    (scraped,) = objects["PodMonitor", "x-worker"]["spec"]["podMetricsEndpoints"]
    (health,) = container(objects, "worker")["ports"]
    assert (scraped["port"], scraped["path"]) == (health["name"], "/metrics")
    args = container(objects, "worker")["args"]
    assert args[args.index("--health-port") + 1] == str(health["containerPort"])
    for probe in ("livenessProbe", "readinessProbe"):
        assert container(objects, "worker")[probe]["httpGet"]["port"] == health["name"]
    assert ("PodMonitor", "x-worker") not in rendered(deployed(serviceMonitor__enabled=True, worker__replicas=0))
    (metric,) = objects["HorizontalPodAutoscaler", "x-gateway"]["spec"]["metrics"]
    known = {one.name: one for one in METRICS}
    assert known[metric["pods"]["metric"]["name"]].kind == "gauge"


def test_only_the_gateways_are_scaled_and_served() -> None:
    objects = rendered(EVERYTHING)
    assert "replicas" not in objects["Deployment", "x-gateway"]["spec"]
    assert rendered(deployed())["Deployment", "x-gateway"]["spec"]["replicas"] == 2
    for name in ("worker", "console"):
        labels = objects["Deployment", f"x-{name}"]["spec"]["template"]["metadata"]["labels"]
        assert not objects["ServiceMonitor", "x"]["spec"]["selector"]["matchLabels"].items() <= labels.items()
        assert not objects["Service", "x"]["spec"]["selector"].items() <= labels.items()


def test_pods_of_each_kind_are_evicted_one_at_a_time_and_replaced_before_they_end() -> None:
    values = deployed(worker__replicas=2, worker__disruptionBudget={"maxUnavailable": "50%"})
    objects = rendered(values)
    for name, allowed in (("gateway", 1), ("worker", "50%"), ("console", 1)):
        budget = objects["PodDisruptionBudget", f"x-{name}"]["spec"]
        labels = objects["Deployment", f"x-{name}"]["spec"]["template"]["metadata"]["labels"]
        assert budget["selector"]["matchLabels"].items() <= labels.items()
        assert budget["selector"]["matchLabels"]["app.kubernetes.io/component"] == name
        assert budget["maxUnavailable"] == allowed
    for name in ("gateway", "worker"):
        strategy = objects["Deployment", f"x-{name}"]["spec"]["strategy"]
        assert strategy["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    recreated = {"type": "Recreate", "rollingUpdate": None}
    objects = rendered(deployed(worker__strategy=recreated, console__enabled=False))
    assert objects["Deployment", "x-worker"]["spec"]["strategy"] == {"type": "Recreate"}
    assert not any(name == "x-console" for _, name in objects)
    assert ("PodDisruptionBudget", "x-worker") not in rendered(deployed(worker__replicas=0))


def test_the_console_needs_no_volume_and_may_have_replicas() -> None:
    objects = rendered(deployed(console__replicas=3))
    assert objects["Deployment", "x-console"]["spec"]["replicas"] == 3
    assert "PersistentVolumeClaim" not in {kind for kind, _ in objects}
    for name in ("gateway", "worker", "console"):
        volumes = {volume["name"]: volume for volume in pod(objects, name)["volumes"]}
        assert "emptyDir" in volumes["data"]


def test_every_pod_has_the_time_that_the_settings_give_it() -> None:
    def grace(**options: Any) -> list[int]:
        objects = rendered(deployed(**options))
        return [pod(objects, name)["terminationGracePeriodSeconds"] for name in ("gateway", "console", "worker")]

    given = grace(gateway__preStopSeconds=7, config__server__grace_s=12.5, config__control__lease_s=90)
    assert given == [7 + 13 + 25, 7 + 13 + 25, 90]
    default = parse_settings(VALUES["config"])
    assert grace()[0] > VALUES["gateway"]["preStopSeconds"] + default.server.grace_s
    assert grace()[2] >= default.control.lease_s


def test_pods_get_what_the_extra_values_say() -> None:
    proxy = {"name": "proxy", "image": "sql-proxy:1"}
    values = deployed(
        extraEnv=[{"name": "A", "value": "1"}],
        extraVolumes=[{"name": "ca", "secret": {"secretName": "database-ca"}}],
        extraVolumeMounts=[{"name": "ca", "mountPath": "/etc/ca", "readOnly": True}],
        extraContainers=[proxy],
        extraInitContainers=[{**proxy, "name": "first"}],
        podLabels={"team": "ml"},
        podAnnotations={"scrape": "no"},
        priorityClassName="high",
        nodeSelector={"disk": "ssd"},
        serviceAccount={"name": "own", "annotations": {"role": "reader"}},
    )
    objects = rendered(values)
    assert objects["ServiceAccount", "own"]["metadata"]["annotations"] == {"role": "reader"}
    for name in ("gateway", "worker", "console"):
        outer, inner = pod(objects, name), container(objects, name)
        assert {"name": "A", "value": "1"} in inner["env"]
        assert {mount["name"] for mount in inner["volumeMounts"]} <= {volume["name"] for volume in outer["volumes"]}
        assert "/etc/ca" in [mount["mountPath"] for mount in inner["volumeMounts"]]
        assert [one["name"] for one in outer["containers"]] == [name, "proxy"]
        assert [one["name"] for one in outer["initContainers"]] == ["first"]
        assert (outer["priorityClassName"], outer["nodeSelector"]) == ("high", {"disk": "ssd"})
        assert outer["serviceAccountName"] == "own"
        metadata = objects["Deployment", f"x-{name}"]["spec"]["template"]["metadata"]
        assert metadata["labels"]["team"] == "ml"
        assert metadata["annotations"]["scrape"] == "no"


def test_keda_asks_prometheus_for_the_same_metric_and_replaces_the_custom_one() -> None:
    scaling = {"enabled": True, "minReplicas": 3, "maxReplicas": 9, "liveRequestsPerReplica": 40}
    classic = rendered(deployed(gateway__autoscaling=scaling))
    hpa = classic["HorizontalPodAutoscaler", "x-gateway"]["spec"]
    address = "http://prometheus:9090"
    keda = {"serverAddress": address, "triggerAuthentication": "monitoring"}
    objects = rendered(deployed(gateway__autoscaling={**scaling, "keda": keda}))
    assert not any(kind == "HorizontalPodAutoscaler" for kind, _ in objects)
    scaled = objects["ScaledObject", "x-gateway"]["spec"]
    assert ("Deployment", scaled["scaleTargetRef"]["name"]) in objects
    assert "replicas" not in objects["Deployment", "x-gateway"]["spec"]
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (hpa["minReplicas"], hpa["maxReplicas"]) == (3, 9)
    assert scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == hpa["behavior"]
    (trigger,) = scaled["triggers"]
    assert trigger["metadata"]["serverAddress"] == address
    assert trigger["metadata"]["threshold"] == "40"
    assert trigger["authenticationRef"] == {"name": "monitoring"}
    metric, namespace, pods = re.findall(
        r'sum\((\w+)\{namespace="(.+?)",pod=~"(.+?)"\}\)', trigger["metadata"]["query"]
    )[0]
    assert metric == hpa["metrics"][0]["pods"]["metric"]["name"]
    assert namespace == "models"
    assert re.fullmatch(pods, "x-gateway-7d9f-abcde")
    assert not re.fullmatch(pods, "x-console-7d9f-abcde")


def test_a_job_migrates_the_log_before_an_upgrade_within_its_own_time() -> None:
    values = deployed(
        migration__timeoutSeconds=900,
        extraContainers=[{"name": "proxy", "image": "sql-proxy:1"}],
        serviceAccount__annotations={"role": "reader"},
    )
    objects = rendered(values)
    hooks = {key: one for key, one in objects.items() if "helm.sh/hook" in one["metadata"].get("annotations", {})}
    assert set(hooks) == {(kind, "x-migrate") for kind in ("ConfigMap", "ServiceAccount", "Job")}
    annotations = {kind: one["metadata"]["annotations"] for (kind, _), one in hooks.items()}
    assert {one["helm.sh/hook"] for one in annotations.values()} == {"pre-upgrade"}, "at first a gateway makes the log"
    assert annotations["ServiceAccount"]["role"] == "reader"
    weights = {kind: int(one["helm.sh/hook-weight"]) for kind, one in annotations.items()}
    assert max(weights["ConfigMap"], weights["ServiceAccount"]) < weights["Job"]
    assert hooks["Job", "x-migrate"]["spec"]["activeDeadlineSeconds"] == 900
    outer, inner = pod(objects, "migrate", "Job"), container(objects, "migrate", "Job")
    assert outer["restartPolicy"] == "Never"
    assert outer["serviceAccountName"] == "x-migrate"
    assert [one["name"] for one in outer["containers"]] == ["migrate"], "one that stays would keep the job alive"
    assert {one["configMap"]["name"] for one in outer["volumes"] if "configMap" in one} == {"x-migrate"}
    assert hooks["ConfigMap", "x-migrate"]["data"] == objects["ConfigMap", "x"]["data"]
    group = main.get_command(click.Context(main), inner["args"][0])
    assert isinstance(group, click.Group)
    assert inner["args"][1] in group.commands
    own = rendered(deployed(serviceAccount={"create": False, "name": "theirs"}))
    assert pod(own, "migrate", "Job")["serviceAccountName"] == "theirs"
    assert not any(name == "x-migrate" for _, name in rendered(deployed(migration__enabled=False)))


# --------------------------------------------------------------------------- who reaches what


def test_an_ingress_leads_clients_to_the_gateways_and_people_to_the_console() -> None:
    options = {"enabled": True, "className": "nginx", "hosts": ["llm.example.com"], "annotations": {"buffering": "off"}}
    ingress = rendered(deployed(ingress={**options, "tlsSecretName": "cert", "console": True}))["Ingress", "x"]
    assert ingress["metadata"]["annotations"] == {"buffering": "off"}
    assert ingress["spec"]["ingressClassName"] == "nginx"
    assert ingress["spec"]["tls"] == [{"secretName": "cert", "hosts": ["llm.example.com"]}]
    (rule,) = ingress["spec"]["rules"]
    assert rule["host"] == "llm.example.com"
    led = {one["path"]: one["backend"]["service"]["name"] for one in rule["http"]["paths"]}
    assert led == {"/": "x", "/console": "x-console", "/api": "x-console"}
    objects = rendered(deployed(ingress=options))
    (rule,) = objects["Ingress", "x"]["spec"]["rules"]
    assert [one["path"] for one in rule["http"]["paths"]] == ["/"]
    assert "tls" not in objects["Ingress", "x"]["spec"]
    port = rule["http"]["paths"][0]["backend"]["service"]["port"]["name"]
    assert port in [one["name"] for one in objects["Service", "x"]["spec"]["ports"]]


def test_a_route_of_the_gateway_api_lets_runs_take_their_time() -> None:
    options = {"enabled": True, "parentRefs": [{"name": "edge"}], "hostnames": ["llm.example.com"]}
    objects = rendered(deployed(httpRoute={**options, "console": True}, service__port=80))
    spec = objects["HTTPRoute", "x"]["spec"]
    assert (spec["parentRefs"], spec["hostnames"]) == ([{"name": "edge"}], ["llm.example.com"])
    led = {rule["matches"][0]["path"]["value"]: rule["backendRefs"][0]["name"] for rule in spec["rules"]}
    assert led == {"/": "x", "/console": "x-console", "/api": "x-console"}
    assert {rule["backendRefs"][0]["port"] for rule in spec["rules"]} == {80}
    assert {rule["timeouts"]["request"] for rule in spec["rules"]} == {"0s"}
    spec = rendered(deployed(httpRoute={**options, "console": True}, console__enabled=False))["HTTPRoute", "x"]["spec"]
    assert len(spec["rules"]) == 1


def test_network_policies_admit_each_to_what_is_for_them() -> None:
    def of(**options: Any) -> dict[str, dict[str, Any]]:
        objects = rendered(deployed(networkPolicy={"enabled": True, **options}))
        specs = {name: one["spec"] for (kind, name), one in objects.items() if kind == "NetworkPolicy"}
        for component in ("gateway", "console", "worker"):
            labels = objects["Deployment", f"x-{component}"]["spec"]["template"]["metadata"]["labels"]
            selected = [
                name for name, one in specs.items() if one["podSelector"]["matchLabels"].items() <= labels.items()
            ]
            assert selected == [f"x-{component}"]
            for rule in specs[f"x-{component}"].get("ingress", ()):
                assert rule["ports"][0]["port"] in [port["name"] for port in container(objects, component)["ports"]]
        return specs

    default = of()
    assert default["x-gateway"]["ingress"][0]["from"] == [{"podSelector": {}}]
    assert "ingress" not in default["x-console"]
    assert "ingress" not in default["x-worker"]
    assert {tuple(one["policyTypes"]) for one in default.values()} == {("Ingress",)}
    edge, prometheus = ({"podSelector": {"matchLabels": {"app": name}}} for name in ("edge", "prometheus"))
    database = {"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{"port": 5432}]}
    given = of(clients=[edge], people=[edge], metrics=[prometheus], egress=[database])
    assert given["x-gateway"]["ingress"][0]["from"] == [edge, prometheus]
    assert given["x-console"]["ingress"][0]["from"] == [edge]
    assert given["x-worker"]["ingress"][0]["from"] == [prometheus]
    for one in given.values():
        assert one["policyTypes"] == ["Ingress", "Egress"]
        names, other = one["egress"]
        assert {port["port"] for port in names["ports"]} == {53}
        assert other == database


@pytest.mark.parametrize(
    ("account", "made", "used"),
    [({}, "x", "x"), ({"create": False}, None, "default"), ({"create": False, "name": "theirs"}, None, "theirs")],
)
def test_the_service_account_is_made_or_named(account: dict[str, Any], made: str | None, used: str) -> None:
    objects = rendered(deployed(serviceAccount=account))
    assert [name for kind, name in objects if kind == "ServiceAccount" and name != "x-migrate"] == [made] * bool(made)
    assert {pod(objects, name)["serviceAccountName"] for name in ("gateway", "worker", "console")} == {used}


def test_new_settings_restart_the_pods_one_after_the_other() -> None:
    def checksum(values: dict[str, Any]) -> str:
        return annotations_of(rendered(values))["checksum/config"]

    assert checksum(deployed()) == checksum(deployed())
    assert checksum(deployed()) != checksum(deployed(config__routes__chat__mode="off"))


def test_changed_secrets_restart_the_pods_at_the_next_upgrade(tmp_path: Path) -> None:
    chart = Path(shutil.copytree(CHART, tmp_path / "chart"))
    helpers = chart / "templates" / "_helpers.tpl"
    text = helpers.read_text(encoding="utf-8")
    lookup = 'lookup "v1" "Secret" $.Release.Namespace .'
    assert lookup in text
    # The cluster's answer comes from the values: this test has none to ask.
    helpers.write_text(text.replace(lookup, "dig . (dict) ($.Values.global | default dict)"), encoding="utf-8")

    def checksum(**versions: str) -> str:
        secrets = {name: {"metadata": {"resourceVersion": version}} for name, version in versions.items()}
        return annotations_of(rendered(deployed(**{"global": secrets}), chart))["checksum/secrets"]

    assert checksum(suffice="7") == checksum(suffice="7") != checksum(suffice="8")
    assert checksum(**{"suffice-database": "7"}) not in {checksum(suffice="7"), checksum()}
    assert annotations_of(rendered(deployed(), CHART))["checksum/secrets"] == checksum(), "without a cluster"


def annotations_of(objects: Objects) -> dict[str, str]:
    return dict(objects["Deployment", "x-gateway"]["spec"]["template"]["metadata"]["annotations"])


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("config__store__url", "sqlite:///suffice.db", "does not match pattern"),
        ("config__store__url", "postgresql://suffice:secret@postgres/suffice", "does not match pattern"),
        ("gateway__strategy", {"type": "OneByOne"}, "strategy"),
        ("extraContainers", [{"name": "proxy"}], "image"),
        ("extraVolumeMounts", [{"name": "ca"}], "mountPath"),
        ("podLabels", {"app.kubernetes.io/component": "worker"}, "app.kubernetes.io/component"),
        ("console__replicas", 0, "console"),
        ("ingress", {"enabled": True}, "hosts"),
        ("httpRoute", {"enabled": True}, "parentRefs"),
        ("gateway__autoscaling__keda", {"serverAddress": "prometheus:9090"}, "serverAddress"),
        ("migration__timeoutSeconds", 0, "timeoutSeconds"),
        ("networkPolicy", {"enabled": True, "clients": ["edge"]}, "clients"),
        ("image__tag", "latest", "image"),
        ("gatway__replicas", 3, "gatway"),
    ],
)
def test_values_that_would_harm_are_refused(option: str, value: Any, says: str) -> None:
    assert says in refusal(deployed(**{option: value}))
