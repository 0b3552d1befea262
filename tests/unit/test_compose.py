"""Dockerfiles and compose files, checked without building images; test_container_build.py builds them."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from resnet_service.settings import Settings
from tests.support import REPOSITORY
from tests.support.server import serving

COMPOSE: Final = REPOSITORY / "docker-compose.yml"
COMPOSE_CPU: Final = REPOSITORY / "docker-compose.cpu.yml"
COMPOSE_KEYS: Final = REPOSITORY / "docker-compose.keys.yml"
SERVICES: Final = ("service", "alertmanager", "prometheus", "grafana")


class ComposeLoader(yaml.SafeLoader):
    """YAML with Compose's tag `!reset`, which removes a value in an override file."""


class Reset:
    """The value of a key that is tagged with `!reset`."""


ComposeLoader.add_constructor("!reset", lambda _loader, _node: Reset)


def merge(base: Any, override: Any) -> Any:
    """Merge two compose files; supports only what these files use."""
    if not (isinstance(base, dict) and isinstance(override, dict)):
        return override
    merged = {
        key: merge(base.get(key), override[key]) if key in override else base[key] for key in base | override
    }
    return {key: value for key, value in merged.items() if value is not Reset}


def load_compose(*files: Path) -> Any:
    result: Any = {}
    for file in files:
        result = merge(result, yaml.load(file.read_text(), ComposeLoader))
    return result


def program(name: str) -> str:
    """Return the path of a program that pip installed next to this Python."""
    return str(Path(sys.executable).parent / name)


