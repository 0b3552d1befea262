"""A Prometheus of one's own: the configuration that ships, pointed at a service on this machine."""

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


class PrometheusMissing(Exception):
    """There is no `prometheus` on the PATH, or it did not start."""


def free_port() -> int:
    """Return a port that nothing listens on, for programs that cannot choose one themselves."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def scraping(target: str, log: Path) -> Iterator[str]:
    """Run Prometheus against `target` (host:port) until the block ends; yields Prometheus' URL.

    Intervals are a second, and alerts fire without waiting; everything else is what ships. Its own log goes
    into the file `log`, its data are gone at the end. Raises PrometheusMissing.
    """
    program = shutil.which("prometheus")
    if program is None:
        raise PrometheusMissing("prometheus is not installed (Debian's package has this name)")
    address = f"127.0.0.1:{free_port()}"
    configuration = yaml.safe_load((CONFIGURATION / "prometheus.yml").read_text())
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    targets = {"resnet-service": target, "prometheus": address}
    for job in configuration["scrape_configs"]:
        job["static_configs"] = [{"targets": [targets[job["job_name"]]]}]
    rules = yaml.safe_load((CONFIGURATION / "rules.yml").read_text())
    for rule in (rule for group in rules["groups"] for rule in group["rules"] if "for" in rule):
        del rule["for"]
    with tempfile.TemporaryDirectory(prefix="prometheus-") as name, log.open("w") as written:
        folder = Path(name)
        (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        (folder / "rules.yml").write_text(yaml.safe_dump(rules))
        command = [
            program,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={address}",
        ]
        with subprocess.Popen(command, stderr=written) as process:
            try:
                while "ready to receive web requests" not in log.read_text():
                    if process.poll() is not None:
                        raise PrometheusMissing(f"prometheus did not start; see {log}")
                    time.sleep(0.05)
                yield f"http://{address}"
            finally:
                process.terminate()
