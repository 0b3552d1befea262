"""Prometheus and Grafana: rules, alerts and dashboards against a real Prometheus and a real service."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from monitoring import dashboards, local
from monitoring.local import CONFIGURATION
from resnet_service.settings import Settings
from tests.support.server import Running, serving

RULES = [
    rule
    for group in yaml.safe_load((CONFIGURATION / "rules.yml").read_text())["groups"]
    for rule in group["rules"]
]

ALERTS = [rule["alert"] for rule in RULES if "alert" in rule]


def needs(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"needs {program} (Debian's package prometheus)")
    return path


@dataclass
class Prometheus:
    """A running Prometheus that scrapes one service."""

    client: httpx.Client
    server: Running

    def get(self, path: str, **parameters: str) -> Any:
        answer = self.client.get(f"/api/v1/{path}", params=parameters).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return [series for series in found if series["value"][1] != "NaN"]

    def wait_for(self, condition: Callable[[], object], meanwhile: Callable[[], object]) -> None:
        """Do something until the condition holds."""
        ends = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < ends, "it never came true"
            meanwhile()

    def wait_for_data(self, expression: str, jpeg: bytes) -> None:
        """Send predictions until the expression has series."""
        predict = partial(self.server.client.post, "/predict", files={"file": jpeg})
        self.wait_for(lambda: self.query(expression), predict)


@contextmanager
def scraping(server: Running, folder: Path) -> Iterator[Prometheus]:
    """Run Prometheus with the configuration that ships, but at once where it would wait."""
    needs("prometheus")
    with (
        local.scraping(server.url.removeprefix("http://"), folder / "prometheus.log") as url,
        httpx.Client(base_url=url, timeout=10) as client,
    ):
        yield Prometheus(client, server)


@pytest.fixture(scope="module")
def prometheus(
    server: Running, jpeg: bytes, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """Prometheus with some seconds of predictions, good and bad, in it."""
    with scraping(server, tmp_path_factory.mktemp("prometheus")) as running:

        def predict() -> None:
            server.client.post("/predict", files={"file": jpeg})
            server.client.post("/predict", files={"file": b"no image"})

        running.wait_for(lambda: running.query("instance:inference_request_seconds:p99_1m > 0"), predict)
        yield running


@pytest.mark.parametrize(("title", "series"), dashboards.queries(), ids=lambda value: str(value)[:30])
def test_each_panel_shows_data(
    prometheus: Prometheus, jpeg: bytes, title: str, series: dashboards.Series
) -> None:
    """Every query of every panel returns series from a service under load, and their legends are filled."""
    expression = series.expr.replace("$__rate_interval", "20s").replace("$instance", ".*")
    prometheus.wait_for_data(expression, jpeg)
    for found in prometheus.query(expression):
        for label in (part.split("}}")[0] for part in series.legend.split("{{")[1:]):
            assert found["metric"].get(label), f"{title}: no label {label}"


@pytest.mark.parametrize("record", [rule["record"] for rule in RULES if "record" in rule])
def test_each_recorded_series_is_there(prometheus: Prometheus, jpeg: bytes, record: str) -> None:
    """Every recording rule produces a series for the instance."""
    prometheus.wait_for_data(record, jpeg)
    assert {found["metric"]["job"] for found in prometheus.query(record)} == {"resnet-service"}


def test_no_rule_fails(prometheus: Prometheus) -> None:
    """Prometheus evaluates every rule that ships without an error, and a healthy service alerts nobody."""
    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert len(rules) == len(RULES)
    assert {rule["health"] for rule in rules} == {"ok"}
    assert [alert["labels"]["alertname"] for alert in prometheus.get("alerts")["alerts"]] == []


def test_the_rules_are_well_formed_and_fire_in_time() -> None:
    """Promtool accepts the configuration, and its tests of each alert pass."""
    for command in (
        ["check", "config", "--syntax-only", str(CONFIGURATION / "prometheus.yml")],
        ["check", "rules", str(CONFIGURATION / "rules.yml")],
        ["test", "rules", str(CONFIGURATION / "rules_test.yml")],
    ):
        result = subprocess.run([needs("promtool"), *command], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr


def test_every_alert_is_tested() -> None:
    """Promtool's tests name each alert."""
    tests = (CONFIGURATION / "rules_test.yml").read_text()
    assert all(f'alertname="{rule}"' in tests for rule in ALERTS)


def test_a_stopped_service_raises_an_alert(bundled_settings: Settings, tmp_path: Path) -> None:
    """Once the service has gone, Prometheus itself says InferenceDown."""
    with serving(bundled_settings) as server, scraping(server, tmp_path) as prometheus:
        prometheus.wait_for(lambda: prometheus.query("up{job='resnet-service'} == 1"), lambda: None)
        server.stop()
        firing: list[dict[str, Any]] = []

        def ask() -> None:
            firing[:] = [alert for alert in prometheus.get("alerts")["alerts"] if alert["state"] == "firing"]

        prometheus.wait_for(lambda: firing, ask)
        assert "InferenceDown" in {alert["labels"]["alertname"] for alert in firing}


@pytest.mark.parametrize("name", dashboards.DASHBOARDS)
def test_the_dashboards_json_is_in_step(name: str) -> None:
    """The JSON that ships is what the code makes."""
    shipped = (dashboards.FOLDER / f"{name}.json").read_text(encoding="utf-8")
    assert shipped == dashboards.written(name), "run: make dashboards"
    assert len({panel["id"] for panel in json.loads(shipped)["panels"]}) == len(json.loads(shipped)["panels"])
