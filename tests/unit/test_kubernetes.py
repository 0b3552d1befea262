"""deploy/kubernetes: manifests are valid by the Kubernetes schemas and consistent with the service."""

import re
from pathlib import Path
from typing import Any, Final, Self

import kubernetes_validate
import pytest
import yaml
from pydantic import BaseModel, Field, model_validator

from monitoring import prometheus_rule
from resnet_service.metrics import Metrics
from resnet_service.settings import Settings
from tests.support import REPOSITORY
from tests.support.prometheus import assert_promtool
from tests.support.server import Running

MANIFESTS: Final = REPOSITORY / "deploy/kubernetes"
BASE: Final = {
    path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))
    for path in sorted(MANIFESTS.glob("**/*.yaml"))
    if path.stem != "kustomization"
}
VERSION: Final = "1.31"
OPERATOR_KINDS: Final = {"servicemonitor", "prometheusrule"}
KSERVE_KINDS: Final = {"servingruntime", "inferenceservice"}
KEDA_KINDS: Final = {"scaledobject"}
"""Manifests whose kinds only the Prometheus Operator, KServe and KEDA define."""
_DURATION: Final = r"^([0-9]+h)?([0-9]+m)?([0-9]+s)?$"


class Rule(BaseModel, extra="forbid", strict=True):
    """The fields of a rule in a PrometheusRule that Prometheus' oldest supported versions know."""

    record: str | None = None
    alert: str | None = None
    expr: str
    duration: str | None = Field(None, alias="for", pattern=_DURATION)
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}

    @model_validator(mode="after")
    def has_one_name(self) -> Self:
        """Only alerts have a duration and annotations."""
        assert (self.record is None) != (self.alert is None)
        assert self.alert is not None or (self.duration is None and not self.annotations)
        return self


class Group(BaseModel, extra="forbid", strict=True):
    """A group of rules."""

    name: str = Field(min_length=1)
    interval: str | None = Field(None, pattern=r"^\d+[smh]$")
    rules: list[Rule]


class RuleSpec(BaseModel, extra="forbid", strict=True):
    """The field `spec` of a PrometheusRule."""

    groups: list[Group]


def pod() -> dict[str, Any]:
    template: dict[str, Any] = BASE["deployment"]["spec"]["template"]
    return template


def container() -> dict[str, Any]:
    [only] = pod()["spec"]["containers"]
    return dict(only)


@pytest.mark.parametrize("name", sorted(set(BASE) - OPERATOR_KINDS - KSERVE_KINDS - KEDA_KINDS))
def test_manifests_match_the_kubernetes_schemas(name: str) -> None:
    """Each manifest of a built-in kind is valid by its schema, without unknown fields."""
    kubernetes_validate.validate(BASE[name], VERSION, strict=True)


