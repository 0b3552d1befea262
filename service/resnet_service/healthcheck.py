"""Ask the service in this container whether it is ready: `python -m resnet_service.healthcheck`, status 0 or 1.

Only the standard library, and no proxy that the environment may name.
"""

import http.client
import os
import sys


def main() -> int:
    """Return 0 where the service on this machine says that it is ready."""
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
