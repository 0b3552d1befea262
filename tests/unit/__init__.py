"""Tests of modules and functions, in this process and without a server."""
