"""Selection of devices and precisions."""

import pytest
import torch

from resnet_service.devices import Precision, choose_device, choose_devices, choose_precision
from resnet_service.errors import DeviceUnavailableError
from resnet_service.machine import has_native_bf16

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_requested_device_is_used_or_rejected(name: str) -> None:
    """A requested device is used if it exists, and rejected if it does not."""
    if {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}[name]:
        assert choose_device(name).type == name
    else:
        with pytest.raises(DeviceUnavailableError, match=name):
            choose_device(name)


@pytest.mark.parametrize("name", ["cuda:99", "tpu", "meta", "nonsense"])
def test_missing_device_is_rejected_by_name(name: str) -> None:
    """A missing or unknown device raises an error with its name and is not replaced by another one."""
    with pytest.raises(DeviceUnavailableError, match=name.split(":")[0]):
        choose_device(name)


def test_devices_are_accepted_in_any_case() -> None:
    """`--device CPU` of any command is the CPU."""
    assert choose_devices(" CPU") == (CPU,)
    assert choose_device("Auto") == choose_device("auto")


def test_auto_selects_an_available_device_and_precision() -> None:
    """Auto selects a device of this machine, and on the CPU bf16 if it is native."""
    assert choose_device("auto").type in ("cuda", "mps", "cpu")
    assert choose_precision(CPU, "auto") == ("bf16" if has_native_bf16() else "fp32")


@pytest.mark.parametrize("precision", ["tf32", "fp16"])
def test_precision_that_the_cpu_lacks_is_rejected(precision: Precision) -> None:
    """A precision that the device does not support raises an error with its name."""
    with pytest.raises(DeviceUnavailableError, match=precision):
        choose_precision(CPU, precision)


@pytest.mark.parametrize(
    ("names", "reason"), [("cpu,cpu", "twice"), ("cpu,", "unknown device"), ("cpu,tpu", "tpu")]
)
def test_list_of_devices_is_validated(names: str, reason: str) -> None:
    """Each name in a list must be a device, without duplicates."""
    assert choose_devices("cpu") == (CPU,)
    with pytest.raises(DeviceUnavailableError, match=reason):
        choose_devices(names)
