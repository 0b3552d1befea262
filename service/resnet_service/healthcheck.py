"""Container health check: `python -m resnet_service.healthcheck` exits with 0 if the service is ready.

Uses the standard library only, which keeps it fast, and ignores proxy settings.
"""

import http.client
import os
import sys


def main() -> int:
    """Return 0 if the service in this container is ready, otherwise 1.

    Asks the management port, or the main port if that one is off.
    """
    management_port = int(os.environ.get("RESNET_SERVICE_MANAGEMENT_PORT") or 8001)
    main_port = int(os.environ.get("RESNET_SERVICE_PORT") or 8000)
    connection = http.client.HTTPConnection("127.0.0.1", management_port or main_port, timeout=4)
    try:
        connection.request("GET", "/readyz")
        return int(connection.getresponse().status != http.HTTPStatus.OK)
    except (OSError, http.client.HTTPException):
        return 1
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
