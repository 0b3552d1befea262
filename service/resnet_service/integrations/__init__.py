"""A page in the browser, for people, that asks a running service."""
