"""Run nginx with a configuration of the documentation, TLS included."""

import os
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from monitoring.local import free_port

HOST = "example.com"


def documented_configuration(page: Path) -> str:
    """Return the only nginx configuration of a page."""
    [configuration] = re.findall(r"```nginx\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return str(configuration)


def _write_certificate(folder: Path) -> None:
    subject = ["-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST},IP:127.0.0.1"]
    output = ["-keyout", f"{folder}/example.com.key", "-out", f"{folder}/example.com.pem"]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    subprocess.run([*command, "-nodes", "-days", "2", *subject, *output], check=True, capture_output=True)


@contextmanager
def run_nginx(configuration: str, service_url: str, folder: Path) -> Iterator[str]:
    """Run nginx in front of a service until the block ends, and yield its URL.

    Ports and paths of the configuration are replaced. Skips the test if nginx or openssl is not installed.
    """
    program = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    if program is None or shutil.which("openssl") is None:
        pytest.skip("needs Debian's packages nginx-light and openssl")
    _write_certificate(folder)
    port = free_port()
    for documented, actual in (
        ("127.0.0.1:8000", service_url.removeprefix("http://")),
        ("listen 443", f"listen 127.0.0.1:{port}"),
        ("/etc/ssl", str(folder)),
    ):
        assert documented in configuration
        configuration = configuration.replace(documented, actual)
    temporary = "".join(
        f"{kind}_temp_path {folder / kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    file = folder / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""  # otherwise, its worker could not write to the folder
    file.write_text(
        f"{user} daemon off; pid {folder / 'nginx.pid'}; error_log {folder / 'error.log'};"
        f"events {{}} http {{ access_log off; {temporary} {configuration} }}"
    )
    with subprocess.Popen([program, "-c", file]) as process:
        try:
            _wait_until_listening(process, port)
            yield f"https://127.0.0.1:{port}"
        finally:
            process.terminate()


def _wait_until_listening(process: "subprocess.Popen[bytes]", port: int) -> None:
    while process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
    raise AssertionError(f"nginx ended with status {process.returncode}")


@contextmanager
def client(url: str, folder: Path, address: str = "127.0.0.1") -> Iterator[httpx.Client]:
    """Yield a client that trusts the certificate and connects from this local address."""
    context = ssl.create_default_context(cafile=str(folder / "example.com.pem"))
    transport = httpx.HTTPTransport(verify=context, local_address=address)
    with httpx.Client(base_url=url, transport=transport, timeout=60) as connected:
        yield connected
