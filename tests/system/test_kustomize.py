"""The Kubernetes manifests as `kubectl apply -k` would send them."""

import shutil
import subprocess
from typing import Final

import kubernetes_validate
import pytest
import yaml

from tests.support import REPOSITORY

VERSION: Final = "1.31"
MANIFESTS: Final = REPOSITORY / "deploy/kubernetes"


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
@pytest.mark.parametrize("folder", ["base", "gpu"])
def test_kustomize_output_is_valid(folder: str) -> None:
    """The output of kubectl kustomize is valid, and the GPU variant has one GPU for each replica."""
    command = ["kubectl", "kustomize", str(MANIFESTS / folder)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for manifest in yaml.safe_load_all(output):
        if manifest["kind"] != "ServiceMonitor":
            kubernetes_validate.validate(manifest, VERSION, strict=True)
        if manifest["kind"] == "Deployment":
            [only] = manifest["spec"]["template"]["spec"]["containers"]
            assert only["image"] == ("resnet-service:cuda" if folder == "gpu" else "resnet-service:cpu")
            assert only["resources"]["limits"].get("nvidia.com/gpu") == ("1" if folder == "gpu" else None)
