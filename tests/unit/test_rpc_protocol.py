"""The definition of the gRPC protocol: its modules are current, and clients understand its messages."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc import model_config_pb2, service_pb2

from resnet_service.errors import ServiceError
from resnet_service.server.exception_handlers import PROBLEM_TYPES
from resnet_service.server.rpc.protocol import open_inference_pb2
from resnet_service.server.rpc.status import GRPC_CODES
from tests.support import REPOSITORY

PROTOCOL = Path("resnet_service/server/rpc/protocol")
HTTP_ONLY = {"MalformedRequest", "HeadersTooLarge", "MissingDependencyError", "UnsupportedModelError"}
"""Errors of connections and routes that gRPC does not have."""


def test_generating_again_gives_the_committed_modules(tmp_path: Path) -> None:
    """The modules are those of the definition."""
    subprocess.run(
        [sys.executable, REPOSITORY / "deploy/generate_protocol.py", tmp_path], check=True, timeout=120
    )
    generated = sorted(path.name for path in (tmp_path / PROTOCOL).iterdir())
    assert generated == ["open_inference_pb2.py", "open_inference_pb2.pyi"]
    for name in generated:
        committed = REPOSITORY / "service" / PROTOCOL / name
        assert (tmp_path / PROTOCOL / name).read_bytes() == committed.read_bytes()


@pytest.mark.parametrize("name", sorted(open_inference_pb2.DESCRIPTOR.message_types_by_name))
def test_messages_have_the_fields_of_the_published_protocol(name: str) -> None:
    """Each field has the number and the type that it has in NVIDIA's client."""
    published = {
        **service_pb2.DESCRIPTOR.message_types_by_name,
        **model_config_pb2.DESCRIPTOR.message_types_by_name,
    }
    _compare(open_inference_pb2.DESCRIPTOR.message_types_by_name[name], published[name])


def _compare(message: Any, published: Any) -> None:
    for field in message.fields:
        other = published.fields_by_name[field.name]
        for attribute in ("number", "type", "is_repeated"):
            assert getattr(field, attribute) == getattr(other, attribute), f"{message.full_name}.{field.name}"
        if field.message_type is not None:
            assert field.message_type.full_name == other.message_type.full_name
        if field.enum_type is not None:
            values = {value.name: value.number for value in field.enum_type.values}
            assert values == {value.name: value.number for value in other.enum_type.values}
    for nested in message.nested_types:
        _compare(nested, published.nested_types_by_name[nested.name])


def test_methods_are_those_of_the_published_protocol() -> None:
    """Each method has the messages that it has in NVIDIA's client."""
    [service] = open_inference_pb2.DESCRIPTOR.services_by_name.values()
    published = service_pb2.DESCRIPTOR.services_by_name[service.name]
    assert service.full_name == published.full_name
    for method in service.methods:
        other = published.methods_by_name[method.name]
        assert method.input_type.full_name == other.input_type.full_name
        assert method.output_type.full_name == other.output_type.full_name


def test_every_error_of_a_request_has_a_code() -> None:
    """The tables of HTTP and of gRPC have the same errors, except for those that only HTTP has."""
    assert {kind.__name__ for kind in PROBLEM_TYPES} - HTTP_ONLY == {kind.__name__ for kind in GRPC_CODES}
    assert all(issubclass(kind, ServiceError) for kind in GRPC_CODES)