@pytest.mark.parametrize("name", ["Dockerfile.cpu", "Dockerfile.cuda"])
def test_dockerfiles_pass_hadolint(name: str) -> None:
    """The Dockerfiles follow hadolint's rules."""
    command = [program("hadolint"), str(REPOSITORY / name)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", ["Dockerfile.cpu", "Dockerfile.cuda"])
def test_the_build_context_contains_every_copied_file(name: str) -> None:
    """Every COPY source exists, and .dockerignore does not exclude it."""
    included = {
        line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    lines = (REPOSITORY / name).read_text().splitlines()
    sources = {
        source
        for line in lines
        if line.startswith("COPY ") and not line.startswith("COPY --from")
        for source in line.split()[1:-1]
    }
    assert sources
    assert {source for source in sources if not (REPOSITORY / source).exists()} == set()
    assert sources <= included


@pytest.mark.parametrize(
    "files",
    [[COMPOSE], [COMPOSE, COMPOSE_CPU], [COMPOSE, COMPOSE_CPU, COMPOSE_KEYS]],
    ids=["cuda", "cpu", "keys"],
)
def test_compose_files_match_the_specification(files: list[Path], tmp_path: Path) -> None:
    """The compose file is valid by the schema of the specification, with and without the overrides."""
    merged = tmp_path / "docker-compose.yml"
    merged.write_text(yaml.safe_dump(load_compose(*files)))
    command = [program("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(merged)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_the_cpu_override_removes_the_gpu_only() -> None:
    """The override removes the GPU and selects the other Dockerfile; everything else is unchanged."""
    cuda, cpu = load_compose(COMPOSE), load_compose(COMPOSE, COMPOSE_CPU)
    [device] = cuda["services"]["service"]["deploy"]["resources"].pop("reservations")["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    cuda["services"]["service"]["image"] = "resnet-service:cpu"
    cuda["services"]["service"]["build"]["dockerfile"] = "Dockerfile.cpu"
    assert cpu == cuda


@pytest.mark.parametrize("name", SERVICES)
def test_containers_are_hardened(name: str) -> None:
    """Each has a pinned version, limits, a restart policy, a read-only root and no new privileges."""
    service = load_compose(COMPOSE)["services"][name]
    assert service["read_only"]
    assert service["restart"] == "unless-stopped"
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["cap_drop"] == ["ALL"]
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}
    assert "healthcheck" in service or "HEALTHCHECK" in (REPOSITORY / "Dockerfile.cuda").read_text()
    assert re.search(r":v?[0-9.]+@sha256:[0-9a-f]{64}$", service["image"]) or "build" in service


def test_mounted_files_exist_and_service_names_match() -> None:
    """Mounted paths are in the repository, and Prometheus and Grafana use the service names of compose."""
    services = load_compose(COMPOSE)["services"]
    mounts = [volume.split(":")[:2] for service in services.values() for volume in service["volumes"]]
    missing = {source for source, _ in mounts if source[0] == "." and not (REPOSITORY / source).exists()}
    assert missing <= {"./models"}  # for the user's checkpoints; Docker creates it
    monitoring = REPOSITORY / "monitoring"
    scrape_configs = yaml.safe_load((monitoring / "prometheus/prometheus.yml").read_text())["scrape_configs"]
    assert scrape_configs[0]["static_configs"] == [{"targets": ["service:8001"]}]
    provisioning = monitoring / "grafana/provisioning"
    [provider] = yaml.safe_load((provisioning / "dashboards/resnet-service.yml").read_text())["providers"]
    assert provider["options"]["path"] in dict(mounts).values()


@pytest.mark.parametrize("name", ["Dockerfile.cpu", "Dockerfile.cuda", "docker-compose.yml"])
def test_containers_name_their_model(name: str) -> None:
    """The default `auto` depends on the network, so that replicas could differ."""
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    models = re.findall(r"(?:ARG MODEL=|\bMODEL:-)(\w+)", text)
    assert models
    assert set(models) <= {"efficientnet_lite0", "resnet50"}


def test_containers_start_after_what_they_need() -> None:
    """A container waits until those that it sends to are healthy; none waits for the service."""
    services = load_compose(COMPOSE)["services"]
    order = {name: set(services[name].get("depends_on", ())) for name in SERVICES}
    assert order == {
        "service": set(),
        "alertmanager": set(),
        "prometheus": {"alertmanager"},
        "grafana": {"prometheus"},
    }
    for name in SERVICES:
        for needed, options in services[name].get("depends_on", {}).items():
            assert options == {"condition": "service_healthy"}
            assert services[needed]["healthcheck"]["test"]


def test_the_example_of_env_has_every_variable_with_its_default() -> None:
    """The names and values of .env.example are those in the compose files."""
    text = "".join(path.read_text(encoding="utf-8") for path in (COMPOSE, COMPOSE_CPU, COMPOSE_KEYS))
    used = dict(re.findall(r"\$\{([A-Z_]+)(?::-([^}]*))?", re.sub(r"(?m)#.*", "", text)))
    example = dict(re.findall(r"^#([A-Z_]+)=(.*)$", (REPOSITORY / ".env.example").read_text(), re.MULTILINE))
    examples_only = {"COMPOSE_FILE", "API_KEYS_FILE"}  # without a default
    assert example.keys() == used.keys() | {"COMPOSE_FILE"}
    assert {name: example[name] for name in used.keys() - examples_only} == {
        name: used[name] for name in used.keys() - examples_only
    }
    ignored = (REPOSITORY / ".gitignore").read_text().split()
    assert {"/.env", f"/{Path(example['API_KEYS_FILE']).name}"} <= set(ignored)


@pytest.mark.parametrize(("password", "creates_admin"), [("", False), ("correct horse", True)])
def test_grafana_has_no_user_with_a_default_password(
    password: str, creates_admin: bool, tmp_path: Path
) -> None:
    """Without GRAFANA_PASSWORD, Grafana creates no user who could log in."""
    grafana = load_compose(COMPOSE)["services"]["grafana"]
    assert grafana["environment"]["GF_SECURITY_ADMIN_PASSWORD"] == "${GRAFANA_PASSWORD:-}"
    start = tmp_path / "run.sh"
    start.write_text('#!/bin/sh\necho "$GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"\n')
    start.chmod(0o755)
    *shell, script = grafana["entrypoint"]
    command = [*shell, script.replace("$$", "$").replace("/run.sh", str(start))]
    environment = {"PATH": "/usr/bin:/bin", "GF_SECURITY_ADMIN_PASSWORD": password}
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert output.strip() == ("" if creates_admin else "true")


def test_keys_of_the_override_are_those_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mounted secret is the file that the service reads; Prometheus needs no key."""
    compose = load_compose(COMPOSE, COMPOSE_KEYS)
    service = compose["services"]["service"]
    [secret] = service["secrets"]
    assert compose["secrets"][secret]["file"].startswith("${API_KEYS_FILE:?")
    assert service["environment"]["RESNET_SERVICE_API_KEYS_FILE"] == f"/run/secrets/{secret}"
    keys = tmp_path / "api-keys.txt"
    keys.write_text("0123456789abcdef predict\n")
    monkeypatch.setenv("RESNET_SERVICE_API_KEYS_FILE", str(keys))
    monkeypatch.setenv("RESNET_SERVICE_PUBLIC_SCOPES", service["environment"]["RESNET_SERVICE_PUBLIC_SCOPES"])
    with serving(Settings()) as server:
        assert server.client.get("/metrics").status_code == 200
        assert server.client.get("/info").status_code == 401
        authorization = {"Authorization": "Bearer 0123456789abcdef"}
        assert server.client.get("/info", headers=authorization).status_code == 200
