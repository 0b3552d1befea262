"""The Kubernetes manifests as `kubectl apply -k` would send them."""

import base64
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import kubernetes_validate
import pytest
import yaml

from tests.support import REPOSITORY
from tests.support.prometheus import RULES_FILE

VERSION: Final = "1.31"
MANIFESTS: Final = REPOSITORY / "deploy/kubernetes"


def kustomize(folder: str) -> list[dict[str, Any]]:
    """Return the manifests that `kubectl apply -k` sends."""
    command = ["kubectl", "kustomize", str(MANIFESTS / folder)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return list(yaml.safe_load_all(output))


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
@pytest.mark.parametrize("folder", ["base", "gpu"])
def test_kustomize_output_is_valid(folder: str) -> None:
    """The output of kubectl kustomize is valid, and the GPU variant has one GPU for each replica."""
    for manifest in kustomize(folder):
        kubernetes_validate.validate(manifest, VERSION, strict=True)
        if manifest["kind"] == "Deployment":
            [only] = manifest["spec"]["template"]["spec"]["containers"]
            assert only["image"] == ("resnet-service:cuda" if folder == "gpu" else "resnet-service:cpu")
            assert only["resources"]["limits"].get("nvidia.com/gpu") == ("1" if folder == "gpu" else None)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
def test_the_variant_with_keys_mounts_the_generated_secret(tmp_path: Path) -> None:
    """The pod reads the keys from a Secret whose name changes with its content; the base has none."""
    folder = tmp_path / "kubernetes"
    shutil.copytree(MANIFESTS, folder)
    names = set()
    for keys in ("0123456789abcdef\n", "fedcba9876543210\n"):
        (folder / "keys/api-keys.txt").write_text(keys)
        manifests = {manifest["kind"]: manifest for manifest in kustomize(str(folder / "keys"))}
        for manifest in manifests.values():
            kubernetes_validate.validate(manifest, VERSION, strict=True)
        assert base64.b64decode(manifests["Secret"]["data"]["api-keys.txt"]).decode() == keys
        pod = manifests["Deployment"]["spec"]["template"]["spec"]
        name = manifests["Secret"]["metadata"]["name"]
        assert name in {volume.get("secret", {}).get("secretName") for volume in pod["volumes"]}
        [only] = pod["containers"]
        environment = {variable["name"]: variable.get("value") for variable in only["env"]}
        mounts = {mount["mountPath"] for mount in only["volumeMounts"]}
        assert Path(environment["RESNET_SERVICE_API_KEYS_FILE"]).parent in set(map(Path, mounts))
        names.add(name)
    assert len(names) == 2
    assert "Secret" not in {manifest["kind"] for manifest in kustomize("base")}


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
def test_the_folder_for_the_prometheus_operator_is_complete() -> None:
    """It has the scrapes and the rules, with the text of the expressions unchanged."""
    manifests = {manifest["kind"]: manifest for manifest in kustomize("monitoring")}
    assert set(manifests) == {"ServiceMonitor", "PrometheusRule"}
    assert manifests["PrometheusRule"]["spec"] == yaml.safe_load(RULES_FILE.read_text(encoding="utf-8"))
