"""The HTTP server. Only this package and `integrations` import FastAPI."""
