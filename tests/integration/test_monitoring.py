"""Test the rules, alerts and dashboards with a real Prometheus that scrapes real services."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
import httpx
import pytest
import yaml
from tritonclient.grpc import service_pb2_grpc

from monitoring import dashboards, panels
from monitoring.local import CONFIGURATION, run_prometheus
from resnet_service.inference.prediction_baseline import Baseline, ModelBaseline
from resnet_service.models import ModelSource, load_model
from resnet_service.settings import Settings
from tests.support.prometheus import RULES, RULES_FILE, assert_promtool, require_program
from tests.support.rpc import to_protobuf
from tests.support.server import Running, serving
from tests.support.v2 import json_input


@dataclass
class Prometheus:
    """A running Prometheus that scrapes the session's server and a second one, which a test may stop."""

    client: httpx.Client
    server: Running
    second_server: Running

    def get(self, path: str, **parameters: str) -> Any:
        response = self.client.get(f"/api/v1/{path}", params=parameters).json()
        assert response["status"] == "success", response
        return response["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        result: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return [series for series in result if series["value"][1] != "NaN"]

    def alerts(self, server: Running) -> list[str]:
        """Return the names of the firing alerts of one server."""
        instance = server.url.removeprefix("http://")
        return [
            alert["labels"]["alertname"]
            for alert in self.get("alerts")["alerts"]
            if alert["state"] == "firing" and alert["labels"].get("instance") == instance
        ]

    def wait_for(self, condition: Callable[[], object], action: Callable[[], object]) -> None:
        """Repeat `action` until the condition is true."""
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end, "the condition did not become true"
            action()

    def wait_for_data(self, expression: str, jpeg: bytes) -> None:
        """Send predictions, over HTTP to one server and over gRPC to the other, until there are series."""

        def predict() -> None:
            self.server.client.post("/predict", files={"file": jpeg})
            with grpc.insecure_channel(self.second_server.grpc_url) as channel:
                service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(
                    to_protobuf({"inputs": [json_input()]})
                )

        self.wait_for(lambda: self.query(expression), predict)


@pytest.fixture(scope="module")
def prometheus(
    server: Running, settings: Settings, jpeg: bytes, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """Yield a Prometheus that has data of some predictions, valid and invalid."""
    require_program("prometheus")
    repository = tmp_path_factory.mktemp("models")
    for version in ("1", "2"):
        (repository / "cifar10" / version).mkdir(parents=True)
        (repository / "cifar10" / version / "model.yaml").write_text("model: cifar10\n")
    (repository / "cifar10/traffic.yaml").write_text("shadow: {version: 2, percent: 100}\n")
    # All of the classes but one.
    labels = load_model(ModelSource("cifar10")).labels
    shares = dict.fromkeys(labels[:-1], 0.1)
    model = ModelBaseline(images=1000, shares=shares, probability=0.5)
    baseline = tmp_path_factory.mktemp("baseline") / "baseline.json"
    baseline.write_text(Baseline(recorded_at="", models={"cifar10": model}).model_dump_json())
    log = tmp_path_factory.mktemp("prometheus") / "prometheus.log"
    changes = {"model_repository": repository, "prediction_baseline": baseline}
    with (
        serving(settings.model_copy(update=changes), grpc=True) as second,
        run_prometheus(
            *(each.url.removeprefix("http://") for each in (server, second)), log=log, interval="500ms"
        ) as url,
        httpx.Client(base_url=url, timeout=10) as client,
    ):
        prometheus = Prometheus(client, server, second)

        def predict() -> None:
            server.client.post("/predict", files={"file": jpeg})
            server.client.post("/predict", files={"file": b"not an image"})

        prometheus.wait_for(
            lambda: prometheus.query("instance:inference_request_seconds:p99_5m > 0"), predict
        )
        yield prometheus


@pytest.mark.parametrize(("title", "series"), panels.queries(), ids=lambda value: str(value)[:30])
def test_each_panel_shows_data(
    prometheus: Prometheus, jpeg: bytes, title: str, series: panels.Series
) -> None:
    """Every query of every panel returns series from a service under load, with all labels of its legend."""
    expression = panels.fill_in(series.expr, "20s")
    prometheus.wait_for_data(expression, jpeg)
    for line in prometheus.query(expression):
        for label in (part.split("}}")[0] for part in series.legend.split("{{")[1:]):
            assert line["metric"].get(label), f"{title}: no label {label}"


@pytest.mark.parametrize("record", [rule["record"] for rule in RULES if "record" in rule])
def test_each_recording_rule_returns_series(prometheus: Prometheus, jpeg: bytes, record: str) -> None:
    """Every recording rule produces a series for the instance."""
    prometheus.wait_for_data(record, jpeg)
    assert {series["metric"]["job"] for series in prometheus.query(record)} == {"resnet-service"}


def test_all_rules_are_evaluated_without_errors(prometheus: Prometheus) -> None:
    """Prometheus evaluates every shipped rule without an error, and a healthy service raises no alert.

    Except that responses are slow if other tests keep the machine busy.
    """
    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert len(rules) == len(RULES)
    assert {rule["health"] for rule in rules} == {"ok"}
    assert set(prometheus.alerts(prometheus.server)) <= {"InferenceSlow"}


def test_other_predictions_than_usual_raise_an_alert(prometheus: Prometheus, jpeg: bytes) -> None:
    """InferencePredictionsShifted fires after many images of the same class; the baseline has all classes."""
    second = prometheus.second_server

    def is_firing() -> bool:
        alerts = prometheus.get("alerts")["alerts"]
        return any(
            (alert["labels"]["alertname"], alert["labels"].get("model"), alert["state"])
            == ("InferencePredictionsShifted", "cifar10", "firing")
            for alert in alerts
        )

    prometheus.wait_for(is_firing, lambda: second.client.post("/predict/batch", files=[("file", jpeg)] * 16))


def test_a_stopped_service_raises_an_alert(prometheus: Prometheus) -> None:
    """InferenceDown fires after the service has stopped."""
    second = prometheus.second_server
    second.stop()
    request = partial(prometheus.server.client.get, "/healthz")
    prometheus.wait_for(lambda: "InferenceDown" in prometheus.alerts(second), request)


def test_the_configuration_and_rules_are_valid() -> None:
    """Promtool accepts both."""
    assert_promtool("check", "config", "--syntax-only", CONFIGURATION / "prometheus.yml")
    assert_promtool("check", "rules", RULES_FILE)


def test_grafana_knows_the_scrape_interval() -> None:
    """The data source has that of Prometheus, from which Grafana computes `$__rate_interval`."""
    interval = yaml.safe_load((CONFIGURATION / "prometheus.yml").read_text())["global"]["scrape_interval"]
    provisioned = CONFIGURATION.parent / "grafana/provisioning/datasources/prometheus.yml"
    [source] = yaml.safe_load(provisioned.read_text())["datasources"]
    assert source["jsonData"]["timeInterval"] == interval


@pytest.mark.parametrize("name", panels.DASHBOARDS)
def test_the_dashboard_json_is_up_to_date(name: str) -> None:
    """The shipped JSON equals the output of the code, and panel ids are unique."""
    shipped = (dashboards.FOLDER / f"{name}.json").read_text(encoding="utf-8")
    assert shipped == dashboards.dashboard_json(name), "run: make dashboards"
    ids = [panel["id"] for panel in json.loads(shipped)["panels"]]
    assert len(set(ids)) == len(ids)
