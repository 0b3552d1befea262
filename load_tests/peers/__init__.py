"""Other servers with the same network, each as its own documentation would have it, to compare with.

Each of `servers/` is run by a Python of its own, which has that server and shares PyTorch with this project.
"""
