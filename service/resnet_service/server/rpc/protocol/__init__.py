"""The definition of the protocol's messages, and the modules that `make protocol` generates from it."""
