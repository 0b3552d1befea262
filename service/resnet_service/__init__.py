"""An image-classification inference service with a Python client.

The public API: `resnet_service.client` (clients, their errors and response models),
`resnet_service.settings.Settings`, and `resnet_service.server.app.create_app`. Everything else is internal.
"""

__version__ = "1.0.0rc1"
