"""`python -m resnet_service` runs the same program as `resnet-service`."""

from resnet_service.cli import main

main(prog_name="resnet-service")
