"""Diagnostics without a server: checks of the machine, and summaries of models."""
