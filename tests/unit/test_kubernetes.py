"""deploy/kubernetes: valid by Kubernetes' own schemas, and in step with the service."""

import re
import shutil
import subprocess
from typing import Any

import kubernetes_validate
import pytest
import yaml

from resnet_service.metrics import Metrics
from resnet_service.settings import Settings
from tests.support import REPOSITORY
from tests.support.server import Running

MANIFESTS = REPOSITORY / "deploy/kubernetes"
BASE = {
    path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))
    for path in sorted(MANIFESTS.glob("**/*.yaml"))
    if path.stem != "kustomization"
}
VERSION = "1.31"


def pod() -> dict[str, Any]:
    template: dict[str, Any] = BASE["deployment"]["spec"]["template"]
    return template


def container() -> dict[str, Any]:
    [only] = pod()["spec"]["containers"]
    return dict(only)


@pytest.mark.parametrize("name", sorted(set(BASE) - {"servicemonitor"}))
def test_they_are_valid(name: str) -> None:
    """Each manifest of Kubernetes' own kinds follows the schema, with no field that there is not."""
    kubernetes_validate.validate(BASE[name], VERSION, strict=True)


def test_they_belong_together() -> None:
    """Whoever selects pods selects these, and ports and names lead somewhere."""
    labels = pod()["metadata"]["labels"]
    deployment, service = BASE["deployment"], BASE["service"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert service["spec"]["selector"] == labels
    assert BASE["disruption"]["spec"]["selector"]["matchLabels"] == labels
    monitor = BASE["servicemonitor"]["spec"]
    assert monitor["selector"]["matchLabels"] == service["metadata"]["labels"]
    [port], [scraped] = service["spec"]["ports"], monitor["endpoints"]
    assert scraped["port"] == port["name"]
    assert port["targetPort"] in {opened["name"] for opened in container()["ports"]}
    target = BASE["autoscaling"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == (deployment["kind"], deployment["metadata"]["name"])


def test_they_are_in_step_with_the_service(server: Running) -> None:
    """Probes and scrapes ask what there is, the autoscaler's metric is one, and draining has its time."""
    paths = set(server.client.get("/openapi.json").json()["paths"])
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container()[probe]["httpGet"]["path"] in paths
    assert BASE["servicemonitor"]["spec"]["endpoints"][0]["path"] in paths
    [metric] = BASE["autoscaling"]["spec"]["metrics"]
    known = {found.name for found in Metrics().registry.collect()}
    assert metric["pods"]["metric"]["name"] in known
    environment = {variable["name"]: variable.get("value") for variable in container()["env"]}
    fields = {
        name.removeprefix("RESNET_SERVICE_").lower()
        for name in environment
        if name.startswith("RESNET_SERVICE_")
    }
    assert fields <= set(Settings.model_fields)
    asleep = container()["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = float(environment["RESNET_SERVICE_DRAIN_TIMEOUT_S"])
    assert pod()["spec"]["terminationGracePeriodSeconds"] > drain + asleep


def test_they_run_as_the_images_do() -> None:
    """The user is the one of the Dockerfiles, and may write nowhere but to /tmp."""
    users = set()
    for name in ("Dockerfile.cpu", "Dockerfile.cuda"):
        users |= set(
            re.findall(r"^USER (\d+):", (REPOSITORY / name).read_text(encoding="utf-8"), re.MULTILINE)
        )
    assert users == {str(pod()["spec"]["securityContext"]["runAsUser"])}
    own = container()["securityContext"]
    assert own["readOnlyRootFilesystem"]
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert [mount["mountPath"] for mount in container()["volumeMounts"]] == ["/tmp"]


@pytest.mark.parametrize("folder", ["base", "gpu"])
def test_kustomize_builds_them(folder: str) -> None:
    """What kubectl apply -k would send is valid too, on GPUs with one for each replica."""
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl")
    command = ["kubectl", "kustomize", str(MANIFESTS / folder)]
    built = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for manifest in yaml.safe_load_all(built):
        if manifest["kind"] != "ServiceMonitor":
            kubernetes_validate.validate(manifest, VERSION, strict=True)
        if manifest["kind"] == "Deployment":
            [only] = manifest["spec"]["template"]["spec"]["containers"]
            assert only["image"] == ("resnet-service:cuda" if folder == "gpu" else "resnet-service:cpu")
            assert only["resources"]["limits"].get("nvidia.com/gpu") == ("1" if folder == "gpu" else None)
