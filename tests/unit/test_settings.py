"""Settings from environment variables: empty, misspelled and invalid ones, and the text of the errors."""

from typing import Any

import pytest
from pydantic import ValidationError

from resnet_service.settings import PAGE_API_KEY_VARIABLE, PAGE_URL_VARIABLE, Settings, describe_errors


def errors(**flags: Any) -> list[str]:
    """Return the described errors of Settings, which must be invalid."""
    with pytest.raises(ValidationError) as failure:
        Settings(**flags)
    return describe_errors(failure.value, flags)


def test_empty_environment_variable_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty variable, which compose files create for a missing one, leaves the default in place."""
    monkeypatch.setenv("RESNET_SERVICE_WEIGHTS", "")
    monkeypatch.setenv("RESNET_SERVICE_PORT", "")
    settings = Settings()
    assert settings.weights is None
    assert settings.port == 8000


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("RESNET_SERVICE_MAXQUEUE", "did you mean RESNET_SERVICE_MAX_QUEUE?"),
        ("RESNET_SERVICE_READ_TIMEOUT", "did you mean RESNET_SERVICE_READ_TIMEOUT_S?"),
        ("resnet_service_prot", "did you mean RESNET_SERVICE_PORT?"),
        ("RESNET_SERVICE_XYZ", "see resnet-service serve --help"),
        ("RESNET_SERVICE_", "see resnet-service serve --help"),
    ],
)
def test_unknown_variable_is_an_error_that_names_the_most_similar_one(
    name: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error of Settings itself has the name of the variable, and not its value, which may be a secret."""
    monkeypatch.setenv(name, "secret-value")
    with pytest.raises(ValidationError, match=f"unknown environment variable {name}") as failure:
        Settings(model="cifar10")
    assert "secret-value" not in str(failure.value)
    assert describe_errors(failure.value) == [f"unknown environment variable {name}; {advice}"]


def test_all_unknown_variables_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line per variable, in the order of their names."""
    monkeypatch.setenv("RESNET_SERVICE_PROT", "1")
    monkeypatch.setenv("RESNET_SERVICE_HOTS", "1")
    assert [line.split(";")[0] for line in errors()] == [
        "unknown environment variable RESNET_SERVICE_HOTS",
        "unknown environment variable RESNET_SERVICE_PROT",
    ]


def test_variables_of_the_page_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell that has the variables of `resnet-service ui` can start the service as well."""
    monkeypatch.setenv(PAGE_URL_VARIABLE, "http://localhost:9000")
    monkeypatch.setenv(PAGE_API_KEY_VARIABLE, "0123456789abcdef")
    assert Settings().port == 8000


def test_variables_are_accepted_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower-case names set the same settings."""
    monkeypatch.setenv("resnet_service_port", "9000")
    assert Settings().port == 9000


def test_invalid_values_are_described_with_their_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value from the environment has the variable, a value from the command line the flag."""
    monkeypatch.setenv("RESNET_SERVICE_MAX_QUEUE", "none")
    monkeypatch.setenv("RESNET_SERVICE_PORT", "9000")
    port, queue = sorted(errors(port="http"))
    assert port.startswith("--port http: ")
    assert queue.startswith("RESNET_SERVICE_MAX_QUEUE=none: ")


def test_invalid_secret_is_described_without_its_value() -> None:
    """API keys of the wrong type appear nowhere."""
    [line] = errors(api_keys=1234567890)
    assert "1234567890" not in line


