"""The Open Inference Protocol over REST: what clients of KServe and Triton speak.

https://github.com/kserve/open-inference-protocol, with two of Triton's extensions: binary tensor data and
classification.
"""
