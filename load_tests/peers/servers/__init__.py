"""One module per server; each serves `resnet.Classifier`. Run with `python -m` (BentoML: its own command)."""
