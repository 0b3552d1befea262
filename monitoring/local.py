"""Run a local Prometheus with the shipped configuration, for tests and load tests."""

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import yaml

CONFIGURATION: Final = Path(__file__).parent / "prometheus"


class PrometheusError(Exception):
    """`prometheus` is not on the PATH or did not start."""


def free_port() -> int:
    """Return an unused port, for programs that cannot choose one themselves."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def run_prometheus(*targets: str, log: Path, interval: str = "1s") -> Iterator[str]:
    """Run Prometheus until the block ends, scraping `targets` (host:port), and yield its URL.

    It uses the shipped configuration, except that it scrapes and evaluates every `interval` and that alerts
    fire without a delay. Its log is written to the file `log`; its data is deleted at the end.
    Raises PrometheusError.
    """
    program = shutil.which("prometheus")
    if program is None:
        raise PrometheusError("prometheus is not installed; install Debian's package prometheus")
    address = f"127.0.0.1:{free_port()}"
    configuration = yaml.safe_load((CONFIGURATION / "prometheus.yml").read_text())
    configuration["global"] = {"scrape_interval": interval, "evaluation_interval": interval}
    del configuration["alerting"]  # no Alertmanager runs here
    targets_by_job = {"resnet-service": list(targets), "prometheus": [address]}
    for job in configuration["scrape_configs"]:
        job["static_configs"] = [{"targets": targets_by_job[job["job_name"]]}]
    rules = yaml.safe_load((CONFIGURATION / "rules.yml").read_text())
    for group in rules["groups"]:
        group.pop("interval", None)
        for rule in group["rules"]:
            rule.pop("for", None)
    with tempfile.TemporaryDirectory(prefix="prometheus-") as name, log.open("w") as log_file:
        folder = Path(name)
        (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        (folder / "rules.yml").write_text(yaml.safe_dump(rules))
        command = [
            program,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={address}",
        ]
        with subprocess.Popen(command, stderr=log_file) as process:
            try:
                while "ready to receive web requests" not in log.read_text():
                    if process.poll() is not None:
                        raise PrometheusError(f"prometheus did not start; see {log}")
                    time.sleep(0.05)
                yield f"http://{address}"
            finally:
                process.terminate()
