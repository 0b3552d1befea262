"""`python -m service` is `resnet-service`."""

from service.cli import main

main(prog_name="resnet-service")
