"""Comparison with other inference servers that serve the same network: `python -m load_tests.peers`.

Each server is set up as its own documentation shows: see `servers/`. It runs in a virtual environment of its
own, which shares PyTorch with this project.
"""
