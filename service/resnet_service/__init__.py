"""An image-classification inference service: micro-batched, measured, and honest about failure."""

__version__ = "0.1.0"
