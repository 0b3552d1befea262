"""Python client of the service; see `Client`."""

from resnet_service.client.client import APIError, AsyncClient, Client, ServiceUnavailableError

__all__ = ["APIError", "AsyncClient", "Client", "ServiceUnavailableError"]
