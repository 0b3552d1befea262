"""Dockerfiles and the compose file, as far as they can be checked without building (see image_test.py)."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import REPOSITORY

COMPOSE = REPOSITORY / "docker-compose.yml"
COMPOSE_CPU = REPOSITORY / "docker-compose.cpu.yml"


class ComposeLoader(yaml.SafeLoader):
    """YAML with the tag by which one compose file takes something out of another."""


class Reset:
    """What `!reset` leaves of the value under it."""


ComposeLoader.add_constructor("!reset", lambda _loader, _node: Reset)


def laid_over(below: Any, above: Any) -> Any:
    """Merge two compose files as far as these need it."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    merged = {
        key: laid_over(below.get(key), above[key]) if key in above else below[key] for key in below | above
    }
    return {key: value for key, value in merged.items() if value is not Reset}


def composed(*files: Path) -> Any:
    result: Any = {}
    for file in files:
        result = laid_over(result, yaml.load(file.read_text(), ComposeLoader))
    return result


def command(name: str) -> str:
    """Return the path of a program that pip put beside this Python."""
    return str(Path(sys.executable).parent / name)


@pytest.mark.parametrize("name", ["Dockerfile.cpu", "Dockerfile.cuda"])
def test_hadolint_finds_nothing(name: str) -> None:
    """The Dockerfiles follow hadolint's rules."""
    result = subprocess.run(
        [command("hadolint"), str(REPOSITORY / name)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("files", [[COMPOSE], [COMPOSE, COMPOSE_CPU]], ids=["cuda", "cpu"])
def test_the_compose_file_follows_its_specification(files: list[Path], tmp_path: Path) -> None:
    """The compose file, alone and under the override for CPUs, is valid by the specification's schema."""
    merged = tmp_path / "docker-compose.yml"
    merged.write_text(yaml.safe_dump(composed(*files)))
    schema = ["--builtin-schema", "vendor.compose-spec"]
    result = subprocess.run(
        [command("check-jsonschema"), *schema, str(merged)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout


def test_only_the_cuda_host_reserves_a_gpu() -> None:
    """The override takes the GPU away and builds the other Dockerfile, and nothing else changes."""
    cuda, cpu = composed(COMPOSE), composed(COMPOSE, COMPOSE_CPU)
    [device] = cuda["services"]["service"]["deploy"]["resources"].pop("reservations")["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    cuda["services"]["service"]["image"] = "resnet-service:cpu"
    cuda["services"]["service"]["build"]["dockerfile"] = "Dockerfile.cpu"
    assert cpu == cuda


@pytest.mark.parametrize("name", ["service", "prometheus", "grafana"])
def test_every_container_is_hardened(name: str) -> None:
    """Each has a pinned version, limits, a restart policy, a read-only root and no new privileges."""
    service = composed(COMPOSE)["services"][name]
    assert service["read_only"]
    assert service["restart"] == "unless-stopped"
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["cap_drop"] == ["ALL"]
    assert set(service["deploy"]["resources"]["limits"]) == {"memory", "pids"}
    assert "healthcheck" in service or "HEALTHCHECK" in (REPOSITORY / "Dockerfile.cuda").read_text()
    assert not service["image"].endswith(":latest")
    assert ":" in service["image"]


def test_mounted_files_exist_and_services_find_each_other() -> None:
    """What compose mounts is in the repository, and Prometheus and Grafana use compose's names."""
    services = composed(COMPOSE)["services"]
    mounts = [volume.split(":")[:2] for service in services.values() for volume in service["volumes"]]
    missing = {source for source, _ in mounts if source[0] == "." and not (REPOSITORY / source).exists()}
    assert missing <= {"./models"}  # the user's own, made by Docker where it is missing
    monitoring = REPOSITORY / "monitoring"
    scraped = yaml.safe_load((monitoring / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    assert scraped[0]["static_configs"] == [{"targets": ["service:8000"]}]
    provisioning = monitoring / "grafana" / "provisioning"
    [provider] = yaml.safe_load((provisioning / "dashboards" / "resnet-service.yml").read_text())["providers"]
    assert provider["options"]["path"] in dict(mounts).values()
