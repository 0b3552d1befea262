"""Training: pictures in folders in, a checkpoint that can be served out."""
