"""The HTTP routes outside of /v2, one module per group."""
