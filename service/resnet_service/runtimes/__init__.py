"""Runtimes: execute a model on a device. One interface, `Runtime`, and one module per implementation."""

from resnet_service.runtimes.runtime import DeviceMemory, Runtime, TopKResult, normalization, stack_crops

__all__ = ["DeviceMemory", "Runtime", "TopKResult", "normalization", "stack_crops"]
