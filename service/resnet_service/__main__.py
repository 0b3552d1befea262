"""`python -m service` is `resnet-service`."""

from resnet_service.cli import main

main(prog_name="resnet-service")
