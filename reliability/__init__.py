"""Reliability tests: what the service promises under overload, over a long time, and for any input."""
