"""Fuzzers: image decoding, request parsing and the HTTP API, with hostile and random input."""
