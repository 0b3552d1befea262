"""Messages for invalid parameters, fields and settings, with a hint at the name that was probably meant."""

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, Final, LiteralString

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

_MAX_NAME: Final = 50
"""Characters of a client's name that are compared and shown: the time of a comparison grows with them."""
_MAX_ERRORS: Final = 3
_SEPARATORS: Final = re.compile(r"[^a-z0-9]")


def most_similar(name: str, known: Iterable[str]) -> str | None:
    """Return the name in `known` that `name` is probably a misspelling of, or None.

    Case and separators do not count: `topK` and `top-k` are `top_k`. Of names with dots only the last part
    counts.
    """
    words = {_normalized(word.rpartition(".")[2]): word for word in known}
    matches = difflib.get_close_matches(_normalized(name[:_MAX_NAME]), words, n=1)
    return words[matches[0]] if matches else None


def describe_unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the message for an unknown name, for example of the kind "form field"."""
    known = list(known)
    similar = most_similar(name, known)
    if similar is not None:
        advice = f"did you mean {similar!r}?"
    else:
        advice = f"expected {' or '.join(map(repr, known))}" if known else "none is expected here"
    return f"unknown {kind} {name[:_MAX_NAME]!r}; {advice}"


def input_error(message: str, kind: LiteralString = "invalid_input") -> PydanticCustomError:
    """Return an error for a validator to raise; unlike with ValueError, its message is shown as it is."""
    return PydanticCustomError(kind, "{message}", {"message": message})


def summarize_errors(errors: Sequence[Any]) -> str:
    """Return the place and the message of the first errors of a `pydantic.ValidationError`."""
    return "; ".join(
        ": ".join(filter(None, (".".join(map(str, error["loc"])), error["msg"])))
        for error in errors[:_MAX_ERRORS]
    )


class StrictModel(BaseModel):
    """Base class of what a client sends: unknown names are errors with a hint.

    `kind` is the word for a name in the message. Names that `ignores` accepts have no effect.
    """

    model_config = ConfigDict(extra="forbid")
    kind: ClassVar[str] = "parameter"

    @classmethod
    def ignores(cls, _: str) -> bool:
        """Return whether a name that is not a field is accepted."""
        return False

    @model_validator(mode="before")
    @classmethod
    def _reject_unknown(cls, values: Any) -> Any:
        """Raise the error with the hint; pydantic's own does not have one."""
        if isinstance(values, dict) and not values.keys() <= cls.model_fields.keys():
            for name in values:
                if name not in cls.model_fields and not cls.ignores(name):
                    raise input_error(describe_unknown(cls.kind, name, _names(cls)))
        return values


def _names(model: type[BaseModel]) -> Iterator[str]:
    """Yield the names of the fields, and those of nested models as `parameters.top_k`."""
    for name, field in model.model_fields.items():
        yield name
        if isinstance(field.annotation, type) and issubclass(field.annotation, StrictModel):
            yield from (f"{name}.{inner}" for inner in field.annotation.model_fields)


def _normalized(name: str) -> str:
    return _SEPARATORS.sub("", name.lower())
