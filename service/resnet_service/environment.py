"""The environment variables of the settings: misspelled ones, and those that Kubernetes sets for Services.

Unless enableServiceLinks is false, a pod has variables for each Service of its namespace. Those of a Service
called `resnet-service` begin as the settings do: RESNET_SERVICE_SERVICE_HOST=10.0.0.1,
RESNET_SERVICE_PORT=tcp://10.0.0.1:8000, RESNET_SERVICE_PORT_8000_TCP=tcp://10.0.0.1:8000, and so on. So do
RESNET_SERVICE_HOST=10.0.0.1 and RESNET_SERVICE_PORT=8000 of a Service called `resnet`.
"""

import os
import re
from collections.abc import Collection, Container, Mapping
from typing import Final

from pydantic import ValidationError, ValidationInfo
from pydantic_core import InitErrorDetails, PydanticUseDefault

from resnet_service.hints import input_error, most_similar

PREFIX: Final = "RESNET_SERVICE_"
ENVIRONMENT_ONLY: Final = frozenset({"api_keys"})
"""Settings without a flag: every user of the machine can read a process's command line."""
PAGE_URL_VARIABLE: Final = "RESNET_SERVICE_URL"
"""Variable of `resnet-service ui`, not of the service: URL of the service that the page uses."""
PAGE_API_KEY_VARIABLE: Final = "RESNET_SERVICE_API_KEY"
"""Variable of `resnet-service ui`, not of the service: API key that the page sends."""
UNKNOWN_VARIABLE: Final = "unknown_variable"
"""The type of a validation error whose message contains the name of the variable."""

_PORT_VARIABLE: Final = re.compile(r"(\w+)_PORT_\d+_(?:TCP|UDP|SCTP)")
_SUFFIX: Final = re.compile(r"_SERVICE_HOST|_SERVICE_PORT(?:_\w+)?|_PORT(?:_\d+_\w+)?")
_ADDRESS: Final = re.compile(r"(?:tcp|udp|sctp)://\[?([^\s\]]+)\]?:\d+")


def variable(field: str) -> str:
    """Return the name of the variable for a field of the settings."""
    return f"{PREFIX}{field.upper()}"


def reject_unknown_variables(title: str, fields: Collection[str], others: Collection[str]) -> None:
    """Raise the ValidationError of `unknown_variables` if there are any; `title` is the name of the class."""
    messages = unknown_variables(fields, others)
    if messages:
        errors = [
            InitErrorDetails(type=input_error(message, UNKNOWN_VARIABLE), loc=(name,), input=None)
            for name, message in messages.items()
        ]
        raise ValidationError.from_exception_data(title, errors)


def unknown_variables(fields: Collection[str], others: Collection[str]) -> dict[str, str]:
    """Return the message for each variable that is not of a field, of `others` or of a Kubernetes Service.

    The messages do not contain the values, which may be secret.
    """
    known = {*map(variable, fields), *others}
    services = _service_hosts(os.environ)
    return {
        name: _describe_unknown(name, fields)
        for name in sorted(os.environ)
        # Upper case, because pydantic accepts the variables in any case.
        if name.upper().startswith(PREFIX) and name.upper() not in known and not _is_link(name, services)
    }


def describe_errors(error: ValidationError, flags: Container[str] = ()) -> list[str]:
    """Return one line per error of the settings: the variable or flag, its value unless secret, the reason.

    `flags` has the names of the fields whose values are from flags; all others are from the environment.
    """
    lines = []
    for details in error.errors():
        name = str(details["loc"][0])
        source = f"--{name.replace('_', '-')} " if name in flags else f"{variable(name)}="
        value = "<hidden>" if name in ENVIRONMENT_ONLY else details["input"]
        is_unknown = details["type"] == UNKNOWN_VARIABLE  # the message contains the name
        lines.append(details["msg"] if is_unknown else f"{source}{value}: {details['msg']}")
    return lines


def reject_service_host(value: str, field: ValidationInfo) -> str:
    """Raise an error if the variable of the field is the host of a Service: it has replaced the setting."""
    name = variable(str(field.field_name))
    service = name.removesuffix("_SERVICE_HOST")
    if value == os.environ.get(name) == _service_hosts(os.environ).get(service, ""):
        raise input_error(
            f"Kubernetes has set this for the Service {service.lower()!r}; "
            "set enableServiceLinks: false in the pod, or rename the Service"
        )
    return value


def ignore_service_address(value: object, field: ValidationInfo) -> object:
    """Use the default if the variable of the field is the address of a Service, such as tcp://10.0.0.1:8000."""
    name = variable(str(field.field_name))
    is_variable = isinstance(value, str) and value == os.environ.get(name)
    if is_variable and _ADDRESS.fullmatch(str(value)) and _is_link(name, _service_hosts(os.environ)):
        raise PydanticUseDefault
    return value


def _service_hosts(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the host of each Service, by its name in the variables, for example RESNET_SERVICE."""
    hosts = {}
    for name, value in environment.items():
        port, address = _PORT_VARIABLE.fullmatch(name), _ADDRESS.fullmatch(value)
        if port is not None and address is not None:
            hosts[port[1]] = address[1]
    return hosts


def _is_link(name: str, services: Collection[str]) -> bool:
    return any(name.startswith(service) and _SUFFIX.fullmatch(name, len(service)) for service in services)


def _describe_unknown(name: str, fields: Collection[str]) -> str:
    similar = most_similar(name.upper().removeprefix(PREFIX), fields)  # with the prefix, all would be similar
    advice = f"did you mean {variable(similar)}?" if similar else "see resnet-service serve --help"
    return f"unknown environment variable {name}; {advice}"
