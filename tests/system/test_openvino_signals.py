"""Signals after an OpenVINO runtime was released, as a reload releases it."""

import subprocess
import sys

import pytest

pytest.importorskip("openvino", reason="needs the extra openvino")

PROGRAM = """
import os, signal, threading
from resnet_service.models import load_model
from resnet_service.runtimes.openvino import compile_model

runtimes = compile_model(load_model("cifar10"), "fp32", streams=1)
thread = threading.Thread(target=runtimes.clear)
thread.start()
thread.join()
received = []
signal.signal(signal.SIGTERM, lambda *_: received.append("SIGTERM"))
os.kill(os.getpid(), signal.SIGTERM)
print(*received)
"""


def test_signal_is_handled_after_another_thread_released_a_runtime() -> None:
    """The process does not crash at the next signal."""
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout.strip()) == (0, "SIGTERM"), result.stderr
