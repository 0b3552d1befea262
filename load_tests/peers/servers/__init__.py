"""One module per server, each serving `resnet.Classifier`; run with `python -m` (BentoML: its own command)."""
