"""One module for each server, run as `python -m` or, for BentoML, by its own command: see `resnet`."""