def test_selectors_ports_and_names_match() -> None:
    """Selectors match the labels of the pods, and ports and names refer to existing objects."""
    labels = pod()["metadata"]["labels"]
    deployment, service = BASE["deployment"], BASE["service"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert service["spec"]["selector"] == labels
    assert BASE["disruption"]["spec"]["selector"]["matchLabels"] == labels
    monitor = BASE["servicemonitor"]["spec"]
    assert monitor["selector"]["matchLabels"] == service["metadata"]["labels"]
    [endpoint] = monitor["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    container_ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} == set(container_ports)
    settings = Settings.model_fields
    assert container_ports == {
        "http": settings["port"].default,
        "management": settings["management_port"].default,
    }
    target = BASE["autoscaling"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == (deployment["kind"], deployment["metadata"]["name"])


def test_the_prometheus_rule_has_the_rules_of_prometheus() -> None:
    """The manifest is generated from rules.yml."""
    assert prometheus_rule.MANIFEST.read_text(encoding="utf-8") == prometheus_rule.manifest(), (
        "run: make dashboards"
    )


def test_the_prometheus_rule_is_valid(tmp_path: Path) -> None:
    """Its fields are those of the operator's definition, and promtool accepts the groups."""
    manifest = BASE["prometheusrule"]
    assert (manifest["apiVersion"], manifest["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert set(manifest) == {"apiVersion", "kind", "metadata", "spec"}
    names = [group.name for group in RuleSpec.model_validate(manifest["spec"]).groups]
    assert len(set(names)) == len(names)
    rules = tmp_path / "rules.yml"
    rules.write_text(yaml.safe_dump(manifest["spec"]))
    assert_promtool("check", "rules", rules)


def test_the_rules_select_the_job_of_the_service_monitor() -> None:
    """The Prometheus Operator names the job after the Service, unless a ServiceMonitor says otherwise."""
    assert "jobLabel" not in BASE["servicemonitor"]["spec"]
    jobs = set(re.findall(r'job="([^"]+)"', yaml.safe_dump(BASE["prometheusrule"]["spec"])))
    assert jobs == {BASE["service"]["metadata"]["name"]}


def test_only_one_folder_needs_the_prometheus_operator() -> None:
    """The other manifests can be applied to a cluster that does not have its kinds."""
    folder = yaml.safe_load((MANIFESTS / "monitoring/kustomization.yaml").read_text(encoding="utf-8"))
    assert {Path(name).stem for name in folder["resources"]} == OPERATOR_KINDS
    kinds = {
        name for name, manifest in BASE.items() if manifest["apiVersion"].startswith("monitoring.coreos.com/")
    }
    assert kinds == OPERATOR_KINDS


def test_probes_metrics_and_settings_exist_in_the_service(server: Running) -> None:
    """Probes and scrapes use existing paths, and the drain fits."""
    paths = set(server.client.get("/openapi.json").json()["paths"])
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container()[probe]["httpGet"]["path"] in paths
        assert container()[probe]["httpGet"]["port"] == "management"  # which no load delays
    assert BASE["servicemonitor"]["spec"]["endpoints"][0]["path"] in paths
    environment = {variable["name"]: variable.get("value") for variable in container()["env"]}
    settings = {
        name.removeprefix("RESNET_SERVICE_").lower()
        for name in environment
        if name.startswith("RESNET_SERVICE_")
    }
    assert settings <= set(Settings.model_fields)
    pre_stop_s = container()["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain_timeout_s = float(environment["RESNET_SERVICE_DRAIN_TIMEOUT_S"])
    assert pod()["spec"]["terminationGracePeriodSeconds"] > drain_timeout_s + pre_stop_s


def test_the_kubernetes_service_does_not_set_the_port() -> None:
    """Kubernetes would set RESNET_SERVICE_PORT for a Service called resnet-service, so links are disabled."""
    prefix = BASE["service"]["metadata"]["name"].upper().replace("-", "_")
    assert f"{prefix}_PORT" == "RESNET_SERVICE_PORT"
    assert pod()["spec"]["enableServiceLinks"] is False


def test_pods_use_the_user_and_paths_of_the_images() -> None:
    """The user is that of the Dockerfiles, and only /tmp is writable."""
    users = set()
    for name in ("Dockerfile.cpu", "Dockerfile.cuda"):
        text = (REPOSITORY / name).read_text(encoding="utf-8")
        users |= set(re.findall(r"^USER (\d+):", text, re.MULTILINE))
    assert users == {str(pod()["spec"]["securityContext"]["runAsUser"])}
    security = container()["securityContext"]
    assert security["readOnlyRootFilesystem"]
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert [mount["mountPath"] for mount in container()["volumeMounts"]] == ["/tmp"]


def test_the_gpu_variant_only_patches_the_base() -> None:
    """The GPU variant replaces the image tag, adds one GPU, and sets the device."""
    overlay = yaml.safe_load((MANIFESTS / "gpu/kustomization.yaml").read_text(encoding="utf-8"))
    assert overlay["resources"] == ["../base"]
    assert overlay["images"] == [{"name": "resnet-service", "newTag": "cuda"}]
    [patch] = overlay["patches"]
    operations = {operation["path"]: operation["value"] for operation in yaml.safe_load(patch["patch"])}
    containers = "/spec/template/spec/containers/0"
    assert operations[f"{containers}/resources/limits/nvidia.com~1gpu"] == "1"
    [toleration] = operations["/spec/template/spec/tolerations"]
    assert (toleration["key"], toleration["effect"]) == ("nvidia.com/gpu", "NoSchedule")
    variable = operations[f"{containers}/env/-"]
    assert variable == {"name": "RESNET_SERVICE_DEVICE", "value": "cuda"}
    assert "device" in Settings.model_fields


def test_deployment_names_its_model() -> None:
    """The default `auto` depends on the network, so that replicas could differ."""
    [container] = BASE["deployment"]["spec"]["template"]["spec"]["containers"]
    assert {"name": "RESNET_SERVICE_MODEL", "value": "resnet50"} in container["env"]


class ModelFormat(BaseModel, extra="forbid", strict=True):
    """A format of models, as KServe's objects name it."""

    name: str
    version: str
    autoSelect: bool = False  # noqa: N815


class RuntimeSpec(BaseModel, extra="forbid", strict=True):
    """The fields of a ServingRuntime that are used here."""

    supportedModelFormats: list[ModelFormat]  # noqa: N815
    protocolVersions: list[str]  # noqa: N815
    containers: list[dict[str, Any]] = Field(min_length=1, max_length=1)


def test_the_container_for_kserve_is_valid_and_has_the_settings_of_the_service(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its fields are those of a container, its variables are settings, and its port is KServe's."""
    manifest = BASE["servingruntime"]
    assert (manifest["apiVersion"], manifest["kind"]) == ("serving.kserve.io/v1alpha1", "ServingRuntime")
    [only] = RuntimeSpec.model_validate(manifest["spec"]).containers
    pod_manifest = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": manifest["metadata"],
        "spec": {"containers": [only]},
    }
    kubernetes_validate.validate(pod_manifest, VERSION, strict=True)
    assert only["name"] == "kserve-container"
    monkeypatch.delenv("RESNET_SERVICE_MODEL", raising=False)
    for variable in only["env"]:
        monkeypatch.setenv(variable["name"], variable.get("value", "2"))
    settings = Settings()
    assert settings.port == 8080
    assert [port["containerPort"] for port in only["ports"]] == [settings.port]
    assert {only[probe]["httpGet"]["port"] for probe in ("readinessProbe", "livenessProbe")} == {8080}


def test_the_model_on_kserve_uses_the_runtime_and_one_of_its_formats() -> None:
    """Names refer to existing objects, and the model is a file below KServe's folder."""
    manifest, runtime = BASE["inferenceservice"], BASE["servingruntime"]
    assert (manifest["apiVersion"], manifest["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    model = manifest["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    formats = RuntimeSpec.model_validate(runtime["spec"]).supportedModelFormats
    assert ModelFormat.model_validate(model["modelFormat"]).name in {each.name for each in formats}
    [variable] = model["env"]
    assert variable["name"] == "RESNET_SERVICE_MODEL"
    assert variable["value"].startswith("/mnt/models/")


class Trigger(BaseModel, extra="forbid", strict=True):
    """A trigger of KEDA that asks Prometheus; its metadata are strings."""

    type: str = Field(pattern="^prometheus$")
    metricType: str = Field(pattern="^(AverageValue|Value)$")  # noqa: N815
    metadata: dict[str, str]


class ScaledObjectSpec(BaseModel, extra="forbid", strict=True):
    """The fields of a ScaledObject that are used here."""

    scaleTargetRef: dict[str, str]  # noqa: N815
    minReplicaCount: int = Field(ge=1)  # noqa: N815
    maxReplicaCount: int  # noqa: N815
    pollingInterval: int  # noqa: N815
    cooldownPeriod: int  # noqa: N815
    fallback: dict[str, int]
    triggers: list[Trigger] = Field(min_length=1)


def test_the_autoscaler_of_the_base_needs_no_adapter() -> None:
    """It uses the CPU time that the pods request, which metrics-server measures."""
    [metric] = BASE["autoscaling"]["spec"]["metrics"]
    assert (metric["type"], metric["resource"]["name"]) == ("Resource", "cpu")
    assert container()["resources"]["requests"]["cpu"]


def test_keda_scales_the_same_deployment_by_an_existing_metric() -> None:
    """Its query uses a metric of the service and its job; the limits are those of the autoscaler."""
    manifest, autoscaler = BASE["scaledobject"], BASE["autoscaling"]["spec"]
    assert (manifest["apiVersion"], manifest["kind"]) == ("keda.sh/v1alpha1", "ScaledObject")
    spec = ScaledObjectSpec.model_validate(manifest["spec"])
    assert spec.scaleTargetRef == autoscaler["scaleTargetRef"]
    assert (spec.minReplicaCount, spec.maxReplicaCount) == (
        autoscaler["minReplicas"],
        autoscaler["maxReplicas"],
    )
    [trigger] = spec.triggers
    metrics = {family.name for family in Metrics().registry.collect()}
    assert set(re.findall(r"\binference_\w+", trigger.metadata["query"])) <= metrics
    assert f'job="{BASE["service"]["metadata"]["name"]}"' in trigger.metadata["query"]


def test_the_network_policy_selects_the_pods_and_their_ports() -> None:
    """Every pod reaches the HTTP port, and two namespaces the management port."""
    spec = BASE["networkpolicy"]["spec"]
    assert spec["podSelector"]["matchLabels"] == pod()["metadata"]["labels"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    http, management = spec["ingress"]
    assert ([port["port"] for port in http["ports"]], "from" in http) == (["http"], False)
    assert [port["port"] for port in management["ports"]] == ["management"]
    assert len(management["from"]) == 2
    assert {port["port"] for rule in spec["egress"] for port in rule["ports"]} == {53}
    assert {port["name"] for port in container()["ports"]} == {"http", "management"}


def test_the_ingress_has_the_limits_of_the_service() -> None:
    """The largest body is that of the service, and the timeouts are longer than those of a request."""
    ingress, settings = BASE["ingress"], Settings.model_fields
    annotations = {key.split("/")[1]: value for key, value in ingress["metadata"]["annotations"].items()}
    assert annotations["proxy-body-size"] == f"{settings['max_upload_mb'].default:.0f}m"
    longest = settings["request_timeout_s"].default + settings["read_timeout_s"].default
    assert float(annotations["proxy-read-timeout"]) > longest
    [rule] = ingress["spec"]["rules"]
    [path] = rule["http"]["paths"]
    assert path["backend"]["service"] == {
        "name": BASE["service"]["metadata"]["name"],
        "port": {"name": "http"},
    }
    assert ingress["spec"]["tls"][0]["hosts"] == [rule["host"]]


def test_replicas_spread_over_nodes_and_zones() -> None:
    """Both constraints select the pods, and neither keeps a pod from starting."""
    constraints = pod()["spec"]["topologySpreadConstraints"]
    assert [each["topologyKey"] for each in constraints] == [
        "kubernetes.io/hostname",
        "topology.kubernetes.io/zone",
    ]
    for each in constraints:
        assert each["labelSelector"]["matchLabels"] == pod()["metadata"]["labels"]
        assert each["whenUnsatisfiable"] == "ScheduleAnyway"
