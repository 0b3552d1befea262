"""Container health check: `python -m resnet_service.healthcheck` exits with 0 if the service is ready.

Uses the standard library only, which keeps it fast, and ignores proxy settings.
"""

import http.client
import os
import sys
from ipaddress import ip_address

_DEFAULT_PORT = "8000"
_LOOPBACK = ("127.0.0.1", "::1")


def main() -> int:
    """Return 0 if the service in this container is ready, otherwise print the reason and return 1.

    Asks the management port, or the main port if that one is off, at the address in the environment variables
    of the service. It does not know the flags of the service.
    """
    variables = {name.upper(): value for name, value in os.environ.items()}
    host = variables.get("RESNET_SERVICE_HOST") or _LOOPBACK[0]
    main_port = variables.get("RESNET_SERVICE_PORT") or _DEFAULT_PORT
    if main_port.startswith("tcp://"):  # by Kubernetes, for a Service of this name: the service ignores it
        main_port = _DEFAULT_PORT
    management_port = variables.get("RESNET_SERVICE_MANAGEMENT_PORT") or "8001"
    reason = ""
    try:
        port = int(management_port) or int(main_port)
        for address in _LOOPBACK if _is_all_addresses(host) else (host,):
            reason = _check(address, port)
            if not reason:
                return 0
    except ValueError as error:
        reason = str(error)
    sys.stderr.write(f"not ready: {reason}\n")
    return 1


def _is_all_addresses(host: str) -> bool:
    try:
        return ip_address(host).is_unspecified
    except ValueError:  # a name
        return False


def _check(host: str, port: int) -> str:
    """Return why the service is not ready; empty if it is."""
    connection = http.client.HTTPConnection(host, port, timeout=4)
    try:
        connection.request("GET", "/readyz")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"{error} ({host}, port {port})"
    finally:
        connection.close()
    return "" if status == http.HTTPStatus.OK else f"status {status} ({host}, port {port})"


if __name__ == "__main__":
    sys.exit(main())
