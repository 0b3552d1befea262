"""The Open Inference Protocol over REST, for clients of KServe and Triton.

Specification: https://github.com/kserve/open-inference-protocol. It supports two extensions of Triton: binary
tensor data and classification.
"""
