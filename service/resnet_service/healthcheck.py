"""Container health check: `python -m resnet_service.healthcheck` exits with 0 if the service is ready.

Uses the standard library only, which keeps it fast, and ignores proxy settings.
"""

import http.client
import os
import sys


def main() -> int:
    """Return 0 if the service in this container is ready, otherwise 1."""
    connection = http.client.HTTPConnection(
        "127.0.0.1", int(os.environ.get("RESNET_SERVICE_PORT") or 8000), timeout=4
    )
    try:
        connection.request("GET", "/readyz")
        return int(connection.getresponse().status != http.HTTPStatus.OK)
    except (OSError, http.client.HTTPException):
        return 1
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
