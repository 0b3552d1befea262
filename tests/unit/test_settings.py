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
        Settings(model="bundled")
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
