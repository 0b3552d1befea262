"""Diagnostics of the machine and of models, without a server."""