def test_misspelled_keyword_is_an_error() -> None:
    """Keyword arguments are checked like variables."""
    with pytest.raises(ValidationError, match="max_queu"):
        Settings(max_queu=1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("log_level", "INFO", "info"),
        ("log_format", " Json ", "json"),
        ("precision", "FP16", "fp16"),
        ("runtime", "OpenVINO", "openvino"),
        ("device", "CUDA:0,CUDA:1", "cuda:0,cuda:1"),
        ("workers", "AUTO", "auto"),
        ("public_scopes", "Metrics, Predict", "metrics, predict"),
        ("compile", "Yes", True),
        ("access_log", "OFF", False),
        ("api_docs", "No", False),
    ],
)
def test_words_are_accepted_in_any_case(
    field: str, text: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The setting has the documented form of the word, from the environment and from a flag."""
    flags: dict[str, Any] = {field: text}
    assert getattr(Settings(**flags), field) == value
    monkeypatch.setenv(f"RESNET_SERVICE_{field.upper()}", text)
    assert getattr(Settings(), field) == value


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("https://example.org/", "https://example.org"),
        ("HTTPS://Example.ORG:443", "https://example.org"),
        ("http://example.org:80", "http://example.org"),
        ("http://example.org:443", "http://example.org:443"),
        ("http://LOCALHOST:3000/", "http://localhost:3000"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("capacitor://localhost", "capacitor://localhost"),
        (" https://a.org, https://b.org ,", "https://a.org,https://b.org"),
        ("Null", "null"),
        ("*", "*"),
        ("", ""),
    ],
)
def test_origins_are_converted_to_what_browsers_send(text: str, origins: str) -> None:
    """Capitals, default ports, a slash at the end and international names are converted."""
    assert Settings(cors_origins=text).cors_origins == origins


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("example.org", "did you mean 'https://example.org'?"),
        ("localhost:3000", "did you mean 'https://localhost:3000'?"),
        ("https://example.org/app", "did you mean 'https://example.org'?"),
        ("https://a.org https://example.org:8443?x=1", "did you mean 'https://example.org:8443'?"),
        ("https://user@example.org", "did you mean 'https://example.org'?"),
        ("https://*.example.org", "list each origin, or * for all"),
        ("file:///", "the origin of local files is null"),
        ("https://", "not an origin such as https://example.org"),
        ("https://example.org:99999", "not an origin such as https://example.org"),
    ],
)
def test_origin_that_can_never_match_is_an_error(text: str, advice: str) -> None:
    """The error names the setting, the origin and what to write."""
    [line] = errors(cors_origins=text)
    assert line.startswith(f"--cors-origins {text}: ")
    assert line.endswith(advice)


SERVICE_LINKS = {
    "RESNET_SERVICE_SERVICE_HOST": "10.0.0.1",
    "RESNET_SERVICE_SERVICE_PORT": "80",
    "RESNET_SERVICE_SERVICE_PORT_HTTP": "80",
    "RESNET_SERVICE_PORT": "tcp://10.0.0.1:80",
    "RESNET_SERVICE_PORT_80_TCP": "tcp://10.0.0.1:80",
    "RESNET_SERVICE_PORT_80_TCP_PROTO": "tcp",
    "RESNET_SERVICE_PORT_80_TCP_PORT": "80",
    "RESNET_SERVICE_PORT_80_TCP_ADDR": "10.0.0.1",
}
"""What Kubernetes sets for a Service called `resnet-service`."""


def set_variables(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_variables_of_a_kubernetes_service_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of `resnet-service` and of `resnet-service-management` leave the settings as they are."""
    set_variables(SERVICE_LINKS, monkeypatch)
    other = {
        name.replace("RESNET_SERVICE", "RESNET_SERVICE_MANAGEMENT", 1): value
        for name, value in SERVICE_LINKS.items()
    }
    set_variables(other, monkeypatch)
    settings = Settings(model="cifar10")
    assert (settings.host, settings.port, settings.management_port) == ("127.0.0.1", 8000, 8001)
    monkeypatch.setenv("RESNET_SERVICE_PORT", "9000")  # the pod's own variables replace those of Services
    assert Settings().port == 9000


def test_misspelled_variable_beside_a_kubernetes_service_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only the variables of the Service are ignored."""
    set_variables(SERVICE_LINKS | {"RESNET_SERVICE_PROT": "9000"}, monkeypatch)
    assert errors() == ["unknown environment variable RESNET_SERVICE_PROT; did you mean RESNET_SERVICE_PORT?"]


def test_host_of_a_kubernetes_service_is_an_error_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Service called `resnet` replaces RESNET_SERVICE_HOST; a flag, or another value, is not affected."""
    links = {
        name.replace("RESNET_SERVICE", "RESNET", 1): value.replace("10.0.0.1", "10.0.0.2")
        for name, value in SERVICE_LINKS.items()
    }
    set_variables(links, monkeypatch)
    [line] = errors()
    assert line.startswith("RESNET_SERVICE_HOST=10.0.0.2: Kubernetes has set this for the Service 'resnet'; ")
    assert "enableServiceLinks: false" in line
    assert Settings(host="0.0.0.0").host == "0.0.0.0"
    monkeypatch.setenv("RESNET_SERVICE_HOST", "0.0.0.0")
    assert Settings().host == "0.0.0.0"


def test_address_of_a_service_without_its_variables_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only Kubernetes may set a port to an address."""
    monkeypatch.setenv("RESNET_SERVICE_PORT", "tcp://10.0.0.1:80")
    [line] = errors()
    assert line.startswith("RESNET_SERVICE_PORT=tcp://10.0.0.1:80: ")
